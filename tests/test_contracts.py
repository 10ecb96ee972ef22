"""What every network of the zoo promises, checked on every file of `networks/`."""

import numpy as np
import onnxruntime
import pytest
import torch
from jets import make_jets, repad
from zoo import NETWORKS, SIZES, VARIANTS, build, rounded

from jetzoo import plugin
from jetzoo.repository import network_module

pytestmark = pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*legacy.*")


def assert_same(actual, expected, tolerance=1e-5):
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=1e-5)


@pytest.fixture(params=[*NETWORKS, *VARIANTS], scope="module")
def name(request):
    return request.param


@pytest.fixture(scope="module")
def model(name, data_config):
    return build(name, data_config)


@torch.no_grad()
def test_a_jet_is_alone(model):
    jets = make_jets((40, 7, 61, 1, 18))
    together = model(*jets)
    assert together.shape == (5, 2)
    assert together.std() > 1e-3
    assert_same(model(*jets), together, 0)
    for i in range(len(together)):
        assert_same(model(*(x[i : i + 1] for x in jets)), together[i : i + 1])


@torch.no_grad()
@pytest.mark.parametrize("filling", [0.0, float("nan"), float("inf"), -float("inf"), 1e30])
def test_padding_does_not_matter(model, filling):
    jets = make_jets((40, 7, 61, 1, 0))
    expected = model(*jets)
    assert expected.isfinite().all()
    assert_same(model(*repad(jets, filling=filling)), expected)
    assert_same(model(*repad(jets, 128, filling)), expected)
    assert_same(model(*repad(jets, 150, filling)), expected)


@torch.no_grad()
def test_order_of_particles_does_not_matter(model):
    jets = make_jets((40, 7, 61, 30), length=64)
    order = torch.stack([torch.randperm(64) for _ in range(4)])
    shuffled = [x.gather(2, order[:, None].expand_as(x)) for x in jets]
    assert_same(model(*shuffled), model(*jets), 5e-5)


@torch.no_grad()
@pytest.mark.parametrize("counts", [(0,), (1,), (0, 0), (300, 5), (129, 128, 127)])
def test_any_number_of_particles(model, counts):
    scores = model(*make_jets(counts))
    assert scores.shape == (len(counts), 2)
    assert scores.isfinite().all()


@torch.no_grad()
def test_long_jets_do_not_change_the_others(model):
    short = make_jets((12, 90), length=300)
    long = make_jets((300,), length=300, seed=5)
    together = model(*(torch.cat(pair) for pair in zip(short, long, strict=True)))
    assert_same(together[:2], model(*repad(short, 128)))


def test_every_parameter_gets_a_gradient(name, data_config):
    model = build(name, data_config).train()
    jets = make_jets((40, 7, 61, 33))
    loss = plugin.get_loss(data_config)(
        model(*repad(jets, 128, float("nan"))), torch.tensor([0, 1, 0, 1])
    )
    loss.backward()
    without = [n for n, p in model.named_parameters() if p.grad is None]
    assert not without
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_learns(name, data_config):
    """To tell narrow from wide jets, of which it has not seen those that it is tested on."""
    sizes = SIZES.get(name.split()[0], {})
    model = build(name, data_config, **sizes | ({"num_layers": 1} if "num_layers" in sizes else {}))
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    rng = np.random.default_rng(3)

    def batch(size, seed):
        labels = torch.arange(size) % 2
        spread = np.where(labels == 0, 0.1, 0.3)
        return make_jets(rng.integers(10, 20, size), length=20, seed=seed, spread=spread), labels

    for step in range(40):
        jets, labels = batch(32, seed=step)
        loss = plugin.get_loss(data_config)(model(*jets), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    jets, labels = batch(200, seed=1000)
    with torch.no_grad():
        right = (model.eval()(*jets).argmax(1) == labels).float().mean()
    assert right > 0.95


def test_bf16_autocast(name, data_config):
    model = build(name, data_config)
    jets = make_jets((40, 7, 61, 0, 25, 33, 12, 50))
    with torch.no_grad():
        expected = model(*jets)
        with torch.autocast("cpu", torch.bfloat16):
            scores = model(*jets).float()
        least = (rounded(model)(*jets) - expected).abs().max()
    assert 0 < (scores - expected).abs().max() < 5 * least
    with torch.autocast("cpu", torch.bfloat16):
        loss = model.train()(*jets).float().logsumexp(1).sum()
    loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@torch.no_grad()
def test_for_inference_gives_probabilities(name, model, data_config):
    network = build(name, data_config, for_inference=True)
    network.load_state_dict(model.state_dict())
    jets = make_jets((40, 7, 61, 0, 140))
    probabilities = network(*repad(jets, filling=float("nan")))
    assert_same(probabilities, model(*jets).softmax(1))
    assert_same(probabilities.sum(1), torch.ones(5))


def export(network, path, data_config, opset):
    info = plugin.model_info(data_config)
    # What weaver's --export-onnx does: ones, two jets.
    ones = tuple(torch.ones(2, *info["input_shapes"][key][1:]) for key in info["input_names"])
    torch.onnx.export(
        network,
        ones,
        path,
        input_names=info["input_names"],
        output_names=info["output_names"],
        dynamic_axes=info["dynamic_axes"],
        opset_version=opset,
        dynamo=False,
    )
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert [x.name for x in session.get_inputs()] == info["input_names"]
    return lambda jets: torch.from_numpy(
        session.run(None, dict(zip(info["input_names"], map(np.asarray, jets), strict=True)))[0]
    )


@torch.no_grad()
@pytest.mark.filterwarnings("ignore")
def test_onnx(name, data_config, tmp_path):
    network = build(name, data_config, for_inference=True)
    path = str(tmp_path / "network.onnx")
    run = export(network, path, data_config, 15)
    for counts, length in (((40, 7, 61, 1, 0), 128), ((3,), 12), ((140, 20), 150)):
        jets = repad(make_jets(counts), length)
        assert_same(run(jets), network(*jets), 1e-4)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n == "ParT" else pytest.mark.slow) for n in NETWORKS]
)
def test_compile(name, data_config):
    small = {"num_layers": 1, "num_cls_layers": 1} if "ParT" in name else {}
    model = build(name, data_config, **small)
    torch._dynamo.reset()
    compiled = torch.compile(model)
    for counts in ((40, 7, 61, 33), (30, 5, 52, 21)):
        jets = make_jets(counts, length=128)
        with torch.no_grad():
            assert_same(compiled(*jets), model(*jets), 1e-4)


def test_unknown_option_is_an_error(name, data_config):
    with pytest.raises(ValueError, match="no option 'num_layer'.*its options are"):
        build(name, data_config, num_layer=3)
    build(name, data_config, use_amp=True, compile_model=False)


def test_network_file_defines_what_weaver_asks_for(name, data_config):
    module = network_module(name.split()[0])
    _, info = module.get_model(data_config)
    assert info["input_names"] == ["pf_points", "pf_features", "pf_vectors", "pf_mask"]
    assert info["input_shapes"]["pf_features"] == (1, 7, 128)
    assert info["dynamic_axes"]["pf_mask"] == {0: "N", 2: "n_pf"}
    loss = module.get_loss(data_config, use_amp=False)
    assert loss(torch.zeros(3, 2), torch.tensor([0, 1, 1])).item() == pytest.approx(np.log(2))
