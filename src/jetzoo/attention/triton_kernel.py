"""Attention in Triton: fused forward and backward, with a gradient for the pair bias.

The online softmax of FlashAttention-2 (arXiv 2307.08691). What differs: an additive bias whose
gradient is written once per pair, and jets of different lengths, whose blocks beyond the last
particle are skipped over queries and over keys, so that padding costs nothing.
"""

import math

import torch
import triton
import triton.language as tl
from torch import library
from triton import knobs

INTERPRETED = knobs.runtime.interpret
# Triton's interpreter multiplies the bit patterns of bf16 numbers.
DTYPES = (torch.float32, torch.float16) + (() if INTERPRETED else (torch.bfloat16,))


@triton.jit
def _load(X, stride, rows, num_rows, dims, num_dims):
    """Block (len(rows), len(dims)) of a matrix whose rows are contiguous, zero outside."""
    inside = (rows[:, None] < num_rows) & (dims[None, :] < num_dims)
    return tl.load(X + rows[:, None] * stride + dims[None, :], mask=inside, other=0.0)


@triton.jit
def _store(X, x, stride, rows, num_rows, dims, num_dims):
    inside = (rows[:, None] < num_rows) & (dims[None, :] < num_dims)
    tl.store(X + rows[:, None] * stride + dims[None, :], x.to(X.dtype.element_ty), mask=inside)


@triton.jit
def _scores(
    q, k, Bias, Mask, bias_stride, rows, columns, num_queries, num_keys, scale,
    HAS_BIAS: tl.constexpr, HAS_MASK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Biased scores of a block in units of log 2, -inf where there is no pair."""
    s = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
    inside = (rows[:, None] < num_queries) & (columns[None, :] < num_keys)
    if HAS_BIAS:
        pairs = rows[:, None].to(tl.int64) * bias_stride + columns[None, :]
        s += tl.load(Bias + pairs, mask=inside, other=0.0).to(tl.float32) * 1.4426950408889634
    if HAS_MASK:
        keys = tl.load(Mask + columns, mask=columns < num_keys, other=0)
        inside = inside & (keys[None, :] != 0)
    return tl.where(inside, s, float("-inf"))


@triton.jit
def _kept(Seed, head, rows, columns, S, dropout_p):
    """What survives dropout; the same in the forward and in the backward pass."""
    offsets = rows[:, None] * S + columns[None, :]
    return tl.rand(tl.load(Seed) + head, offsets) >= dropout_p


@triton.jit
def _lengths(Lengths, batch, L, S, HAS_MASK: tl.constexpr):
    """Queries and keys up to the last one that exists; in self-attention both are particles."""
    num_keys = S
    num_queries = L
    if HAS_MASK:
        num_keys = tl.load(Lengths + batch)
        if L == S:
            num_queries = num_keys
    return num_queries, num_keys


@triton.jit
def _forward_kernel(
    Q, K, V, Bias, Mask, Lengths, Seed, Out, Lse,
    q_b, q_h, q_m, k_b, k_h, k_m, v_b, v_h, v_m, bias_b, bias_h, bias_m, o_b, o_h, o_m,
    H, L, S, D, scale, dropout_p,
    HAS_BIAS: tl.constexpr, HAS_MASK: tl.constexpr, DROPOUT: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(0)  # of all jets
    b, h = (head // H).to(tl.int64), (head % H).to(tl.int64)
    rows = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    dims = tl.arange(0, BLOCK_D)
    num_queries, num_keys = _lengths(Lengths, b, L, S, HAS_MASK)
    if tl.program_id(1) * BLOCK_M >= num_queries:
        num_keys = 0

    q = _load(Q + b * q_b + h * q_h, q_m, rows, L, dims, D)
    top = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    out = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    for start in range(0, num_keys, BLOCK_N):
        columns = start + tl.arange(0, BLOCK_N)
        k = _load(K + b * k_b + h * k_h, k_m, columns, S, dims, D)
        v = _load(V + b * v_b + h * v_h, v_m, columns, S, dims, D)
        s = _scores(
            q, k, Bias + b * bias_b + h * bias_h, Mask + b * S, bias_m, rows, columns,
            num_queries, num_keys, scale, HAS_BIAS, HAS_MASK, PRECISION,
        )  # fmt: skip
        new_top = tl.maximum(top, tl.max(s, 1))
        shift = tl.where(new_top == float("-inf"), 0.0, new_top)  # rows without keys so far
        p = tl.exp2(s - shift[:, None])
        shrink = tl.exp2(top - shift)
        total = total * shrink + tl.sum(p, 1)
        if DROPOUT:
            kept = _kept(Seed, head, rows, columns, S, dropout_p)
            p = tl.where(kept, p / (1 - dropout_p), 0.0)
        out = out * shrink[:, None] + tl.dot(p.to(v.dtype), v, input_precision=PRECISION)
        top = new_top

    total = tl.where(total == 0, 1.0, total)
    _store(Out + b * o_b + h * o_h, out / total[:, None], o_m, rows, L, dims, D)
    lse = tl.where(top == float("-inf"), 0.0, top) + tl.log2(total)
    tl.store(Lse + head.to(tl.int64) * L + rows, lse, mask=rows < L)


@triton.jit
def _queries_kernel(
    Q, K, V, Bias, Mask, Lengths, Seed, Out, Lse, Grad, Delta, DQ, DBias,
    q_b, q_h, q_m, k_b, k_h, k_m, v_b, v_h, v_m, bias_b, bias_h, bias_m, o_b, o_h, o_m,
    g_b, g_h, g_m, H, L, S, D, scale, dropout_p,
    HAS_BIAS: tl.constexpr, HAS_MASK: tl.constexpr, DROPOUT: tl.constexpr, BIAS_GRAD: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Gradients of a block of queries and of its rows of the bias; Delta for the other kernel."""
    head = tl.program_id(0)
    b, h = (head // H).to(tl.int64), (head % H).to(tl.int64)
    rows = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    dims = tl.arange(0, BLOCK_D)
    num_queries, num_keys = _lengths(Lengths, b, L, S, HAS_MASK)
    if tl.program_id(1) * BLOCK_M >= num_queries:
        num_keys = 0

    q = _load(Q + b * q_b + h * q_h, q_m, rows, L, dims, D)
    out = _load(Out + b * o_b + h * o_h, o_m, rows, L, dims, D)
    grad = _load(Grad + b * g_b + h * g_h, g_m, rows, L, dims, D)
    lse = tl.load(Lse + head.to(tl.int64) * L + rows, mask=rows < L, other=0.0)
    delta = tl.sum(grad.to(tl.float32) * out.to(tl.float32), 1)
    tl.store(Delta + head.to(tl.int64) * L + rows, delta, mask=rows < L)
    dq = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    DBias += head.to(tl.int64) * L * S
    for start in range(0, num_keys, BLOCK_N):
        columns = start + tl.arange(0, BLOCK_N)
        k = _load(K + b * k_b + h * k_h, k_m, columns, S, dims, D)
        v = _load(V + b * v_b + h * v_h, v_m, columns, S, dims, D)
        s = _scores(
            q, k, Bias + b * bias_b + h * bias_h, Mask + b * S, bias_m, rows, columns,
            num_queries, num_keys, scale, HAS_BIAS, HAS_MASK, PRECISION,
        )  # fmt: skip
        p = tl.exp2(s - lse[:, None])
        dp = tl.dot(grad, tl.trans(v), input_precision=PRECISION)
        if DROPOUT:
            kept = _kept(Seed, head, rows, columns, S, dropout_p)
            dp = tl.where(kept, dp / (1 - dropout_p), 0.0)
        ds = p * (dp - delta[:, None])
        if BIAS_GRAD:
            _store(DBias, ds, S, rows, L, columns, S)
        dq += tl.dot(ds.to(k.dtype), k, input_precision=PRECISION)
    if BIAS_GRAD:
        nothing = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for start in range(tl.cdiv(num_keys, BLOCK_N) * BLOCK_N, S, BLOCK_N):
            _store(DBias, nothing, S, rows, L, start + tl.arange(0, BLOCK_N), S)
    dq *= scale / 1.4426950408889634
    _store(DQ + head.to(tl.int64) * L * D, dq, D, rows, L, dims, D)


@triton.jit
def _keys_kernel(
    Q, K, V, Bias, Mask, Lengths, Seed, Lse, Grad, Delta, DK, DV,
    q_b, q_h, q_m, k_b, k_h, k_m, v_b, v_h, v_m, bias_b, bias_h, bias_m, g_b, g_h, g_m,
    H, L, S, D, scale, dropout_p,
    HAS_BIAS: tl.constexpr, HAS_MASK: tl.constexpr, DROPOUT: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Gradients of a block of keys and values."""
    head = tl.program_id(0)
    b, h = (head // H).to(tl.int64), (head % H).to(tl.int64)
    columns = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    dims = tl.arange(0, BLOCK_D)
    num_queries, num_keys = _lengths(Lengths, b, L, S, HAS_MASK)
    if tl.program_id(1) * BLOCK_N >= num_keys:
        num_queries = 0

    k = _load(K + b * k_b + h * k_h, k_m, columns, S, dims, D)
    v = _load(V + b * v_b + h * v_h, v_m, columns, S, dims, D)
    dk = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    dv = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    for start in range(0, num_queries, BLOCK_M):
        rows = start + tl.arange(0, BLOCK_M)
        q = _load(Q + b * q_b + h * q_h, q_m, rows, L, dims, D)
        grad = _load(Grad + b * g_b + h * g_h, g_m, rows, L, dims, D)
        lse = tl.load(Lse + head.to(tl.int64) * L + rows, mask=rows < L, other=0.0)
        delta = tl.load(Delta + head.to(tl.int64) * L + rows, mask=rows < L, other=0.0)
        s = _scores(
            q, k, Bias + b * bias_b + h * bias_h, Mask + b * S, bias_m, rows, columns,
            num_queries, num_keys, scale, HAS_BIAS, HAS_MASK, PRECISION,
        )  # fmt: skip
        p = tl.exp2(s - lse[:, None])
        dp = tl.dot(grad, tl.trans(v), input_precision=PRECISION)
        dropped = p
        if DROPOUT:
            kept = _kept(Seed, head, rows, columns, S, dropout_p)
            dropped = tl.where(kept, p / (1 - dropout_p), 0.0)
            dp = tl.where(kept, dp / (1 - dropout_p), 0.0)
        dv += tl.dot(tl.trans(dropped.to(grad.dtype)), grad, input_precision=PRECISION)
        ds = p * (dp - delta[:, None])
        dk += tl.dot(tl.trans(ds.to(q.dtype)), q, input_precision=PRECISION)
    dk *= scale / 1.4426950408889634
    _store(DK + head.to(tl.int64) * S * D, dk, D, columns, S, dims, D)
    _store(DV + head.to(tl.int64) * S * D, dv, D, columns, S, dims, D)


def _rows_contiguous(x):
    return x if x.stride(-1) == 1 else x.contiguous()


def _arguments(q, k, bias, mask, dropout_p):
    """Scalars and compile-time constants that the kernels share."""
    num_heads, length, dim = q.shape[1:]
    return {
        "H": num_heads,
        "L": length,
        "S": k.shape[2],
        "D": dim,
        "scale": math.log2(math.e) / math.sqrt(dim),
        "dropout_p": dropout_p,
        "HAS_BIAS": bias is not None,
        "HAS_MASK": mask is not None,
        "DROPOUT": dropout_p > 0,
        # TF32 would cost float32 three digits.
        "PRECISION": "ieee" if q.dtype == torch.float32 else "tf32",
        # Larger blocks spill registers in the backward pass, see benchmarks/kernels.py.
        "BLOCK_M": 16 if length <= 16 else 32 if q.dtype == torch.float32 else 64,
        "BLOCK_N": 32,
        "BLOCK_D": max(16, triton.next_power_of_2(dim)),
    }


def _strides(*tensors):
    """Strides of batch, head and row."""
    return [s for x in tensors for s in ((0, 0, 0) if x is None else x.stride()[:3])]


def _optional(stand_in, bias, mask, seed):
    """Bias, mask, number of keys up to the last one that exists (B,), and seed."""
    lengths = None
    if mask is not None:
        position = torch.arange(1, mask.shape[1] + 1, device=mask.device, dtype=torch.int32)
        lengths = (mask * position).amax(1)
        mask = mask.contiguous().view(torch.uint8)
    return (stand_in if x is None else x for x in (bias, mask, lengths, seed))


@library.custom_op("jetzoo::attention", mutates_args=())
def _attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    bias: torch.Tensor | None,
    mask: torch.Tensor | None,
    seed: torch.Tensor | None,
    dropout_p: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Output (B, H, L, d) and the log2 of the sums of each row (B, H, L)."""
    q, k, v = map(_rows_contiguous, (q, k, v))
    bias = bias if bias is None else _rows_contiguous(bias)
    batch_size, num_heads, length, _ = q.shape
    # Tokens of all heads side by side: what the projection after the attention wants.
    out = torch.empty_like(q.transpose(1, 2), memory_format=torch.contiguous_format)
    out = out.transpose(1, 2)
    lse = q.new_empty(batch_size, num_heads, length, dtype=torch.float32)
    arguments = _arguments(q, k, bias, mask, dropout_p)
    grid = (batch_size * num_heads, triton.cdiv(length, arguments["BLOCK_M"]))
    _forward_kernel[grid](
        q,
        k,
        v,
        *_optional(q, bias, mask, seed),
        out,
        lse,
        *_strides(q, k, v, bias, out),
        **arguments,
    )
    return out, lse


@_attention.register_fake
def _(q, k, v, bias, mask, seed, dropout_p):
    out = torch.empty_like(q.transpose(1, 2), memory_format=torch.contiguous_format)
    return out.transpose(1, 2), q.new_empty(q.shape[:3], dtype=torch.float32)


@library.custom_op("jetzoo::attention_backward", mutates_args=())
def _attention_backward(
    grad: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    bias: torch.Tensor | None,
    mask: torch.Tensor | None,
    seed: torch.Tensor | None,
    dropout_p: float,
    out: torch.Tensor,
    lse: torch.Tensor,
    bias_grad: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of q, k, v and bias; the last is empty unless asked for."""
    grad, q, k, v, out = map(_rows_contiguous, (grad, q, k, v, out))
    bias = bias if bias is None else _rows_contiguous(bias)
    dq, dk, dv, dbias = _gradients(q, k, v, bias, bias_grad)
    delta = torch.empty_like(lse)
    arguments = _arguments(q, k, bias, mask, dropout_p)
    batch_heads = q.shape[0] * q.shape[1]
    inputs = (q, k, v, *_optional(q, bias, mask, seed))
    _queries_kernel[(batch_heads, triton.cdiv(q.shape[2], arguments["BLOCK_M"]))](
        *inputs,
        out,
        lse,
        grad,
        delta,
        dq,
        dbias,
        *_strides(q, k, v, bias, out, grad),
        BIAS_GRAD=bias_grad,
        **arguments,
    )
    _keys_kernel[(batch_heads, triton.cdiv(k.shape[2], arguments["BLOCK_N"]))](
        *inputs, lse, grad, delta, dk, dv, *_strides(q, k, v, bias, grad), **arguments
    )
    return dq, dk, dv, dbias


def _gradients(q, k, v, bias, bias_grad):
    contiguous = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v)]
    if not bias_grad:
        return *contiguous, q.new_empty(0)
    return *contiguous, torch.empty_like(bias, memory_format=torch.contiguous_format)


@_attention_backward.register_fake
def _(grad, q, k, v, bias, mask, seed, dropout_p, out, lse, bias_grad):
    return _gradients(q, k, v, bias, bias_grad)


def _setup_context(ctx, inputs, output):
    q, k, v, bias, mask, seed, ctx.dropout_p = inputs
    ctx.save_for_backward(q, k, v, bias, mask, seed, *output)


def _backward(ctx, grad, _):
    *inputs, out, lse = ctx.saved_tensors
    bias_grad = ctx.needs_input_grad[3]
    dq, dk, dv, dbias = _attention_backward(grad, *inputs, ctx.dropout_p, out, lse, bias_grad)
    return dq, dk, dv, dbias if bias_grad else None, None, None, None


_attention.register_autograd(_backward, setup_context=_setup_context)


def triton_attention(q, k, v, *, bias=None, mask=None, dropout_p=0.0):
    """Own fused kernels, see :func:`jetzoo.attention`."""
    if not (q.is_cuda or INTERPRETED):
        raise ValueError("the triton backend needs a GPU, or TRITON_INTERPRET=1 to try it out")
    if q.dtype not in DTYPES:
        names = ", ".join(map(str, DTYPES))
        raise ValueError(f"the triton backend computes in {names} here, not in {q.dtype}")
    if bias is not None:
        bias = bias.expand(*q.shape[:3], k.shape[2])
    seed = torch.randint(2**30, (1,), device=q.device) if dropout_p else None
    return _attention(q, k, v, bias, mask, seed, dropout_p)[0]
