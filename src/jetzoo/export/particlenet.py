"""The folded ParticleNet as a graph of ONNX."""

import numpy as np
import torch

from ..engine.dense import fold_batch_norm
from .cutting import CutInputs, head, head_layers

# Closeness of what stands for a neighbour that a jet lacks: behind all particles, before padding.
NOBODY = float(np.finfo(np.float32).min)


def layers_of_head(core, last):
    """The fully connected layers, or None if no graph can be written of a ParticleNet.

    Parameters
    ----------
    core : nn.Module
        ``DynamicGraphNetwork`` of ``networks/PN.py`` after :func:`jetzoo.engine.folding.fold`.
    last : nn.Module
        What follows it.
    """
    convs = [conv for edges in core.edge_convs for conv in edges.convs]
    folded = all(type(conv) is torch.nn.Linear for conv in convs)
    return head_layers(core.fc, last) if folded else None


def particlenet(graph, core, last, names, output):
    """Write a folded ParticleNet.

    Parameters
    ----------
    graph : jetzoo.export.graph.Graph
    core, last : nn.Module
        See :func:`layers_of_head`.
    names : sequence of str
        Of the inputs: points (B, 2, N), features (B, C, N), four-vectors (B, 4, N) and the mask
        (B, 1, N).
    output : str
        See :func:`jetzoo.export.cutting.head`.
    """
    points, features, _, mask = names
    channels = core.bn_fts.num_features
    cut = CutInputs(graph, mask, {points: 2, features: channels})
    points, features = cut.inputs
    neighbours = Neighbours(graph, cut)
    difference = graph("Sub", graph("Unsqueeze", points, [3]), graph("Unsqueeze", points, [2]))
    distance = graph("ReduceSumSquare", difference, axes=[1], keepdims=0)  # (B, n, n)
    closeness = graph("Neg", distance)
    x = cut.rows(graph, features, channels)  # (R, C)
    scale, shift = fold_batch_norm(core.bn_fts)
    x = graph("Add", graph("Mul", x, scale), shift)
    found = []
    for i, edges in enumerate(core.edge_convs):
        graph.part(f"edge_convs.{i}")
        if found:
            closeness = neighbours.closeness(x)
        x = edge_convolution(graph, edges, x, neighbours, closeness)
        found.append(x)
    if core.fusion_block is not None:
        graph.part("fusion_block")
        conv, bn, _ = core.fusion_block
        scale, shift = fold_batch_norm(bn)
        weight = conv.weight.flatten(1) * scale[:, None]
        x = graph("Relu", graph.linear(graph("Concat", *found, axis=1), weight, shift))
    graph.part("average")
    x = cut.pad(graph, x)  # (B, n, C)
    real = graph.cast(cut.real, "FLOAT")  # (B, 1, n)
    weights = graph("Div", real, graph("Max", graph("ReduceSum", real, [2]), 1.0))
    x = graph("Squeeze", graph("MatMul", weights, x), [1])  # (B, C)
    head(graph, x, layers_of_head(core, last), cut.flaw, output)


class Neighbours:
    """Which particles may be whose neighbours.

    Parameters
    ----------
    graph : jetzoo.export.graph.Graph
    cut : jetzoo.export.cutting.CutInputs
    """

    def __init__(self, graph, cut):
        self.graph, self.cut = graph, cut
        self.batch = graph("Slice", graph("Shape", cut.real), [0], [1])
        column = graph("Range", 0, graph("Squeeze", cut.length), 1)  # (n,)
        row = graph("Unsqueeze", column, [1])  # (n, 1)
        other = graph("Not", graph("Equal", column, row))
        self.excluded = graph("Where", graph("And", cut.real, other), 0.0, -np.inf)  # (B, n, n)
        self.jet = graph("Range", 0, graph("Squeeze", self.batch), 1)  # (B,)

    def closeness(self, x):
        """Minus half the squared distances (B, n, n) of rows (R, C), but for a constant in each."""
        graph = self.graph
        x = self.cut.pad(graph, x)  # (B, n, C)
        products = graph("MatMul", x, graph("Transpose", x, perm=[0, 2, 1]))  # (B, n, n)
        squares = graph("Mul", graph("ReduceSumSquare", x, axes=[2]), 0.5)  # (B, n, 1)
        return graph("Sub", products, graph("Transpose", squares, perm=[0, 2, 1]))

    def nearest(self, closeness, k):
        """Which rows are the ``k`` closest others of each, (R, k); -1 where a jet has fewer.

        Parameters
        ----------
        closeness : str, (B, n, n)
        k : int
        """
        graph, length = self.graph, self.cut.length
        nobody = graph("Expand", NOBODY, graph("Concat", self.batch, length, [k], axis=0))
        closeness = graph("Add", closeness, self.excluded)
        closeness = graph("Concat", closeness, nobody, axis=2)  # (B, n, n + k)
        _, index = graph("TopK", closeness, [k], axis=2, sorted=0, outputs=2)
        first = graph("Mul", self.jet, graph("Add", length, k))
        index = graph("Add", index, graph("Reshape", first, [-1, 1, 1]))
        index = self.cut.take(graph, graph("Reshape", index, [-1, k]))  # (R, k)
        nobody = graph("Expand", -1, graph("Concat", self.batch, [k], axis=0))
        rows = graph("Reshape", graph("Concat", self.cut.place, nobody, axis=1), [-1])
        return graph("Gather", rows, index)


def edge_convolution(graph, edges, x, neighbours, closeness):
    """Rows (R, C) to rows (R, C'), see ``EdgeConv`` in ``networks/PN.py``."""
    first, *others = edges.convs
    width = first.out_features // 2
    parts = graph.linear(x, first.weight, first.bias)
    centre, neighbour = graph("Split", parts, [width, width], axis=1, outputs=2)
    # Neighbours that do not exist add nothing: they are the last row.
    neighbour = graph("Concat", neighbour, torch.zeros(1, width), axis=0)
    y = graph("Gather", neighbour, neighbours.nearest(closeness, edges.k))  # (R, k, C')
    y = graph("Relu", graph("Add", y, graph("Unsqueeze", centre, [1])))
    y = graph("Reshape", y, [-1, width])
    for layer in others:
        y = graph("Relu", graph.linear(y, layer.weight, layer.bias, int8=True))
        width = layer.out_features
    y = graph("ReduceMean", graph("Reshape", y, [-1, edges.k, width]), axes=[1], keepdims=0)
    shortcut = x if edges.sc is None else graph.linear(x, edges.sc.weight, edges.sc.bias)
    return graph("Relu", graph("Add", shortcut, y))
