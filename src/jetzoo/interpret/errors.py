"""Standard errors of changes that are measured on the same jets, with and without an edit."""

import numpy as np


def mean_error(values):
    """Standard error of the mean of values (num_jets,); 0 for a single one."""
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0


def ratio_error(above, below):
    """Standard error of the ratio of two means over the same jets, to first order.

    Parameters
    ----------
    above, below : ndarray, (num_jets,)

    Returns
    -------
    float
        0 if the mean below is.
    """
    mean = below.mean()
    return mean_error(above - above.mean() / mean * below) / abs(float(mean)) if mean else 0.0


def auc_error(labels, before, after):
    """Standard error of the change of an AUC, from the placements of the jets (DeLong et al. 1988).

    Parameters
    ----------
    labels : ndarray of int, (num_jets,)
    before, after : ndarray, (num_jets, classes)
        Probabilities of the same jets. The AUC is that of
        :func:`jetzoo.metrics.numbers.evaluate`.

    Returns
    -------
    float
    """
    moved = placements(labels, after) - placements(labels, before)
    return float(np.sqrt(sum(mean_error(moved[labels == c]) ** 2 for c in np.unique(labels))))


def placements(labels, scores):
    """What each jet brings to the AUC, the mean over pairs of classes, each way.

    Parameters
    ----------
    labels : ndarray of int, (num_jets,)
    scores : ndarray, (num_jets, classes)

    Returns
    -------
    ndarray, (num_jets,)
        Of each pair that the jet is in, the share of jets of the other class that it is on the
        right side of; added up, and divided by the number of pairs.
    """
    known = np.unique(labels)
    found = np.zeros(len(labels))
    for signal in known:
        own = labels == signal
        for other in known[known != signal]:
            rest = labels == other
            found[own] += _below(scores[rest, signal], scores[own, signal])
            found[rest] += 1 - _below(scores[own, signal], scores[rest, signal])
    return found / (len(known) * (len(known) - 1))


def _below(values, limits):
    """Share of the values below each limit; those that are equal count half."""
    values = np.sort(values)
    left, right = (values.searchsorted(limits, side) for side in ("left", "right"))
    return (left + right) / (2 * len(values))
