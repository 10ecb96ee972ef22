"""Fine-tuning of a network for int8, and the int8 form of what comes out."""

import logging

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize
from tqdm import tqdm

from ..engine.folding import fold, freeze
from ..engine.forms import takes_usual
from .calibration import calibration_batches
from .layers import round_rows
from .quantize import quantize, stays_float

logger = logging.getLogger("jetzoo")

# Jets, the part of them that validates, steps, jets of a step, and the learning rate.
TUNING_JETS, VALIDATION_JETS, STEPS, TUNING_BATCH, LEARNING_RATE = 4096, 1024, 200, 64, 3e-5


def fine_tune(frozen, jets, method="static"):
    """Quantize a network after a short fine-tuning that makes up for the rounding of its weights.

    The network is trained with rounded weights, the gradients going straight through the rounding
    (arXiv 1308.3432), to give the logits that it gives in float32: no labels are needed.
    Batch norms and dropout are as in the evaluation. The fine-tuned weights are taken if their int8
    form is nearer to the float32 one on jets that took no part.

    Parameters
    ----------
    frozen : nn.Module
        See :func:`jetzoo.engine.folding.freeze`; left as it is.
    jets : tuple of Tensor
        The inputs of some thousand jets; the first calibrate, the last quarter validates.
    method
        See :func:`quantize`.

    Returns
    -------
    QuantizedNetwork
    """
    usual = takes_usual(_folded(frozen))
    (jets,) = calibration_batches(jets, limit=len(jets[0]), usual=usual)
    before = quantize(_folded(frozen), jets, method)
    count = len(jets[0]) - min(VALIDATION_JETS, len(jets[0]) // 4)
    with torch.no_grad():
        logits = _folded(frozen)(*jets)
    target, expected = logits[:count], logits[count:]
    tuned = freeze(frozen).requires_grad_(True)
    norms = dict(_norms_before(tuned))
    rounded = [
        module
        for module in tuned.modules()
        if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d)) and not stays_float("", module)
    ]
    for module in rounded:
        rounding = StraightThroughRounding(norms.get(module))
        parametrize.register_parametrization(module, "weight", rounding, unsafe=True)
    optimizer = torch.optim.Adam(tuned.parameters(), LEARNING_RATE)
    order = torch.Generator().manual_seed(0)
    for step in tqdm(range(STEPS), desc="fine-tune", unit="step"):
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * (1 - step / STEPS)
        rows = torch.randint(count, (TUNING_BATCH,), generator=order)
        loss = F.mse_loss(tuned(*(x[rows] for x in jets)), target[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for module in rounded:
        parametrize.remove_parametrizations(module, "weight")  # what stays is rounded
    after = quantize(_folded(tuned), jets, method)
    validation = [x[count:] for x in jets]
    errors = [(q(*validation) - expected).square().mean().sqrt() for q in (before, after)]
    logger.info("rms change of the logits by int8: %.4f, after fine-tuning %.4f", *errors)
    return after if errors[1] < errors[0] else before


def _folded(network):
    frozen = freeze(network)
    folded = fold(frozen)
    return frozen if folded is None else folded


def _norms_before(model):
    """Layers whose weight takes up the gain of a layer norm before it, with that norm."""
    for module in model.modules():
        if hasattr(module, "normalised_layers"):
            yield from module.normalised_layers()


class StraightThroughRounding(nn.Module):
    """Parametrization of a weight that is rounded to int8 and hands gradients through.

    Parameters
    ----------
    norm : nn.LayerNorm, optional
        Whose scale multiplies the weight before it is rounded, see
        :func:`jetzoo.engine.dense.fold_norm`.
    """

    def __init__(self, norm=None):
        super().__init__()
        self.norm = (norm,)  # not a module of this one

    def forward(self, weight):
        """(out, ...) to the same."""
        with torch.no_grad():
            rows = weight.flatten(1)
            (norm,) = self.norm
            if norm is not None:
                rows = rows * norm.weight
                rows = rows - rows.mean(1, keepdim=True)
            integers, scale = round_rows(rows)
            change = integers * scale[:, None] - rows
            if norm is not None:
                change = change / norm.weight
        return weight + change.view_as(weight)
