"""What a training step computes besides matrix products, in C++ on a CPU (``training.cpp``).

Each operation is one pass through memory where PyTorch makes several, and keeps its input alone for
the backward pass. What PyTorch itself would do is written beside each, for other devices and
dtypes.
"""

import ctypes
from ctypes import Structure, c_float, c_int64, c_uint64, c_void_p

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from . import load

MULTIPLE = 16  # of the widths: the longest vectors there are


def usable(x):
    """Whether the kernels can take the place of PyTorch's operations on a tensor.

    They see float32 on a CPU, and no tracer sees them: neither those that compile or export a
    graph, nor one that counts operations.
    """
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and not is_in_torch_dispatch_mode()
        and load("training") is not None
    )


def run(name, arguments):
    """Call a kernel with a structure, on as many threads as PyTorch uses."""
    getattr(load("training"), name)(ctypes.byref(arguments), torch.get_num_threads())


def new_seed(dropout_p):
    """Seed of what is dropped, from PyTorch's own generator."""
    return int(torch.randint(2**63 - 1, ())) if dropout_p else 0


class Chain(Structure):
    """``struct Chain`` of training.cpp."""

    _fields_ = [
        *((name, c_int64) for name in ("rows", "dim")),
        *((name, c_float) for name in ("eps", "dropout")),
        ("seed", c_uint64),
        *((name, c_void_p) for name in ("x", "residual", "scale", "gain", "shift")),
        *((name, c_void_p) for name in ("out", "moments", "grad", "dx", "sums")),
    ]


def _run(name, x, tensors, eps=0.0, dropout=0.0, seed=0):
    pointers = {key: tensor.data_ptr() for key, tensor in tensors.items()}
    run(name, Chain(*x.shape, eps=eps, dropout=dropout, seed=seed, **pointers))


def _rows(x):
    return x.flatten(0, -2).contiguous()


def _takes(x):
    return usable(x) and x.shape[-1] % MULTIPLE == 0


class LayerNorm(torch.autograd.Function):
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
    if not _takes(x):
        return norm(x)
    return LayerNorm.apply(x, norm.weight, norm.bias, norm.eps)


class GeluNorm(torch.autograd.Function):
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


def gelu_norm(x, linear, norm, dropout_p=0.0):
    """``norm(dropout(gelu(linear(x))))`` of tokens (..., D)."""
    if not (usable(x) and linear.out_features % MULTIPLE == 0):
        return norm(F.dropout(F.gelu(linear(x)), dropout_p))
    product = F.linear(x, linear.weight)
    return GeluNorm.apply(product, linear.bias, norm.weight, norm.bias, norm.eps, dropout_p)


class AddNorm(torch.autograd.Function):
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
    if not _takes(x):
        return residual + F.dropout(norm(x * scale), dropout_p)
    return AddNorm.apply(residual, x, scale, norm.weight, norm.bias, norm.eps, dropout_p)


class ScaledAdd(torch.autograd.Function):
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
    if not _takes(x):
        return scale * residual + F.dropout(x, dropout_p)
    return ScaledAdd.apply(residual, x, scale, dropout_p)
