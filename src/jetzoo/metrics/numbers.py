"""Accuracy, AUC and background rejections of the scores of a tagger."""

import numpy as np
from rich.table import Table
from sklearn.metrics import roc_auc_score, roc_curve

from jetzoo import UserError

from .predictions import check_labels

QCD = "label_QCD"

# Signal efficiencies of the published JetClass rejections that are not 50% (arXiv:2202.03772).
JETCLASS_EFFICIENCY = {"label_Hqql": 0.99, "label_Tbl": 0.995}
BINARY_EFFICIENCIES = (0.5, 0.3)

CONFIDENCE = 0.95


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
    labels, scores = checked(labels, scores, classes)
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
            for efficiency in working_points(classes, signal)
        ],
        "notes": notes,
    }


def checked(labels, scores, classes):
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
    return check_labels(labels, len(classes)), scores


def _auc(labels, scores):
    if len(np.unique(labels)) < 2:
        return None
    if scores.shape[1] == 2:
        return float(roc_auc_score(labels == 0, _discriminant(scores, 0, 1)))
    return _auc_of_pairs(labels, scores)


def _auc_of_pairs(labels, scores):
    """Mean over the pairs of classes of which there are jets, each way, of the AUC of a pair."""
    rows = {c: scores[labels == c] for c in np.unique(labels)}
    areas = []
    for signal, jets in rows.items():
        own = np.sort(jets[:, signal])
        for other, others in rows.items():
            if other != signal:
                values = others[:, signal]
                lower, upper = (own.searchsorted(values, side) for side in ("left", "right"))
                areas.append(1 - (lower + upper).mean() / (2 * len(own)))
    return float(np.mean(areas))


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


def working_points(classes, signal):
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


def summary(metrics):
    """The metrics of :func:`evaluate` as two tables for the terminal.

    Returns
    -------
    list of rich.table.Table
    """
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
