"""Particle Transformer (arXiv 2202.03772): full attention, biased by the pair interaction.

Weights interchange with weaver-core's ``ParticleTransformer`` and with the published files.
"""

from jetzoo.nn.collections import CollectionTransformer
from jetzoo.nn.transformer import JetClassifier, ParticleTransformer
from jetzoo.plugin import build, get_evaluate_fn, get_loss, get_train_fn  # noqa: F401 - weaver's


class ParT(ParticleTransformer):
    """The skeleton as it is; ``pair_bias=False`` gives the plain variant without interaction.

    Cost: O(N^2) per layer in time; the pair embedding dominates memory.
    """

    of_collections = CollectionTransformer


def get_model(data_config, **kwargs):
    """Build the network for weaver; options are those of ``ParticleTransformer``.

    A data config of several collections of particles gives one with an embedding for each, whose
    weights interchange with weaver-core's ``ParticleTransformerTagger``.
    """
    part, info = build(ParT, data_config, **kwargs)
    return JetClassifier(part), info
