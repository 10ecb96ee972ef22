"""Files of scores, as ``weaver --predict`` and ``jetzoo predict`` write them."""

import awkward as ak
import numpy as np

from jetzoo import UserError, tables


def read_predictions(files, classes=None, label="_label_"):
    """Read the output of ``weaver --predict`` or ``jetzoo predict``, several files as one.

    Parameters
    ----------
    files : sequence of str or Path
        ROOT files carry the class names in their ``score_<class>`` branches; parquet files hold one
        ``scores`` array without names. Where the data config has labels of type custom, weaver's
        ROOT files hold one array ``output`` without names.
    classes : sequence of str, optional
        Class names for files without; ``class_0``, ``class_1``, ... if not given.
    label : str
        Branch of the true class, as weaver names it; ``_label_`` unless labels are of type custom.

    Returns
    -------
    labels : ndarray of int, (num_jets,)
        Index of the true class.
    scores : ndarray, (num_jets, num_classes)
    classes : list of str

    Raises
    ------
    UserError
        If a file is not weaver's, has no truth labels or such as are no classes, or does not fit
        the other files.
    """
    all_labels, all_scores, found = [], [], None
    for path in files:
        branches, _ = tables.describe(path)
        names = [name.removeprefix("score_") for name in branches if name.startswith("score_")]
        columns = [f"score_{name}" for name in names] or [_array(branches, path)]
        truth = label if label in branches else "_label_"
        if truth not in branches:
            raise UserError(
                f"{path} has no branch {label}: the truth of these jets is unknown; for labels of "
                "type custom, --data-config names it."
            )
        ndim = 1 if names else 2
        labels, *scores = _arrays(path, {truth: 1, **dict.fromkeys(columns, ndim)})
        scores = np.stack(scores, axis=1) if names else scores[0]
        if not names:
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
        with tables.about(path):
            all_labels.append(check_labels(labels, len(names)))
        all_scores.append(scores)
    return np.concatenate(all_labels), np.concatenate(all_scores), found


def _array(branches, path):
    """Name of the array of what a network gave, or a :class:`jetzoo.UserError`."""
    for name in ("scores", "output"):
        if name in branches:
            return name
    raise UserError(
        f"{path} is not weaver's output: it has no branch scores or score_<class>, "
        f"but {', '.join(branches[:5]) or 'none'}."
    )


def read_targets(files, targets):
    """Read the output of a regression, several files as one.

    Parameters
    ----------
    files : sequence of str or Path
        Their branch ``output`` (ROOT) or ``scores`` (parquet) holds what was predicted.
    targets : sequence of str
        Branches of the truth.

    Returns
    -------
    truth, predicted : ndarray, float64, (num_jets, num_targets)

    Raises
    ------
    UserError
        If a file is not weaver's, or has no such branches.
    """
    found = []
    for path in files:
        branches, _ = tables.describe(path)
        array = _array(branches, path)
        if missing := [name for name in targets if name not in branches]:
            raise UserError(
                f"{path} has no branch {', '.join(missing)}: the truth of these jets is unknown."
            )
        values, *truth = _arrays(path, {array: None, **dict.fromkeys(targets, 1)})
        truth = np.stack(truth, axis=1)
        values = values.reshape(len(truth), -1)
        with tables.about(path):
            if values.shape != truth.shape:
                raise UserError(
                    f"Branch {array} has {values.shape[1]} numbers for each jet, and there are "
                    f"{len(targets)} targets."
                )
        found.append((truth.astype(float), values.astype(float)))
    truth, predicted = map(np.concatenate, zip(*found, strict=True))
    return truth, predicted


def _arrays(path, columns):
    """Branches of a file as arrays, by their numbers of axes or None for any number.

    A chunk at a time is read as awkward arrays, which take more memory.
    """
    found = {name: [] for name in columns}
    for table in tables.chunks(path, columns):
        with tables.about(path):
            for name, ndim in columns.items():
                found[name].append(_numbers(table[name], name, ndim or table[name].ndim))
    return [np.concatenate(parts) for parts in found.values()]


def _numbers(column, name, ndim):
    """A branch as an array of one or two axes, or a :class:`jetzoo.UserError`."""
    try:
        values = ak.to_numpy(column, allow_missing=False)
    except (ValueError, TypeError) as error:
        raise UserError(f"Branch {name} lacks values, or is no table of numbers.") from error
    if values.dtype.kind not in "biuf" or values.ndim != ndim:
        raise UserError(f"Branch {name} holds {column.type.content}, not numbers.")
    return values


def check_labels(labels, num_classes):
    """The true classes of jets as integers.

    Parameters
    ----------
    labels : ndarray, (num_jets,)
    num_classes : int

    Returns
    -------
    ndarray of int, (num_jets,)

    Raises
    ------
    UserError
        If one is not an index of a class: NaN, a fraction, negative or too large.
    """
    bad = ~np.isin(labels, np.arange(num_classes))
    if bad.any():
        first = int(bad.argmax())
        raise UserError(
            f"Labels must lie between 0 and {num_classes - 1}, whole numbers; {bad.sum():,} of "
            f"{len(labels):,} do not, of which the first is {labels[first]} of jet {first}."
        )
    return labels.astype(np.int64)


def prediction_table(suffix, classes, scores, labels=None, observers=None):
    """Scores as weaver writes them.

    Parameters
    ----------
    suffix : {".root", ".parquet"}
        The former with branches ``<class>`` (bool) and ``score_<class>``; the latter ``scores``.
    classes : sequence of str
    scores : ndarray, (num_jets, num_classes)
    labels : ndarray of int, (num_jets,), optional
        Index of the true class, as ``_label_``.
    observers : dict of array, optional
        Further branches, as they are.

    Returns
    -------
    ak.Array of records, (num_jets,)
    """
    if suffix == ".parquet":
        table = {"scores": scores}
    else:
        table = {}
        for index, name in enumerate(classes):
            if labels is not None:
                table[name] = labels == index
            table[f"score_{name}"] = scores[:, index]
    if labels is not None:
        table["_label_"] = labels
    return ak.Array({**table, **(observers or {})})


def target_table(suffix, targets, predicted, truth=None, observers=None):
    """What a regression predicts, as weaver writes it.

    Parameters
    ----------
    suffix : {".root", ".parquet"}
        The former with a branch ``output``, the latter ``scores``.
    targets : sequence of str
    predicted : ndarray, (num_jets, num_targets)
    truth : ndarray, (num_jets, num_targets), optional
        Under the names of the targets.
    observers : dict of array, optional
        Further branches, as they are.

    Returns
    -------
    ak.Array of records, (num_jets,)
    """
    array = "scores" if suffix == ".parquet" else "output"
    table = {array: predicted[:, 0] if len(targets) == 1 else predicted}
    if truth is not None:
        table |= dict(zip(targets, truth.T, strict=True))
    return ak.Array({**table, **(observers or {})})


def write_predictions(path, *table):
    """Write a :func:`prediction_table`, so that :func:`read_predictions` reads it."""
    tables.write(path, prediction_table(tables.check_format(path).suffix, *table))
