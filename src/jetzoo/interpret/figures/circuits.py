"""Figures of circuits. Each function returns a ``matplotlib.figure.Figure``."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from jetzoo.page import styled
from jetzoo.style import OKABE_ITO

from .primitives import NEUTRAL, annotated, grid, plain_ticks

ROLE_COLORS = dict(zip(("source", "relay", "readout"), OKABE_ITO[:3], strict=True))
ROLE_COLORS["not patched"] = "0.6"
FAINTEST = 0.02  # of the effect of corrupting the jet; edges of less are left out
BEND = 0.12  # of arrows, over their length
ROOMY = 14  # points between labels, heads and other labels


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
    names = [f"{'L' if kind == 'particle' else 'C'}{layer + 1}" for kind, layer in layers]
    for panel, corruption in zip(axes, corruptions, strict=True):
        panel.scatter(*np.array(list(places.values())).T, s=12, color="0.85", zorder=1)
        direct = {
            e["sender"]: e["effect"]
            for e in found.edges
            if e["corruption"] == corruption and e["receiver"] is None
        }
        for node in found.heads:
            panel.scatter(
                *places[node], s=260, color=ROLE_COLORS[roles[node]], zorder=3, edgecolors="white"
            )
            if abs(direct.get(node, 0)) >= FAINTEST:
                look = {"ha": "center", "va": "center_baseline", "color": "white", "weight": "bold"}
                panel.text(*places[node], _percent(direct[node]), fontsize=6.5, zorder=4, **look)
        panel.set_title(corruption.replace("_", " "), fontsize=10)
        panel.set_xticks(range(len(layers)), names)
        panel.set_xlim(-0.6, len(layers) - 0.4)
        panel.set_xlabel("layer")
        plain_ticks(panel)
        panel.margins(y=0.08)
    axes[0].set_ylabel("head")
    handles = [
        Line2D([], [], marker="o", ls="none", color=color, ms=9, label=role)
        for role, color in ROLE_COLORS.items()
        if role in roles.values()
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(ROLE_COLORS))
    figure.draw_without_rendering()  # from here on it is known where data are on the page
    for panel, corruption in zip(axes, corruptions, strict=True):
        some = [e for e in found.edges if e["corruption"] == corruption]
        _draw_paths(panel, some, places, [places[node] for node in found.heads])
    return figure


def _percent(share):
    return f"{100 * share:.0f}".replace("-", "\N{MINUS SIGN}")


def _draw_paths(axes, edges, places, heads):
    """Draw the paths that are strong enough as arrows, each with its effect where there is room.

    Parameters
    ----------
    axes : matplotlib.axes.Axes
    edges : list of dict
        See :class:`jetzoo.interpret.circuits.Circuit`.
    places : dict of Node to (float, float)
    heads : list of (float, float)
        Places that are taken.
    """
    to_points = axes.transData + axes.figure.dpi_scale_trans.inverted()
    taken = [72 * to_points.transform(place) for place in heads]
    for e in edges:
        if e["receiver"] is None or abs(e["effect"]) < FAINTEST:
            continue
        start, end = (72 * to_points.transform(places[e[key]]) for key in ("sender", "receiver"))
        look = {
            "arrowstyle": "-|>",
            "lw": 0.8 + 8 * min(abs(e["effect"]), 0.5),
            "color": NEUTRAL,
            "ls": "-" if e["effect"] > 0 else ":",
            "shrinkA": 9,
            "shrinkB": 10,
            "connectionstyle": f"arc3,rad={BEND}",
        }
        ends = places[e["receiver"]], places[e["sender"]]
        axes.annotate("", *ends, arrowprops=look, zorder=2)
        label = max(_along(start, end), key=lambda spot: min(_room(spot, taken), ROOMY))
        taken.append(label)
        axes.annotate(
            _percent(e["effect"]),
            to_points.inverted().transform(label / 72),
            fontsize=6.5,
            color="0.25",
            ha="center",
            va="center_baseline",
            bbox={"facecolor": "white", "lw": 0, "pad": 0.4},
            zorder=2.5,
        )


def _along(start, end):
    """Places on an arrow, in points; those in the middle first."""
    across = np.array((end[1] - start[1], start[0] - end[0]))
    control = (start + end) / 2 + BEND * across  # of the quadratic curve that arc3 draws
    for t in (0.5, 0.4, 0.6, 0.3, 0.7, 0.2, 0.8):
        yield (1 - t) ** 2 * start + 2 * t * (1 - t) * control + t**2 * end


def _room(spot, taken):
    """Distance to the nearest of some places, in points; labels are wider than high."""
    return min(np.hypot((x - spot[0]) / 1.5, y - spot[1]) for x, y in taken)
