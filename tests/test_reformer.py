"""ReformerParT against full attention, and against hashing and chunks written out."""

import pytest
import torch
import torch.nn.functional as F
from reformer_pytorch.reformer_pytorch import FullQKAttention

from jetzoo.nn.packing import Padded, pack
from jetzoo.repository import network_module

network = network_module("ReformerParT")
DIM, HEADS, CHUNK, ROUNDS = 32, 4, 32, 4


@pytest.fixture
def attn():
    torch.manual_seed(0)
    return network.ReformerAttention(DIM, HEADS, bucket_size=CHUNK, n_hashes=ROUNDS).eval()


def packed(counts, length=None):
    mask = torch.arange(length or max(counts)) < torch.tensor(counts)[:, None, None]
    torch.manual_seed(1)
    return pack(mask), torch.randn(sum(counts), DIM)


def attend_by_hand(attn, tokens):
    """LSH attention of one jet (n, D), a query at a time."""
    heads = []
    for qk, v in zip(
        attn.to_qk(tokens).chunk(HEADS, dim=-1), attn.to_v(tokens).chunk(HEADS, dim=-1), strict=True
    ):
        scores = qk @ F.normalize(qk, dim=-1).T / (DIM // HEADS) ** 0.5
        outs, norms = [], []
        for r in range(ROUNDS):
            rotated = qk @ attn.lsh.rotations[:, r]
            hashes = torch.cat((rotated, -rotated), -1).argmax(-1)
            order = sorted(range(len(tokens)), key=lambda i: (hashes[i], i))  # noqa: B023
            chunk = {i: place // CHUNK for place, i in enumerate(order)}
            round_outs, round_norms = [], []
            for i in range(len(tokens)):
                keys = [j for j in chunk if j != i and chunk[i] - chunk[j] in (0, 1)]
                round_outs.append(scores[i, keys].softmax(-1) @ v[keys])
                round_norms.append(scores[i, keys].logsumexp(-1))
            outs.append(torch.stack(round_outs))
            norms.append(torch.stack(round_norms))
        share = torch.stack(norms).softmax(0)  # (rounds, n)
        heads.append((share[..., None] * torch.stack(outs)).sum(0))
    return attn.out_proj(torch.cat(heads, -1))


def test_short_jets_have_full_attention(attn):
    counts = [32, 5, 2, 20]
    layout, x = packed(counts)
    out = attn(x, layout)
    for tokens, result in zip(x.split(counts), out.split(counts), strict=True):
        qk, v = (
            project(tokens).unflatten(-1, (HEADS, -1)).transpose(0, 1)
            for project in (attn.to_qk, attn.to_v)
        )
        full, _, _ = FullQKAttention()(qk, v)
        expected = attn.out_proj(full.transpose(0, 1).flatten(1))
        torch.testing.assert_close(result, expected)


def test_a_single_particle_sees_itself(attn):
    layout, x = packed([1])
    expected = attn.out_proj(attn.to_v(x))
    torch.testing.assert_close(attn(x, layout), expected)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(attn(x, layout).float(), expected, rtol=0, atol=2e-2)


def test_long_jets_attend_within_chunks(attn):
    counts = [75, 130, 64]
    layout, x = packed(counts)
    with torch.no_grad():
        out = attn(x, layout)
        for tokens, result in zip(x.split(counts), out.split(counts), strict=True):
            torch.testing.assert_close(result, attend_by_hand(attn, tokens))


@pytest.mark.parametrize("counts", [[75, 130, 64], [1, 0, 2, 33], [200, 31]])
def test_the_masked_softmax_is_the_attention_of_the_chunks(attn, counts, monkeypatch):
    layout, x = packed(counts)
    x.requires_grad_()
    results = {}
    for way, longest in (("masked", 384), ("chunks", 0)):
        monkeypatch.setattr(network, "MAX_MASKED", longest)
        out = attn(x, layout)
        (grad,) = torch.autograd.grad(out.square().sum(), x)
        results[way] = out, grad
    # The package holds a lone particle at scores of -5e4 in float32.
    tolerance = {"rtol": 1e-4, "atol": 2e-3} if min(counts) < 2 else {"rtol": 1e-4, "atol": 1e-5}
    for masked, chunks in zip(*results.values(), strict=True):
        torch.testing.assert_close(masked, chunks, **tolerance)


def test_a_jet_does_not_see_the_padding_nor_its_length(attn):
    counts = [45, 0, 1, 128, 32]
    layout, x = packed(counts)
    with torch.no_grad():
        expected = attn(x, layout)
        for length in (128, 129, 192, 300):
            mask = torch.arange(length) < torch.tensor(counts)[:, None, None]
            garbage = torch.full((len(counts), length, DIM), float("nan"))
            garbage[mask[:, 0]] = x
            out = attn(garbage, Padded(mask))[mask[:, 0]]
            torch.testing.assert_close(out, expected)


def test_particles_do_not_attend_across_jets(attn):
    counts = [50, 40, 60]
    layout, x = packed(counts)
    x.requires_grad_()
    out = attn(x, layout).split(counts)[1]
    (grad,) = torch.autograd.grad(out.square().sum(), x)
    before, own, after = grad.split(counts)
    assert before.abs().max() == after.abs().max() == 0
    assert own.abs().amax(1).min() > 0


def test_rotations_are_random_in_training_and_saved_for_eval(attn):
    layout, x = packed([100])
    with torch.no_grad():
        expected = attn(x, layout)
        torch.testing.assert_close(attn(x, layout), expected, rtol=0, atol=0)
        assert not torch.allclose(attn.train()(x, layout), expected, atol=1e-3)
        other = network.ReformerAttention(DIM, HEADS, bucket_size=CHUNK, n_hashes=ROUNDS).eval()
        other.load_state_dict(attn.state_dict())
        torch.testing.assert_close(other(x, layout), expected, rtol=0, atol=0)
