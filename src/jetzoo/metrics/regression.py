"""Bias, resolution and tails of a regression, overall and in bins of the truth, with a figure."""

import math

import matplotlib as mpl
import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from rich.table import Table

from jetzoo import UserError
from jetzoo.style import OKABE_ITO, STYLE, class_name

# Quantiles of a normal distribution at one sigma.
LOW, HIGH = 0.158655, 0.841345

# Beyond so many resolutions a jet is in the tails; 0.27% are for a normal distribution.
TAIL = 3

# Bins of the truth hold as many jets each, and no fewer than these.
BINS, JETS_PER_BIN = 10, 50


def evaluate(truth, predicted, targets):
    """Bias, resolution and tails of each target.

    The residual is predicted - truth. Its median is the bias, half of the width of the central 68%
    the resolution, and the tails are the fraction of jets more than three resolutions from the
    bias. Errors are statistical, from the order statistics of the residuals. Where the truth of all
    jets is positive, the same of predicted / truth - 1 are relative.

    Parameters
    ----------
    truth, predicted : ndarray, (num_jets, num_targets)
    targets : sequence of str

    Returns
    -------
    dict
        JSON-ready: ``num_jets``, and ``targets`` with the numbers of :func:`measure` for each, and
        a list of them in ``bins`` of the truth, each with its ``low`` and ``high`` edge and its
        ``mean`` truth.

    Raises
    ------
    UserError
        If there are no jets, or numbers are not finite.
    """
    truth, predicted = checked(truth, predicted)
    found = {}
    for column, name in enumerate(targets):
        true, values = truth[:, column], predicted[:, column]
        found[name] = {**measure(true, values), "bins": []}
        edges, index = bins(true)
        for i, (low, high) in enumerate(zip(edges[:-1], edges[1:], strict=True)):
            inside = index == i
            place = {"low": low, "high": high, "mean": float(true[inside].mean())}
            found[name]["bins"].append({**place, **measure(true[inside], values[inside])})
    return {"num_jets": len(truth), "targets": found, "notes": []}


def checked(truth, predicted):
    """The same arrays, checked: see :func:`evaluate`."""
    if not len(truth):
        raise UserError("There are no jets to evaluate.")
    for what, x in (("a truth", truth), ("predictions", predicted)):
        bad = int((~np.isfinite(x).all(axis=1)).sum())
        if bad:
            raise UserError(f"{bad} of {len(x)} jets have {what} that is NaN or infinite.")
    return truth, predicted


def bins(truth):
    """Edges of bins with as many jets each, and the bin of each jet.

    Parameters
    ----------
    truth : ndarray, (num_jets,)

    Returns
    -------
    edges : list of float
    index : ndarray of int, (num_jets,)
    """
    count = max(1, min(BINS, len(truth) // JETS_PER_BIN))
    edges = np.unique(np.quantile(truth, np.linspace(0, 1, count + 1)))
    if len(edges) == 1:  # one value
        edges = np.repeat(edges, 2)
    index = np.clip(np.searchsorted(edges, truth, side="right") - 1, 0, len(edges) - 2)
    filled = np.isin(np.arange(len(edges) - 1), index)
    kept = np.append(filled, True)
    return edges[kept].tolist(), (np.cumsum(filled) - 1)[index]


def measure(truth, predicted):
    """Numbers of the residuals of some jets, see :func:`evaluate`.

    Parameters
    ----------
    truth, predicted : ndarray, (num_jets,)

    Returns
    -------
    dict
        ``num_jets``; ``bias`` and ``resolution`` with ``bias_error`` and ``resolution_error``;
        ``tails`` with ``tails_error``, from the posterior of a flat prior; ``rms`` of the
        residuals; ``relative_bias`` and ``relative_resolution``, None unless all truths are
        positive.
    """
    residual = predicted - truth
    bias, bias_error, resolution, resolution_error = _center_and_width(residual)
    count = len(truth)
    outside = int((np.abs(residual - bias) > TAIL * resolution).sum())
    expected = (outside + 1) / (count + 2)
    relative = [None] * 4
    if truth.min() > 0:
        relative = _center_and_width(predicted / truth - 1)
    return {
        "num_jets": count,
        "bias": bias,
        "bias_error": bias_error,
        "resolution": resolution,
        "resolution_error": resolution_error,
        "tails": outside / count,
        "tails_error": float(np.sqrt(expected * (1 - expected) / (count + 3))),
        "rms": float(np.sqrt(np.mean(residual**2))),
        "relative_bias": relative[0],
        "relative_resolution": relative[2],
    }


def _center_and_width(x):
    """Median and half width of the central 68% of ``x`` (n,), each followed by its error."""
    low, median, high = np.quantile(x, (LOW, 0.5, HIGH))
    (low_error, median_error, high_error) = (_quantile_error(x, p) for p in (LOW, 0.5, HIGH))
    # The two quantiles of one sample are correlated.
    correlation = LOW / HIGH
    variance = low_error**2 + high_error**2 - 2 * correlation * low_error * high_error
    numbers = median, median_error, (high - low) / 2, np.sqrt(variance) / 2
    return tuple(map(float, numbers))


def _quantile_error(x, p):
    """Half of the interval between the order statistics one binomial sigma around a quantile."""
    sigma = np.sqrt(p * (1 - p) / len(x))
    low, high = np.quantile(x, np.clip((p - sigma, p + sigma), 0, 1))
    return (high - low) / 2


def summary(metrics):
    """The metrics of :func:`evaluate` as tables for the terminal, one for each target.

    Returns
    -------
    list of rich.table.Table
    """
    tables = []
    for name, found in metrics["targets"].items():
        table = Table(name, "jets", "bias", "resolution", f"beyond {TAIL}σ", "rel.")
        for row in (found, *found["bins"]):
            where = f"{row['low']:.3g} - {row['high']:.3g}" if "low" in row else "all"
            relative = row["relative_resolution"]
            table.add_row(
                where,
                f"{row['num_jets']}",
                _with_error(row["bias"], row["bias_error"]),
                _with_error(row["resolution"], row["resolution_error"]),
                f"{row['tails']:.1%} ± {row['tails_error']:.1%}",
                "-" if relative is None else f"{relative:.1%}",
                end_section=row is found,
            )
        tables.append(table)
    return tables


def _with_error(value, error):
    """A number and its error, with two digits of an error that begins with 1 to 3, else one."""
    order = math.floor(math.log10(error)) if error > 0 else -3
    digits = max(0, (1 if error < 4 * 10.0**order else 0) - order)
    return f"{value:.{digits}f} ± {error:.{digits}f}"


def figures(truth, predicted, targets):
    """One figure for each target, see :func:`figure`.

    Returns
    -------
    dict of str to matplotlib.figure.Figure
        ``regression``, or ``regression_<target>`` where there are several.
    """
    truth, predicted = checked(truth, predicted)
    names = ["regression"] if len(targets) == 1 else [f"regression_{x}" for x in targets]
    return {
        name: figure(truth[:, i], predicted[:, i], target)
        for i, (name, target) in enumerate(zip(names, targets, strict=True))
    }


def figure(truth, predicted, target):
    """Predicted against true values, and bias, resolution and tails in bins of the truth.

    Parameters
    ----------
    truth, predicted : ndarray, (num_jets,)
    target : str

    Returns
    -------
    matplotlib.figure.Figure
    """
    rows = evaluate(truth[:, None], predicted[:, None], [target])["targets"][target]["bins"]
    name = class_name(target).replace("_", " ")
    limits = _central(truth, predicted)
    x = np.array([row["mean"] for row in rows])
    widths = np.abs(np.array([[row["low"], row["high"]] for row in rows]).T - x)
    with mpl.rc_context(STYLE):
        found = Figure(figsize=(11, 4.8), layout="constrained")
        left, right = found.subfigures(1, 2, wspace=0.04)
        _draw_response(left, truth, predicted, limits, name)
        panels = right.subplots(3, 1, sharex=True)
        shown = {"bias": "Bias", "resolution": "Resolution", "tails": "Tails [%]"}
        for axes, (key, label) in zip(panels, shown.items(), strict=True):
            scale = 100 if key == "tails" else 1
            axes.errorbar(
                x,
                scale * np.array([row[key] for row in rows]),
                yerr=scale * np.array([row[f"{key}_error"] for row in rows]),
                xerr=widths,
                linestyle="none",
                marker="o",
                markersize=4.5,
                elinewidth=1.2,
                color=OKABE_ITO[0],
            )
            axes.set_ylabel(label)
            axes.margins(y=0.15)
        panels[0].axhline(0, color="0.5", linewidth=0.8, zorder=0)
        for axes in panels[1:]:
            axes.set_ylim(bottom=0)
        panels[-1].set(xlabel=f"True {name}", xlim=limits)
        right.align_ylabels(panels)
    return found


def _central(truth, predicted):
    """Limits of the axes, without the outermost half percent of the values."""
    low, high = np.quantile(np.concatenate((truth, predicted)), (0.005, 0.995))
    margin = 0.02 * (high - low) or 0.5
    return low - margin, high + margin


def _draw_response(panel, truth, predicted, limits, name):
    """Histogram of predicted against true values."""
    axes = panel.subplots()
    low, high = limits
    count = int(np.clip(np.sqrt(len(truth)), 10, 60))
    *_, drawn = axes.hist2d(
        truth,
        predicted,
        bins=count,
        range=((low, high), (low, high)),
        norm=LogNorm(),
        cmap="Blues",
        cmin=1,
        rasterized=True,
    )
    axes.plot((low, high), (low, high), color="0.4", linewidth=1, linestyle=(0, (4, 2)))
    axes.set(xlabel=f"True {name}", ylabel=f"Predicted {name}", box_aspect=1)
    panel.colorbar(drawn, ax=axes, label="Jets", fraction=0.05, pad=0.02)
