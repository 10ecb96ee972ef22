"""Figures of circuits. Each function returns a ``matplotlib.figure.Figure``."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from jetzoo.page import styled
from jetzoo.style import OKABE_ITO

from .primitives import NEUTRAL, annotated, grid, plain_ticks

ROLE_COLORS = dict(zip(("source", "relay", "readout"), OKABE_ITO[:3], strict=True))
ROLE_COLORS["not patched"] = "0.6"
FAINTEST = 0.02  # of the effect of corrupting the jet; edges of less are left out


@styled
def node_effects(effects):
    """Draw what is lost of the AUC without each head, feed-forward part and pair bias.

    Parameters
    ----------
    effects : list of dict
        See :class:`jetzoo.interpret.circuits.Circuit`.
    """
    modes = list(dict.fromkeys(e["mode"] for e in effects))
    layers = list(dict.fromkeys((e["node"].kind, e["node"].layer) for e in effects))
    heads = max(e["node"].head for e in effects if e["node"].what == "head") + 1
    column = {"feed_forward": heads, "pair_bias": heads + 1}
    size = 0.36 * (heads + 2) + 1.1
    figure, axes = grid(1, len(modes), size * len(modes), 0.34 * len(layers) + 1.5)
    limit = max(max(abs(1000 * e["auc_change"]) for e in effects), 1e-3)
    for panel, mode in zip(axes.flat, modes, strict=True):
        values = np.full((len(layers), heads + 2), np.nan)
        for e in (e for e in effects if e["mode"] == mode):
            node = e["node"]
            place = node.head if node.what == "head" else column[node.what]
            lost = np.round(-1000 * e["auc_change"]) + 0.0  # which makes 0 of -0
            values[layers.index((node.kind, node.layer)), place] = lost
        title = f"{mode} ablation:\n" r"AUC lost $\times\,1000$"
        annotated(panel, values, title, "{:.0f}", cmap="PuOr", vmin=-limit, vmax=limit)
        names = [str(h + 1) for h in range(heads)] + ["FF", "U"]
        panel.set_xticks(range(1, heads + 3), names)
        names = [f"{'L' if kind == 'particle' else 'C'}{layer + 1}" for kind, layer in layers]
        panel.set_yticks(range(1, len(layers) + 1), names)
        panel.set_xlabel("head, feed-forward, bias")
    return figure


@styled
def circuit_graph(found, roles):
    """Draw the heads of a circuit, and the paths between them for each corruption.

    Parameters
    ----------
    found : Circuit
    roles : dict of Node to str
        See :func:`jetzoo.interpret.circuit_report.roles`.
    """
    means = [e for e in found.effects if e["mode"] == "mean"]
    layers = list(dict.fromkeys((e["node"].kind, e["node"].layer) for e in means))
    corruptions = list(dict.fromkeys(e["corruption"] for e in found.edges)) or ["no paths"]
    figure = Figure(figsize=(5.2 * len(corruptions), 4.4), layout="constrained")
    axes = figure.subplots(1, len(corruptions), squeeze=False, sharey=True)[0]
    places = {
        e["node"]: (layers.index((e["node"].kind, e["node"].layer)), e["node"].head + 1)
        for e in means
        if e["node"].what == "head"
    }
    for panel, corruption in zip(axes, corruptions, strict=True):
        panel.scatter(*np.array(list(places.values())).T, s=12, color="0.85", zorder=1)
        for e in found.edges:
            if e["corruption"] == corruption and e["receiver"] is not None:
                _arrow(panel, places[e["sender"]], places[e["receiver"]], e["effect"])
        direct = {
            e["sender"]: e["effect"]
            for e in found.edges
            if e["corruption"] == corruption and e["receiver"] is None
        }
        for node in found.heads:
            panel.scatter(
                *places[node], s=200, color=ROLE_COLORS[roles[node]], zorder=3, edgecolors="white"
            )
            text = node.name
            if abs(direct.get(node, 0)) >= FAINTEST:
                text += f"\n{100 * direct[node]:.0f}%"
            panel.annotate(
                text,
                places[node],
                (10, 0),
                textcoords="offset points",
                va="center",
                fontsize=7,
                zorder=4,
                bbox={"facecolor": "white", "alpha": 0.7, "lw": 0, "pad": 0.5},
            )
        panel.set_title(corruption.replace("_", " "), fontsize=10)
        names = [f"{'L' if kind == 'particle' else 'C'}{layer + 1}" for kind, layer in layers]
        panel.set_xticks(range(len(layers)), names)
        panel.set_xlim(-0.6, len(layers) + 0.2)
        panel.set_xlabel("layer")
        plain_ticks(panel)
        panel.xaxis.set_minor_locator(NullLocator())
        panel.margins(y=0.12)
    axes[0].set_ylabel("head")
    handles = [
        Line2D([], [], marker="o", ls="none", color=color, ms=9, label=role)
        for role, color in ROLE_COLORS.items()
        if role in roles.values()
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(ROLE_COLORS))
    return figure


def _arrow(axes, start, end, effect):
    if abs(effect) < FAINTEST:
        return
    look = {
        "arrowstyle": "-|>",
        "lw": 0.8 + 8 * min(abs(effect), 0.5),
        "color": NEUTRAL,
        "ls": "-" if effect > 0 else ":",
        "shrinkA": 8,
        "shrinkB": 9,
        "connectionstyle": "arc3,rad=0.12",
    }
    axes.annotate("", end, start, arrowprops=look, zorder=2)
    middle = (np.array(start) + np.array(end)) / 2
    axes.text(*middle, f"{100 * effect:.0f}%", fontsize=7, color=NEUTRAL, ha="center")
