"""Figures of what a network looks at. Each function returns a ``matplotlib.figure.Figure``."""

import functools
import math

import matplotlib as mpl
import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize, PowerNorm, to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, NullLocator

from jetzoo.style import NAMES, OKABE_ITO, STYLE

from .ablation import AUC_LOSS, TOP, smallest_k
from .measures import class_importance
from .sample import TYPES
from .streaming import RATIO_EDGES, WEIGHT_BINS

MARKERS = ("^", "v", "o", "P", "X")
TYPE_NAMES = ("charged hadron", "neutral hadron", "photon", "electron", "muon")
UNKNOWN, NEUTRAL = ".", "0.45"
WIDEST = 2.5  # points, of the line that carries the largest attention of a panel
FAINTEST = 0.15  # of the largest; lines that carry less are left out

# Small weights are to be seen too.
WEIGHT_NORM = PowerNorm(0.5, vmin=0, vmax=1)
WEIGHT_TICKS = (0, 0.01, 0.1, 0.25, 0.5, 1)

RANK = r"rank in $p_\mathrm{T}$"


def styled(draw):
    """Draw in the style of the project's figures."""

    @functools.wraps(draw)
    def wrapper(*args, **options):
        with mpl.rc_context(STYLE | {"font.size": 10, "axes.labelsize": 11, "legend.fontsize": 9}):
            return draw(*args, **options)

    return wrapper


def class_name(label):
    """How a class is called in figures."""
    return NAMES.get(label, label.removeprefix("label_"))


def _grid(rows, columns, width, height, **options):
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def _panels(count, most=4, size=2.3, bottom=0.4, **options):
    """At most `most` panels in a row; those without content are taken away."""
    columns = min(count, most)
    rows = math.ceil(count / columns)
    width = max(columns * size + 0.9, 4)
    figure, axes = _grid(rows, columns, width, rows * size + bottom, **options)
    for unused in axes.flat[count:]:
        unused.remove()
    return figure, axes.flat[:count]


def _plain_ticks(axes):
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_minor_locator(NullLocator())
    axes.tick_params(which="both", direction="out", top=False, right=False)


def _matrix(axes, matrix, **options):
    """A matrix of particles, ranks counted from 1."""
    rows, columns = matrix.shape
    image = axes.imshow(
        matrix,
        extent=(0.5, columns + 0.5, rows + 0.5, 0.5),
        aspect="auto",
        interpolation="nearest",
        **options,
    )
    _plain_ticks(axes)
    axes.xaxis.set_major_locator(MaxNLocator(3, integer=True, prune="lower"))
    axes.yaxis.set_major_locator(MaxNLocator(3, integer=True, prune="lower"))
    return image


def _color_bar(figure, image, axes, label, **options):
    bar = figure.colorbar(image, ax=list(np.ravel(axes)), fraction=0.03, pad=0.02, **options)
    bar.set_label(label)
    if image.norm is WEIGHT_NORM:
        bar.set_ticks(WEIGHT_TICKS)
        bar.ax.yaxis.set_minor_locator(NullLocator())


def _numpy(x):
    return x.float().cpu().numpy()


def _particles(drawn):
    """Number of particles of a drawn jet, at least 1 so that there is an image."""
    return max(int(drawn.batch.num_particles[0]), 1)


@styled
def attention_maps(drawn):
    """(1) Attention matrices of one jet: a grid of layers (down) and heads (across)."""
    records = [r for r in drawn.records if r.kind == "particle"]
    n = _particles(drawn)
    heads = records[0].weights.shape[1]
    width, height = max(1.05 * heads + 1.2, 4.5), max(1.05 * len(records) + 0.9, 3.2)
    figure, axes = _grid(len(records), heads, width, height, sharex=True, sharey=True)
    for r in records:
        for head in range(heads):
            panel = axes[r.layer, head]
            image = _matrix(panel, _numpy(r.weights[0, head, :n, :n]), norm=WEIGHT_NORM)
            if r.layer == 0:
                panel.set_title(f"head {head + 1}", fontsize=9)
            if head == heads - 1:
                panel.yaxis.set_label_position("right")
                panel.set_ylabel(f"layer {r.layer + 1}", fontsize=9, rotation=270, va="bottom")
    _color_bar(figure, image, axes, "attention weight (square-root scale)")
    figure.supxlabel(f"particle attended to ({RANK})", fontsize=11)
    figure.supylabel(f"particle that attends ({RANK})", fontsize=11)
    return figure


@styled
def attention_graph(drawn):
    """(2) Attention of one jet in the eta-phi plane, for three layers and for the class token.

    Lines are the mean over heads, the larger of both directions; self-attention has no line.
    """
    particle = [r for r in drawn.records if r.kind == "particle"]
    shown = sorted({0, len(particle) // 2, len(particle) - 1}) if particle else []
    classes = [r.weights for r in drawn.records if r.kind == "class"]
    n = _particles(drawn)
    count = len(shown) + bool(classes)
    figure, axes = _panels(count, most=2, size=3.5, bottom=1.0, sharex=True, sharey=True)
    for panel, layer in zip(axes, shown, strict=False):
        mean = _numpy(particle[layer].weights[0].mean(0)[:n, :n])
        between = np.maximum(mean, mean.T) * ~np.eye(n, dtype=bool)
        _edges(panel, drawn, between / max(between.max(), 1e-9))
        title = f"particle attention, layer {layer + 1}\nwidest line: {between.max():.2f}"
        panel.set_title(title, fontsize=10)
    if classes:
        share = _numpy(class_importance(classes)[0, :n])
        _star(axes[-1], drawn, share / max(share.max(), 1e-9))
        axes[-1].set_title(f"class attention\nwidest line: {share.max():.2f}", fontsize=10)
    for panel in axes:
        _draw_particles(panel, drawn)
    _plane(figure, axes, drawn)
    _legend(figure, drawn)
    return figure


@styled
def neighbour_graph(drawn):
    """Neighbours that the blocks of ParticleNet find in one jet, in the eta-phi plane."""
    n = _particles(drawn)
    figure, axes = _panels(
        len(drawn.records), most=3, size=3.3, bottom=1.6, sharex=True, sharey=True
    )
    for panel, r in zip(axes, drawn.records, strict=True):
        near = _numpy(r.weights[0, 0, :n, :n]) > 0
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
    n = _particles(drawn)
    return np.stack((_numpy(drawn.batch.eta[0, :n]), _numpy(drawn.batch.phi[0, :n])), axis=1)


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
    pt = _numpy(batch.pt[0, :n])
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


@styled
def interaction(drawn):
    """(3) The interaction matrix U of one jet, per head; the colours end at 98% of its values."""
    bias = next(r.bias for r in drawn.records if r.bias is not None)
    n = _particles(drawn)
    values = _numpy(bias[0, :, :n, :n])
    limit = float(np.quantile(values, 0.98))
    figure, axes = _panels(len(values), size=2.1, sharex=True, sharey=True)
    for head, panel in enumerate(axes):
        image = _matrix(panel, values[head], vmin=values.min(), vmax=limit)
        panel.set_title(f"head {head + 1}", fontsize=9)
    _color_bar(figure, image, axes, "interaction $U$", extend="max")
    figure.supxlabel(f"particle ({RANK})", fontsize=11)
    figure.supylabel(f"particle ({RANK})", fontsize=11)
    return figure


@styled
def weight_distribution(study):
    """(4) Distribution of attention weights per layer, trained against untrained."""
    edges = np.linspace(0, 1, WEIGHT_BINS + 1)
    figure, axes = _panels(len(study.histogram), size=2.1, bottom=0.9, sharex=True, sharey=True)
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
    """(5) Distribution of |A|/|U| over the pairs of particles, per layer."""
    figure = Figure(figsize=(5.5, 4), layout="constrained")
    axes = figure.add_subplot()
    colors = mpl.colormaps["viridis"](np.linspace(0, 0.9, len(study.ratios)))
    for layer, counts in enumerate(study.ratios):
        share = counts / max(counts.sum(), 1)
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
    """(6) What the class token looks at: by particle type and by rank in pT, for each class.

    Above, class attention; below, followed down through the particle blocks by rollout.
    """
    whats = [w for w in ("class_attention", "rollout") if (w, "rank") in study.importance]
    columns = 1 + study.has_types
    figure, axes = _grid(
        len(whats), columns, 4.4 * columns + 0.6, 2.9 * len(whats) + 0.8, sharex="col"
    )
    names = {"class_attention": "class attention", "rollout": "attention rollout"}
    for row, what in enumerate(whats):
        ranks = axes[row, -1]
        by_rank = study.importance[what, "rank"]
        for c, name in enumerate(study.classes):
            ranks.plot(
                np.arange(1, by_rank.shape[1] + 1),
                100 * by_rank[c],
                **_look(c),
                label=class_name(name),
            )
        ranks.set(ylabel=f"{names[what]} [%]", xlim=(0.5, by_rank.shape[1] + 0.5))
        ranks.set_ylim(bottom=0)
        if study.has_types:
            by_type = axes[row, 0]
            for c in range(len(study.classes)):
                offset = 0.6 * ((c + 0.5) / len(study.classes) - 0.5)
                values = study.importance[what, "type"][c]
                by_type.plot(
                    np.arange(len(TYPES)) + offset, values, **_look(c) | {"ls": "none", "ms": 6}
                )
            by_type.axhline(1, color=NEUTRAL, lw=1, ls=":")
            by_type.set(ylabel=f"{names[what]} /\nshare of particles")
            highest = np.nanmax(study.importance[what, "type"], initial=1)
            by_type.set(ylim=(0, 1.15 * highest), xlim=(-0.5, len(TYPES) - 0.5))
            by_type.set_xticks(
                range(len(TYPES)), [name.replace(" ", "\n") for name in TYPE_NAMES], fontsize=9
            )
            by_type.xaxis.set_minor_locator(NullLocator())
    axes[-1, -1].set_xlabel(f"particle ({RANK})")
    handles, labels = axes[0, -1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=min(len(handles), 5))
    return figure


def _look(index):
    """Colour, marker and line of a class, of which there may be more than colours."""
    return {
        "color": OKABE_ITO[index % len(OKABE_ITO)],
        "ls": "-" if index < len(OKABE_ITO) else "--",
        "marker": "osD^vPX*<>"[index % 10],
        "ms": 3.5,
    }


@styled
def sparsity(study):
    """(7) Sparsity by layer and head: rows that are not binary, reach, and role of the bias."""
    panels = [
        ("non_binary", 100, "rows with largest\nweight < 0.8 [%]"),
        ("effective_number", 1, "effective number of\nattended particles"),
        ("argmax_moved", 100, "rows where the bias\nmoves the argmax [%]"),
    ]
    panels = [panel for panel in panels if panel[0] in study.rows]
    layers, heads = study.rows["non_binary"].shape
    size = max(0.42 * heads + 1.2, 2.2)
    figure, axes = _grid(1, len(panels), size * len(panels), max(0.34 * layers, 1) + 1.5)
    for panel, (name, scale, label) in zip(axes.flat, panels, strict=True):
        _annotated(panel, scale * study.rows[name], label, "{:.1f}")
        panel.set_xlabel("head")
    axes[0, 0].set_ylabel("layer")
    return figure


def _annotated(axes, values, label, form, **options):
    image = _matrix(axes, values, cmap=options.pop("cmap", "cividis"), **options)
    axes.set_xticks(range(1, values.shape[1] + 1))
    axes.set_yticks(range(1, values.shape[0] + 1))
    axes.set_title(label, fontsize=10)
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            red, green, blue, _ = image.cmap(image.norm(value))
            dark = 0.3 * red + 0.59 * green + 0.11 * blue < 0.5
            axes.text(
                column + 1,
                row + 1,
                form.format(value),
                ha="center",
                va="center",
                fontsize=6.5,
                color="white" if dark else "black",
            )
    return image


@styled
def ablation(results):
    """AUC without some of the attention: the top k entries, the pair bias, single heads."""
    full = results[0][1]["auc"]
    by_kind = {}
    for change, metrics in results[1:]:
        by_kind.setdefault((change.what, change.kind), []).append((change, metrics["auc"]))
    panels = list(by_kind)
    order = [
        ("top_k", "particle"),
        ("pair_bias", "particle"),
        ("head", "particle"),
        ("head", "class"),
    ]
    panels = [key for key in order if key in by_kind]
    sizes = [3.6 if key[0] != "head" else 3.9 for key in panels]
    figure = Figure(figsize=(max(sum(sizes[:2]), 5), 3.1 * math.ceil(len(panels) / 2) + 0.2))
    figure.set_layout_engine("constrained")
    axes = figure.subplots(math.ceil(len(panels) / 2), min(len(panels), 2), squeeze=False).flat
    for panel, key in zip(axes, panels, strict=False):
        {"top_k": _top_k, "pair_bias": _bias_bars, "head": _head_map}[key[0]](
            panel, by_kind[key], full, results
        )
        if key[0] == "head":
            panel.set_title(
                f"{key[1]} attention without one head:\n" + panel.get_title(), fontsize=10
            )
    for unused in axes[len(panels) :]:
        unused.remove()
    return figure


def _top_k(axes, found, full, results):
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
    names = ["all" if change.layer is None else str(change.layer + 1) for change, _ in found]
    loss = [full - auc for _, auc in found]
    axes.bar(names, loss, color=[OKABE_ITO[1]] + [OKABE_ITO[0]] * (len(names) - 1), width=0.7)
    axes.axhline(0, color="black", lw=0.8)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.tick_params(axis="x", top=False)
    axes.set(xlabel="layer", ylabel="AUC lost")
    axes.set_title("pair bias set to zero", fontsize=10)


def _head_map(axes, found, full, results):
    layers = max(change.layer for change, _ in found) + 1
    heads = max(change.head for change, _ in found) + 1
    loss = np.full((layers, heads), np.nan)
    for change, auc in found:
        loss[change.layer, change.head] = 1000 * (full - auc)
    limit = max(float(np.abs(loss).max()), 1e-3)
    options = {"cmap": "PuOr", "vmin": -limit, "vmax": limit}
    _annotated(axes, loss, r"AUC lost $\times\,1000$", "{:.1f}", **options)
    axes.set(xlabel="head", ylabel="layer")


@styled
def slots(projections):
    """Counterpart for LinformerParT: which ranks in pT feed which slot."""
    figure, axes = _panels(len(projections), size=2.2, sharex=True, sharey=True)
    values = [_numpy(p.abs()) for p in projections]
    limit = max(float(np.quantile(values, 0.99)), 1e-9)
    for layer, panel in enumerate(axes):
        image = _matrix(panel, values[layer], vmin=0, vmax=limit)
        panel.set_title(f"layer {layer + 1}", fontsize=9)
    _color_bar(figure, image, axes, "|projection of the keys|", extend="max")
    figure.supxlabel("slot", fontsize=11)
    figure.supylabel(f"particle ({RANK})", fontsize=11)
    return figure


@styled
def layer_matrices(matrices, label, norm=None):
    """Matrices of the particles of one jet, one per layer.

    Parameters
    ----------
    matrices : list of Tensor, (n, n)
    label : str
        Of the colour bar.
    norm : matplotlib.colors.Normalize, optional
        By default linear from 0 to 1.
    """
    norm = Normalize(0, 1) if norm is None else norm
    figure, axes = _panels(len(matrices), size=2.2, sharex=True, sharey=True)
    for layer, panel in enumerate(axes):
        image = _matrix(panel, _numpy(matrices[layer]), norm=norm)
        panel.set_title(f"layer {layer + 1}", fontsize=9)
    _color_bar(figure, image, axes, label)
    figure.supxlabel(f"particle attended to ({RANK})", fontsize=11)
    figure.supylabel(f"particle ({RANK})", fontsize=11)
    return figure
