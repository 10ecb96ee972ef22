#!/usr/bin/env python3
"""Draw figures/arch.{png,pdf}: what is common to the ParT family and where its members differ."""

from pathlib import Path

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

FIGURES = Path(__file__).resolve().parent.parent / "figures"
BLUE, ORANGE, GREEN, GREY = "#cfe3f3", "#fbe3c0", "#cfeadd", "#eeeeee"


def box(ax, x, y, width, height, title, text="", color=GREY):
    """A rounded box centred on (x, y)."""
    ax.add_patch(
        FancyBboxPatch(
            (x - width / 2, y - height / 2),
            width,
            height,
            boxstyle="round,pad=0,rounding_size=0.12",
            facecolor=color,
            edgecolor="#333333",
            linewidth=0.9,
        )
    )
    if text:
        ax.text(x, y + height / 2 - 0.3, title, ha="center", va="center", weight="bold")
        ax.text(x, y - 0.2, text, ha="center", va="center", fontsize=8, linespacing=1.35)
    else:
        ax.text(x, y, title, ha="center", va="center", weight="bold")


def arrow(ax, start, end, **options):
    """An arrow between two points."""
    style = {"arrowstyle": "-|>", "mutation_scale": 11, "color": "#333333", "linewidth": 1.1}
    ax.add_patch(FancyArrowPatch(start, end, **{**style, **options}))


def canvas(size, width, height):
    """A figure of a size in inches, with axes that nothing is seen of.

    Parameters
    ----------
    size : (float, float)
    width, height : (float, float)
        Limits of the axes.

    Returns
    -------
    matplotlib.figure.Figure
    matplotlib.axes.Axes
    """
    plt.rcParams.update({"font.size": 9, "font.family": "DejaVu Sans"})
    fig, ax = plt.subplots(figsize=size)
    ax.set(xlim=width, ylim=height)
    ax.axis("off")
    return fig, ax


def save(fig, name):
    """Write a figure as PNG and PDF into ``figures/``."""
    FIGURES.mkdir(exist_ok=True)
    for suffix in ("png", "pdf"):
        fig.savefig(FIGURES / f"{name}.{suffix}", dpi=200, bbox_inches="tight")
    print(FIGURES / f"{name}.png")


def main():
    """Draw the figure."""
    fig, ax = canvas((10, 4), (0, 20), (0.4, 8.1))

    box(ax, 1.7, 6.6, 3.0, 1.5, "particles", "features (N, 7–17)")
    box(ax, 1.7, 3.2, 3.0, 1.5, "four-vectors", "px, py, pz, E")
    box(ax, 5.8, 6.6, 3.4, 1.5, "embedding", "MLP 128–512–128", BLUE)
    box(
        ax,
        5.8,
        3.2,
        3.4,
        1.9,
        "pair interaction",
        "ln kT, ln z, ln ΔR, ln m²\nMLP 64–64–64–8",
        ORANGE,
    )
    box(
        ax,
        11.0,
        6.6,
        4.4,
        2.6,
        "8 particle blocks",
        "norm – mixer – norm\nfeed-forward 128–512–128\nresiduals around both",
        BLUE,
    )
    box(ax, 16.0, 6.6, 3.2, 2.2, "2 class blocks", "a class token\nattends to all\nparticles", BLUE)
    box(ax, 19.0, 6.6, 1.6, 1.2, "scores", "", GREY)

    mixers = (
        ("ParT", "softmax(qk + U) v", "O(N²)"),
        ("LinformerParT", "attention to 32 slots", "O(N)"),
        ("ReformerParT", "attention in hash buckets", "O(N log N)"),
        ("MambaParT", "selective scan in pT order", "O(N)"),
    )
    for row, (name, idea, cost) in enumerate(mixers):
        y = 3.9 - 0.95 * row
        box(ax, 13.9, y, 10.2, 0.8, "", "", GREEN)
        ax.text(9.1, y, name, va="center", weight="bold")
        ax.text(12.2, y, idea, va="center")
        ax.text(18.7, y, cost, va="center", ha="right")
    ax.text(8.9, 4.55, "the mixer:", va="center", style="italic", fontsize=8.5)

    arrow(ax, (3.2, 6.6), (4.1, 6.6))
    arrow(ax, (3.2, 3.2), (4.1, 3.2))
    arrow(ax, (7.5, 6.6), (8.8, 6.6))
    arrow(ax, (13.2, 6.6), (14.4, 6.6))
    arrow(ax, (17.6, 6.6), (18.2, 6.6))
    arrow(ax, (7.5, 3.5), (8.75, 3.85))
    ax.text(7.55, 4.15, "bias U", fontsize=8, style="italic")
    arrow(ax, (10.9, 5.25), (10.9, 4.35), arrowstyle="-", linestyle=":")

    save(fig, "arch")


if __name__ == "__main__":
    main()
