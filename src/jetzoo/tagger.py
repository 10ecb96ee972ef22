"""Trained networks in Python: loading one, and tagging jets and files of jets."""

from pathlib import Path

import awkward as ak
import numpy as np
import torch
from tqdm import tqdm

from jetzoo import UserError, models, tables

from .acceleration import accelerate, lower
from .checkpoint import load_weights
from .checkpoint import read as read_checkpoint
from .data_config import Inputs, add_variables, dependencies
from .data_config import read as read_data_config
from .int8 import file as int8_file
from .int8.quantize import check_device
from .metrics.predictions import write_predictions
from .repository import network_module


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
    network, checkpoint, data_config = resolve(network, checkpoint, data_config)
    content = read_checkpoint(checkpoint)
    if "format" in content:
        check_device(device or "cpu")
        model, config = int8_file.read(content, checkpoint, network, data_config, options)
        return Tagger(lower(model), config)
    tagger = untrained(network, data_config, device, **options)
    load_weights(tagger.model, content, checkpoint, network)
    if fast:
        tagger.model = accelerate(tagger.model)
    return tagger


def resolve(network, checkpoint=None, data_config=None):
    """Complete what a user gave in place of a trained network.

    Parameters
    ----------
    network : str or Path
        With neither of the others: the name of a model card, or the path of an int8 network.
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
    if checkpoint is None or data_config is None:
        raise UserError("A checkpoint and its data config go together.")
    return network, checkpoint, data_config


def untrained(network, data_config, device=None, **options):
    """A network of random weights, as a tagger; arguments and errors are those of :func:`load`."""
    if "for_inference" in options:
        raise UserError("for_inference is for export; a Tagger turns logits into scores itself.")
    config = read_data_config(data_config)
    try:
        model, _ = network_module(network).get_model(config, **options)
    except ValueError as error:
        raise UserError(str(error)) from error
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return Tagger(model, config, device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).split("\n")[0]
        raise UserError(f"The device {device!r} cannot be used: {reason}") from error


class Tagger:
    """A trained network with the preprocessing of its data config.

    Parameters
    ----------
    model : torch.nn.Module
        Called as weaver calls it, returns logits. Put in eval mode.
    data_config : weaver.utils.data.config.DataConfig
    device : str or torch.device

    Attributes
    ----------
    model, data_config, device
    classes : list of str
        Names of the columns of the scores.
    branches : set of str
        What jets must have.
    """

    def __init__(self, model, data_config, device="cpu"):
        self.device = torch.device(device)
        self.model = model.to(self.device).eval()
        self.data_config = data_config
        self.classes = list(data_config.label_value)
        self._inputs = Inputs(data_config)
        self.branches = self._inputs.branches

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
            Particles beyond ``length`` are dropped.

        Raises
        ------
        UserError
            If branches are missing; the message names them.
        """
        return self._inputs(jets)

    @torch.inference_mode()
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
            Probabilities, in the order of ``classes``.
        """
        scores = [np.empty((0, len(self.classes)), np.float32)]
        for start in range(0, len(jets), batch_size):
            inputs = self.inputs(jets[start : start + batch_size])
            logits = self.model(*(torch.from_numpy(x).to(self.device) for x in inputs.values()))
            scores.append(logits.float().softmax(dim=1).numpy(force=True))
            if progress is not None:
                progress.update(len(scores[-1]))
        return np.concatenate(scores)

    __call__ = predict


def predict_files(tagger, files, output, batch_size=512):
    """Tag the jets of files and write the scores as weaver does.

    Truth labels, and those observers of the data config that all files have, are written too.

    Parameters
    ----------
    tagger : Tagger
    files : sequence of str or Path
        ROOT or parquet files with the branches of the data config.
    output : str or Path
        ``.root`` or ``.parquet``; appears when complete.
    batch_size : int

    Returns
    -------
    has_labels : bool
        False if the files lack the branches of the labels, so that only scores were written.

    Raises
    ------
    UserError
        If a file cannot be read or misses branches, before anything is computed.
    """
    output = tables.check_format(output)
    config = tagger.data_config
    total, common = 0, None
    for path in files:
        branches, entries = tables.describe(path, config.treename)
        missing = sorted(tagger.branches - set(branches))
        if missing:
            raise UserError(f"{path} has no branch {', '.join(missing)}.")
        total += entries
        common = set(branches) if common is None else common & set(branches)
    if total == 0:
        raise UserError("There are no jets to tag in the files.")
    tables.writable_folder(output.parent)

    (label,) = config.label_names
    extra = [
        name
        for name in (label, *config.observer_names)
        if dependencies(config, [name])[0] <= common
    ]
    branches, new_variables = dependencies(config, extra)
    scores, columns = [], {name: [] for name in extra}
    with tqdm(total=total, unit="jet", desc="predict") as progress:
        for path in files:
            jets = tables.read(path, tagger.branches | branches, config.treename)
            scores.append(tagger.predict(jets, batch_size, progress))
            jets = add_variables(jets[sorted(branches)], new_variables) if extra else jets
            for name in extra:
                columns[name].append(jets[name])
    columns = {name: ak.concatenate(chunks) for name, chunks in columns.items()}
    labels = columns.pop(label, None)
    if labels is not None:
        labels = labels.to_numpy()
    write_predictions(output, tagger.classes, np.concatenate(scores), labels, columns)
    return labels is not None
