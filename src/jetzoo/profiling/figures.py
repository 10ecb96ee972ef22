"""Figures of a profile. Each function returns a ``matplotlib.figure.Figure``."""

import numpy as np
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import NullLocator

from jetzoo.page import styled
from jetzoo.style import OKABE_ITO

from .kinds import KINDS, OPERATIONS, OTHER, REST
from .loading import KINDS as LOADER_KINDS
from .loading import WORKERS
from .rows import merge, seconds_by
from .steps import STEP

GREY = "0.7"
NUMBERED = 12  # modules that the roofline names
SMALLEST = 0.001  # of the time, of what is drawn


def _colours(names, plain=(OTHER, REST)):
    """Choose a colour for each name: those of Okabe and Ito, then pale ones; grey for the rest."""
    wheel = [*OKABE_ITO, *(to_rgba(colour, 0.45) for colour in OKABE_ITO)]
    named = [name for name in names if name not in plain]
    colours = {name: wheel[i % len(wheel)] for i, name in enumerate(named)}
    return colours | dict.fromkeys(plain, GREY)


def kind_colours(runs):
    """Choose colours for the kinds of layers, the same in all figures of a report."""
    found = [kind for run in runs for kind in seconds_by(run.rows, "kind")]
    return _colours(dict.fromkeys([*(kind for kind in KINDS if kind in found), *found]))


def _bare(axes):
    axes.tick_params(which="both", direction="out", top=False, right=False)
    axes.yaxis.set_minor_locator(NullLocator())


def _bars(axes, stacks, parts, colours, scale):
    """Draw horizontal stacked bars, of a dict of part to value for each label, the first on top."""
    positions = np.arange(len(stacks))
    left = np.zeros(len(stacks))
    for part in parts:
        width = np.array([scale * stack.get(part, 0.0) for stack in stacks.values()])
        axes.barh(positions, width, 0.75, left, color=colours[part], edgecolor="white", lw=0.4)
        left += width
    axes.set_yticks(positions, list(stacks))
    axes.invert_yaxis()
    axes.set_xlim(0, 1.12 * left.max())
    _bare(axes)
    return left


def _legend(figure, parts, colours, **options):
    handles = [Patch(color=colours[part], label=part) for part in parts]
    figure.legend(handles=handles, loc="outside lower center", **options)


@styled
def layers(run):
    """Draw the time of each layer, stacked by operation."""
    stacks = {}
    for row in run.rows:
        stack = stacks.setdefault(row.layer, {})
        stack[row.operation] = stack.get(row.operation, 0.0) + row.seconds
    parts = [*OPERATIONS, OTHER]
    colours = _colours(parts)
    figure = Figure(figsize=(6.5, 1.5 + 0.26 * len(stacks)), layout="constrained")
    axes = figure.subplots()
    total = _bars(axes, stacks, parts, colours, 1e3)
    share = total / total.sum()
    for position, (end, part) in enumerate(zip(total, share, strict=True)):
        axes.annotate(
            f"{100 * part:.0f}%" if part >= 0.005 else "<1%",
            (end, position),
            (3, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    axes.set_xlabel(f"time [ms], {run.mode} of {run.num_jets} jets")
    _legend(figure, parts, colours, ncols=len(parts))
    return figure


@styled
def roofline(run, colours):
    """Draw FLOP/s against FLOPs per byte of the modules, under the limits of the machine."""
    limits, total = run.limits, sum(row.seconds for row in run.rows)
    rows = [
        row
        for row in merge(run.rows)
        if row.flops and row.bytes_moved and row.seconds > SMALLEST * total
    ]
    figure = Figure(figsize=(7.5, 4.6), layout="constrained")
    axes = figure.subplots()
    intensity = [row.intensity for row in rows] or [1.0]
    x = np.geomspace(min(*intensity, limits.flops / limits.cache) / 3, 4 * max(*intensity, 10), 200)
    _draw_limits(axes, limits, x)
    handles = _draw_modules(axes, rows, total, colours)
    # Two decades at least.
    speeds = [row.flops / row.seconds / 1e9 for row in rows]
    slowest = min(*speeds, limits.flops / 1e11, limits.flops / 1e9)
    fastest = max(*speeds, (limits.peak or limits.flops) / 1e9)
    axes.set(
        xscale="log",
        yscale="log",
        xlim=(x[0], x[-1]),
        ylim=(slowest / 2, 3 * fastest),
        xlabel="arithmetic intensity [FLOP/byte]",
        ylabel="achieved [GFLOP/s]",
    )
    legend = figure.legend(
        handles=handles, loc="outside right upper", fontsize=7.5, title="share of the time"
    )
    for handle in legend.legend_handles:
        handle.set_markersize(6)
    legend.get_title().set_fontsize(8)
    return figure


def _draw_limits(axes, limits, x):
    """Draw the roofs of memory, cache, matrix product and arithmetic units over intensities."""
    small = {"textcoords": "offset points", "fontsize": 8}
    for bandwidth, style, label in ((limits.memory, "-", "memory"), (limits.cache, "--", "cache")):
        y = np.minimum(limits.flops, x * bandwidth) / 1e9
        axes.plot(x, y, style, color="black", lw=1.2)
        text = f"{label} {bandwidth / 1e9:.3g} GB/s"
        axes.annotate(text, (x[8], y[8]), (7, -2), va="top", **small)
    corner = (limits.flops / limits.cache, limits.flops / 1e9)
    axes.annotate(f"matrix product {limits.flops / 1e9:.3g} GFLOP/s", corner, (0, 4), **small)
    if limits.peak is not None:
        corner = limits.peak / limits.cache, limits.peak / 1e9
        axes.hlines(corner[1], corner[0], x[-1], linestyle=":", color="black", lw=1.2)
        text = f"multiply-add in registers {limits.peak / 1e9:.3g} GFLOP/s"
        axes.annotate(text, corner, (0, 4), **small)


def _draw_modules(axes, rows, total, colours):
    """Draw one dot for each row and number the first ones; return the dots with a number."""
    handles = []
    for number, row in enumerate(rows, 1):
        place, share = (row.intensity, row.flops / row.seconds / 1e9), row.seconds / total
        (dot,) = axes.plot(
            *place,
            "o",
            ms=4 + 30 * share**0.5,
            color=to_rgba(colours[row.kind], 0.75),
            mec="white",
            mew=0.5,
            label=f"{number}  {row.short}  {100 * share:.1f}%",
        )
        if number <= NUMBERED:
            axes.annotate(str(number), place, ha="center", va="center", fontsize=7)
            handles.append(dot)
    return handles


@styled
def memory(run, colours):
    """Draw the memory that the tensors of a call hold, over its time."""
    figure = Figure(figsize=(7.0, 3.4), layout="constrained")
    axes = figure.subplots()
    trace = run.trace
    end = max((stop for _, stop, _ in trace.spans), default=1.0)
    kinds = _draw_layers_at_work(axes, run, colours)
    times = np.array([0.0, *(when for when, _ in trace.memory), end])
    held = [0, *(total for _, total in trace.memory)]
    held = np.array([*held, held[-1]]) / 2**20
    axes.fill_between(1e3 * times, held, step="post", color=GREY, alpha=0.6, lw=0)
    axes.step(1e3 * times, held, where="post", color="black", lw=0.9)
    peak = int(held.argmax())
    side = "left" if times[peak] < 0.1 * end else "right" if times[peak] > 0.9 * end else "center"
    axes.annotate(
        f"{held[peak]:.4g} MiB",
        (1e3 * times[peak], held[peak]),
        (0, 3),
        textcoords="offset points",
        ha=side,
        fontsize=9,
    )
    axes.set(
        xlim=(0, 1e3 * end),
        ylim=(0, 1.18 * max(held.max(), 1e-3)),
        xlabel=f"time [ms], {run.mode} of {run.num_jets} jets",
        ylabel="memory of tensors [MiB]",
    )
    if kinds:
        _legend(figure, kinds, colours, ncols=min(len(kinds), 4))
    return figure


def _draw_layers_at_work(axes, run, colours):
    """Draw along the top which kind of layer is at work when; return the kinds."""
    kinds = {row.module: row.kind for row in run.rows}
    drawn = set()
    for start, stop, module in sorted(run.trace.spans, key=lambda span: span[0] - span[1]):
        kind = kinds.get(module, REST)
        if module != STEP and module.count(".") <= 4 and kind != REST:
            drawn.add(kind)
            axes.axvspan(1e3 * start, 1e3 * stop, color=to_rgba(colours[kind], 1), lw=0, ymin=0.965)
    return [kind for kind in colours if kind in drawn]


@styled
def comparison(runs, colours):
    """Draw the time per jet of all runs, stacked by kind of layer, in a panel for each mode."""
    modes = list(dict.fromkeys(run.mode for run in runs))
    # The modules were timed with hooks; a bar is as long as the call takes without.
    stacks = {run.title: _stack(run, run.seconds / run.num_jets) for run in runs}
    shares = [_stack(run) for run in runs]
    kinds = [kind for kind in colours if any(x.get(kind, 0) > SMALLEST for x in shares)]
    counts = [sum(run.mode == mode for run in runs) for mode in modes]
    size = (7.0, 1.3 + 0.45 * sum(counts) + 0.75 * len(modes))
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(len(modes), squeeze=False, height_ratios=counts)[:, 0]
    for axes, mode in zip(panels, modes, strict=True):
        chosen = [run for run in runs if run.mode == mode]
        ends = _bars(axes, {run.label: stacks[run.title] for run in chosen}, kinds, colours, 1e3)
        for position, (end, run) in enumerate(zip(ends, chosen, strict=True)):
            text = f"{run.jets_per_second:,.0f} jets/s"
            if position:
                text += f", {chosen[0].seconds / run.seconds:.2f}x"
            place = {"xytext": (4, 0), "textcoords": "offset points", "va": "center"}
            axes.annotate(text, (end, position), fontsize=9, **place)
        axes.set_xlim(0, 1.32 * ends.max())
        axes.set_xlabel(f"time per jet [ms], {mode}")
    _legend(figure, kinds, colours, ncols=4)
    return figure


def _stack(run, total=1.0):
    """Shares of the kinds of layers in the time of a run, which add up to ``total``."""
    seconds = seconds_by(run.rows, "kind")
    return {kind: total * x / sum(seconds.values()) for kind, x in seconds.items()}


@styled
def loading(found, runs):
    """Draw the jets/s that weaver's loader delivers, and those that the runs consume."""
    figure = Figure(figsize=(6.0, 3.6), layout="constrained")
    axes = figure.subplots()
    for index, (in_memory, label) in enumerate(LOADER_KINDS.items()):
        rates = [found.rates[in_memory, workers] for workers in WORKERS]
        positions = np.arange(len(WORKERS)) + 0.36 * (index - 0.5)
        bars = axes.bar(positions, rates, 0.34, color=OKABE_ITO[index], label=f"files {label}")
        axes.bar_label(bars, [f"{rate:,.0f}" for rate in rates], fontsize=8, padding=1)
    for index, run in enumerate(runs):
        axes.axhline(
            run.jets_per_second,
            color=OKABE_ITO[(index + 2) % len(OKABE_ITO)],
            ls=(0, (5, 2)),
            label=f"consumed: {run.title}",
        )
    speeds = [*found.rates.values(), *(run.jets_per_second for run in runs)]
    axes.set(
        yscale="log",
        ylim=(min(speeds) / 2, 12 * max(speeds)),
        xlabel="workers of the loader (0: in the process of the network)",
        ylabel="jets/s",
    )
    axes.set_xticks(range(len(WORKERS)), list(map(str, WORKERS)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.tick_params(axis="x", top=False, bottom=False)
    axes.legend(fontsize=8, loc="upper right", ncols=2)
    return figure
