"""How figures look: colours, fonts and the names of classes."""

import logging
import re

NAMES = {
    "label_QCD": r"$q/g$",
    "label_Hbb": r"$H\to b\bar{b}$",
    "label_Hcc": r"$H\to c\bar{c}$",
    "label_Hgg": r"$H\to gg$",
    "label_H4q": r"$H\to 4q$",
    "label_Hqql": r"$H\to \ell\nu qq'$",
    "label_Zqq": r"$Z\to q\bar{q}$",
    "label_Wqq": r"$W\to qq'$",
    "label_Tbqq": r"$t\to bqq'$",
    "label_Tbl": r"$t\to b\ell\nu$",
    "jet_mass": "jet mass [100 GeV]",
    "jet_isQ": "quark",
    "jet_isG": "gluon",
    "jet_isTop": "top",
    "jet_isQCD": "QCD",
}

# Okabe and Ito's colours that stand out on white, distinguishable by the colour-blind.
OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")

STYLE = {
    "font.size": 12,
    "mathtext.fontset": "dejavusans",
    "axes.labelsize": 14,
    "axes.linewidth": 1.0,
    "legend.frameon": False,
    "legend.fontsize": 11,
    "lines.linewidth": 1.6,
    "xtick.direction": "in",
    "ytick.direction": "in",
    "xtick.top": True,
    "ytick.right": True,
    "xtick.minor.visible": True,
    "ytick.minor.visible": True,
    "pdf.fonttype": 42,
}


def save(figure, target, **options):
    """Save a figure; fontTools, which puts the fonts into PDFs, says only what went wrong.

    Parameters
    ----------
    figure : matplotlib.figure.Figure
    target : str, Path or file
    **options
        Of ``figure.savefig``.
    """
    logger = logging.getLogger("fontTools")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        figure.savefig(target, **options)
    finally:
        logger.setLevel(level)


# What the mathematics of `NAMES` is in plain text; a bar is a character that follows the letter.
PLAIN = (
    (r"\\bar\{(.)\}", "\\1\u0304"),
    (r"\\to *", "→"),
    (r"\\ell", "ℓ"),
    (r"\\nu", "ν"),
    (r"[$ ]", ""),
)


def plain_class_name(label):
    """Name of a class where there is no mathematics, such as ``H→gg`` for ``label_Hgg``."""
    name = class_name(label)
    if "$" in name:
        for mathematics, text in PLAIN:
            name = re.sub(mathematics, text, name)
    return name


def class_name(label):
    """Name of a class in figures and tables, such as ``$H\\to gg$`` for ``label_Hgg``."""
    return NAMES.get(label, label.removeprefix("label_"))
