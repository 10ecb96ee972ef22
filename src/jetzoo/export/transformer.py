"""The folded Particle Transformer as a graph of ONNX.

Most jets that onnxruntime sees come alone, and it spends a microsecond or two on each node: nodes
are few and large. The real tokens of all jets are rows of one matrix, the mask is part of the bias
that all blocks share, and batches are cut to their longest jet first.
"""

import torch

from .cutting import NO_KEY, CutInputs, head, head_layers
from .pairs import pair_bias

# Matrices with fewer inputs stay in float32.
SMALLEST_INT8 = 16


def layers_of_head(folded):
    """The layers after the norm of the class token, or None if no graph can be written."""
    return head_layers(*folded.head[1:]) if folded.full and not folded.sort_by_pt else None


def transformer(graph, folded, names, output):
    """Write a folded transformer with full attention.

    Parameters
    ----------
    graph : jetzoo.export.graph.Graph
    folded : jetzoo.engine.transformer.FoldedTransformer
        In float32.
    names : sequence of str
        Of the inputs: points (B, 2, N), features (B, C, N), four-vectors (B, 4, N) and the mask
        (B, 1, N).
    output : str
        See :func:`jetzoo.export.cutting.head`.
    """
    _, features, vectors, mask = names
    num_features = len(folded.embed.scale)
    cut = CutInputs(graph, mask, {features: num_features, vectors: 4})
    features, vectors = cut.inputs
    no_key = graph("Where", cut.real, 0.0, NO_KEY)  # (B, 1, n)
    dim, heads = folded.cls_token.shape[1], folded.mixers[0].num_heads
    if folded.pair_embed is None:
        bias = graph("Tile", no_key, [heads, 1, 1])  # (H B, 1, n)
    else:
        bias = pair_bias(graph, folded.pair_embed, vectors, cut.kept, cut.length)
        bias = graph("Add", bias, no_key)
        shape = graph("Concat", [-1], cut.length, cut.length, axis=0)
        bias = graph("Reshape", bias, shape)  # (H B, n, n)
    graph.part("embed")
    x = embed(graph, folded.embed, cut.rows(graph, features, num_features))  # (R, D)
    shapes = AttentionShapes(graph, heads, dim // heads, cut.length)
    for i, (mixer, forward) in enumerate(zip(folded.mixers, folded.feed_forwards, strict=True)):
        graph.part(f"blocks.{i}")
        x = feed_forward(graph, forward, x, attention(graph, mixer, x, bias, shapes, cut))
    graph.part("cls_blocks")
    x = standardise(graph, x, folded.cls_mixers[0].eps, dim)
    x = cut.pad(graph, x)  # (B, n, D)
    no_key = graph("Concat", cut.flaw, no_key, axis=2)  # (B, 1, 1 + n)
    cls = graph("Add", graph("Squeeze", cut.flaw, [2]), folded.cls_token)  # (B, D)
    layers = zip(folded.cls_mixers, folded.cls_feed_forwards, strict=True)
    for i, (mixer, forward) in enumerate(layers):
        graph.part(f"cls_blocks.{i}")
        mixed = class_attention(graph, mixer, cls, x, no_key)
        cls = feed_forward(graph, forward, cls, mixed)
    norm = folded.head[0]
    cls = graph.layer_norm(cls, norm.eps, norm.weight, norm.bias)
    head(graph, cls, layers_of_head(folded), cut.flaw, output)


class AttentionShapes:
    """Shapes of what the self-attention of all blocks computes.

    Attributes
    ----------
    projected : list of int
        (R, 3 H, d).
    stacked : str
        (3 H B, n, d).
    heads : str
        (H, B, n, d).
    """

    def __init__(self, graph, heads, width, length):
        self.projected = [-1, 3 * heads, width]
        self.stacked = graph("Concat", [-1], length, [width], axis=0)
        self.heads = graph("Concat", [heads, -1], length, [width], axis=0)


def standardise(graph, x, eps, dim):
    """The norm whose affine part is in the matrix that follows."""
    return graph.layer_norm(x, eps, torch.ones(dim))


def embed(graph, folded, x):
    """Features (R, C) to tokens (R, D), see :class:`jetzoo.engine.layers.FoldedEmbed`."""
    x = graph("Add", graph("Mul", x, folded.scale), folded.shift)
    dim = len(folded.scale)
    for eps, layer in zip(folded.eps, folded.layers, strict=True):
        x = standardise(graph, x, eps, dim)
        x = graph.gelu(graph.linear(x, layer.weight, layer.bias, int8=dim >= SMALLEST_INT8))
        dim = len(layer.weight)
    return x


def attention(graph, folded, x, bias, shapes, cut):
    """Norm, self-attention and ``c_attn`` of a block: tokens (R, D) and bias (H B, n, n).

    See :class:`jetzoo.engine.layers.FoldedAttention`. The heads come first, so that queries, keys
    and values lie one behind the other after a single transposition.
    """
    dim = len(folded.out_proj.weight)
    x = standardise(graph, x, folded.eps, dim)
    x = graph.linear(x, folded.in_proj.weight, folded.in_proj.bias, int8=True)
    x = cut.pad(graph, graph("Reshape", x, shapes.projected))  # (B, n, 3 H, d)
    x = graph("Transpose", x, perm=[2, 0, 1, 3])
    x = graph("Reshape", x, shapes.stacked)
    q, k, v = graph("Split", x, axis=0, outputs=3)  # (H B, n, d)
    scores = graph("MatMul", q, graph("Transpose", k, perm=[0, 2, 1]))  # (H B, n, n)
    weights = graph("Softmax", graph("Add", scores, bias), axis=2)
    x = graph("Reshape", graph("MatMul", weights, v), shapes.heads)  # (H, B, n, d)
    x = graph("Reshape", graph("Transpose", x, perm=[1, 2, 0, 3]), [-1, dim])
    x = cut.take(graph, x)
    return graph.linear(x, folded.out_proj.weight, folded.out_proj.bias, int8=True)


def class_attention(graph, folded, cls, x, no_key):
    """Norm, attention of the class token and ``c_attn`` of a block.

    See :class:`jetzoo.engine.layers.FoldedClassAttention`; class tokens (B, D), standardised
    particles (B, n, D), and 0 or ``NO_KEY`` for the class token and the particles (B, 1, 1 + n).
    """
    heads, _, dim = folded.key.shape
    query = graph.linear(cls, folded.query.weight, folded.query.bias)
    query = graph("Reshape", query, [-1, heads, 1, dim // heads])
    query = graph("Reshape", graph("MatMul", query, folded.key), [-1, heads, dim])
    own = graph("Unsqueeze", standardise(graph, cls, folded.eps, dim), [1])
    keys = graph("Concat", own, x, axis=1)  # (B, 1 + n, D)
    scores = graph("MatMul", query, graph("Transpose", keys, perm=[0, 2, 1]))  # (B, H, 1 + n)
    weights = graph("Softmax", graph("Add", scores, no_key), axis=2)
    mean = graph("Reshape", graph("MatMul", weights, keys), [-1, heads, 1, dim])
    values = graph("MatMul", mean, folded.value.transpose(1, 2))  # (B, H, 1, d)
    values = graph("Reshape", values, [-1, dim])
    return graph.linear(values, folded.out.weight, folded.out.bias)


def feed_forward(graph, folded, x, mixed):
    """What a block does after the attention: tokens (R, D) to tokens.

    See :class:`jetzoo.engine.layers.FoldedFeedForward`.
    """
    eps_attn, eps_fc1, eps_fc2 = folded.norms
    x = graph("Add", x, graph.layer_norm(mixed, eps_attn, folded.scale, folded.shift))
    hidden = standardise(graph, x, eps_fc1, len(folded.scale))
    hidden = graph.linear(hidden, folded.fc1.weight, folded.fc1.bias, int8=True)
    hidden = standardise(graph, graph.gelu(hidden), eps_fc2, len(folded.fc1.weight))
    x = graph("Add", graph("Mul", x, folded.w_resid), folded.bias)
    return graph.linear(hidden, folded.fc2.weight, x, int8=True)
