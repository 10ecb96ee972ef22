"""Attention jet by jet, each at its own length, in C++: what a CPU wants (``attention.cpp``).

The weights of one head of a jet stay in the cache, where the padded matrices of a batch pass
through memory once for every operation, and jets of 40 particles in a batch that goes up to 80 cost
a quarter. Nothing of the size of the weights is kept for the backward pass.
"""

import torch
from torch.autograd.function import once_differentiable

from jetzoo.native import load
from jetzoo.native.calls import address, serial_after_fork
from jetzoo.native.structures import AttentionArguments, Rows
from jetzoo.native.training import new_seed, run

from .reference import reference

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def available(x):
    """Whether the backend takes such tensors, and there is a compiler for it."""
    return x.device.type == "cpu" and x.dtype in DTYPES and load("training") is not None


def _padded(name, x, shape):
    """Rows of a tensor (B, H, L, d), or (B, H, L)."""
    if x.device.type != "cpu" or x.dtype != torch.float32 or x.shape != shape:
        raise ValueError(
            f"{name} should be float32 {tuple(shape)} on a CPU, not {x.dtype} {tuple(x.shape)} on "
            f"{x.device}"
        )
    jet, head, row = x.stride()[:3]
    return Rows(x.data_ptr(), None, jet, head, row)


def _packed(name, x, shape, num_heads, first, part=0):
    """Rows of tokens (T, parts * H * d); ``shape`` is that of one part."""
    tokens, width = shape
    start = address(name, x, (tokens, x.shape[-1])) + part * width * x.element_size()
    return Rows(start, first.data_ptr(), 0, width // num_heads, x.stride(0))


def _heads_first(name, x, shape, first):
    """Rows of one number, or triangles, of a tensor (H, T)."""
    return Rows(address(name, x, shape), first.data_ptr(), 0, shape[1], 1)


# The length of each jet is data, which a traced graph cannot depend on.
@torch.compiler.disable
def jagged(q, k, v, *, bias=None, mask=None, dropout_p=0.0):
    """Attention without padding, see :func:`jetzoo.attention`.

    What the kernels do not take is left to :func:`reference`, which computes it or raises: padding
    that stands between particles is no length, and shapes that are broadcast are no rows.

    Raises
    ------
    ValueError
        If a tensor is not on a CPU, or the queries are of another dtype than the kernels read.
    """
    if not available(q):
        raise ValueError(
            "the jagged backend needs a CPU, a C++ compiler and float32 or a half precision, "
            f"not {q.dtype} on {q.device.type}"
        )
    # PyTorch's own products read undefined memory where one of two tensors is on "meta".
    for name, x in {"k": k, "v": v, "bias": bias, "mask": mask}.items():
        if x is not None and x.device.type != "cpu":
            raise ValueError(
                f"the jagged backend needs tensors on a CPU, but {name} is on {x.device}"
            )
    if not _takes(q, k, v, bias, mask, dropout_p):
        return reference(q, k, v, bias=bias, mask=mask, dropout_p=dropout_p)
    with serial_after_fork():
        batch_size, _, num_queries, _ = q.shape
        num_keys = k.shape[2]
        keys = torch.full((batch_size,), num_keys) if mask is None else mask.sum(1)
        queries = torch.full((batch_size,), num_queries)
        if mask is not None:
            if not torch.equal(torch.arange(num_keys) < keys[:, None], mask):
                return reference(q, k, v, bias=bias, mask=mask, dropout_p=dropout_p)
            if num_queries == num_keys:  # self-attention
                queries = keys
        dtype = v.dtype
        q, k, v = (x.float() for x in (q, k, v))
        if bias is not None:
            bias = bias.float().expand(*q.shape[:3], num_keys)
        return PaddedAttention.apply(q, k, v, bias, queries, keys, dropout_p).to(dtype)


def _takes(q, k, v, bias, mask, dropout_p):
    """Whether the kernels compute this; elsewhere PyTorch's rules of broadcasting hold."""
    if any(x is not None and x.layout != torch.strided for x in (q, k, v, bias, mask)):
        return False
    if q.dim() != 4 or k.dim() != 4 or q.shape[3] == 0 or not 0 <= dropout_p < 1:
        return False
    batch_size, num_heads, num_queries, dim = q.shape
    keys = (batch_size, num_heads, k.shape[2], dim)
    if k.shape != keys or v.shape != keys or not q.dtype == k.dtype == v.dtype:
        return False
    if mask is not None and (mask.dtype != torch.bool or mask.shape != (batch_size, keys[2])):
        return False
    if bias is None:
        return True
    full = (batch_size, num_heads, num_queries, keys[2])
    sizes = zip(reversed(bias.shape), reversed(full), strict=False)
    return (
        bias.is_floating_point()
        and bias.dim() <= 4
        and all(size in (1, expected) for size, expected in sizes)
    )


def _zeros_like_tokens(x):
    """Zeros (B, H, L, d) with the heads of a token side by side, as the projections want them."""
    batch_size, num_heads, length, dim = x.shape
    return x.new_zeros(batch_size, length, num_heads, dim).transpose(1, 2)


def _last_is_dense(x):
    return x if x is None or x.stride(-1) == 1 else x.contiguous()


class PaddedAttention(torch.autograd.Function):
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
        """The structure of the inputs and of the output."""
        arguments = AttentionArguments(
            num_jets=len(q),
            num_heads=q.shape[1],
            dim=q.shape[3],
            queries=address("queries", queries, q.shape[:1], torch.int64),
            keys=address("keys", keys, q.shape[:1], torch.int64),
            dropout=dropout_p,
            seed=seed,
        )
        PaddedAttention.set(arguments, q.shape, k.shape, q=q, k=k, v=v, bias=bias, out=out, lse=lse)
        return arguments

    @staticmethod
    def set(arguments, queries, keys, /, **tensors):
        """Set rows of a structure that are given: of tensors shaped like q (B, H, L, d), and k."""
        shapes = dict.fromkeys(("q", "out", "grad", "dq"), queries)
        shapes |= dict.fromkeys(("k", "v", "dk", "dv"), keys)
        shapes |= dict.fromkeys(("bias", "dbias"), (*queries[:3], keys[2]))
        shapes["lse"] = queries[:3]
        for name, x in tensors.items():
            if x is not None:
                setattr(arguments, name, _padded(name, x, shapes[name]))

    @staticmethod
    def forward(ctx, q, k, v, bias, queries, keys, dropout_p):
        q, k, v, bias = map(_last_is_dense, (q, k, v, bias))
        out = _zeros_like_tokens(q)
        lse = q.new_empty(q.shape[:3])
        ctx.settings = (queries, keys, dropout_p, new_seed(dropout_p))
        arguments = PaddedAttention.arguments(q, k, v, bias, out, lse, *ctx.settings)
        run("attention_forward", arguments)
        ctx.save_for_backward(q, k, v, bias, out, lse)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        q, k, v, bias, out, lse = ctx.saved_tensors
        grad = _last_is_dense(grad)
        dq, dk, dv = map(_zeros_like_tokens, (q, k, v))
        dbias = q.new_zeros(bias.shape) if ctx.needs_input_grad[3] else None
        arguments = PaddedAttention.arguments(q, k, v, bias, out, lse, *ctx.settings)
        gradients = {"dq": dq, "dk": dk, "dv": dv, "dbias": dbias}
        PaddedAttention.set(arguments, q.shape, k.shape, grad=grad, **gradients)
        run("attention_backward", arguments)
        return dq, dk, dv, dbias, None, None, None


class PackedAttention(torch.autograd.Function):
    """Self-attention of packed tokens, without a copy of them.

    Parameters
    ----------
    qkv : Tensor, (T, 3 D)
        Queries, keys and values.
    bias : Tensor, (H, P), or None
        One for both (i, j) and (j, i), see :attr:`jetzoo.nn.packing.Packed.pairs`.
    num_heads : int
    layout : jetzoo.nn.packing.Packed
    dropout_p : float

    Returns
    -------
    Tensor, (T, D)
    """

    @staticmethod
    def arguments(qkv, bias, out, lse, num_heads, layout, dropout_p, seed):
        """The structure of the inputs and of the output."""
        counts = address("counts", layout.counts, layout.mask.shape[:1], torch.int64)
        arguments = AttentionArguments(
            num_jets=len(layout.counts),
            num_heads=num_heads,
            dim=out.shape[1] // num_heads,
            queries=counts,
            keys=counts,
            out=_packed("out", out, out.shape, num_heads, layout.first),
            lse=_heads_first("lse", lse, (num_heads, len(qkv)), layout.first),
            dropout=dropout_p,
            seed=seed,
        )
        for part, name in enumerate("qkv"):
            rows = _packed("qkv", qkv, out.shape, num_heads, layout.first, part)
            setattr(arguments, name, rows)
        if bias is not None:
            arguments.bias = _heads_first("bias", bias, bias.shape, layout.first_pair)
        return arguments

    @staticmethod
    def forward(ctx, qkv, bias, num_heads, layout, dropout_p):
        qkv = qkv.contiguous()
        bias = None if bias is None else bias.contiguous()
        out = qkv.new_empty(len(qkv), qkv.shape[1] // 3)
        lse = qkv.new_empty(num_heads, len(qkv))
        ctx.settings = (num_heads, layout, dropout_p, new_seed(dropout_p))
        arguments = PackedAttention.arguments(qkv, bias, out, lse, *ctx.settings)
        run("attention_forward", arguments)
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
        arguments = PackedAttention.arguments(qkv, bias, out, lse, *ctx.settings)
        arguments.grad = _packed("grad", grad, out.shape, num_heads, layout.first)
        for part, name in enumerate(("dq", "dk", "dv")):
            rows = _packed(name, dqkv, out.shape, num_heads, layout.first, part)
            setattr(arguments, name, rows)
        if dbias is not None:
            arguments.dbias = _heads_first("dbias", dbias, bias.shape, layout.first_pair)
        run("attention_backward", arguments)
        return dqkv, dbias, None, None, None


def packed_attention(qkv, num_heads, layout, *, bias=None, dropout_p=0.0):
    """Self-attention of packed tokens, see :class:`PackedAttention`.

    Raises
    ------
    ValueError
        If the tensors do not fit the layout, or the kernels cannot take them.
    """
    if not available(qkv) or qkv.dtype != torch.float32 or not 0 <= dropout_p < 1:
        raise ValueError(
            "packed attention needs float32 on a CPU, a C++ compiler and a dropout below 1, not "
            f"{qkv.dtype} on {qkv.device} and {dropout_p}"
        )
    counts = layout.counts
    tokens, pairs = int(counts.sum()), int((counts * (counts + 1) // 2).sum())
    if qkv.dim() != 2 or len(qkv) != tokens or not qkv.shape[1] or qkv.shape[1] % (3 * num_heads):
        raise ValueError(
            f"qkv should have a row for each of {tokens} tokens and three parts of {num_heads} "
            f"heads, not the shape {tuple(qkv.shape)}"
        )
    if bias is not None and bias.shape != (num_heads, pairs):
        raise ValueError(
            f"bias should have the shape {(num_heads, pairs)}, heads and pairs, not "
            f"{tuple(bias.shape)}"
        )
    return PackedAttention.apply(qkv, bias, num_heads, layout, dropout_p)
