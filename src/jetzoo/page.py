"""Reports of commands: figures, tables, and one self-contained page that shows them."""

import base64
import csv
import functools
import html
import io
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from jetzoo import UserError, tables
from jetzoo.style import STYLE, save

DPI = 130
# Figures of a page are small: their letters are, too.
PAGE_STYLE = STYLE | {"font.size": 10, "axes.labelsize": 11, "legend.fontsize": 9}

# Of reports and of the page of `jetzoo explore`.
STYLE_SHEET = Path(__file__).with_suffix(".css")


@dataclass
class Panel:
    """A figure of a page.

    Attributes
    ----------
    name : str
        Of its files.
    title, text : str
        Heading, and a sentence on what the figure shows.
    figure : matplotlib.figure.Figure
    """

    name: str
    title: str
    text: str
    figure: Figure


def styled(draw):
    """Make a function draw in the style of the project's pages."""

    @functools.wraps(draw)
    def wrapper(*args, **options):
        with mpl.rc_context(PAGE_STYLE):
            return draw(*args, **options)

    return wrapper


def draw(panels):
    """Draw the figures of panels.

    Parameters
    ----------
    panels : sequence of Panel

    Returns
    -------
    dict of str to bytes
        Contents of the files ``NAME.png`` and ``NAME.pdf`` of each panel.
    """
    contents = {}
    for panel in panels:
        for kind in ("png", "pdf"):
            buffer = io.BytesIO()
            with mpl.rc_context(STYLE):
                save(panel.figure, buffer, format=kind, dpi=DPI)
            contents[f"{panel.name}.{kind}"] = buffer.getvalue()
            panel.figure.set_layout_engine("none")  # the layout of the first file serves both
    return contents


def csv_text(rows):
    """Write dicts as CSV, with a column for every key that occurs.

    Parameters
    ----------
    rows : sequence of dict

    Returns
    -------
    str
    """
    columns = list(dict.fromkeys(key for row in rows for key in row))
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def table(rows, header=()):
    """Write a table in HTML, with text to the left and numbers to the right.

    Parameters
    ----------
    rows : sequence of sequence of str
    header : sequence of str

    Returns
    -------
    str
    """
    numeric = [
        all(cell[:1] in "0123456789-–" for cell in column) for column in zip(*rows, strict=True)
    ]

    def line(cells, tag):
        return "".join(
            f"<{tag}{' class=number' if right else ''}>{html.escape(cell)}</{tag}>"
            for cell, right in zip(cells, numeric, strict=True)
        )

    lines = [line(header, "th")] if header else []
    lines += [line(row, "td") for row in rows]
    return "<table>" + "".join(f"<tr>{row}</tr>" for row in lines) + "</table>"


def figure(panel, contents):
    """Write the heading, the sentence and the embedded image of a panel in HTML.

    Parameters
    ----------
    panel : Panel
    contents : dict of str to bytes
        From :func:`draw`.

    Returns
    -------
    str
    """
    data = base64.b64encode(contents[f"{panel.name}.png"]).decode()
    return (
        f"<h2>{html.escape(panel.title)}</h2><p>{html.escape(panel.text)}</p>\n"
        f'<img alt="{html.escape(panel.title)}" src="data:image/png;base64,{data}">'
    )


def page(title, body):
    """Write a page that needs no other file.

    Parameters
    ----------
    title : str
    body : sequence of str
        HTML.

    Returns
    -------
    str
    """
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{STYLE_SHEET.read_text()}</style></head>\n"
        '<body class="report">\n'
        f"<h1>{html.escape(title)}</h1>\n" + "\n".join(body) + "\n</body></html>\n"
    )


def write(folder, contents):
    """Write files, each of which appears under its name when it is complete.

    Parameters
    ----------
    folder : str or Path
        Made if it does not exist.
    contents : dict of str to str or bytes
        By name of the file.

    Returns
    -------
    list of Path

    Raises
    ------
    UserError
        If the folder cannot be made or written to, or the disk is full.
    """
    folder = tables.writable_folder(folder)
    written = []
    for name, content in contents.items():
        written.append(folder / name)
        try:
            with tables.atomic(written[-1]) as partial:
                partial.write_bytes(content if isinstance(content, bytes) else content.encode())
        except OSError as error:
            raise UserError(f"{written[-1]} cannot be written: {error.strerror}.") from error
    return written
