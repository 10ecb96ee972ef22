"""The pair interaction of ParT as a graph of ONNX, on one triangle of the pairs."""

import math

import numpy as np

from ..nn.kinematics import EPS, LARGEST, SMALLEST


def pair_bias(graph, folded, vectors, length):
    """The bias (H, B, n, n) of a folded :class:`jetzoo.nn.pairs.PairEmbed`.

    Parameters
    ----------
    graph : jetzoo.export.graph.Graph
    folded : jetzoo.engine.layers.FoldedPairEmbed
    vectors : str, (B, 4, n)
    length : str, (1,)
        n.
    """
    graph.part("pair_embed")
    column = graph("Range", 0, graph("Squeeze", length), 1)  # (n,)
    row = graph("Unsqueeze", column, [1])  # (n, 1)
    lower = graph("Reshape", graph("LessOrEqual", column, row), [-1])  # (n * n,)
    shape = graph("Concat", [-1, 4], graph("Mul", length, length), axis=0)
    x = graph("Reshape", pair_features(graph, vectors), shape)
    x = graph("Compress", graph("Transpose", x, perm=[0, 2, 1]), lower, axis=1)  # (B, P, 4)
    batch_and_pairs = graph("Slice", graph("Shape", x), [0], [2])
    x = graph("Log", graph("Clip", graph("Reshape", x, [-1, 4]), EPS, LARGEST))
    for layer in folded.layers:
        x = graph.linear(x, layer.weight, layer.bias)
        x = graph.gelu(x) if layer.gelu else x
    x = graph("Reshape", x, graph("Concat", batch_and_pairs, [folded.num_heads], axis=0))
    # Pair (i, j) of the lower triangle has the rank i (i + 1) / 2 + j, which is larger than that
    # expression of (j, i): the maximum of both is the rank of either.
    above = graph("Div", graph("Mul", row, graph("Add", row, 1)), 2)
    rank = graph("Add", above, column)
    x = graph("Gather", x, graph("Max", rank, graph("Transpose", rank)), axis=1)  # (B, n, n, H)
    x = graph("Transpose", x, perm=[3, 0, 1, 2])
    if folded.remove_self_pair:
        x = graph("Where", graph("Equal", column, row), 0.0, x)
    return x


def pair_features(graph, vectors):
    """The numbers of which :func:`jetzoo.nn.kinematics.pair_features` takes the logarithms.

    What float32 would cancel is computed in float64: the differences of rapidities and angles, and
    the masses.

    Parameters
    ----------
    graph : jetzoo.export.graph.Graph
    vectors : str, (B, 4, n)

    Returns
    -------
    str, (B, 4, n, n)
    """
    p = graph.cast(vectors, "DOUBLE")
    px, py, pz, energy = graph("Split", p, axis=1, outputs=4)  # (B, 1, n)
    pt = graph("Sqrt", graph("Add", graph("Mul", px, px), graph("Mul", py, py)))
    spread = graph("Max", graph("Sub", energy, pz), _double(SMALLEST))
    ratio = graph("Add", graph("Div", graph("Add", pz, pz), spread), _double(1))
    rapidity = graph("Log", graph("Max", ratio, _double(SMALLEST)))
    rapidity = graph("Mul", rapidity, _double(0.5))
    places = graph("Concat", rapidity, azimuth(graph, px, py, pt), axis=1)  # (B, 2, n)
    distance = graph("Abs", graph("Sub", *_rows_and_columns(graph, places)))  # (B, 2, n, n)
    # An angle may be shorter the other way round, a difference of rapidities not.
    around = graph("Sub", _double([[[math.inf]], [[2 * math.pi]]]), distance)
    distance = graph.cast(graph("Min", distance, around), "FLOAT")
    delta = graph("ReduceL2", distance, axes=[1])  # (B, 1, n, n)
    pts = _rows_and_columns(graph, graph.cast(pt, "FLOAT"))
    pt_min = graph("Min", *pts)
    kt = graph("Mul", pt_min, delta)
    z = graph("Div", pt_min, graph("Max", graph("Add", *pts), EPS))
    # m2 of a pair: that of both particles, and 2 (E E - p p).
    twice = graph("Mul", p, _double([[-2], [-2], [-2], [2]]))
    products = graph("MatMul", graph("Transpose", twice, perm=[0, 2, 1]), p)  # (B, n, n)
    m2 = graph("ReduceSum", graph("Mul", twice, p), [1])  # (B, 1, n), twice that of a particle
    m2 = graph("Mul", m2, _double(0.5))
    m2 = graph("Add", m2, graph("Transpose", m2, perm=[0, 2, 1]))
    m2 = graph("Unsqueeze", graph.cast(graph("Add", products, m2), "FLOAT"), [1])
    return graph("Concat", kt, z, delta, m2, axis=1)


def azimuth(graph, px, py, pt):
    """Azimuth (B, 1, n) up to multiples of 2 pi, in float64.

    onnxruntime has arcs in float32 only: a step of Newton's method restores float64.
    """
    half = graph("Max", graph("Add", pt, graph("Abs", px)), _double(SMALLEST))
    angle = graph("Atan", graph.cast(graph("Div", py, half), "FLOAT"))  # at most pi / 4
    angle = graph.cast(graph("Add", angle, angle), "DOUBLE")
    opposite = graph("Sub", _double(math.pi), angle)
    angle = graph("Where", graph("Less", px, _double(0)), opposite, angle)
    error = graph(
        "Sub", graph("Mul", py, graph("Cos", angle)), graph("Mul", px, graph("Sin", angle))
    )
    return graph("Add", angle, graph("Div", error, graph("Max", pt, _double(SMALLEST))))


def _rows_and_columns(graph, x):
    """(B, C, n) as (B, C, n, 1) and (B, C, 1, n)."""
    return graph("Unsqueeze", x, [3]), graph("Unsqueeze", x, [2])


def _double(x):
    return np.array(x, np.float64)
