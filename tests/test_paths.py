"""Every way through a Particle Transformer gives one answer, whatever a user made of its parts.

The ways are: packed with the kernels in C++, packed in PyTorch, padded as for an export, and
accelerated with and without kernels. Layers that look like modules are modules: what is put in
their place, or hooked to them, has its effect on every way.
"""

import copy
import itertools
import logging

import pytest
import torch
import torch.nn.functional as F
from jets import make_jets
from torch import nn
from zoo import NETWORKS, SIZES, SMALL, build, stir, without_kernels

import jetzoo
from jetzoo import UserError, plugin, tagger
from jetzoo.modules import only_looks
from jetzoo.native import load
from jetzoo.nn.blocks import Attention
from jetzoo.nn.packing import Padded, pack
from jetzoo.nn.pairs import PairBias
from jetzoo.nn.transformer import ParticleTransformer
from jetzoo.repository import network_module

OFF = {"dropout": 0.0, "attn_dropout": 0.0, "activation_dropout": 0.0}
COUNTS = (19, 0, 1, 33, 7)
LABELS = torch.tensor([0, 1, 0, 1, 1])


class SharperAttention(Attention):
    """Overrides what is done with the projected tokens."""

    def attend(self, q, k, v, bias, mask):
        return super().attend(3 * q, k, v, bias, mask)


class DampedBias(Attention):
    """Overrides the forward pass, and computes with a bias (B, H, n, n)."""

    def forward(self, x, layout, bias=None):
        return super().forward(x, layout, 0.2 * bias)


def linformer(dim, num_heads, dropout):
    """A mixer that takes a bias (B, H, n, n) of its own."""
    attention = network_module("LinformerParT").LinformerAttention
    return attention(dim, num_heads, dropout, seq_len=24, num_slots=6)


MIXERS = {
    "attention": (Attention,),
    "attention and linformer": (Attention, linformer),
    "attend is overridden": (SharperAttention, Attention),
    "forward is overridden": (DampedBias, Attention),
}


def transformer(*mixers, cls=ParticleTransformer, **options):
    """A small network whose blocks take the mixers in turn."""
    torch.manual_seed(3)
    turns = itertools.cycle(mixers or (Attention,))
    model = cls(7, 2, mixer=lambda *sizes: next(turns)(*sizes), **SMALL, **OFF, **options)
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm1d)):
        norm.running_mean.uniform_(-0.3, 0.3)
        norm.running_var.uniform_(0.5, 2)
    with torch.no_grad():  # or attention would be nearly uniform, and its bias small
        model.pair_embed.embed[-2].weight.mul_(4)
        for block in model.blocks:
            for projection in ("in_proj", "to_q", "to_k"):
                if hasattr(block.attn, projection):
                    getattr(block.attn, projection).weight.mul_(2)
    return stir(model).eval()


def padded(model):
    """The network as it is exported: it gives probabilities, and keeps the padding."""
    twin = copy.deepcopy(model)
    twin.for_inference = True
    return twin


def answers(model, jets):
    """Logarithms of the probabilities of all ways through a network in eval mode."""
    with torch.no_grad():
        found = {"padded": padded(model)(*jets).log()}
    for name, kernels in (("kernels", True), ("pytorch", False)):
        with pytest.MonkeyPatch.context() as patch:
            if not kernels:
                without_kernels(patch)
            found[f"with gradients, {name}"] = model(*jets).log_softmax(1).detach()
            with torch.no_grad():
                found[f"packed, {name}"] = model(*jets).log_softmax(1)
            found[f"accelerated, {name}"] = jetzoo.accelerate(model)(*jets).log_softmax(1)
    return found


def assert_one_answer(model, jets):
    """Return it."""
    found = answers(model, jets)
    for name, value in found.items():
        torch.testing.assert_close(
            value, found["padded"], rtol=1e-5, atol=2e-5, msg=lambda m, n=name: f"{n}: {m}"
        )
    return found["padded"]


def gradients(model, jets, train=False):
    model = copy.deepcopy(model).train(train)
    out = model(*jets)
    loss = F.nll_loss(out.log(), LABELS) if model.for_inference else F.cross_entropy(out, LABELS)
    loss.backward()
    return {name: p.grad for name, p in model.named_parameters()}


def assert_same_gradients(found, expected):
    """Up to rounding; a bias before a batch norm has none but rounding."""
    scale = torch.cat([x.flatten() for x in expected.values()]).norm()
    for name, gradient in found.items():
        assert (gradient - expected[name]).norm() <= 1e-5 * scale, name


@pytest.mark.parametrize("name", MIXERS)
def test_mixers(name, monkeypatch):
    model, jets = transformer(*MIXERS[name]), make_jets(COUNTS)
    expected = assert_one_answer(model, jets)
    if name != "attention":  # and it is not that of plain attention with the same weights
        plain = transformer()
        plain.load_state_dict(model.state_dict(), strict=False)
        with torch.no_grad():
            assert (plain(*jets).log_softmax(1) - expected).abs().max() > 1e-3
    packed, trained = gradients(model, jets), gradients(model, jets, train=True)
    assert_same_gradients(packed, gradients(padded(model), jets))
    without_kernels(monkeypatch)
    assert_same_gradients(packed, gradients(model, jets))
    assert_same_gradients(trained, gradients(model, jets, train=True))


def test_a_bias_knows_its_layout():
    """The pairs of packed jets and the matrices of padded ones are the same numbers."""
    model, (_, _, vectors, mask) = transformer(), make_jets(COUNTS)
    layout = pack(mask.bool(), with_pairs=True)
    bias = model.pair_embed(vectors, layout)
    assert bias.pairs.shape == (4, sum(n * (n + 1) // 2 for n in COUNTS))
    matrices = model.pair_embed(vectors, Padded(mask.bool()))
    assert matrices.pairs is None
    real = mask.bool() & mask.bool().mT  # (B, N, N)
    for jet, heads in enumerate(matrices.dense):
        torch.testing.assert_close(bias.dense[jet][:, real[jet]], heads[:, real[jet]])


class ShiftedLogits(ParticleTransformer):
    def forward(self, *inputs):
        return super().forward(*inputs) + torch.tensor([0.0, 1.0])


def test_a_subclass_with_a_forward_of_its_own_runs_as_it_is(caplog):
    jets = make_jets(COUNTS)
    model = transformer(cls=ShiftedLogits)
    with caplog.at_level(logging.WARNING, "jetzoo"):
        fast = jetzoo.accelerate(model)
    assert "no fast form of ShiftedLogits" in caplog.text
    with torch.no_grad():
        torch.testing.assert_close(fast(*jets), model(*jets))
        difference = model(*jets) - transformer()(*jets)
    torch.testing.assert_close(difference, torch.tensor([[0.0, 1.0]]).expand(5, 2))


def replaced(path, module):
    """A change of a network: a module in place of another."""
    return lambda model: model.set_submodule(path, module)


def hooked(path, hook):
    """A change of a network: a forward hook."""
    return lambda model: model.get_submodule(path).register_forward_hook(hook)


def uneven(module, inputs, out):
    # A factor for all channels alike would be lost in the norm behind the attention.
    return out * torch.linspace(0.5, 2, out.shape[-1])


def damped_bias(module, inputs, bias):
    if bias.pairs is not None:
        return PairBias(bias.layout, pairs=0.2 * bias.pairs)
    return PairBias(bias.layout, dense=0.2 * bias.dense)


def shifted_input(model):
    model.blocks[0].fc2.register_forward_pre_hook(lambda module, inputs: (inputs[0] + 0.3,))


def method_of_the_instance(model):
    block = model.blocks[1]
    block.normalise = lambda x: 0.5 * block.pre_attn_norm(x)


CHANGES = {
    "act": replaced("blocks.0.act", nn.SiLU()),
    "act of a class block": replaced("cls_blocks.1.act", nn.SiLU()),
    "act of the embedding": replaced("embed.embed.2", nn.SiLU()),
    "act of the pairs": replaced("pair_embed.embed.3", nn.SiLU()),
    "norm": replaced("blocks.1.pre_fc_norm", nn.Identity()),
    "norm of the tokens": replaced("blocks.0.pre_attn_norm", nn.Identity()),
    "norm of a class block": replaced("cls_blocks.0.pre_attn_norm", nn.Identity()),
    "fc1": hooked("blocks.0.fc1", uneven),
    "in_proj": hooked("blocks.1.attn.in_proj", uneven),
    "in_proj of a class block": hooked("cls_blocks.0.attn.in_proj", uneven),
    "out_proj": hooked("blocks.0.attn.out_proj", uneven),
    "attention": hooked("blocks.0.attn", uneven),
    "block": hooked("blocks.0", uneven),
    "embedding": hooked("embed.embed.1", uneven),
    "pair_embed": hooked("pair_embed", damped_bias),
    "a product of the pairs": hooked("pair_embed.embed.1", lambda module, inputs, out: 1 - out),
    "pre-hook": shifted_input,
    "method": method_of_the_instance,
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_has_its_effect_on_every_way(name, monkeypatch):
    jets = make_jets(COUNTS)
    before = assert_one_answer(transformer(), jets)
    model = transformer()
    CHANGES[name](model)
    after = assert_one_answer(model, jets)
    assert (after - before).abs().max() > 1e-3
    if name == "method":  # `copy.deepcopy` leaves it bound to the block of the first network
        return
    kernels = gradients(model, jets, train=True)
    without_kernels(monkeypatch)
    assert_same_gradients(kernels, gradients(model, jets, train=True))


@pytest.mark.parametrize("path", ["blocks.0.fc1", "blocks.0.act", "pair_embed.embed.1"])
def test_a_hook_of_the_backward_pass_is_called(path):
    model = transformer().train()
    seen = []
    model.get_submodule(path).register_full_backward_hook(lambda *args: seen.append(args))
    F.cross_entropy(model(*make_jets(COUNTS)), LABELS).backward()
    assert len(seen) >= 1


@pytest.mark.skipif(load("part") is None, reason="no C++ compiler")
def test_a_hook_that_only_looks_leaves_the_kernels():
    model, seen = transformer(), []
    model.blocks[0].register_forward_hook(only_looks(lambda *args: seen.append(args)))
    assert jetzoo.accelerate(model).kernels is not None
    model.blocks[0].register_forward_hook(lambda *args: None)
    assert jetzoo.accelerate(model).kernels is None


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"num_layers": 0}, "num_layers must be at least 1, not 0"),
        ({"num_cls_layers": 0}, "num_cls_layers must be at least 1, not 0"),
        ({"num_layers": -1}, "num_layers must be at least 1, not -1"),
        ({"dropout": 1.0}, "dropout must be at least 0 and less than 1, not 1.0"),
        ({"attn_dropout": 1.0}, "attn_dropout must be at least 0 and less than 1, not 1.0"),
        ({"activation_dropout": 1}, "activation_dropout must be at least 0 and less than 1, not 1"),
        ({"dropout": -0.1}, "dropout must be at least 0 and less than 1, not -0.1"),
    ],
)
def test_degenerate_options_are_one_sentence(options, sentence):
    for name in ("ParT", "LinformerParT"):
        with pytest.raises(UserError, match=f"^{sentence}[^\n]*$"):
            tagger.untrained(name, "QuarkGluon/qg_kin", "cpu", **{**SMALL, **options})
    with pytest.raises(ValueError, match=sentence):
        ParticleTransformer(7, 2, **{**SMALL, **options})


@pytest.mark.parametrize("counts", [(1,), (1, 0), (0,), (0, 0), (2, 0)], ids=str)
@pytest.mark.parametrize("name", [*NETWORKS, "LinformerParT projected"])
def test_a_batch_of_one_particle_trains(name, counts):
    """It has no variance, and a batch without any not even a mean."""
    model = build(name, **SIZES.get(name.split()[0], {})).train()
    before = {key: value.clone() for key, value in model.named_buffers()}
    loss = plugin.get_loss(None)(model(*make_jets(counts, length=4)), LABELS[: len(counts)])
    loss.backward()
    assert loss.isfinite()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), key
    assert all(value.isfinite().all() for value in model.buffers())
    if sum(counts) == 0:
        for key, value in model.named_buffers():
            if key.endswith(("running_mean", "running_var")) and "fc" not in key:
                torch.testing.assert_close(value, before[key], msg=key)
    torch.optim.SGD(model.parameters(), 1e-3).step()
    with torch.no_grad():
        assert model.eval()(*make_jets((5, 1))).isfinite().all()
