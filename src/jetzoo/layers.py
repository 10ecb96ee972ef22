"""Layers of the Particle Transformer (arXiv 2202.03772) and the skeleton its variants share.

Parameters have the names of weaver-core's ``ParticleTransformer``, so that weights interchange.
"""

import math
from contextlib import contextmanager, nullcontext

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from . import zoo
from .attention import attention, check_backend
from .attention.jagged import packed_attention
from .kinematics import at_least_float32, cylindrical, pair_features
from .native.training import (
    add_norm,
    gelu_norm,
    layer_norm,
    pair_mlp,
    scaled_add,
    takes_pairs,
    usable,
)
from .packing import Packed, Padded, pack, pt_order


class Embed(nn.Module):
    """Particle features to tokens: batch norm, then LayerNorm - Linear - GELU for each width.

    Parameters
    ----------
    input_dim : int
    dims : sequence of int
    """

    def __init__(self, input_dim, dims):
        super().__init__()
        self.input_bn = nn.BatchNorm1d(input_dim)
        layers = []
        for dim in dims:
            layers += [nn.LayerNorm(input_dim), nn.Linear(input_dim, dim), nn.GELU()]
            input_dim = dim
        self.embed = nn.Sequential(*layers)

    def forward(self, x):
        """(..., C) to (..., D)."""
        x = self.input_bn(x.flatten(0, -2)).view_as(x)
        norm, *layers, last, act = self.embed
        x = layer_norm(x, norm)
        for linear, norm in zip(layers[::3], layers[2::3], strict=True):
            x = gelu_norm(x, linear, norm)
        return act(last(x))


class PointwiseConv(nn.Conv1d):
    """``Conv1d`` of kernel size 1 as a matrix product.

    torch.compile would specialise a convolution on the number of pairs, and recompile every step.
    """

    def __init__(self, in_channels, out_channels):
        super().__init__(in_channels, out_channels, kernel_size=1)

    def forward(self, x):
        """(1, C, P) to (1, C', P)."""
        return self.weight[..., 0] @ x + self.bias[:, None]


class PairEmbed(nn.Module):
    """Pair interaction: an MLP on ln kT, ln z, ln dR and ln m2 gives one bias per attention head.

    Nothing of its hidden layers is kept for the backward pass: they are computed again (in C++ on a
    CPU, see :func:`jetzoo.native.training.pair_mlp`). Without
    gradients and batch statistics, pairs are computed in chunks. So what grows with the square of
    the number of particles is the input and the output.

    Parameters
    ----------
    dims : sequence of int
        Widths; the last one is the number of heads.
    """

    CHUNK = 2**17  # pairs; 32 MiB for each hidden layer of 64 in float32

    def __init__(self, dims):
        super().__init__()
        input_dim = 4
        layers = [nn.BatchNorm1d(input_dim)]
        for dim in dims:
            layers += [PointwiseConv(input_dim, dim), nn.BatchNorm1d(dim), nn.GELU()]
            input_dim = dim
        self.embed = nn.Sequential(*layers)
        self.out_dim = dims[-1]

    def forward(self, lorentz_vectors, layout):
        """Bias of all pairs of a batch of jets.

        Parameters
        ----------
        lorentz_vectors : Tensor, (B, 4, N)
        layout : Packed or Padded

        Returns
        -------
        Tensor, (B, H, n, n)
            Symmetric; of no meaning where one of the two is padding.
        """
        if isinstance(layout, Padded):
            particles = _particles(lorentz_vectors, layout)
            with torch.no_grad(), torch.autocast(lorentz_vectors.device.type, enabled=False):
                rows = [x.unsqueeze(2) for x in particles]  # (B, N, 1, ...)
                columns = [x.unsqueeze(1) for x in particles]  # (B, 1, N, ...)
                features = pair_features(rows, columns)  # (4, B, N, N)
            shape = features.shape[1:]
            return self.embed(features.flatten(1)[None])[0].unflatten(1, shape).transpose(0, 1)

        batch_size, length = layout.mask.shape
        size = batch_size * length * length
        ij, ji = layout.pairs[2:]
        if self._in_one_piece():
            bias = Mirror.apply(self.pairs(lorentz_vectors, layout), ij, ji, size)
        else:
            bias = None
            chunks = zip(ij.split(self.CHUNK), ji.split(self.CHUNK), strict=True)
            for part, (ij, ji) in zip(self._chunks(lorentz_vectors, layout), chunks, strict=True):
                bias = part.new_zeros(self.out_dim, size) if bias is None else bias
                bias[:, ij] = part
                bias[:, ji] = part
        return bias.unflatten(1, (batch_size, length, length)).transpose(0, 1)

    def pairs(self, lorentz_vectors, layout):
        """Bias (H, P) of the pairs of packed jets, see :attr:`jetzoo.packing.Packed.pairs`."""
        if not self._in_one_piece():
            return torch.cat([*self._chunks(lorentz_vectors, layout)], dim=1)
        i, j, *_ = layout.pairs
        features = _features(_particles(lorentz_vectors, layout), i, j)
        if takes_pairs(features[0], self.embed):
            return pair_mlp(features[0], self.embed)
        return self._recomputed(features)

    def _in_one_piece(self):
        return self.training or torch.is_grad_enabled() or torch.compiler.is_compiling()

    def _chunks(self, lorentz_vectors, layout):
        """Biases (H, p) of the pairs, a chunk of them at a time."""
        particles = _particles(lorentz_vectors, layout)
        for i, j in zip(*(x.split(self.CHUNK) for x in layout.pairs[:2]), strict=True):
            yield self.embed(_features(particles, i, j))[0]

    def _recomputed(self, features):
        """The MLP of features (1, 4, P), (H, P), whose hidden layers are not kept."""
        if not torch.is_grad_enabled():
            return self.embed(features)[0]
        # torch.compile takes no context, and needs none: it records the statistics once.
        context = {} if torch.compiler.is_compiling() else {"context_fn": self._contexts}
        return checkpoint(
            self.embed, features, use_reentrant=False, preserve_rng_state=False, **context
        )[0]

    def _contexts(self):
        return nullcontext(), self._without_running_statistics()

    @contextmanager
    def _without_running_statistics(self):
        """While the hidden layers are computed again: a batch is to be counted once."""
        norms = [layer for layer in self.embed if hasattr(layer, "momentum")]
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.momentum = 0.0
        try:
            yield
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum
                if self.training:
                    norm.num_batches_tracked.sub_(1)


def _particles(lorentz_vectors, layout):
    """Four-vectors (..., 4) of the tokens, and what is derived of them."""
    with torch.no_grad(), torch.autocast(lorentz_vectors.device.type, enabled=False):
        vectors = at_least_float32(layout.take(lorentz_vectors))
        return vectors, *cylindrical(vectors)


def _features(particles, i, j):
    """Features (1, 4, P) of the pairs of tokens ``i`` and ``j``."""
    with torch.no_grad(), torch.autocast(i.device.type, enabled=False):
        return pair_features([x[i] for x in particles], [x[j] for x in particles])[None]


class Mirror(torch.autograd.Function):
    """Put each pair at two places of a matrix that is zero elsewhere.

    Parameters
    ----------
    x : Tensor, (H, P)
    ij, ji : Tensor of int, (P,)
        Places in the flattened matrices, the same for pairs of a particle with itself.
    size : int

    Returns
    -------
    Tensor, (H, size)
    """

    @staticmethod
    def forward(ctx, x, ij, ji, size):
        ctx.save_for_backward(ij, ji)
        out = x.new_zeros(len(x), size)
        out[:, ij] = x
        out[:, ji] = x
        return out

    @staticmethod
    def backward(ctx, grad):
        ij, ji = ctx.saved_tensors
        return grad[:, ij] + grad[:, ji].mul_(ij != ji), None, None, None


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

    def __init__(self, embed_dim, num_heads, dropout=0.0, backend="auto"):
        super().__init__()
        if embed_dim % num_heads:
            raise ValueError(f"embed_dim {embed_dim} is no multiple of num_heads {num_heads}")
        check_backend(backend)
        self.num_heads = num_heads
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

    def works_on_pairs(self, x, layout):
        """Whether a bias is one number per pair of the layout, and nothing is padded."""
        return (
            self.backend in ("auto", "jagged")
            and isinstance(layout, Packed)
            and usable(x)
            and "attend" not in vars(self)  # not replaced to look at, see jetzoo.interpret
        )

    def heads(self, x):
        """(B, L, D) to (B, H, L, d)."""
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

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
        return out.transpose(1, 2).flatten(2)

    def forward(self, x, layout, bias=None):
        """Self-attention of the tokens ``x`` (..., D) of each jet.

        The bias is (B, H, n, n), or (H, P) if :meth:`works_on_pairs`.
        """
        if self.works_on_pairs(x, layout):
            dropout = self.dropout if self.training else 0.0
            out = packed_attention(
                self.in_proj(x), self.num_heads, layout, bias=bias, dropout_p=dropout
            )
            return self.out_proj(out)
        q, k, v = (layout.pad(part) for part in self.in_proj(x).chunk(3, dim=-1))
        return self.out_proj(layout.unpad(self.attend(q, k, v, bias, layout.mask)))


class ClassAttention(Attention):
    """Attention of one class token to itself and to the particles (arXiv 2103.17239)."""

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
        dim = self.out_proj.in_features  # a number in exported graphs, too
        w_q, w_kv = self.in_proj.weight.split((dim, 2 * dim))
        b_q, b_kv = self.in_proj.bias.split((dim, 2 * dim))
        q = nn.functional.linear(query, w_q, b_q)
        kv = torch.cat(
            (
                nn.functional.linear(cls, w_kv, b_kv),
                layout.pad(nn.functional.linear(x, w_kv, b_kv)),
            ),
            dim=1,
        )  # (B, 1 + n, 2 D)
        mask = torch.cat((torch.ones_like(layout.mask[:, :1]), layout.mask), dim=1)
        return self.out_proj(self.attend(q, *kv.chunk(2, dim=-1), None, mask))


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

    def residuals(self, x, mixed):
        """Add what the attention gave to ``x``, then the feed-forward part."""
        dropout = self.dropout.p if self.training else 0.0
        act_dropout = self.act_dropout.p if self.training else 0.0
        scale = self.c_attn.repeat_interleave(mixed.shape[-1] // len(self.c_attn))
        x = add_norm(x, mixed, scale, self.post_attn_norm, dropout)
        hidden = layer_norm(x, self.pre_fc_norm)
        hidden = gelu_norm(hidden, self.fc1, self.post_fc_norm, act_dropout)
        return scaled_add(x, self.fc2(hidden), self.w_resid, dropout)


class ParticleBlock(Block):
    """Block in which the particles of a jet look at each other."""

    def forward(self, x, layout, bias=None):
        """Tokens (..., D) to tokens."""
        return self.residuals(x, self.attn(layer_norm(x, self.pre_attn_norm), layout, bias))


class ClassBlock(Block):
    """Block in which the class token looks at the particles."""

    def forward(self, cls, x, layout):
        """Class token (B, 1, D) and tokens (..., D) to class token."""
        norm = self.pre_attn_norm
        mixed = self.attn(cls, layer_norm(cls, norm), layer_norm(x, norm), layout)
        return self.residuals(cls, mixed)


class ParticleTransformer(nn.Module):
    """Skeleton of ParT: embedding, particle blocks, class-attention blocks, head.

    Parameters
    ----------
    input_dim : int
        Features per particle.
    num_classes : int or None
        None leaves out the head; the output is then the normalised class token (B, D).
    mixer : callable, optional
        ``mixer(embed_dim, num_heads, dropout)`` makes what mixes the particles in one block;
        called as ``mixer(x, layout, bias)``. Default: full attention.
    pair_bias : bool
        Compute the pair interaction and hand it to the mixers.
    sort_by_pt : bool
        Put particles in order of falling pT, for mixers that depend on the order.
    embed_dims : sequence of int
        Widths of the particle embedding; the last is the width of the tokens.
    pair_embed_dims : sequence of int
        Hidden widths of the pair embedding.
    num_heads, num_layers, num_cls_layers, ffn_ratio : int
    dropout, attn_dropout, activation_dropout : float
        Of the particle blocks; the class blocks have none.
    fc_params : sequence of (int, float)
        Width and dropout of hidden layers of the head.
    attention : str
        Backend, see :func:`jetzoo.attention`.
    for_inference : bool
        Return probabilities and keep the padding, so that the graph can be exported.
    """

    # Arguments that say which architecture it is; no options of a user.
    fixed_options = ("mixer", "sort_by_pt")

    def __init__(
        self,
        input_dim,
        num_classes,
        *,
        mixer=None,
        pair_bias=True,
        sort_by_pt=False,
        embed_dims=(128, 512, 128),
        pair_embed_dims=(64, 64, 64),
        num_heads=8,
        num_layers=8,
        num_cls_layers=2,
        ffn_ratio=4,
        dropout=0.1,
        attn_dropout=0.1,
        activation_dropout=0.1,
        fc_params=(),
        attention="auto",
        for_inference=False,
    ):
        super().__init__()
        check_backend(attention, bias=pair_bias)
        self.sort_by_pt = sort_by_pt
        self.for_inference = for_inference
        dim = embed_dims[-1]
        self.embed = Embed(input_dim, embed_dims)
        self.pair_embed = PairEmbed((*pair_embed_dims, num_heads)) if pair_bias else None
        if mixer is None:

            def mixer(embed_dim, num_heads, dropout):
                return Attention(embed_dim, num_heads, dropout, backend=attention)

        self.blocks = nn.ModuleList(
            ParticleBlock(
                dim,
                num_heads,
                mixer(dim, num_heads, attn_dropout),
                ffn_ratio,
                dropout,
                activation_dropout,
            )
            for _ in range(num_layers)
        )
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.cls_blocks = nn.ModuleList(
            ClassBlock(dim, num_heads, ClassAttention(dim, num_heads, backend=attention), ffn_ratio)
            for _ in range(num_cls_layers)
        )
        self.norm = nn.LayerNorm(dim)
        self.fc = None
        if num_classes is not None:
            head = []
            for width, rate in fc_params:
                head += [nn.Sequential(nn.Linear(dim, width), nn.ReLU(), nn.Dropout(rate))]
                dim = width
            self.fc = nn.Sequential(*head, nn.Linear(dim, num_classes))
        self.reset_parameters()

    def reset_parameters(self):
        """Initial weights of weaver-core 0.5: Xavier, residual branches damped with the depth."""
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                fan_in, fan_out = module.in_features, module.out_features
                if name.endswith("in_proj"):  # queries, keys and values are three layers
                    fan_out //= 3
                bound = math.sqrt(6 / (fan_in + fan_out))
                nn.init.uniform_(module.weight, -bound, bound)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for depth, block in enumerate(self.blocks, start=1):
            damped = [block.fc2, getattr(block.attn, "out_proj", None)]
            for layer in filter(None, damped):
                layer.weight.data /= math.sqrt(2 * depth)
        nn.init.trunc_normal_(self.cls_token, std=0.02)

    def forward(self, points, features, lorentz_vectors, mask):
        """Logits (B, num_classes), or probabilities with ``for_inference``.

        Parameters
        ----------
        points : Tensor, (B, 2, N)
            Not used.
        features : Tensor, (B, C, N)
        lorentz_vectors : Tensor, (B, 4, N)
            px, py, pz, energy in GeV.
        mask : Tensor, (B, 1, N)
            Non-zero for real particles. What stands in the padding does not matter.
        """
        _, features, lorentz_vectors, mask = zoo.clean_inputs(
            points, features, lorentz_vectors, mask
        )
        key = pt_order(lorentz_vectors, mask) if self.sort_by_pt else None
        if self.for_inference:
            layout = Padded(mask, key)
        else:
            layout = pack(mask, key, with_pairs=self.pair_embed is not None)
        x = self.embed(layout.take(features))
        bias = None
        if self.pair_embed:
            mixers = [block.attn for block in self.blocks]
            by_pair = all(isinstance(m, Attention) and m.works_on_pairs(x, layout) for m in mixers)
            embed = self.pair_embed.pairs if by_pair else self.pair_embed
            bias = embed(lorentz_vectors, layout)
        for block in self.blocks:
            x = block(x, layout, bias)
        # `len(mask)` would be a constant of an exported graph.
        cls = self.cls_token.expand(mask.shape[0], -1, -1)  # (B, 1, D)
        for block in self.cls_blocks:
            cls = block(cls, x, layout)
        out = self.norm(cls.squeeze(1))
        if self.fc is not None:
            out = self.fc(out)
            if self.for_inference:
                out = out.softmax(1)
        return zoo.keep_inputs(out, points, lorentz_vectors)


class JetClassifier(nn.Module):
    """A network ``mod`` in the wrapper that published weights come from: names begin with ``mod.``.

    Parameters
    ----------
    mod : nn.Module
        Called with the four inputs that weaver hands over.
    """

    def __init__(self, mod):
        super().__init__()
        self.mod = mod

    def forward(self, points, features, lorentz_vectors, mask):
        """(B, 2, N), (B, C, N), (B, 4, N) and (B, 1, N) to (B, num_classes)."""
        return self.mod(points, features, lorentz_vectors, mask)
