"""What the figures share: panels, matrices with their colours, and labels."""

import math

import numpy as np
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator

NEUTRAL = "0.45"  # grey

# Small weights are to be seen too.
WEIGHT_NORM = PowerNorm(0.5, vmin=0, vmax=1)
WEIGHT_TICKS = (0, 0.01, 0.1, 0.25, 0.5, 1)

RANK = r"rank in $p_\mathrm{T}$"


def grid(rows, columns, width, height, **options):
    """Make a figure of so many inches with a grid of panels."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def panel_grid(count, most=4, size=2.3, bottom=0.4, **options):
    """Make a figure of ``count`` square panels, at most ``most`` in a row."""
    columns = min(count, most)
    rows = math.ceil(count / columns)
    width = max(columns * size + 0.9, 4)
    figure, axes = grid(rows, columns, width, rows * size + bottom, **options)
    for unused in axes.flat[count:]:
        unused.remove()
    return figure, axes.flat[:count]


def plain_ticks(axes):
    """Let ticks of a matrix point outwards, without minor ones."""
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_minor_locator(NullLocator())
    axes.tick_params(which="both", direction="out", top=False, right=False)


def draw_matrix(axes, matrix, **options):
    """Draw a matrix of particles, ranks counted from 1."""
    rows, columns = matrix.shape
    image = axes.imshow(
        matrix,
        extent=(0.5, columns + 0.5, rows + 0.5, 0.5),
        aspect="auto",
        interpolation="nearest",
        **options,
    )
    plain_ticks(axes)
    axes.xaxis.set_major_locator(MaxNLocator(3, integer=True, prune="lower"))
    axes.yaxis.set_major_locator(MaxNLocator(3, integer=True, prune="lower"))
    return image


def color_bar(figure, image, axes, label, **options):
    """Add a colour bar beside panels."""
    bar = figure.colorbar(image, ax=list(np.ravel(axes)), fraction=0.03, pad=0.02, **options)
    bar.set_label(label)
    if image.norm is WEIGHT_NORM:
        bar.set_ticks(WEIGHT_TICKS)
        bar.ax.yaxis.set_minor_locator(NullLocator())


def to_numpy(x):
    """Convert a tensor to float32 in NumPy."""
    return x.float().cpu().numpy()


def drawn_particles(drawn):
    """Number of particles of a drawn jet, at least 1 so that there is an image."""
    return max(int(drawn.batch.num_particles[0]), 1)


def annotated(axes, values, label, form, **options):
    """Draw a matrix of layers and heads with its numbers."""
    image = draw_matrix(axes, values, cmap=options.pop("cmap", "cividis"), **options)
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
