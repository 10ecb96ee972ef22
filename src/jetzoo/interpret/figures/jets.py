"""Figures of one jet. Each function returns a ``matplotlib.figure.Figure``."""

import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize, to_rgba
from matplotlib.lines import Line2D

from jetzoo.page import styled
from jetzoo.style import OKABE_ITO

from ..measures import class_importance
from ..sample import TYPE_NAMES, TYPES
from .primitives import (
    NEUTRAL,
    RANK,
    WEIGHT_NORM,
    color_bar,
    draw_matrix,
    drawn_particles,
    grid,
    panel_grid,
    to_numpy,
)

MARKERS = ("^", "v", "o", "P", "X")  # of the particle types
UNKNOWN = "."
WIDEST = 2.5  # points, of the line that carries the largest attention of a panel
FAINTEST = 0.15  # of the largest; lines that carry less are left out


@styled
def attention_maps(drawn):
    """Draw the attention matrices of one jet: layers go down, heads go across."""
    records = [r for r in drawn.records if r.kind == "particle"]
    n = drawn_particles(drawn)
    heads = records[0].weights.shape[1]
    width, height = max(1.05 * heads + 1.2, 4.5), max(1.05 * len(records) + 0.9, 3.2)
    figure, axes = grid(len(records), heads, width, height, sharex=True, sharey=True)
    for r in records:
        for head in range(heads):
            panel = axes[r.layer, head]
            image = draw_matrix(panel, to_numpy(r.weights[0, head, :n, :n]), norm=WEIGHT_NORM)
            if r.layer == 0:
                panel.set_title(f"head {head + 1}", fontsize=9)
            if head == heads - 1:
                panel.yaxis.set_label_position("right")
                panel.set_ylabel(f"layer {r.layer + 1}", fontsize=9, rotation=270, va="bottom")
    color_bar(figure, image, axes, "attention weight (square-root scale)")
    figure.supxlabel(f"particle attended to ({RANK})", fontsize=11)
    figure.supylabel(f"particle that attends ({RANK})", fontsize=11)
    return figure


@styled
def interaction(drawn):
    """Draw the interaction matrix U of one jet by head; the colours end at 98% of its values."""
    bias = next(r.bias for r in drawn.records if r.bias is not None)
    n = drawn_particles(drawn)
    values = to_numpy(bias[0, :, :n, :n])
    limit = float(np.quantile(values, 0.98))
    figure, axes = panel_grid(len(values), size=2.1, sharex=True, sharey=True)
    for head, panel in enumerate(axes):
        image = draw_matrix(panel, values[head], vmin=values.min(), vmax=limit)
        panel.set_title(f"head {head + 1}", fontsize=9)
    color_bar(figure, image, axes, "interaction $U$", extend="max")
    figure.supxlabel(f"particle ({RANK})", fontsize=11)
    figure.supylabel(f"particle ({RANK})", fontsize=11)
    return figure


@styled
def layer_matrices(matrices, label, norm=None):
    """Draw matrices of the particles of one jet, one per layer.

    Parameters
    ----------
    matrices : list of Tensor, (n, n)
    label : str
        Of the colour bar.
    norm : matplotlib.colors.Normalize, optional
        By default linear from 0 to 1.
    """
    norm = Normalize(0, 1) if norm is None else norm
    figure, axes = panel_grid(len(matrices), size=2.2, sharex=True, sharey=True)
    for layer, panel in enumerate(axes):
        image = draw_matrix(panel, to_numpy(matrices[layer]), norm=norm)
        panel.set_title(f"layer {layer + 1}", fontsize=9)
    color_bar(figure, image, axes, label)
    figure.supxlabel(f"particle attended to ({RANK})", fontsize=11)
    figure.supylabel(f"particle ({RANK})", fontsize=11)
    return figure


@styled
def attention_graph(drawn):
    """Draw the attention of one jet in the eta-phi plane, for three layers and the class token.

    Lines are the mean over heads, the larger of both directions; self-attention has no line.
    """
    particle = [r for r in drawn.records if r.kind == "particle"]
    shown = sorted({0, len(particle) // 2, len(particle) - 1}) if particle else []
    classes = [r.weights for r in drawn.records if r.kind == "class"]
    n = drawn_particles(drawn)
    count = len(shown) + bool(classes)
    figure, axes = panel_grid(count, most=2, size=3.5, bottom=1.0, sharex=True, sharey=True)
    for panel, layer in zip(axes, shown, strict=False):
        mean = to_numpy(particle[layer].weights[0].mean(0)[:n, :n])
        between = np.maximum(mean, mean.T) * ~np.eye(n, dtype=bool)
        _edges(panel, drawn, between / max(between.max(), 1e-9))
        title = f"particle attention, layer {layer + 1}\nwidest line: {between.max():.2f}"
        panel.set_title(title, fontsize=10)
    if classes:
        share = to_numpy(class_importance(classes)[0, :n])
        _star(axes[-1], drawn, share / max(share.max(), 1e-9))
        axes[-1].set_title(f"class attention\nwidest line: {share.max():.2f}", fontsize=10)
    for panel in axes:
        _draw_particles(panel, drawn)
    _plane(figure, axes, drawn)
    _legend(figure, drawn)
    return figure


@styled
def neighbour_graph(drawn):
    """Draw the neighbours that graph convolutions find in one jet, in the eta-phi plane."""
    n = drawn_particles(drawn)
    figure, axes = panel_grid(
        len(drawn.records), most=3, size=3.3, bottom=1.6, sharex=True, sharey=True
    )
    for panel, r in zip(axes, drawn.records, strict=True):
        near = to_numpy(r.weights[0, 0, :n, :n]) > 0
        _edges(panel, drawn, 0.2 * np.maximum(near, near.T))
        _draw_particles(panel, drawn)
        space = "the plane" if r.layer == 0 else "learned features"
        panel.set_title(f"block {r.layer + 1}: nearest in {space}", fontsize=10)
    _plane(figure, axes, drawn)
    _legend(figure, drawn)
    return figure


def _plane(figure, axes, drawn):
    at = np.concatenate((_positions(drawn), np.zeros((1, 2))))
    low, high = at.min(0), at.max(0)
    centre, reach = (low + high) / 2, 0.55 * max((high - low).max(), 0.1)
    for panel in axes:
        panel.set(
            xlim=(centre[0] - reach, centre[0] + reach), ylim=(centre[1] - reach, centre[1] + reach)
        )
        panel.set_aspect("equal")
        if panel.get_subplotspec().is_first_col():
            panel.set_ylabel(r"$\Delta\phi$ to the jet axis [rad]")
        if panel.get_subplotspec().is_last_row():
            panel.set_xlabel(r"$\Delta\eta$ to the jet axis")


def _positions(drawn):
    n = drawn_particles(drawn)
    return np.stack((to_numpy(drawn.batch.eta[0, :n]), to_numpy(drawn.batch.phi[0, :n])), axis=1)


def _lines(axes, segments, weights):
    # Strong lines on top.
    order = np.argsort(weights)
    axes.add_collection(
        LineCollection(
            [segments[i] for i in order],
            linewidths=WIDEST * weights[order],
            colors=[to_rgba(NEUTRAL, 0.15 + 0.7 * w * w) for w in weights[order]],
            capstyle="round",
            zorder=1,
        )
    )


def _edges(axes, drawn, weights):
    at = _positions(drawn)
    i, j = np.nonzero(np.triu(weights, 1) > FAINTEST)
    _lines(axes, np.stack((at[i], at[j]), axis=1), weights[i, j].clip(max=1))


def _star(axes, drawn, weights):
    at = _positions(drawn)
    (i,) = np.nonzero(weights > FAINTEST)
    _lines(axes, np.stack((np.zeros_like(at[i]), at[i]), axis=1), weights[i])
    axes.plot(0, 0, marker="*", ms=13, mfc="white", mec="black", zorder=4)


def _draw_particles(axes, drawn):
    at, batch = _positions(drawn), drawn.batch
    n = len(at)
    pt = to_numpy(batch.pt[0, :n])
    types = batch.types[0, :n].cpu().numpy()
    subjets = np.full(n, -1) if batch.subjets is None else batch.subjets[0, :n].cpu().numpy()
    opacity = 0.25 + 0.75 * np.sqrt(pt / max(pt.max(), 1e-9))
    for kind in range(-1, len(TYPES)):
        here = types == kind
        if here.any():
            axes.scatter(
                *at[here].T,
                marker=MARKERS[kind] if kind >= 0 else UNKNOWN,
                s=48 if kind >= 0 else 90,
                c=[
                    to_rgba(OKABE_ITO[s] if s >= 0 else NEUTRAL, a)
                    for s, a in zip(subjets[here], opacity[here], strict=True)
                ],
                edgecolors="white",
                linewidths=0.4,
                zorder=3,
            )


def _legend(figure, drawn):
    types = set(drawn.batch.types[0].tolist()) - {-1}
    point = {"linestyle": "none", "color": NEUTRAL, "ms": 6.5}
    handles = [Line2D([], [], marker=MARKERS[t], label=TYPE_NAMES[t], **point) for t in types]
    if not types:
        handles.append(Line2D([], [], marker="o", label="particle (type unknown)", **point))
    if drawn.batch.subjets is not None:
        for s in sorted(set(drawn.batch.subjets[0].tolist()) - {-1}):
            spot = Line2D([], [], marker="s", ls="none", color=OKABE_ITO[s], ms=6.5)
            spot.set_label(rf"$k_\mathrm{{T}}$ subjet {s + 1}")
            handles.append(spot)
    if any(r.kind == "class" for r in drawn.records):
        handles.append(
            Line2D(
                [], [], marker="*", ls="none", mfc="white", mec="black", ms=10, label="class token"
            )
        )
    faint = Line2D([], [], marker="o", ls="none", color=to_rgba(NEUTRAL, 0.3), ms=6.5)
    faint.set_label(r"fainter: lower $p_\mathrm{T}$")
    figure.legend(handles=[*handles, faint], loc="outside lower center", ncols=4)
