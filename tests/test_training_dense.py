"""Linear layers of a training step against float64 and PyTorch, and the choice of products."""

import copy
import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from zoo import without_kernels

from jetzoo import choices, native
from jetzoo.native import dense, training
from jetzoo.nn.transformer import ParticleTransformer

pytestmark = pytest.mark.skipif(native.load("training") is None, reason="no C++ compiler")

# Rows, columns and depth: multiples of nothing, blocks of rows and slices of depth included.
SHAPES = [
    (1, 1, 1),
    (7, 5, 3),
    (97, 65, 385),
    (205, 64, 128),
    (6, 130, 7),
    (101, 16, 770),
    (13, 70, 1537),
    (67, 33, 6401),
]


@pytest.fixture
def no_cache(monkeypatch, tmp_path):
    """Times of an empty folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    choices.forget()
    yield tmp_path / "jetzoo"
    choices.forget()


def factors(m, n, k, layout):
    """Factors (m, k) and (k, n) and a bias; "t" is a transposed matrix, "s" one cut out."""
    torch.manual_seed(m)

    def make(rows, columns, kind):
        if kind == "t":
            return torch.randn(columns, rows).t()
        return (
            torch.randn(rows, columns + 3)[:, 1 : columns + 1]
            if kind == "s"
            else (torch.randn(rows, columns))
        )

    return make(m, k, layout[0]), make(k, n, layout[1]), torch.randn(n)


@pytest.mark.parametrize("layout", ["nn", "nt", "tn", "tt", "ss"])
@pytest.mark.parametrize("shape", SHAPES)
def test_own_products(shape, layout):
    a, b, bias = factors(*shape, layout)
    exact = a.double() @ b.double()
    torchs = (a @ b).double()
    for start in (None, bias):
        truth = exact if start is None else exact + bias
        ours = dense._own(a, b, start, half=False)
        assert (ours - truth).norm() <= 2 * (torchs - exact).norm() + 2e-7 * truth.norm()


@pytest.mark.parametrize("layout", ["nn", "nt", "tn", "tt", "ss"])
@pytest.mark.parametrize("shape", SHAPES)
def test_own_products_in_bfloat16(shape, layout):
    """Factors are rounded as PyTorch rounds them, the sums are exact to float32."""
    if not training.multiplies_half():
        pytest.skip("this processor does not multiply bfloat16 numbers")
    a, b, bias = factors(*shape, layout)
    rounded = a.bfloat16().double() @ b.bfloat16().double() + bias
    size = a.double().abs() @ b.double().abs() + bias.abs()
    ours = dense._own(a, b, bias, half=True)
    assert ((ours - rounded).abs() <= 1e-6 * size).all()


def test_rounding_keeps_what_is_not_finite():
    if not training.multiplies_half():
        pytest.skip("this processor does not multiply bfloat16 numbers")
    special = torch.tensor([float("nan"), float("inf"), -float("inf"), 3.0, 1e38])
    nan = torch.tensor([0x7FFFFFFF, -1, 0x7F800001], dtype=torch.int32).view(torch.float32)
    x = torch.cat((special, nan, torch.ones(24)))
    for a in (x[:, None].clone(), x[None].t()):
        out = dense._own(a, torch.ones(1, 64), None, half=True)
        expected = x.bfloat16().float()[:, None].expand(-1, 64)
        assert torch.equal(out.nan_to_num(7), expected.nan_to_num(7))


def test_sums_do_not_depend_on_the_threads():
    threads = torch.get_num_threads()
    try:
        for shape in SHAPES:
            a, b, bias = factors(*shape, "tn")
            found = []
            for count in (1, 3):
                torch.set_num_threads(count)
                found.append(dense._own(a, b, bias, half=False))
            assert torch.equal(*found)
    finally:
        torch.set_num_threads(threads)


def step(function, x, layer, dtype=torch.float32):
    """Output and gradients of a linear layer."""
    x, layer = x.to(dtype).requires_grad_(), copy.deepcopy(layer).to(dtype)
    out = function(x, layer.weight, layer.bias)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.dtype)
    found = torch.autograd.grad(out, [x, *layer.parameters()], grad)
    return [t.double() for t in (out, *found)]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("way", ["PyTorch", "own", "oneDNN"])
def test_linear_by_each_way(way, bias, monkeypatch):
    if way not in dense._ways(half=False):
        pytest.skip(f"PyTorch has no {way}")
    chosen = []
    monkeypatch.setattr(choices, "fastest", lambda work, ways: chosen.append(work) or way)
    torch.manual_seed(0)
    x, layer = torch.randn(3, 431, 77), nn.Linear(77, 53, bias=bias)
    ours, exact = step(dense.linear, x, layer), step(F.linear, x, layer, torch.float64)
    theirs = step(F.linear, x, layer)
    assert len(chosen) == 3
    for mine, other, true in zip(ours, theirs, exact, strict=True):
        assert mine.shape == true.shape
        assert (mine - true).norm() <= 2 * (other - true).norm() + 2e-7 * true.norm()


def test_gradients_have_gradients():
    """A penalty on the gradient, which the kernels leave to PyTorch."""
    torch.manual_seed(0)
    x, layer = torch.randn(300, 80, requires_grad=True), nn.Linear(80, 70)

    def penalty(function):
        out = function(x, layer.weight, layer.bias).square().sum()
        (grad,) = torch.autograd.grad(out, x, create_graph=True)
        return torch.autograd.grad(grad.square().sum(), layer.weight)[0]

    torch.testing.assert_close(penalty(dense.linear), penalty(F.linear), rtol=1e-4, atol=1e-2)


def test_hooks_and_replaced_layers_are_run():
    x, layer = torch.randn(300, 80), nn.Linear(80, 70)
    plain = dense.dense(layer, x)
    assert "FusedLinear" in plain.grad_fn.next_functions[0][0].name()
    layer.register_forward_hook(lambda module, inputs, out: out + 1)
    torch.testing.assert_close(dense.dense(layer, x), plain + 1)
    assert dense.dense(nn.Identity(), x) is x


def test_factors_are_checked():
    with pytest.raises(ValueError, match="no product of the shapes"):
        dense.matrix_product(torch.ones(2, 3), torch.ones(2, 3))
    with pytest.raises(TypeError, match="float32 on a CPU"):
        dense.matrix_product(torch.ones(2, 3), torch.ones(3, 2).double())


SMALL = {"embed_dims": (32, 32), "pair_embed_dims": (16, 16), "num_heads": 2, "num_layers": 2}


def test_autocast_rounds_the_products_alone(monkeypatch):
    """Under autocast the gradients err at most twice as much as PyTorch's own."""
    if not training.multiplies_half():
        pytest.skip("this processor does not multiply bfloat16 numbers")
    monkeypatch.setattr(dense, "SMALL", 1)
    torch.manual_seed(1)
    off = {"dropout": 0.0, "attn_dropout": 0.0, "activation_dropout": 0.0}
    model = ParticleTransformer(5, 3, **SMALL, **off)
    counts = torch.tensor((23, 40, 0, 1, 17))
    momenta = torch.randn(5, 3, 40)
    vectors = torch.cat((momenta, (momenta.square().sum(1, keepdim=True) + 0.02).sqrt()), 1)
    mask = (torch.arange(40) < counts[:, None, None]).float()
    inputs = vectors[:, :2], torch.randn(5, 5, 40), vectors, mask

    def gradients(dtype, half):
        network = copy.deepcopy(model).to(dtype)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            out = network(*(x.to(dtype) for x in inputs))
        out.float().logsumexp(1).sum().backward()
        return torch.cat([p.grad.flatten().double() for p in network.parameters()])

    exact = gradients(torch.float64, half=False)
    ours = gradients(torch.float32, half=True)
    without_kernels(monkeypatch)
    theirs = gradients(torch.float32, half=True)
    assert 1e-4 * exact.norm() < (ours - exact).norm() <= 2 * (theirs - exact).norm()


def test_choice_is_measured_once_and_kept(no_cache, monkeypatch):
    clock = iter(range(10**6))
    monkeypatch.setattr(choices, "_seconds", lambda way, device: (next(clock), way())[1])
    calls = []

    def taking(name, seconds):
        return lambda: calls.append(name) or seconds

    ways = {"usual": taking("usual", 1.0), "fast": taking("fast", 0.5), "slow": taking("slow", 2.0)}
    assert choices.fastest("work", ways) == "fast"
    measured = len(calls)
    assert choices.fastest("work", ways) == "fast" and len(calls) == measured
    choices.forget()  # as another process
    assert choices.fastest("work", ways) == "fast" and len(calls) == measured
    (file,) = no_cache.glob("fastest-*.json")
    assert json.loads(file.read_text())["work"] == {"usual": 1000, "fast": 500, "slow": 2000}
    assert choices.known() == json.loads(file.read_text())
    # A new way is measured, and what is hardly faster than the usual way does not replace it.
    assert choices.fastest("work", {"usual": ways["usual"], "new": taking("new", 0.97)}) == "usual"
    assert len(calls) > measured


@pytest.mark.parametrize("text", ["", "[]", '{"work": 3}', '{"work": {"usual": "no"}}', "{"])
def test_a_damaged_cache_is_measured_anew(text, no_cache):
    assert choices.fastest("work", {"usual": lambda: None}) == "usual"
    (file,) = no_cache.glob("fastest-*.json")
    file.write_text(text)
    choices.forget()
    assert choices.fastest("work", {"usual": lambda: None}) == "usual"
    assert "work" in json.loads(file.read_text())


def test_a_way_that_fails_is_left_out(no_cache):
    def fails():
        raise RuntimeError("not here")

    assert choices.fastest("work", {"fails": fails, "works": lambda: None}) == "works"
    assert choices.fastest("work", {"fails": fails, "works": lambda: None}) == "works"


def test_choices_last_for_the_process_where_nothing_can_be_kept(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    choices.forget()
    calls = []
    for _ in range(2):
        assert choices.fastest("work", {"usual": lambda: calls.append(0)}) == "usual"
    assert len(calls) == 1 + choices.ROUNDS
    choices.forget()
