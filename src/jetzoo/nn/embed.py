"""Particle features to tokens."""

import torch.nn.functional as F
from torch import nn

from ..modules import fusible
from ..native import edges
from ..native.chains import gelu_norm, layer_norm
from ..native.dense import dense


def batch_norm(norm, x):
    """Apply a batch norm over all rows of ``x`` (..., C).

    A training batch of fewer than two rows has no variance: the running statistics stand for it.
    """
    rows = x.flatten(0, -2)
    if norm.training and len(rows) < 2:
        rows = F.batch_norm(
            rows, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps
        )
    else:
        rows = norm(rows)
    return rows.view_as(x)


def norm_relu(norm, x):
    """``batch_norm(norm, x).relu()`` of rows (..., C)."""
    rows = x.flatten(0, -2)[:, None]
    if edges.takes(norm, rows):
        return edges.norm_relu(norm, rows).view_as(x)
    return batch_norm(norm, x).relu()


def mean_norm_relu(norm, x):
    """The mean over the last but one axis of ``batch_norm(norm, x).relu()``, (..., k, C)."""
    groups = x.flatten(0, -3)
    if edges.takes(norm, groups):
        return edges.norm_relu(norm, groups).view(*x.shape[:-2], -1)
    return batch_norm(norm, x).relu().mean(-2)


class Embed(nn.Module):
    """Particle features to tokens: batch norm, then LayerNorm - Linear - GELU for each width.

    Parameters
    ----------
    input_dim : int
    dims : sequence of int
    """

    layer_kinds = {"": "embedding"}

    def __init__(self, input_dim, dims):
        super().__init__()
        self.input_bn = nn.BatchNorm1d(input_dim)
        layers = []
        for dim in dims:
            layers += [nn.LayerNorm(input_dim), nn.Linear(input_dim, dim), nn.GELU()]
            input_dim = dim
        self.embed = nn.Sequential(*layers)

    def forward(self, x):
        """(..., C) to (..., D)."""
        x = batch_norm(self.input_bn, x)
        if not fusible(self.parts()):
            return self.embed(x)
        norm, *layers, last, act = self.embed
        x = layer_norm(x, norm)
        for linear, norm in zip(layers[::3], layers[2::3], strict=True):
            x = gelu_norm(x, linear, norm)
        return act(dense(last, x))

    def parts(self):
        """List the modules that a fused form computes together, with their classes."""
        kinds = (nn.LayerNorm, nn.Linear, nn.GELU) * (len(self.embed) // 3)
        return [(self.embed, nn.Sequential), *zip(self.embed, kinds, strict=True)]

    def normalised_layers(self):
        """List the layers whose weight takes up the gain of a layer norm, with that norm."""
        return list(zip(self.embed[1::3], self.embed[0::3], strict=True))
