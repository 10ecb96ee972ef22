"""Figures of what a network looks at. Each function returns a ``matplotlib.figure.Figure``."""

from .ablations import ablation
from .distributions import importance, score_ratio, slots, sparsity, weight_distribution
from .jets import attention_graph, attention_maps, interaction, layer_matrices, neighbour_graph
from .knowledge import class_by_layer, probe_map
from .primitives import WEIGHT_NORM

__all__ = [
    "WEIGHT_NORM",
    "ablation",
    "attention_graph",
    "attention_maps",
    "class_by_layer",
    "importance",
    "interaction",
    "layer_matrices",
    "neighbour_graph",
    "probe_map",
    "score_ratio",
    "slots",
    "sparsity",
    "weight_distribution",
]
