"""The training path: statistics, gradients and memory, against plain PyTorch and weaver."""

import copy

import pytest
import torch
import torch.nn.functional as F
from jets import masks
from weaver.nn.model.ParticleTransformer import ParticleTransformer as Stock
from zoo import without_kernels

from jetzoo import native, profiling
from jetzoo.nn.packing import pack
from jetzoo.nn.pairs import PairEmbed
from jetzoo.nn.transformer import ParticleTransformer

NO_DROPOUT = {"dropout": 0.0, "attn_dropout": 0.0, "activation_dropout": 0.0}


def four_vectors(batch_size, length, seed=0):
    """Massive particles around the x axis, (B, 4, N)."""
    torch.manual_seed(seed)
    pt = torch.exp(torch.randn(batch_size, length))
    eta, phi = 0.3 * torch.randn(2, batch_size, length)
    px, py, pz = pt * phi.cos(), pt * phi.sin(), pt * eta.sinh()
    return torch.stack((px, py, pz, (px**2 + py**2 + pz**2 + 0.02).sqrt()), 1)


def pair_features(module, vectors, layout):
    """What the MLP is given, (1, 4, P)."""
    seen = []
    module = copy.deepcopy(module).eval()
    module.embed.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        module(vectors, layout)
    return torch.cat(seen, dim=2)


def plain_pair_embed(module, vectors, mask):
    """The MLP on the same pairs with everything kept, put into matrices, in float64."""
    layout = pack(mask, with_pairs=True)
    kept = copy.deepcopy(module).double()
    _, _, ij, ji = layout.pairs
    rows = kept.embed(pair_features(module, vectors, layout).double())[0]  # (H, P)
    length = layout.mask.shape[1]
    dense = rows.new_zeros(rows.shape[0], layout.mask.numel() * length)
    dense = dense.index_copy(1, ij, rows).index_copy(1, ji, rows)
    return kept, dense.unflatten(1, (len(mask), length, length)).transpose(0, 1)


@pytest.fixture(params=["native", "pytorch"])
def kernels(request, monkeypatch):
    """With the kernels in C++, and as on a machine without a compiler."""
    if request.param == "pytorch":
        without_kernels(monkeypatch)
    elif native.load("training") is None:
        pytest.skip("no C++ compiler")


@pytest.mark.usefixtures("kernels")
def test_pair_embed_trains_as_if_everything_were_kept():
    torch.manual_seed(1)
    module = PairEmbed((16, 16, 4)).train()
    vectors, mask = four_vectors(4, 12), masks((12, 5, 0, 1), 12)
    kept, expected = plain_pair_embed(copy.deepcopy(module), vectors, mask)
    found = module(vectors, pack(mask, with_pairs=True)).dense
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found, found.mT)  # symmetric

    grad = torch.randn_like(found)
    found.backward(grad)
    expected.backward(grad.double())
    for (name, ours), theirs in zip(module.named_parameters(), kept.parameters(), strict=True):
        error = (ours.grad - theirs.grad).norm()
        assert error <= 1e-5 * theirs.grad.norm() + 5e-5, name
    # The batch was counted once, although it was computed twice.
    for (name, ours), theirs in zip(module.named_buffers(), kept.buffers(), strict=True):
        torch.testing.assert_close(ours.double(), theirs.double(), rtol=1e-5, atol=1e-6, msg=name)
    assert all(norm.momentum == 0.1 for norm in module.embed if hasattr(norm, "momentum"))


def test_pair_embed_counts_only_real_pairs():
    module = PairEmbed((8, 2)).train()
    vectors, mask = four_vectors(3, 9), masks((9, 4, 2), 9)
    module(vectors, pack(mask, with_pairs=True))
    padded = F.pad(vectors, (0, 7), value=float("nan"))
    other = PairEmbed((8, 2)).train()
    other.load_state_dict(module.state_dict())
    other.embed[0].reset_running_stats()
    other(padded, pack(F.pad(mask, (0, 7)), with_pairs=True))
    torch.testing.assert_close(other.embed[0].running_mean, module.embed[0].running_mean)
    torch.testing.assert_close(other.embed[0].running_var, module.embed[0].running_var)


@pytest.mark.usefixtures("kernels")
def test_hidden_layers_of_pairs_are_not_kept():
    module = PairEmbed((64, 64, 64, 8)).train()
    vectors, layout = four_vectors(2, 100), pack(masks((100, 100), 100), with_pairs=True)
    num_pairs = 2 * 100 * 101 // 2
    kept = profiling.saved_bytes(lambda: module(vectors, layout))
    hidden = num_pairs * 64 * 4  # of the nine that PyTorch would keep
    assert kept < hidden / 2


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_chunks_of_pairs_change_nothing(chunk):
    module = PairEmbed((8, 2)).eval()
    vectors, layout = four_vectors(3, 9), pack(masks((9, 4, 0), 9), with_pairs=True)
    expected = module(vectors, layout).dense
    module.CHUNK = chunk
    with torch.no_grad():
        torch.testing.assert_close(module(vectors, layout).dense, expected)


def gradients(model, call, target):
    model.zero_grad()
    F.cross_entropy(call(model), target).backward()
    return {name: p.grad.double().clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("attention", ["auto", "reference", "sdpa", "jagged", "triton"])
def test_gradients_are_as_good_as_weavers(attention):
    """Against weaver in float64; full jets, because weaver's input norm counts the padding."""
    torch.manual_seed(2)
    small = {"num_layers": 2, "num_cls_layers": 1, "embed_dims": (16, 32), "num_heads": 2}
    stock = Stock(
        5, 3, use_pre_activation_pair=False, trim=False, pair_embed_dims=(8, 8),
        block_params={"num_heads": 2, **NO_DROPOUT}, cls_block_params={"num_heads": 2}, **small,
    ).train()  # fmt: skip
    ours = ParticleTransformer(
        5, 3, pair_embed_dims=(8, 8), attention=attention, **NO_DROPOUT, **small
    ).train()
    stock.load_state_dict(ours.state_dict())
    exact = copy.deepcopy(stock).double()

    vectors = four_vectors(6, 50)
    features, mask = torch.randn(6, 5, 50), torch.ones(6, 1, 50)
    target = torch.tensor([0, 1, 2, 0, 1, 2])
    truth = gradients(exact, lambda m: m(features.double(), v=vectors.double(), mask=mask), target)
    theirs = gradients(stock, lambda m: m(features, v=vectors, mask=mask), target)
    found = gradients(ours, lambda m: m(vectors[:, :2], features, vectors, mask), target)

    def error(grads):
        names = list(truth)
        scale = torch.cat([truth[name].flatten() for name in names]).norm()
        return torch.cat([(grads[name] - truth[name]).flatten() for name in names]).norm() / scale

    assert error(found) <= 2 * error(theirs) < 1e-3


def test_unknown_backend_is_an_error_at_once():
    with pytest.raises(ValueError, match="unknown attention backend"):
        ParticleTransformer(5, 3, attention="flesh")
    with pytest.raises(ValueError, match="no pair bias"):
        ParticleTransformer(5, 3, attention="flash_attn")
    ParticleTransformer(5, 3, attention="flash_attn", pair_bias=False)


def test_memory_of_a_long_jet():
    """1024 particles: the bias is 32 MiB, one hidden layer of all pairs would be 128 MiB."""
    module = PairEmbed((64, 64, 64, 8)).eval()
    module.CHUNK = 2**15
    vectors, layout = four_vectors(1, 1024), pack(masks((1024,), 1024), with_pairs=True)

    def call():
        with torch.no_grad():
            module(vectors, layout)

    assert profiling.peak_memory(call) < 64 * 2**20
