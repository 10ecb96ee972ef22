"""The int8 file: a folded network in few bits, with all that is needed to rebuild it."""

import io
import math
import zipfile
from pathlib import Path

import torch

from jetzoo import UserError, data_config, repository, tables

from ..engine.folding import fold, freeze
from .layers import dense, quantized
from .quantize import QuantizedNetwork, decode, matrices_of

FORMAT = "jetzoo int8 1"


def save(quantized, path, network, config, options=None):
    """Write a quantized network with all that is needed to run it, as one file.

    The file holds plain tensors and names, so that ``torch.load(..., weights_only=True)`` reads it.

    Parameters
    ----------
    quantized : QuantizedNetwork
        Or what :func:`jetzoo.accelerate` made of it.
    path : str or Path
        Appears when complete.
    network : str
        Name of a file in ``networks/``, or a path.
    config : weaver.utils.data.config.DataConfig
    options : dict, optional
        The ``--network-option`` pairs of the training.
    """
    quantized = getattr(quantized, "network", quantized)
    state = quantized.engine.state_dict() | quantized.rounded
    # One tensor per type: a file with one per layer spends 5% of its size on their names.
    flat, layout = {}, {}
    for name, value in state.items():
        kind = str(value.dtype).removeprefix("torch.")
        flat.setdefault(kind, []).append(value.flatten())
        layout[name] = (kind, tuple(value.shape))
    content = {
        "format": FORMAT,
        "network": str(network),
        "options": dict(options or {}),
        "data_config": config.options,
        "method": quantized.method,
        "layers": {
            name: dense(quantized.engine.get_submodule(name)).input_zero_point
            for name in quantized.layers
        },
        "layout": layout,
        "tensors": {kind: torch.cat(values) for kind, values in flat.items()},
    }
    tables.writable_folder(Path(path).parent)
    plain = io.BytesIO()
    torch.save(content, plain)
    # A file of torch.save is a zip archive without compression; torch.load reads either kind.
    with (
        tables.atomic(path) as partial,
        zipfile.ZipFile(plain) as source,
        zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as target,
    ):
        for name in source.namelist():
            target.writestr(name, source.read(name))


def read(content, path, network=None, config=None, options=None):
    """Rebuild the network of a file of :func:`save`.

    Parameters
    ----------
    content : dict
        What :func:`jetzoo.checkpoint.read` found in the file.
    path : str or Path
        Of the file, for messages.
    network, config : str or Path, optional
        What the user takes it for; checked against the file.
    options : dict, optional
        ``--network-option`` pairs, checked against the file.

    Returns
    -------
    network : QuantizedNetwork
    data_config : weaver.utils.data.config.DataConfig

    Raises
    ------
    UserError
        If it is not such a file, or was made of something else than is asked for.
    """
    if content.get("format") != FORMAT:
        raise UserError(f"{path} is not an int8 network that this version of jetzoo can read.")
    if network is not None and Path(network).stem != Path(content["network"]).stem:
        raise UserError(f"{path} is a {Path(content['network']).stem}, not a {network}.")
    for key, value in (options or {}).items():
        if content["options"].get(key, value) != value:
            raise UserError(f"{path} was made with the options {content['options']}.")
    found = data_config.from_options(content["data_config"])
    if config is not None:
        given = data_config.read(config)
        if (given.input_dicts, given.label_value) != (found.input_dicts, found.label_value):
            raise UserError(f"{path} was made with other inputs or classes than {config}.")
    return _restore(content, found), found


def _restore(content, config):
    take = {kind: slicer(values) for kind, values in content["tensors"].items()}
    state = {name: take[kind](shape) for name, (kind, shape) in content["layout"].items()}
    module = repository.network_module(content["network"])
    model, _ = module.get_model(config, **content["options"])
    frozen = freeze(model, "cpu")
    engine = fold(frozen)
    engine = frozen if engine is None else engine
    matrices = matrices_of(engine)
    rounded = {k: v for k, v in state.items() if k.removesuffix(".scale") in matrices}
    for name, zero_point in content["layers"].items():
        new = quantized(engine.get_submodule(name), content["method"])
        dense(new).input_zero_point = zero_point
        for key, value in state.items():  # the correction has given a bias to layers without
            if key.startswith(f"{name}.") and key.endswith(".bias"):
                dense(new).bias = value
        engine.set_submodule(name, new)
    for name in rounded:
        del state[name]
    engine.load_state_dict(state | decode(rounded))
    return QuantizedNetwork(engine, content["method"], list(content["layers"]), rounded).eval()


def slicer(flat):
    """A function that cuts the next tensor of a shape from a flat one."""
    start = 0

    def take(shape):
        nonlocal start
        stop = start + math.prod(shape)
        start, first = stop, start
        return flat[first:stop].view(shape).clone()

    return take
