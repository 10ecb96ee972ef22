"""weaver-core's own networks: their options in the zoo, and their fast forms."""

import pytest
import torch
from jets import make_jets
from weaver.nn.model.ParticleTransformer import ParticleTransformer as WeaverParT
from zoo import SMALL, UNBIASED, build, stir, without_kernels

import jetzoo
import jetzoo.nn.transformer
from jetzoo.nn.pairs import PairEmbed

OPTIONS = [
    {"use_pre_activation_pair": True},
    {"remove_self_pair": True},
    {"use_pre_activation_pair": True, "remove_self_pair": True},
]
COUNTS = (40, 7, 61, 1, 18, 3, 64)


def stirred(model, seed=4):
    """A network in eval mode, none of whose weights has a special value."""
    torch.manual_seed(seed)
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.running_mean.uniform_(-0.3, 0.3)
            module.running_var.uniform_(0.5, 2)
    return stir(model.eval())


def weaver_part(num_features=7, **options):
    """weaver's own ParT, small."""
    return stirred(WeaverParT(num_features, 2, **{**SMALL, **options}))


def both(data_config, **options):
    """weaver's network and ParT with the same weights."""
    own = build("ParT", data_config, **SMALL, **options)
    weaver = weaver_part(**{"use_pre_activation_pair": False, **options})
    own.mod.load_state_dict(weaver.state_dict(), strict=True)
    return weaver, own


# The options of weaver's pair embedding.


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("training", [False, True])
def test_logits_and_gradients_are_those_of_weaver(data_config, options, training):
    weaver, own = both(data_config, **options)
    if training:  # batch statistics of the pairs; nothing random
        for model in (weaver, own):
            model.train()
            for module in model.modules():
                if hasattr(module, "dropout") and isinstance(module.dropout, float):
                    module.dropout = 0.0
                if isinstance(module, torch.nn.Dropout):
                    module.p = 0.0
        for model in (weaver.embed, own.mod.embed):
            model.eval()  # weaver's batch norm of the features counts the padding
        weaver.trimmer.enabled = False
    points, features, vectors, mask = (x.double() for x in make_jets(COUNTS))
    expected = weaver.double()(features, vectors, mask)
    logits = own.double()(points, features, vectors, mask)
    torch.testing.assert_close(logits, expected, atol=1e-6, rtol=0)
    weight = torch.randn(expected.shape, dtype=torch.double)
    (weight * expected).sum().backward()
    (weight * logits).sum().backward()
    grads = dict(own.mod.named_parameters())
    for name, parameter in weaver.named_parameters():
        torch.testing.assert_close(
            grads[name].grad, parameter.grad, atol=1e-4, rtol=1e-4, msg=lambda x, n=name: n + x
        )


def test_the_options_change_the_logits(data_config):
    jets = make_jets(COUNTS)
    with torch.no_grad():
        plain = both(data_config)[1](*jets)
        for options in OPTIONS[:2]:
            assert (both(data_config, **options)[1](*jets) - plain).abs().max() > 1e-4


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("kernels", [True, False])
def test_folded_with_the_options_of_pairs(data_config, monkeypatch, options, kernels):
    own = both(data_config, **options)[1]
    if not kernels:
        without_kernels(monkeypatch)
    fast = jetzoo.accelerate(own)
    assert kernels == (fast.kernels is not None)
    jets = make_jets((0, *COUNTS, 128))
    with torch.no_grad():
        torch.testing.assert_close(fast(*jets), own(*jets), atol=2e-5, rtol=1e-5)
    int8 = jetzoo.accelerate(own, "int8", method="weight-only")
    assert (int8(*jets) - fast(*jets)).abs().max() < 0.1


def test_exported_form_has_the_options(data_config):
    options = {**SMALL, **OPTIONS[2]}
    own = build("ParT", data_config, **options)
    padded = build("ParT", data_config, **options, for_inference=True)
    padded.load_state_dict(own.state_dict())
    jets = make_jets(COUNTS)
    with torch.no_grad():
        torch.testing.assert_close(padded(*jets), own(*jets).softmax(1), atol=1e-5, rtol=0)


def test_training_kernel_without_the_last_activation(monkeypatch):
    x = torch.randn(1, 4, 500)
    own = stirred(PairEmbed((16, 16, 4), use_pre_activation_pair=True)).train()
    results = []
    from jetzoo.nn import pairs

    called = []
    kernel = pairs.pair_mlp
    monkeypatch.setattr(pairs, "pair_mlp", lambda *a: called.append(1) or kernel(*a))
    features = x.clone()
    monkeypatch.setattr(pairs, "_features", lambda *a: features)
    for plain in (False, True):
        if plain:
            monkeypatch.setattr(pairs, "takes_pairs", lambda *a: False)
        own.zero_grad()
        index = torch.zeros(500, dtype=torch.long)
        out = own._pairs(None, index, index)
        (out * torch.linspace(-1, 1, 500)).sum().backward()
        results.append([out.detach(), *(p.grad.clone() for p in own.parameters())])
    assert called == [1]
    for fast, expected in zip(*results, strict=True):
        torch.testing.assert_close(fast, expected, atol=2e-3, rtol=1e-4)


def test_particles_alone_have_no_pair(data_config):
    weaver, own = both(data_config, remove_self_pair=True)
    jets = make_jets((1, 1))
    own.train()
    own(*jets).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in own.parameters())


def test_tokens_in_place_of_features(data_config):
    part = jetzoo.nn.transformer.ParticleTransformer(
        16, 2, **{**UNBIASED, "embed_dims": (), "pair_embed_dims": (16,)}
    )
    stirred(part)
    jets = make_jets(COUNTS)
    jets[1] = torch.randn(len(COUNTS), 16, jets[1].shape[2])
    fast = jetzoo.accelerate(part)
    assert fast.kernels is None  # 16 / 4 heads are no multiple of 8
    with torch.no_grad():
        torch.testing.assert_close(fast(*jets), part(*jets), atol=2e-5, rtol=1e-5)
