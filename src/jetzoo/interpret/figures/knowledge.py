"""Figures of what a network knows. Each function returns a ``matplotlib.figure.Figure``."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from jetzoo.page import styled
from jetzoo.style import OKABE_ITO

from .primitives import NEUTRAL


@styled
def probe_map(rows, value, gain=False):
    """Draw a number of each observable and state of the trained network.

    Parameters
    ----------
    rows : list of dict
        See :class:`jetzoo.interpret.ProbeReport`.
    value : {"r2", "r2_beyond_mass"}
    gain : bool
        Draw how much larger it is than with initial weights; else the inputs are drawn, too.
    """
    found = {(r["source"], r["state"], r["observable"]): r[value] for r in rows}
    states = list(dict.fromkeys(r["state"] for r in rows if r["source"] == "trained"))
    names = list(dict.fromkeys(r["observable"] for r in rows))
    columns = [("trained", state) for state in states]
    if not gain:
        columns.insert(0, ("inputs", "inputs"))

    def number(source, state, name):
        x = found[source, state, name]
        if gain and x is not None and found["untrained", state, name] is not None:
            x -= found["untrained", state, name]
        return np.nan if x is None else x

    values = np.array([[number(*column, name) for column in columns] for name in names])
    limits = {"vmin": 0, "vmax": 1, "cmap": "cividis"}
    if gain:
        limit = max(float(np.nanmax(abs(values))), 1e-3)
        limits = {"vmin": -limit, "vmax": limit, "cmap": "PuOr"}
    figure = Figure(
        figsize=(0.55 * len(columns) + 1.9, 0.3 * len(names) + 1.3), layout="constrained"
    )
    axes = figure.add_subplot()
    image = axes.imshow(values, aspect="auto", **limits)
    axes.set_xticks(range(len(columns)), [state for _, state in columns], rotation=60, ha="right")
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(which="both", length=0)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_minor_locator(NullLocator())
    for (row, column), x in np.ndenumerate(values):
        if np.isfinite(x):
            red, green, blue, _ = image.cmap(image.norm(x))
            dark = 0.3 * red + 0.59 * green + 0.11 * blue < 0.5
            color = "white" if dark else "black"
            text = f"{x:.2f}".replace("0.", ".", 1) if abs(x) < 1 else f"{x:.1f}"
            axes.text(column, row, text, ha="center", va="center", fontsize=7, color=color)
    label = {"r2": "$R^2$", "r2_beyond_mass": "$R^2$ beyond the mass"}[value]
    figure.colorbar(image, ax=axes, fraction=0.04, pad=0.02).set_label(
        f"gain of {label}" if gain else label
    )
    return figure


@styled
def class_by_layer(rows):
    """Draw the AUC of a trained probe and of the logit lens after each layer."""
    figure = Figure(figsize=(6.5, 4), layout="constrained")
    axes = figure.add_subplot()
    states = list(dict.fromkeys(r["state"] for r in rows if r["source"] == "trained"))
    lines = (
        ("trained", "probe_auc", OKABE_ITO[0], "o-", "linear probe"),
        ("trained", "lens_auc", OKABE_ITO[1], "s-", "logit lens"),
        ("untrained", "probe_auc", NEUTRAL, "o--", "linear probe, initial weights"),
    )
    for source, key, color, look, label in lines:
        values = [r[key] for r in rows if r["source"] == source]
        axes.plot(range(len(values)), values, look, color=color, label=label, ms=4)
    inputs = next(r["probe_auc"] for r in rows if r["source"] == "inputs")
    axes.axhline(inputs, color=NEUTRAL, lw=1, ls=":", label="linear probe of the inputs")
    axes.set_xticks(range(len(states)), states, rotation=60, ha="right")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_ylabel("AUC")
    axes.legend(fontsize=8)
    return figure
