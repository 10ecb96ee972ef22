"""The conductor of inference: freeze, fold, put into int8, lower to kernels, in this order.

:func:`accelerate` is ``jetzoo.accelerate``.
"""

import logging

import torch
from torch import nn

from jetzoo import UserError

from .engine import stock
from .engine.folding import fold, freeze
from .int8.calibration import first_jets
from .int8.quantize import check_device, check_method, quantize
from .int8.tuning import fine_tune as fine_tuned
from .native import part as native_part
from .native.calls import serial_after_fork
from .nn.inputs import check_inputs
from .repository import reason

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
        Called as the network itself: ``(points, features, lorentz_vectors, mask) -> logits
        (B, num_classes)``; weaver's own networks and their wrappers keep the arguments that they
        have. Batch sizes and lengths may change from call to call. If the engine does not know the
        network, this runs a copy of it as it is, and a warning is logged.

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
        return _stock(frozen, precision, calibration, method)
    if precision == "int8" and fine_tune:
        if calibration is None:
            raise UserError("Fine-tuning for int8 needs jets: give calibration=.")
        return lower(fine_tuned(frozen, calibration, method))
    network = fold(frozen, PRECISIONS[precision])
    if network is None:
        network = frozen
        if precision != "int8":
            name = type(frozen).__name__
            logger.warning("no fast form of %s: it runs as it is, in float32", name)
    if precision == "int8":
        network = quantize(network, calibration, method)
    return lower(network)


def _stock(frozen, precision, calibration, method):
    """A network with some of weaver's own in it, which must prove itself in float32 first."""
    try:
        network = stock.rewrite(frozen)
        for form in stock.forms_of(network):
            form.engine = lower(form.engine)
        stock.prove(frozen, network)
    except stock.Unsupported as error:
        name = type(frozen).__name__
        if precision == "int8":
            raise UserError(f"int8 is not possible for {name}: {error}.") from error
        logger.warning("no fast form of %s: %s; it runs as it is, in float32", name, error)
        return AcceleratedStock(frozen)
    if precision == "fp32":
        return AcceleratedStock(network)
    inputs = _engine_inputs(network, calibration) if precision == "int8" else []
    network = stock.rewrite(frozen, PRECISIONS[precision])
    for i, form in enumerate(stock.forms_of(network)):
        if precision == "int8":
            form.engine = quantize(form.engine, inputs[i] if inputs else None, method)
        form.engine = lower(form.engine)
    return AcceleratedStock(network)


def _engine_inputs(network, calibration):
    """What each form of a rewritten network hands to its engine on calibration jets."""
    if calibration is None:
        return []
    seen, handles = [], []
    for form in stock.forms_of(network):
        given = []
        seen.append(given)
        handles.append(
            form.engine.register_forward_pre_hook(lambda _, inputs, to=given: to.append(inputs))
        )
    try:
        with torch.no_grad():
            for batch in first_jets(calibration):
                network(*batch)
    except (TypeError, RuntimeError, ValueError) as error:
        raise UserError(f"The calibration jets do not fit the network: {reason(error)}.") from error
    finally:
        for handle in handles:
            handle.remove()
    return seen


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
    core = getattr(getattr(network, "engine", network), "network", None)
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
        The same network in this project's own kernels, which then run in its place.

    Attributes
    ----------
    network, kernels
    is_int8 : bool
    """

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

    def forward(self, points, features, lorentz_vectors, mask):
        """(B, 2, N), (B, C, N), (B, 4, N) and (B, 1, N) to (B, num_classes)."""
        if self.kernels is not None:  # which check their inputs
            return self.kernels(points, features, lorentz_vectors, mask)
        check_inputs(points, features, lorentz_vectors, mask)
        with torch.no_grad(), serial_after_fork():
            return self.network(points, features, lorentz_vectors, mask)


class AcceleratedStock(Accelerated):
    """A network with some of weaver's own in it, called as it was."""

    def __init__(self, network):
        super().__init__(network)
        self.is_int8 = any(
            getattr(form.engine, "is_int8", False) for form in stock.forms_of(network)
        )

    def forward(self, *inputs, **named):
        """What the network takes, to what it gives."""
        with torch.no_grad():
            return self.network(*inputs, **named)
