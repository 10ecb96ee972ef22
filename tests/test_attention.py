"""Every attention backend against the reference in float64."""

import logging
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import library

from jetzoo import native
from jetzoo.attention import BACKENDS, attention, check_backend, dispatch, jagged
from jetzoo.attention.reference import weights
from jetzoo.nn.packing import pack

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
COMPILER = native.load("training") is not None
HALF = torch.bfloat16 if DEVICE == "cuda" else torch.float16
LENGTHS = [1, 7, 33, 61, 130]
JAGGED = ["jagged"] if DEVICE == "cpu" and COMPILER else []
WITH_GRADIENT = ["reference", "sdpa", "triton", *JAGGED] + (["flex"] if DEVICE == "cuda" else [])
NUM_HEADS, HEAD_DIM = 2, 16


def make(num_queries, num_keys, dtype, seed=0):
    """Queries, keys, values and bias of three jets: full, half full and empty; and the mask."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator).to(DEVICE, dtype)

    q = normal(3, NUM_HEADS, num_queries, HEAD_DIM)
    k, v = normal(2, 3, NUM_HEADS, num_keys, HEAD_DIM)
    bias = 2 * normal(3, NUM_HEADS, num_queries, num_keys)
    counts = torch.tensor([num_keys, num_keys // 2, 0], device=DEVICE)
    return (q, k, v, bias), torch.arange(num_keys, device=DEVICE) < counts[:, None]


def torch_own(q, k, v, bias, mask):
    if mask is not None:
        floor = torch.finfo(q.dtype).min
        keys = mask[:, None, None, :]
        bias = (torch.zeros_like(q[:, :, :, :1]) if bias is None else bias).masked_fill(
            ~keys, floor
        )
        v = v * (mask.any(1)[:, None, None, None])
    return F.scaled_dot_product_attention(q, k, v, bias)


def results(function, inputs, grad, mask, gradients=True):
    """Output and gradients; rows of particles that do not exist are left out."""
    inputs = [x if x is None else x.detach().requires_grad_(gradients) for x in inputs]
    out = function(*inputs, mask)
    found = [out * (grad != 0)]
    if gradients:
        found += torch.autograd.grad(out, [x for x in inputs if x is not None], grad)
    return [x.detach().double() for x in found]


def assert_as_good_as_torch(backend, inputs, mask, gradients):
    grad = torch.randn(inputs[0].shape, generator=torch.Generator().manual_seed(1))
    grad = grad.to(inputs[0])
    if mask is not None and grad.shape[2] == mask.shape[1]:
        grad = grad * mask[:, None, :, None]

    def function(name):
        return lambda q, k, v, bias, mask: attention(q, k, v, bias=bias, mask=mask, backend=name)

    exact = [x if x is None else x.double() for x in inputs]
    truth = results(function("reference"), exact, grad.double(), mask, gradients)
    torchs = results(torch_own, inputs, grad, mask, gradients)
    ours = results(function(backend), inputs, grad, mask, gradients)
    eps = torch.finfo(inputs[0].dtype).eps
    assert len(ours) == len(truth)
    for x, theirs, true in zip(ours, torchs, truth, strict=True):
        # With one key the gradients of q, k and bias are 0, which PyTorch meets exactly.
        allowed = 2 * (theirs - true).norm() + 8 * eps
        assert (x - true).norm() <= allowed
        assert x[2].abs().max() == 0  # the jet without particles
        assert torch.isfinite(x).all()


@pytest.mark.parametrize("dtype", [torch.float32, HALF], ids=str)
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("backend", WITH_GRADIENT)
def test_self_attention(backend, length, dtype):
    inputs, mask = make(length, length, dtype)
    assert_as_good_as_torch(backend, inputs, mask, gradients=True)


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize(("num_queries", "num_keys"), [(1, 34), (70, 5), (20, 131)])
@pytest.mark.parametrize("backend", WITH_GRADIENT)
def test_queries_are_not_the_keys(backend, num_queries, num_keys, with_bias):
    (*qkv, bias), mask = make(num_queries, num_keys, torch.float32)
    assert_as_good_as_torch(backend, (*qkv, bias if with_bias else None), mask, gradients=True)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_forward(length):
    inputs, mask = make(length, length, torch.float32)
    assert_as_good_as_torch("flex", inputs, mask, gradients=False)


@pytest.mark.parametrize("backend", WITH_GRADIENT)
def test_without_mask(backend):
    inputs, _ = make(33, 33, torch.float32)
    out = attention(*inputs[:3], bias=inputs[3], backend=backend)
    torch.testing.assert_close(out, torch_own(*inputs, None), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", ["triton", *JAGGED])
def test_mask_need_not_be_a_prefix(backend):
    (q, k, v, bias), _ = make(5, 40, torch.float32)
    mask = torch.rand(3, 40, generator=torch.Generator().manual_seed(2)).to(DEVICE) < 0.5
    expected = attention(q, k, v, bias=bias, mask=mask, backend="reference")
    found = attention(q, k, v, bias=bias, mask=mask, backend=backend)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_triton_takes_any_head_width_and_layout():
    torch.manual_seed(3)
    tokens = torch.randn(2, 19, 3 * 3 * 20, device=DEVICE)  # three heads of width 20
    q, k, v = (x.unflatten(-1, (3, 20)).transpose(1, 2) for x in tokens.chunk(3, -1))
    bias = torch.randn(3, 2, 19, 19, device=DEVICE).transpose(0, 1)
    expected = attention(q, k, v, bias=bias, backend="reference")
    found = attention(q, k, v, bias=bias, backend="triton")
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", ["triton", *JAGGED])
def test_padding_gets_zeros(backend):
    inputs, mask = make(130, 130, torch.float32)
    q, k, v, bias = (x.requires_grad_() for x in inputs)
    out = attention(q, k, v, bias=bias, mask=mask, backend=backend)
    grads = torch.autograd.grad(out, (q, k, v, bias), torch.ones_like(out) * mask[:, None, :, None])
    for x in (out, *grads[:3]):
        assert (x[1, :, 65:] == 0).all() and x[1, :, :65].abs().amin((0, 2)).min() > 0
    assert (grads[3][1, :, 65:] == 0).all() and (grads[3][1, :, :, 65:] == 0).all()


@pytest.mark.parametrize("backend", ["triton", *JAGGED])
def test_dropout(backend):
    """Linear in v, so weights can be read off; what is dropped is the same in both passes."""
    (q, k, _, bias), _ = make(40, 16, torch.float32)
    v = torch.eye(16, device=DEVICE).expand(3, NUM_HEADS, 16, 16).clone().requires_grad_()
    bias.requires_grad_()
    torch.manual_seed(4)
    dropped = attention(q, k, v, bias=bias, dropout_p=0.25, backend=backend)
    exact = weights(q, k, bias)
    kept = dropped != 0
    assert 0.70 < kept.float().mean() < 0.80
    torch.testing.assert_close(dropped, exact * kept / 0.75, rtol=1e-5, atol=1e-6)
    grad = torch.randn_like(dropped)
    found = torch.autograd.grad(dropped, (v, bias), grad)
    expected = torch.autograd.grad(exact * kept / 0.75 @ v, (v, bias), grad)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    again = attention(q, k, v, bias=bias, dropout_p=0.25, backend=backend)
    assert not torch.equal(dropped, again)


def packed_as_padded(qkv, bias, layout, num_heads, function):
    """The same through padded heads and matrices, jet after jet."""
    first, first_pair = layout.first.tolist(), layout.first_pair.tolist()
    outs = []
    for jet, count in enumerate(layout.counts.tolist()):
        rows = qkv[first[jet] : first[jet] + count]
        heads = [x.unflatten(-1, (num_heads, -1)).transpose(0, 1)[None] for x in rows.chunk(3, -1)]
        matrix = None
        if bias is not None:
            i, j = torch.tril_indices(count, count)
            pairs = first_pair[jet] + torch.arange(len(i))
            place = torch.zeros(count, count, dtype=torch.long)
            place[i, j] = place[j, i] = pairs
            matrix = bias[:, place][None]
        if count:
            outs.append(function(*heads, bias=matrix)[0].transpose(0, 1).flatten(1))
    return torch.cat(outs)


@pytest.mark.skipif(not JAGGED, reason="no C++ compiler")
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("head_dim", [5, 16, 32])
def test_packed_attention(head_dim, with_bias):
    counts, num_heads = (33, 0, 1, 130, 7, 16), 2
    layout = pack(torch.arange(130) < torch.tensor(counts)[:, None, None], with_pairs=True)
    torch.manual_seed(5)
    qkv = torch.randn(sum(counts), 3 * num_heads * head_dim)
    bias = 2 * torch.randn(num_heads, len(layout.pairs[0])) if with_bias else None
    grad = torch.randn(sum(counts), num_heads * head_dim)

    def run(function, dtype):
        inputs = [x.to(dtype).requires_grad_() for x in (qkv, bias) if x is not None]
        out = function(*inputs)
        return [
            out.double(),
            *(g.double() for g in torch.autograd.grad(out, inputs, grad.to(dtype))),
        ]

    def packed(qkv, bias=None):
        return jagged.packed_attention(qkv, num_heads, layout, bias=bias)

    def padded(qkv, bias=None):
        return packed_as_padded(qkv, bias, layout, num_heads, attend)

    def attend(q, k, v, bias):
        return F.scaled_dot_product_attention(q, k, v, bias)

    ours, theirs = run(packed, torch.float32), run(padded, torch.float32)
    for x, y, true in zip(ours, theirs, run(padded, torch.float64), strict=True):
        assert (x - true).norm() <= 2 * (y - true).norm()


@pytest.mark.skipif(not JAGGED, reason="no C++ compiler")
def test_packed_dropout_is_the_padded_one():
    """The same seed drops the same weights, whichever way the tokens are laid out."""
    layout = pack(torch.ones(1, 1, 40, dtype=torch.bool), with_pairs=True)
    qkv, grad = torch.randn(40, 3 * 32, requires_grad=True), torch.randn(40, 32)
    heads = [x.unflatten(-1, (2, 16)).transpose(0, 1)[None] for x in qkv.chunk(3, -1)]
    torch.manual_seed(6)
    packed = jagged.packed_attention(qkv, 2, layout, dropout_p=0.3)
    torch.manual_seed(6)
    padded = attention(*heads, dropout_p=0.3, backend="jagged")[0].transpose(0, 1).flatten(1)
    torch.testing.assert_close(packed, padded)
    found = [torch.autograd.grad(x, qkv, grad)[0] for x in (packed, padded)]
    torch.testing.assert_close(*found)
    assert not torch.equal(packed, jagged.packed_attention(qkv, 2, layout, dropout_p=0.3))


def test_without_a_compiler(monkeypatch):
    monkeypatch.setattr(jagged, "load", lambda name: None)
    (q, k, v, bias), _ = make(64, 64, torch.float32)
    assert dispatch.choose_backend(q, k, bias, 0.1) == "sdpa"
    with pytest.raises(ValueError, match=r"needs a CPU, a C\+\+ compiler"):
        attention(q, k, v, bias=bias, backend="jagged")


def test_triton_operator_is_well_defined():
    """Fake tensors, strides and autograd registration, as torch.compile needs them."""
    from jetzoo.attention import triton_kernel

    (q, k, v, bias), mask = make(9, 9, torch.float32)
    q.requires_grad_()
    library.opcheck(triton_kernel._attention, (q, k, v, bias, mask, None, 0.0))


def test_flash_attn_removes_the_padding(monkeypatch):
    """The package itself needs a GPU: a plain stand-in checks what it is handed."""

    def varlen(q, k, v, first_q, first_k, longest_q, longest_k, dropout_p):
        assert first_q.dtype == first_k.dtype == torch.int32 and dropout_p == 0.25
        assert len(k) == first_k[-1] and max(first_k.diff()) <= longest_k
        out = [
            attention(
                *(x[a:b].transpose(0, 1)[None] for x, a, b in ((q, *qs), (k, *ks), (v, *ks))),
                backend="reference",
            )[0].transpose(0, 1)
            for qs, ks in zip(pairwise(first_q), pairwise(first_k), strict=True)
        ]
        return torch.cat(out)

    def pairwise(first):
        return list(zip(first[:-1].tolist(), first[1:].tolist(), strict=True))

    def plain(q, k, v, dropout_p):
        return attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)

    package = SimpleNamespace(flash_attn_varlen_func=varlen, flash_attn_func=plain)
    monkeypatch.setitem(sys.modules, "flash_attn", package)
    row = replace(BACKENDS["flash_attn"], devices=(DEVICE,))
    monkeypatch.setitem(BACKENDS, "flash_attn", row)
    (q, k, v, _), mask = make(21, 21, torch.float16)
    found = attention(q, k, v, mask=mask, dropout_p=0.25, backend="flash_attn")
    expected = attention(q, k, v, mask=mask, backend="reference")
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-3)
    found = attention(q, k, v, backend="flash_attn")
    torch.testing.assert_close(found, attention(q, k, v, backend="reference"), rtol=1e-2, atol=1e-3)


def test_errors_say_what_to_do(monkeypatch):
    (q, k, v, bias), _ = make(4, 4, torch.float32)
    with pytest.raises(ValueError, match="unknown attention backend 'flesh'.*triton, flash_attn"):
        attention(q, k, v, backend="flesh")
    with pytest.raises(ValueError, match="takes no pair bias; .* choose triton"):
        attention(q, k, v, bias=bias, backend="flash_attn")
    monkeypatch.setitem(sys.modules, "flash_attn", None)
    with pytest.raises(ValueError, match=r"pip install jetzoo\[gpu\]"):
        attention(q, k, v, backend="flash_attn")
    with pytest.raises(ValueError, match="no dropout"):
        attention(q, k, v, dropout_p=0.1, backend="flex")
    with pytest.raises(ValueError, match="float64"):
        attention(*(x.double() for x in (q, k, v)), backend="triton")
    with pytest.raises(ValueError, match="no pair bias"):
        check_backend("flash_attn", bias=True)
    if DEVICE == "cpu":
        with pytest.raises(ValueError, match="no gradients on the CPU"):
            attention(q.requires_grad_(), k, v, backend="flex")


def test_auto_logs_its_choice_once(caplog):
    dispatch._log_choice.cache_clear()
    (q, k, v, _), _ = make(4, 4, torch.float32)
    with caplog.at_level(logging.INFO, logger="jetzoo"):
        for _ in range(3):
            attention(q, k, v)
    (record,) = caplog.records
    assert record.getMessage() == f"attention on {DEVICE}: {dispatch.choose_backend(q, k)}"


@pytest.mark.parametrize(
    "lines",
    [
        "import jetzoo; first = jetzoo.attention; second = jetzoo.attention",
        "import jetzoo; import jetzoo.attention; first = second = jetzoo.attention",
        "from jetzoo import attention as first; import jetzoo.nn.blocks; second = jetzoo.attention",
    ],
)
def test_package_and_function_share_a_name(lines):
    check = (
        "import torch; x = torch.ones(1, 1, 2, 4); assert (first(x, x, x) == second(x, x, x)).all()"
    )
    subprocess.run([sys.executable, "-c", f"{lines}; {check}"], check=True)


def test_auto_takes_the_backend_that_was_measured():
    if DEVICE == "cpu":
        native = "jagged" if COMPILER else "sdpa"
        for length, dropout_p, expected in [(8, 0.1, "sdpa"), (16, 0.1, native), (64, 0, native)]:
            (q, k, _, bias), _ = make(length, length, torch.float32)
            assert dispatch.choose_backend(q, k, bias, dropout_p) == expected
        assert dispatch.choose_backend(q[:, :, :1], k, bias[:, :, :1], 0.1) == "sdpa"
        assert dispatch.choose_backend(q.double(), k.double()) == "sdpa"


def test_a_gpu_times_what_can_be_used(monkeypatch):
    """The choice that "auto" makes on a GPU, of the backends that this machine has."""
    (q, k, _, bias), mask = make(9, 9, torch.float32)
    asked = []

    def fastest(work, ways, device):
        asked.append((work, sorted(ways)))
        for way in ways.values():
            way()
        return "triton"

    monkeypatch.setattr(dispatch.choices, "fastest", fastest)
    state = torch.get_rng_state()
    q.requires_grad_()
    assert dispatch.measured_backend(q, k, bias, mask, 0.1, trains=True) == "triton"
    assert dispatch.measured_backend(q.double(), k.double(), None, None, 0.0, False) == "sdpa"
    (work, names), *others = asked
    assert names == ["sdpa", "triton"] and others == []  # only PyTorch's takes float64
    assert "float32 bias mask dropout backward" in work
    assert q.grad is None and torch.equal(state, torch.get_rng_state())


def test_light_import():
    """The command line must not wait for torch."""
    check = "import jetzoo, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", check], check=True)
