"""ParT of jets whose constituents come in several collections."""

import pytest
import torch
from jets import make_jets, repad
from stock import NATIVE, stirred
from weaver.nn.model.ParticleTransformer import ParticleTransformerTagger
from zoo import without_kernels

import jetzoo
from jetzoo.nn.collections import CollectionTransformer

COUNTS = {"pf": (40, 7, 0, 1, 18, 64, 3), "sv": (2, 0, 5, 1, 0, 0, 4)}
DIMS = {"pf": 7, "sv": 5}


def collection(name):
    """Features, four-vectors and mask of one collection."""
    _, features, vectors, mask = make_jets(COUNTS[name], seed=len(name) + sum(COUNTS[name]))
    return features[:, : DIMS[name]], vectors, mask


def jets(**others):
    """Inputs of both collections, some of them replaced."""
    return [x for name in DIMS for x in others.get(name, collection(name))]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(3)
    return stirred(CollectionTransformer(DIMS, 3, **NATIVE))


def close(found, expected, tolerance=2e-5):
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=1e-5)


def test_weights_logits_and_gradients_are_those_of_weaver():
    options = {**NATIVE, "use_pre_activation_pair": True, "remove_self_pair": True}
    weaver = stirred(ParticleTransformerTagger(*DIMS.values(), 3, **options))
    own = CollectionTransformer(DIMS, 3, **options).eval()
    own.load_state_dict(weaver.state_dict(), strict=True)
    weaver.load_state_dict(own.state_dict(), strict=True)
    counts = torch.tensor([sum(n) > 0 for n in zip(*COUNTS.values(), strict=True)])
    assert counts.all()
    inputs = [x.double() for x in jets()]
    expected, logits = weaver.double()(*inputs), own.double()(*inputs)
    close(logits, expected, 1e-6)
    weight = torch.randn(expected.shape, dtype=torch.double)
    (weight * expected).sum().backward()
    (weight * logits).sum().backward()
    grads = dict(own.named_parameters())
    for name, parameter in weaver.named_parameters():
        close(grads[name].grad, parameter.grad, 1e-5)


def fast_forms(model, monkeypatch):
    """The network, the fast engine with and without its kernels."""
    yield model
    fast = jetzoo.accelerate(model)
    assert fast.kernels.core.kernels is not None
    yield fast
    without_kernels(monkeypatch)
    fast = jetzoo.accelerate(model)
    assert fast.kernels.core.kernels is None
    yield fast


@torch.no_grad()
def test_one_answer_whatever_the_padding_and_the_other_jets(model, monkeypatch, caplog):
    expected = model(*jets())
    assert expected.std() > 1e-3
    exported = CollectionTransformer(DIMS, 3, **NATIVE, for_inference=True).eval()
    exported.load_state_dict(model.state_dict())
    close(exported(*jets()), expected.softmax(1))
    for form in fast_forms(model, monkeypatch):
        close(form(*jets()), expected)
        for filling in (float("nan"), float("inf"), 1e30):
            others = {name: repad(collection(name), 70, filling) for name in DIMS}
            close(form(*jets(**others)), expected)
        alone = [form(*(x[i : i + 1] for x in jets())) for i in range(len(expected))]
        close(torch.cat(alone), expected)
        order = torch.randperm(64)
        close(form(*jets(pf=[x[:, :, order] for x in collection("pf")])), expected)
        assert form(*(x[:0] for x in jets())).shape == (0, 3)
    assert caplog.text == ""


@torch.no_grad()
@pytest.mark.parametrize(("group", "channel"), [("pf", 0), ("sv", 0), ("sv", 1)])
def test_what_is_not_finite_makes_the_jet_nan_and_no_other(model, monkeypatch, group, channel):
    expected = model(*jets())
    bad = [x.clone() for x in collection(group)]
    bad[channel][0, 1, 1] = float("inf")
    for form in fast_forms(model, monkeypatch):
        logits = form(*jets(**{group: bad}))
        assert logits[0].isnan().all()
        close(logits[1:], expected[1:])


@torch.no_grad()
def test_collections_without_any_member(model, monkeypatch):
    def none(name):
        return [x[:, :, :0] for x in collection(name)]

    def hidden(name):
        return [x * (k < 2) for k, x in enumerate(collection(name))]

    for form in fast_forms(model, monkeypatch):
        for names in (["sv"], ["pf"], ["pf", "sv"]):
            few = form(*jets(**{name: none(name) for name in names}))
            assert few.shape == (7, 3) and few.isfinite().all()
            close(few, form(*jets(**{name: hidden(name) for name in names})))


@pytest.mark.parametrize("without", ["nothing", "sv"])
def test_every_parameter_gets_a_gradient(without):
    model = CollectionTransformer(DIMS, 3, **NATIVE).train()
    given = {name: repad(collection(name), 80, float("nan")) for name in DIMS}
    if without == "sv":
        given["sv"] = [x[:, :, :0] for x in given["sv"]]
    model(*jets(**given)).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_three_collections_and_one():
    dims = {"pf": 7, "sv": 5, "lepton": 5}
    model = stirred(CollectionTransformer(dims, 2, **NATIVE))
    inputs = [*jets(), *collection("sv")]
    part = stirred(CollectionTransformer({"pf": 7}, 2, **NATIVE))
    with torch.no_grad():
        for network, given in ((model, inputs), (part, inputs[:3])):
            fast = jetzoo.accelerate(network)
            assert fast.network is not network and fast(*given).shape == (7, 2)
            close(fast(*given), network(*given))


@pytest.mark.parametrize("method", ["static", "dynamic", "weight-only"])
def test_int8(model, method):
    int8 = jetzoo.accelerate(model, "int8", calibration=tuple(jets()), method=method)
    assert int8.is_int8
    assert "embeds.0.layers.1" in int8.network.layers
    with torch.no_grad():
        assert 1e-5 < (int8(*jets()) - model(*jets())).abs().max() < 0.1


def test_bf16(model):
    half = jetzoo.accelerate(model, "bf16")
    with torch.no_grad():
        assert 1e-5 < (half(*jets()) - model(*jets())).abs().max() < 0.1


def test_a_subclass_that_computes_something_else_runs_as_it_is(caplog):
    class Doubled(CollectionTransformer):
        def forward(self, *inputs):
            return 2 * super().forward(*inputs)

    model = stirred(Doubled(DIMS, 3, **NATIVE))
    fast = jetzoo.accelerate(model)
    assert "no fast form of Doubled" in caplog.text
    with torch.no_grad():
        close(fast(*jets()), model(*jets()))


def test_what_does_not_fit_is_named(model):
    inputs = jets()
    for form in (model, jetzoo.accelerate(model)):
        for given, message in (
            (inputs[:4], "pf, sv: 6 inputs, not 4"),
            ([*inputs[:5], inputs[2]], "of sv, features has the shape"),
            ([*inputs[:3], *(x[:2] for x in inputs[3:])], "7 jets of pf, but 2 of sv"),
        ):
            with pytest.raises(ValueError, match=message):
                form(*given)
    for arguments in (({}, 3), (DIMS, 3)):
        with pytest.raises(ValueError, match="an embedding each"):
            CollectionTransformer(*arguments, embed_dims=() if arguments[0] else (8,))
    int8 = {"precision": "int8", "calibration": tuple(inputs[:4])}
    with pytest.raises(jetzoo.UserError, match="do not fit the network"):
        jetzoo.accelerate(model, **int8)
    bad = [x.clone() for x in inputs]
    bad[3][0, 0, 0] = float("nan")
    with pytest.raises(jetzoo.UserError, match="1 of 7 calibration jets"):
        jetzoo.accelerate(model, "int8", calibration=tuple(bad))
