"""Trained networks in Python: loading one, and tagging jets and files of jets."""

from pathlib import Path

import numpy as np
import torch

from jetzoo import UserError, models, tables
from jetzoo.groups import shapes
from jetzoo.labels import is_regression, outputs

from .acceleration import accelerate, lower
from .checkpoint import load_weights
from .checkpoint import read as read_checkpoint
from .data_config import Inputs, finite
from .data_config import read as read_data_config
from .int8 import file as int8_file
from .int8.quantize import check_device
from .repository import build_network, reason


def load(network, checkpoint=None, data_config=None, device=None, fast=False, **options):
    """Load a trained network, for tagging jets in Python.

    Parameters
    ----------
    network : str or Path
        Name of a file in ``networks/``, or a path, see
        :func:`jetzoo.repository.network_module`. Alone, without checkpoint and data config: the
        name of a model card, see ``jetzoo models``, or the path of an int8 network (``.pt``), see
        :func:`jetzoo.int8.file.save`.
    checkpoint : str or Path
        State dict that weaver wrote, such as ``net_best_epoch_state.pt``, or an int8 network.
    data_config : str or Path
        The YAML that the network was trained with; see :func:`jetzoo.data_config.read`.
    device : str or torch.device, optional
        By default the GPU if there is one.
    fast : bool
        Run :func:`jetzoo.accelerate` of the network: the same scores in less time and memory.
    **options
        The ``--network-option`` pairs of the training.

    Returns
    -------
    Tagger

    Raises
    ------
    UserError
        If a file is absent or damaged, an option is unknown, or the checkpoint does not fit.

    Examples
    --------
    >>> tagger = jetzoo.load("ParT", "net_best_epoch_state.pt", "QuarkGluon/qg_kin")
    >>> tagger.predict(ak.from_parquet("test.parquet"))  # (num_jets, 2)
    >>> tagger = jetzoo.load("ParT_QuarkGluon_kin", fast=True)
    """
    found = resolve(network, checkpoint, data_config)
    tagger = _load(*found, device, fast, options)
    tagger.loaded = tagger.model, (*map(_absolute, found), device, fast, options)
    return tagger


def _load(network, checkpoint, data_config, device, fast, options):
    content = read_checkpoint(checkpoint)
    if "format" in content:
        check_device(known_device(device or "cpu"))
        model, config = int8_file.read(content, checkpoint, network, data_config, options)
        return Tagger(lower(model), config)
    if network is None:
        raise UserError(
            f"{checkpoint} is no int8 network: give a network and a data config with its weights."
        )
    tagger = untrained(network, data_config, device, **options)
    load_weights(tagger.model, content, checkpoint, network)
    if fast:
        tagger.model = accelerate(tagger.model)
    return tagger


def _absolute(name_or_path):
    """A path that holds in another folder, too; names and None as they are."""
    if name_or_path is None or not Path(name_or_path).exists():
        return name_or_path
    return str(Path(name_or_path).absolute())


def resolve(network, checkpoint=None, data_config=None):
    """Complete what a user gave in place of a trained network.

    Parameters
    ----------
    network : str or Path, or None
        With neither of the others: the name of a model card, or the path of an int8 network. None
        is what this function gives for the latter.
    checkpoint, data_config : str or Path, optional

    Returns
    -------
    network : str or Path, or None
        None for an int8 network, which knows its own.
    checkpoint : str or Path
    data_config : str or Path, or None

    Raises
    ------
    UserError
        If one of checkpoint and data config is missing, or there is no such card.
    """
    if checkpoint is None and data_config is None:
        if Path(network).suffix == ".pt":
            return None, network, None
        return models.find(str(network))
    if network is not None and (checkpoint is None or data_config is None):
        raise UserError("A checkpoint and its data config go together.")
    return network, checkpoint, data_config


def untrained(network, data_config, device=None, **options):
    """A network of random weights, as a tagger; arguments and errors are those of :func:`load`."""
    if "for_inference" in options:
        raise UserError("for_inference is for export; a Tagger turns logits into scores itself.")
    config = read_data_config(data_config)
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    device = usable_device(device)
    model, _ = build_network(network, config, **options)
    tagger = Tagger(model, config, device)
    _try(tagger, network, options)
    return tagger


def known_device(device):
    """The device of a name, or a :class:`jetzoo.UserError`."""
    try:
        return torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise UserError(f"The device {device!r} cannot be used: {reason(error)}.") from error


def usable_device(device):
    """The device of a name, or a :class:`jetzoo.UserError` if nothing can be computed there."""
    known = known_device(device)
    try:
        torch.zeros(1, device=known).add(1).item()
    except Exception as error:  # "meta" has no numbers, "hpu" is a package that is not installed
        raise UserError(f"The device {device!r} cannot be used: {reason(error)}.") from error
    return known


@torch.inference_mode()
def _try(tagger, network, options):
    """Run a network on two jets, whose inputs it may not take, or not with its options."""
    groups = shapes(tagger.data_config)
    inputs = [torch.ones(2, *shape[1:]) for shape in groups.values()]
    try:
        out = tagger.model(*(x.to(tagger.device) for x in inputs))
    except Exception as error:  # whatever the code of a user raises
        given = ", ".join(f"{key} {value!r}" for key, value in options.items())
        given = f"the option {given}" if given else f"the inputs {', '.join(groups)}"
        raise UserError(
            f"{Path(network).stem} cannot run on {tagger.device} with {given}: {reason(error)}."
        ) from error
    scores = out if tagger.appended is None else out[0]
    if tuple(scores.shape) != (2, len(tagger.classes)):
        raise UserError(
            f"{Path(network).stem} gives {tuple(scores.shape)} for two jets, "
            f"not the {len(tagger.classes)} outputs per jet that the data config asks for."
        )


class Tagger:
    """A trained network with the preprocessing of its data config.

    Parameters
    ----------
    model : torch.nn.Module
        Called as weaver calls it, returns logits, or targets. Put in eval mode.
    data_config : weaver.utils.data.config.DataConfig
    device : str or torch.device

    Attributes
    ----------
    model, data_config, device
    classes : list of str
        Names of the columns of the scores: the classes, or the targets of a regression.
    branches : set of str
        What jets must have.
    kinds : dict of str to tuple
        See :class:`jetzoo.data_config.Inputs`.
    is_regression : bool
        Whether the scores are targets of a regression instead of probabilities.
    appended : int or None
        Width of the embedding, if the network gives one.
    """

    def __init__(self, model, data_config, device="cpu"):
        self.device = torch.device(device)
        self.model = model.to(self.device).eval()
        self.data_config = data_config
        self.classes = outputs(data_config)
        self.is_regression = is_regression(data_config)
        self.appended = getattr(model, "appended", None)
        self.loaded = None, None  # the network of `load`, and the arguments
        self._inputs = Inputs(data_config)
        self.branches, self.kinds = self._inputs.branches, self._inputs.kinds

    @property
    def arguments(self):
        """Arguments of :func:`load` that make this tagger again, tuple; else None."""
        model, arguments = self.loaded
        return arguments if model is self.model else None

    def inputs(self, jets):
        """Build the inputs of the network with weaver's own preprocessing.

        Parameters
        ----------
        jets : ak.Array of records, (num_jets,)
            With the raw branches of the data config (``part_px``, ...); left as they are. The
            selection of the data config is not applied.

        Returns
        -------
        dict of ndarray, float32, (num_jets, num_variables, length)
            One entry per input group: ``pf_points``, ``pf_features``, ``pf_vectors``, ``pf_mask``.
            Particles beyond ``length`` are dropped. weaver makes numbers of NaN and infinite ones;
            :meth:`predict` does not give scores to such jets.

        Raises
        ------
        UserError
            If branches are missing, or do not hold one number for each jet or each of its
            particles; the message names them.
        """
        return self._inputs(jets)

    def columns(self, jets):
        """The raw branches of jets that the network needs, checked.

        See :meth:`jetzoo.data_config.Inputs.columns`.
        """
        return self._inputs.columns(jets)

    def predict(self, jets, batch_size=512, progress=None):
        """Tag jets.

        Parameters
        ----------
        jets : ak.Array of records, (num_jets,)
            As for :meth:`inputs`.
        batch_size : int
        progress : tqdm.tqdm, optional
            Bar to advance, in jets.

        Returns
        -------
        ndarray, float32, (num_jets, num_classes)
            Probabilities, or predicted targets, in the order of ``classes``. NaN for jets with a
            value that is NaN or infinite.

        Raises
        ------
        UserError
            As :meth:`inputs`.
        """
        return self.outputs(jets, batch_size, progress)[:, : len(self.classes)]

    __call__ = predict

    def embed(self, jets, batch_size=512, progress=None):
        """Embed jets: the normalised class token, from which the last layer makes the scores.

        Arguments and errors are those of :meth:`predict`. The network must have been built with the
        option ``embedding``, as in ``jetzoo.load("ParT_full", embedding=True)``.

        Returns
        -------
        ndarray, float32, (num_jets, embed_dim)
        """
        if self.appended is None:
            raise UserError("The network gives no embedding: load it with the option embedding.")
        return self.outputs(jets, batch_size, progress)[:, len(self.classes) :]

    def outputs(self, jets, batch_size=512, progress=None):
        """All that the network gives: what :meth:`predict` gives, followed by any embedding.

        Arguments and errors are those of :meth:`predict`.

        Returns
        -------
        ndarray, float32, (num_jets, num_classes + embed_dim)
        """
        columns = self.columns(jets)
        size = max(batch_size, tables.CHUNK)
        found = [
            self.answer(*self.prepare(columns[start : start + size]), batch_size, progress)
            for start in range(0, max(len(columns), 1), size)
        ]
        return np.concatenate(found)

    def prepare(self, jets):
        """What comes before the network, for as many jets as fit into the memory.

        Parameters
        ----------
        jets : ak.Array of records, (num_jets,)
            As for :meth:`inputs`.

        Returns
        -------
        good : ndarray of bool, (num_jets,)
            Whether all numbers of a jet are finite.
        inputs : tuple of ndarray, float32, (good.sum(), num_variables, length)
            Of the good jets; none if there are none.
        """
        columns = self.columns(jets)
        good = finite(columns)
        if not good.any():
            return good, ()
        # weaver would warn of each branch with a NaN, and make a number of it.
        columns = columns if good.all() else columns[good]
        return good, tuple(self._inputs.build(columns).values())

    @torch.inference_mode()
    def answer(self, good, inputs, batch_size=512, progress=None):
        """What the network gives, from what :meth:`prepare` gave; else as :meth:`outputs`."""
        width = len(self.classes) + (self.appended or 0)
        found = np.full((len(good), width), np.nan, np.float32)
        rows = np.flatnonzero(good)
        for start in range(0, len(rows), batch_size):
            batch = slice(start, start + batch_size)
            out = self.model(*(torch.from_numpy(x[batch]).to(self.device) for x in inputs))
            logits, *embedding = [out] if self.appended is None else out
            parts = [self.scores(logits), *embedding]
            found[rows[batch]] = np.hstack([x.float().numpy(force=True) for x in parts])
            if progress is not None:
                progress.update(len(rows[batch]))
        if progress is not None:
            progress.update(len(good) - len(rows))
        return found

    def scores(self, logits):
        """What the network gives, (B, num_classes), to probabilities, or to targets as they are."""
        return logits.float() if self.is_regression else logits.float().softmax(1)
