"""Reports: a folder with figures, tables and one self-contained page that shows them."""

import base64
import csv
import html
import io
from dataclasses import dataclass

import matplotlib as mpl
from matplotlib.figure import Figure

from jetzoo import tables
from jetzoo.style import STYLE

DPI = 130

STYLE_SHEET = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; font-size: 0.85rem; }
th, td { text-align: left; padding: 0.2rem 0.7rem 0.2rem 0; border-bottom: 1px solid #ddd; }
td { white-space: nowrap; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
img { max-width: 100%; height: auto; }
h2 { margin-top: 2.5rem; }
"""


@dataclass
class Panel:
    """A figure of the page: name of its files, heading, and a sentence on what it shows."""

    name: str
    title: str
    text: str
    figure: Figure


def draw(panels):
    """Figures as files.

    Returns
    -------
    dict of str to bytes
        ``NAME.png`` and ``NAME.pdf`` of each panel.
    """
    contents = {}
    for panel in panels:
        for kind in ("png", "pdf"):
            buffer = io.BytesIO()
            with mpl.rc_context(STYLE):
                panel.figure.savefig(buffer, format=kind, dpi=DPI)
            contents[f"{panel.name}.{kind}"] = buffer.getvalue()
            panel.figure.set_layout_engine("none")  # found once, it serves both
    return contents


def csv_text(rows):
    """Dicts as CSV, with a column for every key that occurs."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def table(rows, header=()):
    """A table in HTML, text to the left and numbers to the right.

    Parameters
    ----------
    rows : sequence of sequence of str
    header : sequence of str
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
    """Heading, sentence and embedded image of a panel; `contents` are those of :func:`draw`."""
    data = base64.b64encode(contents[f"{panel.name}.png"]).decode()
    return (
        f"<h2>{html.escape(panel.title)}</h2><p>{html.escape(panel.text)}</p>\n"
        f'<img alt="{html.escape(panel.title)}" src="data:image/png;base64,{data}">'
    )


def page(title, body):
    """A self-contained page.

    Parameters
    ----------
    title : str
    body : sequence of str
        HTML.
    """
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>{html.escape(title)}</title><style>{STYLE_SHEET}</style></head>\n<body>\n"
        f"<h1>{html.escape(title)}</h1>\n" + "\n".join(body) + "\n</body></html>\n"
    )


def write(folder, contents):
    """Write files, each of which appears when complete.

    Parameters
    ----------
    folder : str or Path
        Made if it does not exist.
    contents : dict of str to str or bytes

    Returns
    -------
    list of Path
    """
    folder = tables.writable_folder(folder)
    written = []
    for name, content in contents.items():
        written.append(folder / name)
        with tables.atomic(written[-1]) as partial:
            partial.write_bytes(content if isinstance(content, bytes) else content.encode())
    return written
