"""The pair MLP of a training step in C++ on a CPU (``pairs.cpp``).

Hidden layers exist for a tile of pairs at a time, never for all of them, forward and backward.
"""

from ctypes import c_int64

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

from ..modules import unmodified
from .calls import address
from .structures import PairArguments, PairLayer
from .training import MULTIPLE, run, usable

__all__ = ["pair_mlp", "takes_pairs"]

MAX_LAYERS = 16  # as in pairs.cpp


def _padded(width):
    return -(-width // MULTIPLE) * MULTIPLE


class PairPasses:
    """The passes of the kernels over all pairs; small vectors are in float64 outside of them.

    Parameters
    ----------
    x : Tensor, (C, P)
        Inputs.
    weights : list of Tensor, (outputs, inputs)
    activated : bool
        Whether a GELU follows the last layer, too.
    """

    def __init__(self, x, weights, activated):
        self.x = x
        self.activated = activated
        self.address = address("x", x, (weights[0].shape[1], x.shape[-1]))
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
        arguments = PairArguments(
            num_pairs=self.x.shape[1],
            num_layers=len(self.layers),
            last=last,
            activated=self.activated,
            widths=(c_int64 * len(self.widths))(*self.widths),
            x=self.address,
            layers=self.layers,
            sums=None if sums is None else sums.data_ptr(),
            **{
                key: address(key, tensor, (self.widths[-1], self.x.shape[1]))
                for key, tensor in tensors.items()
            },
        )
        run(name, arguments)
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
    activated : bool
        Whether a GELU follows the last layer, too.
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
    def forward(ctx, x, eps, activated, found, gain, shift, *parameters):
        weights = [weight[..., 0].double() for weight in parameters[::4]]
        weights[0] = weights[0] * gain
        passes = PairPasses(x, weights, activated)
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
        return None, None, None, None, dgain.to(gain.dtype), torch.zeros_like(shift), *grads


def takes_pairs(x, layers, product=None):
    """Whether :func:`pair_mlp` computes these layers.

    Parameters
    ----------
    x : Tensor, (C, P)
    layers : nn.Sequential
        A batch norm, then a product, a batch norm and a GELU, repeated; the last GELU may lack.
    product : type, optional
        The class of the products: ``nn.Conv1d``, or one that computes the same. Default: that of
        the first product.
    """
    if not usable(x, *layers.parameters()) or x.dim() != 2 or x.shape[1] < 2:
        return False
    first, *rest = layers
    products, norms, acts = rest[::3], [first, *rest[1::3]], rest[2::3]
    if not (1 <= len(products) == len(norms) - 1 < MAX_LAYERS):
        return False
    product = product or type(products[0])
    widths = [len(x), *(layer.weight.shape[0] for layer in products)]
    return (
        unmodified(layers, nn.Sequential)
        and all(unmodified(layer, product) and layer.bias is not None for layer in products)
        and all(unmodified(act, nn.GELU) for act in acts)
        and all(unmodified(norm, nn.BatchNorm1d) for norm in norms)
        and all(norm.training and norm.momentum is not None for norm in norms)
        and [norm.num_features for norm in norms] == widths
        and all(
            layer.weight.shape == (outputs, inputs, 1) and layer.stride == (1,)
            for layer, inputs, outputs in zip(products, widths[:-1], widths[1:], strict=True)
        )
        and all(layer.padding == (0,) and layer.groups == 1 for layer in products)
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
    with torch.autocast("cpu", enabled=False):  # a batch norm divides by small differences
        return _pair_mlp(x, layers)


def _pair_mlp(x, layers):
    first, *rest = layers
    products, norms, acts = rest[::3], rest[1::3], rest[2::3]
    with torch.no_grad():
        var, mean = torch.var_mean(x.double(), 1, correction=0)
        x = ((x - mean[:, None]) * (var + first.eps).rsqrt()[:, None]).float().contiguous()
    found = []
    parameters = [
        p
        for product, norm in zip(products, norms, strict=True)
        for p in (product.weight, product.bias, norm.weight, norm.bias)
    ]
    eps, activated = [norm.eps for norm in norms], len(acts) == len(products)
    out = PairMLP.apply(x, eps, activated, found, first.weight, first.bias, *parameters)
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
