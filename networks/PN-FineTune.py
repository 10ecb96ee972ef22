"""ParticleNet with pretrained weights and a new last layer ``fc_out``, named as published.

Give weights of ``PN`` with ``--load-model-weights``; their last layer is left out. The new layer
learns 50 times faster than the rest unless ``--optimizer-option lr_mult`` says otherwise.
"""

from pathlib import Path

from jetzoo.nn import finetune
from jetzoo.nn.inputs import arrange, take_arrangement
from jetzoo.plugin import build, get_evaluate_fn, get_loss, get_train_fn  # noqa: F401 - weaver's
from jetzoo.repository import network_module

ParticleNet = network_module(Path(__file__).with_name("PN.py")).ParticleNet


def get_model(data_config, **kwargs):
    """Build the network for weaver; options are those of ``ParticleNet``."""
    model, info = build(ParticleNet, data_config, **kwargs)
    layers = model.mod.fc
    old = f"mod.fc.{len(layers) - 1}"
    for_inference = kwargs.get("for_inference", False) and model.gives_classes
    fc_out = layers.pop(-1)
    tuned = finetune.FineTune(model.mod, "fc_out", fc_out, old=old, for_inference=for_inference)
    arrange(tuned, take_arrangement(model))
    return tuned, info


init_opt = finetune.init_opt("fc_out.*")
