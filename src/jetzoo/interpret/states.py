"""The residual stream: what particles and class token of a network hold after each layer."""

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch

from jetzoo import UserError
from jetzoo.nn.packing import mean_over_particles

from .recorder import transformer


@dataclass(frozen=True)
class Place:
    """Where in a network a state is: the mean over particles, or the class token, after a layer.

    Attributes
    ----------
    kind : {"particle", "class"}
    layer : int
        From 1; particles after layer 0 are embedded and no more.
    """

    kind: str
    layer: int

    def __str__(self):
        if self.layer == 0:
            return "embedding"
        return f"layer {self.layer}" if self.kind == "particle" else f"class layer {self.layer}"


@contextmanager
def record_states(model):
    """While open, the states of a network are recorded.

    Parameters
    ----------
    model : nn.Module
        With a transformer, see :func:`jetzoo.interpret.recorder.transformer`.

    Yields
    ------
    dict of Place to Tensor, (B, D)
        Of the last batch.

    Raises
    ------
    UserError
        If the network is no transformer.
    """
    core = transformer(model)
    if core is None:
        raise UserError("This network has no residual stream: it is no transformer.")
    states = {}

    def after_particles(layer):
        def hook(module, args, output):
            if layer == 1:
                states[Place("particle", 0)] = mean_over_particles(args[0], args[1])
            states[Place("particle", layer)] = mean_over_particles(output, args[1])

        return hook

    def after_class(layer):
        def hook(module, args, output):
            states[Place("class", layer)] = output[:, 0]

        return hook

    with ExitStack() as stack:
        for blocks, hook in ((core.blocks, after_particles), (core.cls_blocks, after_class)):
            for layer, block in enumerate(blocks, start=1):
                stack.callback(block.register_forward_hook(hook(layer)).remove)
        yield states


@torch.inference_mode()
def logit_lens(model, state):
    """Scores that the end of a network gives to a state, as if no layer came after it.

    Parameters
    ----------
    model : nn.Module
    state : Tensor, (B, D)

    Returns
    -------
    Tensor, (B, num_classes)
        Probabilities.
    """
    # A file of weaver's users may have a wrapper of its own around the network.
    network = next(m for m in model.modules() if hasattr(m, "core_and_head"))
    core, head = network.core_and_head()
    out = core.norm(state)
    if core.fc is not None:
        out = core.fc(out)
    return head(out).softmax(1)
