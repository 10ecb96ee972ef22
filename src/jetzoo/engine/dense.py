"""Matrix products with norms folded into them; the arithmetic of the folding is in float64."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

# Products in bf16 on a CPU have a multiple of so many rows, 8 of them for each power of two.
ROWS, STEPS = 128, 4


class Dense(nn.Module):
    """Linear layer, followed by GELU if asked for.

    Parameters
    ----------
    weight : Tensor, (out, in)
    bias : Tensor, (out,), or None
    dtype : torch.dtype
    gelu : bool
    """

    def __init__(self, weight, bias, dtype, gelu=False):
        super().__init__()
        self.register_buffer("weight", weight.to(dtype).contiguous())
        self.register_buffer("bias", None if bias is None else bias.to(dtype))
        self.gelu = gelu

    def forward(self, x):
        """(..., in) to (..., out)."""
        x = x.to(self.weight.dtype)
        if x.dtype == torch.bfloat16 and x.device.type == "cpu":
            return in_steps(x, self.weight, self.bias, self.gelu)
        # oneDNN's product with GELU fused is 5% faster, but keeps 1 MiB for each shape it has seen.
        x = F.linear(x, self.weight, self.bias)
        return torch.ops.aten.gelu_(x) if self.gelu else x


def in_steps(x, weight, bias=None, gelu=False):
    """A linear layer with one of few numbers of rows, the last of which are zero.

    In bf16 on a CPU oneDNN keeps memory for each number of rows that it has seen.
    """
    rows = x.flatten(0, -2)
    step = max(ROWS, (1 << len(rows).bit_length()) >> STEPS)
    out = F.linear(F.pad(rows, (0, 0, 0, -len(rows) % step)), weight, bias)
    out = F.gelu(out) if gelu else out
    return out[: len(rows)].unflatten(0, x.shape[:-1])


class LinearInSteps(nn.Linear):
    """Linear layer that computes as :func:`in_steps` does."""

    def forward(self, x):
        """(..., in) to (..., out)."""
        return in_steps(x, self.weight, self.bias)


def half_precision(network, dtype):
    """Context in which the layers of a network compute in bfloat16, if that is the dtype.

    Parameters
    ----------
    network : nn.Module
        Frozen; on a CPU its linear layers are changed to :class:`LinearInSteps`.
    dtype : torch.dtype

    Returns
    -------
    callable
        Makes the context, anew for each call.
    """
    half = dtype == torch.bfloat16
    device = next(network.parameters()).device.type
    if half and device == "cpu":
        for module in network.modules():
            if type(module) is nn.Linear:
                module.__class__ = LinearInSteps
    return partial(torch.autocast, device, torch.bfloat16, enabled=half)


def inverse_std(x, eps, centred=False):
    """1 / sqrt(variance + eps) over the last axis, (..., 1), in float32.

    Parameters
    ----------
    x : Tensor, (..., D)
    eps : float
    centred : bool
        The mean is known to be zero.
    """
    x = x.float()
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    variance = norm.square_().div_(x.shape[-1])
    if not centred:
        mean = x.mean(-1, keepdim=True)
        variance.addcmul_(mean, mean, value=-1).clamp_(min=0)
    return variance.add_(eps).rsqrt_()


def standardise(x, eps, centred=False):
    """``x`` over its standard deviation; the weights that follow ignore its mean, see `fold_norm`.

    On a CPU this takes a third of the time of ``F.layer_norm``.
    """
    return x * inverse_std(x, eps, centred)


def fold_norm(norm, weight, bias):
    """``linear(norm(x))`` as weight and bias on ``standardise(x)``, in float64."""
    weight, bias = weight.double(), bias.double()
    bias = bias + weight @ norm.bias.double()
    weight = weight * norm.weight.double()
    return weight - weight.mean(1, keepdim=True), bias


def fold_output(block, weight, bias):
    """Projection after attention times ``c_attn``, its mean over the channels taken out."""
    scale = block.c_attn.double().repeat_interleave(len(bias) // len(block.c_attn))
    weight, bias = weight.double() * scale[:, None], bias.double() * scale
    return weight - weight.mean(0), bias - bias.mean()


def fold_batch_norm(bn):
    """Scale and shift of a batch norm, in float64."""
    scale = bn.weight.double() / (bn.running_var.double() + bn.eps).sqrt()
    return scale, bn.bias.double() - bn.running_mean.double() * scale
