"""Groups of inputs in any order, under other names, in several collections: on every path."""

import copy
import pickle
import warnings

import awkward as ak
import handmade
import numpy as np
import pytest
import torch
import yaml
from weaver.nn.model.ParticleTransformer import ParticleTransformerTagger
from weaver.train import flops
from weaver.utils.data.config import DataConfig
from zoo import CONFIG, NETWORKS, SIZES, SMALL, build, stir

import jetzoo
from jetzoo import cli, data_config, groups, repository
from jetzoo.metrics.predictions import read_predictions

# pf of the data set, whose jets also have secondary vertices here.
SV = ("px", "py", "pz", "energy")


def content(**changes):
    """The data config of quark and gluon jets with other groups of inputs."""
    found = yaml.safe_load(CONFIG.read_text())
    inputs = found["inputs"]
    changes = {name: inputs.get(x, x) if isinstance(x, str) else x for name, x in changes.items()}
    return {**found, "inputs": changes}


def group(*names, length=128, pad_mode="constant"):
    return {"length": length, "pad_mode": pad_mode, "vars": list(names)}


SHUFFLED = {
    "pf_mask": "pf_mask",
    "jet": group("jet_pt", "jet_energy", length=None),
    "pf_p4": "pf_vectors",
    "pf_fts": "pf_features",
    "pf_coords": "pf_points",
}
TWO = {
    "pf_features": "pf_features",
    "sv_mask": group("sv_mask", length=8),
    "sv_features": group("sv_pt_log", "sv_deta", length=8),
    "sv_vectors": group(*(f"sv_{x}" for x in SV), length=8),
    "pf_vectors": "pf_vectors",
    "pf_mask": "pf_mask",
}
SV_VARIABLES = {"sv_mask": "ak.ones_like(sv_px)", "sv_pt_log": "np.log(np.hypot(sv_px, sv_py))"}


def write_config(folder, inputs, **others):
    found = content(**inputs)
    found.update(others)
    if "sv_mask" in inputs:
        found["new_variables"] = {**found["new_variables"], **SV_VARIABLES}
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(found, sort_keys=False))
    return path


@pytest.fixture
def jets():
    """Jets of quarks and gluons with up to three secondary vertices."""
    rng = np.random.default_rng(3)
    jets = handmade.particles((12, 0, 1, 30, 140, 7), rng)
    jets["label"] = np.array([0, 1, 0, 1, 0, 1])
    counts = (2, 0, 1, 3, 0, 1)
    columns = {name: rng.normal(0, 2, sum(counts)) for name in (*SV, "deta")}
    columns["energy"] = np.sqrt(4 + sum(columns[x] ** 2 for x in SV[:3]))
    return {**jets, **{f"sv_{x}": ak.unflatten(v, counts) for x, v in columns.items()}}


@pytest.fixture
def table(jets):
    return ak.Array(jets)


def usual_and_shuffled(name, folder, table, **inputs):
    """The same network for the usual data config and for another, and the inputs of both."""
    models = build(name, **SIZES.get(name, {})), None
    stir(models[0])
    config = data_config.read(write_config(folder, inputs or SHUFFLED))
    models = models[0], build(name, config, **SIZES.get(name, {}))
    models[1].load_state_dict(models[0].state_dict(), strict=True)
    configs = data_config.read("QuarkGluon/qg_kin"), config
    found = [tuple(map(torch.from_numpy, data_config.Inputs(x)(table).values())) for x in configs]
    return models, found


def close(found, expected, tolerance=1e-5):
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=1e-5, equal_nan=True)


@torch.no_grad()
@pytest.mark.parametrize("name", NETWORKS)
def test_groups_come_in_any_order(name, tmp_path, table, caplog):
    (usual, shuffled), (inputs, others) = usual_and_shuffled(name, tmp_path, table)
    expected = usual(*inputs)
    close(shuffled(*others), expected)
    close(copy.deepcopy(shuffled)(*others), expected)
    close(pickle.loads(pickle.dumps(shuffled))(*others), expected)
    close(torch.nn.DataParallel(shuffled)(*others), expected)
    expected = jetzoo.accelerate(usual)(*inputs)
    warned = caplog.text
    caplog.clear()
    close(jetzoo.accelerate(shuffled)(*others), expected)
    assert ("no fast form" in caplog.text) == ("no fast form" in warned)
    with pytest.raises(ValueError, match="pf_mask, jet, pf_p4, pf_fts, pf_coords: 5 inputs, not 4"):
        shuffled(*others[:4])


@pytest.mark.parametrize("name", ["ParT", "PN-FineTune"])
def test_int8_takes_the_same_inputs(name, tmp_path, table):
    (usual, shuffled), (inputs, others) = usual_and_shuffled(name, tmp_path, table)
    for method in ("static", "dynamic"):
        first, second = (
            jetzoo.accelerate(model, "int8", calibration=given, method=method)
            for model, given in ((usual, inputs), (shuffled, others))
        )
        assert first.is_int8 and second.is_int8
        close(second(*others), first(*inputs))


def test_missing_points_are_those_that_a_network_does_not_use(tmp_path, table):
    inputs = {name: name for name in ("pf_features", "pf_vectors", "pf_mask")}
    (usual, other), (four, three) = usual_and_shuffled("ParT", tmp_path, table, **inputs)
    assert len(three) == 3
    with torch.no_grad():
        close(other(*three), usual(*four))
        close(jetzoo.accelerate(other)(*three), usual(*four))
    config = data_config.read(tmp_path / "config.yaml")
    with pytest.raises(jetzoo.UserError, match=r"config.yaml: .*no group pf_points.*ParticleNet"):
        repository.build_network("PN", config)
    config = data_config.read(write_config(tmp_path, {k: k for k in ("pf_features", "pf_mask")}))
    repository.build_network("PFN", config)
    with pytest.raises(jetzoo.UserError, match="no group pf_vectors"):
        repository.build_network("ParT", config)


@pytest.mark.parametrize(
    "inputs, message",
    [
        ({"pf_features": "pf_features"}, "no group pf_vectors, the four-vectors that MambaParT"),
        ({"pf_mask": "pf_mask", "pf_points": "pf_points"}, "no group pf_features"),
        (
            {**SHUFFLED, "pf_features": group("part_d0val")},
            "pf_fts and pf_features are both",
        ),
        (
            {**SHUFFLED, "pf_p4": group("part_px", pad_mode="wrap")},
            "pf_p4 has 1 variables",
        ),
        (
            {**SHUFFLED, "pf_mask": group("part_charge", length=64)},
            "pf_mask is padded to 64",
        ),
        ({**SHUFFLED, "sv_mask": group("sv_px")}, "MambaParT takes one coll.*has 2: pf, sv"),
        ({"jet": group("jet_pt", length=None)}, "no group of features"),
    ],
)
def test_what_a_network_cannot_take_is_named(inputs, message, tmp_path):
    config = data_config.read(write_config(tmp_path, inputs))
    with pytest.raises(jetzoo.UserError, match=message) as error:
        repository.build_network("MambaParT", config)
    assert str(tmp_path / "config.yaml") in str(error.value)


def test_names_of_groups():
    assert groups.kind("pf_lorentz_vectors") == ("pf", "lorentz_vectors")
    assert groups.kind("my_sv_p4") == ("my_sv", "lorentz_vectors")
    assert groups.kind("mask") == ("", "mask")
    assert groups.kind("jet_scalars") == ("jet", None)


def test_weaver_counts_operations(tmp_path):
    config = DataConfig.load(write_config(tmp_path, SHUFFLED))
    model, info = repository.build_network("ParT", config, **SMALL)
    assert info["input_shapes"]["jet"] == (1, 2) and info["input_names"][0] == "pf_mask"
    assert info["dynamic_axes"]["pf_p4"] == {0: "N", 2: "n_pf"}
    flops(model, info)


@pytest.mark.parametrize(
    "name, inputs", [("ParT", SHUFFLED), ("PN-FineTune", SHUFFLED), ("ParT", TWO)]
)
def test_onnx_has_the_inputs_of_the_data_config(name, inputs, tmp_path, table):
    """As weaver exports it, with inputs that the network does not look at."""
    ort = pytest.importorskip("onnxruntime")
    config = data_config.read(write_config(tmp_path, inputs))
    options = {**SIZES[name], "seed": 1}
    model, _ = repository.build_network(name, config, **options)
    twin, info = repository.build_network(name, config, for_inference=True, **options)
    axes = info["dynamic_axes"]
    ones = tuple(
        torch.ones([2 if axis in axes[group] else n for axis, n in enumerate(shape)])
        for group, shape in info["input_shapes"].items()
    )
    path = str(tmp_path / "net.onnx")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tracing
        torch.onnx.export(
            twin.eval(),
            ones,
            path,
            input_names=info["input_names"],
            output_names=info["output_names"],
            dynamic_axes=axes,
            opset_version=17,
            dynamo=False,
        )
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert [x.name for x in session.get_inputs()] == list(inputs)
    given = data_config.Inputs(config)(table)
    (found,) = session.run(None, given)
    with torch.no_grad():
        expected = model.eval()(*map(torch.from_numpy, given.values())).softmax(1)
    close(torch.from_numpy(found), expected)


@pytest.mark.slow
def test_arranged_networks_compile(tmp_path, table):
    (_, model), (_, inputs) = usual_and_shuffled("ParT", tmp_path, table)
    seen = []

    def backend(graph, _):
        seen.append(graph)
        return graph.forward

    compiled = torch.compile(model.eval(), backend=backend)
    with torch.no_grad():
        close(compiled(*inputs), model(*inputs))
    assert seen


# Several collections


@pytest.fixture
def two(tmp_path):
    """ParT of two collections, and its data config."""
    config = data_config.read(write_config(tmp_path, TWO))
    return stir(build("ParT", config, **SMALL)), config


def test_two_collections_have_the_weights_of_weaver(two, table):
    model, config = two
    options = {**SMALL, "use_pre_activation_pair": False, "fc_params": []}
    weaver = ParticleTransformerTagger(7, 2, 2, **options).eval()
    state = {name.removeprefix("mod."): x for name, x in model.state_dict().items()}
    weaver.load_state_dict(state, strict=True)
    inputs = {k: torch.from_numpy(x) for k, x in data_config.Inputs(config)(table).items()}
    order = [f"{x}_{kind}" for x in ("pf", "sv") for kind in ("features", "vectors", "mask")]
    some = torch.tensor([True, False, True, True, True, True])  # weaver gives NaN for none
    with torch.no_grad():
        expected = weaver.double()(*(inputs[name][some].double() for name in order))
        found = model(*inputs.values())
        exact = copy.deepcopy(model).double()(*(x.double() for x in inputs.values()))
        close(exact[some], expected)
        fast = jetzoo.accelerate(model)
        assert fast.kernels is not None  # it is not the network as it is
        close(fast(*inputs.values()), found)


OPTIONS = [x for k, v in SMALL.items() for x in ("--network-option", k, repr(v))]


def write_sets(folder, jets):
    path = folder / "jets.parquet"
    ak.to_parquet(ak.Array(jets), path)
    return path


@pytest.fixture
def command(capsys):
    """Run a command of jetzoo; the exit code and what it prints to stderr."""

    def command(*words):
        code = cli.main([str(word) for word in words])
        return code, capsys.readouterr().err

    return command


def test_two_collections_from_the_checkpoint_to_int8(two, tmp_path, jets, command):
    model, config = two
    checkpoint, file = tmp_path / "net_best_epoch_state.pt", write_sets(tmp_path, jets)
    torch.save(model.state_dict(), checkpoint)
    yaml_file = tmp_path / "config.yaml"
    tagger = jetzoo.load("ParT", checkpoint, yaml_file, **SMALL)
    scores = tagger.predict(ak.Array(jets))
    assert np.isfinite(scores).all() and scores.std() > 1e-3
    fast = jetzoo.load("ParT", checkpoint, yaml_file, fast=True, **SMALL)
    np.testing.assert_allclose(fast.predict(ak.Array(jets)), scores, atol=1e-5)
    trained = ["--checkpoint", checkpoint, "--data-config", yaml_file, *OPTIONS]
    output = tmp_path / "p.root"
    code, error = command("predict", "ParT", *trained, file, "--output", output)
    assert code == 0, error
    np.testing.assert_allclose(read_predictions([output])[1], scores, atol=1e-5)
    int8 = tmp_path / "int8.pt"
    words = ("--calibration", file, "--data", file, "--output", int8)
    code, error = command("quantize", "ParT", *trained, *words)
    assert code == 0, error
    np.testing.assert_allclose(jetzoo.load(int8).predict(ak.Array(jets)), scores, atol=0.05)
    tuned, _ = repository.build_network("ParT-FineTune", config, **SMALL)
    tuned.load_state_dict(torch.load(checkpoint, weights_only=True))
    tuned = tuned.eval()
    inputs = [torch.from_numpy(x) for x in tagger.inputs(ak.Array(jets)).values()]
    with torch.no_grad():
        close(jetzoo.accelerate(tuned)(*inputs), tuned(*inputs))


@pytest.mark.slow
def test_attention_and_profile_of_two_collections(two, tmp_path, jets, command):
    file = write_sets(tmp_path, jets)
    words = ["ParT", "--data-config", tmp_path / "config.yaml", *OPTIONS, "--data", file]
    folder = tmp_path / "profile"
    code, error = command(
        "profile", *words, "--repeats", 1, "--batch-size", 2, "--fast", "--out", folder
    )
    assert code == 0 and (folder / "index.html").exists(), error
    torch.save(two[0].state_dict(), tmp_path / "net.pt")
    code, error = command("attention", *words, "--checkpoint", tmp_path / "net.pt")
    assert code == 2 and "one collection of particles" in error
