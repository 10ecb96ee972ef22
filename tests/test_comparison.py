"""float32 and int8 side by side: by weaver's loop, by the command line, and for many classes."""

import argparse
import json

import awkward as ak
import handmade
import numpy as np
import pytest
import torch
from conftest import ROOT
from jets import make_jets
from weaver.utils.dataset import SimpleIterDataset
from zoo import CONFIG, build, stir

import jetzoo
from jetzoo import UserError, cli, comparison, data_config
from jetzoo.engine.folding import freeze
from jetzoo.int8 import layers, quantize, tuning
from jetzoo.repository import network_module
from jetzoo.tagger import Tagger

SMALL = {"embed_dims": (32, 64, 32), "num_heads": 4, "num_layers": 1, "num_cls_layers": 1}


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sample")
    rng = np.random.default_rng(4)
    for name in ("val", "test"):
        handmade.write_parquet(folder / f"{name}.parquet", rng.integers(1, 40, 60), rng)
    torch.save(model().state_dict(), folder / "weights.pt")
    return folder


def model():
    return stir(build("ParT", **SMALL))


def labels_of(count):
    """As `handmade` writes: 1, 0, 1, ...; quarks are class 0."""
    return np.arange(count) % 2


def command(folder, output, *more, network="ParT", calibration="val.parquet"):
    words = ["quantize", network, f"--checkpoint={folder / 'weights.pt'}"]
    for key, value in SMALL.items():
        words += ["--network-option", key, repr(value)]
    words += [f"--data-config={CONFIG}", f"--data={folder / 'test.parquet'}"]
    return [*words, f"--calibration={folder / calibration}", f"--output={output}", *more]


@pytest.mark.parametrize("method", quantize.METHODS)
def test_command_line(sample, tmp_path, capsys, method):
    output = tmp_path / "new" / "int8.pt"
    assert cli.main(command(sample, output, "--method", method)) == 0
    printed = capsys.readouterr().out
    for word in ("accuracy", "AUC", "rejection at 50%", "rejection at 30%", "file [MB]", "jets/s"):
        assert word in printed
    found = json.loads(output.with_suffix(".json").read_text())
    assert found["method"] == method and found["network"] == "ParT" and not found["qat"]
    assert found["int8"]["num_jets"] == 60
    assert found["int8"]["megabytes"] == output.stat().st_size / 1e6
    assert 0 < found["largest_difference"] < 0.1

    # What is printed is what the two networks say.
    jets = jetzoo.load(output)
    table = jetzoo.tables.read(sample / "test.parquet", jets.branches)
    accuracy = np.mean(jets.predict(table).argmax(1) == labels_of(60))
    assert found["int8"]["accuracy"] == pytest.approx(accuracy)
    tagger = jetzoo.load("ParT", sample / "weights.pt", CONFIG, "cpu", **SMALL)
    accuracy = np.mean(tagger.predict(table).argmax(1) == labels_of(60))
    assert found["float32"]["accuracy"] == pytest.approx(accuracy)


@pytest.mark.parametrize(
    "more, options, message",
    [
        (["--method", "int4"], {}, "static, dynamic, weight-only, not 'int4'"),
        (["--device", "cuda"], {}, "cannot be used|CPU"),
        ([], {"network": "PN"}, "does not fit|no option"),
        ([], {"calibration": "none.parquet"}, "no file"),
        ([], {"calibration": "nan.parquet"}, "NaN or infinite in part_deta"),
        ([], {"calibration": "empty.parquet"}, "no jets to calibrate with"),
    ],
)
def test_misuse(sample, tmp_path, capsys, more, options, message):
    rng = np.random.default_rng(0)
    jets = handmade.write_parquet(sample / "nan.parquet", [9] * 60, rng)
    jets["part_deta"] = jets["part_deta"] * np.nan
    ak.to_parquet(ak.Array(jets), sample / "nan.parquet")
    ak.to_parquet(ak.Array(jets)[:0], sample / "empty.parquet")
    assert cli.main(command(sample, tmp_path / "int8.pt", *more, **options)) == 2
    error = capsys.readouterr().err
    assert any(part in error for part in message.split("|")), error
    assert not list(tmp_path.iterdir())


def weaver_run(files, settings, options, config=CONFIG, network="ParT", state=None):
    """What weaver does with ``--predict``: one call per group of files."""
    module = network_module(network)
    read = data_config.read(config)
    built, _ = module.get_model(read, **options, quantize=settings)
    if state is not None:
        built.load_state_dict(state)
    evaluate = module.get_evaluate_fn(read, **options, quantize=settings, use_amp=False)
    results = []
    for name, paths in files.items():
        dataset = SimpleIterDataset(
            {name: [str(p) for p in paths]},
            str(config),
            for_training=False,
            fetch_by_files=True,
            fetch_step=1,
        )
        loader = torch.utils.data.DataLoader(dataset, batch_size=16)
        extra = {"args": argparse.Namespace(use_amp=False, amp_dtype="bf16")}
        extra |= {"test_loaders": files, "name": name}
        results.append(
            evaluate(
                built, loader, "cpu", None, for_training=False, tb_helper=None, extra_args=extra
            )
        )
    return built, results


def test_weaver_compares(sample, tmp_path, capsys):
    settings = {
        "method": "static",
        "network": "ParT",
        "output": str(tmp_path),
        "calibration": [str(sample / "v*.parquet")],
        "qat": False,
    }
    state = torch.load(sample / "weights.pt")
    built, results = weaver_run({"": [sample / "test.parquet"]}, settings, SMALL, state=state)
    found = json.loads((tmp_path / "net_int8.json").read_text())
    scores = results[0][1]
    assert found["float32"]["accuracy"] == np.mean(scores.argmax(1) == labels_of(60))
    assert "float32" in capsys.readouterr().out
    tagger = jetzoo.load(tmp_path / "net_int8.pt")
    table = jetzoo.tables.read(sample / "test.parquet", tagger.branches)
    difference = np.abs(tagger.predict(table) - scores).max()
    assert found["largest_difference"] == pytest.approx(difference, rel=1e-3)


def test_weaver_compares_all_classes_at_once(tmp_path, capsys):
    config = ROOT / "data" / "JetClass" / "JetClass_kin.yaml"
    rng = np.random.default_rng(1)
    files = {}
    for label, name in enumerate(("ZJetsToNuNu", "HToBB", "TTBar")):
        path = tmp_path / f"{name}.root"
        handmade.write_root(path, rng.integers(3, 30, 40), rng, np.full(40, (0, 1, 8)[label]))
        files[name] = [path]
    settings = {
        "method": "dynamic",
        "network": "PFN",
        "output": str(tmp_path / "out"),
        "calibration": [str(tmp_path / "*.root")],
        "qat": False,
    }
    weaver_run(files, settings, {}, config, "PFN")
    assert capsys.readouterr().out.count("accuracy") == 1
    found = json.loads((tmp_path / "out" / "net_int8.json").read_text())
    assert found["int8"]["num_jets"] == 120
    assert {row["signal"] for row in found["int8"]["rejections"]} == {"label_Hbb", "label_Tbqq"}


def test_weaver_stops_with_a_sentence(sample, tmp_path, capsys):
    settings = {
        "method": "static",
        "network": "ParT",
        "output": str(tmp_path / "out"),
        "calibration": [str(tmp_path / "none*.parquet")],
        "qat": False,
    }
    with pytest.raises(SystemExit) as stop:
        weaver_run({"": [sample / "test.parquet"]}, settings, SMALL)
    assert stop.value.code == 2
    assert "no files to calibrate with" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_bounds():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 4000)
    p = 1 / (1 + np.exp(-(1 - 2 * labels) - rng.normal(0, 1, 4000)))
    scores = np.stack((p, 1 - p), 1)
    classes = ["jet_isQ", "jet_isG"]
    assert comparison.metrics(labels, (scores, scores), classes)["within_bounds"] is True
    noisy = 1 / (1 + np.exp(-np.log(p / (1 - p)) - rng.normal(0, 1, 4000)))
    worse = np.stack((noisy, 1 - noisy), 1)
    found = comparison.metrics(labels, (scores, worse), classes)
    assert found["within_bounds"] is False
    found["int8"]["jets_per_second"], found["float32"]["jets_per_second"] = 1, 2
    assert ["smaller file" in n for n in comparison.notes(found)] == [True, False]
    labels[:] = 0
    assert comparison.metrics(labels, (scores, worse), classes)["within_bounds"] is None


def test_fine_tuning_makes_up_for_the_rounding(monkeypatch):
    """With coarse weights: nearer to the float32 network, on jets that it has not seen."""

    def coarse(weight):
        weight = weight.detach().float()
        scale = weight.abs().amax(1).clamp(min=1e-30) / 7
        return (weight / scale[:, None]).round(), scale

    for module in (layers, quantize, tuning):
        monkeypatch.setattr(module, "round_rows", coarse)
    monkeypatch.setattr(tuning, "STEPS", 30)
    monkeypatch.setattr(tuning, "TUNING_BATCH", 32)
    monkeypatch.setattr(tuning, "LEARNING_RATE", 1e-4)
    network = model()
    jets = tuple(make_jets(np.random.default_rng(7).integers(1, 30, 400), seed=3))
    test = make_jets(np.random.default_rng(8).integers(1, 30, 200), seed=9)
    with torch.no_grad():
        expected = network(*test)
    before = jetzoo.accelerate(network, "int8", None, jets, "weight-only").network
    tuned = tuning.fine_tune(freeze(network), jets, "weight-only")
    errors = [(q(*test) - expected).square().mean() for q in (before, tuned)]
    assert errors[1] < 0.4 * errors[0]
    assert not any(p.grad is not None for p in network.parameters())
    assert isinstance(tuned.engine.get_submodule(tuned.layers[0]), layers.QuantizedDense)


def test_calibration_takes_all_classes(tmp_path, monkeypatch):
    rng = np.random.default_rng(1)
    config = data_config.read(ROOT / "data" / "JetClass" / "JetClass_kin.yaml")
    tagger = Tagger(torch.nn.Identity(), config)
    files = []
    for i in range(10):
        files.append(tmp_path / f"{i:02}.root")
        handmade.write_root(files[-1], [i + 1] * 20, rng, np.zeros(20))
    monkeypatch.setattr(comparison, "CALIBRATION_FILES", 5)
    monkeypatch.setattr(comparison, "CALIBRATION_JETS", 50)
    jets = comparison.calibration_jets(tagger, files)
    assert len(jets[0]) == 50
    lengths = jets[3].sum((1, 2)).int().tolist()
    assert set(lengths) == {1, 3, 5, 7, 9}
    assert len(set(lengths[:10])) > 1  # mixed
    with pytest.raises(UserError, match="no files"):
        comparison.calibration_jets(tagger, [])


def test_the_float_form_is_the_fast_engine(sample):
    jets = tuple(make_jets((12, 5, 30)))
    network = model()
    both = comparison.SideBySide(
        network, jetzoo.accelerate(network, "int8", calibration=jets), jets
    )
    expected = jetzoo.accelerate(network)(*jets)
    torch.testing.assert_close(both(*jets), expected)
    assert both.num_jets == 3 and min(both.seconds) > 0
    assert both.scores().shape == (3, 2) and both.logits == []
