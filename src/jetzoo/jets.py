"""Jets of files for the commands that look at a network: the jets, their labels and their sizes."""

import re

import awkward as ak
import numpy as np

from jetzoo import UserError, tables

from .data_config import add_variables, check_lengths, dependencies
from .labels import formulas, is_regression, outputs

# Types of columns: one number for each jet, or one for each of its particles.
NUMBERS = re.compile(r"(\?|option\[)?((var|\d+) \* )?\??(bool|u?int\d+|float\d+|unknown)\]?")
# What weaver's formulas and awkward raise on columns that are not what a data config expects.
MISFITS = (ValueError, TypeError, IndexError, KeyError, AttributeError, RuntimeError)


class JetFiles:
    """Files of jets, of which the branches are read that a network and its labels need.

    Parameters
    ----------
    tagger : jetzoo.tagger.Tagger
    files : sequence of str or Path
    extra : iterable of str
        Branches that are read, too, if all files have them.

    Attributes
    ----------
    num_jets : int

    Raises
    ------
    UserError
        If a file cannot be read, or there are no jets.
    """

    def __init__(self, tagger, files, extra=()):
        self.tagger, self.extra = tagger, list(extra)
        self.treename = tagger.data_config.treename
        described = [tables.describe(path, self.treename) for path in files]
        common = set.intersection(*(set(branches) for branches, _ in described))
        wanted = set(tagger.branches) | set(self.extra) & common
        labels = label_branches(tagger)
        self.branches = sorted(wanted | labels if labels <= common else wanted)
        entries = [entries for _, entries in described]
        self.num_jets = sum(entries)
        if self.num_jets == 0:
            raise UserError("There are no jets in the files.")
        # Of each file, the numbers of its first jet and of the first one behind it.
        stops = np.cumsum(entries).tolist()
        self.spans = list(zip(files, [0, *stops[:-1]], stops, strict=True))

    def chunks(self, limit=None):
        """The jets of all files, or the first so many, some after the other.

        Parameters
        ----------
        limit : int, optional

        Yields
        ------
        start : int
            Number of the first of these jets among those of all files.
        jets : ak.Array of records

        Raises
        ------
        UserError
            If branches are missing or are not what the data config takes, or a file has become
            shorter.
        """
        if limit is not None and limit < 1:
            raise UserError(f"The number of jets must be positive, not {limit}.")
        size = tables.CHUNK
        for path, first, last in self.spans:
            last = last if limit is None else min(last, limit)
            if first >= last:
                continue
            at = first
            for jets in tables.chunks(path, self.branches, self.treename, size, stop=last - first):
                self._check(jets, tables.place(path, at - first, len(jets), size))
                yield at, jets
                at += len(jets)
            if at != last:
                raise UserError(f"{path} has been changed: it has fewer jets than before.")

    def pick(self, index):
        """Some jets, in the order of their numbers ``index``; errors are those of :meth:`chunks`.

        Returns
        -------
        ak.Array of records, (len(index),)
        """
        index = np.asarray(index)
        outside = index[(index < 0) | (index >= self.num_jets)]
        if len(outside):
            last = self.num_jets - 1
            raise UserError(f"There is no jet {outside[0]}: the files have jets 0 to {last}.")
        parts, positions = [], []
        for path, first, last in self.spans:
            here = np.flatnonzero((index >= first) & (index < last))
            if len(here):
                jets = tables.pick(path, self.branches, index[here] - first, self.treename)
                self._check(jets, path)
                parts.append(jets)
                positions.append(here)
        return ak.concatenate(parts)[np.argsort(np.concatenate(positions))]

    def _check(self, jets, place):
        check_columns(self.tagger, jets, place, self.extra)


def read_jets(tagger, files, selection=None, extra=()):
    """Read what a network needs of some jets, and their labels if there are any.

    Parameters
    ----------
    tagger : jetzoo.tagger.Tagger
    files : sequence of str or Path
    selection : int or sequence of int, optional
        The first so many jets, or the indices of some, counted through all files.
    extra : iterable of str
        Branches that are read, too, if all files have them.

    Returns
    -------
    ak.Array of records, (num_jets,)

    Raises
    ------
    UserError
        As :class:`JetFiles` and its methods, or if there are no such jets.
    """
    found = JetFiles(tagger, files, extra)
    if selection is None or isinstance(selection, int):
        return ak.concatenate([jets for _, jets in found.chunks(selection)])
    return found.pick(selection)


def check_columns(tagger, jets, path, extra=()):
    """Raise a :class:`jetzoo.UserError` that names the file unless the columns can be used.

    Columns hold numbers, one for each jet or one for each of its particles; labels name a class.
    Of ``extra`` columns there is one number for each particle.
    """
    config, labels = tagger.data_config, label_branches(tagger)
    inputs = {name for group in config.input_dicts.values() for name in group}
    lists = inputs - set(config.var_funcs) | set(extra)
    for name in jets.fields:
        column, kind = jets[name], str(jets[name].type.content)
        if not NUMBERS.fullmatch(kind):
            raise UserError(f"{path}: branch {name} holds {kind}, not numbers.")
        if name in labels - set(tagger.branches) and column.ndim != 1 and not tagger.is_regression:
            raise UserError(f"{path}: branch {name} is a label, which is one number for each jet.")
        if name in lists and column.ndim != 2:
            raise UserError(f"{path}: branch {name} has no list of particles for each jet.")
        if name not in labels and (missing := _num_missing(column)):
            raise UserError(
                f"{path}: branch {name} lacks values in {missing:,} of {len(jets):,} jets."
            )
    columns = {name: jets[name] for name in sorted(tagger.branches)}
    kinds = dict(tagger.kinds)
    beginnings = {first: (first, used) for first, used in kinds.values()}
    for name in extra:
        if name in jets.fields and name not in columns:
            columns[name] = jets[name]
            kinds[name] = beginnings.get(name.split("_")[0], name)
    with tables.about(path):
        check_lengths(columns, kinds)
    try:
        tagger.inputs(jets[:1])
    except MISFITS as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(
            f"{path}: the branches are not what the data config takes: {reason}"
        ) from error
    try:
        true_labels(tagger, jets)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _num_missing(column):
    """Number of jets of which a value is None."""
    missing = ak.is_none(column, axis=0)
    if column.ndim == 2:
        missing = missing | ak.any(ak.is_none(ak.fill_none(column, [], axis=0), axis=1), axis=1)
    return int(ak.sum(missing))


def label_branches(tagger):
    """Return the branches that the true class, or the targets, are made of."""
    return dependencies(tagger.data_config, tagger.data_config.label_names)[0]


def true_labels(tagger, jets):
    """Index of the true class of jets, or the targets of a regression.

    Parameters
    ----------
    tagger : jetzoo.tagger.Tagger
    jets : ak.Array of records, (num_jets,)

    Returns
    -------
    ndarray of int, (num_jets,); or of float32, (num_jets, num_targets); or None
        None if the jets have no labels.

    Raises
    ------
    UserError
        If some jets belong to no class, or to several: labels that are NaN, missing, text or out
        of range. Or if targets are not finite.
    """
    config = tagger.data_config
    branches, variables = dependencies(config, config.label_names)
    if not branches <= set(jets.fields):
        return None
    # weaver takes the argmax over the classes, which hides labels that are no class.
    variables = {name: x for name, x in variables.items() if name not in config.label_names}
    classes = {f"_class{i}_": formula for i, formula in enumerate(formulas(config))}
    names = ", ".join(sorted(branches))
    table = jets[sorted(branches)]
    try:
        for name in branches:
            if not NUMBERS.fullmatch(str(table[name].type.content)):
                raise TypeError(f"{name} holds no numbers")
            table[name] = ak.fill_none(table[name], np.nan, axis=0)
        table = add_variables(table, variables | classes)
        flags = np.stack([np.asarray(table[name], np.float64) for name in classes], axis=1)
        if flags.ndim != 2:
            raise ValueError("a label is a list")
    except MISFITS as error:
        raise UserError(f"The label is one number for each jet: {names} holds others.") from error
    if is_regression(config):
        bad = ~np.isfinite(flags).all(1)
        what = "targets of a regression"
    elif config.label_type == "custom":
        bad = ~np.isin(flags[:, 0], np.arange(len(outputs(config))))
        what = f"one of the indices 0 ... {len(outputs(config)) - 1} of the classes"
    else:
        bad = ~np.isin(flags, (0, 1)).all(1) | ((flags == 1).sum(1) != 1)
        what = f"one of the classes {', '.join(outputs(config))}"
    if bad.any():
        raise UserError(
            f"{bad.sum():,} of {len(bad):,} jets have labels ({names}) that are not {what}; the "
            f"first is jet {bad.argmax()}."
        )
    if is_regression(config):
        return flags.astype(np.float32)
    return flags[:, 0].astype(int) if config.label_type == "custom" else flags.argmax(1)


def true_classes(tagger, jets):
    """As :func:`true_labels`, but None in a regression, which has no classes."""
    return None if tagger.is_regression else true_labels(tagger, jets)


def num_particles(tagger, jets):
    """Number of particles of jets, ndarray of int (num_jets,)."""
    column = min(name for name in tagger.branches if jets[name].ndim == 2)
    return ak.to_numpy(ak.num(jets[column]))


def finite(tagger, jets):
    """Whether all that a network needs of a jet is finite, ndarray of bool (num_jets,)."""
    found = np.ones(len(jets), bool)
    for name in tagger.branches:
        good = np.isfinite(jets[name])
        found &= ak.to_numpy(ak.all(good, axis=1) if jets[name].ndim == 2 else good)
    return found
