"""The fully connected layers at the end of a network, and what it gives."""

import torch
from torch import nn


def classifier(dim, fc_params, num_classes):
    """Hidden layers with ReLU and dropout, and the layer of the logits.

    Parameters
    ----------
    dim : int
        Width of the input.
    fc_params : sequence of (int, float)
        Width and dropout of each hidden layer.
    num_classes : int

    Returns
    -------
    nn.Sequential
    """
    layers = []
    for width, rate in fc_params:
        layers.append(nn.Sequential(nn.Linear(dim, width), nn.ReLU(), nn.Dropout(rate)))
        dim = width
    return nn.Sequential(*layers, nn.Linear(dim, num_classes))


def outputs(token, fc, softmax=False, embedding=False):
    """What a network gives of its normalised class token.

    Parameters
    ----------
    token : Tensor, (B, D)
    fc : callable
        Gives logits, (B, num_classes).
    softmax : bool
        Turn the logits into probabilities.
    embedding : bool
        Append the token, see :func:`split_embedding`.

    Returns
    -------
    Tensor, (B, num_classes) or (B, num_classes + D)
    """
    out = fc(token)
    if softmax:
        out = out.softmax(1)
    return torch.cat((out, token), dim=1) if embedding else out


def split_embedding(out, embed_dim):
    """Logits (B, num_classes) and embedding (B, D) of :func:`outputs`.

    Parameters
    ----------
    out : Tensor, (B, num_classes + D)
    embed_dim : int or None
        D; None gives ``out`` as it is.
    """
    return out if embed_dim is None else out.tensor_split([out.shape[1] - embed_dim], dim=1)


class Outputs(nn.Sequential):
    """A norm and the layers after it, with :func:`outputs` of what the norm gives.

    Parameters
    ----------
    norm, *layers : nn.Module
    softmax, embedding : bool
        See :func:`outputs`.
    """

    def __init__(self, norm, *layers, softmax=False, embedding=False):
        super().__init__(norm, *layers)
        self.softmax = softmax
        self.embedding = embedding

    def forward(self, cls):
        """Class token (B, D) to (B, num_classes) or (B, num_classes + D)."""
        norm, *layers = self
        return outputs(norm(cls), nn.Sequential(*layers), self.softmax, self.embedding)
