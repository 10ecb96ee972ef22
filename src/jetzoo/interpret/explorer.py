"""The page of `jetzoo explore`: the bundle of ``page/``, filled with the jets of a network."""

import html
import json
from functools import cache
from pathlib import Path

import numpy as np

from jetzoo.style import OKABE_ITO, plain_class_name

from .encoding import encode
from .figures.jets import MARKERS, UNKNOWN
from .figures.primitives import NEUTRAL
from .sample import TYPE_NAMES

BUNDLE = Path(__file__).parent / "page" / "explore.html"

# What a page should not exceed, to be sent and opened anywhere, in bytes.
BUDGET = 15e6


def explorer(network, classes, drawn, scores, notes=()):
    """Write the page.

    Parameters
    ----------
    network : str
    classes : list of str
    drawn : list of Drawn
        The jets, see :func:`jetzoo.interpret.look`.
    scores : ndarray, (num_jets, num_classes)
    notes : sequence of str
        Sentences that stand on the page.

    Returns
    -------
    page : str
    notes : list of str
        These, and what was left out for the size of the page or is large about it.
    """
    notes, encoded = list(notes), [encode(one) for one in drawn]
    page = _page(network, classes, drawn, encoded, scores, notes)
    if len(page) > BUDGET and any(layout["scores"] for _, layout in encoded):
        size = _megabytes(page)
        notes.append(f"The page to explore leaves out the scores A: with them it has {size}.")
        encoded = [encode(one, with_scores=False) for one in drawn]
        page = _page(network, classes, drawn, encoded, scores, notes)
    if len(page) > BUDGET:
        notes.append(f"The page to explore has {_megabytes(page)}: fewer jets make it smaller.")
    return page, notes


def _megabytes(page):
    return f"{len(page) / 1e6:.1f} MB"


def _page(network, classes, drawn, encoded, scores, notes):
    facts = {
        "network": str(network),
        "classes": [{"label": c, "name": plain_class_name(c)} for c in classes],
        "types": [
            {"name": name, "marker": marker}
            for name, marker in zip(TYPE_NAMES, MARKERS, strict=True)
        ],
        "unknownMarker": UNKNOWN,
        "colors": OKABE_ITO,
        "neutral": _grey(NEUTRAL),
        "notes": notes,
        "jets": [
            _jet(one, row, layout)
            for one, row, (_, layout) in zip(drawn, scores, encoded, strict=True)
        ],
    }
    parts = {
        "title": html.escape(f"Attention of {Path(network).stem}"),
        # In a script, "</" would end it.
        "facts": json.dumps(facts, allow_nan=False, ensure_ascii=False).replace("<", r"\u003c"),
        "jets": "\n".join(
            f'<script type="text/plain" id="jet-{k}">{block}</script>'
            for k, (block, _) in enumerate(encoded)
        ),
    }
    page = _bundle()
    for name, text in parts.items():
        page = page.replace(f"<!--{name}-->", text)
    return page


@cache
def _bundle():
    return BUNDLE.read_text(encoding="utf-8")


def _jet(one, scores, layout):
    """What is known of a jet but for its attention."""
    n, batch = layout["n"], one.batch

    def row(x, digits=None):
        values = x[0, :n].cpu().numpy()
        return values.tolist() if digits is None else [float(f"{v:.{digits}g}") for v in values]

    return {
        "index": int(one.index),
        "label": None if batch.labels is None else int(batch.labels[0]),
        "scores": [round(float(score), 5) for score in scores],
        "pt": row(batch.pt, 5),
        "eta": row(batch.eta, 5),
        "phi": row(batch.phi, 5),
        "types": row(batch.types),
        "subjets": None if batch.subjets is None else row(batch.subjets),
        "layout": layout,
    }


def _grey(share):
    """A grey of matplotlib, such as ``0.45``, as the web writes it."""
    return f"#{round(255 * float(share)):02x}" + 2 * f"{round(255 * float(share)):02x}"


def spread(total, count):
    """Indices of ``count`` jets at equal distances among all, so that every file has its share."""
    return np.unique(np.linspace(0, total - 1, min(count, total)).round().astype(int)).tolist()
