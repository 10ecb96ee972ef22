"""The structures that Python and the kernels hand to each other, as ctypes sees them.

Each has the name that it has in C++, and ``STRUCTURES`` says in which library. When a library is
loaded, the sizes of both sides are compared.
"""

from ctypes import POINTER, Structure, c_float, c_int32, c_int64, c_uint64, c_void_p


def _fields(kind, names):
    return [(name, kind) for name in names.split()]


class DenseWeights(Structure):
    """A dense layer, in float32 or bytes (``part.h``)."""

    _fields_ = [
        *_fields(c_void_p, "weight bias scale offset"),
        *_fields(c_int32, "m k bytes"),
        *_fields(c_float, "input_scale input_zero"),
    ]


class FeedForwardWeights(Structure):
    """What a block does after the attention (``part.h``)."""

    _fields_ = [
        *_fields(DenseWeights, "out fc1 fc2"),
        *_fields(c_void_p, "scale shift w_resid bias"),
        *_fields(c_float, "eps_attn eps_fc1 eps_fc2"),
    ]


class ParticleBlockWeights(Structure):
    """A block of the particles (``part.h``)."""

    _fields_ = [("qkv", DenseWeights), ("rest", FeedForwardWeights), ("eps", c_float)]


class ClassBlockWeights(Structure):
    """A block of the class token (``part.h``)."""

    _fields_ = [
        ("query", DenseWeights),
        *_fields(POINTER(DenseWeights), "key value"),
        ("rest", FeedForwardWeights),
        ("eps", c_float),
    ]


class NetworkWeights(Structure):
    """A Particle Transformer without its head (``part.h``)."""

    _fields_ = [
        *_fields(c_int32, "dim num_heads num_features num_embed num_pair"),
        *_fields(c_int32, "num_blocks num_cls_blocks widest pair_activated self_pairs"),
        *_fields(c_void_p, "scale shift"),
        ("embed", POINTER(DenseWeights)),
        ("embed_eps", c_void_p),
        ("pair", POINTER(DenseWeights)),
        ("blocks", POINTER(ParticleBlockWeights)),
        ("cls_blocks", POINTER(ClassBlockWeights)),
        ("cls_token", c_void_p),
    ]


class JetArguments(Structure):
    """A batch of jets, and where its class tokens go (``part.h``)."""

    _fields_ = [
        *_fields(c_int64, "batch length tokens"),
        *_fields(c_void_p, "features vectors mask"),
        ("mask_of_floats", c_int32),
        *_fields(c_void_p, "out seconds"),
    ]


class Rows(Structure):
    """Rows of numbers of each jet and head, packed or in any strides (``attention.cpp``)."""

    _fields_ = [*_fields(c_void_p, "data first"), *_fields(c_int64, "jet head row")]


class AttentionArguments(Structure):
    """Attention of many jets, and its gradients (``attention.cpp``)."""

    _fields_ = [
        *_fields(c_int64, "num_jets num_heads dim"),
        *_fields(c_void_p, "queries keys"),
        *_fields(Rows, "q k v out lse bias"),
        ("dropout", c_float),
        ("seed", c_uint64),
        *_fields(Rows, "grad dq dk dv dbias"),
    ]


class ChainArguments(Structure):
    """An element-wise chain of a block, and its gradients (``chains.cpp``)."""

    _fields_ = [
        *_fields(c_int64, "rows dim"),
        *_fields(c_float, "eps dropout"),
        ("seed", c_uint64),
        *_fields(c_void_p, "x residual scale gain shift out moments grad dx sums"),
    ]


class EdgeArguments(Structure):
    """Batch norm and ReLU of rows, and their gradients (``edges.cpp``)."""

    _fields_ = [
        *_fields(c_int64, "groups size dim"),
        *_fields(c_void_p, "x scale shift mean slope offset grad out dx sums"),
    ]


class PairLayer(Structure):
    """A layer of the pair MLP (``pairs.cpp``)."""

    _fields_ = _fields(c_void_p, "forward backward scale shift mean slope offset h dz")


class PairArguments(Structure):
    """A pass of the pair MLP over all pairs (``pairs.cpp``)."""

    _fields_ = [
        *_fields(c_int64, "num_pairs num_layers last activated"),
        ("widths", POINTER(c_int64)),
        ("x", c_void_p),
        ("layers", POINTER(PairLayer)),
        *_fields(c_void_p, "out grad sums"),
    ]


class ProductArguments(Structure):
    """A matrix product of a layer (``dense.cpp``)."""

    _fields_ = [
        *_fields(c_int64, "m n k"),
        *_fields(c_void_p, "a b"),
        *_fields(c_int64, "a_row a_col b_row b_col"),
        *_fields(c_void_p, "bias out"),
        ("half", c_int64),
    ]


STRUCTURES = {
    "isa": (),
    "peak": (),
    "part": (
        DenseWeights,
        FeedForwardWeights,
        ParticleBlockWeights,
        ClassBlockWeights,
        NetworkWeights,
        JetArguments,
    ),
    "training": (
        Rows,
        AttentionArguments,
        ChainArguments,
        EdgeArguments,
        PairLayer,
        PairArguments,
        ProductArguments,
    ),
}
