"""Accuracy, AUC, background rejections and ROC figure of the scores that weaver writes."""

import json
import logging

import numpy as np
from sklearn.metrics import roc_auc_score, roc_curve

from jetzoo import UserError, tables

QCD = "label_QCD"

# Signal efficiencies of the published JetClass rejections that are not 50% (arXiv:2202.03772).
JETCLASS_EFFICIENCY = {"label_Hqql": 0.99, "label_Tbl": 0.995}
BINARY_EFFICIENCIES = (0.5, 0.3)

CONFIDENCE = 0.95

# Curves end where fewer jets pass: the rejection is then known to worse than 50%.
MIN_PASSING = 4

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
# It puts the fonts into PDFs, and warns of the age of those that come with matplotlib.
logging.getLogger("fontTools").setLevel(logging.ERROR)


def read_predictions(files, classes=None):
    """Read the output of ``weaver --predict`` or ``jetzoo predict``, several files as one.

    Parameters
    ----------
    files : sequence of str or Path
        ROOT files carry the class names in their ``score_<class>`` branches; parquet files hold one
        ``scores`` array without names.
    classes : sequence of str, optional
        Class names for parquet files; ``class_0``, ``class_1``, ... if not given.

    Returns
    -------
    labels : ndarray of int, (num_jets,)
        Index of the true class.
    scores : ndarray, (num_jets, num_classes)
    classes : list of str

    Raises
    ------
    UserError
        If a file is not weaver's, has no truth labels, or does not fit the other files.
    """
    all_labels, all_scores, found = [], [], None
    for path in files:
        branches, _ = tables.describe(path)
        names = [name.removeprefix("score_") for name in branches if name.startswith("score_")]
        if not names and "scores" not in branches:
            raise UserError(
                f"{path} is not weaver's output: it has no branch scores or score_<class>, "
                f"but {', '.join(branches[:5]) or 'none'}."
            )
        if "_label_" not in branches:
            raise UserError(f"{path} has no branch _label_: the truth of these jets is unknown.")
        columns = [f"score_{name}" for name in names] or ["scores"]
        table = tables.read(path, [*columns, "_label_"])
        if names:
            scores = np.stack([table[column].to_numpy() for column in columns], axis=1)
        else:
            scores = table["scores"].to_numpy()
            names = classes or [f"class_{i}" for i in range(scores.shape[1])]
            if len(names) != scores.shape[1]:
                raise UserError(
                    f"{path} has scores for {scores.shape[1]} classes, "
                    f"the data config names {len(names)}."
                )
        found = found or list(names)
        if list(names) != found:
            raise UserError(
                f"{path} has the classes {', '.join(names)}, {files[0]} has {', '.join(found)}."
            )
        all_labels.append(table["_label_"].to_numpy())
        all_scores.append(scores)
    return np.concatenate(all_labels), np.concatenate(all_scores), found


def write_predictions(path, classes, scores, labels=None, observers=None):
    """Write scores as weaver does, so that :func:`read_predictions` reads them.

    Parameters
    ----------
    path : str or Path
        ``.root``: branches ``<class>`` (bool) and ``score_<class>``; ``.parquet``: ``scores``.
    classes : sequence of str
    scores : ndarray, (num_jets, num_classes)
    labels : ndarray of int, (num_jets,), optional
        Index of the true class, written as ``_label_``.
    observers : dict of array, optional
        Further branches, as they are.
    """
    import awkward as ak

    if tables.check_format(path).suffix == ".parquet":
        table = {"scores": scores}
    else:
        table = {}
        for index, name in enumerate(classes):
            if labels is not None:
                table[name] = labels == index
            table[f"score_{name}"] = scores[:, index]
    if labels is not None:
        table["_label_"] = labels
    tables.write(path, ak.Array({**table, **(observers or {})}))


def evaluate(labels, scores, classes):
    """Accuracy, AUC and background rejections of a classifier.

    With two classes the first is the signal and the second the background. With more, each class is
    a signal against ``label_QCD``, on the score p_signal / (p_signal + p_background), and the AUC
    is the macro average over pairs of classes (one vs one) [1]_.

    The rejection is 1 / (background efficiency) at a signal efficiency of 50% and 30% with two
    classes; with more, at 50%, except ``label_Hqql`` (99%) and ``label_Tbl`` (99.5%) [2]_. The
    background efficiency is interpolated linearly between the points of the ROC curve; where
    several share the signal efficiency, the largest is taken.

    Parameters
    ----------
    labels : ndarray of int, (num_jets,)
        Index of the true class.
    scores : ndarray, (num_jets, num_classes)
        Probabilities.
    classes : sequence of str

    Returns
    -------
    dict
        JSON-ready. ``num_jets``; ``num_jets_per_class``; ``accuracy`` and its binomial
        ``accuracy_error``; ``auc`` (None with fewer than two classes of jets); ``rejections``, a
        list of ``signal``, ``background``, ``signal_efficiency``, ``rejection`` with its binomial
        ``error``, ``background_passing`` of ``num_background`` jets; ``notes``, sentences on what
        could not be computed. Where no background passes, ``rejection`` and ``error`` are None and
        ``lower_limit`` is the limit at 95% confidence; it is None elsewhere.

    Raises
    ------
    UserError
        If there are no jets, scores are not finite or no probabilities, or a label is no class.

    References
    ----------
    .. [1] D. J. Hand, R. J. Till, Machine Learning 45 (2001) 171.
    .. [2] H. Qu, C. Li, S. Qian, arXiv:2202.03772, section 5.
    """
    labels, scores = _checked(labels, scores, classes)
    counts = np.bincount(labels, minlength=len(classes))
    missing = [name for name, count in zip(classes, counts, strict=True) if not count]
    notes = []
    if missing:
        notes.append(f"There are no jets of {', '.join(missing)}; the AUC is over the others.")
    if len(classes) > 2 and QCD not in classes:
        notes.append(f"Rejections are against {QCD}, which is not among the classes.")
    elif len(classes) > 2 and QCD in missing:
        notes.append(f"Rejections are against {QCD}, of which there are no jets.")

    accuracy = float(np.mean(scores.argmax(axis=1) == labels))
    return {
        "num_jets": len(labels),
        "num_jets_per_class": {name: int(n) for name, n in zip(classes, counts, strict=True)},
        "accuracy": accuracy,
        "accuracy_error": float(np.sqrt(accuracy * (1 - accuracy) / len(labels))),
        "auc": _auc(labels, scores),
        "rejections": [
            {
                "signal": classes[signal],
                "background": classes[background],
                "signal_efficiency": efficiency,
                **_rejection(curve, efficiency, int(counts[background])),
            }
            for signal, background, curve in curves(labels, scores, classes)
            for efficiency in _working_points(classes, signal)
        ],
        "notes": notes,
    }


def _checked(labels, scores, classes):
    labels, scores = np.asarray(labels), np.asarray(scores)
    if len(labels) == 0:
        raise UserError("There are no jets to evaluate.")
    if scores.shape != (len(labels), len(classes)) or len(classes) < 2:
        raise UserError(
            f"Scores of shape {scores.shape} do not fit {len(labels)} jets and {len(classes)} "
            "classes (at least two)."
        )
    bad = int((~np.isfinite(scores).all(axis=1)).sum())
    if bad:
        raise UserError(f"{bad} of {len(labels)} jets have scores that are NaN or infinite.")
    if scores.min() < 0 or not np.allclose(1, scores.sum(axis=1)):
        raise UserError("The scores are not probabilities: they must add up to 1 for every jet.")
    if labels.min() < 0 or labels.max() >= len(classes):
        raise UserError(f"Labels must lie between 0 and {len(classes) - 1}.")
    return labels.astype(np.int64), scores


def _auc(labels, scores):
    if len(np.unique(labels)) < 2:
        return None
    if scores.shape[1] == 2:
        return float(roc_auc_score(labels == 0, _discriminant(scores, 0, 1)))
    return float(
        roc_auc_score(
            labels, scores, multi_class="ovo", average="macro", labels=np.arange(scores.shape[1])
        )
    )


def _discriminant(scores, signal, background):
    """p_s / (p_s + p_b); in float64, which tells p_s apart that float32 rounds to 1."""
    s, b = scores[:, signal].astype(np.float64), scores[:, background].astype(np.float64)
    # A third class can take all the probability: such a jet speaks for neither.
    return np.divide(s, s + b, out=np.full_like(s, 0.5), where=s + b > 0)


def curves(labels, scores, classes):
    """ROC curves of every signal against its background; arguments as for :func:`evaluate`.

    Yields
    ------
    signal, background : int
        Indices of the classes.
    curve : tuple of ndarray
        Signal and background efficiencies.
    """
    if len(classes) > 2 and QCD not in classes:
        return
    background = 1 if len(classes) == 2 else list(classes).index(QCD)
    for signal in range(1 if len(classes) == 2 else len(classes)):
        used = (labels == signal) | (labels == background)
        truth = labels[used] == signal
        if signal != background and truth.any() and not truth.all():
            false_rate, true_rate, _ = roc_curve(
                truth, _discriminant(scores[used], signal, background)
            )
            yield signal, background, (true_rate, false_rate)


def _working_points(classes, signal):
    if len(classes) == 2:
        return BINARY_EFFICIENCIES
    return (JETCLASS_EFFICIENCY.get(classes[signal], 0.5),)


def _rejection(curve, efficiency, num_background):
    eps = float(np.interp(efficiency, *curve))
    passing = {"background_passing": eps * num_background, "num_background": num_background}
    if eps == 0:
        # The largest background efficiency that lets none of N jets pass with 5% probability.
        limit = 1 / (1 - (1 - CONFIDENCE) ** (1 / num_background))
        return {"rejection": None, "error": None, "lower_limit": limit, **passing}
    # Binomial: sigma_eps = sqrt(eps (1 - eps) / N), and sigma_R = sigma_eps / eps^2.
    error = np.sqrt(eps * (1 - eps) / num_background) / eps**2
    return {"rejection": 1 / eps, "error": float(error), "lower_limit": None, **passing}


def roc_figure(labels, scores, classes):
    """Background rejection against signal efficiency, with 1 sigma bands for two classes.

    Arguments as for :func:`evaluate`. Circles mark the working points. Curves end where fewer than
    four background jets pass.

    Returns
    -------
    matplotlib.figure.Figure or None
        None when there is no signal and background to compare.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    labels, scores = _checked(labels, scores, classes)
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
                label=_name(classes[signal]),
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
            points = np.array(_working_points(classes, signal))
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
        background = _name(classes[background])
        if len(found) == 1:
            axes.legend([line], [f"{_name(classes[signal])} vs {background}"])
        else:
            axes.legend(title=f"vs {background}", alignment="left", ncols=2)
    return figure


def _name(label):
    return NAMES.get(label, label.removeprefix("label_"))


def summary(metrics):
    """The metrics of :func:`evaluate` as two tables for the terminal.

    Returns
    -------
    list of rich.table.Table
    """
    from rich.table import Table

    overall = Table("jets", "accuracy", "AUC")
    overall.add_row(
        f"{metrics['num_jets']}",
        f"{metrics['accuracy']:.4f} ± {metrics['accuracy_error']:.4f}",
        "-" if metrics["auc"] is None else f"{metrics['auc']:.4f}",
    )
    if not metrics["rejections"]:
        return [overall]
    rejections = Table("signal", "against", "efficiency", "rejection", "passing")
    for row in metrics["rejections"]:
        if row["rejection"] is None:
            rejection = f"> {row['lower_limit']:.0f} ({CONFIDENCE:.0%} CL)"
        else:
            digits = 1 if row["rejection"] < 100 else 0
            rejection = f"{row['rejection']:.{digits}f} ± {row['error']:.{digits}f}"
        rejections.add_row(
            row["signal"],
            row["background"],
            f"{100 * row['signal_efficiency']:g}%",
            rejection,
            f"{row['background_passing']:.0f} of {row['num_background']}",
        )
    return [overall, rejections]


def write_report(metrics, figure, folder):
    """Write ``metrics.json`` and, if there is a figure, ``roc.pdf`` and ``roc.png``.

    Returns
    -------
    list of Path
        The files written.
    """
    folder = tables.writable_folder(folder)
    written = [folder / "metrics.json"]
    with tables.atomic(written[0]) as partial:
        partial.write_text(json.dumps(metrics, indent=2, allow_nan=False) + "\n")
    for kind in ("pdf", "png") if figure else ():
        written.append(folder / f"roc.{kind}")
        with tables.atomic(written[-1]) as partial:
            figure.savefig(partial, format=kind, dpi=200)
    return written
