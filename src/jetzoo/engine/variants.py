"""weaver-core's ``ParticleTransformer`` with any of its options and versions, folded.

What a layer has is read from the frozen network: LayerNorm, RMSNorm or no norm; biases, scales,
gates, norms of queries and keys; GELU, ReLU or SwiGLU; a class token among the particles, class
blocks or an average at the end; any features of pairs. It runs in PyTorch: the kernels know the
twins of :mod:`jetzoo.engine.twins` only.
"""

import torch
from torch import nn

from ..nn.inputs import clean_inputs, finish
from .batching import TOKENS
from .dense import Dense, fold_norm, inverse_std, standardise
from .layers import (
    FoldedEmbed,
    FoldedPairEmbed,
    attend,
    fold_convolutions,
    in_blocks,
    lower_triangle,
)
from .transformer import NO_KEY
from .twins import Unsupported, embed_twin, pair_twin, require


def fold_any(norm, weight, bias):
    """``linear(norm(x))`` as weight and bias on :class:`Standardised` x, in float64."""
    bias = weight.new_zeros(len(weight)) if bias is None else bias
    if hasattr(norm, "bias"):  # LayerNorm
        return fold_norm(norm, weight, bias)
    if hasattr(norm, "weight"):  # RMSNorm
        return weight.double() * norm.weight.double(), bias.double()
    return weight.double(), bias.double()


class Standardised(nn.Module):
    """What is left of a norm whose gain and shift are in the layer that follows."""

    def __init__(self, norm):
        super().__init__()
        self.is_norm = hasattr(norm, "weight")
        self.centred = not hasattr(norm, "bias")
        eps = getattr(norm, "eps", None)
        self.eps = torch.finfo(torch.float32).eps if eps is None else eps

    def forward(self, x):
        """(..., D) to (..., D)."""
        return standardise(x, self.eps, self.centred) if self.is_norm else x


class VariantEmbed(nn.Module):
    """weaver's ``Embed`` with ReLU, or of convolutions."""

    def __init__(self, embed, dtype):
        super().__init__()
        if embed.use_conv_embed:
            self.layers = fold_convolutions((embed.input_bn, *embed.conv_embed), dtype)
            return
        norm = embed.input_bn
        scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
        self.layers = nn.Sequential(Affine(scale, norm.bias - norm.running_mean * scale))
        for norm, linear, act in zip(*(embed.embed[i::3] for i in range(3)), strict=True):
            layer = Dense(*fold_any(norm, linear.weight, linear.bias), dtype)
            self.layers.extend((Standardised(norm), layer, act))

    def forward(self, x):
        """(..., C) to (..., D)."""
        return self.layers(x).float()


class Affine(nn.Module):
    """A scale and a shift of each channel."""

    def __init__(self, scale, shift):
        super().__init__()
        self.register_buffer("scale", scale.detach())
        self.register_buffer("shift", shift.detach())

    def forward(self, x):
        """(..., C) to (..., C)."""
        return torch.addcmul(self.shift, x, self.scale)


def folded_embed(embed, dtype):
    """The folded form of weaver's ``Embed``."""
    dtype = dtype or torch.float32
    try:
        return FoldedEmbed(embed_twin(embed), dtype)
    except Unsupported:
        return VariantEmbed(embed, dtype)


class VariantPairEmbed(nn.Module):
    """weaver's ``PairEmbed`` of any features, of one triangle of the pairs where both are alike."""

    def __init__(self, pair, dtype):
        super().__init__()
        self.num_heads = pair.out_dim
        self.features = pair.pairwise_lv_fts if pair.pairwise_lv_dim > 0 else None
        self.symmetric = pair.is_symmetric
        # Where both directions are computed, weaver heeds the option in its dense form only, and
        # there it is the features that become zero.
        self.no_self_bias = pair.remove_self_pair and self.symmetric
        self.no_self_features = (
            pair.remove_self_pair and not self.symmetric and not pair.sparse_eval[1]
        )
        if self.features is not None:
            self.layers = fold_convolutions(pair.embed, dtype)
        self.extra = None
        if pair.pairwise_input_dim > 0:
            self.extra = fold_convolutions(pair.fts_embed, dtype)

    def forward(self, vectors, uu=None):
        """Four-vectors (b, n, 4) and features of pairs (b, C, n, n) to the bias (H, b, n, n)."""
        batch_size, length = vectors.shape[:2]
        rank = torch.arange(length, device=vectors.device)
        if self.symmetric:
            i, j = lower_triangle(length, vectors.device)
        else:
            i, j = (x.flatten() for x in torch.meshgrid(rank, rank, indexing="ij"))
        start = torch.arange(batch_size, device=vectors.device)[:, None] * length
        rows, columns = (start + i).flatten(), (start + j).flatten()  # (P,)
        vectors = vectors.flatten(0, 1).double()
        extra = None if self.extra is None else uu.permute(0, 2, 3, 1).flatten(0, 2)  # (b n n, C)

        def pairs(block):
            return self.pairs(vectors, rows[block], columns[block], extra, block)

        bias = in_blocks(pairs, self.num_heads, rows)
        if self.symmetric:
            high, low = torch.maximum(rank[:, None], rank), torch.minimum(rank[:, None], rank)
            pair = (high * (high + 1) // 2 + low).flatten()
            bias = bias.view(self.num_heads, batch_size, -1).index_select(2, pair)
        bias = bias.view(self.num_heads, batch_size, length, length)
        if self.no_self_bias:
            bias = bias.masked_fill_(rank[:, None] == rank, 0)
        return bias

    def pairs(self, vectors, rows, columns, extra, block):
        """Bias (H, P) of some pairs of particles (b n, 4)."""
        bias = 0
        if self.features is not None:
            # Logarithms of differences of large numbers, see `jetzoo.nn.kinematics`.
            found = self.features(vectors[rows].t()[None], vectors[columns].t()[None])[0]  # (C, P)
            if self.no_self_features:
                found = found.masked_fill(rows == columns, 0)
            bias = self.layers(found.float().t())
        if extra is not None:
            bias = bias + self.extra(extra[block])
        return bias.float().t()


# Kinds of layers for `jetzoo profile`.
PARTICLE_KINDS = {"": "feed-forward"} | dict.fromkeys(
    ("attn", "normalise", "query", "key_value", "norms", "gate", "out_proj", "after", "rescale"),
    "attention",
)


class VariantAttention(nn.Module):
    """Attention of projected queries, keys and values.

    Parameters
    ----------
    num_heads, head_dim : int
    has_token : bool
        Whether the first of the particles is a class token.
    """

    mixes_particles = True

    def __init__(self, num_heads, head_dim, has_token=False):
        super().__init__()
        self.num_heads, self.head_dim, self.has_token = num_heads, head_dim, has_token

    def heads(self, x):
        """(b, n, D) to (b, H, n, d)."""
        return self.split(x).transpose(1, 2)

    def split(self, x):
        """(b, n, D) to (b, n, H, d)."""
        return x.unflatten(-1, (self.num_heads, -1))

    def attend(self, q, k, v, bias, mask):
        """Attention of (b, n, D) queries to (b, m, D) keys and values: (b, n, D).

        Parameters
        ----------
        q, k, v : Tensor
        bias : Tensor, (b, H, n, m), or None
            It has ``NO_KEY`` where ``mask`` is False.
        mask : Tensor of bool, (b, m)
        """
        if bias is None:
            bias = q.new_zeros(mask.shape).masked_fill_(~mask, NO_KEY)[:, None, None]
        q, k, v = (self.split(x) for x in (q * self.head_dim**-0.5, k, v))
        return attend(q, k, v, bias.transpose(0, 1)).flatten(2)


class VariantBlock(nn.Module):
    """weaver's ``Block``: of particles, or of the class token that looks at them.

    Parameters
    ----------
    block : nn.Module
    dtype : torch.dtype
    of_class : bool
        Whether the queries are class tokens, which are not normalised.
    has_token : bool
        Whether the first of the particles is a class token.
    """

    def __init__(self, block, dtype, of_class=False, has_token=False):
        super().__init__()
        attn = block.attn
        self.attn = VariantAttention(block.num_heads, block.head_dim, has_token)
        self.layer_kinds = {"": "class attention"} if of_class else PARTICLE_KINDS
        dim = block.embed_dim
        self.normalise = Standardised(block.pre_attn_norm)
        query_norm = nn.Identity() if of_class else block.pre_attn_norm
        self.of_class = of_class
        weight, bias = attn.in_proj.weight, attn.in_proj.bias
        b_query, b_rest = (None, None) if bias is None else bias.split((dim, 2 * dim))
        w_query, b_query = fold_any(query_norm, weight[:dim], b_query)
        self.key_value = Dense(*fold_any(block.pre_attn_norm, weight[dim:], b_rest), dtype)
        self.norms = nn.ModuleList((attn.q_norm, attn.k_norm))
        self.query = Dense(w_query, b_query, dtype)
        self.gate = None
        if hasattr(attn, "gate_proj"):
            gate = attn.gate_proj
            self.gate = Dense(*fold_any(query_norm, gate.weight, gate.bias), dtype)
        self.fold_output(block, dtype)
        self.fold_feed_forward(block, dtype)
        use_mask = block.c_mask is not None and not of_class
        self.mask_scale = block.c_mask.item() if use_mask else None

    def fold_output(self, block, dtype):
        """Fold ``c_attn`` and the layer scale into the projection and the norm around it."""
        weight, bias = fold_any(nn.Identity(), block.attn.out_proj.weight, block.attn.out_proj.bias)
        if block.c_attn is not None:
            scale = block.c_attn.double().repeat_interleave(block.head_dim)
            weight, bias = weight * scale[:, None], bias * scale
        norm, gamma = block.post_attn_norm, getattr(block.ls1, "gamma", None)
        self.after = Standardised(norm)
        self.rescale = None
        if hasattr(norm, "bias"):  # LayerNorm, which takes out the mean
            weight, bias = weight - weight.mean(0), bias - bias.mean()
            self.after.centred = True
        if self.after.is_norm:
            gain = norm.weight if gamma is None else norm.weight * gamma
            shift = getattr(norm, "bias", torch.zeros_like(gain))
            self.rescale = Affine(gain, shift if gamma is None else shift * gamma)
        elif gamma is not None:
            weight, bias = weight * gamma.double()[:, None], bias * gamma.double()
        self.out_proj = Dense(weight, bias, dtype)

    def fold_feed_forward(self, block, dtype):
        """Fold the norms, and the layer scale, into the two layers."""
        layers = [layer for layer in (block.fc1, block.fc1_g) if layer is not None]
        weights, biases = zip(
            *(fold_any(block.pre_fc_norm, layer.weight, layer.bias) for layer in layers),
            strict=True,
        )
        self.before_fc = Standardised(block.pre_fc_norm)
        self.fc1 = Dense(torch.cat(weights), torch.cat(biases), dtype)
        self.act, self.gated = block.act, block.fc1_g is not None
        weight, bias = fold_any(block.post_fc_norm, block.fc2.weight, block.fc2.bias)
        gamma = getattr(block.ls2, "gamma", None)
        if gamma is not None:
            weight, bias = weight * gamma.double()[:, None], bias * gamma.double()
        self.inner = Standardised(block.post_fc_norm)
        self.fc2 = Dense(weight, None, dtype)
        self.register_buffer("bias", bias.float())
        resid = block.w_resid
        self.register_buffer("w_resid", None if resid is None else resid.detach())

    def forward(self, x, keys, bias, mask):
        """Particles or class tokens (b, n, D), and what they look at, to the same.

        Parameters
        ----------
        x : Tensor, (b, n, D)
        keys : Tensor, (b, m, D)
            ``x`` itself, or the class token and the particles.
        bias, mask
            See :meth:`VariantAttention.attend`.
        """
        normalised = self.normalise(keys)
        queries = x if self.of_class else normalised
        q, k, v = self.query(queries), *self.key_value(normalised).chunk(2, -1)
        q, k = (
            norm(self.attn.split(x.float())).flatten(2)
            for norm, x in zip(self.norms, (q, k), strict=True)
        )
        out = self.attn.attend(q, k, v.float(), bias, mask)
        if self.gate is not None:
            gate = self.attn.split(self.gate(queries).float().sigmoid())  # (b, n, H, 1) or of d
            out = (self.attn.split(out) * gate).flatten(2)
        out = self.after(self.out_proj(out).float())
        x = x + (out if self.rescale is None else self.rescale(out))
        hidden = self.fc1(self.before_fc(x))
        if self.gated:
            value, gate = hidden.chunk(2, -1)
            hidden = self.act(gate) * value
        else:
            hidden = self.act(hidden)
        out = self.fc2(hidden)
        if self.inner.is_norm:
            spread = inverse_std(hidden, self.inner.eps, self.inner.centred)
            out = torch.addcmul(self.bias, out, spread)
        else:
            out = out.float() + self.bias
        return out + (x if self.w_resid is None else x * self.w_resid)


class VariantTransformer(nn.Module):
    """weaver's ``ParticleTransformer`` on jets of nearly equal length.

    Parameters
    ----------
    part : nn.Module
        In eval mode.
    dtype : torch.dtype
        Of the matrix products.
    """

    layer_kinds = {"embed": "embedding", "pair_embed": "pair embedding", "head": "head"}

    def __init__(self, part, dtype):
        super().__init__()
        require(not part.for_segmentation, "for_segmentation")
        require(part.cls_blocks is not None or part.fc is not None, "fc_params=None")
        self.embed = nn.Identity()
        if hasattr(part.embed, "input_bn"):
            self.embed = folded_embed(part.embed, dtype)
        self.pair_embed = folded_pair_embed(part.pair_embed, dtype)
        self.with_bias = list(part.block_ids_with_attn_mask)
        self.blocks = nn.ModuleList(
            VariantBlock(block, dtype, has_token=part.include_global_token) for block in part.blocks
        )
        self.cls_blocks = nn.ModuleList(
            VariantBlock(block, dtype, of_class=True) for block in part.cls_blocks or ()
        )
        self.global_token = part.include_global_token
        token = part.cls_token
        self.register_buffer("cls_token", None if token is None else token.detach())
        self.head = nn.Sequential(part.norm, part.fc or nn.Identity())
        if part.for_inference and part.fc is not None:
            self.head.append(nn.Softmax(1))
        self.dtype = dtype
        self.tokens = TOKENS[part.norm.weight.device.type]

    def stages(self):
        """List the modules that jets go through one after the other, up to the last class token."""
        pair_embed = [] if self.pair_embed is None else [self.pair_embed]
        return [self.embed, *pair_embed, *self.blocks, *self.cls_blocks]

    def forward(self, points, features, lorentz_vectors, mask, uu=None):
        """(b, 2, n), (b, C, n), (b, 4, n) and a mask of bool, (b, n), to (b, num_classes).

        ``uu`` are features of pairs, (b, C', n, n).
        """
        features, lorentz_vectors, mask, finite = clean_inputs(
            mask[:, None], features, lorentz_vectors, like=features.new_empty(0).float()
        )
        if uu is not None:
            pairs = mask.unsqueeze(2) & mask.unsqueeze(3)  # (b, 1, n, n)
            finite = finite & (uu.isfinite() | ~pairs).flatten(1).all(1, keepdim=True)
            uu = torch.where(pairs & finite[..., None, None], uu.float(), 0.0)
        x = self.embed(features.transpose(1, 2))  # (b, n, D)
        padding = ~mask[:, 0]
        bias = None
        if self.pair_embed is not None:
            extra = () if uu is None else (uu,)
            bias = self.pair_embed(lorentz_vectors.transpose(1, 2), *extra)  # (H, b, n, n)
        if self.global_token:
            x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1)
            padding = nn.functional.pad(padding, (1, 0))
            bias = None if bias is None else nn.functional.pad(bias, (1, 0, 1, 0))
        for block, its_bias in zip(self.blocks, self.biases(bias, padding), strict=True):
            x = block(x, x, its_bias, ~padding)
        return finish(self.head(self.aggregate(x, padding)), finite)

    def biases(self, bias, padding):
        """What the blocks add to the scores of attention, one after the other, (b, H, n, n)."""
        masked = None if bias is None else bias.masked_fill(padding[:, None], NO_KEY)
        for block, with_bias in zip(self.blocks, self.with_bias, strict=True):
            if bias is None or not with_bias:
                yield None
            elif block.mask_scale is None:
                yield masked.transpose(0, 1)
            else:
                scaled = bias * block.mask_scale
                yield scaled.masked_fill_(padding[:, None], NO_KEY).transpose(0, 1)

    def aggregate(self, x, padding):
        """Tokens (b, n, D) to what describes the jet, (b, D)."""
        if self.global_token:
            return x[:, 0]
        if not self.cls_blocks:
            count = (~padding).sum(1, keepdim=True).clamp(min=1)
            return x.masked_fill(padding.unsqueeze(2), 0).sum(1) / count
        cls = self.cls_token.expand(x.shape[0], -1, -1)
        mask = nn.functional.pad(~padding, (1, 0), value=True)
        for block in self.cls_blocks:
            cls = block(cls, torch.cat((cls, x), dim=1), None, mask)
        return cls[:, 0]


def folded_pair_embed(pair, dtype):
    """The folded form of weaver's ``PairEmbed``, or None."""
    if pair is None:
        return None
    try:
        return FoldedPairEmbed(pair_twin(pair), dtype)
    except Unsupported:
        return VariantPairEmbed(pair, dtype)
