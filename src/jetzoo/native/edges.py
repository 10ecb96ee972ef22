"""Batch norm and ReLU of rows in a training step, in C++ on a CPU (``edges.cpp``)."""

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from ..modules import unmodified
from .calls import address
from .structures import EdgeArguments
from .training import MULTIPLE, run, usable

__all__ = ["norm_relu", "takes", "track"]


class FusedNormRelu(torch.autograd.Function):
    """See :func:`norm_relu`; mean and biased variance of ``x`` are added to the list ``found``."""

    @staticmethod
    def forward(ctx, x, gain, shift, eps, found):
        groups, size, dim = x.shape
        guess = x.new_empty(dim)
        s1, s2 = _run("edges_statistics", x, sums=True, mean=guess) / (groups * size)
        mean, var = guess + s1, (s2 - s1 * s1).clamp(min=0)  # in float64
        found += [mean, var]
        scale = gain * (var + eps).rsqrt()
        scale, shift, guess = scale.float(), (shift - mean * scale).float(), mean.float()
        out = x.new_empty(groups, dim)
        _run("edges_forward", x, scale=scale, shift=shift, out=out)
        ctx.save_for_backward(x, gain, scale, shift, guess, var)
        ctx.eps = eps
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, gain, scale, shift, mean, var = ctx.saved_tensors
        known = {"grad": grad.contiguous(), "scale": scale, "shift": shift}
        s1, s2 = _run("edges_sums", x, sums=True, mean=mean, **known)
        inverse = (var + ctx.eps).rsqrt()
        num_rows = x.shape[0] * x.shape[1]
        slope = -gain * inverse.pow(3) * s2 / num_rows
        offset = -gain * inverse * s1 / num_rows - slope * mean
        dx = torch.empty_like(x)
        _run("edges_backward", x, slope=slope.float(), offset=offset.float(), dx=dx, **known)
        return dx, (s2 * inverse).to(gain.dtype), s1.to(gain.dtype), None, None


def _run(name, x, sums=False, **tensors):
    """Run a kernel; returns the sums, (2, dim) in float64, if there are any."""
    groups, size, dim = x.shape
    sums = x.new_empty(2, dim, dtype=torch.float64) if sums else None
    shapes = dict.fromkeys(("scale", "shift", "mean", "slope", "offset"), (dim,))
    shapes |= {"out": (groups, dim), "grad": (groups, dim), "dx": x.shape}
    pointers = {key: address(key, tensor, shapes[key]) for key, tensor in tensors.items()}
    arguments = EdgeArguments(
        groups,
        size,
        dim,
        x=address("x", x, x.shape),
        sums=None if sums is None else sums.data_ptr(),
        **pointers,
    )
    run(name, arguments)
    return sums


def takes(norm, groups):
    """Whether :func:`norm_relu` computes a batch norm of groups of rows (G, k, C)."""
    return (
        unmodified(norm, nn.BatchNorm1d)
        and norm.training
        and norm.track_running_stats
        and norm.momentum is not None
        and norm.affine
        and groups.shape[0] * groups.shape[1] > 1
        and groups.shape[2] == norm.num_features
        and groups.shape[2] % MULTIPLE == 0
        and usable(groups, norm.weight)
    )


def norm_relu(norm, groups):
    """The mean over the rows of each group of ``norm(rows).relu()``.

    Only the rows are kept for the backward pass.

    Parameters
    ----------
    norm : nn.BatchNorm1d
        Over all rows; its running statistics are updated.
    groups : Tensor, (G, k, C)

    Returns
    -------
    Tensor, (G, C)
    """
    found = []
    out = FusedNormRelu.apply(groups.contiguous(), norm.weight, norm.bias, norm.eps, found)
    track(norm, *found, groups.shape[0] * groups.shape[1])
    return out


@torch.no_grad()
def track(norm, mean, var, count):
    """Update the running statistics of a batch norm, as PyTorch does.

    Parameters
    ----------
    norm : nn.BatchNorm1d
    mean, var : Tensor, (C,)
        Of a batch; the variance is the biased one.
    count : int
        Rows of the batch.
    """
    norm.num_batches_tracked += 1
    norm.running_mean.lerp_(mean.float(), norm.momentum)
    norm.running_var.lerp_((var * (count / (count - 1))).float(), norm.momentum)
