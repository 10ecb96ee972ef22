"""Attention written out; works in any floating dtype, exports to ONNX and shows its weights."""

import math

import torch
import torch.nn.functional as F


def scores(q, k):
    """Scaled products of queries and keys, A = q.k / sqrt(d).

    Parameters
    ----------
    q : Tensor, (B, H, L, d)
    k : Tensor, (B, H, S, d)

    Returns
    -------
    Tensor, (B, H, L, S)
    """
    return (q * (1 / math.sqrt(q.shape[-1]))) @ k.transpose(-2, -1)


def weights(q, k, bias=None, mask=None):
    """Attention weights softmax(A + bias) over the keys that exist.

    Returns
    -------
    Tensor, (B, H, L, S)
        Rows sum to one; they are zero in jets without any key.
    """
    logits = scores(q, k)
    if bias is not None:
        logits = logits + bias.to(logits.dtype)
    if mask is None:
        return logits.softmax(-1)
    key_mask = mask[:, None, None, :]  # (B, 1, 1, S)
    # A finite floor keeps rows without keys free of NaN, in value and in gradient.
    logits = logits.masked_fill(~key_mask, torch.finfo(logits.dtype).min)
    return logits.softmax(-1).masked_fill(~key_mask, 0)


def reference(q, k, v, *, bias=None, mask=None, dropout_p=0.0):
    """softmax(q.k / sqrt(d) + bias) v, see :func:`jetzoo.attention`."""
    dtype = v.dtype
    if dtype in (torch.float16, torch.bfloat16):
        q, k, v = q.float(), k.float(), v.float()
    return (F.dropout(weights(q, k, bias, mask), dropout_p) @ v).to(dtype)
