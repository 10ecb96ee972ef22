"""From a folded network to the same in int8: its layers are replaced, one method for all.

Weights are int8, symmetric, with one scale per output channel. Activations are

static
    uint8 with one scale and zero point per layer, from calibration jets;
dynamic
    int8 with one scale per token, found at run time; no calibration;
weight-only
    float32.

Norms, softmax, kinematics and the residual stream stay in float32, and so do the layers that read
the physical inputs or give the outputs (:func:`stays_float`).
"""

import torch
from torch import nn

from jetzoo import UserError

from ..engine.forms import takes_usual
from .calibration import calibration_batches, choose_range, observe
from .layers import dense, layers_of, quantized, round_rows
from .methods import METHODS, OBSERVERS


def stays_float(name, layer):
    """Whether a layer stays in float32: fewer than 16 inputs or outputs.

    These read the physical inputs (logarithms and angles of very different spread), or give the
    pair bias or the logits, where an error is not averaged over many channels. They have 1% of the
    arithmetic and a quarter of the error: ``benchmarks/quantization.py --sensitivity``.
    """
    return min(layer.weight.shape[0], layer.weight[0].numel()) < 16


class QuantizedNetwork(nn.Module):
    """A network in int8, called as the network it was made from.

    Attributes
    ----------
    engine : nn.Module
        The rewritten network, with :class:`QuantizedDense` in it.
    method : str
    layers : list of str
        Names within ``engine`` of what is in int8.
    rounded : dict of str to Tensor
        Other matrices of ``engine`` as they are saved; see :func:`encode`.
    """

    def __init__(self, engine, method, layers, rounded):
        super().__init__()
        self.engine = engine
        self.method = method
        self.layers = layers
        self.rounded = rounded

    def forward(self, *inputs, **named):
        """What the network takes, to what it gives."""
        with torch.no_grad():
            return self.engine(*inputs, **named)


def quantize(folded, calibration=None, method="static", *, keep=None, observer="percentile"):
    """Put a folded network into int8; see :func:`jetzoo.accelerate`.

    Parameters
    ----------
    folded : nn.Module
        See :func:`jetzoo.engine.folding.fold`; its layers are replaced in place.
    calibration : tuple of Tensor, iterable or DataLoader, optional
        Jets like those to tag, of which the first 512 are used: the inputs of the network, or
        an iterable of such tuples, or of weaver's batches. Needed for ``"static"``; the other
        methods are more exact with it, see :meth:`QuantizedDense.correct`.
    method : {"static", "dynamic", "weight-only"}
    keep : callable, optional
        ``keep(name, layer)`` says which layers stay in float32. Default: :func:`stays_float`.
    observer : {"percentile", "mse"}
        How the range of the static method is chosen; see :func:`choose_range`.

    Returns
    -------
    QuantizedNetwork

    Raises
    ------
    UserError
        If the method, the observer or the device is not supported, or if there are no calibration
        jets, or some that do not fit the network or are not finite.
    """
    check_method(method, observer)
    check_device(next(x for x in (*folded.parameters(), *folded.buffers())).device)
    batches = None
    if calibration is not None:
        batches = calibration_batches(calibration, usual=takes_usual(folded))
    elif method == "static":
        raise UserError(
            "Static int8 needs jets to calibrate with: give calibration=, or take method 'dynamic'."
        )
    keep = keep or stays_float
    layers = {name: layer for name, layer in layers_of(folded).items() if not keep(name, layer)}
    inputs = observe(folded, layers, batches) if batches else {}
    return replace(folded, layers, method, inputs, observer)


def check_method(method, observer="percentile"):
    """Raise a :class:`jetzoo.UserError` unless int8 has the method and the observer."""
    for what, value, known in (("method", method, METHODS), ("observer", observer, OBSERVERS)):
        if value not in known:
            raise UserError(f"The {what} of int8 is one of {', '.join(known)}, not {value!r}.")


def check_device(device):
    """Raise a :class:`jetzoo.UserError` unless the device is the CPU."""
    if torch.device(device).type != "cpu":
        raise UserError(
            f"int8 runs on the CPU, not on {torch.device(device).type!r}; for a GPU take precision "
            "'bf16'."
        )


def replace(engine, layers, method, inputs=None, observer="percentile"):
    """Put layers of an engine into int8, in place.

    Parameters
    ----------
    engine : nn.Module
    layers : dict of str to nn.Module
        Some of :func:`layers_of`.
    method, observer : str
    inputs : dict of str to LayerInputs, optional
        Of :func:`observe`.

    Returns
    -------
    QuantizedNetwork
    """
    unbounded = unbounded_layers(engine)
    for name, layer in layers.items():
        # The largest input of the calibration is no bound for longer jets.
        own = "dynamic" if method == "static" and name in unbounded else method
        new = quantized(layer, own)
        if inputs:
            dense(new).correct(layer.weight.flatten(1), inputs[name].mean)
        if own == "static":
            dense(new).set_range(*choose_range(inputs[name].values, observer))
        engine.set_submodule(name, new)
    rounded = encode(matrices_of(engine))
    engine.load_state_dict(decode(rounded), strict=False)
    return QuantizedNetwork(engine, method, list(layers), rounded).eval()


def unbounded_layers(engine):
    """Names of the layers whose inputs grow with the number of particles.

    Modules name them in ``unbounded_inputs``.
    """
    return {
        f"{name}.{layer}" if name else layer
        for name, module in engine.named_modules()
        for layer in getattr(module, "unbounded_inputs", ())
    }


def matrices_of(engine):
    """List the matrices that are no layers of their own, but are kept in few bits.

    Modules name them in ``int8_matrices`` (8 bits) and ``half_matrices`` (half precision). They
    multiply in float32.

    Parameters
    ----------
    engine : nn.Module

    Returns
    -------
    dict of str to (Tensor, bool)
        By name within the engine, and whether half precision is asked for.
    """
    return {
        f"{name}.{matrix}" if name else matrix: (_tensor(module, matrix), half)
        for name, module in engine.named_modules()
        for attribute, half in (("int8_matrices", False), ("half_matrices", True))
        for matrix in getattr(module, attribute, ())
    }


def _tensor(module, path):
    *names, last = path.split(".")
    return getattr(module.get_submodule(".".join(names)), last).detach()


def encode(matrices):
    """Round matrices to few bits.

    Parameters
    ----------
    matrices : dict of str to (Tensor (..., in), bool)
        See :func:`matrices_of`.

    Returns
    -------
    dict of str to Tensor
        float16, or int8 with a scale (..., 1) per row named ``name.scale``.
    """
    encoded = {}
    for name, (value, half) in matrices.items():
        if half:
            encoded[name] = value.half()
            continue
        integers, scale = round_rows(value.flatten(0, -2))
        encoded[name] = integers.to(torch.int8).view_as(value)
        encoded[f"{name}.scale"] = scale.view(*value.shape[:-1], 1)
    return encoded


def decode(encoded):
    """What :func:`encode` was given, rounded."""
    decoded = {}
    for name, value in encoded.items():
        if value.dtype == torch.int8:
            decoded[name] = value * encoded[f"{name}.scale"]
        elif value.dtype == torch.float16:
            decoded[name] = value.float()
    return decoded
