"""The layers of a Particle Transformer with norms and scales folded into their matrices."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import sdpa_kernel

from ..attention.dispatch import SDPA_KERNELS
from ..nn.kinematics import pair_features, particle_kinematics
from .dense import (
    Dense,
    fold_batch_norm,
    fold_norm,
    fold_output,
    half_precision,
    inverse_std,
    standardise,
)

# Pairs of a block. On a CPU the activations, 64 wide, should stay in the second-level cache; on a
# GPU there should be enough of them to fill it.
PAIRS = {"cpu": 4096, "cuda": 2**20}

# Up to this length the scores of all pairs of a jet stay in the cache of a CPU.
SHORT = 192


class NoEmbed(nn.Module):
    """Features that are tokens already, as a :class:`FoldedEmbed` of no layer."""

    def __init__(self, cls_token):
        super().__init__()
        self.register_buffer("scale", torch.ones_like(cls_token).flatten())
        self.register_buffer("shift", torch.zeros_like(cls_token).flatten())
        self.eps, self.layers = [], nn.ModuleList()

    def forward(self, x):
        """(..., D) itself."""
        return x


class FoldedEmbed(nn.Module):
    """:class:`jetzoo.nn.embed.Embed`."""

    def __init__(self, embed, dtype):
        super().__init__()
        scale, shift = fold_batch_norm(embed.input_bn)
        self.register_buffer("scale", scale.float())
        self.register_buffer("shift", shift.float())
        norms, linears = embed.embed[0::3], embed.embed[1::3]
        self.eps = [norm.eps for norm in norms]
        self.layers = nn.ModuleList(
            Dense(*fold_norm(norm, linear.weight, linear.bias), dtype, gelu=True)
            for norm, linear in zip(norms, linears, strict=True)
        )

    def forward(self, x):
        """(..., C) to (..., D)."""
        x = torch.addcmul(self.shift, x, self.scale)
        for eps, layer in zip(self.eps, self.layers, strict=True):
            x = layer(standardise(x, eps))
        return x.float()


def fold_convolutions(layers, dtype):
    """A batch norm, then convolutions of size 1 with batch norm and activation each, as layers.

    Parameters
    ----------
    layers : sequence of nn.Module
        The last activation may be left out.
    dtype : torch.dtype

    Returns
    -------
    nn.Sequential
        On rows (..., C). A :class:`Dense` does GELU itself; other activations follow it.
    """
    first, *rest = layers
    scale, shift = fold_batch_norm(first)
    folded = nn.Sequential()
    acts = [*rest[2::3], nn.Identity()]
    for conv, bn, act in zip(rest[0::3], rest[1::3], acts, strict=False):
        weight = conv.weight.flatten(1).double()
        bias = 0 if conv.bias is None else conv.bias.double()
        if not folded:
            weight, bias = weight * scale, bias + weight @ shift
        scale, shift = fold_batch_norm(bn)
        gelu = isinstance(act, nn.GELU)
        folded.append(Dense(weight * scale[:, None], bias * scale + shift, dtype, gelu=gelu))
        if not (gelu or isinstance(act, nn.Identity)):
            folded.append(act)
    return folded


class FoldedPairEmbed(nn.Module):
    """:class:`jetzoo.nn.pairs.PairEmbed` of one triangle of the pairs, in blocks."""

    def __init__(self, pair_embed, dtype):
        super().__init__()
        self.num_heads = pair_embed.out_dim
        self.remove_self_pair = pair_embed.remove_self_pair
        self.layers = fold_convolutions(pair_embed.embed, dtype)

    def forward(self, vectors):
        """Four-vectors (b, n, 4) to the bias (H, b, n, n)."""
        batch_size, length = vectors.shape[:2]
        device = vectors.device
        first, second = lower_triangle(length, device)
        start = torch.arange(batch_size, device=device)[:, None] * length
        i, j = (start + first).flatten(), (start + second).flatten()  # (P,)
        particles = particle_kinematics(vectors.flatten(0, 1))

        def pairs(block):
            rows, columns = i[block], j[block]
            features = pair_features(
                [x.index_select(0, rows) for x in particles],
                [x.index_select(0, columns) for x in particles],
            )  # (4, P)
            return self.layers(features.t()).t()

        bias = in_blocks(pairs, self.num_heads, i)
        rank = torch.arange(length, device=device)
        high, low = torch.maximum(rank[:, None], rank), torch.minimum(rank[:, None], rank)
        pair = (high * (high + 1) // 2 + low).flatten()  # (n * n,)
        bias = bias.view(self.num_heads, batch_size, -1).index_select(2, pair)
        bias = bias.unflatten(2, (length, length))
        if self.remove_self_pair:
            bias = bias.masked_fill_(rank[:, None] == rank, 0)
        return bias


def lower_triangle(length, device):
    """Rows and columns (P,) of one triangle of the pairs, the diagonal included."""
    if torch.jit.is_tracing():  # a graph has no `tril_indices`
        rank = torch.arange(length, device=device)
        return (rank[:, None] >= rank).nonzero().unbind(1)
    return torch.tril_indices(length, length, device=device)


def in_blocks(function, num_heads, pairs):
    """Call a function on the pairs, block by block.

    Parameters
    ----------
    function : callable
        A slice of pairs to their bias (H, p).
    num_heads : int
    pairs : Tensor, (P,)

    Returns
    -------
    Tensor, (H, P)
    """
    if torch.jit.is_tracing():  # the number of blocks would become a constant
        return function(slice(None))
    bias = torch.empty(num_heads, len(pairs), device=pairs.device)
    size = PAIRS[pairs.device.type]
    for start in range(0, len(pairs), size):
        block = slice(start, start + size)
        bias[:, block] = function(block)
    return bias


class FoldedAttention(nn.Module):
    """Norm, self-attention and ``c_attn`` of a particle block."""

    def __init__(self, block, dtype):
        super().__init__()
        attn = block.attn
        self.num_heads = attn.num_heads
        self.eps = block.pre_attn_norm.eps
        weight, bias = fold_norm(block.pre_attn_norm, attn.in_proj.weight, attn.in_proj.bias)
        dim = weight.shape[1]
        scale = (dim // self.num_heads) ** -0.5
        weight[:dim] *= scale
        bias[:dim] *= scale
        self.in_proj = Dense(weight, bias, dtype)
        self.out_proj = Dense(*fold_output(block, attn.out_proj.weight, attn.out_proj.bias), dtype)

    def forward(self, x, layout, bias):
        """Tokens (b, n, D) and a bias (H, b, n, n) to (b, n, D), without mean over the channels."""
        qkv = self.in_proj(standardise(x, self.eps)).unflatten(-1, (3, self.num_heads, -1))
        return self.out_proj(attend(*qkv.unbind(2), bias).flatten(2))


def attend(q, k, v, bias):
    """Attention of scaled queries.

    Parameters
    ----------
    q, k, v : Tensor, (b, n, H, d) and (b, m, H, d)
    bias : Tensor, (H, b, n, m)
        Or what broadcasts to it.

    Returns
    -------
    Tensor, (b, n, H, d)
    """
    if q.is_cuda or k.shape[1] > SHORT:  # PyTorch's fused attention
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        bias = bias.transpose(0, 1).to(q.dtype)
        with sdpa_kernel(SDPA_KERNELS):
            out = F.scaled_dot_product_attention(q, k, v, bias, scale=1.0)
        return out.transpose(1, 2)
    # Plain products, on a CPU the fastest as long as the scores stay in its cache. oneDNN keeps
    # memory for each shape that it has seen in bf16.
    q, k, v = (x.float().permute(2, 0, 1, 3) for x in (q, k, v))  # (H, b, n, d)
    scores = (q @ k.transpose(2, 3)).add_(bias)
    return (scores.softmax(-1) @ v).permute(1, 2, 0, 3)


def product_dtype(dtype, device):
    """Dtype of products between activations: float32 on a CPU, where shapes change at each call."""
    return dtype if torch.device(device).type == "cuda" else torch.float32


class OtherMixer(nn.Module):
    """Norm, mixer and ``c_attn`` of a block whose mixer is not full attention."""

    def __init__(self, block, dtype):
        super().__init__()
        self.norm = block.pre_attn_norm
        self.attn = block.attn
        self.precision = half_precision(self.attn, dtype)
        scale = block.c_attn.detach()
        self.register_buffer("scale", scale.repeat_interleave(len(block.w_resid) // len(scale)))

    def forward(self, x, layout, bias):
        """Tokens (..., D) and a bias (H, b, n, n) or None to tokens, without their mean."""
        bias = None if bias is None else bias.transpose(0, 1)
        with self.precision():
            mixed = self.attn(self.norm(x), layout, bias)
        mixed = mixed.float() * self.scale
        return mixed - mixed.mean(-1, keepdim=True)


class FoldedClassAttention(nn.Module):
    """Norm, attention of the class token to the particles, and ``c_attn`` of a class block.

    There is one query per jet, so the projections of the keys are moved to the query,
    q . (W u) = (W^T q) . u, and those of the values to the weighted sum of the particles.
    """

    int8_matrices = ("key", "value")

    def __init__(self, block, dtype):
        super().__init__()
        attn = block.attn
        self.num_heads = attn.num_heads
        self.eps = block.pre_attn_norm.eps
        w_q, w_k, w_v = attn.in_proj.weight.double().chunk(3)
        b_q, b_k, b_v = attn.in_proj.bias.double().chunk(3)
        scale = (len(w_q) // self.num_heads) ** -0.5
        self.query = Dense(scale * w_q, scale * b_q, dtype)
        # The bias of the keys adds the same to all scores of a query, which the softmax ignores.
        w_k, _ = fold_norm(block.pre_attn_norm, w_k, b_k)
        w_v, b_v = fold_norm(block.pre_attn_norm, w_v, b_v)
        for name, weight in (("key", w_k), ("value", w_v)):
            matrices = weight.unflatten(0, (self.num_heads, -1))
            self.register_buffer(name, matrices.to(product_dtype(dtype, weight.device)))
        w_out, b_out = fold_output(block, attn.out_proj.weight, attn.out_proj.bias)
        self.out = Dense(w_out, b_out + w_out @ b_v, dtype)

    def forward(self, cls, x, no_key):
        """Class tokens (b, D), particles over their spread (b, n, D) and 0 or NO_KEY (b, 1, n)."""
        query = self.query(cls).unflatten(-1, (self.num_heads, -1)).transpose(0, 1)  # (H, b, d)
        query = (query.to(self.key.dtype) @ self.key).transpose(0, 1)  # (b, H, D)
        own = standardise(cls, self.eps).to(x.dtype)[:, None]  # (b, 1, D)
        scores = (query @ x.transpose(1, 2) + no_key, query @ own.transpose(1, 2))
        weights = torch.cat(scores, dim=2).softmax(-1).to(x.dtype)  # (b, H, n + 1)
        mean = weights[..., :-1] @ x + weights[..., -1:] * own  # (b, H, D)
        values = mean.transpose(0, 1) @ self.value.transpose(1, 2)  # (H, b, d)
        return self.out(values.transpose(0, 1).flatten(1))


class FoldedFeedForward(nn.Module):
    """What a block does after the attention."""

    def __init__(self, block, dtype):
        super().__init__()
        self.norms = (block.post_attn_norm.eps, block.pre_fc_norm.eps, block.post_fc_norm.eps)
        self.register_buffer("scale", block.post_attn_norm.weight.detach())
        self.register_buffer("shift", block.post_attn_norm.bias.detach())
        self.fc1 = Dense(
            *fold_norm(block.pre_fc_norm, block.fc1.weight, block.fc1.bias), dtype, gelu=True
        )
        weight, bias = fold_norm(block.post_fc_norm, block.fc2.weight, block.fc2.bias)
        self.fc2 = Dense(weight, None, dtype)
        self.register_buffer("bias", bias.float())
        self.register_buffer("w_resid", block.w_resid.detach())

    def forward(self, x, mixed):
        """Tokens (..., D), and what the attention gave without its mean, to tokens."""
        eps_attn, eps_fc1, eps_fc2 = self.norms
        mixed = standardise(mixed, eps_attn, centred=True)
        x = torch.addcmul(self.shift, mixed, self.scale).add_(x)
        hidden = self.fc1(standardise(x, eps_fc1))
        out = torch.addcmul(self.bias, self.fc2(hidden), inverse_std(hidden, eps_fc2))
        return out.addcmul_(x, self.w_resid)
