"""Choice of the attention backend."""

import functools
import logging
from contextlib import contextmanager
from contextvars import ContextVar

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from .. import choices
from .backends import BACKENDS, check_backend
from .jagged import available

_logger = logging.getLogger("jetzoo")
_watcher = ContextVar("watcher", default=None)

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


def choose_backend(q, k, bias=None, dropout_p=0.0, mask=None):
    """What ``backend='auto'`` stands for.

    Parameters
    ----------
    q : Tensor, (B, H, L, d)
    k : Tensor, (B, H, S, d)
    bias : Tensor, (B, H, L, S), optional
    dropout_p : float
    mask : Tensor of bool, (B, S), optional

    Returns
    -------
    str
    """
    if torch.jit.is_tracing():
        return "reference"
    trains = bool(dropout_p) or any(torch.is_grad_enabled() and x.requires_grad for x in (q, k))
    if q.is_cuda:
        compiled = torch.compiler.is_compiling() or torch.cuda.is_current_stream_capturing()
        return "sdpa" if compiled else measured_backend(q, k, bias, mask, dropout_p, trains)
    # One thread, 8 heads of 16, jets half to entirely full, milliseconds of sdpa | jagged:
    # batch x length      128 x 16     128 x 32     128 x 64      64 x 128     4 x 512
    # train, bias         10 | 5.5      22 | 9.7     93 | 23      250 | 36     290 | 38
    # train, no bias     5.7 | 4.6      19 | 8.8     84 | 19      190 | 30     240 | 20
    # infer, bias        1.7 | 2.0     5.0 | 4.2     19 | 8.6      46 | 12      49 | 8.9
    # infer, no bias     1.6 | 2.0     3.4 | 3.8    9.1 | 7.2      17 | 11      13 | 7.5
    pays = min(q.shape[2], k.shape[2]) >= (16 if trains else 32)
    return "jagged" if pays and not torch.compiler.is_compiling() and available(q) else "sdpa"


def measured_backend(q, k, bias, mask, dropout_p, trains):
    """Fastest backend for a class of shapes, timed when the class is first met.

    Those of :data:`jetzoo.attention.backends.BACKENDS` that are ``timed``, and that take such
    tensors and can be imported. Neither random states nor gradients are touched.

    Parameters
    ----------
    q, k, bias, mask, dropout_p
        See :func:`choose_backend`. Where there are no values yet, the keys stand for them.
    trains : bool
        Time the backward pass, too.

    Returns
    -------
    str
    """

    def call(name):
        inputs = [x if x is None else x.detach().requires_grad_(trains) for x in (q, k, k, bias)]
        with torch.set_grad_enabled(trains):
            out = _function(name)(*inputs[:3], bias=inputs[3], mask=mask, dropout_p=dropout_p)
            if trains:
                torch.autograd.grad(out, [x for x in inputs if x is not None], out.detach())

    ways = {
        name: functools.partial(call, name)
        for name, row in BACKENDS.items()
        if row.timed and _serves(row, q, bias, dropout_p)
    }
    if len(ways) < 2:
        return next(iter(ways), "sdpa")
    jets, heads, queries, dim = q.shape
    # Classes of shapes go by powers of two.
    sizes = [1 << (size - 1).bit_length() if size else 0 for size in (jets, queries, k.shape[2])]
    parts = {"bias": bias is not None, "mask": mask is not None, "dropout": dropout_p > 0}
    given = [name for name, there in (parts | {"backward": trains}).items() if there]
    work = " ".join(
        ("attention", "x".join(map(str, (sizes[0], heads, *sizes[1:], dim))), str(q.dtype), *given)
    )
    with torch.random.fork_rng(devices=[q.device] if q.is_cuda else []):
        return choices.fastest(work, ways, q.device)


def _serves(row, q, bias, dropout_p):
    """Whether a backend takes such tensors and is installed."""
    if (bias is not None and not row.bias) or (dropout_p and not row.dropout):
        return False
    if str(q.dtype).removeprefix("torch.") not in row.dtypes or q.device.type not in row.devices:
        return False
    try:
        row.load()
    except ImportError:
        return False
    return True


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
        self-attention: rows of queries that do not exist are undefined, and may be skipped.
    dropout_p : float
        Dropout on the attention weights.
    backend : str
        A row of :data:`jetzoo.attention.backends.BACKENDS`, or "auto", which picks one by device,
        dtype, bias and length, on a GPU by a short timing at the first use of a class of shapes,
        which the user's cache keeps. It logs what it picked when it does so for the first time.

    Returns
    -------
    Tensor, (B, H, L, d)

    Raises
    ------
    ValueError
        If the backend is unknown, or cannot do what is asked.
    """
    if backend == "auto":
        backend = choose_backend(q, k, bias, dropout_p, mask)
        if not torch.compiler.is_compiling():
            _log_choice(q.device.type, backend)
    check_backend(backend, bias=bias is not None)
    function = _function(backend)
    if not torch.compiler.is_compiling():
        _check(BACKENDS[backend], backend, q, k, v, bias, dropout_p)
        if (watcher := _watcher.get()) is not None:
            watcher(backend, q, k, bias, mask)
    return function(q, k, v, bias=bias, mask=mask, dropout_p=dropout_p)


def _function(backend):
    try:
        return BACKENDS[backend].load()
    except ImportError as error:
        raise ValueError(
            f"the {backend} backend needs the package {BACKENDS[backend].package}: "
            f"{BACKENDS[backend].install}"
        ) from error


def _check(row, name, q, k, v, bias, dropout_p):
    if dropout_p and not row.dropout:
        raise ValueError(f"the {name} backend has no dropout; set attn_dropout=0 or use triton")
    if str(q.dtype).removeprefix("torch.") not in row.dtypes or q.device.type not in row.devices:
        raise ValueError(
            f"the {name} backend computes in {', '.join(row.dtypes)} on {' or '.join(row.devices)},"
            f" not in {q.dtype} on {q.device.type}"
        )
    tensors = (q, k, v) if bias is None else (q, k, v, bias)
    trains = torch.is_grad_enabled() and any(x.requires_grad for x in tensors)
    if trains and not row.cpu_gradients and q.device.type == "cpu":
        raise ValueError(
            f"the {name} backend has no gradients on the CPU; train with {row.instead} there"
        )


@contextmanager
def watched(watcher):
    """While open, a function is told about every call of :func:`attention` in this context.

    Parameters
    ----------
    watcher : callable
        ``watcher(backend, q, k, bias, mask)``.
    """
    token = _watcher.set(watcher)
    try:
        yield
    finally:
        _watcher.reset(token)
