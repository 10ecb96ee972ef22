"""Choice of the attention backend."""

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from .reference import reference

# cuDNN is left out: with a float32 bias and bf16 queries its result is silently wrong.
SDPA_KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def sdpa(q, k, v, *, bias=None, mask=None, dropout_p=0.0):
    """PyTorch's fused attention with a dense bias, see :func:`attention`."""
    attn_mask = None if mask is None else mask[:, None, None, :]  # (B, 1, 1, S)
    if bias is not None:
        attn_mask = bias.to(q.dtype)
        if mask is not None:
            attn_mask = attn_mask.masked_fill(~mask[:, None, None, :], float("-inf"))
    if q.is_cuda:
        with sdpa_kernel(SDPA_KERNELS):
            return F.scaled_dot_product_attention(q, k, v, attn_mask, dropout_p)
    return F.scaled_dot_product_attention(q, k, v, attn_mask, dropout_p)


BACKENDS = {"reference": reference, "sdpa": sdpa}


def attention(q, k, v, *, bias=None, mask=None, dropout_p=0.0, backend="auto"):
    """Multi-head attention with an additive bias before the softmax.

    Parameters
    ----------
    q : Tensor, (B, H, L, d)
    k, v : Tensor, (B, H, S, d)
    bias : Tensor, (B, H, L, S), optional
        Added to q.k / sqrt(d): the pair interaction of arXiv 2202.03772, eq. 4.
    mask : Tensor of bool, (B, S), optional
        True for the keys that exist. A row without any gives zeros.
    dropout_p : float
        Dropout on the attention weights.
    backend : {"auto", "reference", "sdpa"}

    Returns
    -------
    Tensor, (B, H, L, d)

    Raises
    ------
    ValueError
        If the backend is unknown.
    """
    if backend == "auto":
        backend = "reference" if torch.jit.is_tracing() else "sdpa"
    try:
        function = BACKENDS[backend]
    except KeyError:
        raise ValueError(
            f"unknown attention backend {backend!r}; choose from auto, {', '.join(BACKENDS)}"
        ) from None
    return function(q, k, v, bias=bias, mask=mask, dropout_p=dropout_p)
