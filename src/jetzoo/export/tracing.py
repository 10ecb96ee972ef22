"""Networks without a graph of their own as ONNX: what PyTorch traces of them."""

import io
import warnings
from unittest import mock

import onnx
import torch
from torch.overrides import TorchFunctionMode

from .. import UserError, repository
from ..acceleration import traceable
from ..nn.kinematics import azimuth


def trace(tagger, network, output, opset, options, weights):
    """Trace the padded form of a network.

    Parameters
    ----------
    tagger : jetzoo.tagger.Tagger
    network : str or Path
    output : str
        See :func:`jetzoo.export.export`.
    opset : int
    options : dict
        Of the network.
    weights : dict of str to Tensor
        State dict of the network as it was built.

    Returns
    -------
    onnx.ModelProto

    Raises
    ------
    UserError
        If PyTorch cannot write it.
    """
    config = tagger.data_config
    model, info = repository.build_network(network, config, **{**options, "for_inference": True})
    model.load_state_dict(weights)
    model = traceable(model)
    shapes = [info["input_shapes"][name] for name in info["input_names"]]
    # Two jets of more than one particle: sizes of 1 would become constants.
    ones = tuple(torch.ones(2, *(size or 128 for size in shape[1:])) for shape in shapes)
    name = output_name(tagger, output)
    axes = {k: x for k, x in info["dynamic_axes"].items() if k in info["input_names"]}
    file = io.BytesIO()
    # A failure would print the whole graph, and tracing warns of what is compared later.
    with mock.patch("torch._C._jit_onnx_log"), warnings.catch_warnings(), InFloat64():
        warnings.simplefilter("ignore")
        try:
            torch.onnx.export(
                Traced(model, output).eval().requires_grad_(False),
                ones,
                file,
                input_names=info["input_names"],
                output_names=[name],
                dynamic_axes={**axes, name: {0: "N"}},
                opset_version=opset,
                dynamo=False,
            )
        except Exception as error:  # whatever the code of a user raises
            raise UserError(
                f"{network} cannot be written in opset {opset}: {repository.reason(error)}."
            ) from error
    return onnx.load_from_string(file.getvalue())


class InFloat64(TorchFunctionMode):
    """Let graphs have in float64 what onnxruntime has in float32 only.

    weaver's features of pairs take arcs of angles and of large distances.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        composed = COMPOSED.get(func)
        if composed is not None and args[0].dtype == torch.float64:
            func = composed
        return func(*args, **(kwargs or {}))


COMPOSED = {
    torch.atan2: azimuth,
    torch.acos: lambda x: azimuth(((1 - x) * (1 + x)).sqrt(), x),
    torch.asinh: lambda x: x.sign() * (x.abs() + (x * x + 1).sqrt()).log(),
}


def output_name(tagger, output):
    """Name of an output in the file; what networks give for weaver is called as in its files."""
    if output != "probabilities":
        return output
    return "output" if tagger.is_regression else "softmax"


class Traced(torch.nn.Module):
    """A network whose graph keeps the inputs that it does not look at.

    Those of the zoo see to it themselves, for weaver's own export; one of a user may not.

    Parameters
    ----------
    network : nn.Module
        Gives probabilities.
    output : str
    """

    def __init__(self, network, output):
        super().__init__()
        self.network, self.output = network, output

    def forward(self, *inputs):
        """The inputs of a network to the output."""
        out, entered, logits = last_layer(self.network, inputs)
        if self.output != "probabilities":
            # NaN for the jets whose probabilities are.
            out = (entered if self.output == "embedding" else logits) + 0 * out[:, :1]
        for x in inputs:
            out = out[: x.shape[0]]
        return out


def last_layer(network, inputs):
    """Run a network and look at its last linear layer.

    Parameters
    ----------
    network : nn.Module
    inputs : sequence of Tensor

    Returns
    -------
    out : Tensor, (B, num_classes)
        What the network gives.
    entered : Tensor, (B, D), or None
        What enters the layer; None if there is no such layer.
    left : Tensor, (B, num_classes), or None
        What the layer gives.
    """
    seen = [(None, None)]

    def look(module, given, found):
        seen.append((given[0], found))

    layers = [module for module in network.modules() if isinstance(module, torch.nn.Linear)]
    hooks = [layer.register_forward_hook(look) for layer in layers]
    try:
        out = network(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return out, *seen[-1]
