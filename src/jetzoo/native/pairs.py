"""The pair MLP of a training step in C++ on a CPU (``pairs.cpp``).

The products of hidden layers exist while the function runs, forward and backward, but not between:
what blocks keep for the backward pass takes more memory, and does not exist at these times.
"""

from ctypes import addressof, c_int64, c_void_p

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

from ..modules import unmodified
from .calls import address
from .edges import track
from .structures import PairArguments, PairLayer
from .training import MULTIPLE, run, usable

__all__ = ["pair_mlp", "takes_pairs"]

# As in pairs.cpp.
SEGMENT = 16 * 16 * 96


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

    def lend(self, layer, **buffers):
        """Give a layer memory of :meth:`buffer`, or with None take it away."""
        for name, parts in buffers.items():
            pointers = None
            if parts is not None:
                pointers = (c_void_p * len(parts))(*(part.data_ptr() for part in parts))
            self.tensors[layer, name] = parts, pointers
            setattr(self.layers[layer - 1], name, pointers and addressof(pointers))

    def buffer(self, layer):
        """New memory for all pairs of a layer, parts of (pairs, padded outputs)."""
        num_pairs, width = self.x.shape[1], _padded(self.widths[layer])
        return [
            self.x.new_empty(min(SEGMENT, num_pairs - first), width)
            for first in range(0, num_pairs, SEGMENT)
        ]

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
        """Mean and biased variance of the products of a layer, (outputs,), from those before it."""
        self.lend(layer, h=self.buffer(layer))
        width = self.widths[layer]
        s1, s2 = self.run("pairs_statistics", layer, 2 * _padded(width)).view(2, -1)[:, :width]
        self.lend(layer - 1, h=None)
        s1, s2 = s1 / self.x.shape[1], s2 / self.x.shape[1]
        return self.tensors[layer, "mean"][:width] + s1, (s2 - s1 * s1).clamp(min=0)

    def gradients(self, layer, grad):
        """One pass backward, from the layer above or, for the last one, the gradient of the output.

        Returns
        -------
        sums : Tensor, (2, outputs), or of the first layer (1 + inputs, outputs)
            Of the gradients of the norm's output, and of these times its input, or times each input
            of the network.
        above : Tensor, (outputs of the layer above, outputs), or None
            Gradient of the weights of the layer above.
        """
        width, outputs = _padded(self.widths[layer]), self.widths[layer]
        is_last = layer == len(self.layers)
        rows = 2 if layer > 1 else 1 + self.widths[0]
        num_above = 0 if is_last else self.widths[layer + 1]
        fits = not is_last and _padded(self.widths[layer + 1]) == width
        self.lend(layer, dz=self.tensors[layer + 1, "h"][0] if fits else self.buffer(layer))
        found = self.run("pairs_backward", layer, (rows + num_above) * width, grad=grad)
        if not is_last:
            self.lend(layer + 1, h=None, dz=None)
        sums, above = found.view(-1, width)[:, :outputs].split((rows, num_above))
        return sums, None if is_last else above


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
        passes.lend(len(weights), h=None)
        ctx.save_for_backward(x, gain, shift, *parameters)
        ctx.passes, ctx.moments, ctx.eps, ctx.found = passes, moments, eps, tuple(found)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, gain, shift, *parameters = ctx.saved_tensors
        passes, grad = ctx.passes, grad.contiguous()
        num_layers, num_pairs = len(passes.layers), x.shape[1]
        grads = [torch.zeros_like(p) for p in parameters]
        for layer in range(2, num_layers + 1):
            passes.lend(layer, h=passes.buffer(layer))
        passes.run("pairs_products")
        for layer in range(num_layers, 0, -1):
            mean, var = ctx.found[layer - 1]
            inverse = (var + ctx.eps[layer - 1]).rsqrt()
            scale = parameters[4 * layer - 2] * inverse
            (s1, *s2), above = passes.gradients(layer, grad)
            if above is not None:
                grads[4 * layer] = above[..., None]
            if layer > 1:
                s2 = s2[0]
                slope = -scale * inverse.square() * s2 / num_pairs
                passes.set(layer, slope=slope, offset=-scale * s1 / num_pairs - slope * mean)
            else:
                weight = parameters[0][..., 0].double()
                product = torch.stack(s2, 1)  # (outputs, C), of dz with the inputs
                s2 = (weight * gain * product).sum(1)
                by_moments = (inverse.square() * s2)[:, None] * ((weight * gain) @ ctx.moments)
                product = (product - by_moments) * scale[:, None]
                dgain = (product * weight).sum(0)
                grads[0] = (product * gain)[..., None]
            grads[4 * layer - 2], grads[4 * layer - 1] = s2 * inverse, s1
        passes.lend(1, dz=None)
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
    if not 1 <= len(products) == len(norms) - 1:
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

    Every batch norm takes a pass over the pairs.

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
            track(norm, m + shift, v, x.shape[1])
    return out
