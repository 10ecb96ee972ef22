"""What every graph does with the inputs first, and with the result last."""

import torch

# Score of a key that does not exist: finite, so that jets without any particle give no NaN.
NO_KEY = -1e30


class CutInputs:
    """Inputs without what stands in the padding, cut to the last particle of any jet.

    What a network computes of each particle it computes of the real ones only, which are rows of
    one matrix, R for all jets. A place of padding is among them where a jet has no first particle,
    so that there is a row at least.

    Parameters
    ----------
    graph : jetzoo.export.graph.Graph
    mask : str
        Name of the mask (B, 1, N).
    inputs : dict of str to int
        Names of the inputs (B, C, N) that the network looks at, and their channels.

    Attributes
    ----------
    real : str, (B, 1, n)
        Of bool: where there is a particle.
    kept : str, (B, 1, n)
        Of bool: what has a row.
    length : str, (1,)
        n, of int64.
    inputs : list of str, (B, C, n)
        Zero in the padding.
    flaw : str, (B, 1, 1)
        0, or NaN for a jet with a value that is NaN or infinite in a real particle.
    """

    def __init__(self, graph, mask, inputs):
        graph.part("inputs")
        real = graph.cast(mask, "BOOL")
        counts = graph("ReduceSum", graph.cast(real, "FLOAT"), [0, 1], keepdims=0)  # (N,)
        some = graph.cast(graph.cast(counts, "BOOL"), "INT32")
        last = graph("ArgMax", some, axis=0, select_last_index=1)
        self.length = graph("Add", last, [1])
        x = graph("Concat", *inputs, axis=1)
        self.real, x = (graph("Slice", each, [0], self.length, [2]) for each in (real, x))
        x = graph("Where", self.real, x, 0.0)
        self.flaw = graph("ReduceSum", graph("Mul", x, 0.0), [1, 2])
        self.inputs = graph("Split", x, list(inputs.values()), axis=1, outputs=len(inputs))
        column = graph("Range", 0, graph("Squeeze", self.length), 1)  # (n,)
        self.kept = graph("Or", self.real, graph("Equal", column, 0))
        self.flat = graph("Reshape", self.kept, [-1])  # (B n,)
        row = graph("Sub", graph("CumSum", graph.cast(self.flat, "INT64"), 0), 1)
        self.place = graph("Reshape", row, graph("Concat", [-1], self.length, axis=0))  # (B, n)

    def rows(self, graph, x, channels):
        """One of the inputs (B, C, n) as rows (R, C)."""
        x = graph("Reshape", graph("Transpose", x, perm=[0, 2, 1]), [-1, channels])
        return self.take(graph, x)

    def take(self, graph, x):
        """The rows (R, C) of all places (B n, C)."""
        return graph("Compress", x, self.flat, axis=0)

    def pad(self, graph, x):
        """Rows (R, ...) at their places (B, n, ...); others of the jet stand in the padding."""
        return graph("Gather", x, self.place, axis=0)


def head(graph, x, layers, flaw, output):
    """The fully connected layers: rows (B, D) to the output.

    Parameters
    ----------
    graph : jetzoo.export.graph.Graph
    x : str, (B, D)
    layers : list of nn.Module
        See :func:`head_layers`.
    flaw : str, (B, 1, 1)
        See :class:`CutInputs`.
    output : str
        ``embedding`` for what enters the last layer, ``logits`` or ``probabilities``.
    """
    graph.part("head")
    for layer in layers[:-1] if output == "embedding" else layers:
        relu = isinstance(layer, torch.nn.ReLU)
        x = graph("Relu", x) if relu else graph.linear(x, layer.weight, layer.bias)
    x = graph("Add", x, graph("Squeeze", flaw, [2]))
    if output == "probabilities":
        graph("Softmax", x, axis=1)


def head_layers(*modules):
    """List the layers of a head, or None if there are others than linear ones and ReLU.

    The last one is linear. Dropout does nothing in eval mode.
    """
    leaves = [
        leaf for module in modules for leaf in module.modules() if not len([*leaf.children()])
    ]
    layers = [leaf for leaf in leaves if type(leaf) not in (torch.nn.Dropout, torch.nn.Identity)]
    known = all(type(layer) in (torch.nn.Linear, torch.nn.ReLU) for layer in layers)
    return layers if known and layers and type(layers[-1]) is torch.nn.Linear else None
