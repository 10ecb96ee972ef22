"""What every graph does with the inputs first, and with the result last."""

import torch

# Score of a key that does not exist: finite, so that jets without any particle give no NaN.
NO_KEY = -1e30


class CutInputs:
    """Inputs without what stands in the padding, cut to the last particle of any jet.

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

    def rows(self, graph, x, channels):
        """One of the inputs as rows (T, C), T = B n."""
        return graph("Reshape", graph("Transpose", x, perm=[0, 2, 1]), [-1, channels])


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
