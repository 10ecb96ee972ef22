"""ONNX files that run without this project: any number of jets and particles, float32 and int8."""

import json

import handmade
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from jets import make_jets, repad
from zoo import CONFIG, SIZES, build, stir

import jetzoo
from jetzoo import UserError, cli
from jetzoo.export import OUTPUTS, conversion, export
from jetzoo.export.tracing import last_layer
from jetzoo.tagger import untrained

pytestmark = pytest.mark.filterwarnings("ignore")

# Options of small networks, which change what is computed.
OPTIONS = {
    "ParT": SIZES["ParT"],
    "ParT without pairs": {**SIZES["ParT"], "pair_bias": False},
    "ParT with another pair MLP": {
        **SIZES["ParT"],
        "remove_self_pair": True,
        "use_pre_activation_pair": True,
        "fc_params": ((24, 0.1),),
    },
    "ParT without an embedding": {**SIZES["ParT"], "embed_dims": None, "num_heads": 1},
    "ParT-FineTune": SIZES["ParT-FineTune"],
    "PN": {"conv_params": ((8, (16, 16)), (6, (16, 24, 16)))},
    "PN with fusion": {**SIZES["PN"], "use_fusion": True, "fc_params": ()},
    "PN-FineTune": SIZES["PN-FineTune"],
}


def tagger(name):
    """A small network in a tagger, and its options."""
    options = OPTIONS.get(name) or SIZES.get(name, {})
    found = untrained(name.split()[0], CONFIG, "cpu", **options)
    found.model.load_state_dict(stir(build(name.split()[0], **options)).state_dict())
    return found, options


def convert(name, output="probabilities", opset=17, int8=False):
    """A small network, and a function that runs its file."""
    found, options = tagger(name)
    model = conversion.convert(found, name.split()[0], output, opset, int8, options)
    return found.model, runner(model.SerializeToString()), model


def runner(file):
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    names = [x.name for x in session.get_inputs()]
    assert names == ["pf_points", "pf_features", "pf_vectors", "pf_mask"]

    def run(jets):
        (out,) = session.run(None, dict(zip(names, map(np.asarray, jets), strict=True)))
        return torch.from_numpy(out)

    return run


def expected(model, jets, output="probabilities"):
    """What PyTorch gives."""
    with torch.no_grad():
        logits, embedding, _ = last_layer(model, jets)
    return {"logits": logits, "embedding": embedding, "probabilities": logits.softmax(1)}[output]


CLOSE = {"atol": 1e-4, "rtol": 0}


def assert_same(found, wanted):
    torch.testing.assert_close(found, wanted, atol=2e-5, rtol=2e-5, equal_nan=True)


BATCHES = (((40, 7, 0, 30), 128), ((8,), 12), ((45, 150), 150), ((1,), 1))


@pytest.mark.parametrize("name", OPTIONS)
def test_any_number_of_jets_and_particles(name):
    model, run, _ = convert(name)
    for counts, length in BATCHES:
        jets = repad(make_jets(counts), length)
        assert_same(run(jets), expected(model, jets))
        assert_same(run(repad(jets, length + 9, float("nan"))), expected(model, jets))
    assert run([x[:0] for x in jets]).shape == (0, 2)


@pytest.mark.parametrize("name", ["ParT", "PN"])
def test_particles_may_stand_anywhere(name):
    model, run, _ = convert(name)
    jets = make_jets((40, 7), 50)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(3))
    assert_same(run([x[:, :, order] for x in jets]), expected(model, jets))


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("name", ["ParT", "ParT-FineTune", "PN", "PFN", "LinformerParT"])
def test_outputs(name, output):
    model, run, file = convert(name, output)
    name = "softmax" if output == "probabilities" else output
    assert [x.name for x in file.graph.output] == [name]
    jets = make_jets((20, 3, 0), 24)
    wanted = expected(model, jets, output)
    assert_same(run(jets), wanted)
    # A jet that is not finite gets no plausible number, and changes no other.
    for group, value in ((1, float("inf")), (1, float("nan"))):
        bad = [x.clone() for x in jets]
        bad[group][1, 0, 2] = value
        found = run(bad)
        assert found[1].isnan().all()
        assert_same(found[[0, 2]], wanted[[0, 2]])


@pytest.mark.parametrize("value", [float("inf"), -float("inf"), float("nan")])
def test_momenta_that_are_not_finite(value):
    _, run, _ = convert("ParT")
    jets = make_jets((20, 3), 24)
    for channel in range(4):
        bad = [x.clone() for x in jets]
        bad[2][1, channel, 2] = value
        assert run(bad).isnan().all(1).tolist() == [False, True]


def test_odd_momenta():
    model, run, _ = convert("ParT")
    jets = make_jets((12,) * 6, 12)
    vectors = jets[2]
    vectors[0, :3, 0] = 0  # at rest
    vectors[1, :2, :] = 0  # along the beam
    vectors[2, :, 1] = vectors[2, :, 0]  # twice the same
    vectors[3, 0], vectors[3, 1] = -vectors[3, 0].abs(), 0  # opposite to the x axis
    vectors[4, :2, ::2] *= -1  # back to back
    vectors[5] *= 1e4
    assert_same(run(jets), expected(model, jets))


@pytest.mark.parametrize("name", ["ParT", "PN"])
@pytest.mark.parametrize("opset", [13, 17])
def test_operators_are_standard(name, opset):
    model, run, file = convert(name, opset=opset)
    assert [(x.domain, x.version) for x in file.opset_import] == [("", opset)]
    assert {x.domain for x in file.graph.node} == {""}
    jets = make_jets((20, 3, 0), 24)
    assert_same(run(jets), expected(model, jets))


def test_a_network_with_a_change_of_its_own_is_traced():
    found, options = tagger("ParT")
    found.model.mod.blocks[0].register_forward_hook(lambda module, given, x: 2 * x)
    assert conversion.write(conversion.Graph(17), found, "logits") is None


@pytest.mark.parametrize("name", ["ParT", "ParT-FineTune", "PN", "PN-FineTune"])
def test_int8(name):
    model, run, file = convert(name, int8=True)
    sizes = {x.name: np.prod(x.dims) for x in file.graph.initializer if x.data_type == 3}
    if name.startswith("ParT"):
        matrices = [p for block in model.mod.blocks for p in block.parameters() if p.ndim == 2]
    else:
        matrices = [conv.weight for edges in model.mod.edge_convs for conv in edges.convs[1:]]
    assert sum(sizes.values()) >= sum(p.numel() for p in matrices) > 0
    for counts, length in BATCHES:
        jets = repad(make_jets(counts), length)
        difference = (run(jets) - expected(model, jets)).abs()
        assert 0 < difference.max() < 0.1
        # What stands in the padding does not matter.
        assert torch.equal(run(repad(jets, length + 9, float("nan"))), run(jets))


@pytest.mark.parametrize("name", ["PFN", "LinformerParT"])
def test_int8_is_refused_where_there_is_none(name):
    with pytest.raises(UserError, match=f"{name} has no int8 form in ONNX: leave out --int8"):
        convert(name, int8=True)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Weights of a small ParT."""
    path = tmp_path_factory.mktemp("export") / "net.pt"
    torch.save(tagger("ParT")[0].model.state_dict(), path)
    return path


def test_the_file_describes_itself(weights, tmp_path):
    path = tmp_path / "new" / "net.onnx"
    export("ParT", weights, CONFIG, path, int8=True, output="logits", **OPTIONS["ParT"])
    config = jetzoo.data_config.read(CONFIG)
    config.export_json(tmp_path / "weaver.json")
    assert (path.parent / "preprocess.json").read_text() == (tmp_path / "weaver.json").read_text()
    assert sorted(x.name for x in path.parent.iterdir()) == ["net.onnx", "preprocess.json"]
    found = {x.key: x.value for x in onnx.load(path).metadata_props}
    assert found["jetzoo"] == jetzoo.__version__
    assert found["network"] == "ParT" and found["output"] == "logits"
    assert found["precision"] == "int8" and "card" not in found
    assert json.loads(found["classes"]) == config.label_value
    inputs = json.loads(found["inputs"])
    assert {name: list(x) for name, x in inputs.items()} == config.input_dicts
    assert inputs["pf_features"]["part_pt_log"]["center"] == 1.7
    assert inputs["pf_mask"]["part_mask"]["pad_mode"] == "constant"
    assert json.loads(found["data_config"])["inputs"].keys() == inputs.keys()


def test_a_card_is_in_the_file(tmp_path, capsys):
    path = tmp_path / "net.onnx"
    assert cli.main(["export", "PFN_QuarkGluon_kin", "--onnx", str(path)]) == 0
    assert capsys.readouterr().out == f"wrote {path}, and preprocess.json beside it\n"
    found = {x.key: x.value for x in onnx.load(path).metadata_props}
    assert json.loads(found["card"]) == jetzoo.models.read_cards()["PFN_QuarkGluon_kin"]
    jets = handmade.write_parquet(tmp_path / "j.parquet", [30, 7, 50], np.random.default_rng(4))
    pfn = jetzoo.load("PFN_QuarkGluon_kin")
    jets = jetzoo.tables.read(tmp_path / "j.parquet", pfn.branches)
    inputs = [torch.from_numpy(x) for x in pfn.inputs(jets).values()]
    assert_same(runner(str(path))(inputs), torch.from_numpy(pfn.predict(jets)))


def test_a_wrong_graph_is_no_file(weights, tmp_path, monkeypatch):
    def attention(graph, folded, x, *others, right=conversion.transformer.attention):
        return graph("Neg", right(graph, folded, x, *others))

    monkeypatch.setattr(conversion.transformer, "attention", attention)
    with pytest.raises(UserError, match="net.onnx is not written: .* off, and PyTorch differ by"):
        export("ParT", weights, CONFIG, tmp_path / "net.onnx", output="logits", **OPTIONS["ParT"])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "words, message",
    [
        (["--onnx", "net.pt"], "should end in .onnx"),
        (["--onnx", "net.onnx", "--opset", "18"], "The opset is one of 13 ... 17, not 18"),
        (["--onnx", "net.onnx", "--output", "scores"], "The output is one of probabilities, lo"),
    ],
)
def test_misuse(words, message, weights, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = ["export", "ParT", f"--checkpoint={weights}", f"--data-config={CONFIG}"]
    assert cli.main(given + words) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_weights_of_another_network(weights, tmp_path):
    with pytest.raises(UserError, match="does not fit PN"):
        export("PN", weights, CONFIG, tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.real
@pytest.mark.parametrize("card", ["ParT_full", "ParT_kin", "ParticleNet_kin"])
def test_logits_of_published_jets(real_data, card):
    found = jetzoo.load(card, device="cpu")
    network, _, _ = jetzoo.models.find(card)
    run = runner(conversion.convert(found, network, "logits", 17, False, {}).SerializeToString())
    features = "kin" if card.endswith("kin") else "full"
    with np.load(real_data / "jetclass_tops_100.npz") as file:
        names = ("pf_points", f"pf_features_{features}", "pf_vectors", "pf_mask")
        jets = [torch.from_numpy(file[name].astype(np.float32)) for name in names]
    for rows in (slice(0, 1), slice(1, 100)):
        some = [x[rows] for x in jets]
        torch.testing.assert_close(run(some), expected(found.model, some, "logits"), **CLOSE)
