"""The figure of what a network loses without some of its attention."""

import math

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from jetzoo.page import styled
from jetzoo.style import OKABE_ITO

from ..ablation import AUC_LOSS, TOP, smallest_k
from .primitives import NEUTRAL, annotated


@styled
def ablation(results):
    """Draw the AUC without some of the attention: top k entries, the pair bias, single heads."""
    full = results[0][1]["auc"]
    found = {key: [] for key in DRAWN}
    for change, metrics in results[1:]:
        found[change.what, change.kind].append((change, metrics["auc"]))
    found = {key: aucs for key, aucs in found.items() if aucs}
    rows, columns = math.ceil(len(found) / 2), min(len(found), 2)
    figure = Figure(figsize=(max(3.75 * columns, 5), 3.1 * rows + 0.2), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flat
    for panel, (key, aucs) in zip(axes, found.items(), strict=False):
        DRAWN[key](panel, aucs, full, results)
    for unused in axes[len(found) :]:
        unused.remove()
    return figure


def _top_k(axes, found, full, results):
    """Draw the AUC over k."""
    axes.axhspan(full - AUC_LOSS, full + AUC_LOSS, color=OKABE_ITO[2], alpha=0.25, lw=0)
    axes.axhline(full, color=OKABE_ITO[2], lw=1, label="all entries (band: ±0.001)")
    axes.plot(TOP, [auc for _, auc in found], "o-", color=OKABE_ITO[0], label="top $k$ only")
    smallest = smallest_k(results)
    if smallest is not None:
        axes.axvline(
            smallest, color=NEUTRAL, ls=":", lw=1, label=f"smallest $k$ in the band: {smallest}"
        )
    axes.set(xscale="log", xlabel="attention entries kept per row, $k$", ylabel="AUC")
    axes.set_xticks(TOP, [str(k) for k in TOP])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_title("only the largest entries", fontsize=10)
    axes.legend(loc="lower right")


def _bias_bars(axes, found, full, results):
    """Draw what is lost without the pair bias of all layers, and of each layer."""
    names = ["all" if change.layer is None else str(change.layer + 1) for change, _ in found]
    loss = [full - auc for _, auc in found]
    axes.bar(names, loss, color=[OKABE_ITO[1]] + [OKABE_ITO[0]] * (len(names) - 1), width=0.7)
    axes.axhline(0, color="black", lw=0.8)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.tick_params(axis="x", top=False)
    axes.set(xlabel="layer", ylabel="AUC lost")
    axes.set_title("pair bias set to zero", fontsize=10)


def _head_map(axes, found, full, results):
    """Draw what is lost without each head, by layer and head."""
    layers = max(change.layer for change, _ in found) + 1
    heads = max(change.head for change, _ in found) + 1
    loss = np.full((layers, heads), np.nan)
    for change, auc in found:
        loss[change.layer, change.head] = 1000 * (full - auc)
    limit = max(float(np.abs(loss).max()), 1e-3)
    options = {"cmap": "PuOr", "vmin": -limit, "vmax": limit}
    title = f"{found[0][0].kind} attention without one head:\n" r"AUC lost $\times\,1000$"
    annotated(axes, loss, title, "{:.1f}", **options)
    axes.set(xlabel="head", ylabel="layer")


# What is drawn of the ablations, by what is changed and where, in this order.
DRAWN = {
    ("top_k", "particle"): _top_k,
    ("pair_bias", "particle"): _bias_bars,
    ("head", "particle"): _head_map,
    ("head", "class"): _head_map,
}
