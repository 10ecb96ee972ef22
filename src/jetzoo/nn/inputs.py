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
    out = out.masked_fill(~finite, float("nan"))
    if torch.jit.is_tracing():
        for x in unused:
            out = out[: x.shape[0]]
    return out
