"""What a training step computes besides matrix products, in C++ on a CPU (``training.cpp``).

Each operation is one pass through memory where PyTorch makes several, and keeps its input alone for
the backward pass. What PyTorch itself would do is written beside each, for other devices and
dtypes.
"""

import ctypes
from ctypes import POINTER, Structure, c_float, c_int64, c_uint64, c_void_p

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from . import load

MULTIPLE = 16  # of the widths: the longest vectors there are
MAX_LAYERS = 16  # of the pair MLP, as in training.cpp


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


class PairLayer(Structure):
    """``struct PairLayer`` of training.cpp, and so on."""

    _fields_ = [
        (name, c_void_p)
        for name in ("forward", "backward", "scale", "shift", "mean", "slope", "offset")
    ]


class Pairs(Structure):
    _fields_ = [
        *((name, c_int64) for name in ("num_pairs", "num_layers", "last")),
        ("widths", POINTER(c_int64)),
        ("x", c_void_p),
        ("layers", POINTER(PairLayer)),
        *((name, c_void_p) for name in ("out", "grad", "sums")),
    ]


def _padded(width):
    return -(-width // MULTIPLE) * MULTIPLE


class PairPasses:
    """The passes of the kernels over all pairs; small vectors are in float64 outside of them.

    Parameters
    ----------
    x : Tensor, (C, P)
        Inputs.
    weights : list of Tensor, (outputs, inputs)
    """

    def __init__(self, x, weights):
        self.x = x
        self.widths = [len(x), *map(len, weights)]
        self.layers = (PairLayer * len(weights))()
        self.tensors = {}
        for layer, weight in enumerate(weights, start=1):
            self.set(layer, forward=weight.t(), backward=weight, mean=weight.new_zeros(len(weight)))

    def set(self, layer, **tensors):
        """Give layers, counted from 1, what they need, in float32 and padded."""
        for name, tensor in tensors.items():
            size = _padded(tensor.shape[-1])
            tensor = F.pad(tensor, (0, size - tensor.shape[-1])).float().contiguous()
            self.tensors[layer, name] = tensor
            setattr(self.layers[layer - 1], name, tensor.data_ptr())

    def run(self, name, last=0, sums=None, **tensors):
        """One pass; the sums of layer ``last`` are returned in float64."""
        sums = None if sums is None else self.x.new_empty(sums, dtype=torch.float64)
        pairs = Pairs(
            num_pairs=self.x.shape[1],
            num_layers=len(self.layers),
            last=last,
            widths=(c_int64 * len(self.widths))(*self.widths),
            x=self.x.data_ptr(),
            layers=self.layers,
            sums=None if sums is None else sums.data_ptr(),
            **{name: tensor.data_ptr() for name, tensor in tensors.items()},
        )
        run(name, pairs)
        return sums

    def statistics(self, layer):
        """Mean and biased variance of the products of a layer, (outputs,)."""
        width = self.widths[layer]
        s1, s2 = self.run("pairs_statistics", layer, 2 * _padded(width)).view(2, -1)[:, :width]
        s1, s2 = s1 / self.x.shape[1], s2 / self.x.shape[1]
        return self.tensors[layer, "mean"][:width] + s1, (s2 - s1 * s1).clamp(min=0)


class PairMLP(torch.autograd.Function):
    """Products, batch norms over all pairs and GELUs; see :func:`pair_mlp`.

    Parameters
    ----------
    x : Tensor, (C, P)
        Inputs with a mean of 0 and a variance of 1.
    eps : list of float
        Of the norms of each layer.
    found : list
        Mean and variance of the products of each layer are added to it.
    gain, shift : Tensor, (C,)
        Of the norm of the inputs.
    *parameters : Tensor
        Of each layer: weight (outputs, inputs, 1) and bias, gain and shift of the norm.

    Returns
    -------
    Tensor, (outputs, P)
    """

    @staticmethod
    def forward(ctx, x, eps, found, gain, shift, *parameters):
        weights = [weight[..., 0].double() for weight in parameters[::4]]
        weights[0] = weights[0] * gain
        passes = PairPasses(x, weights)
        moments = (x.double() @ x.double().t()) / x.shape[1]  # (C, C)
        for layer, weight in enumerate(weights, start=1):
            # A constant before a batch norm does not matter: biases, and `shift`, are left out.
            if layer == 1:
                mean, var = weight.new_zeros(len(weight)), ((weight @ moments) * weight).sum(1)
            else:
                mean, var = passes.statistics(layer)
            found.append((mean, var))
            scale = parameters[4 * layer - 2] * (var + eps[layer - 1]).rsqrt()
            passes.set(
                layer, mean=mean, scale=scale, shift=parameters[4 * layer - 1] - mean * scale
            )
        out = x.new_empty(len(weights[-1]), x.shape[1])
        passes.run("pairs_forward", out=out)
        ctx.save_for_backward(x, gain, shift, *parameters)
        ctx.passes, ctx.moments, ctx.eps, ctx.found = passes, moments, eps, tuple(found)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, gain, shift, *parameters = ctx.saved_tensors
        passes, grad = ctx.passes, grad.contiguous()
        widths, num_pairs = passes.widths, x.shape[1]
        grads = [torch.zeros_like(p) for p in parameters]
        for layer in range(len(passes.layers), 0, -1):
            mean, var = ctx.found[layer - 1]
            inverse = (var + ctx.eps[layer - 1]).rsqrt()
            scale = parameters[4 * layer - 2] * inverse
            rows = 2 if layer > 1 else 1 + widths[0]
            sizes = [rows * _padded(widths[layer])]
            if layer == 1:
                sizes += [
                    m * _padded(n) for n, m in zip(widths[-2:0:-1], widths[:1:-1], strict=True)
                ]
            sums, *products = passes.run("pairs_backward", layer, sum(sizes), grad=grad).split(
                sizes
            )
            s1, *s2 = sums.view(rows, -1)[:, : widths[layer]]
            if layer > 1:
                s2 = s2[0]
                slope = -scale * inverse.square() * s2 / num_pairs
                passes.set(layer, slope=slope, offset=-scale * s1 / num_pairs - slope * mean)
            else:
                weight = parameters[0][..., 0].double()
                products.append(torch.stack(s2, 1))  # (outputs, C), of dz with the inputs
                s2 = (weight * gain * products[-1]).sum(1)
                by_moments = (inverse.square() * s2)[:, None] * ((weight * gain) @ ctx.moments)
                products[-1] = (products[-1] - by_moments) * scale[:, None]
                dgain = (products[-1] * weight).sum(0)
                products[-1] = products[-1] * gain
            grads[4 * layer - 2], grads[4 * layer - 1] = s2 * inverse, s1
        for layer, product in enumerate(reversed(products), start=1):
            product = product.reshape(widths[layer], -1)[:, : widths[layer - 1]]
            grads[4 * layer - 4] = product[..., None]
        grads = [g.to(p.dtype) for g, p in zip(grads, parameters, strict=True)]
        return None, None, None, dgain.to(gain.dtype), torch.zeros_like(shift), *grads


def takes_pairs(x, layers):
    """Whether :func:`pair_mlp` computes these layers."""
    norms = [layers[0], *layers[2::3]]
    return (
        usable(x)
        and x.shape[-1] > 1
        and len(norms) <= MAX_LAYERS
        and all(type(norm) is nn.BatchNorm1d and norm.training for norm in norms)
        and all(norm.momentum is not None for norm in norms)
    )


def pair_mlp(x, layers):
    """``layers(x[None])[0]`` in training: a batch norm, then Conv1d - batch norm - GELU repeated.

    Hidden layers exist for a tile of pairs at a time, never for all of them: every batch norm takes
    a pass over the pairs, and every pass begins with the inputs.

    Parameters
    ----------
    x : Tensor, (C, P)
    layers : nn.Sequential
        See :func:`takes_pairs`. Its running statistics are updated.

    Returns
    -------
    Tensor, (outputs, P)
    """
    first, *rest = layers
    products, norms = rest[::3], rest[1::3]
    with torch.no_grad():
        var, mean = torch.var_mean(x.double(), 1, correction=0)
        x = ((x - mean[:, None]) * (var + first.eps).rsqrt()[:, None]).float()
    found = []
    parameters = [
        p
        for product, norm in zip(products, norms, strict=True)
        for p in (product.weight, product.bias, norm.weight, norm.bias)
    ]
    out = PairMLP.apply(
        x, [norm.eps for norm in norms], found, first.weight, first.bias, *parameters
    )
    with torch.no_grad():
        # What the function leaves out belongs to the means.
        shifts = [0, *(product.bias for product in products)]
        shifts[1] = shifts[1] + products[0].weight[..., 0] @ first.bias
        for norm, shift, (m, v) in zip([first, *norms], shifts, [(mean, var), *found], strict=True):
            norm.num_batches_tracked += 1
            norm.running_mean.lerp_((m + shift).float(), norm.momentum)
            unbiased = v * (x.shape[1] / (x.shape[1] - 1))
            norm.running_var.lerp_(unbiased.float(), norm.momentum)
    return out
