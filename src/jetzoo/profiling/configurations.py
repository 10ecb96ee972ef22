"""Configurations: the forms of a network that can be put side by side, by name."""

import copy

from torch import nn

from jetzoo import UserError
from jetzoo.attention.backends import BACKENDS

CALIBRATION = 512  # jets, of int8

FORMS = {
    "base": "the network as it is",
    "packed": "the same; ParT and its variants compute real particles only",
    "padded": "weaver-core's own ParT or ParticleNet, on padded jets",
    "fast": "jetzoo.accelerate",
    "bf16": "jetzoo.accelerate with precision='bf16'",
    "int8": "jetzoo.accelerate with precision='int8'",
}
INFERENCE_ONLY = ("fast", "bf16", "int8")

TRIMMER = 6  # calls after which weaver's own networks cut batches to their longest jet


class WeaverNetwork(nn.Module):
    """weaver-core's own network with the weights of the zoo's ParT or PN, as weaver runs it.

    After some calls it cuts batches to their longest jet; in training it does so at random, and
    drops particles.

    Parameters
    ----------
    model : nn.Module
        Of ``networks/``.

    Raises
    ------
    UserError
        If the weights are not those of a ParT or ParticleNet of the published size.
    """

    def __init__(self, model):
        from weaver.nn.model.ParticleNet import ParticleNet
        from weaver.nn.model.ParticleTransformer import ParticleTransformer

        super().__init__()
        try:
            own, classes = model.mod, model.mod.fc[-1].out_features
            self.uses_points = hasattr(own, "edge_convs")
            if self.uses_points:
                self.mod = ParticleNet(
                    own.bn_fts.num_features,
                    classes,
                    conv_params=[(16, (64,) * 3), (16, (128,) * 3), (16, (256,) * 3)],
                    fc_params=[(256, 0.1)],
                    use_fusion=False,
                )
            else:
                self.mod = ParticleTransformer(
                    input_dim=own.embed.input_bn.num_features,
                    num_classes=classes,
                    use_pre_activation_pair=False,
                )
            self.mod.load_state_dict(own.state_dict())
        except (AttributeError, TypeError, RuntimeError) as error:
            raise UserError(
                "padded stands for weaver-core's own ParT or ParticleNet, whose weights are not "
                "those of this network."
            ) from error

    def forward(self, points, features, lorentz_vectors, mask):
        """(B, 2, N), (B, C, N), (B, 4, N) and (B, 1, N) to logits (B, num_classes)."""
        if self.uses_points:
            return self.mod(points, features, mask)
        return self.mod(features, lorentz_vectors, mask)


def check_names(names, trains):
    """Raise a :class:`jetzoo.UserError` unless all configurations are known and can do it."""
    for name in names:
        if name not in (*FORMS, *BACKENDS):
            raise UserError(
                f"There is no configuration {name!r}; choose from {', '.join((*FORMS, *BACKENDS))}."
            )
        if trains and name in INFERENCE_ONLY:
            raise UserError(f"{name} is for inference only: leave out --train.")
    if len(set(names)) < len(names):
        raise UserError("A configuration can be compared only once.")


def configure(name, model, rebuild, jets):
    """Make a form of a network.

    Parameters
    ----------
    name : str
        One of ``FORMS``, or an attention backend.
    model : nn.Module
        The network as it is; left so.
    rebuild : callable
        ``rebuild(**options)`` makes a network with other options.
    jets : callable
        ``jets(count)`` gives the inputs of so many jets, to calibrate int8 with.

    Returns
    -------
    nn.Module

    Raises
    ------
    UserError
        If the network has no such form.
    """
    if name in ("base", "packed"):
        return copy.deepcopy(model)
    device = next(model.parameters()).device
    if name == "padded":
        return WeaverNetwork(model).to(device)
    if name in BACKENDS:
        other = rebuild(attention=name).to(device)
        other.load_state_dict(model.state_dict())
        return other

    from jetzoo import accelerate

    options = {"precision": {"fast": "fp32"}.get(name, name)}
    if name == "int8":
        options["calibration"] = jets(CALIBRATION)
    try:
        return accelerate(model, **options)
    except (TypeError, ValueError) as error:
        raise UserError(f"{name} is not possible with this network: {error}.") from error
