"""Data configs of weaver: reading them, and weaver's own preprocessing of jets.

This is the only module that imports private functions of weaver, whose names may change.
"""

import re

import awkward as ak
import numpy as np
import yaml
from weaver.utils.data.config import DataConfig
from weaver.utils.data.eval_utils import _get_data_var_names
from weaver.utils.data.preprocess import _build_new_variables
from weaver.utils.dataset import SimpleIterDataset, _finalize_inputs

from jetzoo import UserError, labels, repository
from jetzoo.formulas import check_formula, check_name
from jetzoo.groups import kind
from jetzoo.repository import reason

# Types of columns: one number for each jet, or one for each of its particles.
NUMBERS = re.compile(r"(var \* )?(bool|u?int(8|16|32|64)|float(16|32|64)|unknown)")

# Particles of a jet that a data config may ask for; the published settings have 128.
LONGEST = 2**16


def read(name_or_path):
    """Read a data config as weaver does for prediction, auto-standardisation file included.

    Its formulas are evaluated as Python when jets are read, as weaver does: give only files that
    you would run.

    Parameters
    ----------
    name_or_path : str or Path
        Path of a ``.yaml`` file, or the name of one in a folder ``data/``, such as
        ``QuarkGluon/qg_kin``.

    Returns
    -------
    weaver.utils.data.config.DataConfig
        Its attribute ``source`` is the path, for messages.

    Raises
    ------
    UserError
        If there is no such file, or it is not the data config of a classification or regression.
    """
    path = repository.data_config(name_or_path)
    try:
        content = yaml.safe_load(path.read_bytes())
        if not isinstance(content, dict):
            raise UserError("It has no fields, such as inputs and labels.")
        _check_circles(content.get("new_variables"))
        config = SimpleIterDataset({}, str(path), for_training=False).config
        _check_structure(config)
        config.source = path
    except UserError as error:
        raise UserError(f"{path} is not a data config that can be used: {error}") from error
    except Exception as error:  # weaver looks things up without checking that they are there
        raise UserError(f"{path} is not a data config of weaver: {reason(error)}.") from error
    return config


def from_options(options):
    """Rebuild a data config from its ``options``, as a file from elsewhere may hold them.

    Parameters
    ----------
    options : dict

    Returns
    -------
    weaver.utils.data.config.DataConfig

    Raises
    ------
    UserError
        If it is not the data config of a classification or regression, or one of its formulas does
        anything but compute, see :func:`jetzoo.formulas.check_formula`.
    """
    try:
        found = options["labels"]["value"]
        for value in found.values() if isinstance(found, dict) else found:
            check_formula(value)  # weaver pastes it into a formula of its own
        _check_circles(options.get("new_variables"))
        config = DataConfig(print_info=False, **options)
        _check_structure(config)
        for name in (n for names in config.input_dicts.values() for n in names):
            check_name(name)
        for name, formula in config.var_funcs.items():
            if name != config.weight_name:  # for the training alone, and never evaluated here
                check_formula(formula)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"The data config is none of weaver: {reason(error)}.") from error
    return config


def _check_circles(formulas):
    """Raise a :class:`jetzoo.UserError` if a variable is made of itself: weaver would never end."""
    formulas = {k: v for k, v in (formulas or {}).items() if k != v and isinstance(v, str)}
    made_of = {k: set(_get_data_var_names(v)) & formulas.keys() for k, v in formulas.items()}
    while ready := [name for name, others in made_of.items() if not others & made_of.keys()]:
        for name in ready:
            del made_of[name]
    if made_of:
        raise UserError(f"Of {', '.join(made_of)}, some are made of each other.")


def _check_structure(config):
    """Raise a :class:`jetzoo.UserError` unless a data config has labels and inputs."""
    labels.check(config)
    if not config.input_dicts or not all(config.input_dicts.values()):
        raise UserError("It has no inputs, or an input without variables.")
    lengths = [params["length"] for params in config.preprocess_params.values()]
    if not all(x is None or (type(x) is int and 0 < x <= LONGEST) for x in lengths):
        raise UserError(f"The data config should pad jets to 1 ... {LONGEST} particles.")
    for name, params in config.preprocess_params.items():
        values = [params[key] for key in ("center", "scale", "min", "max")]
        if not all(x in (None, "auto") or np.isfinite(x) for x in values):
            raise UserError(f"The standardisation of {name} is not made of finite numbers.")
    for name, formula in config.var_funcs.items():
        if not isinstance(formula, str):
            raise UserError(f"The formula of {name} is {formula!r} instead of a text.")
        _get_data_var_names(formula)  # a SyntaxError if it is none


def dependencies(config, names):
    """Find what variables are made of.

    Parameters
    ----------
    config : DataConfig
    names : iterable of str

    Returns
    -------
    branches : set of str
        What jets must have.
    new_variables : dict of str to str
        Formulas of the variables that weaver adds, in order.
    """
    needed, pending = set(), list(names)
    while pending:
        name = pending.pop()
        if name not in needed:
            needed.add(name)
            pending += _get_data_var_names(config.var_funcs.get(name, "0"))
    new = {name: formula for name, formula in config.var_funcs.items() if name in needed}
    return needed - new.keys(), new


def add_variables(jets, new_variables):
    """Add new variables to jets, see :func:`dependencies`.

    Parameters
    ----------
    jets : ak.Array of records, (num_jets,)
    new_variables : dict of str to str

    Returns
    -------
    ak.Array of records, (num_jets,)

    Raises
    ------
    UserError
        If a formula cannot be computed, such as one with a function that does not exist.
    """
    # weaver mistakes the memory layout of a slice of a larger array: hand it a packed copy.
    table = ak.to_packed(jets)
    for name, formula in new_variables.items():
        try:
            with np.errstate(all="ignore"):
                table = _build_new_variables(table, {name: formula})
        except Exception as error:
            raise UserError(
                f"The formula {name} = {formula} of the data config cannot be computed: "
                f"{reason(error)}."
            ) from error
    return table


class Inputs:
    """The inputs of a network from jets, by weaver's own preprocessing.

    Parameters
    ----------
    config : DataConfig

    Attributes
    ----------
    branches : set of str
        What jets must have.
    kinds : dict of str to tuple
        Of each branch; those of one kind have as many numbers in each jet, if they are lists.

    Raises
    ------
    UserError
        If the data config leaves its standardisation to a training that has not been.
    """

    def __init__(self, config):
        self._groups = config.input_dicts
        names = [name for group in self._groups.values() for name in group]
        self.branches, self._new_variables = dependencies(config, names)
        self.kinds = _kinds(config)
        self._names = config.input_names
        automatic = [k for k, x in config.preprocess_params.items() if x["center"] == "auto"]
        if automatic:
            raise UserError(
                f"The data config leaves the range of {automatic[0]} to a training: give the file "
                "that ends in .auto.yaml, which weaver writes beside it."
            )
        # weaver looks up labels and observers with the inputs; jets to tag have none.
        self._config = config.copy()
        self._config.label_names = self._config.z_variables = ()

    def __call__(self, jets):
        """Build the inputs of jets.

        Parameters
        ----------
        jets : ak.Array of records, (num_jets,)
            With the raw branches of the data config; left as they are.

        Returns
        -------
        dict of ndarray, float32, (num_jets, num_variables, length)
            One entry per input group.

        Raises
        ------
        UserError
            If branches are missing, or do not hold one number for each jet or each of its
            particles; the message names them.
        """
        return self.build(self.columns(jets))

    def build(self, columns):
        """Build the inputs of jets whose :meth:`columns` are known; else as a call."""
        table = add_variables(columns, self._new_variables)
        self._check_groups(table)
        try:
            table = _finalize_inputs(table, self._config)
        except Exception as error:
            raise UserError(
                f"The jets are not what the data config takes: {reason(error)}."
            ) from error
        return {name: table[f"_{name}"] for name in self._names}

    def columns(self, jets):
        """The raw branches of jets, lists of a fixed size as lists of any.

        Parameters
        ----------
        jets : ak.Array of records, (num_jets,)

        Returns
        -------
        ak.Array of records, (num_jets,)

        Raises
        ------
        UserError
            If branches are missing, or hold other things than numbers; the message names them.
        """
        if not isinstance(jets, ak.Array):
            raise UserError(f"Jets are an awkward array of records, not {type(jets).__name__}.")
        missing = sorted(self.branches - set(jets.fields))
        if missing:
            raise UserError(f"The jets have no branch {', '.join(missing)}.")
        columns = {name: numbers(jets[name], name) for name in sorted(self.branches)}
        check_lengths(columns, self.kinds)
        kinds = {name.split("_")[0] for name in columns}
        for name, column in columns.items():
            # Formulas would take the numbers of a list for those of particles.
            if {"jet", "part"} <= kinds and name.startswith("jet_") and column.ndim == 2:
                raise UserError(f"Branch {name} has a list in place of one number for each jet.")
        return ak.Array(columns)

    def _check_groups(self, table):
        """Let each group hold lists of one length in each jet, as weaver pads and stacks them."""
        lists, particles = {}, {}
        for group, names in self._groups.items():
            length = self._config.preprocess_params[names[0]]["length"]
            for name in names:
                if table[name].ndim == 2:
                    lists[name] = table[name]
                    # Groups pf_points and pf_mask speak of the same particles, sv_points of others.
                    particles[name] = kind(group)[0]
                elif length not in (None, 1):
                    raise UserError(
                        f"Branch {name} has no list of particles for each jet."
                        if name in self.branches
                        else f"The variable {name} = {self._new_variables.get(name)} has no number "
                        "for each particle: a branch of it holds one number for each jet."
                    )
        check_lengths(lists, particles)


def _kinds(config):
    """Kinds of the branches: beginning of the name, and the collections they are used for."""
    used = {}
    for group, names in config.input_dicts.items():
        for branch in dependencies(config, names)[0]:
            used.setdefault(branch, set()).add(kind(group)[0])
    return {name: (name.split("_")[0], frozenset(found)) for name, found in used.items()}


def check_lengths(columns, kinds):
    """Let those columns that are lists, of one kind each, be of the same length in each jet."""
    first = {}
    for name, column in columns.items():
        if column.ndim == 2:
            count = ak.to_numpy(ak.num(column))
            other, expected = first.setdefault(kinds[name], (name, count))
            if not np.array_equal(count, expected):
                raise UserError(f"Branches {other} and {name} have jets of different lengths.")


def numbers(column, name):
    """A branch as one number for each jet, or a list of any length of numbers.

    weaver would read the memory of lists of a fixed size, such as a matrix of numpy, in a wrong
    order.

    Parameters
    ----------
    column : ak.Array
    name : str
        For the message.

    Returns
    -------
    ak.Array, (num_jets,) or (num_jets, num_particles)

    Raises
    ------
    UserError
        If it holds something else, or lacks values.
    """
    if column.fields:
        raise UserError(f"Branch {name} holds {column.type.content}, not numbers.")
    column = ak.to_packed(ak.from_regular(column, axis=None))
    if NUMBERS.fullmatch(str(column.type.content)):
        return column
    if count := _num_lacking(column):
        raise UserError(f"Branch {name} lacks values in {count:,} of {len(column):,} jets.")
    column = ak.to_packed(ak.drop_none(column, axis=None))
    kind = str(column.type.content)
    if not NUMBERS.fullmatch(kind):
        raise UserError(f"Branch {name} holds {kind}, not numbers.")
    return column


def _num_lacking(column):
    """Number of jets of which a value is None."""
    missing = ak.is_none(column, axis=0)
    if column.ndim > 1:
        lists = ak.fill_none(column, [], axis=0)
        missing = missing | ak.any(ak.is_none(lists, axis=1), axis=1)
    return int(ak.sum(missing))


def finite(jets):
    """Whether all numbers of a jet are finite.

    Parameters
    ----------
    jets : ak.Array of records, (num_jets,)
        See :meth:`Inputs.columns`.

    Returns
    -------
    ndarray of bool, (num_jets,)
    """
    found = np.ones(len(jets), bool)
    for name in jets.fields:
        # Mostly all are, which is found out faster without looking at single jets.
        if np.isfinite(ak.to_numpy(ak.flatten(jets[name], axis=None))).all():
            continue
        good = np.isfinite(jets[name])
        found &= ak.to_numpy(ak.all(good, axis=1) if good.ndim == 2 else good)
    return found
