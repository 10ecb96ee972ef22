"""The int8 file: a folded network in few bits, with all that is needed to rebuild it.

A file may come from elsewhere, so nothing in it is taken on trust: it names a network of the zoo,
and never a file with code; its options are plain values, and the formulas of its data config are
only those that compute.
"""

import io
import math
import zipfile
from pathlib import Path

import torch

from jetzoo import UserError, data_config, repository, tables
from jetzoo.labels import outputs

from ..checkpoint import check_numbers
from ..engine import stock
from ..engine.folding import fold, freeze
from .layers import dense, layers_of, quantized
from .methods import METHODS
from .quantize import QuantizedNetwork, decode, matrices_of

FORMAT = "jetzoo int8 1"

# The fields of a file, with their types.
FIELDS = {
    "network": str,
    "options": dict,
    "data_config": dict,
    "method": str,
    "layers": dict,
    "layout": dict,
    "tensors": dict,
}

# What a tensor may be of, and how large a number an option may be: no published one is above 512.
KINDS = ("float32", "float16", "bfloat16", "int8", "uint8", "int32", "int64", "bool")
LARGEST_OPTION = 2**13

# Options that change nothing of a trained network.
NEUTRAL = ("seed", "use_amp", "compile_model", "fast", "quantize", "loss")


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
        Name of a file in ``networks/``, or a path, of which the name is kept.
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
        "network": Path(network).stem,
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
        What the user takes it for; checked against the file. Needed if the network is none of the
        zoo.
    options : dict, optional
        ``--network-option`` pairs, checked against the file.

    Returns
    -------
    network : QuantizedNetwork
    data_config : weaver.utils.data.config.DataConfig

    Raises
    ------
    UserError
        If it is not such a file, is damaged or holds code, or was made of something else than is
        asked for.
    """
    if content.get("format") != FORMAT:
        raise UserError(f"{path} is not an int8 network that this version of jetzoo can read.")
    with tables.about(path):
        _check_fields(content)
    network = _network(content["network"], path, network)
    for key, value in (options or {}).items():
        kept = content["options"]
        if key not in NEUTRAL and (key not in kept or _plain(kept[key]) != _plain(value)):
            raise UserError(f"{path} was made with the options {kept}, not with {key} {value!r}.")
    with tables.about(path):
        found = data_config.from_options(content["data_config"])
    if config is not None:
        given = data_config.read(config)
        if (given.input_dicts, outputs(given)) != (found.input_dicts, outputs(found)):
            raise UserError(f"{path} was made with other inputs or classes than {config}.")
    try:
        restored = _restore(content, found, network)
    except UserError as error:
        raise UserError(f"{path} is not a whole int8 network: {error}") from error
    except Exception as error:  # any field may be anything
        reason = repository.reason(error)
        raise UserError(f"{path} is not a whole int8 network: {reason}.") from error
    check_numbers(restored, path)
    return restored, found


def _check_fields(content):
    """Raise a :class:`jetzoo.UserError` unless all fields are there and of their types."""
    for name, kind in FIELDS.items():
        if name not in content:
            raise UserError(f"The int8 network lacks the field {name!r}.")
        if not isinstance(content[name], kind):
            raise UserError(f"The field {name!r} of the int8 network is no {kind.__name__}.")
        if kind is dict and not all(isinstance(key, str) for key in content[name]):
            raise UserError(f"The field {name!r} of the int8 network has keys that are no texts.")
    if content["method"] not in METHODS:
        raise UserError(f"The int8 network is of an unknown method, {content['method']!r}.")
    for key, value in content["options"].items():
        if key not in NEUTRAL and not _is_plain(value):
            raise UserError(f"The option {key!r} of the int8 network is no plain value.")
    for name, zero_point in content["layers"].items():
        if type(zero_point) is not int or not 0 <= zero_point <= 255:
            raise UserError(f"The zero point of {name} is not one of 0 ... 255.")
    for kind, flat in content["tensors"].items():
        plain = torch.is_tensor(flat) and flat.layout == torch.strided and flat.is_contiguous()
        if kind not in KINDS or not plain or flat.dtype != getattr(torch, kind) or flat.ndim != 1:
            raise UserError(f"The numbers of type {kind!r} of the int8 network are damaged.")
    _check_layout(content["layout"], content["tensors"])


def _is_plain(value):
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    if isinstance(value, int):
        return abs(value) <= LARGEST_OPTION
    return value is None or isinstance(value, (str, float))


def _plain(value):
    """A value with tuples in place of lists, which mean the same to a network."""
    return tuple(map(_plain, value)) if isinstance(value, (list, tuple)) else value


def _check_layout(layout, tensors):
    """Let the shapes take up all numbers of each type, and no more."""
    left = {kind: len(flat) for kind, flat in tensors.items()}
    for name, entry in layout.items():
        good = isinstance(entry, (list, tuple)) and len(entry) == 2
        good = good and isinstance(entry[0], str) and entry[0] in left
        shape = entry[1] if good else None
        good = isinstance(shape, (list, tuple)) and len(shape) <= 8
        if not good or not all(type(n) is int and 0 <= n < 2**31 for n in shape):
            raise UserError(f"The shape of {name} in the int8 network is damaged.")
        left[entry[0]] -= math.prod(shape)
    if any(left.values()):
        raise UserError("The int8 network has more or fewer numbers than its shapes say.")


def _network(name, path, given):
    """The network of a file: what the user gave if there is something, else one of the zoo."""
    # Files of before name a file in networks/ of where they were made.
    stem = Path(name).stem
    if given is not None:
        if Path(given).stem != stem:
            raise UserError(f"{path} is a {stem}, not a {given}.")
        return given
    if stem not in repository.networks() or Path(name).parent.name not in ("", "networks"):
        raise UserError(
            f"{path} was made of {name!r}, which is no network of the zoo: give its network file, "
            "the int8 network as checkpoint, and its data config."
        )
    return stem


def _method(content, name):
    """Method of a layer: static networks have some layers with a scale per jet."""
    static = content["method"] == "static"
    fixed = any(
        key.startswith(f"{name}.") and key.endswith("input_scale") for key in content["layout"]
    )
    return "dynamic" if static and not fixed else content["method"]


def _restore(content, config, network):
    take = {kind: slicer(values) for kind, values in content["tensors"].items()}
    state = {name: take[kind](shape) for name, (kind, shape) in content["layout"].items()}
    options = {key: value for key, value in content["options"].items() if key not in NEUTRAL}
    model, _ = repository.build_network(network, config, **options)
    frozen = freeze(model, "cpu")
    engine = stock.rewrite(frozen) if stock.find(frozen) else fold(frozen)
    engine = frozen if engine is None else engine
    matrices = matrices_of(engine)
    rounded = {k: v for k, v in state.items() if k.removesuffix(".scale") in matrices}
    known = layers_of(engine)
    for name, zero_point in content["layers"].items():
        if name not in known:
            raise UserError(f"It has a layer {name}, which {network} lacks.")
        new = quantized(known[name], _method(content, name))
        product = dense(new)
        product.input_zero_point = zero_point
        for key, value in state.items():  # the correction has given a bias to layers without
            if key.startswith(f"{name}.") and key.endswith(".bias"):
                _check_like(key, value, product.scale)
                product.bias = value
        engine.set_submodule(name, new)
    for name in rounded:
        del state[name]
    for name, value in engine.state_dict().items():
        if name in state:
            _check_like(name, state[name], value)
    engine.load_state_dict(state | decode(rounded))
    for name in content["layers"]:
        scale = dense(engine.get_submodule(name)).input_scale
        if scale is not None and not 0 < scale.item() < math.inf:
            raise UserError(f"The range of {name} is no positive number.")
    return QuantizedNetwork(engine, content["method"], list(content["layers"]), rounded).eval()


def _check_like(name, value, like):
    if value.shape != like.shape or value.dtype != like.dtype:
        raise UserError(
            f"{name} is {value.dtype} {tuple(value.shape)} instead of {like.dtype} "
            f"{tuple(like.shape)}."
        )


def slicer(flat):
    """A function that cuts the next tensor of a shape from a flat one."""
    start = 0

    def take(shape):
        nonlocal start
        stop = start + math.prod(shape)
        start, first = stop, start
        return flat[first:stop].view(shape).clone()

    return take
