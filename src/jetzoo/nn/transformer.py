"""The skeleton of the Particle Transformer (arXiv 2202.03772), which its variants share.

Parameters have the names of weaver-core's ``ParticleTransformer``, so that weights interchange.
"""

import math

import torch
from torch import nn

from ..attention import check_backend
from .blocks import Attention, ClassAttention, ClassBlock, ParticleBlock
from .embed import Embed
from .head import classifier, outputs, split_embedding
from .inputs import check_inputs, clean_inputs, finish
from .packing import Padded, pack, pt_order
from .pairs import PairEmbed


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
    use_pre_activation_pair, remove_self_pair : bool
        See :class:`jetzoo.nn.pairs.PairEmbed`.
    sort_by_pt : bool
        Put particles in order of descending pT, for mixers that depend on the order.
    embed_dims : sequence of int
        Widths of the particle embedding; the last is the width of the tokens. None: the features
        are tokens already.
    pair_embed_dims : sequence of int
        Hidden widths of the pair embedding.
    num_heads, num_layers, num_cls_layers, ffn_ratio : int
    dropout, attn_dropout, activation_dropout : float
        Of the particle blocks; the class blocks have none.
    fc_params : sequence of (int, float)
        Width and dropout of hidden layers of the head.
    attention : str
        Backend, see :func:`jetzoo.attention`.
    embedding : bool
        Append the normalised class token (B, D) to the logits, (B, num_classes + D); in a
        :class:`JetClassifier` it is a second output.
    for_inference : bool
        Return probabilities and keep the padding, so that the graph can be exported.
    """

    unused_inputs = ("points",)
    gives_classes = True  # False: targets of a regression, without a softmax
    # Arguments that say which architecture it is; no options of a user.
    fixed_options = ("mixer", "sort_by_pt")
    # Kinds of layers for `jetzoo profile`; the other parts say theirs themselves.
    layer_kinds = {"norm": "head", "fc": "head"}

    def __init__(
        self,
        input_dim,
        num_classes,
        *,
        mixer=None,
        pair_bias=True,
        use_pre_activation_pair=False,
        remove_self_pair=False,
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
        embedding=False,
        for_inference=False,
    ):
        super().__init__()
        check_backend(attention, bias=pair_bias)
        for name, depth in (("num_layers", num_layers), ("num_cls_layers", num_cls_layers)):
            if depth < 1:
                raise ValueError(f"{name} must be at least 1, not {depth}")
        rates = {"dropout": dropout, "attn_dropout": attn_dropout}
        for name, rate in (rates | {"activation_dropout": activation_dropout}).items():
            if not 0 <= rate < 1:
                raise ValueError(f"{name} must be at least 0 and less than 1, not {rate}")
        self.sort_by_pt = sort_by_pt
        self.embedding = embedding
        self.for_inference = for_inference
        dim = input_dim if embed_dims is None else embed_dims[-1]
        self.embed = nn.Identity() if embed_dims is None else Embed(input_dim, embed_dims)
        self.pair_embed = None
        if pair_bias:
            self.pair_embed = PairEmbed(
                (*pair_embed_dims, num_heads), use_pre_activation_pair, remove_self_pair
            )
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
        self.fc = None if num_classes is None else classifier(dim, fc_params, num_classes)
        self.reset_parameters()

    @property
    def appended(self):
        """Width of the embedding that stands behind the logits, or None."""
        return self.norm.normalized_shape[0] if self.embedding else None

    def core_and_head(self):
        """Return the transformer, and what follows it: nothing."""
        return self, nn.Identity()

    def stages(self):
        """List the modules that jets go through one after the other, up to the last class token."""
        pair_embed = [] if self.pair_embed is None else [self.pair_embed]
        return [self.embed, *pair_embed, *self.blocks, *self.cls_blocks]

    def parts(self):
        """List the modules that a folded form computes together, with their classes.

        The mixers of the particle blocks and the head are not among them.
        """
        parts = [(self, ParticleTransformer)]
        if isinstance(self.embed, nn.Identity):
            parts += [(self.embed, nn.Identity)]
        else:
            parts += [(self.embed, Embed), *self.embed.parts()]
            parts += [(self.embed.input_bn, nn.BatchNorm1d)]
        if self.pair_embed is not None:
            parts += [(self.pair_embed, PairEmbed), *self.pair_embed.parts()]
        for block in self.blocks:
            parts += [(block, ParticleBlock), *block.parts()]
        for block in self.cls_blocks:
            parts += [(block, ClassBlock), *block.parts(), *block.attn.parts()]
        return parts

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
        if not (torch.jit.is_tracing() or torch.compiler.is_compiling()):
            check_inputs(points, features, lorentz_vectors, mask)
        features, lorentz_vectors, mask, finite = clean_inputs(
            mask, features, lorentz_vectors, like=self.cls_token
        )
        key = pt_order(lorentz_vectors, mask) if self.sort_by_pt else None
        if self.for_inference:
            layout = Padded(mask, key)
        else:
            layout = pack(mask, key, with_pairs=self.pair_embed is not None)
        x = self.embed(layout.take(features))
        bias = self.pair_embed(lorentz_vectors, layout) if self.pair_embed else None
        for block in self.blocks:
            x = block(x, layout, bias)
        # `len(mask)` would be a constant of an exported graph.
        cls = self.cls_token.expand(mask.shape[0], -1, -1)  # (B, 1, D)
        for block in self.cls_blocks:
            cls = block(cls, x, layout)
        out = self.norm(cls.squeeze(1))
        if self.fc is not None:
            softmax = self.for_inference and self.gives_classes
            out = outputs(out, self.fc, softmax, self.embedding)
        return finish(out, finite, points, lorentz_vectors)


class JetClassifier(nn.Module):
    """A network ``mod`` in the wrapper that published weights come from: names begin with ``mod.``.

    Parameters
    ----------
    mod : nn.Module
        Called with the inputs that weaver hands over.

    Attributes
    ----------
    appended : int or None
        Width of the embedding, if it is a second output.
    """

    def __init__(self, mod):
        super().__init__()
        self.mod = mod
        self.appended = mod.appended

    def core_and_head(self):
        """Return the network within, and what follows it: nothing."""
        return self.mod, nn.Identity()

    def forward(self, *inputs):
        """What the network within takes, to (B, num_classes), or this and an embedding (B, D)."""
        return split_embedding(self.mod(*inputs), self.appended)
