"""Figures of a study of many jets. Each function returns a ``matplotlib.figure.Figure``."""

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from jetzoo.page import styled
from jetzoo.style import OKABE_ITO, class_name

from ..sample import TYPE_NAMES, TYPES
from ..streaming import RATIO_EDGES, WEIGHT_BINS
from .primitives import NEUTRAL, RANK, annotated, color_bar, draw_matrix, grid, panel_grid, to_numpy


@styled
def weight_distribution(study):
    """Draw the distribution of attention weights by layer, trained against untrained."""
    edges = np.linspace(0, 1, WEIGHT_BINS + 1)
    figure, axes = panel_grid(len(study.histogram), size=2.1, bottom=0.9, sharex=True, sharey=True)
    for layer, panel in enumerate(axes):
        _steps(panel, study.histogram[layer], edges, OKABE_ITO[0], "trained", fill=True)
        if study.untrained is not None:
            _steps(panel, study.untrained[layer], edges, OKABE_ITO[1], "untrained", ls="--")
        panel.set_title(f"layer {layer + 1}", fontsize=10)
        panel.set(yscale="log", xlim=(0, 1), xticks=(0, 0.5, 1), xticklabels=("0", "0.5", "1"))
    figure.supxlabel("attention weight", fontsize=11)
    figure.supylabel("share of weights per bin", fontsize=11)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return figure


def _steps(axes, counts, edges, color, label, fill=False, **options):
    share = counts / max(counts.sum(), 1)
    if fill:
        axes.stairs(share, edges, fill=True, color=color, alpha=0.25)
    axes.stairs(np.where(share > 0, share, np.nan), edges, color=color, label=label, **options)


@styled
def score_ratio(study):
    """Draw the distribution of |A|/|U| over the pairs of particles, by layer."""
    figure = Figure(figsize=(5.5, 4), layout="constrained")
    axes = figure.add_subplot()
    colors = mpl.colormaps["viridis"](np.linspace(0, 0.9, len(study.ratios)))
    for layer, counts in enumerate(study.ratios):
        if counts.any():
            share = counts / counts.sum()
            axes.stairs(share, 10.0**RATIO_EDGES, color=colors[layer], label=f"layer {layer + 1}")
    axes.axvline(1, color=NEUTRAL, lw=1, ls=":")
    axes.set(
        xscale="log",
        xlim=(10.0 ** RATIO_EDGES[0], 10.0 ** RATIO_EDGES[-1]),
        xlabel=r"$|A|\,/\,|U|$",
        ylabel="share of pairs per quarter decade",
    )
    axes.set_ylim(bottom=0)
    axes.legend(ncols=1 if len(study.ratios) < 5 else 2, loc="upper left")
    return figure


@styled
def importance(study):
    """Draw what the class token looks at, by particle type and by rank in pT, for each class.

    Above, class attention; below, followed down through the particle blocks by rollout.
    """
    names = {"class_attention": "class attention", "rollout": "attention rollout"}
    whats = [what for what in names if (what, "rank") in study.importance]
    columns = 1 + study.has_types
    width, height = 4.4 * columns + 0.6, 2.9 * len(whats) + 0.8
    figure, axes = grid(len(whats), columns, width, height, sharex="col")
    for row, what in zip(axes, whats, strict=True):
        _by_rank(row[-1], study.importance[what, "rank"], study.classes)
        row[-1].set_ylabel(f"{names[what]} [%]")
        if study.has_types:
            _by_type(row[0], study.importance[what, "type"])
            row[0].set_ylabel(f"{names[what]} /\nshare of particles")
    axes[-1, -1].set_xlabel(f"particle ({RANK})")
    handles, labels = axes[0, -1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=min(len(handles), 5))
    return figure


def _by_rank(axes, values, classes):
    """Draw importance (classes, ranks) as one line for each class."""
    ranks = np.arange(1, values.shape[1] + 1)
    for index, name in enumerate(classes):
        axes.plot(ranks, 100 * values[index], **_look(index), label=class_name(name))
    axes.set_xlim(0.5, len(ranks) + 0.5)
    axes.set_ylim(bottom=0)


def _by_type(axes, values):
    """Draw importance over the share of particles (classes, types), 1 being the dotted line."""
    for index, row in enumerate(values):
        offset = 0.6 * ((index + 0.5) / len(values) - 0.5)
        axes.plot(np.arange(len(TYPES)) + offset, row, **_look(index) | {"ls": "none", "ms": 6})
    axes.axhline(1, color=NEUTRAL, lw=1, ls=":")
    axes.set_ylim(0, 1.15 * np.nanmax(values, initial=1))
    axes.set_xlim(-0.5, len(TYPES) - 0.5)
    names = [name.replace(" ", "\n") for name in TYPE_NAMES]
    axes.set_xticks(range(len(TYPES)), names, fontsize=9)
    axes.xaxis.set_minor_locator(NullLocator())


def _look(index):
    """Colour, marker and line of a class; there may be more classes than colours."""
    return {
        "color": OKABE_ITO[index % len(OKABE_ITO)],
        "ls": "-" if index < len(OKABE_ITO) else "--",
        "marker": "osD^vPX*<>"[index % 10],
        "ms": 3.5,
    }


@styled
def sparsity(study):
    """Draw by layer and head what is not binary, the reach, and the role of the bias."""
    panels = [
        ("non_binary", 100, "rows with largest\nweight < 0.8 [%]"),
        ("effective_number", 1, "effective number of\nattended particles"),
        ("argmax_moved", 100, "rows where the bias\nmoves the argmax [%]"),
    ]
    panels = [panel for panel in panels if panel[0] in study.rows]
    layers, heads = study.rows["non_binary"].shape
    size = max(0.42 * heads + 1.2, 2.2)
    figure, axes = grid(1, len(panels), size * len(panels), max(0.34 * layers, 1) + 1.5)
    for panel, (name, scale, label) in zip(axes.flat, panels, strict=True):
        annotated(panel, scale * study.rows[name], label, "{:.1f}")
        panel.set_xlabel("head")
    axes[0, 0].set_ylabel("layer")
    return figure


@styled
def slots(projections):
    """Draw which ranks in pT feed which slot of the keys."""
    figure, axes = panel_grid(len(projections), size=2.2, sharex=True, sharey=True)
    values = [to_numpy(p.abs()) for p in projections]
    limit = max(float(np.quantile(values, 0.99)), 1e-9)
    for layer, panel in enumerate(axes):
        image = draw_matrix(panel, values[layer], vmin=0, vmax=limit)
        panel.set_title(f"layer {layer + 1}", fontsize=9)
    color_bar(figure, image, axes, "|projection of the keys|", extend="max")
    figure.supxlabel("slot", fontsize=11)
    figure.supylabel(f"particle ({RANK})", fontsize=11)
    return figure
