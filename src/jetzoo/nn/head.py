"""The fully connected layers at the end of a network."""

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
