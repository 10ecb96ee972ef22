"""Choice of the attention backend."""

import functools
import logging

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from .flash import flash_attn
from .flex import flex
from .jagged import available, jagged
from .reference import reference

_logger = logging.getLogger("jetzoo")

# cuDNN is left out: with a float32 bias and bf16 queries its result is silently wrong.
SDPA_KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def sdpa(q, k, v, *, bias=None, mask=None, dropout_p=0.0):
    """PyTorch's fused attention with a dense bias, see :func:`attention`."""
    attn_mask = None if mask is None else mask[:, None, None, :]  # (B, 1, 1, S)
    if bias is not None:
        attn_mask = bias.to(q.dtype)
        if mask is not None:
            attn_mask = attn_mask.masked_fill(~mask[:, None, None, :], float("-inf"))
    if q.is_cuda:
        with sdpa_kernel(SDPA_KERNELS):
            return F.scaled_dot_product_attention(q, k, v, attn_mask, dropout_p)
    return F.scaled_dot_product_attention(q, k, v, attn_mask, dropout_p)


def triton(q, k, v, **options):
    """The kernels of this project; imported on first use, because Triton may be absent."""
    try:
        from .triton_kernel import triton_attention
    except ImportError as error:
        raise ValueError("the triton backend needs the triton package") from error
    return triton_attention(q, k, v, **options)


BACKENDS = {
    "reference": reference,
    "sdpa": sdpa,
    "jagged": jagged,
    "flex": flex,
    "triton": triton,
    "flash_attn": flash_attn,
}


def check_backend(name, bias=False):
    """Raise a ValueError unless attention has the backend, with a bias if there is one."""
    if name != "auto" and name not in BACKENDS:
        raise ValueError(
            f"unknown attention backend {name!r}; choose from auto, {', '.join(BACKENDS)}"
        )
    if bias and name == "flash_attn":
        raise ValueError(
            "the flash_attn backend takes no pair bias; set pair_bias=False or choose triton"
        )


def choose_backend(q, k, bias=None, dropout_p=0.0):
    """What ``backend='auto'`` stands for.

    Parameters
    ----------
    q : Tensor, (B, H, L, d)
    k : Tensor, (B, H, S, d)
    bias : Tensor, (B, H, L, S), optional
    dropout_p : float

    Returns
    -------
    str
    """
    if torch.jit.is_tracing():
        return "reference"
    if q.is_cuda:
        # The kernels of this project have not been measured on a GPU: until benchmarks/scaling.py
        # has shown that they win, they run where they are asked for.
        return "sdpa"
    # One thread, 8 heads of 16, jets half to entirely full, milliseconds of sdpa | jagged:
    # batch x length      128 x 16     128 x 32     128 x 64      64 x 128     4 x 512
    # train, bias         10 | 5.5      22 | 9.7     93 | 23      250 | 36     290 | 38
    # train, no bias     5.7 | 4.6      19 | 8.8     84 | 19      190 | 30     240 | 20
    # infer, bias        1.7 | 2.0     5.0 | 4.2     19 | 8.6      46 | 12      49 | 8.9
    # infer, no bias     1.6 | 2.0     3.4 | 3.8    9.1 | 7.2      17 | 11      13 | 7.5
    trains = dropout_p or any(torch.is_grad_enabled() and x.requires_grad for x in (q, k))
    pays = min(q.shape[2], k.shape[2]) >= (16 if trains else 32)
    return "jagged" if pays and not torch.compiler.is_compiling() and available(q) else "sdpa"


@functools.cache
def _log_choice(device, backend):
    _logger.info("attention on %s: %s", device, backend)


def attention(q, k, v, *, bias=None, mask=None, dropout_p=0.0, backend="auto"):
    """Multi-head attention with an additive bias before the softmax.

    Parameters
    ----------
    q : Tensor, (B, H, L, d)
    k, v : Tensor, (B, H, S, d)
    bias : Tensor, (B, H, L, S), optional
        Added to q.k / sqrt(d): the pair interaction of arXiv 2202.03772, eq. 4.
    mask : Tensor of bool, (B, S), optional
        True for the keys that exist. A row without any gives zeros. With L = S it is
        self-attention: rows of queries that do not exist have no meaning, and may be skipped.
    dropout_p : float
        Dropout on the attention weights.
    backend : {"auto", "reference", "sdpa", "jagged", "flex", "triton", "flash_attn"}
        "auto" picks by device, dtype, bias and length, and logs what it picked when it does so
        for the first time. "reference" is the truth in any floating dtype; "sdpa" is PyTorch's
        own; "jagged" goes jet by jet, in C++, for CPUs; "flex" is FlexAttention, without dropout;
        "triton" is this project's kernel; "flash_attn" is the package, without bias.

    Returns
    -------
    Tensor, (B, H, L, d)

    Raises
    ------
    ValueError
        If the backend is unknown, or cannot do what is asked.
    """
    if backend == "auto":
        backend = choose_backend(q, k, bias, dropout_p)
        if not torch.compiler.is_compiling():
            _log_choice(q.device.type, backend)
    check_backend(backend)
    return BACKENDS[backend](q, k, v, bias=bias, mask=mask, dropout_p=dropout_p)
