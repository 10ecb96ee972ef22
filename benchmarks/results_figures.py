"""Figures of the trainings of a set: learning curves and ROC curves of all its networks."""

import math
import re

import numpy as np
from common import colours, figure_style
from matplotlib.figure import Figure

from jetzoo.metrics.numbers import curves
from jetzoo.metrics.predictions import read_predictions
from jetzoo.metrics.roc import MIN_PASSING
from jetzoo.style import class_name


def per_epoch(run, pattern):
    """What weaver logged after each epoch: the number that follows ``pattern``."""
    log = (run["folder"] / "train.log").read_text()
    return [float(x) for x in re.findall(rf"{pattern}: ([\d.]+)", log)][: run["budget"]["epochs"]]


def learning_figure(runs):
    """Validation loss and accuracy against the jets seen; bands span the seeds."""
    shown = {"Validation loss": "Eval AvgLoss", "Validation accuracy": "Current validation metric"}
    colour = colours(runs)
    with figure_style(12):
        figure = Figure(figsize=(9, 3.8), layout="constrained")
        for axes, (label, pattern) in zip(figure.subplots(1, 2), shown.items(), strict=True):
            for model, group in runs.items():
                curves = np.array([per_epoch(run, pattern) for run in group])  # (seeds, epochs)
                seen = group[0]["budget"]["samples"] * np.arange(1, curves.shape[1] + 1) / 1000
                (line,) = axes.plot(
                    seen, curves.mean(0), ".-", color=colour[model], linewidth=1.3, label=model
                )
                if len(group) > 1:
                    band = curves.min(0), curves.max(0)
                    axes.fill_between(seen, *band, color=line.get_color(), alpha=0.2, linewidth=0)
            axes.set(xlabel="Jets seen in training [thousands]", ylabel=label)
        axes.legend(loc="lower right", fontsize=10)
    return figure


def roc_figure(runs):
    """Background rejection against signal efficiency, a panel for each signal, a line per model."""
    lines = {}
    for model, (run, *_) in runs.items():
        labels, scores, classes = read_predictions(sorted(run["folder"].glob("pred*.root")))
        for signal, background, curve in curves(labels, scores, classes):
            count = int((labels == background).sum())
            title = f"{class_name(classes[signal])} vs {class_name(classes[background])}"
            lines.setdefault(title, {})[model] = (*curve, count)
    colour = colours(runs)
    efficiency = np.linspace(0, 1, 501)
    columns = min(3, len(lines))
    rows = math.ceil(len(lines) / columns)
    size = (5.5, 4.5) if len(lines) == 1 else (3.6 * columns, 3.2 * rows)
    with figure_style(12):
        figure = Figure(figsize=size, layout="constrained")
        panels = figure.subplots(rows, columns, squeeze=False, sharex=True).flat
        for axes, (title, found) in zip(panels, lines.items(), strict=False):
            for model, (*curve, count) in found.items():
                eps = np.interp(efficiency, *curve)
                eps[eps * count < MIN_PASSING] = np.nan
                axes.plot(efficiency, 1 / eps, color=colour[model], label=model, linewidth=1.3)
            axes.set(xlim=(0, 1), yscale="log", title=title)
            axes.set_ylim(bottom=1)
        if len(lines) == 1:
            axes.legend()
        else:
            figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=7)
        figure.supxlabel(r"Signal efficiency $\varepsilon_S$", fontsize=14)
        figure.supylabel(r"Background rejection $1/\varepsilon_B$", fontsize=14)
    return figure
