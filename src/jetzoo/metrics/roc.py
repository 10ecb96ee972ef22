"""The ROC figure."""

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from jetzoo.style import OKABE_ITO, STYLE, class_name

from .numbers import checked, curves, working_points

# Curves end where fewer jets pass: the rejection is then known to worse than 50%.
MIN_PASSING = 4


def figures(labels, scores, classes):
    """The figure of :func:`roc_figure` as ``roc``, or none."""
    figure = roc_figure(labels, scores, classes)
    return {"roc": figure} if figure else {}


def roc_figure(labels, scores, classes):
    """Background rejection against signal efficiency, with 1 sigma bands for two classes.

    Arguments as for :func:`evaluate`. Circles mark the working points. Curves end where fewer than
    four background jets pass.

    Returns
    -------
    matplotlib.figure.Figure or None
        None when there is no signal and background to compare.
    """
    labels, scores = checked(labels, scores, classes)
    found = list(curves(labels, scores, classes))
    if not found:
        return None
    efficiency = np.linspace(0, 1, 1001)  # the working points are among them
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(5.5, 4.5), layout="constrained")
        axes = figure.add_subplot()
        for index, (signal, background, curve) in enumerate(found):
            count = int((labels == background).sum())
            eps = np.interp(efficiency, *curve)
            eps[eps * count < MIN_PASSING] = np.nan
            dashed = index >= len(OKABE_ITO)
            (line,) = axes.plot(
                efficiency,
                1 / eps,
                color=OKABE_ITO[index % len(OKABE_ITO)],
                linestyle=(0, (4, 1.5)) if dashed else "-",
                label=class_name(classes[signal]),
            )
            if len(found) == 1:
                relative = np.sqrt((1 - eps) / (eps * count))
                axes.fill_between(
                    efficiency,
                    (1 - relative) / eps,
                    (1 + relative) / eps,
                    color=line.get_color(),
                    alpha=0.2,
                    linewidth=0,
                )
            points = np.array(working_points(classes, signal))
            axes.plot(
                points,
                1 / np.interp(points, efficiency, eps),
                linestyle="none",
                marker="o",
                markersize=4.5,
                color=line.get_color(),
            )
        axes.set(
            xlabel=r"Signal efficiency $\varepsilon_S$",
            ylabel=r"Background rejection $1/\varepsilon_B$",
            xlim=(0, 1),
            yscale="log",
        )
        axes.set_ylim(bottom=1)
        background = class_name(classes[background])
        if len(found) == 1:
            axes.legend([line], [f"{class_name(classes[signal])} vs {background}"])
        else:
            axes.legend(title=f"vs {background}", alignment="left", ncols=2)
    return figure
