"""Element-wise chains of the blocks in C++ on a CPU (``chains.cpp``): norms, GELU, dropout, sums.

Each is one pass through memory where PyTorch makes several, and keeps its input alone for the
backward pass. What PyTorch itself would do is written beside each: it runs on other devices and
dtypes, for shapes that would be broadcast, and where a module is not what it seems to be.
"""

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

from ..modules import unmodified
from .calls import address
from .dense import linear
from .structures import ChainArguments
from .training import MULTIPLE, new_seed, run, usable

__all__ = ["add_norm", "gelu_norm", "layer_norm", "scaled_add"]


def _run(name, x, tensors, eps=0.0, dropout=0.0, seed=0):
    rows, dim = x.shape
    shapes = dict.fromkeys(("x", "residual", "grad", "dx", "out"), (rows, dim))
    shapes |= dict.fromkeys(("scale", "gain", "shift"), (dim,))
    shapes["moments"] = (rows, 2)
    pointers = {
        key: address(key, tensor, shapes.get(key, tensor.shape)) for key, tensor in tensors.items()
    }
    run(name, ChainArguments(rows, dim, eps=eps, dropout=dropout, seed=seed, **pointers))


def _rows(x):
    return x.flatten(0, -2).contiguous()


def _fits(tokens, vectors, dropout_p=0.0):
    """Whether the kernels take tokens (..., D), all of one shape, and vectors (D,)."""
    shape = tokens[0].shape
    return (
        usable(*tokens, *vectors)
        and len(shape) > 1
        and shape[-1] > 0
        and shape[-1] % MULTIPLE == 0
        and all(x.shape == shape for x in tokens)
        and all(x.shape == shape[-1:] and x.is_contiguous() for x in vectors)
        and 0 <= dropout_p < 1
    )


class FusedLayerNorm(torch.autograd.Function):
    """See :func:`layer_norm`."""

    @staticmethod
    def forward(ctx, x, gain, shift, eps):
        rows = _rows(x)
        out, moments = torch.empty_like(rows), rows.new_empty(len(rows), 2)
        tensors = {"x": rows, "gain": gain, "shift": shift, "out": out, "moments": moments}
        _run("norm_forward", rows, tensors, eps)
        ctx.save_for_backward(rows, gain, moments)
        return out.view(x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, gain, moments = ctx.saved_tensors
        dx, sums, grad_rows = torch.empty_like(x), x.new_empty(2, x.shape[1]), _rows(grad)
        tensors = {"x": x, "gain": gain, "moments": moments}
        _run("norm_backward", x, tensors | {"grad": grad_rows, "dx": dx, "sums": sums})
        return dx.view(grad.shape), *sums, None


def layer_norm(x, norm):
    """``norm(x)`` for a LayerNorm of tokens (..., D)."""
    if not (unmodified(norm, nn.LayerNorm) and _fits([x], [norm.weight, norm.bias])):
        return norm(x)
    return FusedLayerNorm.apply(x, norm.weight, norm.bias, norm.eps)


class FusedGeluNorm(torch.autograd.Function):
    """See :func:`gelu_norm`."""

    @staticmethod
    def forward(ctx, x, bias, gain, shift, eps, dropout_p):
        rows = _rows(x)
        out, moments = torch.empty_like(rows), rows.new_empty(len(rows), 2)
        ctx.settings = (eps, dropout_p, new_seed(dropout_p))
        tensors = {"x": rows, "scale": bias, "gain": gain, "shift": shift}
        _run("gelu_norm_forward", rows, tensors | {"out": out, "moments": moments}, *ctx.settings)
        ctx.save_for_backward(rows, bias, gain, moments)
        return out.view(x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, bias, gain, moments = ctx.saved_tensors
        dx, sums, grad_rows = torch.empty_like(x), x.new_empty(3, x.shape[1]), _rows(grad)
        tensors = {"x": x, "scale": bias, "gain": gain, "moments": moments}
        tensors |= {"grad": grad_rows, "dx": dx, "sums": sums}
        _run("gelu_norm_backward", x, tensors, *ctx.settings)
        dgain, dshift, dbias = sums
        return dx.view(grad.shape), dbias, dgain, dshift, None, None


def gelu_norm(x, layer, norm, dropout_p=0.0, act=None):
    """``norm(dropout(act(layer(x))))`` of tokens (..., D), where ``act`` is GELU by default."""
    fused = (
        unmodified(layer, nn.Linear)
        and unmodified(norm, nn.LayerNorm)
        and (act is None or unmodified(act, nn.GELU))
        and layer.bias is not None
        and usable(x, layer.weight)
    )
    if fused:
        product = linear(x, layer.weight)
        vectors = [layer.bias, norm.weight, norm.bias]
        if _fits([product], vectors, dropout_p):
            return FusedGeluNorm.apply(product, *vectors, norm.eps, dropout_p)
    act = act or F.gelu
    return norm(F.dropout(act(layer(x)), dropout_p))


class FusedAddNorm(torch.autograd.Function):
    """See :func:`add_norm`."""

    @staticmethod
    def forward(ctx, residual, x, scale, gain, shift, eps, dropout_p):
        rows, old = _rows(x), _rows(residual)
        out, moments = torch.empty_like(rows), rows.new_empty(len(rows), 2)
        ctx.settings = (eps, dropout_p, new_seed(dropout_p))
        tensors = {"x": rows, "residual": old, "scale": scale, "gain": gain, "shift": shift}
        _run("add_norm_forward", rows, tensors | {"out": out, "moments": moments}, *ctx.settings)
        ctx.save_for_backward(rows, scale, gain, moments)
        return out.view(x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, scale, gain, moments = ctx.saved_tensors
        dx, sums, grad_rows = torch.empty_like(x), x.new_empty(3, x.shape[1]), _rows(grad)
        tensors = {"x": x, "scale": scale, "gain": gain, "moments": moments}
        tensors |= {"grad": grad_rows, "dx": dx, "sums": sums}
        _run("add_norm_backward", x, tensors, *ctx.settings)
        dgain, dshift, dscale = sums
        return grad, dx.view(grad.shape), dscale, dgain, dshift, None, None


def add_norm(residual, x, scale, norm, dropout_p=0.0):
    """``residual + dropout(norm(x * scale))`` of tokens (..., D)."""
    fused = unmodified(norm, nn.LayerNorm) and _fits(
        [x, residual], [scale, norm.weight, norm.bias], dropout_p
    )
    if not fused:
        return residual + F.dropout(norm(x * scale), dropout_p)
    return FusedAddNorm.apply(residual, x, scale, norm.weight, norm.bias, norm.eps, dropout_p)


class FusedScaledAdd(torch.autograd.Function):
    """See :func:`scaled_add`."""

    @staticmethod
    def forward(ctx, residual, x, scale, dropout_p):
        rows, old = _rows(x), _rows(residual)
        out = torch.empty_like(rows)
        ctx.settings = (0.0, dropout_p, new_seed(dropout_p))
        tensors = {"x": rows, "residual": old, "scale": scale, "out": out}
        _run("add_forward", rows, tensors, *ctx.settings)
        ctx.save_for_backward(old, scale)
        return out.view(x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        residual, scale = ctx.saved_tensors
        dx, dresidual, grad_rows = (*map(torch.empty_like, (residual, residual)), _rows(grad))
        sums = residual.new_empty(residual.shape[1])
        tensors = {"residual": residual, "scale": scale, "grad": grad_rows}
        tensors |= {"out": dresidual, "dx": dx, "sums": sums}
        _run("add_backward", residual, tensors, *ctx.settings)
        return dresidual.view(grad.shape), dx.view(grad.shape), sums, None


def scaled_add(residual, x, scale, dropout_p=0.0):
    """``scale * residual + dropout(x)`` of tokens (..., D)."""
    if not _fits([x, residual], [scale], dropout_p):
        return scale * residual + F.dropout(x, dropout_p)
    return FusedScaledAdd.apply(residual, x, scale, dropout_p)
