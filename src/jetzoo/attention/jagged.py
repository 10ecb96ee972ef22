"""Attention jet by jet, each at its own length, in C++: what a CPU wants (``native/training.cpp``).

The weights of one head of a jet stay in the cache, where the padded matrices of a batch pass
through memory once for every operation, and jets of 40 particles in a batch that goes up to 80 cost
a quarter. Nothing of the size of the weights is kept for the backward pass.
"""

from ctypes import Structure, c_float, c_int64, c_uint64, c_void_p

import torch
from torch.autograd.function import once_differentiable

from jetzoo.native import load
from jetzoo.native.training import new_seed, run

from .reference import reference

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


class Rows(Structure):
    """``struct Rows`` of training.cpp, and so on."""

    _fields_ = [("data", c_void_p), ("first", c_void_p)] + [
        (name, c_int64) for name in ("jet", "head", "row")
    ]


class Arguments(Structure):
    _fields_ = [
        *((name, c_int64) for name in ("num_jets", "num_heads", "dim")),
        *((name, c_void_p) for name in ("queries", "keys")),
        *((name, Rows) for name in ("q", "k", "v", "out", "lse", "bias")),
        ("dropout", c_float),
        ("seed", c_uint64),
        *((name, Rows) for name in ("grad", "dq", "dk", "dv", "dbias")),
    ]


def available(x):
    """Whether the backend takes such tensors, and there is a compiler for it."""
    return x.device.type == "cpu" and x.dtype in DTYPES and load("training") is not None


def _padded(x):
    """Rows of a tensor (B, H, L, d), or (B, H, L)."""
    jet, head, row = x.stride()[:3]
    return Rows(x.data_ptr(), None, jet, head, row)


def _packed(x, num_heads, first, part=0, parts=1):
    """Rows of tokens (T, parts * H * d)."""
    width = x.shape[1] // parts
    start = x.data_ptr() + part * width * x.element_size()
    return Rows(start, first.data_ptr(), 0, width // num_heads, x.stride(0))


def _heads_first(x, first):
    """Rows of one number, or triangles, of a tensor (H, T)."""
    return Rows(x.data_ptr(), first.data_ptr(), 0, x.stride(0), 1)


# The length of each jet is data, which a traced graph cannot depend on.
@torch.compiler.disable
def jagged(q, k, v, *, bias=None, mask=None, dropout_p=0.0):
    """Attention without padding, see :func:`jetzoo.attention`.

    Padding that stands between particles is no length: that is left to :func:`reference`.
    """
    if not available(q):
        raise ValueError(
            "the jagged backend needs a CPU, a C++ compiler and float32 or a half precision, "
            f"not {q.dtype} on {q.device.type}"
        )
    batch_size, _, num_queries, _ = q.shape
    num_keys = k.shape[2]
    keys = torch.full((batch_size,), num_keys) if mask is None else mask.sum(1)
    queries = torch.full((batch_size,), num_queries)
    if mask is not None:
        if not torch.equal(torch.arange(num_keys) < keys[:, None], mask):
            return reference(q, k, v, bias=bias, mask=mask, dropout_p=dropout_p)
        if num_queries == num_keys:  # self-attention
            queries = keys
    dtype = q.dtype
    q, k, v = (x.float() for x in (q, k, v))
    if bias is not None:
        bias = bias.float().expand(*q.shape[:3], num_keys)
    return Jagged.apply(q, k, v, bias, queries, keys, dropout_p).to(dtype)


def _zeros_like_tokens(x):
    """Zeros (B, H, L, d) with the heads of a token side by side, as the projections want them."""
    batch_size, num_heads, length, dim = x.shape
    return x.new_zeros(batch_size, length, num_heads, dim).transpose(1, 2)


def _last_is_dense(x):
    return x if x is None or x.stride(-1) == 1 else x.contiguous()


class Jagged(torch.autograd.Function):
    """softmax(q.k / sqrt(d) + bias) v of the first queries and keys of each jet.

    Parameters
    ----------
    q : Tensor, (B, H, L, d)
    k, v : Tensor, (B, H, S, d)
    bias : Tensor, (B, H, L, S), or None
    queries, keys : Tensor of int, (B,)
    dropout_p : float
    """

    @staticmethod
    def arguments(q, k, v, bias, out, lse, queries, keys, dropout_p, seed):
        arguments = Arguments(
            num_jets=len(q),
            num_heads=q.shape[1],
            dim=q.shape[3],
            queries=queries.data_ptr(),
            keys=keys.data_ptr(),
            dropout=dropout_p,
            seed=seed,
        )
        named = {"q": q, "k": k, "v": v, "bias": bias, "out": out, "lse": lse}
        for name, x in named.items():
            if x is not None:
                setattr(arguments, name, _padded(x))
        return arguments

    @staticmethod
    def forward(ctx, q, k, v, bias, queries, keys, dropout_p):
        q, k, v, bias = map(_last_is_dense, (q, k, v, bias))
        out = _zeros_like_tokens(q)
        lse = q.new_empty(q.shape[:3])
        ctx.settings = (queries, keys, dropout_p, new_seed(dropout_p))
        run("attention_forward", Jagged.arguments(q, k, v, bias, out, lse, *ctx.settings))
        ctx.save_for_backward(q, k, v, bias, out, lse)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        q, k, v, bias, out, lse = ctx.saved_tensors
        grad = _last_is_dense(grad)
        dq, dk, dv = map(_zeros_like_tokens, (q, k, v))
        dbias = q.new_zeros(bias.shape) if ctx.needs_input_grad[3] else None
        arguments = Jagged.arguments(q, k, v, bias, out, lse, *ctx.settings)
        named = {"grad": grad, "dq": dq, "dk": dk, "dv": dv}
        for name, x in (named | ({"dbias": dbias} if dbias is not None else {})).items():
            setattr(arguments, name, _padded(x))
        run("attention_backward", arguments)
        return dq, dk, dv, dbias, None, None, None


class Packed(torch.autograd.Function):
    """Self-attention of packed tokens, without a copy of them.

    Parameters
    ----------
    qkv : Tensor, (T, 3 D)
        Queries, keys and values.
    bias : Tensor, (H, P), or None
        One for both (i, j) and (j, i), see :attr:`jetzoo.packing.Packed.pairs`.
    num_heads : int
    layout : jetzoo.packing.Packed
    dropout_p : float

    Returns
    -------
    Tensor, (T, D)
    """

    @staticmethod
    def arguments(qkv, bias, out, lse, num_heads, layout, dropout_p, seed):
        counts = layout.counts.data_ptr()
        arguments = Arguments(
            num_jets=len(layout.counts),
            num_heads=num_heads,
            dim=out.shape[1] // num_heads,
            queries=counts,
            keys=counts,
            out=_packed(out, num_heads, layout.first),
            lse=_heads_first(lse, layout.first),
            dropout=dropout_p,
            seed=seed,
        )
        for part, name in enumerate("qkv"):
            setattr(arguments, name, _packed(qkv, num_heads, layout.first, part, 3))
        if bias is not None:
            arguments.bias = _heads_first(bias, layout.first_pair)
        return arguments

    @staticmethod
    def forward(ctx, qkv, bias, num_heads, layout, dropout_p):
        qkv = qkv.contiguous()
        bias = None if bias is None else bias.contiguous()
        out = qkv.new_empty(len(qkv), qkv.shape[1] // 3)
        lse = qkv.new_empty(num_heads, len(qkv))
        ctx.settings = (num_heads, layout, dropout_p, new_seed(dropout_p))
        run("attention_forward", Packed.arguments(qkv, bias, out, lse, *ctx.settings))
        ctx.save_for_backward(qkv, bias, out, lse)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        qkv, bias, out, lse = ctx.saved_tensors
        num_heads, layout, *_ = ctx.settings
        grad = grad.contiguous()
        dqkv = torch.empty_like(qkv)
        dbias = torch.empty_like(bias) if ctx.needs_input_grad[1] else None
        arguments = Packed.arguments(qkv, bias, out, lse, *ctx.settings)
        arguments.grad = _packed(grad, num_heads, layout.first)
        for part, name in enumerate(("dq", "dk", "dv")):
            setattr(arguments, name, _packed(dqkv, num_heads, layout.first, part, 3))
        if dbias is not None:
            arguments.dbias = _heads_first(dbias, layout.first_pair)
        run("attention_backward", arguments)
        return dqkv, dbias, None, None, None


def packed_attention(qkv, num_heads, layout, *, bias=None, dropout_p=0.0):
    """Self-attention of packed tokens, see :class:`Packed`."""
    return Packed.apply(qkv, bias, num_heads, layout, dropout_p)
