"""The fast engine: the same answers as the network it was made from."""

import argparse
import copy
import logging

import awkward as ak
import handmade
import numpy as np
import pytest
import torch
from conftest import ROOT
from jets import make_jets, repad
from weaver.nn.model.ParticleTransformer import ParticleTransformer as StockParT
from weaver.utils.data.config import DataConfig
from weaver.utils.dataset import SimpleIterDataset
from zoo import CONFIG, GRAPH, SMALL, UNBIASED, build, rounded, stir, without_kernels

import jetzoo
from jetzoo import cli, native
from jetzoo.engine import layers
from jetzoo.modules import only_looks
from jetzoo.repository import network_module

NETWORKS = {
    "ParT": SMALL,
    "ParT without bias": {**SMALL, "pair_bias": False},
    "ParT with a head": {**SMALL, "fc_params": ((24, 0.1),), "num_cls_layers": 1, "ffn_ratio": 2},
    "ParT for inference": {**SMALL, "for_inference": True},
    "ParT-FineTune": SMALL,
    "LinformerParT": SMALL,
    "LinformerParT with bias": {**SMALL, "pair_bias": "projected"},
    "ReformerParT": UNBIASED,
    "MambaParT": UNBIASED,
    "PFN": {},
    "PN": GRAPH,
    "PN-FineTune": GRAPH,
}


@pytest.fixture(params=NETWORKS, scope="module")
def model(request, data_config):
    return stir(build(request.param.split()[0], data_config, **NETWORKS[request.param]))


@pytest.fixture(params=["kernels", "pytorch"], scope="module")
def fast(request, model):
    if request.param == "kernels":
        return jetzoo.accelerate(model)
    return in_pytorch(model)


def in_pytorch(model):
    """The engine as it is where there is no compiler, and on a GPU."""
    with pytest.MonkeyPatch.context() as patch:
        without_kernels(patch)
        return jetzoo.accelerate(model)


def cut(fast, tokens, monkeypatch):
    """Let few tokens go through the network together."""
    for network in filter(None, (fast.network.network, fast.kernels)):
        monkeypatch.setattr(network, "tokens", tokens)


def check(fast, model, jets, tolerance=2e-5):
    with torch.no_grad():
        expected = model(*jets)
    logits = fast(*jets)
    assert logits.shape == expected.shape and logits.dtype == torch.float32
    torch.testing.assert_close(logits, expected, atol=tolerance, rtol=1e-5)


def test_many_lengths(model, fast):
    check(fast, model, make_jets((40, 7, 61, 1, 18, 0, 128, 0, 3, 64)))


def test_batches_longer_than_a_micro_batch(model, fast, monkeypatch):
    cut(fast, 64, monkeypatch)
    check(fast, model, make_jets(np.random.default_rng(3).integers(0, 40, 50)))


@pytest.mark.parametrize("counts", [(0,), (1,), (0, 0), (300, 2), (17,)])
def test_awkward_shapes(model, fast, counts):
    check(fast, model, make_jets(counts))


def test_no_jets(fast):
    logits = fast(*(x[:0] for x in make_jets((3,))))
    assert logits.shape == (0, 2)


def test_padding_does_not_matter(model, fast):
    jets = make_jets((40, 7, 61, 1, 18, 0))
    torch.testing.assert_close(fast(*repad(jets, 90, float("nan"))), fast(*jets), atol=1e-5, rtol=0)


def test_particles_anywhere(model, fast):
    jets = make_jets((40, 7, 61, 1, 18, 0))
    where = torch.from_numpy(np.random.default_rng(5).permutation(61))
    check(fast, model, [x[..., where] for x in repad(jets, filling=float("nan"))])


def test_the_model_is_left_alone(data_config):
    model = stir(build("ParT", data_config, **SMALL)).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fast = jetzoo.accelerate(model)
    jets = make_jets((5, 9))
    logits = fast(*jets)
    assert model.training and all(p.requires_grad for p in model.parameters())
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, before[name], atol=0, rtol=0)
    with torch.no_grad():
        model.mod.fc[0].bias += 1
    torch.testing.assert_close(fast(*jets), logits, atol=0, rtol=0)
    assert not logits.requires_grad and not logits.is_inference()


@pytest.mark.parametrize("accelerate", [jetzoo.accelerate, in_pytorch])
def test_number_of_threads_is_left_alone(data_config, monkeypatch, accelerate):
    fast = accelerate(build("ParT", data_config, **SMALL))
    cut(fast, 16, monkeypatch)
    threads = torch.get_num_threads()
    jets = make_jets((5, 9, 16, 16, 12))
    try:
        torch.set_num_threads(1)
        alone = fast(*jets)
        torch.set_num_threads(3)
        together = fast(*jets)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)
    torch.testing.assert_close(alone, together, atol=1e-6, rtol=0)


def test_long_jets_take_another_attention(data_config, monkeypatch):
    model = stir(build("ParT", data_config, **SMALL))
    fast = in_pytorch(model)
    jets = make_jets((30, 12))
    short = fast(*jets)
    monkeypatch.setattr(layers, "SHORT", 8)
    torch.testing.assert_close(fast(*jets), short, atol=1e-5, rtol=0)
    check(fast, model, jets)


def test_kernels_run_where_they_can(data_config, caplog):
    if native.load("part") is None:
        pytest.skip("there is no C++ compiler")
    assert jetzoo.accelerate(build("ParT", data_config, **SMALL)).kernels is not None
    with caplog.at_level(logging.INFO, "jetzoo"):
        jetzoo.accelerate(build("ParT", data_config, **{**SMALL, "num_heads": 8}))
    assert "not multiples of 8" in caplog.text


def test_kernels_can_be_copied(data_config):
    model = stir(build("ParT", data_config, **SMALL))
    fast, jets = jetzoo.accelerate(model), make_jets((30, 12))
    logits = fast(*jets)
    twin = copy.deepcopy(fast)
    del fast
    torch.testing.assert_close(twin(*jets), logits, atol=0, rtol=0)


def test_without_a_compiler(data_config, monkeypatch, caplog, tmp_path):
    model = stir(build("ParT", data_config, **SMALL))
    for compiler, complaint in (("false", "does not compile"), (None, "no C++ compiler")):
        with monkeypatch.context() as patch:
            native.load.cache_clear()
            if compiler:
                patch.setenv("CXX", compiler)
            else:
                patch.delenv("CXX", raising=False)
                patch.setenv("PATH", str(tmp_path))
            fast = jetzoo.accelerate(model)
        native.load.cache_clear()  # of what was not found
        assert complaint in caplog.text
        check(fast, model, make_jets((30, 12)))


def test_half_precision_is_close(data_config):
    model = stir(build("ParT", data_config, **SMALL))
    jets = make_jets((40, 7, 61, 1, 18))
    with torch.no_grad():
        expected = model(*jets)
        least = (rounded(model)(*jets) - expected).abs().max()
    logits = jetzoo.accelerate(model, "bf16")(*jets)
    assert 0 < (logits - expected).abs().max() < 5 * least


def test_unknown_precision(data_config):
    with pytest.raises(ValueError, match="precision is one of fp32, bf16, int8, not 'int3'"):
        jetzoo.accelerate(build("PFN", data_config), "int3")


def test_unknown_networks_run_as_they_are(data_config, caplog):
    model = build("PCNN", data_config)
    with caplog.at_level(logging.WARNING, "jetzoo"):
        fast = jetzoo.accelerate(model)
    assert "no fast form of" in caplog.text
    check(fast, model, make_jets((40, 7)), 0)


@pytest.mark.parametrize("name", ["ParT", "MambaParT"])
def test_known_networks_do_not_warn(data_config, caplog, name):
    with caplog.at_level(logging.WARNING, "jetzoo"):
        jetzoo.accelerate(build(name, data_config, **UNBIASED))
    assert not caplog.records


def stock_part(model, input_dim, num_classes):
    """weaver-core's own network with the weights of ours."""
    stock = StockParT(input_dim, num_classes, use_pre_activation_pair=False)
    stock.load_state_dict(model.mod.state_dict())
    return stock.eval()


@pytest.mark.parametrize("accelerate", [jetzoo.accelerate, in_pytorch])
def test_full_size_against_weaver(data_config, accelerate):
    model = stir(build("ParT", data_config))
    points, features, vectors, mask = make_jets((61, 40, 33, 18, 7, 1))
    with torch.no_grad():
        expected = stock_part(model, 7, 2)(features, vectors, mask)
    logits = accelerate(model)(points, features, vectors, mask)
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)


@pytest.mark.real
def test_real_jets_against_weaver(real_data):
    data_config = DataConfig.load(ROOT / "data" / "JetClass" / "JetClass_kin.yaml")
    model = stir(build("ParT", data_config))
    data = np.load(real_data / "jetclass_tops_100.npz")
    names = ("pf_points", "pf_features_kin", "pf_vectors", "pf_mask")
    jets = [torch.from_numpy(data[name].astype("float32")) for name in names]
    with torch.no_grad():  # in float32, weaver itself is off by 2e-3 on nearly collinear particles
        expected = stock_part(model, 7, 10).double()(*(x.double() for x in jets[1:])).float()
    torch.testing.assert_close(jetzoo.accelerate(model)(*jets), expected, atol=2e-5, rtol=0)


@pytest.fixture
def sample(tmp_path):
    """Jets, a data config and weights, as files."""
    handmade.write_parquet(
        tmp_path / "jets.parquet", (12, 3, 25, 0, 40, 7), np.random.default_rng(4)
    )
    model = stir(build("ParT", **SMALL))
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    return tmp_path


def test_weaver_predicts_with_it(sample, caplog):
    dataset = SimpleIterDataset(
        {"": [str(sample / "jets.parquet")]},
        str(CONFIG),
        for_training=False,
        fetch_by_files=True,
        fetch_step=1,
    )
    network = network_module("ParT")
    options = {**SMALL, "fast": True}
    model, _ = network.get_model(dataset.config, **options)
    model.load_state_dict(torch.load(sample / "weights.pt"))
    seen = []
    model.register_forward_hook(only_looks(lambda *args: seen.append(args)))
    scores = []
    for fast in (False, True):
        evaluate = network.get_evaluate_fn(dataset.config, **{**options, "fast": fast})
        arguments = {"args": argparse.Namespace(use_amp=False, amp_dtype="bf16")}
        loader = torch.utils.data.DataLoader(dataset, batch_size=4)
        scores.append(
            evaluate(
                model, loader, "cpu", None, for_training=False, tb_helper=None, extra_args=arguments
            )[1]
        )
        assert len(seen) == 2  # batches of the plain network
    np.testing.assert_allclose(scores[1], scores[0], atol=1e-5)


def test_command_line(sample, capsys):
    command = [
        "predict",
        "ParT",
        str(sample / "jets.parquet"),
        f"--checkpoint={sample / 'weights.pt'}",
        "--data-config=QuarkGluon/qg_kin",
    ]
    for name, value in SMALL.items():
        command += ["--network-option", name, repr(value)]
    for name, fast in (("plain", []), ("fast", ["--fast"])):
        assert cli.main([*command, f"--output={sample / name}.parquet", *fast]) == 0
    plain, fast = (ak.from_parquet(sample / f"{name}.parquet") for name in ("plain", "fast"))
    np.testing.assert_allclose(fast.scores.to_numpy(), plain.scores.to_numpy(), atol=1e-5)
