#!/usr/bin/env python3
"""Draw figures/house.{png,pdf}: the floors of src/jetzoo, their modules and who imports whom.

Modules and imports are read from the code. What stands on no floor is a side room, which all floors
may import.
"""

import ast
import textwrap
from pathlib import Path

from draw_arch import BLUE, GREEN, GREY, ORANGE, arrow, box, canvas, save

PACKAGE = Path(__file__).resolve().parent.parent / "src" / "jetzoo"

# From the top: the rooms of a floor, and what the floor is for.
FLOORS = (
    (("cli", "insight", "arguments"), "the commands"),
    (("networks", "plugin"), "what weaver asks of a network file"),
    (("interpret", "profiling", "export", "cpp"), "look at a network, or hand it on"),
    (("training", "prediction", "comparison"), "many jets"),
    (("tagger",), "load and predict"),
    (("acceleration",), "the conductor: fold, int8, kernels"),
    (("int8",), "from folded to int8"),
    (("engine",), "from trained to folded"),
    (("nn",), "what networks share"),
    (("attention", "native"), "one function, kernels in C++"),
)
COLOURS = (BLUE, ORANGE, GREEN)
LINES = ("#0072B2", "#D55E00", "#009E73")
RED = "#c00000"

# Edges of the floors, between two rooms, above a floor, of a line of modules, and the letters that
# fit into one unit of width.
LEFT, RIGHT, GAP, TITLE, LINE, LETTERS = 3.2, 15.4, 0.2, 0.75, 0.36, 6.9


def rooms():
    """Files of each room, which is a module or a package of jetzoo.

    Returns
    -------
    dict of str to list of Path
    """
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if not room.startswith("_"):
            found.setdefault(room, []).append(path)
    return found


def imports(path):
    """Rooms that a file imports, at module level and inside functions.

    Parameters
    ----------
    path : Path

    Returns
    -------
    set of str
    """
    package = path.relative_to(PACKAGE.parent).parent.parts
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else ()
            start = ".".join((*base, *filter(None, [node.module])))
            names = [f"{start}.{alias.name}" for alias in node.names]
        else:
            continue
        found |= {name.split(".")[1] for name in names if name.startswith("jetzoo.")}
    return found


def edges(files):
    """Which room imports which, without a room's imports of itself.

    Parameters
    ----------
    files : dict of str to list of Path
        Of :func:`rooms`.

    Returns
    -------
    set of (str, str)
    """
    return {
        (room, other)
        for room, paths in files.items()
        for path in paths
        for other in imports(path)
        if other in files and other != room
    }


def contents(paths):
    """Names of the modules of a package; none for a single module."""
    names = sorted({path.stem for path in paths if not path.stem.startswith("_")})
    return ", ".join(names) if len(names) > 1 else ""


class Floor:
    """The rooms of a floor, side by side.

    Parameters
    ----------
    number : int
        In ``FLOORS``.
    files : dict of str to list of Path
        Of :func:`rooms`.
    top : float
        Where the floor begins, its title included.
    """

    def __init__(self, number, files, top):
        self.number = number
        self.names, self.purpose = FLOORS[number]
        modules = [contents(files[name]) for name in self.names]
        # Rooms with many modules are wider, but the others have room for their names.
        shares = [max(len(text), 130) for text in modules]
        free = RIGHT - LEFT - GAP * (len(shares) - 1)
        self.widths = [free * share / sum(shares) for share in shares]
        self.modules = [
            textwrap.wrap(text, int(LETTERS * width), break_long_words=False)
            for text, width in zip(modules, self.widths, strict=True)
        ]
        self.height = 0.9 + LINE * max(map(len, self.modules))
        self.y = top - TITLE - self.height / 2
        self.bottom = top - TITLE - self.height

    def draw(self, ax, sides):
        """Draw the rooms, and name the side rooms that they import."""
        title = self.y + self.height / 2 + 0.22
        ax.text(LEFT, title, f"{len(FLOORS) - self.number}", weight="bold", fontsize=10)
        ax.text(LEFT + 0.6, title, self.purpose, style="italic", fontsize=8.5)
        x = LEFT
        for name, width, lines in zip(self.names, self.widths, self.modules, strict=True):
            colour = COLOURS[self.number % len(COLOURS)]
            box(ax, x + width / 2, self.y, width, self.height, "", color=colour)
            middle = self.y + LINE * len(lines) / 2
            ax.text(x + width / 2, middle, name, ha="center", va="center", weight="bold")
            ax.text(
                x + width / 2,
                middle - 0.32,
                "\n".join(lines),
                ha="center",
                va="top",
                fontsize=7.5,
                linespacing=1.25,
            )
            x += width + GAP
        used = textwrap.fill(", ".join(sorted(sides)), 34)
        style = {"fontsize": 7.5, "color": "#555555", "linespacing": 1.3}
        ax.text(RIGHT + 0.3, self.y, used, va="center", **style)


def draw_arcs(ax, floors, found):
    """Draw an arc on the left for each pair of floors, one of which imports the other.

    Parameters
    ----------
    ax : matplotlib.axes.Axes
    floors : list of Floor
    found : set of (int, int)
        Numbers of the floors; an import of a higher floor is red.
    """
    for source, target in sorted(found):
        distance = abs(target - source)
        # Arcs leave low and arrive high, the longer ones further out.
        start = (LEFT - 0.05, floors[source].y - 0.05 - 0.06 * distance)
        end = (LEFT - 0.05, floors[target].y + 0.45 - 0.06 * distance)
        bend = 1.8 * distance**0.62 / (start[1] - end[1])
        arrow(
            ax,
            start,
            end,
            connectionstyle=f"arc3,rad={bend:.3f}",
            color=RED if target < source else LINES[source % len(LINES)],
            mutation_scale=8,
            linewidth=1.0,
            shrinkA=0,
            shrinkB=0,
        )


def draw_side_rooms(ax, files, top):
    """Draw one box for all rooms that stand on no floor; return its lower edge."""
    named = {name: contents(paths) for name, paths in files.items()}
    text = "; ".join(f"{name} ({modules})" if modules else name for name, modules in named.items())
    lines = textwrap.wrap(text, int(LETTERS * (20 - LEFT)))
    height = 0.9 + LINE * len(lines)
    x, y = (LEFT + 20) / 2, top - 0.6 - height / 2
    box(ax, x, y, 20 - LEFT, height, "", color=GREY)
    middle = y + LINE * len(lines) / 2
    title = "side rooms, which all floors may import"
    ax.text(x, middle, title, ha="center", va="center", weight="bold")
    text = "\n".join(lines)
    ax.text(x, middle - 0.32, text, ha="center", va="top", fontsize=7.5, linespacing=1.25)
    return y - height / 2


def main():
    """Draw the figure."""
    files = rooms()
    number = {name: i for i, (names, _) in enumerate(FLOORS) for name in names}
    if missing := set(number) - set(files):
        raise SystemExit(f"src/jetzoo has no {', '.join(sorted(missing))}: correct FLOORS.")
    floors, top = [], 0.0
    for i in range(len(FLOORS)):
        floors.append(Floor(i, files, top))
        top = floors[-1].bottom
    found = edges(files)
    fig, ax = canvas((10, 10), (-0.5, 20.1), (-20, 0.6))
    for floor in floors:
        sides = {b for a, b in found if a in floor.names and b not in number}
        floor.draw(ax, sides)
    between = {(number[a], number[b]) for a, b in found if a in number and b in number}
    draw_arcs(ax, floors, {(a, b) for a, b in between if a != b})
    bottom = draw_side_rooms(ax, {k: v for k, v in files.items() if k not in number}, top)
    style = {"style": "italic", "fontsize": 8.5}
    ax.text(LEFT - 0.6, -0.55, "imports of\nother floors", ha="right", **style)
    ax.text(RIGHT + 0.3, -0.55, "imports of side rooms", **style)
    ax.set_ylim(bottom - 0.1, 0.2)
    fig.set_size_inches(10, 0.5 * (0.3 - bottom))
    save(fig, "house")


if __name__ == "__main__":
    main()
