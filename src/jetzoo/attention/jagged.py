"""Attention jet by jet, each at its own length: what a CPU wants.

The weights of one jet stay in the cache, where the padded matrices of a batch pass through memory
once for every operation, and jets of 40 particles in a batch that goes up to 80 cost a quarter.
"""

import math

import torch
from torch.autograd.function import once_differentiable

from .reference import reference


# The loop over jets would be traced anew for every batch.
@torch.compiler.disable
def jagged(q, k, v, *, bias=None, mask=None, dropout_p=0.0):
    """Attention without padding, see :func:`jetzoo.attention`.

    Padding that stands between particles is no length: that is left to :func:`reference`.
    """
    num_keys = k.shape[2]
    if mask is None:
        counts = [num_keys] * len(k)
    else:
        counts = mask.sum(1)
        if not torch.equal(torch.arange(num_keys, device=mask.device) < counts[:, None], mask):
            return reference(q, k, v, bias=bias, mask=mask, dropout_p=dropout_p)
        counts = counts.tolist()
    dtype = q.dtype
    if dtype in (torch.float16, torch.bfloat16):
        q, k, v = q.float(), k.float(), v.float()
    if bias is not None:
        bias = bias.to(q.dtype).expand(*q.shape[:3], num_keys)
    with torch.autocast(q.device.type, enabled=False):
        return Jagged.apply(q, k, v, bias, counts, mask is not None, dropout_p).to(dtype)


def _zeros_like_tokens(x):
    """Zeros (B, H, L, d) with the heads of a token side by side, as the projections want them."""
    batch_size, num_heads, length, dim = x.shape
    return x.new_zeros(batch_size, length, num_heads, dim).transpose(1, 2)


def _jets(counts, num_queries, num_keys, masked):
    """Index, number of queries and number of keys of each jet that has any."""
    is_self_attention = masked and num_queries == num_keys
    for jet, count in enumerate(counts):
        if count:
            yield jet, count if is_self_attention else num_queries, count


class Jagged(torch.autograd.Function):
    """softmax(q.k / sqrt(d) + bias) v of each jet over its first ``counts`` keys.

    Parameters
    ----------
    q : Tensor, (B, H, L, d)
    k, v : Tensor, (B, H, S, d)
    bias : Tensor, (B, H, L, S), or None
    counts : list of int, (B,)
    masked : bool
        With L = S too, that the queries are the same particles.
    dropout_p : float
    """

    @staticmethod
    def forward(ctx, q, k, v, bias, counts, masked, dropout_p):
        num_heads, num_queries, dim = q.shape[1:]
        ctx.jets = list(_jets(counts, num_queries, k.shape[2], masked))
        ctx.scale = 1 / math.sqrt(dim)
        out = _zeros_like_tokens(q)
        # One call for all jets: every call of the generator costs as much as 100,000 numbers.
        sizes = [num_heads * rows * keys for _, rows, keys in ctx.jets]
        factors = [None] * len(sizes)
        if dropout_p:
            factors = q.new_empty(sum(sizes)).bernoulli_(1 - dropout_p).div_(1 - dropout_p)
            factors = factors.split(sizes)
        weights = []
        for (jet, rows, keys), factor in zip(ctx.jets, factors, strict=True):
            # beta = 0 ignores the first argument.
            start = q.new_zeros(()) if bias is None else bias[jet, :, :rows, :keys]
            logits = torch.baddbmm(
                start,
                q[jet, :, :rows],
                k[jet, :, :keys].mT,
                beta=0 if bias is None else 1,
                alpha=ctx.scale,
            )  # (H, rows, keys)
            weight = logits.softmax(-1)
            weights.append(weight)
            if dropout_p:
                weight = weight * factor.view_as(weight)
            out[jet, :, :rows] = weight @ v[jet, :, :keys]
        ctx.save_for_backward(q, k, v, out, *weights, *(factors if dropout_p else ()))
        ctx.bias_shape = None if bias is None else bias.shape
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        q, k, v, out, *rest = ctx.saved_tensors
        weights, factors = rest[: len(ctx.jets)], rest[len(ctx.jets) :]
        dq, dk, dv = map(_zeros_like_tokens, (q, k, v))
        dbias = q.new_zeros(ctx.bias_shape) if ctx.needs_input_grad[3] else None
        delta = (grad * out).sum(-1, keepdim=True)  # (B, H, L, 1)
        for index, (jet, rows, keys) in enumerate(ctx.jets):
            weight, g = weights[index], grad[jet, :, :rows]
            dlogits = g @ v[jet, :, :keys].mT
            dropped = weight
            if factors:
                factor = factors[index].view_as(weight)
                dlogits *= factor
                dropped = weight * factor
            dlogits.sub_(delta[jet, :, :rows]).mul_(weight)
            if dbias is not None:
                dbias[jet, :, :rows, :keys] = dlogits
            dv[jet, :, :keys] = dropped.mT @ g
            dlogits *= ctx.scale
            dq[jet, :, :rows] = dlogits @ k[jet, :, :keys]
            dk[jet, :, :keys] = dlogits.mT @ q[jet, :, :rows]
        return dq, dk, dv, dbias, None, None, None
