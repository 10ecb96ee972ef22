"""weaver-core's own networks: their options in the zoo, and their fast forms."""

import awkward as ak
import pytest
import torch
from jets import make_jets, repad
from stock import (
    COUNTS,
    NATIVE,
    SV,
    GraphWrapper,
    TaggerWrapper,
    Wrapper,
    close,
    exact,
    secondary,
    stirred,
    weaver_part,
)
from weaver.nn.model import ParticleTransformer as transformer_file
from weaver.nn.model.ParticleNet import ParticleNet, ParticleNetTagger
from weaver.nn.model.ParticleTransformer import ParticleTransformer as WeaverParT
from weaver.nn.model.ParticleTransformer import ParticleTransformerTagger
from zoo import GRAPH, SMALL, UNBIASED, build, without_kernels

import jetzoo
import jetzoo.nn.transformer
import jetzoo.tagger
from jetzoo import repository
from jetzoo.nn import pairs
from jetzoo.nn.pairs import PairEmbed

OPTIONS = [
    {"use_pre_activation_pair": True},
    {"remove_self_pair": True},
    {"use_pre_activation_pair": True, "remove_self_pair": True},
]


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
        16, 2, **{**UNBIASED, "embed_dims": None, "pair_embed_dims": (16,)}
    )
    stirred(part)
    jets = make_jets(COUNTS)
    jets[1] = torch.randn(len(COUNTS), 16, jets[1].shape[2])
    fast = jetzoo.accelerate(part)
    assert fast.kernels is None  # 16 / 4 heads are no multiple of 8
    with torch.no_grad():
        torch.testing.assert_close(fast(*jets), part(*jets), atol=2e-5, rtol=1e-5)


# Fast forms of weaver's own networks.


class TakesOthers(WeaverParT):
    def forward(self, x, v=None, mask=None, uu=None, uu_idx=None):
        return super().forward(1.001 * x, v, mask)


class OnlyNamed(WeaverParT):
    """A subclass that computes the same."""


def runs_as_it_is(fast, model, *inputs):
    """Whether the fast form is a copy; its sums may be in another order."""
    with torch.no_grad():
        torch.testing.assert_close(fast(*inputs), model(*inputs), atol=1e-3, rtol=0)
    return type(fast.network) is type(model)


@pytest.mark.parametrize(
    "options",
    [
        {},
        *OPTIONS,
        {"fc_params": [(24, 0.1), (16, 0.1, "gelu")]},
        {"fc_params": [(24, 0.1, "swiglu")]},
        {"fc_params": None},
        {"pair_embed_dims": None},
        {"block_params": {"scale_heads": False, "scale_resids": False}},
        {"for_inference": True},
        {"num_cls_layers": 1},
    ],
    ids=str,
)
@pytest.mark.parametrize("kernels", [True, False])
def test_transformer_alone_and_wrapped(options, kernels, monkeypatch, caplog):
    if not kernels:
        without_kernels(monkeypatch)
    model = weaver_part(**{**NATIVE, **options})
    points, features, vectors, mask = make_jets((0, *COUNTS))
    features, vectors, mask, points = (x[1:] for x in (features, vectors, mask, points))
    expected = exact(model, features, vectors, mask)
    fast = jetzoo.accelerate(model)
    assert (fast.kernels.core.kernels is not None) == kernels
    close(fast(features, vectors, mask), expected)
    close(fast(x=features, v=vectors, mask=mask), expected)
    fast = jetzoo.accelerate(Wrapper(model))
    close(fast(points, features, vectors, mask), expected)
    close(fast(points, features, mask=mask, lorentz_vectors=vectors), expected)
    assert caplog.text == ""


def test_what_a_call_leaves_out():
    model = weaver_part(**NATIVE)
    _, features, vectors, _ = make_jets((20, 20))
    fast = jetzoo.accelerate(model)
    close(fast(features, vectors), exact(model, features, vectors))
    with pytest.raises(TypeError, match="four-vectors"):
        fast(features)
    with pytest.raises(TypeError, match="pair_extra_dim"):
        fast(features, vectors, uu=features)
    plain = weaver_part(**{**NATIVE, "pair_embed_dims": None})
    close(jetzoo.accelerate(plain)(features), exact(plain, features))


@pytest.mark.parametrize("kernels", [True, False])
@pytest.mark.parametrize("options", [{}, {"use_pre_activation_pair": False}], ids=str)
def test_particles_and_vertices(kernels, options, monkeypatch):
    if not kernels:
        without_kernels(monkeypatch)
    model = stirred(ParticleTransformerTagger(**SV, **NATIVE, **options))
    pf, sv = make_jets(COUNTS), secondary()
    expected = exact(model, *pf[1:], *sv[1:])
    fast = jetzoo.accelerate(model)
    assert (fast.kernels.core.kernels is not None) == kernels
    close(fast(*pf[1:], *sv[1:]), expected)
    sv_x, sv_v, sv_mask = sv[1:]
    close(fast(*pf[1:], sv_mask=sv_mask, sv_v=sv_v, sv_x=sv_x), expected)
    fast = jetzoo.accelerate(TaggerWrapper(model))
    close(fast(*pf, *sv), expected)
    close(fast(*pf, *repad(sv, 9, float("nan"))), expected)
    sv[1][2, 0, 1] = float("inf")
    logits = fast(*pf, *sv)
    assert logits[2].isnan().all()
    close(logits[[0, 1, 3, 4, 5, 6]], expected[[0, 1, 3, 4, 5, 6]])


@pytest.mark.parametrize(
    "options", [{}, {"use_fusion": False}, {"use_fusion": False, "for_inference": True}], ids=str
)
def test_particle_net(options, caplog):
    model = stirred(ParticleNet(7, 3, **GRAPH, **options))
    jets = make_jets(COUNTS)
    points, features, _, mask = jets
    expected = exact(model, points, features, mask)
    fast = jetzoo.accelerate(model)
    close(fast(points, features, mask), expected)
    close(fast(features=features, points=points, mask=mask), expected)
    close(jetzoo.accelerate(GraphWrapper(model))(*jets), expected)
    assert caplog.text == ""


def test_what_particle_net_lacks(caplog):
    points, features, _, mask = make_jets(COUNTS)
    for option in ("use_counts", "for_segmentation"):
        model = stirred(ParticleNet(7, 3, **GRAPH, **{option: option != "use_counts"}))
        caplog.clear()
        fast = jetzoo.accelerate(model)
        assert len(caplog.records) == 1 and option in caplog.text
        assert runs_as_it_is(fast, model, points, features, mask)


class GraphTaggerWrapper(Wrapper):
    def forward(self, pf_points, pf_features, pf_mask, sv_points, sv_features, sv_mask):
        return self.mod(pf_points, pf_features, pf_mask, sv_points, sv_features, sv_mask)


@pytest.mark.parametrize("options", [{}, {"use_fts_bn": False, "for_inference": True}], ids=str)
def test_graphs_of_particles_and_vertices(options, caplog):
    model = stirred(ParticleNetTagger(7, 5, 3, **GRAPH, **options))
    pf, sv = make_jets(COUNTS), secondary()
    jets = (*(pf[i] for i in (0, 1, 3)), *(sv[i] for i in (0, 1, 3)))
    expected = exact(model, *jets)
    for network in (model, GraphTaggerWrapper(model)):
        fast = jetzoo.accelerate(network)
        close(fast(*jets), expected)
        close(fast(*jets[:3], *(repad((*sv[:2], sv[3]), 9, float("nan")))), expected)
        jets[4][2, 0, 1] = float("inf")
        logits = fast(*jets)
        assert logits[2].isnan().all()
        close(logits[[0, 1, 3, 4, 5, 6]], expected[[0, 1, 3, 4, 5, 6]])
        jets[4][2, 0, 1] = secondary()[1][2, 0, 1]
    assert caplog.text == ""


UNKNOWN = {
    "for_segmentation": lambda: weaver_part(for_segmentation=True),
    "fc_params": lambda: weaver_part(num_cls_layers=0, fc_params=None),
    "TakesOthers": lambda: stirred(TakesOthers(7, 2, **SMALL)),
}


@pytest.mark.parametrize("option", UNKNOWN)
def test_an_unknown_option_is_named_and_the_network_runs_as_it_is(option, caplog):
    model = UNKNOWN[option]()
    points, features, vectors, mask = make_jets(COUNTS)
    for network, inputs in (
        (model, (features, vectors, mask)),
        (Wrapper(model), (points, features, vectors, mask)),
    ):
        caplog.clear()
        fast = jetzoo.accelerate(network)
        assert len(caplog.records) == 1 and option in caplog.text
        assert type(fast.network) is type(network)
        with torch.no_grad():
            found, expected = fast(*inputs), network(*inputs)
        torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)
    with pytest.raises(jetzoo.UserError, match=option):
        jetzoo.accelerate(model, "int8", method="dynamic")


def test_a_subclass_that_changes_nothing_is_rewritten():
    model = stirred(OnlyNamed(7, 2, **NATIVE))
    inputs = make_jets(COUNTS)[1:]
    fast = jetzoo.accelerate(model)
    assert fast.network is not None and hasattr(fast.network, "core")
    close(fast(*inputs), exact(model, *inputs))


def test_hooks_and_replaced_methods_keep_their_effect(caplog):
    inputs = make_jets(COUNTS)[1:]
    for name in ("blocks.1.fc1", "", "pair_embed.embed.1"):
        model = weaver_part(**NATIVE)
        model.get_submodule(name).register_forward_hook(lambda module, inputs, out: 0.5 * out)
        caplog.clear()
        fast = jetzoo.accelerate(model)
        assert len(caplog.records) == 1 and "hook" in caplog.text
        assert runs_as_it_is(fast, model, *inputs)
    model = weaver_part(**NATIVE)
    model.embed.forward = lambda x: torch.zeros(len(x), x.shape[2], 32)
    caplog.clear()
    fast = jetzoo.accelerate(model)
    assert "'embed'" in caplog.text
    assert runs_as_it_is(fast, model, *inputs)


def test_weaver_changed_beneath_is_found_by_the_proof(monkeypatch, caplog):
    usual = transformer_file.pairwise_lv_fts_pp

    def pairwise_lv_fts_pp(*arguments, **options):
        return 1.01 * usual(*arguments, **options)

    monkeypatch.setattr(transformer_file, "pairwise_lv_fts_pp", pairwise_lv_fts_pp)
    jetzoo.accelerate(weaver_part(**NATIVE))
    assert len(caplog.records) == 1 and "other logits" in caplog.text


class Reaches(Wrapper):
    """Uses a part of the network itself."""

    def forward(self, points, features, lorentz_vectors, mask):
        return self.mod.fc(self.mod.embed(features).mean(1))


class Scales(Wrapper):
    """Does more than to call the network."""

    def __init__(self, mod):
        super().__init__(mod)
        self.head = torch.nn.Linear(2, 4)

    def forward(self, points, features, lorentz_vectors, mask):
        return self.head(self.mod(2 * features, v=lorentz_vectors, mask=mask))


class Nameless(Wrapper):
    def forward(self, a, b, c, d):
        return self.mod(b, c, d)


def test_wrappers_that_do_more(caplog):
    jets = make_jets(COUNTS)
    model = stirred(Scales(weaver_part(**NATIVE)))
    fast = jetzoo.accelerate(model)
    assert caplog.text == "" and hasattr(fast.network.mod, "core")
    close(fast(*jets), exact(model, *jets))
    for wrapper, sign in ((Reaches, "no attribute"), (Nameless, "'a'")):
        model = stirred(wrapper(weaver_part(**NATIVE)))
        caplog.clear()
        fast = jetzoo.accelerate(model)
        assert len(caplog.records) == 1 and sign in caplog.text
        assert runs_as_it_is(fast, model, *jets)


def test_the_original_is_left_alone():
    model = Wrapper(weaver_part(**NATIVE)).train()
    before = {name: x.clone() for name, x in model.state_dict().items()}
    fast = jetzoo.accelerate(model)
    jets = make_jets(COUNTS)
    logits = fast(*jets)
    assert model.training and type(model.mod) is WeaverParT
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    with torch.no_grad():
        model.mod.fc[0].bias += 1
    assert torch.equal(fast(*jets), logits) and not logits.requires_grad
    with pytest.raises(jetzoo.UserError, match="cannot be trained"):
        fast.train()


@pytest.mark.parametrize("method", ["static", "dynamic", "weight-only"])
def test_int8(method):
    model = Wrapper(weaver_part(**NATIVE))
    jets = make_jets(COUNTS)
    fast = jetzoo.accelerate(model)
    int8 = jetzoo.accelerate(model, "int8", calibration=jets, method=method)
    assert int8.is_int8 and not fast.is_int8
    difference = (int8(*jets) - fast(*jets)).abs().max()
    assert 1e-5 < difference < 0.1
    bare = jetzoo.accelerate(model.mod, "int8", calibration=jets[1:], method=method)
    torch.testing.assert_close(bare(*jets[1:]), int8(*jets), atol=1e-5, rtol=0)


def test_int8_of_particles_and_vertices_and_of_graphs():
    model = TaggerWrapper(stirred(ParticleTransformerTagger(**SV, **NATIVE)))
    jets = *make_jets(COUNTS), *secondary()
    int8 = jetzoo.accelerate(model, "int8", calibration=[jets])
    assert 1e-5 < (int8(*jets) - jetzoo.accelerate(model)(*jets)).abs().max() < 0.1
    graph = GraphWrapper(stirred(ParticleNet(7, 3, use_fusion=False, **GRAPH)))
    jets = make_jets(COUNTS)
    int8 = jetzoo.accelerate(graph, "int8", calibration=jets)
    assert 1e-5 < (int8(*jets) - jetzoo.accelerate(graph)(*jets)).abs().max() < 0.1


def test_int8_refuses_what_it_cannot_use():
    model = Wrapper(weaver_part(**NATIVE))
    with pytest.raises(jetzoo.UserError, match="needs jets"):
        jetzoo.accelerate(model, "int8")
    with pytest.raises(jetzoo.UserError, match="do not fit"):
        jetzoo.accelerate(model, "int8", calibration=make_jets(COUNTS)[1:])
    with pytest.raises(jetzoo.UserError, match="zoo"):
        jetzoo.accelerate(model, "int8", calibration=make_jets(COUNTS), fine_tune=True)


def test_bf16():
    model = Wrapper(weaver_part(**NATIVE))
    jets = make_jets(COUNTS)
    half, fast = jetzoo.accelerate(model, "bf16"), jetzoo.accelerate(model)
    assert 1e-5 < (half(*jets) - fast(*jets)).abs().max() < 0.05


FILE = """
import torch
from weaver.nn.model.ParticleTransformer import ParticleTransformer


class ParticleTransformerWrapper(torch.nn.Module):
    def __init__(self, **kwargs):
        super().__init__()
        self.mod = ParticleTransformer(**kwargs)

    def forward(self, points, features, lorentz_vectors, mask):
        return self.mod(features, v=lorentz_vectors, mask=mask)


def get_model(data_config, **kwargs):
    cfg = dict(input_dim=len(data_config.input_dicts["pf_features"]),
               num_classes=len(data_config.label_value), num_layers=2, **kwargs)
    return ParticleTransformerWrapper(**cfg), {
        "input_names": list(data_config.input_names),
        "input_shapes": {k: ((1,) + s[1:]) for k, s in data_config.input_shapes.items()},
    }


def get_loss(data_config, **kwargs):
    return torch.nn.CrossEntropyLoss()
"""


def test_a_network_file_by_path(tmp_path, caplog):
    path, checkpoint = tmp_path / "example_ParticleTransformer.py", tmp_path / "net.pt"
    path.write_text(FILE)
    tagger = jetzoo.tagger.untrained(path, "QuarkGluon/qg_kin")
    torch.save(stirred(tagger.model).state_dict(), checkpoint)
    usual = jetzoo.load(path, checkpoint, "QuarkGluon/qg_kin", device="cpu")
    caplog.clear()
    fast = jetzoo.load(path, checkpoint, "QuarkGluon/qg_kin", device="cpu", fast=True)
    assert caplog.text == "" and hasattr(fast.model.network.mod, "core")
    jets = ak.from_parquet(repository.sample_jets())[:50]
    inputs = [torch.from_numpy(x) for x in fast.inputs(jets).values()]
    expected = exact(usual.model, *inputs).softmax(1)
    assert abs(fast.predict(jets) - expected.numpy()).max() < 1e-4
