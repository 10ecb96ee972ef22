"""The linear layers of a training step on a CPU: each product by what computes it fastest here.

PyTorch has two libraries for matrix products, of which it uses MKL in float32, and this project has
kernels of its own (``dense.cpp``). Which is the fastest depends on the processor and on the shape,
so that it is measured once for each class of shapes (:mod:`jetzoo.choices`).

Under autocast to bfloat16 the factors of a product are rounded to bfloat16 where the kernel packs
them, and its sums are in float32, as is everything between the products: nothing is cast between
neighbours.
"""

import torch
import torch.nn.functional as F
from torch import nn

from .. import choices
from ..modules import unmodified
from .calls import address
from .structures import ProductArguments
from .training import autocasts, multiplies_half, run, usable

__all__ = ["dense", "linear", "matrix_product"]

SMALL = 2**20  # multiplications; a product of fewer takes no longer than to choose what does it
PLAIN = (torch.Tensor, nn.Parameter)


def _own(a, b, bias, half):
    out = a.new_empty(len(a), b.shape[1])
    a, b = (x if 1 in x.stride() else x.contiguous() for x in (a, b))
    _check(a, b)
    arguments = ProductArguments(
        m=a.shape[0],
        n=b.shape[1],
        k=a.shape[1],
        a=a.data_ptr(),
        b=b.data_ptr(),
        a_row=a.stride(0),
        a_col=a.stride(1),
        b_row=b.stride(0),
        b_col=b.stride(1),
        bias=None if bias is None else address("bias", bias, (b.shape[1],)),
        out=address("out", out, out.shape),
        half=half,
    )
    run("dense_product", arguments)
    return out


def _check(a, b):
    for x in (a, b):
        if x.dtype != torch.float32 or x.device.type != "cpu" or x.layout != torch.strided:
            raise TypeError(f"a factor should be float32 on a CPU, not {x.dtype} on {x.device}")
    if a.dim() != 2 or b.dim() != 2 or a.shape[1] != b.shape[0]:
        raise ValueError(f"there is no product of the shapes {tuple(a.shape)} and {tuple(b.shape)}")


def _torch(a, b, bias, half):
    if half:
        return _torch(a.bfloat16(), b.bfloat16(), None if bias is None else bias.bfloat16(), False)
    return a @ b if bias is None else torch.addmm(bias, a, b)


def _torch_half(a, b, bias, half):
    return _torch(a, b, bias, half).float()


def _onednn(a, b, bias, half):
    return torch.ops.mkldnn._linear_pointwise(a, b.t(), bias, "none", [], "")


def _ways(half):
    if half:
        return {"PyTorch": _torch_half, "own": _own}
    ways = {"PyTorch": _torch, "own": _own}
    if torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        ways["oneDNN"] = _onednn
    return ways


def matrix_product(a, b, bias=None, half=False):
    """``a @ b + bias`` without a graph, by the fastest way on this processor.

    Parameters
    ----------
    a : Tensor, (m, k)
        Float32 on a CPU, like the others; of any strides.
    b : Tensor, (k, n)
    bias : Tensor, (n,), optional
    half : bool
        Round the factors to bfloat16.

    Returns
    -------
    Tensor, (m, n)
        Float32.
    """
    _check(a, b)
    sizes = (*a.shape, b.shape[1])
    ways = _ways(half)
    if sizes[0] * sizes[1] * sizes[2] < SMALL:
        return ways["PyTorch"](a, b, bias, half)
    m, k, n = (1 << (size - 1).bit_length() for size in sizes)
    layout = "".join("n" if x.stride(1) == 1 else "t" for x in (a, b))
    work = (
        f"product {m} x {k} x {n} {layout}{' bfloat16' if half else ''}, "
        f"{torch.get_num_threads()} threads"
    )
    candidates = {name: lambda way=way: way(a, b, bias, half) for name, way in ways.items()}
    return candidates[choices.fastest(work, candidates)]()


class FusedLinear(torch.autograd.Function):
    """See :func:`linear`."""

    @staticmethod
    def forward(ctx, x, weight, bias, half):
        ctx.save_for_backward(x, weight)
        ctx.half = half
        with torch.autocast("cpu", enabled=False):
            return matrix_product(x, weight.t(), bias, half)

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        # A graph of the gradients is left to PyTorch.
        product = torch.mm if torch.is_grad_enabled() else _product(ctx.half)
        needs_x, needs_weight, needs_bias, _ = ctx.needs_input_grad
        dx = product(grad, weight) if needs_x else None
        dweight = product(grad.t(), x) if needs_weight else None
        return dx, dweight, grad.sum(0) if needs_bias else None, None


def _product(half):
    return lambda a, b: matrix_product(a, b, half=half)


def linear(x, weight, bias=None):
    """``torch.nn.functional.linear``: ``x`` (..., C) times ``weight`` (C', C), plus ``bias`` (C').

    The output is in float32 under autocast to bfloat16, too, where the kernels run.
    """
    if not _takes(x, weight, bias):
        return F.linear(x, weight, bias)
    half = autocasts() and multiplies_half()
    rows = x.flatten(0, -2)
    return FusedLinear.apply(rows, weight, bias, half).unflatten(0, x.shape[:-1])


def _takes(x, weight, bias):
    """Whether :func:`linear` is not that of PyTorch."""
    tensors = [x, weight] if bias is None else [x, weight, bias]
    return (
        usable(*tensors)
        and all(type(t) in PLAIN for t in tensors)
        and weight.dim() == 2
        and x.dim() > 1
        and x.shape[-1] == weight.shape[1]
        and (bias is None or bias.shape == weight.shape[:1])
        and x.numel() * len(weight) >= SMALL
    )


def dense(layer, x):
    """``layer(x)`` of a linear layer, by :func:`linear` as long as it is nothing else."""
    if unmodified(layer, nn.Linear) and _takes(x, layer.weight, layer.bias):
        return linear(x, layer.weight, layer.bias)
    return layer(x)  # so that what watches the layer sees it
