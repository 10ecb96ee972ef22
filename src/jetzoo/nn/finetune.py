"""A pretrained network with a new last layer, which learns faster than the rest."""

from torch import nn

from .head import outputs, split_embedding


class FineTune(nn.Module):
    """Backbone ``mod`` that keeps its pretrained weights, and a new last layer.

    Parameters
    ----------
    mod : nn.Module
        Gives (B, D).
    name : str
        Name of the new layer.
    layer : nn.Module
        The new layer, (B, D) to logits.
    old : str
        Name of the layer of the pretrained network that the new one replaces.
    for_inference : bool
        Return probabilities instead of logits.
    embedding : bool
        Return what the new layer is applied to, (B, D), as a second output.
    """

    def __init__(self, mod, name, layer, *, old, for_inference=False, embedding=False):
        super().__init__()
        self.mod = mod
        self.name = name
        self.old = old
        self.for_inference = for_inference
        self.appended = layer.in_features if embedding else None
        self.add_module(name, layer)
        self.layer_kinds = {name: "head"}

    def core_and_head(self):
        """Return the backbone and the new layer that follows it."""
        return self.mod, self.get_submodule(self.name)

    def forward(self, *inputs):
        """What the backbone takes, to (B, num_classes), or this and an embedding (B, D)."""
        layer, appends = self.get_submodule(self.name), self.appended is not None
        out = outputs(self.mod(*inputs), layer, self.for_inference, appends)
        return split_embedding(out, self.appended)

    def load_state_dict(self, state_dict, strict=True, assign=False):
        """Load pretrained weights without their last layer, or weights that this class saved.

        Always strict, because weaver loads pretrained weights with ``strict=False``, with which
        weights of another architecture would leave the network untrained without a word.

        Raises
        ------
        RuntimeError
            If anything but the last layer is missing, unexpected or of another shape.
        """
        new, old = f"{self.name}.", f"{self.old}."
        state = {name: value for name, value in state_dict.items() if not name.startswith(old)}
        if not any(name.startswith(new) for name in state):
            state |= {k: v for k, v in self.state_dict().items() if k.startswith(new)}
        return super().load_state_dict(state, strict=True, assign=assign)


def init_opt(pattern, factor=50):
    """The ``init_opt`` of a network file: weaver's, with a larger learning rate for the new layer.

    Parameters
    ----------
    pattern : str
        Regular expression on the beginning of parameter names.
    factor : float
        Multiplier of the learning rate. ``--optimizer-option lr_mult`` overrides both.
    """

    def hook(args, model, **options):
        # weaver is needed for training only.
        from weaver.train import init_opt

        return init_opt(args, model, **{"lr_mult": (pattern, factor), **options})

    return hook
