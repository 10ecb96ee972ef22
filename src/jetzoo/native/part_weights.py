"""Puts the weights of a folded Particle Transformer in the order in which its kernels read them."""

import torch

from .structures import (
    ClassBlockWeights,
    DenseWeights,
    FeedForwardWeights,
    NetworkWeights,
    ParticleBlockWeights,
)

ROWS = 8  # output channels whose weights stand together, as in part.h


class PackedArrays:
    """Copies of weights in the order in which the kernels read them.

    Attributes
    ----------
    kept : list of Tensor or ctypes.Array
        What structures point to.
    """

    def __init__(self):
        self.kept = []

    def floats(self, x):
        """Address of a copy in float32."""
        return self.address(x.float())

    def address(self, x):
        """Address of a copy, row by row, that lives as long as this object."""
        if x.device.type != "cpu":
            raise ValueError(f"the kernels read weights on a CPU, not on {x.device}")
        x = x.detach().clone(memory_format=torch.contiguous_format)
        self.kept.append(x)
        return x.data_ptr()

    def array(self, kind, items):
        """An array of structures that lives as long as this object, or None if it is empty."""
        if not items:
            return None
        array = (kind * len(items))(*items)
        self.kept.append(array)
        return array

    def padded(self, x, size):
        """``x`` (m, ...) with rows of zeros up to ``size``."""
        return torch.cat((x, x.new_zeros(size - len(x), *x.shape[1:])))

    def matrix(self, weight, bias=None):
        """Structure of a float32 layer with a weight (out, into)."""
        out, into = weight.shape
        m = -(-out // ROWS) * ROWS
        weight = self.padded(weight.float(), m).view(-1, ROWS, into).transpose(1, 2)
        bias = weight.new_zeros(out) if bias is None else bias.float()
        return DenseWeights(
            weight=self.address(weight), bias=self.floats(self.padded(bias, m)), m=m, k=into
        )


class PackedWeights(PackedArrays):
    """The weights of a folded network in the order in which the kernels read them.

    Parameters
    ----------
    folded : FoldedTransformer
        Its layers are float32 or int8, on a CPU.

    Attributes
    ----------
    struct : NetworkWeights
    """

    def __init__(self, folded):
        super().__init__()
        dim, num_heads = folded.cls_token.shape[-1], folded.mixers[0].num_heads
        embed, pair = folded.embed, folded.pair_embed
        pair_layers = [] if pair is None else list(pair.layers)
        blocks = [
            ParticleBlockWeights(
                qkv=self.layer(mixer.in_proj, 3 * dim, dim),
                rest=self.feed_forward(mixer.out_proj, feed_forward, dim),
                eps=mixer.eps,
            )
            for mixer, feed_forward in zip(folded.mixers, folded.feed_forwards, strict=True)
        ]
        cls_blocks = [
            ClassBlockWeights(
                query=self.layer(mixer.query, dim, dim),
                key=self.heads(mixer.key.transpose(1, 2), num_heads, dim, dim // num_heads),
                value=self.heads(mixer.value, num_heads, dim // num_heads, dim),
                rest=self.feed_forward(mixer.out, feed_forward, dim),
                eps=mixer.eps,
            )
            for mixer, feed_forward in zip(folded.cls_mixers, folded.cls_feed_forwards, strict=True)
        ]
        widths = [layer.weight.shape[0] for layer in (*embed.layers, *pair_layers)]
        embed_layers = self.chain(embed.layers, len(embed.scale), dim)
        pair_layers = self.chain(pair_layers, 4, num_heads)
        self.struct = NetworkWeights(
            dim=dim,
            num_heads=num_heads,
            num_features=len(embed.scale),
            num_embed=len(embed_layers),
            num_pair=len(pair_layers),
            num_blocks=len(blocks),
            num_cls_blocks=len(cls_blocks),
            widest=max(dim, *widths) + ROWS,
            pair_activated=pair is not None and pair.layers[-1].gelu,
            self_pairs=pair is not None and not pair.remove_self_pair,
            scale=self.floats(embed.scale),
            shift=self.floats(embed.shift),
            embed=self.array(DenseWeights, embed_layers),
            embed_eps=self.floats(torch.tensor(embed.eps)),
            pair=self.array(DenseWeights, pair_layers),
            blocks=self.array(ParticleBlockWeights, blocks),
            cls_blocks=self.array(ClassBlockWeights, cls_blocks),
            cls_token=self.floats(folded.cls_token.flatten()),
        )

    def chain(self, layers, into, out):
        """Structures of dense layers, each of which takes what the one before gives."""
        widths = [into, *(layer.weight.shape[0] for layer in layers)]
        if layers and widths[-1] != out:
            raise ValueError(
                f"the last of these layers should have {out} outputs, not {widths[-1]}"
            )
        return [
            self.layer(layer, m, k)
            for layer, m, k in zip(layers, widths[1:], widths[:-1], strict=True)
        ]

    def heads(self, weights, num_heads, out, into):
        """Array of one float32 matrix for each head, from weights (num_heads, out, into)."""
        if weights.shape != (num_heads, out, into):
            raise ValueError(
                f"the heads have matrices {(num_heads, out, into)}, not {tuple(weights.shape)}"
            )
        return self.array(DenseWeights, [self.matrix(weight) for weight in weights])

    def layer(self, dense, out, into):
        """Structure of a `Dense` or a `QuantizedDense` with a weight (out, into)."""
        if dense.weight.shape != (out, into):
            raise ValueError(f"a weight is {tuple(dense.weight.shape)} instead of {(out, into)}")
        if dense.weight.dtype != torch.int8:
            return self.matrix(dense.weight, dense.bias)
        if dense.method == "weight-only":
            return self.matrix(dense.weight * dense.scale[:, None], dense.bias)
        m, k = -(-out // ROWS) * ROWS, -(-into // 4) * 4
        weight = self.padded(self.padded(dense.weight.T, k).T, m)
        packed = weight.view(m // ROWS, ROWS, k // 4, 4).transpose(1, 2)
        bias = dense.scale.new_zeros(out) if dense.bias is None else dense.bias
        static = dense.input_scale is not None
        return DenseWeights(
            weight=self.address(packed),
            bias=self.floats(self.padded(bias, m)),
            scale=self.floats(self.padded(dense.scale, m)),
            offset=self.floats(weight.sum(1, dtype=torch.int32)),
            m=m,
            k=k,
            bytes=2 if static else 1,
            input_scale=float(dense.input_scale) if static else 0.0,
            input_zero=float(dense.input_zero_point) if static else 0.0,
        )

    def feed_forward(self, out, f, dim):
        """Structure of the projection after an attention, and of what follows it."""
        eps_attn, eps_fc1, eps_fc2 = f.norms
        hidden = f.fc1.weight.shape[0]
        return FeedForwardWeights(
            out=self.layer(out, dim, dim),
            fc1=self.layer(f.fc1, hidden, dim),
            fc2=self.layer(f.fc2, dim, hidden),
            **{
                name: self.floats(getattr(f, name))
                for name in ("scale", "shift", "w_resid", "bias")
            },
            eps_attn=eps_attn,
            eps_fc1=eps_fc1,
            eps_fc2=eps_fc2,
        )
