"""What layers are given on some jets, and the ranges of integers that follow."""

from dataclasses import dataclass

import torch
from torch import nn

from jetzoo import UserError

from ..repository import reason

# Jets to calibrate with: more change nothing (benchmarks/quantization.py --calibration).
CALIBRATION_JETS = 512

# What the percentile observer cuts off at each end.
PERCENTILE = 1e-4

# Values of a layer that the observers look at, of each call.
PER_CALL = 2**14


def first_jets(calibration, limit=CALIBRATION_JETS):
    """The first jets of what a user gave, as tuples of tensors, unchecked."""
    if isinstance(calibration, (tuple, list)) and any(map(torch.is_tensor, calibration)):
        calibration = [calibration]
    count = 0
    for batch in calibration:
        if isinstance(batch[0], dict):  # weaver's (inputs, labels, observers)
            batch = tuple(batch[0].values())
        yield tuple(x[: limit - count] if torch.is_tensor(x) else x for x in batch)
        count += len(batch[0])
        if count >= limit:
            return


def calibration_batches(calibration, limit=CALIBRATION_JETS, usual=True):
    """The first jets of what a user gave, as a list of tuples of the inputs.

    Parameters
    ----------
    calibration
        See :func:`jetzoo.int8.quantize.quantize`.
    limit : int
    usual : bool
        The network takes (points, features, lorentz_vectors, mask), which are checked here.

    Raises
    ------
    UserError
        If there are none, or some are not finite.
    """
    batches = []
    for batch in first_jets(calibration, limit):
        if usual:
            _check_usual(batch)
        batches.append(tuple(x.cpu() for x in batch))
    if not sum(len(batch[0]) for batch in batches):
        raise UserError("There are no jets to calibrate with.")
    return batches


def _check_usual(batch):
    shapes = [tuple(x.shape) for x in batch if torch.is_tensor(x) and x.ndim == 3]
    if len(shapes) != 4 or any((b, 1, n) != shapes[3] for b, _, n in shapes):
        raise UserError(
            "Calibration jets are the four inputs of a network, (B, C, N) and a mask, or "
            "batches of weaver's loader."
        )
    *inputs, mask = batch
    real = mask.bool()
    _check_finite(torch.stack([(x.isfinite() | ~real).flatten(1).all(1) for x in inputs]).all(0))


def _check_finite(finite):
    """Raise a :class:`jetzoo.UserError` unless all jets (B,) are finite."""
    if not finite.all():
        raise UserError(
            f"{int((~finite).sum())} of {len(finite)} calibration jets have values that are NaN or "
            "infinite: clean the file, or give another one."
        )


@dataclass
class LayerInputs:
    """Inputs of a layer on calibration jets.

    Attributes
    ----------
    values : Tensor, (S,)
        Some of them, of all channels.
    mean : Tensor, (in,)
    """

    values: torch.Tensor
    mean: torch.Tensor


def observe(engine, layers, batches):
    """Look at the inputs of layers on calibration jets.

    Parameters
    ----------
    engine : nn.Module
    layers : dict of str to nn.Module
    batches : list of tuple of Tensor, see :func:`calibration_batches`

    Returns
    -------
    dict of str to LayerInputs
    """
    values = {name: [] for name in layers}
    sums = dict.fromkeys(layers, 0)
    counts = dict.fromkeys(layers, 0)

    def watch(name):
        def hook(layer, inputs):
            x = inputs[0].float()
            if isinstance(layer, nn.Conv1d) and not hasattr(layer, "on_rows"):
                x = x.transpose(1, 2).repeat_interleave(layer.kernel_size[0], 2)
            x = x.reshape(-1, x.shape[-1])
            sums[name] += x.double().sum(0)
            counts[name] += len(x)
            x = x.flatten()
            # Evenly spaced, by an odd number, lest all come from the same channels.
            values[name].append(x[:: -(-len(x) // PER_CALL) | 1].clone())

        return hook

    handles = [layer.register_forward_pre_hook(watch(name)) for name, layer in layers.items()]
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)  # micro-batches one after the other
        with torch.no_grad():
            for batch in batches:
                _check_finite(engine(*batch).flatten(1).isfinite().all(1))
    except (RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"The calibration jets do not fit the network: {reason(error)}.") from error
    finally:
        torch.set_num_threads(threads)
        for handle in handles:
            handle.remove()
    return {
        name: LayerInputs(torch.cat(values[name]), (sums[name] / max(counts[name], 1)).float())
        for name in layers
    }


def choose_range(values, observer):
    """Range of the 256 steps that stand for ``values``; what is outside is clipped.

    Parameters
    ----------
    values : Tensor, (S,)
    observer : {"percentile", "mse"}
        All but a ten-thousandth of the values at each end, or the range within all values that
        gives the least mean squared error of rounding and clipping.

    Returns
    -------
    low, high : float
    """
    if observer == "percentile":
        values = values.sort().values
        cut = int(PERCENTILE * len(values))
        return values[cut].item(), values[len(values) - 1 - cut].item()
    low, high = (x.item() for x in values.aminmax())
    best = None
    for fraction in torch.linspace(1, 0.1, 46).tolist():
        bottom, top = min(fraction * low, 0), max(fraction * high, 0)
        step = max(top - bottom, 1e-12) / 255
        rounded = values.sub(bottom).div_(step).round_().clamp_(0, 255).mul_(step).add_(bottom)
        error = rounded.sub_(values).square_().mean().item()
        if best is None or error < best[0]:
            best = error, bottom, top
    return best[1:]
