"""Attention by the flash-attn package (arXiv 2307.08691), for layers without a pair bias."""

import torch
import torch.nn.functional as F


def flash_attn(q, k, v, *, bias=None, mask=None, dropout_p=0.0):
    """The flash-attn package, without the padding of the keys, see :func:`jetzoo.attention`."""
    from flash_attn import flash_attn_func, flash_attn_varlen_func

    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # (B, L, H, d)
    if mask is None:
        return flash_attn_func(q, k, v, dropout_p).transpose(1, 2)
    batch_size, length = q.shape[:2]
    keys = mask.flatten().nonzero()[:, 0]
    first_query = torch.arange(batch_size + 1, device=q.device, dtype=torch.int32) * length
    first_key = F.pad(mask.sum(1).cumsum(0), (1, 0)).int()
    out = flash_attn_varlen_func(
        q.flatten(0, 1),  # (B L, H, d)
        k.flatten(0, 1)[keys],  # (T, H, d)
        v.flatten(0, 1)[keys],
        first_query,
        first_key,
        length,
        mask.shape[1],
        dropout_p,
    )
    return out.unflatten(0, (batch_size, length)).transpose(1, 2)
