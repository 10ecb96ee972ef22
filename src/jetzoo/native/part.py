"""Hands the folded Particle Transformer to its kernels in C++ (``part.cpp``)."""

from ctypes import POINTER, Structure, c_double, c_float, c_int32, c_int64, c_void_p

import torch
from torch import nn

from . import load

# Tokens that go through the network together. The more, the less often the weights pass through
# the cache; their activations should fit into 1 MiB beside them. A multiple of 48.
TOKENS = 240

# Of `enum Stage`, named as the layers of the network.
STAGES = ("embed", "pair_embed", "blocks.attn", "blocks.fc", "cls_blocks")


class Layer(Structure):
    """``struct Layer`` of part.cpp, and so on."""

    _fields_ = [
        ("weight", c_void_p),
        ("bias", c_void_p),
        ("scale", c_void_p),
        ("offset", c_void_p),
        ("m", c_int32),
        ("k", c_int32),
        ("bytes", c_int32),
        ("input_scale", c_float),
        ("input_zero", c_float),
    ]


class FeedForward(Structure):
    _fields_ = [
        *((name, Layer) for name in ("out", "fc1", "fc2")),
        *((name, c_void_p) for name in ("scale", "shift", "w_resid", "bias")),
        *((name, c_float) for name in ("eps_attn", "eps_fc1", "eps_fc2")),
    ]


class Block(Structure):
    _fields_ = [("qkv", Layer), ("rest", FeedForward), ("eps", c_float)]


class ClassBlock(Structure):
    _fields_ = [
        ("query", Layer),
        ("key", POINTER(Layer)),
        ("value", POINTER(Layer)),
        ("rest", FeedForward),
        ("eps", c_float),
    ]


class Network(Structure):
    _fields_ = [
        *(
            (name, c_int32)
            for name in (
                "dim",
                "num_heads",
                "num_features",
                "num_embed",
                "num_pair",
                "num_blocks",
                "num_cls_blocks",
                "widest",
            )
        ),
        ("scale", c_void_p),
        ("shift", c_void_p),
        ("embed", POINTER(Layer)),
        ("embed_eps", c_void_p),
        ("pair", POINTER(Layer)),
        ("blocks", POINTER(Block)),
        ("cls_blocks", POINTER(ClassBlock)),
        ("cls_token", c_void_p),
    ]


def library():
    """The kernels, or None where they cannot be compiled."""
    kernels = load("part")
    if kernels is not None:
        kernels.part_forward.argtypes = [
            *[POINTER(Network)],
            *[c_void_p] * 3,
            *[c_int64] * 3,
            c_int32,
            c_void_p,
        ]
        kernels.part_forward.restype = None
        kernels.part_stage_seconds.argtypes = [POINTER(c_double)]
        kernels.part_stage_seconds.restype = None
    return kernels


def obstacle(folded):
    """Why the kernels cannot run a :class:`jetzoo.inference.FoldedTransformer`, or None."""
    if not folded.full:
        return "its particles are not mixed by full attention"
    if folded.dtype != torch.float32:
        return "they compute in float32 and int8"
    if library() is None:
        return "they are not compiled"
    dims = [layer.weight.shape[0] for layer in (*folded.embed.layers, folded.feed_forwards[0].fc1)]
    num_heads = folded.mixers[0].num_heads
    dim = folded.cls_token.shape[-1]
    if any(size % 8 for size in (*dims, dim // num_heads)) or num_heads > 56:
        return "its widths and those of its heads are not multiples of 8"
    return None


class NativePart(nn.Module):
    """A :class:`jetzoo.inference.FoldedTransformer` that runs in C++ on a CPU.

    Parameters
    ----------
    folded : FoldedTransformer
        Its layers are float32, or int8 (:class:`jetzoo.quantization.QuantizedDense`).
    """

    def __init__(self, folded):
        super().__init__()
        self.folded = folded
        self.tokens = TOKENS
        self._network = None

    def __getstate__(self):
        return {**self.__dict__, "_network": None}  # addresses mean nothing in a copy

    def forward(self, points, features, lorentz_vectors, mask):
        """(B, 2, N), (B, C, N), (B, 4, N) and (B, 1, N) to logits (B, num_classes)."""
        with torch.inference_mode():
            if self._network is None:
                self._network = Packed(self.folded)
            mask = mask[:, 0].bool().contiguous()
            features, vectors = (x.float().contiguous() for x in (features, lorentz_vectors))
            cls = features.new_empty(len(mask), self._network.struct.dim)
            library().part_forward(
                self._network.struct,
                *(x.data_ptr() for x in (features, vectors, mask)),
                *mask.shape,
                self.tokens,
                torch.get_num_threads(),
                cls.data_ptr(),
            )
            logits = self.folded.head(cls)
        # Leave inference mode: the caller may want to do more than look at it.
        return logits.clone()

    def stage_seconds(self):
        """Seconds of each stage of the last call, the sum over threads, for `jetzoo profile`."""
        seconds = (c_double * len(STAGES))()
        library().part_stage_seconds(seconds)
        return dict(zip(STAGES, seconds, strict=True))

    def flops(self, points, features, lorentz_vectors, mask):
        """FLOPs of the matrix products of each stage; the projection after attention is in fc."""
        counts = mask.sum((1, 2))
        jets, tokens = len(counts), int(counts.sum())
        pairs = int((counts * (counts + 1) / 2).sum())
        scores = 4 * int(counts.square().sum()) * self.folded.cls_token.shape[-1]
        of_class = sum(len(mixer.key) for mixer in self.folded.cls_mixers)
        of_class *= 4 * (tokens + jets) * self.folded.cls_token.shape[-1]
        work = dict.fromkeys(STAGES, 0)
        rows = {"pair_embed": pairs, "cls_blocks": jets}
        for stage, weights in self._weights().items():
            work[stage] = 2 * rows.get(stage, tokens) * sum(x.numel() for x in weights)
        work["blocks.attn"] += scores * len(self.folded.mixers)
        work["cls_blocks"] += of_class
        return work

    def bytes_moved(self, points, features, lorentz_vectors, mask):
        """Bytes from memory: inputs once, weights once for each group of jets."""
        groups = -(-int(mask.sum()) // self.tokens)
        moved = {
            stage: groups * sum(x.nbytes for x in weights)
            for stage, weights in self._weights().items()
        }
        moved["embed"] += features.nbytes
        moved["pair_embed"] = moved.get("pair_embed", 0) + lorentz_vectors.nbytes
        return moved

    def _weights(self):
        folded = self.folded
        blocks = list(zip(folded.mixers, folded.feed_forwards, strict=True))
        cls_blocks = list(zip(folded.cls_mixers, folded.cls_feed_forwards, strict=True))
        return {
            "embed": [layer.weight for layer in folded.embed.layers],
            "pair_embed": [layer.weight for layer in getattr(folded.pair_embed, "layers", ())],
            "blocks.attn": [mixer.in_proj.weight for mixer, _ in blocks],
            "blocks.fc": [
                layer.weight for mixer, f in blocks for layer in (mixer.out_proj, f.fc1, f.fc2)
            ],
            "cls_blocks": [
                weight
                for mixer, f in cls_blocks
                for weight in (
                    *(layer.weight for layer in (mixer.query, mixer.out, f.fc1, f.fc2)),
                    *mixer.key,
                    *mixer.value,
                )
            ],
        }


class Packed:
    """The weights in the order in which the kernels read them; ``struct`` refers to them."""

    def __init__(self, folded):
        self.rows = library().rows_per_kernel()
        self.kept = []  # what the structures point to
        dim = folded.cls_token.shape[-1]
        embed, pair = folded.embed, folded.pair_embed
        pair_layers = [] if pair is None else list(pair.layers)
        blocks = [
            Block(
                qkv=self.layer(mixer.in_proj),
                rest=self.feed_forward(mixer.out_proj, feed_forward),
                eps=mixer.eps,
            )
            for mixer, feed_forward in zip(folded.mixers, folded.feed_forwards, strict=True)
        ]
        cls_blocks = [
            ClassBlock(
                query=self.layer(mixer.query),
                key=self.array(Layer, [self.matrix(key.T) for key in mixer.key]),
                value=self.array(Layer, [self.matrix(value) for value in mixer.value]),
                rest=self.feed_forward(mixer.out, feed_forward),
                eps=mixer.eps,
            )
            for mixer, feed_forward in zip(folded.cls_mixers, folded.cls_feed_forwards, strict=True)
        ]
        widths = [layer.weight.shape[0] for layer in (*embed.layers, *pair_layers)]
        self.struct = Network(
            dim=dim,
            num_heads=folded.mixers[0].num_heads,
            num_features=len(embed.scale),
            num_embed=len(embed.layers),
            num_pair=len(pair_layers),
            num_blocks=len(blocks),
            num_cls_blocks=len(cls_blocks),
            widest=max(dim, *widths) + self.rows,
            scale=self.floats(embed.scale),
            shift=self.floats(embed.shift),
            embed=self.array(Layer, [self.layer(layer) for layer in embed.layers]),
            embed_eps=self.floats(torch.tensor(embed.eps)),
            pair=self.array(Layer, [self.layer(layer) for layer in pair_layers]),
            blocks=self.array(Block, blocks),
            cls_blocks=self.array(ClassBlock, cls_blocks),
            cls_token=self.floats(folded.cls_token.flatten()),
        )

    def floats(self, x):
        return self.address(x.float())

    def address(self, x):
        x = x.detach().contiguous()
        self.kept.append(x)
        return x.data_ptr()

    def array(self, kind, items):
        array = (kind * len(items))(*items)
        self.kept.append(array)
        return array

    def padded(self, x, size):
        """``x`` (m, ...) with rows of zeros up to ``size``."""
        return torch.cat((x, x.new_zeros(size - len(x), *x.shape[1:])))

    def layer(self, dense):
        """Structure of a `Dense` or a `QuantizedDense`."""
        if dense.weight.dtype != torch.int8:
            return self.matrix(dense.weight, dense.bias)
        if dense.method == "weight-only":
            return self.matrix(dense.weight * dense.scale[:, None], dense.bias)
        out, into = dense.weight.shape
        m, k = -(-out // self.rows) * self.rows, -(-into // 4) * 4
        weight = self.padded(self.padded(dense.weight.T, k).T, m)
        packed = weight.view(m // self.rows, self.rows, k // 4, 4).transpose(1, 2)
        bias = dense.scale.new_zeros(out) if dense.bias is None else dense.bias
        static = dense.input_scale is not None
        return Layer(
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

    def matrix(self, weight, bias=None):
        """Structure of a float32 layer with a weight (out, in)."""
        out, into = weight.shape
        m = -(-out // self.rows) * self.rows
        weight = self.padded(weight.float(), m).view(-1, self.rows, into).transpose(1, 2)
        bias = weight.new_zeros(out) if bias is None else bias.float()
        return Layer(
            weight=self.address(weight), bias=self.floats(self.padded(bias, m)), m=m, k=into
        )

    def feed_forward(self, out, f):
        eps_attn, eps_fc1, eps_fc2 = f.norms
        return FeedForward(
            out=self.layer(out),
            fc1=self.layer(f.fc1),
            fc2=self.layer(f.fc2),
            **{name: self.floats(getattr(f, name)) for name in ("scale", "shift", "w_resid")},
            bias=self.floats(f.bias),
            eps_attn=eps_attn,
            eps_fc1=eps_fc1,
            eps_fc2=eps_fc2,
        )
