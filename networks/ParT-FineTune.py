"""Particle Transformer with pretrained weights and a new last layer ``fc``, named as published.

Give weights of ``ParT`` with ``--load-model-weights``; their last layer is left out. The new layer
learns 50 times faster than the rest unless ``--optimizer-option lr_mult`` says otherwise.
"""

from pathlib import Path

from jetzoo.nn import finetune
from jetzoo.plugin import build, get_evaluate_fn, get_loss, get_train_fn  # noqa: F401 - weaver's
from jetzoo.repository import network_module

ParT = network_module(Path(__file__).with_name("ParT.py")).ParT


def get_model(data_config, **kwargs):
    """Build the network for weaver; options are those of ``ParT``."""
    network, info = build(ParT, data_config, **kwargs)
    part = getattr(network, "part", network)  # of several collections
    old = "mod.fc" if part is network else "mod.part.fc"
    fc, part.fc = part.fc, None
    for_inference = kwargs.get("for_inference", False) and part.gives_classes
    options = {"for_inference": for_inference, "embedding": part.embedding}
    return finetune.FineTune(network, "fc", fc[-1], old=old, **options), info


init_opt = finetune.init_opt("fc.*")
