"""LinformerParT against the ``linformer`` package and against sums written out."""

import pytest
import torch
import torch.nn.functional as F
from linformer import LinformerSelfAttention

from jetzoo.nn.packing import Padded, pack
from jetzoo.repository import network_module

network = network_module("LinformerParT")
COUNTS = [40, 0, 1, 17]
DIM, HEADS = 16, 4


def new_mixer(seq_len=64):
    torch.manual_seed(0)
    return network.LinformerAttention(DIM, HEADS, seq_len=seq_len, num_slots=seq_len // 4).eval()


def mixer(seq_len=64):
    """With projections that are not those of the start."""
    attn = new_mixer(seq_len)
    for projection in (attn.proj_k, attn.proj_v):
        projection.data.normal_(std=0.2)
    return attn


def prefix_mask(counts, length):
    return torch.arange(length) < torch.tensor(counts)[:, None, None]  # (B, 1, N)


def packed(counts, length):
    layout = pack(prefix_mask(counts, length))
    torch.manual_seed(1)
    return layout, torch.randn(sum(counts), DIM)


def test_it_starts_as_attention_to_every_particle_of_a_short_jet():
    attn = new_mixer(seq_len=64)
    x = torch.randn(3, 16, DIM)
    heads = (
        project(x).unflatten(-1, (HEADS, -1)).transpose(1, 2)
        for project in (attn.to_q, attn.to_k, attn.to_v)
    )
    expected = F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
    out = attn(x, Padded(torch.ones(3, 1, 16, dtype=torch.bool)))
    torch.testing.assert_close(out, attn.to_out(expected))


def test_full_jets_are_those_of_the_package():
    attn = mixer()
    x = torch.randn(3, 64, DIM)
    out = attn(x, Padded(torch.ones(3, 1, 64, dtype=torch.bool)))
    torch.testing.assert_close(out, LinformerSelfAttention.forward(attn, x))


@pytest.mark.parametrize("length", [40, 64, 100])
def test_padding_is_zero_rows_of_the_package(length):
    attn = mixer()
    layout, x = packed(COUNTS, length)
    whole = torch.zeros(len(COUNTS), 64, DIM)
    whole[:, :40] = layout.pad(x)
    expected = LinformerSelfAttention.forward(attn, whole)[:, :40]
    torch.testing.assert_close(attn(x, layout), layout.unpad(expected))


def test_content_of_the_padding_is_not_seen():
    attn = mixer()
    layout, x = packed(COUNTS, 40)
    bias = torch.randn(len(COUNTS), HEADS, 40, 40)
    expected = attn(x, layout, bias)
    pairs = layout.mask[:, None, :, None] & layout.mask[:, None, None, :]
    garbage = layout.pad(x).masked_fill(~layout.mask[..., None], float("nan"))
    out = attn(garbage, Padded(layout.mask[:, None]), bias.masked_fill(~pairs, float("nan")))
    torch.testing.assert_close(layout.unpad(out), expected)


def test_beyond_seq_len_particles_attend_but_do_not_feed():
    attn = mixer(seq_len=32)
    x = torch.randn(2, 50, DIM)
    out = attn(x, Padded(torch.ones(2, 1, 50, dtype=torch.bool)))
    expected = LinformerSelfAttention.forward(attn, x, context=x[:, :32])
    torch.testing.assert_close(out, expected)


def test_projected_bias_is_a_sum_over_the_particles():
    attn = mixer(seq_len=32)
    counts = [40, 7]
    layout, x = packed(counts, 40)
    bias = torch.randn(2, HEADS, 40, 40, requires_grad=True)
    out = layout.pad(attn(x, layout, bias))
    for jet, tokens in enumerate(x.split(counts)):
        fed = min(len(tokens), 32)
        q, k, v = (project(tokens) for project in (attn.to_q, attn.to_k, attn.to_v))
        k = torch.einsum("js,jd->sd", attn.proj_k[:fed], k[:fed])
        v = torch.einsum("js,jd->sd", attn.proj_v[:fed], v[:fed])
        heads = []
        for head, (q_h, k_h, v_h) in enumerate(
            zip(*(t.chunk(HEADS, dim=-1) for t in (q, k, v)), strict=True)
        ):
            slot_bias = torch.einsum(
                "ij,js->is", bias[jet, head, : len(tokens), :fed], attn.proj_k[:fed]
            )
            heads.append(torch.softmax(q_h @ k_h.T / (DIM // HEADS) ** 0.5 + slot_bias, -1) @ v_h)
        expected = attn.to_out(torch.cat(heads, -1))
        torch.testing.assert_close(out[jet, : len(tokens)], expected)

    (grad,) = torch.autograd.grad(out.square().sum(), bias)
    assert grad[0, ..., :32].abs().min() > 0
    assert grad[0, ..., 32:].abs().max() == 0
    assert grad[1, :, :7, :7].abs().min() > 0
    assert grad[1, ..., 7:].abs().max() == 0


def test_options():
    plain = network.LinformerParT(4, 2, seq_len=64, compression=8, num_layers=1)
    assert plain.pair_embed is None
    assert plain.blocks[0].attn.proj_k.shape == (64, 8)
    assert network.LinformerParT(4, 2, num_layers=1, pair_bias="projected").pair_embed is not None
    with pytest.raises(ValueError, match="seq_len 100 is no multiple of compression 8"):
        network.LinformerParT(4, 2, seq_len=100, compression=8)
    with pytest.raises(ValueError, match="pair_bias is None or 'projected' here, not True"):
        network.LinformerParT(4, 2, pair_bias=True)
