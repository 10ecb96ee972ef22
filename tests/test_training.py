"""The kernels of a training step in C++, against float64 and PyTorch's own."""

import copy
import sys

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from zoo import without_kernels

from jetzoo import native
from jetzoo.native import chains, training
from jetzoo.nn.packing import pack
from jetzoo.nn.pairs import PairBias
from jetzoo.nn.transformer import ParticleTransformer

pytestmark = pytest.mark.skipif(native.load("training") is None, reason="no C++ compiler")


def norm(dim):
    layer = nn.LayerNorm(dim)
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    return layer


def kernels():
    """Each with tensors and layers as its arguments; more rows than are summed up together."""
    torch.manual_seed(0)
    x, y, scale = torch.randn(301, 48), torch.randn(301, 48), torch.randn(48)
    return {
        "layer_norm": (chains.layer_norm, (3 * x + 1, norm(48))),
        "gelu_norm": (chains.gelu_norm, (2 * x, nn.Linear(48, 80), norm(80))),
        "add_norm": (chains.add_norm, (x, y, scale, norm(48))),
        "scaled_add": (chains.scaled_add, (x, y, scale)),
    }


def results(function, arguments, dtype=torch.float32):
    """Output and the gradients of all tensors and parameters."""
    arguments = [copy.deepcopy(a).to(dtype).requires_grad_() for a in arguments]
    out = function(*arguments)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    inputs = [[a] if isinstance(a, torch.Tensor) else [*a.parameters()] for a in arguments]
    return [x.double() for x in (out, *torch.autograd.grad(out, sum(inputs, []), grad))]


@pytest.mark.parametrize("name", kernels())
def test_chains_are_as_good_as_torch(name, monkeypatch):
    function, arguments = kernels()[name]
    ours = results(function, arguments)
    truth = results(function, arguments, torch.float64)
    without_kernels(monkeypatch)
    theirs = results(function, arguments)
    for x, y, true in zip(ours, theirs, truth, strict=True):
        assert (x - true).norm() <= 2 * (y - true).norm() + 5e-8 * true.norm()


def test_gelu_far_from_zero():
    """Values and slopes against float64: closer than the form with tanh could be."""
    x = torch.cat((torch.linspace(-30, 30, 6000), torch.tensor([-1e4, 1e4, -0.0])))
    rows = torch.linspace(-1, 1, 16).repeat(len(x), 1)
    rows[:, 3] = x  # the other channels show it through the mean and the variance
    layer, last = nn.Linear(16, 16), norm(16)
    nn.init.eye_(layer.weight)
    nn.init.zeros_(layer.bias)

    def run(function, dtype):
        inputs = rows.to(dtype).requires_grad_()
        out = function(inputs, copy.deepcopy(layer).to(dtype), copy.deepcopy(last).to(dtype))
        (grad,) = torch.autograd.grad(out[:, ::2].sum(), inputs)
        return torch.stack((out, grad)).double()

    def torchs(approximate):
        return lambda x, layer, norm: norm(F.gelu(layer(x), approximate=approximate))

    exact = run(torchs("none"), torch.float64)
    ours = (run(chains.gelu_norm, torch.float32) - exact).abs().amax((1, 2))
    theirs = (run(torchs("none"), torch.float32) - exact).abs().amax((1, 2))
    tanhs = (run(torchs("tanh"), torch.float64) - exact).abs().amax((1, 2))
    assert (ours <= 2 * theirs).all() and (theirs < 0.05 * tanhs).all()


def test_gelu_of_huge_numbers_is_finite():
    rows = torch.tensor([-1e30, 1e30, 0.0, -0.0] * 4)[None].requires_grad_()
    out = chains.gelu_norm(rows, nn.Linear(16, 16), norm(16))
    assert out.isfinite().all()


@pytest.mark.parametrize("name", [n for n in kernels() if n != "layer_norm"])
def test_dropout_is_the_same_in_both_passes(name):
    """A number that was dropped has no gradient; a seed of PyTorch gives the same ones again."""
    function, arguments = kernels()[name]

    def run(seed):
        torch.manual_seed(seed)
        return results(lambda *a: function(*a, 0.3), arguments)

    first = run(5)
    for x, y in zip(first, run(5), strict=True):
        assert torch.equal(x, y)
    assert not torch.equal(first[0], run(6)[0])
    # A step along the gradient changes the output as it says.
    torch.manual_seed(5)
    moved = [copy.deepcopy(a).double() for a in arguments]
    tensors = [[a] if isinstance(a, torch.Tensor) else [*a.parameters()] for a in moved]
    grads = first[1:]
    step = 1e-3 / torch.cat([g.flatten() for g in grads]).norm()
    with torch.no_grad():
        for tensor, gradient in zip(sum(tensors, []), grads, strict=True):
            tensor += step * gradient
    torch.manual_seed(5)
    out = function(*(m.float() for m in moved), 0.3).double()
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).double()
    change = ((out - first[0]) * weights).sum()
    expected = step * sum(g.square().sum() for g in grads)
    assert change.item() == pytest.approx(expected.item(), rel=0.02)


def test_dropout_keeps_what_it_should():
    x = torch.ones(3000, 64, requires_grad=True)
    out = chains.scaled_add(torch.zeros(3000, 64), x, torch.ones(64), 0.1)
    kept = out > 0
    torch.testing.assert_close(out, kept / 0.9)
    assert abs(kept.float().mean() - 0.9) < 4 * (0.09 / kept.numel()) ** 0.5
    # Neither rows nor columns look alike: the spread of their means is that of chance.
    for axis in (0, 1):
        spread = kept.float().mean(axis).std() / (0.09 / kept.shape[axis]) ** 0.5
        assert 0.75 < spread < 1.25
    out.sum().backward()
    assert torch.equal(x.grad, out)


def jets(counts, num_features=5, seed=0):
    torch.manual_seed(seed)
    length = max(counts)
    momenta = torch.randn(len(counts), 3, length)
    energy = (momenta.square().sum(1, keepdim=True) + 0.02).sqrt()
    vectors = torch.cat((momenta, energy), 1)
    features = torch.randn(len(counts), num_features, length)
    mask = torch.arange(length) < torch.tensor(counts)[:, None, None]
    return vectors[:, :2], features, vectors, mask.float()


SMALL = {"embed_dims": (32, 32), "pair_embed_dims": (16, 16), "num_heads": 2, "num_layers": 2}


def gradients(model, inputs):
    """After one training step with dropout seeded."""
    model = copy.deepcopy(model).train()
    torch.manual_seed(3)
    model(*inputs).logsumexp(1).sum().backward()
    return torch.cat([p.grad.flatten().double() for p in model.parameters()]), model


def test_step_is_that_of_pytorch(monkeypatch):
    torch.manual_seed(1)
    off = {"dropout": 0.0, "attn_dropout": 0.0, "activation_dropout": 0.0}
    model = ParticleTransformer(5, 3, **SMALL, **off)
    inputs = jets((23, 40, 0, 1, 17))
    ours, _ = gradients(model, inputs)
    without_kernels(monkeypatch)
    theirs, _ = gradients(model, inputs)
    exact, _ = gradients(model.double(), [x.double() for x in inputs])
    assert (ours - exact).norm() <= 2 * (theirs - exact).norm() < 1e-3 * exact.norm()


def test_step_does_not_depend_on_the_threads():
    torch.manual_seed(1)
    model = ParticleTransformer(5, 3, **SMALL)
    inputs = jets((23, 40, 0, 1, 17, 90, 80, 70))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one, _ = gradients(model, inputs)
        torch.set_num_threads(3)
        three, _ = gradients(model, inputs)
    finally:
        torch.set_num_threads(threads)
    assert (one - three).norm() < 1e-5 * one.norm()


@pytest.mark.parametrize("counts", [(0,), (1,), (1, 0), (2,)])
def test_few_particles(counts):
    model = ParticleTransformer(5, 3, **SMALL).eval()
    out = model(*jets((max(*counts, 1),) * len(counts))[:3], jets_mask(counts))
    out.sum().backward()
    assert out.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def jets_mask(counts):
    return (torch.arange(max(*counts, 1)) < torch.tensor(counts)[:, None, None]).float()


def test_kernels_step_aside():
    """Where they cannot be seen or do not fit, PyTorch computes."""
    x = torch.zeros(2, 16)
    assert training.usable(x)
    assert not training.usable(x.double())
    with torch.autocast("cpu", torch.bfloat16):
        assert training.usable(x) == training.multiplies_half()
    with torch.autocast("cpu", torch.float16):
        assert not training.usable(x)
    with FlopCounterMode(display=False):
        assert not training.usable(x)
    odd = nn.LayerNorm(7)
    assert torch.equal(chains.layer_norm(x[:, :7], odd), odd(x[:, :7]))


def test_nothing_is_padded_or_copied_for_attention(monkeypatch):
    layout = pack(torch.ones(2, 1, 6, dtype=torch.bool), with_pairs=True)
    model = ParticleTransformer(5, 3, **SMALL)
    attn = model.blocks[0].attn
    monkeypatch.setattr(layout, "pad", None)
    out = attn(torch.randn(12, 32), layout, PairBias(layout, pairs=torch.randn(2, 42)))
    assert out.shape == (12, 32)


def test_benchmark_trains(monkeypatch):
    """The network comes without gradients, because other benchmarks share it."""
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])
    from training import make_step

    model = ParticleTransformer(5, 2, **SMALL).eval().requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    make_step(model, jets((9, 5)), "cpu", half=False)()
    assert not torch.equal(model.fc[-1].weight, before["fc.0.weight"])
