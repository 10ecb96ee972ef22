"""Data configs of weaver: reading them, and weaver's own preprocessing of jets.

This is the only module that imports private functions of weaver, whose names may change.
"""

import awkward as ak
import yaml
from weaver.utils.data.config import DataConfig
from weaver.utils.data.eval_utils import _get_data_var_names
from weaver.utils.data.preprocess import _build_new_variables
from weaver.utils.dataset import SimpleIterDataset, _finalize_inputs

from jetzoo import UserError, repository


def read(name_or_path):
    """Read a data config as weaver does for prediction, auto-standardisation file included.

    Parameters
    ----------
    name_or_path : str or Path
        Path of a ``.yaml`` file, or the name of one in a folder ``data/``, such as
        ``QuarkGluon/qg_kin``.

    Returns
    -------
    weaver.utils.data.config.DataConfig

    Raises
    ------
    UserError
        If there is no such file, or it is not the data config of a classification.
    """
    path = repository.data_config(name_or_path)
    try:
        config = SimpleIterDataset({}, str(path), for_training=False).config
    except (yaml.YAMLError, KeyError, TypeError, AssertionError) as error:
        raise UserError(f"{path} is not a data config of weaver: {error!r}.") from error
    if config.label_type != "simple":
        raise UserError(f"{path} has labels of type {config.label_type!r} instead of 'simple'.")
    return config


def from_options(options):
    """Rebuild a data config from the ``options`` of one, as int8 files keep them."""
    return DataConfig(print_info=False, **options)


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
    """
    # weaver mistakes the memory layout of a slice of a larger array: hand it a packed copy.
    return _build_new_variables(ak.to_packed(jets), new_variables)


class Inputs:
    """The inputs of a network from jets, by weaver's own preprocessing.

    Parameters
    ----------
    config : DataConfig

    Attributes
    ----------
    branches : set of str
        What jets must have.
    """

    def __init__(self, config):
        names = [name for group in config.input_dicts.values() for name in group]
        self.branches, self._new_variables = dependencies(config, names)
        self._names = config.input_names
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
            If branches are missing; the message names them.
        """
        missing = sorted(self.branches - set(jets.fields))
        if missing:
            raise UserError(f"The jets have no branch {', '.join(missing)}.")
        table = add_variables(jets[sorted(self.branches)], self._new_variables)
        table = _finalize_inputs(table, self._config)
        return {name: table[f"_{name}"] for name in self._names}
