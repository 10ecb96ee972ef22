"""Figures of what a network looks at. Each function returns a ``matplotlib.figure.Figure``."""

from .ablations import ablation
from .circuits import circuit_graph, node_effects
from .distributions import importance, score_ratio, slots, sparsity, weight_distribution
from .jets import attention_graph, attention_maps, interaction, layer_matrices, neighbour_graph
from .knowledge import class_by_layer, probe_map
from .primitives import WEIGHT_NORM

__all__ = [
    "WEIGHT_NORM",
    "ablation",
    "attention_graph",
    "attention_maps",
    "circuit_graph",
    "class_by_layer",
    "importance",
    "interaction",
    "layer_matrices",
    "neighbour_graph",
    "node_effects",
    "probe_map",
    "score_ratio",
    "slots",
    "sparsity",
    "weight_distribution",
]
