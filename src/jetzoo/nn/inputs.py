"""What the networks do with the inputs of weaver before anything else, and with the logits last."""

import functools

import torch


def check_inputs(points, features, lorentz_vectors, mask):
    """Check that the four inputs of a network belong together.

    Parameters
    ----------
    points : Tensor, (B, 2, N)
    features : Tensor, (B, C, N)
    lorentz_vectors : Tensor, (B, 4, N)
    mask : Tensor, (B, 1, N)

    Raises
    ------
    ValueError
        If an input has another shape or stands on another device than the mask.
    """
    named = {"points": points, "features": features, "lorentz_vectors": lorentz_vectors}
    if mask.ndim != 3 or mask.shape[1] != 1:
        raise ValueError(f"mask has the shape {tuple(mask.shape)} instead of (B, 1, N)")
    batch_size, _, length = mask.shape
    for name, x in named.items():
        channels = "4" if name == "lorentz_vectors" else "C"
        fits = x.ndim == 3 and x.shape[0] == batch_size and x.shape[2] == length
        if not fits or (channels == "4" and x.shape[1] != 4):
            raise ValueError(
                f"{name} has the shape {tuple(x.shape)} instead of ({batch_size}, {channels}, "
                f"{length}), as the mask says"
            )
        if x.device != mask.device:
            raise ValueError(f"{name} is on {x.device}, the mask on {mask.device}")


def clean_inputs(mask, *inputs, like):
    """Prepare the inputs that a network looks at.

    What stands in the padding becomes zero, whatever it is. So does all of a jet with a value that
    is NaN or infinite in a real particle: it changes no other jet, and :func:`finish` makes its
    logits NaN.

    Parameters
    ----------
    mask : Tensor, (B, 1, N)
        Non-zero for real particles.
    *inputs : Tensor, (B, C, N)
    like : Tensor
        A parameter of the network, whose dtype the inputs get.

    Returns
    -------
    *inputs : Tensor
        Same shapes, zero in the padding.
    mask : Tensor of bool, (B, 1, N)
    finite : Tensor of bool, (B, 1)
        False for jets with a value that is not finite.
    """
    mask = mask.bool()
    inputs = [x.to(like.dtype) for x in inputs]
    finite = functools.reduce(
        torch.logical_and,
        [(x.isfinite() | ~mask).flatten(1).all(1, keepdim=True) for x in inputs],
    )
    kept = mask & finite.unsqueeze(2)
    zero = torch.zeros((), dtype=like.dtype, device=mask.device)
    return *(torch.where(kept, x, zero) for x in inputs), mask, finite


def finish(out, finite, *unused):
    """Make the output of jets with non-finite inputs NaN, and an exported graph keep all inputs.

    The ONNX exporter drops inputs that a network does not look at, but weaver's ``--predict`` feeds
    every input to the ONNX file.

    Parameters
    ----------
    out : Tensor, (B, num_classes)
    finite : Tensor of bool, (B, 1)
        See :func:`clean_inputs`.
    *unused : Tensor, (B, ...)

    Returns
    -------
    Tensor, (B, num_classes)
        When traced, its value depends on the length of ``unused`` alone.
    """
    return _keep_inputs(out.masked_fill(~finite, float("nan")), unused)


def _keep_inputs(x, unused):
    """``x`` (B, ...) as it is, which depends on ``unused`` where a graph is traced."""
    if torch.jit.is_tracing():
        for other in unused:
            x = x[: other.shape[0]]
    return x


class Arrangement:
    """Hands the inputs of a data config to a network that takes them in an order of its own.

    A forward pre-hook, see :func:`arrange`: whoever calls the network gives the groups of the data
    config, in their order. Groups that the network does not take are left out, and zeros stand for
    those that it does not look at and the data config does not have.

    Parameters
    ----------
    places : sequence of (str, int or None)
        See :func:`jetzoo.groups.order`.
    names : sequence of str
        Groups of the data config.
    """

    arranges_inputs = True

    def __init__(self, places, names):
        self.places = tuple(places)
        self.names = tuple(names)

    def __call__(self, module, inputs):
        """All inputs of the data config to those of the network ``module``."""
        if len(inputs) != len(self.names):
            raise ValueError(
                f"the network takes {', '.join(self.names)}: {len(self.names)} inputs, "
                f"not {len(inputs)}"
            )
        inputs = list(inputs)
        used = {place for _, place in self.places}
        spare = [x for place, x in enumerate(inputs) if place not in used]
        mask = next(place for kind, place in reversed(self.places) if kind == "mask")
        inputs[mask] = _keep_inputs(inputs[mask], spare)
        return tuple(
            torch.zeros_like(inputs[mask]).expand(-1, MISSING[kind], -1)
            if place is None
            else inputs[place]
            for kind, place in self.places
        )


# Variables of the zeros that stand for a missing group.
MISSING = {"points": 2, "lorentz_vectors": 4}


def arrange(network, arrangement):
    """Let a network take what an :class:`Arrangement` arranges; None changes nothing."""
    if arrangement is not None:
        network.register_forward_pre_hook(arrangement)


def take_arrangement(network):
    """Remove the arrangement of a network, or of one within it, and return it; None if none."""
    for module in network.modules():
        for key, hook in module._forward_pre_hooks.items():
            if hasattr(hook, "arranges_inputs"):
                del module._forward_pre_hooks[key]
                return hook
    return None


def is_arranged(network):
    """Whether a network, or one within it, has an :class:`Arrangement`."""
    hooks = (hook for module in network.modules() for hook in module._forward_pre_hooks.values())
    return any(hasattr(hook, "arranges_inputs") for hook in hooks)
