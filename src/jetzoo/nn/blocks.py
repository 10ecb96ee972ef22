"""Attention and the NormFormer blocks of the Particle Transformer (arXiv 2202.03772).

Parameters have the names of weaver-core's ``ParticleTransformer``, so that weights interchange.
"""

import torch
from torch import nn

from ..attention import attention, check_backend
from ..attention.jagged import packed_attention
from ..modules import fusible, unmodified
from ..native.chains import add_norm, gelu_norm, layer_norm, scaled_add
from ..native.dense import dense, linear
from ..native.training import usable
from .pairs import PairBias


class Attention(nn.Module):
    """Multi-head attention of tokens, with the projections of ``torch.nn.MultiheadAttention``.

    Parameters
    ----------
    embed_dim, num_heads : int
    dropout : float
        On the attention weights.
    backend : str
        See :func:`jetzoo.attention`.
    """

    mixes_particles = True  # it is what `jetzoo profile` calls attention

    # Whether ``forward`` takes a `PairBias`; other mixers, and subclasses that define a forward
    # pass of their own, get its dense form.
    takes_pair_bias = True

    def __init__(self, embed_dim, num_heads, dropout=0.0, backend="auto"):
        super().__init__()
        if embed_dim % num_heads:
            raise ValueError(f"embed_dim {embed_dim} is no multiple of num_heads {num_heads}")
        check_backend(backend)
        self.num_heads, self.head_dim = num_heads, embed_dim // num_heads
        self.dropout = dropout
        self.backend = backend
        self.in_proj = nn.Linear(embed_dim, 3 * embed_dim)
        self.out_proj = nn.Linear(embed_dim, embed_dim)

    def _load_from_state_dict(self, state_dict, prefix, *args):
        # Weights from before weaver-core 0.5 have the names of torch.nn.MultiheadAttention.
        for name in ("weight", "bias"):
            if f"{prefix}in_proj_{name}" in state_dict:
                state_dict[f"{prefix}in_proj.{name}"] = state_dict.pop(f"{prefix}in_proj_{name}")
        super()._load_from_state_dict(state_dict, prefix, *args)

    def __init_subclass__(cls, **options):
        super().__init_subclass__(**options)
        if "forward" in vars(cls):
            cls.takes_pair_bias = False

    def parts(self):
        """List the modules that a folded form computes together, with their classes."""
        return [(self, Attention), (self.in_proj, nn.Linear), (self.out_proj, nn.Linear)]

    def works_on_pairs(self, x, layout):
        """Whether tokens stay packed: nothing is padded, and a bias is one number per pair."""
        return (
            self.backend in ("auto", "jagged")
            and layout.is_packed
            and usable(x)
            and unmodified(self, Attention)
        )

    def heads(self, x):
        """(B, L, D) to (B, H, L, d)."""
        return x.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)

    def attend(self, q, k, v, bias, mask):
        """Attention of projected (B, L, D) queries to (B, S, D) keys and values: (B, L, D)."""
        dropout = self.dropout if self.training else 0.0
        out = attention(
            self.heads(q),
            self.heads(k),
            self.heads(v),
            bias=bias,
            mask=mask,
            dropout_p=dropout,
            backend=self.backend,
        )
        # The exporter writes `flatten` such that it fails without jets.
        return out.transpose(1, 2).reshape(q.shape)

    def forward(self, x, layout, bias=None):
        """Self-attention of the tokens of each jet.

        Parameters
        ----------
        x : Tensor, (..., D)
            Tokens.
        layout : Packed or Padded
        bias : PairBias or Tensor (B, H, n, n), optional

        Returns
        -------
        Tensor, (..., D)
        """
        own = isinstance(bias, PairBias)
        if (own or bias is None) and self.works_on_pairs(x, layout):
            out = packed_attention(
                dense(self.in_proj, x),
                self.num_heads,
                layout,
                bias=bias.pairs if own else None,
                dropout_p=self.dropout if self.training else 0.0,
            )
            return dense(self.out_proj, out)
        q, k, v = (layout.pad(part) for part in dense(self.in_proj, x).chunk(3, dim=-1))
        matrices = bias.dense if own else bias
        out = self.attend(q, k, v, matrices, layout.mask)
        return dense(self.out_proj, layout.unpad(out))


class ClassAttention(Attention):
    """Attention of one class token to itself and to the particles (arXiv 2103.17239)."""

    def parts(self):
        """List the modules that a folded form computes together, with their classes."""
        return [(self, ClassAttention), *super().parts()[1:]]

    def forward(self, query, cls, x, layout):
        """Class token (B, 1, D) that has looked at the particles.

        Parameters
        ----------
        query : Tensor, (B, 1, D)
        cls : Tensor, (B, 1, D)
            The class token among the keys, normalised like ``x``.
        x : Tensor, (..., D)
            Tokens.
        layout : Packed or Padded
        """
        if torch.compiler.is_compiling() or unmodified(self.in_proj, nn.Linear):
            dim = self.out_proj.in_features  # a number in exported graphs, too
            w_q, w_kv = self.in_proj.weight.split((dim, 2 * dim))
            b_q, b_kv = self.in_proj.bias.split((dim, 2 * dim))
            q = linear(query, w_q, b_q)
            own, others = (linear(tokens, w_kv, b_kv) for tokens in (cls, x))
        else:
            q = self.in_proj(query).chunk(3, dim=-1)[0]
            own, others = (torch.cat(self.in_proj(t).chunk(3, dim=-1)[1:], -1) for t in (cls, x))
        kv = torch.cat((own, layout.pad(others)), dim=1)  # (B, 1 + n, 2 D)
        mask = torch.cat((torch.ones_like(layout.mask[:, :1]), layout.mask), dim=1)
        return dense(self.out_proj, self.attend(q, *kv.chunk(2, dim=-1), None, mask))


class Block(nn.Module):
    """NormFormer block: normalised before and after attention and inside the feed-forward part.

    Parameters
    ----------
    embed_dim : int
    num_heads : int
        Heads whose outputs are scaled by ``c_attn``.
    attn : nn.Module
        What mixes the tokens.
    ffn_ratio : int
        Width of the feed-forward part over ``embed_dim``.
    dropout, activation_dropout : float
    """

    def __init__(self, embed_dim, num_heads, attn, ffn_ratio, dropout=0.0, activation_dropout=0.0):
        super().__init__()
        self.pre_attn_norm = nn.LayerNorm(embed_dim)
        self.attn = attn
        self.post_attn_norm = nn.LayerNorm(embed_dim)
        self.dropout = nn.Dropout(dropout)
        self.pre_fc_norm = nn.LayerNorm(embed_dim)
        self.fc1 = nn.Linear(embed_dim, ffn_ratio * embed_dim)
        self.act = nn.GELU()
        self.act_dropout = nn.Dropout(activation_dropout)
        self.post_fc_norm = nn.LayerNorm(ffn_ratio * embed_dim)
        self.fc2 = nn.Linear(ffn_ratio * embed_dim, embed_dim)
        self.c_attn = nn.Parameter(torch.ones(num_heads))
        self.w_resid = nn.Parameter(torch.ones(embed_dim))

    def parts(self):
        """List the modules that a fused form computes together, with their classes."""
        return [
            (self.pre_attn_norm, nn.LayerNorm),
            (self.post_attn_norm, nn.LayerNorm),
            (self.dropout, nn.Dropout),
            (self.pre_fc_norm, nn.LayerNorm),
            (self.fc1, nn.Linear),
            (self.act, nn.GELU),
            (self.act_dropout, nn.Dropout),
            (self.post_fc_norm, nn.LayerNorm),
            (self.fc2, nn.Linear),
        ]

    def normalised_layers(self):
        """List the layers whose weight takes up the gain of a layer norm, with that norm."""
        layers = [(self.fc1, self.pre_fc_norm), (self.fc2, self.post_fc_norm)]
        if hasattr(self.attn, "in_proj") and unmodified(self.attn, type(self).mixer):
            layers.append((self.attn.in_proj, self.pre_attn_norm))
        return layers

    def normalise(self, x):
        """Tokens (..., D) as the attention gets them."""
        if fusible([(self.pre_attn_norm, nn.LayerNorm)]):
            return layer_norm(x, self.pre_attn_norm)
        return self.pre_attn_norm(x)

    def residuals(self, x, mixed):
        """Add what the attention gave to ``x``, then the feed-forward part."""
        scale = self.c_attn.repeat_interleave(mixed.shape[-1] // len(self.c_attn))
        if not fusible(self.parts()):
            x = x + self.dropout(self.post_attn_norm(mixed * scale))
            hidden = self.act_dropout(self.act(self.fc1(self.pre_fc_norm(x))))
            return self.w_resid * x + self.dropout(self.fc2(self.post_fc_norm(hidden)))
        dropout = self.dropout.p if self.dropout.training else 0.0
        act_dropout = self.act_dropout.p if self.act_dropout.training else 0.0
        x = add_norm(x, mixed, scale, self.post_attn_norm, dropout)
        hidden = layer_norm(x, self.pre_fc_norm)
        hidden = gelu_norm(hidden, self.fc1, self.post_fc_norm, act_dropout, self.act)
        return scaled_add(x, dense(self.fc2, hidden), self.w_resid, dropout)


class ParticleBlock(Block):
    """Block in which the particles of a jet look at each other."""

    mixer = Attention
    # Kinds of layers for `jetzoo profile`: of the block itself and of parts of it.
    layer_kinds = {
        "": "feed-forward",
        "attn": "attention",
        "pre_attn_norm": "attention",
        "post_attn_norm": "attention",
    }

    def forward(self, x, layout, bias=None):
        """Tokens (..., D) and a :class:`PairBias` or None to tokens."""
        if bias is not None and not getattr(self.attn, "takes_pair_bias", False):
            bias = bias.dense
        return self.residuals(x, self.attn(self.normalise(x), layout, bias))


class ClassBlock(Block):
    """Block in which the class token looks at the particles."""

    mixer = ClassAttention
    layer_kinds = {"": "class attention"}

    def forward(self, cls, x, layout):
        """Class token (B, 1, D) and tokens (..., D) to class token."""
        mixed = self.attn(cls, self.normalise(cls), self.normalise(x), layout)
        return self.residuals(cls, mixed)
