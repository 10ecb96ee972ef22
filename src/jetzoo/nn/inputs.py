"""What the networks do with the four inputs of weaver before anything else."""

import torch


def clean_inputs(points, features, lorentz_vectors, mask):
    """Set everything that stands in the padding to zero, whatever it is (NaN and inf included).

    Parameters
    ----------
    points : Tensor, (B, 2, N)
    features : Tensor, (B, C, N)
    lorentz_vectors : Tensor, (B, 4, N)
    mask : Tensor, (B, 1, N)
        Non-zero for real particles.

    Returns
    -------
    points, features, lorentz_vectors : Tensor
        Same shapes, zero where ``mask`` is.
    mask : Tensor of bool, (B, 1, N)
    """
    mask = mask.bool()
    zero = torch.zeros((), dtype=features.dtype, device=features.device)
    return (
        torch.where(mask, points, zero),
        torch.where(mask, features, zero),
        torch.where(mask, lorentz_vectors, zero),
        mask,
    )


def keep_inputs(out, *unused):
    """Make an exported graph keep inputs that a network does not look at.

    The ONNX exporter drops them, but weaver's ``--predict`` feeds every input to the ONNX file.

    Parameters
    ----------
    out : Tensor, (B, num_classes)
    *unused : Tensor, (B, ...)

    Returns
    -------
    Tensor, (B, num_classes)
        ``out``; when traced, its value depends on the length of ``unused`` alone.
    """
    if torch.jit.is_tracing():
        for x in unused:
            out = out[: x.shape[0]]
    return out
