"""A Particle Transformer made of folded layers."""

from torch import nn

from ..modules import unmodified
from ..nn.blocks import Attention
from ..nn.head import Outputs
from ..nn.inputs import clean_inputs, finish
from ..nn.packing import Padded, pack, pt_order
from .batching import TOKENS
from .dense import standardise
from .layers import (
    FoldedAttention,
    FoldedClassAttention,
    FoldedEmbed,
    FoldedFeedForward,
    FoldedPairEmbed,
    NoEmbed,
    OtherMixer,
)

# Score of a key that does not exist: finite, so that jets without any particle give no NaN.
NO_KEY = -1e30


class FoldedTransformer(nn.Module):
    """:class:`jetzoo.nn.transformer.ParticleTransformer` on jets of nearly equal length.

    Parameters
    ----------
    part : ParticleTransformer
        In eval mode.
    head : nn.Module
        Applied to the output of ``part``.
    dtype : torch.dtype
        Of the matrix products.
    """

    def __init__(self, part, head, dtype):
        super().__init__()
        self.sort_by_pt = part.sort_by_pt
        self.embed = (
            NoEmbed(part.cls_token)
            if isinstance(part.embed, nn.Identity)
            else FoldedEmbed(part.embed, dtype)
        )
        self.pair_embed = (
            None if part.pair_embed is None else FoldedPairEmbed(part.pair_embed, dtype)
        )
        self.full = all(_is_full(block.attn) for block in part.blocks)
        mixer = FoldedAttention if self.full else OtherMixer
        self.mixers = nn.ModuleList(mixer(block, dtype) for block in part.blocks)
        self.feed_forwards = nn.ModuleList(FoldedFeedForward(block, dtype) for block in part.blocks)
        self.register_buffer("cls_token", part.cls_token.detach()[0])
        self.cls_mixers = nn.ModuleList(FoldedClassAttention(b, dtype) for b in part.cls_blocks)
        self.cls_feed_forwards = nn.ModuleList(FoldedFeedForward(b, dtype) for b in part.cls_blocks)
        softmax = part.for_inference and part.gives_classes
        fc = part.fc or nn.Identity()
        self.head = Outputs(part.norm, fc, head, softmax=softmax, embedding=part.embedding)
        self.dtype = dtype
        self.tokens = TOKENS[self.cls_token.device.type]

    def forward(self, points, features, lorentz_vectors, mask):
        """(b, 2, n), (b, C, n), (b, 4, n) and a mask of bool, (b, n), to (b, num_classes)."""
        mask = mask[:, None]  # (b, 1, n)
        features, lorentz_vectors, mask, finite = clean_inputs(
            mask, features, lorentz_vectors, like=self.cls_token
        )
        key = pt_order(lorentz_vectors, mask) if self.sort_by_pt else None
        # Only full attention wants the rectangle; with it, the padding is not worth the packing.
        layout = Padded(mask, key) if self.full else pack(mask, key)
        padding = ~layout.mask
        bias = None
        if self.pair_embed is not None:
            bias = self.pair_embed(layout.pad(layout.take(lorentz_vectors)))
        elif self.full:
            shape = (self.mixers[0].num_heads, len(mask), *2 * mask.shape[2:])
            bias = features.new_zeros(shape)
        if bias is not None and padding.any():
            bias.masked_fill_(padding[:, None], NO_KEY)
        x = self.embed(layout.take(features))
        for mixer, feed_forward in zip(self.mixers, self.feed_forwards, strict=True):
            x = feed_forward(x, mixer(x, layout, bias))
        x = standardise(x, self.cls_mixers[0].eps).to(self.cls_mixers[0].key.dtype)
        x = layout.pad(x)  # (b, n, D)
        no_key = x.new_zeros(padding.shape).masked_fill_(padding, NO_KEY)[:, None]
        cls = self.cls_token.expand(mask.shape[0], -1)  # (b, D)
        for mixer, feed_forward in zip(self.cls_mixers, self.cls_feed_forwards, strict=True):
            cls = feed_forward(cls, mixer(cls, x, no_key))
        return finish(self.head(cls), finite)


def _is_full(mixer):
    """Whether a mixer is full attention as it stands in :mod:`jetzoo.nn.blocks`."""
    return unmodified(mixer, Attention) and all(unmodified(m, kind) for m, kind in mixer.parts())
