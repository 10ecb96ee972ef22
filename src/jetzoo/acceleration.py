"""The conductor of inference: freeze, fold, put into int8, lower to kernels, in this order.

:func:`accelerate` is ``jetzoo.accelerate``.
"""

import copy
import logging

import torch
from torch import nn

from jetzoo import UserError

from .engine import stock
from .engine.folding import fold, freeze
from .engine.forms import forms_of
from .engine.proof import prove
from .int8.quantize import check_device, check_method, quantize
from .int8.tuning import fine_tune as fine_tuned
from .native import part as native_part
from .native.calls import serial_after_fork
from .nn.head import split_embedding

logger = logging.getLogger("jetzoo")

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.float32}


def accelerate(
    model, precision="fp32", device=None, calibration=None, method="static", fine_tune=False
):
    """Rewrite a network for the fastest inference with the same answers.

    Parameters
    ----------
    model : nn.Module
        A network of the zoo, or one of weaver-core's own, alone or in a wrapper; see
        :mod:`jetzoo.engine.stock`. It is read now and left as it is: later changes of its weights
        do not change what is returned.
    precision : {"fp32", "bf16", "int8"}
        Of the matrix products. Kinematics, norms and softmax stay in float32.
    device : str or torch.device, optional
        By default that of the model.
    calibration : tuple of Tensor, iterable or DataLoader, optional
        Jets for int8, see :func:`jetzoo.int8.quantize.quantize`; for weaver's own networks what
        they are called with.
    method : {"static", "dynamic", "weight-only"}
        Of int8.
    fine_tune : bool
        Fine-tune the network for int8 first, see :func:`jetzoo.int8.tuning.fine_tune`.

    Returns
    -------
    Accelerated
        Called as the network itself, mostly ``(points, features, lorentz_vectors, mask) -> logits
        (B, num_classes)``. Batch sizes and lengths may change from call to call. If the engine does
        not know the network, this runs a copy of it as it is, and a warning is logged.

    Raises
    ------
    ValueError
        If the precision is unknown.
    UserError
        If int8 is not possible as asked for.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision is one of {', '.join(PRECISIONS)}, not {precision!r}")
    if precision == "int8":
        check_method(method)
        check_device(device or next(model.parameters()).device)
    frozen = freeze(model, device)
    if stock.find(frozen):
        if fine_tune:
            raise UserError("Fine-tuning for int8 takes networks of the zoo, not weaver's own.")
        network = _stock(frozen, precision)
    elif precision == "int8" and fine_tune:
        if calibration is None:
            raise UserError("Fine-tuning for int8 needs jets: give calibration=.")
        return splitting(lower(fine_tuned(frozen, calibration, method)), frozen)
    else:
        network = fold(frozen, PRECISIONS[precision])
        if network is None:
            network = frozen
            if precision != "int8":
                name = type(frozen).__name__
                logger.warning("no fast form of %s: it runs as it is, in float32", name)
    if precision == "int8":
        network = quantize(network, calibration, method)
    return splitting(lower(network), frozen)


def splitting(accelerated, network):
    """An accelerated network with the second output of the network that it stands for."""
    accelerated.appended = getattr(network, "appended", None)
    return accelerated


def _stock(frozen, precision):
    """A network with some of weaver's own in it, which must prove itself in float32 first."""
    name = type(frozen).__name__
    try:
        network = stock.rewrite(frozen)
        prove(frozen, lower(network))
    except stock.Unsupported as error:
        if precision == "int8":
            raise UserError(f"int8 is not possible for {name}: {error}.") from error
        logger.warning("no fast form of %s: %s; it runs as it is, in float32", name, error)
        return frozen
    return stock.rewrite(frozen, PRECISIONS[precision]) if precision == "bf16" else network


def counterpart(model):
    """A network with modules of this project in place of weaver's: to look into and to export.

    They are those of the zoo, or for options that the zoo does not have those of the engine
    (:class:`jetzoo.engine.variants.VariantTransformer`); the logits are the same.

    Parameters
    ----------
    model : nn.Module
        Left as it is.

    Returns
    -------
    nn.Module
        ``model`` itself if there is none of weaver's in it.

    Raises
    ------
    UserError
        If one of them has an option that neither has.
    """
    if not stock.find(model):
        return model
    frozen = freeze(model)
    try:
        twin = stock.rewrite(frozen, None)
        prove(frozen, twin)
    except stock.Unsupported as error:
        name = type(frozen).__name__
        raise UserError(f"{name} cannot be looked into: {error}.") from error
    return twin


def traceable(model):
    """A network with the same logits that PyTorch can trace, in place of one of weaver's.

    Parameters
    ----------
    model : nn.Module
        Left as it is.

    Returns
    -------
    nn.Module
        The :func:`counterpart`; where there is none, ``model`` itself.
    """
    try:
        return counterpart(model)
    except UserError:
        return model


def lower(network):
    """Hand a folded network to this project's own kernels where they can run it.

    Parameters
    ----------
    network : nn.Module
        Folded, or a :class:`jetzoo.int8.quantize.QuantizedNetwork`.

    Returns
    -------
    Accelerated
    """
    engine = getattr(network, "engine", network)
    if forms := forms_of(engine):
        # In a copy, whose forms have the kernels as their core.
        lowered = {id(form.core): lower(form.core) for form in forms}
        return Accelerated(network, copy.deepcopy(engine, lowered))
    core = getattr(engine, "network", None)
    if not hasattr(core, "cls_mixers") or core.cls_token.is_cuda:
        return Accelerated(network)
    reason = native_part.obstacle(core)
    if reason is None:
        return Accelerated(network, native_part.NativePart(core).eval())
    logger.info("ParT runs in PyTorch, not in the kernels for CPUs: %s", reason)
    return Accelerated(network)


class Accelerated(nn.Module):
    """A network rewritten for inference, in eval mode and without gradients.

    Parameters
    ----------
    network : nn.Module
        Folded, or in int8.
    kernels : nn.Module, optional
        The same network with this project's own kernels, which then runs in its place.

    Attributes
    ----------
    network, kernels
    is_int8 : bool
    appended : int or None
        Width of the embedding, if it is a second output.
    """

    appended = None

    def __init__(self, network, kernels=None):
        super().__init__()
        self.network = network
        self.kernels = kernels
        self.is_int8 = hasattr(network, "method")
        super().train(False)

    def train(self, mode=True):
        """Only ``train(False)``, which is ``eval()``, is possible."""
        if mode:
            raise UserError("An accelerated network cannot be trained: train the network itself.")
        return super().train(mode)

    def _apply(self, function, *arguments, **options):
        """What ``to``, ``half`` and the like do; refused if it changes device or dtype."""
        tensor = next(x for x in (*self.parameters(), *self.buffers()) if x.is_floating_point())
        probe = function(tensor.new_empty(0))
        if (probe.device, probe.dtype) != (tensor.device, tensor.dtype):
            raise UserError(
                f"An accelerated network stays in its precision on {tensor.device}: accelerate the "
                "network anew with precision= and device=."
            )
        return super()._apply(function, *arguments, **options)

    def forward(self, *inputs, **named):
        """What the network takes, to what it gives."""
        with torch.no_grad(), serial_after_fork():
            out = (self.network if self.kernels is None else self.kernels)(*inputs, **named)
            # A network that runs as it is has done so itself.
            return split_embedding(out, self.appended) if torch.is_tensor(out) else out
