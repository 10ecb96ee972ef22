"""The weights of a folded ParticleNet in the order in which its kernels in C++ read them."""

from ctypes import POINTER, Structure, c_int32, c_void_p

import torch

from jetzoo.engine.dense import fold_batch_norm
from jetzoo.native.part_weights import PackedArrays
from jetzoo.native.structures import DenseWeights


class EdgeBlockWeights(Structure):
    """An edge convolution (``graph.h``)."""

    _fields_ = [
        *((name, c_int32) for name in ("neighbours", "num_layers", "has_shortcut")),
        ("first", DenseWeights),
        ("layers", POINTER(DenseWeights)),
        ("shortcut", POINTER(DenseWeights)),
    ]


class GraphWeights(Structure):
    """A ParticleNet without its head (``graph.h``)."""

    _fields_ = [
        *((name, c_int32) for name in ("num_points", "num_features", "num_blocks", "has_fusion")),
        *((name, c_void_p) for name in ("scale", "shift")),
        ("blocks", POINTER(EdgeBlockWeights)),
        ("fusion", POINTER(DenseWeights)),
    ]


class PackedGraph(PackedArrays):
    """The weights of a ParticleNet whose edge convolutions are folded.

    Parameters
    ----------
    network : nn.Module
        With ``bn_fts``, ``edge_convs`` and ``fusion_block``.

    Attributes
    ----------
    struct : GraphWeights
    """

    def __init__(self, network):
        super().__init__()
        scale, shift = fold_batch_norm(network.bn_fts)
        blocks = [self.block(edge_conv) for edge_conv in network.edge_convs]
        fusion = []
        if network.fusion_block is not None:
            conv, bn, _ = network.fusion_block
            gain, offset = fold_batch_norm(bn)
            fusion = [self.matrix(conv.weight.flatten(1) * gain[:, None], offset)]
        self.struct = GraphWeights(
            num_points=2,
            num_features=len(scale),
            num_blocks=len(blocks),
            has_fusion=len(fusion),
            scale=self.floats(scale),
            shift=self.floats(shift),
            blocks=self.array(EdgeBlockWeights, blocks),
            fusion=self.array(DenseWeights, fusion),
        )

    def block(self, edge_conv):
        """Structure of a folded edge convolution."""
        first, *layers = (self.matrix(conv.weight, conv.bias) for conv in edge_conv.convs)
        shortcut = edge_conv.sc
        return EdgeBlockWeights(
            neighbours=edge_conv.k,
            num_layers=len(layers),
            has_shortcut=shortcut is not None,
            first=first,
            layers=self.array(DenseWeights, layers),
            shortcut=self.array(
                DenseWeights,
                [] if shortcut is None else [self.matrix(shortcut.weight, shortcut.bias)],
            ),
        )


def unfit(network):
    """Why the kernels cannot run a folded ParticleNet, or None.

    Parameters
    ----------
    network : nn.Module
        See :class:`PackedGraph`.
    """
    layers = [conv for edge_conv in network.edge_convs for conv in edge_conv.convs]
    if not all(isinstance(layer, torch.nn.Linear) for layer in layers):
        return "its edge convolutions compute something else"
    if any(len(layer.weight) % 8 for layer in layers) or any(
        len(edge_conv.convs[0].weight) % 16 for edge_conv in network.edge_convs
    ):
        return "its widths are not multiples of 8"
    return None
