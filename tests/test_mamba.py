"""MambaParT against ``mambapy`` and against the recurrence written out."""

import pytest
import torch
from mambapy.mamba import MambaBlock, MambaConfig

from jetzoo.nn.packing import Padded, pack
from jetzoo.repository import network_module

network = network_module("MambaParT")
DIM = 8
COUNTS = [9, 0, 14, 1, 14]


@pytest.fixture
def mamba():
    torch.manual_seed(0)
    return network.Mamba(DIM)


def packed(counts=COUNTS, length=20):
    layout = pack(torch.arange(length) < torch.tensor(counts)[:, None, None])
    torch.manual_seed(1)
    return layout, torch.randn(sum(counts), DIM, requires_grad=True)


def test_jets_are_those_of_mambapy(mamba):
    peer = MambaBlock(MambaConfig(d_model=DIM, n_layers=1, pscan=False))
    peer.load_state_dict(mamba.state_dict())
    layout, x = packed()
    out = mamba(x, layout)
    jets = [tokens for tokens in x.split(COUNTS) if len(tokens)]
    expected = torch.cat([peer(tokens[None])[0] for tokens in jets])
    torch.testing.assert_close(out, expected)

    weights = torch.randn_like(out)
    names, parameters = zip(*mamba.named_parameters(), strict=True)
    peers = dict(peer.named_parameters())
    grads = torch.autograd.grad((weights * out).sum(), (x, *parameters))
    expected_grads = torch.autograd.grad(
        (weights * expected).sum(), (x, *(peers[name] for name in names))
    )
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(grad, expected_grad, rtol=1e-4, atol=1e-5)


def test_parameters_are_those_of_mamba_ssm(mamba):
    shapes = {name: tuple(p.shape) for name, p in mamba.named_parameters()}
    assert shapes == {
        "A_log": (16, 16),
        "D": (16,),
        "in_proj.weight": (32, 8),
        "conv1d.weight": (16, 1, 4),
        "conv1d.bias": (16,),
        "x_proj.weight": (33, 16),
        "dt_proj.weight": (16, 1),
        "dt_proj.bias": (16,),
        "out_proj.weight": (8, 16),
    }


def test_initial_step_widths_and_decays_survive_the_skeleton():
    attn = network.MambaParT(4, 2, num_layers=1).blocks[0].attn
    dt = torch.nn.functional.softplus(attn.dt_proj.bias)
    assert 0.001 <= dt.min() < 0.003
    assert 0.04 < dt.max() <= 0.1001
    torch.testing.assert_close(attn.A_log.exp(), torch.arange(1.0, 17).expand(256, 16))


def scan_inputs(layout):
    torch.manual_seed(2)
    shapes = [(3,), (3,), (2,), (2,)]
    u, dt, B, C = (torch.randn(layout.source.numel(), *s, dtype=torch.float64) for s in shapes)
    return u, dt.exp(), -torch.rand(3, 2, dtype=torch.float64), B, C


def test_packed_scan_is_the_padded_scan():
    layout, _ = packed()
    u, dt, A, B, C = (t.requires_grad_() for t in scan_inputs(layout))
    padded = network.padded_scan(layout.pad(u), layout.pad(dt), A, layout.pad(B), layout.pad(C))
    out = network.packed_scan(u, dt, A, B, C, layout)
    torch.testing.assert_close(out, layout.unpad(padded))
    weights = torch.randn_like(out)
    grads = torch.autograd.grad((weights * out).sum(), (u, dt, A, B, C))
    expected = torch.autograd.grad((weights * layout.unpad(padded)).sum(), (u, dt, A, B, C))
    torch.testing.assert_close(grads, expected)


def test_fused_scan_gives_the_kernel_what_it_wants(monkeypatch):
    def kernel(u, delta, A, B, C):  # mamba_ssm: (B, D, n), (B, D, n), (D, S), (B, S, n), (B, S, n)
        return network.padded_scan(*(t.mT for t in (u, delta)), A, *(t.mT for t in (B, C))).mT

    monkeypatch.setattr(network, "selective_scan_fn", kernel)
    layout, _ = packed()
    inputs = scan_inputs(layout)
    torch.testing.assert_close(
        network.fused_scan(*inputs, layout), network.packed_scan(*inputs, layout)
    )


def test_padded_layout_gives_the_same(mamba):
    mixer = network.BidirectionalMamba(DIM)
    layout, x = packed()
    garbage = layout.pad(x).masked_fill(~layout.mask[..., None], 1e3)
    out = mixer(garbage, Padded(layout.mask[:, None]))
    torch.testing.assert_close(layout.unpad(out), mixer(x, layout))


def test_a_particle_sees_the_harder_ones_of_its_jet_only(mamba):
    layout, x = packed()
    out = layout.pad(mamba(x, layout))
    (grad,) = torch.autograd.grad(out[2, 6].sum(), x)
    seen = layout.pad(grad.abs().amax(1, keepdim=True))[..., 0] > 0  # (B, n)
    expected = torch.zeros_like(seen)
    expected[2, :7] = True
    assert torch.equal(seen, expected)


def test_bidirectional_is_the_sum_of_both_readings():
    torch.manual_seed(0)
    mixer = network.BidirectionalMamba(DIM)
    layout, x = packed()
    for tokens, out in zip(x.split(COUNTS), mixer(x, layout).split(COUNTS), strict=True):
        if len(tokens):
            alone = Padded(torch.ones(1, 1, len(tokens), dtype=torch.bool))
            down = mixer.down(tokens[None], alone)
            up = mixer.up(tokens.flip(0)[None], alone).flip(1)
            torch.testing.assert_close(out, (down + up)[0])


def test_scan_stays_in_float32_under_autocast(mamba):
    layout, x = packed()
    expected = mamba(x, layout)
    with torch.autocast("cpu", torch.bfloat16):
        out = mamba(x, layout)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), expected, rtol=0, atol=0.05 * expected.std().item())


def test_no_jets_and_empty_jets(mamba):
    for counts in ([0, 0], []):
        layout, x = packed(counts)
        out = mamba(x, layout)
        assert out.shape == (0, DIM)
        out.sum().backward()
