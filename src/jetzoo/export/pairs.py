"""The pair interaction of ParT as a graph of ONNX, on one triangle of the real pairs."""

import math

import numpy as np

from ..nn.kinematics import EPS, LARGEST, SMALLEST


def pair_bias(graph, folded, vectors, kept, length):
    """The bias (H, B, n, n) of a folded :class:`jetzoo.nn.pairs.PairEmbed`.

    Parameters
    ----------
    graph : jetzoo.export.graph.Graph
    folded : jetzoo.engine.layers.FoldedPairEmbed
    vectors : str, (B, 4, n)
    kept : str, (B, 1, n)
        Of bool: which particles have a bias; one at least.
    length : str, (1,)
        n.

    Returns
    -------
    str, (H, B, n, n)
        Finite, but undefined for particles that are not kept.
    """
    graph.part("pair_embed")
    column = graph("Range", 0, graph("Squeeze", length), 1)  # (n,)
    row = graph("Unsqueeze", column, [1])  # (n, 1)
    pairs = graph("And", kept, graph("Transpose", kept, perm=[0, 2, 1]))  # (B, n, n)
    pairs = graph("And", pairs, graph("LessOrEqual", column, row))
    pairs = graph("Reshape", pairs, [-1])  # (B n n,)
    x = graph("Transpose", pair_features(graph, vectors), perm=[0, 2, 3, 1])
    x = graph("Compress", graph("Reshape", x, [-1, 4]), pairs, axis=0)  # (P, 4)
    x = graph("Log", graph("Clip", x, EPS, LARGEST))
    for layer in folded.layers:
        x = graph.linear(x, layer.weight, layer.bias)
        x = graph.gelu(x) if layer.gelu else x
    # Pairs up to and including (i, j). Of (i, j) and (j, i) the later one is computed: the larger
    # number is the place of both.
    place = graph("Sub", graph("CumSum", graph.cast(pairs, "INT64"), 0), 1)
    place = graph("Reshape", place, graph("Concat", [-1], length, length, axis=0))  # (B, n, n)
    place = graph("Max", place, graph("Transpose", place, perm=[0, 2, 1]))
    x = graph("Gather", x, place, axis=0)  # (B, n, n, H)
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
