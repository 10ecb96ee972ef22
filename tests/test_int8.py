"""Int8: exact integer arithmetic, small errors, one file, and clear refusals."""

import copy

import awkward as ak
import handmade
import numpy as np
import pytest
import torch
from jets import make_jets, repad
from zoo import CONFIG, NETWORKS, SIZES, SMALL, build, stir

import jetzoo
from jetzoo import UserError, acceleration, native
from jetzoo.engine.dense import Dense
from jetzoo.engine.folding import fold, freeze
from jetzoo.int8 import calibration, file, layers, quantize
from jetzoo.int8.layers import QuantizedDense
from jetzoo.int8.methods import METHODS, OBSERVERS


@pytest.fixture(params=NETWORKS, scope="module")
def name(request):
    return request.param


@pytest.fixture(scope="module")
def model(name, data_config):
    return stir(build(name, data_config, **SIZES.get(name, {})))


@pytest.fixture(scope="module")
def part(data_config):
    return stir(build("ParT", data_config, **SMALL))


def jets_to_calibrate(seed=7):
    """40 jets, in some a single particle: it attends to itself, as ReformerParT else forbids."""
    counts = np.random.default_rng(seed).integers(0, 70, 40)
    counts[::8] = 1
    return tuple(make_jets(counts, seed=seed))


def integers(layer, x):
    """What the static layer promises, in float64 and integers, before bias and GELU."""
    scale, zero = layer.input_scale.double(), layer.input_zero_point
    q = (x.double() / scale + zero + 0.5).floor().clamp(0, 255).long() - zero
    return q @ layer.weight.long().T * (scale * layer.scale.double())


@pytest.mark.parametrize("shape", [(5, 16), (1, 130), (33, 512), (7, 1024)])
@pytest.mark.parametrize("gelu", [False, True])
def test_the_static_layer_is_exact(shape, gelu, monkeypatch):
    torch.manual_seed(0)
    x = 3 * torch.randn(shape) + 1
    layer = QuantizedDense(torch.randn(24, shape[1]), torch.randn(24), "static", gelu)
    layer.set_range(-3.2, 5)  # clips on both sides
    expected = integers(layer, x) + layer.bias
    if gelu:
        expected = torch.nn.functional.gelu(expected)
    for fast in (True, False):
        monkeypatch.setattr(layers, "exact_products", lambda fast=fast: fast)
        torch.testing.assert_close(layer(x).double(), expected, atol=3e-5, rtol=3e-6)


def test_the_largest_numbers_do_not_overflow():
    """A sum of 512 products 255 x 127 needs 25 bits."""
    layer = QuantizedDense(torch.ones(8, 512), None, "static")
    layer.set_range(0, 255)
    out = layer(torch.full((16, 512), 300.0))
    torch.testing.assert_close(out, torch.full((16, 8), 255.0 * 512))


@pytest.mark.parametrize("method", METHODS)
def test_layers_are_close(method):
    torch.manual_seed(1)
    x, weight, bias = torch.randn(3, 50, 64), torch.randn(40, 64), torch.randn(40)
    layer = QuantizedDense(weight, bias, method)
    if method == "static":
        layer.set_range(*x.aminmax())
    expected = torch.nn.functional.linear(x, weight, bias)
    error = (layer(x) - expected).square().mean().sqrt() / expected.std()
    assert 0 < error < (0.006 if method == "weight-only" else 0.015)
    assert layer(x[:0]).shape == (0, 50, 40)


def test_dynamic_scales_are_those_of_the_token():
    layer = QuantizedDense(torch.randn(8, 16), None, "dynamic")
    x = torch.randn(4, 16) * torch.tensor([[1e-3], [1.0], [1e3], [0.0]])
    torch.testing.assert_close(layer(x)[0], layer(x[:1])[0])
    torch.testing.assert_close(layer(1e6 * x[:1]), 1e6 * layer(x[:1]))
    assert (layer(x)[3] == 0).all()


@pytest.mark.parametrize("kernel, stride", [(1, 1), (1, 2), (3, 1), (3, 2)])
def test_convolutions(kernel, stride):
    torch.manual_seed(2)
    conv = torch.nn.Conv1d(20, 12, kernel, stride=stride, padding=kernel // 2, bias=False)
    layer = layers.quantized(conv, "weight-only")
    x = torch.randn(4, 20, 17)
    with torch.no_grad():
        conv.weight.copy_((layer.dense.weight * layer.dense.scale[:, None]).view_as(conv.weight))
        torch.testing.assert_close(layer(x), conv(x), atol=1e-5, rtol=1e-5)


def test_bias_correction_keeps_the_mean():
    torch.manual_seed(3)
    x, weight = torch.nn.functional.gelu(torch.randn(4000, 32)), torch.randn(16, 32)
    expected = x @ weight.T
    layer = QuantizedDense(weight, None, "weight-only")
    before = (layer(x) - expected).mean(0).abs().max()
    layer.correct(weight, x.mean(0))
    after = (layer(x) - expected).mean(0).abs().max()
    assert after < 1e-4 < 0.01 < before


def test_observers():
    torch.manual_seed(4)
    values = torch.cat((torch.randn(100_000), torch.tensor([400.0])))
    low, high = calibration.choose_range(values, "percentile")
    assert -5 < low < -3 and 3 < high < 5

    def error(low, high):
        step = (high - low) / 255
        rounded = values.sub(low).div(step).round().clamp(0, 255).mul(step).add(low)
        return (rounded - values).square().mean()

    values = torch.randn(100_000) ** 3
    assert error(*calibration.choose_range(values, "mse")) < 0.9 * error(*values.aminmax())
    for observer in OBSERVERS:
        low, high = calibration.choose_range(torch.rand(10_000), observer)
        assert abs(low) < 0.01 and 0.98 < high <= 1


@torch.no_grad()
@pytest.mark.parametrize("method", METHODS)
def test_networks_are_close_and_come_back_from_a_file(name, model, data_config, method, tmp_path):
    jets = make_jets((0, *np.random.default_rng(5).integers(1, 60, 60)))
    expected = model(*jets)
    fast = jetzoo.accelerate(model, "int8", calibration=jets_to_calibrate(), method=method)
    logits = fast(*jets)
    assert logits.shape == expected.shape and logits.dtype == torch.float32
    # Over the spread from jet to jet, which is small with random weights; that of unrelated
    # logits is 1.4.
    error = ((logits - expected).square().mean(0).sqrt() / expected[1:].std(0)).max()
    assert 0 < error < (0.12 if method == "weight-only" else 0.5)
    assert not logits.is_inference()

    path = tmp_path / "int8.pt"
    file.save(fast, path, name, data_config, SIZES.get(name, {}))
    content = torch.load(path, weights_only=True)
    assert content["tensors"]["int8"].numel() > 0.7 * sum(
        p.numel() for p in model.parameters() if p.ndim > 1
    )
    for tagger in (
        jetzoo.load(path),
        jetzoo.load(name, path, CONFIG),
    ):
        torch.testing.assert_close(tagger.model(*jets), logits, atol=0, rtol=0)


@torch.no_grad()
def test_any_jets(name, model):
    fast = jetzoo.accelerate(model, "int8", method="dynamic")
    jets = make_jets((40, 7, 61, 1, 18, 0))
    logits = fast(*jets)
    longer = fast(*repad(jets, 90, float("nan")))
    assert (longer - logits).abs().max() < 0.02 * max(1, logits.abs().max())
    for counts in ((0,), (1,), (0, 0), (200, 2)):
        assert fast(*make_jets(counts)).isfinite().all()


def test_calibration_is_deterministic(part):
    jets = jets_to_calibrate()
    engines = [jetzoo.accelerate(part, "int8", calibration=jets) for _ in range(2)]
    for a, b in zip(*(e.network.engine.state_dict().values() for e in engines), strict=True):
        torch.testing.assert_close(a, b, atol=0, rtol=0)


def test_calibration_comes_in_many_forms(part):
    jets = jets_to_calibrate()
    halves = [tuple(x[:20] for x in jets), tuple(x[20:] for x in jets)]
    names = ("pf_points", "pf_features", "pf_vectors", "pf_mask")
    weaver = [(dict(zip(names, half, strict=True)), {}, {}) for half in halves]
    test = make_jets((30, 4))
    expected = jetzoo.accelerate(part, "int8", calibration=halves)(*test)
    for given in (iter(halves), weaver, [[*half] for half in halves]):
        logits = jetzoo.accelerate(part, "int8", calibration=given)(*test)
        torch.testing.assert_close(logits, expected, atol=0, rtol=0)
    for given in (jets, [*jets]):
        logits = jetzoo.accelerate(part, "int8", calibration=given)(*test)
        torch.testing.assert_close(logits, expected, atol=0.05, rtol=0)


def test_only_some_hundred_jets_are_read():
    jets = jets_to_calibrate()

    def batches():
        yield tuple(x[:25] for x in jets)
        yield tuple(x[25:] for x in jets)
        raise AssertionError("enough")

    assert [len(b[0]) for b in calibration.calibration_batches(batches(), 30)] == [25, 5]


def test_layers_of_inputs_and_outputs_stay_in_float(part):
    fast = jetzoo.accelerate(part, "int8", method="dynamic")
    kinds = {name: type(m) for name, m in fast.network.engine.named_modules()}
    assert kinds["network.embed.layers.0"] is Dense
    assert kinds["network.pair_embed.layers.0"] is Dense
    assert kinds["network.embed.layers.1"] is QuantizedDense
    assert kinds["network.mixers.0.in_proj"] is QuantizedDense
    everything = quantize.quantize(
        fold(freeze(part)), method="dynamic", keep=lambda name, layer: False
    )
    assert set(everything.layers) - set(fast.network.layers) == {
        "network.embed.layers.0",
        "network.pair_embed.layers.0",
        "network.pair_embed.layers.2",
        "network.head.1.0",
    }


def test_the_model_is_left_alone(part):
    before = copy.deepcopy(part.state_dict())
    jetzoo.accelerate(part, "int8", calibration=jets_to_calibrate())
    for name, tensor in part.state_dict().items():
        torch.testing.assert_close(tensor, before[name], atol=0, rtol=0)


@pytest.mark.parametrize(
    "layer", ["embed.layers.1", "pair_embed.layers.1", "mixers.1.in_proj", "feed_forwards.0.fc1"]
)
def test_the_kernels_agree_with_the_plain_form(part, layer, monkeypatch):
    """Layer by layer: with all of them in int8, a number that falls on the other side moves all."""
    jets = jets_to_calibrate()
    for method in METHODS:
        quantized = quantize.quantize(
            fold(freeze(part)), jets, method, keep=lambda name, _: name != f"network.{layer}"
        )
        fast = acceleration.lower(quantized)
        assert (fast.kernels is None) == (native.load("part") is None)
        logits = fast(*jets)
        monkeypatch.setattr(layers, "exact_products", lambda: False)
        torch.testing.assert_close(logits, fast.network(*jets), atol=2e-3, rtol=0)
        monkeypatch.undo()


def test_the_published_size_is_a_quarter(data_config, tmp_path):
    model = build("ParT", data_config)
    torch.save(model.state_dict(), tmp_path / "float.pt")
    fast = jetzoo.accelerate(model, "int8", calibration=tuple(make_jets((20, 30))))
    file.save(fast, tmp_path / "int8.pt", "ParT", data_config)
    sizes = [(tmp_path / f"{name}.pt").stat().st_size for name in ("float", "int8")]
    assert sizes[0] / sizes[1] > 3.7


def bad(jets, where=3):
    jets = [x.clone() for x in jets]
    jets[1][where, 2, 0] = float("nan")
    return tuple(jets)


@pytest.mark.parametrize(
    "options, message",
    [
        ({}, "needs jets to calibrate with"),
        ({"calibration": []}, "no jets to calibrate with"),
        ({"calibration": bad(jets_to_calibrate())}, "1 of 40 calibration jets .* NaN"),
        ({"calibration": jets_to_calibrate()[:2]}, "the four inputs"),
        ({"calibration": tuple(make_jets((5,)))[::-1]}, "the four inputs"),
        ({"calibration": tuple(jets_to_calibrate()[i] for i in (0, 0, 2, 3))}, "do not fit"),
        ({"method": "int4"}, "method of int8 is one of static, dynamic, weight-only, not 'int4'"),
        ({"method": "dynamic", "device": "cuda"}, "runs on the CPU, not on 'cuda'"),
    ],
)
def test_misuse(part, options, message):
    with pytest.raises(UserError, match=message):
        jetzoo.accelerate(part, "int8", **options)


def test_nan_in_the_padding_is_fine(part):
    jets = jets_to_calibrate()
    expected = jetzoo.accelerate(part, "int8", calibration=jets)(*make_jets((9,)))
    filled = tuple(repad([*jets], filling=float("nan")))
    logits = jetzoo.accelerate(part, "int8", calibration=filled)(*make_jets((9,)))
    torch.testing.assert_close(logits, expected, atol=0, rtol=0)


@pytest.fixture
def int8_file(part, data_config, tmp_path):
    path = tmp_path / "int8.pt"
    file.save(jetzoo.accelerate(part, "int8", method="dynamic"), path, "ParT", data_config, SMALL)
    return path


def test_files_are_checked(int8_file, tmp_path):
    config = CONFIG
    with pytest.raises(UserError, match="is a ParT, not a PN"):
        jetzoo.load("PN", int8_file, config)
    with pytest.raises(UserError, match="other inputs"):
        jetzoo.load("ParT", int8_file, config.with_name("qg_kinpid.yaml"))
    with pytest.raises(UserError, match="made with the options"):
        jetzoo.load("ParT", int8_file, config, num_heads=2)
    with pytest.raises(UserError, match="runs on the CPU"):
        jetzoo.load("ParT", int8_file, config, device="cuda")
    torch.save({"format": "something else"}, tmp_path / "other.pt")
    with pytest.raises(UserError, match="not an int8 network"):
        jetzoo.load(tmp_path / "other.pt")


def test_a_tagger_predicts_with_it(int8_file, part, tmp_path):
    handmade.write_parquet(tmp_path / "jets.parquet", (12, 3, 25, 0, 40), np.random.default_rng(4))
    jets = ak.from_parquet(tmp_path / "jets.parquet")
    tagger = jetzoo.load(int8_file)
    assert tagger.classes == ["jet_isQ", "jet_isG"]
    scores = tagger.predict(jets)
    inputs = [torch.from_numpy(x) for x in tagger.inputs(jets).values()]
    with torch.no_grad():
        np.testing.assert_allclose(scores, part(*inputs).softmax(1), atol=0.05)


@torch.no_grad()
def test_small_entries_beside_large_ones_survive(data_config, tmp_path):
    """LinformerParT's projections start with ones and zeros, and learn numbers of 0.001."""
    model = build("LinformerParT", data_config, **SMALL)
    for name, parameter in model.named_parameters():
        if name.endswith("proj_k"):
            parameter += 0.001 * torch.randn_like(parameter)
    fast = jetzoo.accelerate(model, "int8", method="weight-only")
    path = tmp_path / "int8.pt"
    file.save(fast, path, "LinformerParT", data_config, SMALL)
    expected = {k: v for k, v in model.state_dict().items() if k.endswith("proj_k")}
    for engine in (fast.network.engine, jetzoo.load(path).model.network.engine):
        found = [v for k, v in engine.state_dict().items() if k.endswith("proj_k")]
        assert len(found) == len(expected) > 0
        for value, exact in zip(found, expected.values(), strict=True):
            torch.testing.assert_close(value, exact, atol=1e-6, rtol=1e-3)
