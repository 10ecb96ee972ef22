"""The files of an evaluation: the numbers, and figures of them."""

import io
import json

from jetzoo import tables
from jetzoo.style import save


def write_report(metrics, figures, folder):
    """Write ``metrics.json`` and the figures.

    Parameters
    ----------
    metrics : dict
        JSON-ready.
    figures : dict of str to matplotlib.figure.Figure
        By name, such as "roc" for ``roc.pdf`` and ``roc.png``.
    folder : str or Path

    Returns
    -------
    list of Path
        The files written.

    Raises
    ------
    UserError
        If one of them cannot be written; none is written if a folder has its name.
    """
    folder = tables.writable_folder(folder)
    numbers = tables.check_output(folder / "metrics.json")
    drawings = {
        tables.check_output(folder / f"{name}{ending}"): figure
        for name, figure in figures.items()
        for ending in (".pdf", ".png")
    }
    with tables.atomic(numbers) as partial:
        partial.write_text(json.dumps(metrics, indent=2, allow_nan=False) + "\n")
    for path, figure in drawings.items():
        drawn = io.BytesIO()  # on a full disk matplotlib would fail in ways of its own
        save(figure, drawn, format=path.suffix[1:], dpi=200)
        with tables.atomic(path) as partial:
            partial.write_bytes(drawn.getbuffer())
    return [numbers, *drawings]
