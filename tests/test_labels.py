"""What labels may be: classes, few or many, an index, targets: through weaver itself."""

import logging
import shutil
import sys

import awkward as ak
import numpy as np
import pytest
import torch
import weaver.train
import yaml
from handmade import particles
from zoo import CONFIG, SIZES, SMALL

import jetzoo
from jetzoo import cli, data_config, repository, tables
from jetzoo.int8 import file as int8_file
from jetzoo.metrics.predictions import read_predictions, read_targets

NUM_JETS = {"train": 96, "val": 48, "test": 33, "more": 17}
INDEX = {"type": "custom", "value": {"kind": "jet_kind"}, "names": ["a", "b", "c"]}
TARGETS = {"type": "custom", "value": {"log_pt": "np.log(jet_pt)", "eta": "jet_eta"}}
MASS = {"type": "custom", "value": {"log_pt": "np.log(jet_pt)"}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Files of jets with an index of three classes, and one hot of 188."""
    folder = tmp_path_factory.mktemp("labels")
    rng = np.random.default_rng(5)
    for name, count in NUM_JETS.items():
        jets = particles(rng.integers(1, 20, count), rng)
        jets["label"] = np.arange(count) % 2
        jets["jet_kind"] = (np.arange(count) % 3).astype("int32")
        kind188 = np.arange(count) * 2 % 188
        jets |= {f"is{i}": (kind188 == i).astype("int8") for i in range(188)}
        ak.to_parquet(ak.Array(jets), folder / f"{name}.parquet")
    return folder


@pytest.fixture
def run(folder, tmp_path, monkeypatch):
    """Train a small network with weaver in this process; the folder of its files."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for name in ("torch", "shutil", "os"):  # which the training loop replaces
        monkeypatch.setattr(weaver.train, name, getattr(weaver.train, name))
    logger = logging.getLogger("weaver")
    level = logger.level
    monkeypatch.setattr(logger, "handlers", [])
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    # As if weaver were the program.
    monkeypatch.setattr(sys.modules["__main__"], "main", weaver.train.main, raising=False)

    def run(network, *more, ending=".root", **changes):
        content = yaml.safe_load(CONFIG.read_text()) | {"observers": ["jet_pt"]} | changes
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
        words = ["--data-train", folder / "train.parquet", "--data-val", folder / "val.parquet"]
        words += ["--data-test", f"one:{folder}/test.parquet", f"two:{folder}/more.parquet"]
        words += ["--data-config", tmp_path / "config.yaml"]
        words += ["--network-config", repository.network(network)]
        words += ["--model-prefix", tmp_path / "net", "--predict-output", tmp_path / f"p{ending}"]
        words += ["--samples-per-epoch", 96, "--samples-per-epoch-val", 48, "--fetch-step", 1]
        words += ["--gpus", "", "--num-workers", 0, "--batch-size", 16, "--num-epochs", 2]
        words += ["--in-memory", "--network-option", "seed", 3]
        sizes = SIZES.get(network, {}).items()
        words += [x for k, v in sizes for x in ("--network-option", k, repr(v))]
        monkeypatch.setattr(sys, "argv", ["weaver", *map(str, (*words, *more))])
        weaver.train.main()
        return tmp_path

    yield run
    torch.set_num_threads(threads)
    logger.setLevel(level)  # which weaver has changed


def predictions(folder, ending=".root"):
    return [folder / f"p_{group}{ending}" for group in ("one", "two")]


def tagged(network, folder, files, **options):
    """Scores of `jetzoo.load` of what was trained, for the jets of files."""
    checkpoint = folder / "net_best_epoch_state.pt"
    tagger = jetzoo.load(network, checkpoint, folder / "config.yaml", **options)
    jets = ak.concatenate([tables.read(x, tagger.branches) for x in files])
    return tagger, tagger.predict(jets)


def evaluate(capsys, *words):
    code = cli.main(["evaluate", *map(str, words)])
    printed = capsys.readouterr()
    assert code == 0, printed.err
    return printed.out


@pytest.mark.parametrize("labels", ["two", "188"])
def test_classes_train_predict_and_evaluate(labels, run, folder, capsys):
    changes = {}
    if labels == "188":
        changes["labels"] = {"type": "simple", "value": [f"is{i}" for i in range(188)]}
    trained = run("PFN", **changes)
    files = [folder / "test.parquet", folder / "more.parquet"]
    tagger, scores = tagged("PFN", trained, files)
    truth, written, classes = read_predictions(predictions(trained))
    assert classes == tagger.classes and len(classes) == (188 if labels == "188" else 2)
    assert len(truth) == 33 + 17
    np.testing.assert_allclose(written, scores, atol=1e-5)
    assert "accuracy" in evaluate(capsys, *predictions(trained))


@pytest.mark.parametrize("ending", [".root", ".parquet"])
def test_the_index_of_a_class(ending, run, folder, capsys):
    trained = run("PFN", ending=ending, labels=INDEX)
    files = [folder / "test.parquet", folder / "more.parquet"]
    tagger, scores = tagged("PFN", trained, files)
    assert tagger.classes == ["a", "b", "c"] and not tagger.is_regression
    written = predictions(trained, ending)
    truth, found, _ = read_predictions(written, tagger.classes, "kind")
    np.testing.assert_allclose(found, scores, atol=1e-5)
    np.testing.assert_array_equal(truth, np.r_[np.arange(33) % 3, np.arange(17) % 3])
    words = (*written, "--data-config", trained / "config.yaml", "--out", trained / "out")
    assert "accuracy" in evaluate(capsys, *words)
    assert cli.main(["evaluate", *map(str, written)]) == 2
    assert "--data-config names it" in capsys.readouterr().err
    # What `jetzoo predict` writes names the classes itself.
    own = trained / f"own{ending}"
    words = ["predict", "PFN", "--checkpoint", trained / "net_best_epoch_state.pt"]
    words += ["--data-config", trained / "config.yaml", *files, "--output", own]
    assert cli.main([str(x) for x in words]) == 0
    np.testing.assert_array_equal(read_predictions([own], tagger.classes)[0], truth)


def test_an_index_that_is_no_class_ends_the_training(run):
    labels = {**INDEX, "names": ["a", "b"]}
    with pytest.raises(jetzoo.UserError, match=r"A label is 2 at step 0 of epoch 0.*0 \.\.\. 1"):
        run("PFN", labels=labels)


def test_weights_and_selections_of_weaver(run):
    weights = {
        "use_precomputed_weights": False,
        "reweight_method": "flat",
        "reweight_vars": {"jet_pt": [0, 50, 1e9], "jet_eta": [-5, 0, 5]},
        "reweight_classes": ["jet_isQ", "jet_isG"],
    }
    selections = {"selection": "jet_eta > -1", "test_time_selection": "jet_eta > 0"}
    trained = run("PFN", **selections, weights=weights)
    truth, *_ = read_predictions(predictions(trained))
    assert 0 < len(truth) < 33 + 17


# Regression


@pytest.mark.parametrize(
    "network, ending",
    [
        ("ParT", ".root"),
        ("PFN", ".parquet"),
        pytest.param("PN-FineTune", ".root", marks=pytest.mark.slow),
    ],
)
def test_a_regression_trains_predicts_and_evaluates(network, ending, run, folder, capsys):
    """With batches of one jet, too: 33 and 17 jets of the test are two and one of 16, and one."""
    trained = run(network, "--regression-mode", ending=ending, labels=MASS)
    files = [folder / "test.parquet", folder / "more.parquet"]
    options = SIZES.get(network, {})
    tagger, scores = tagged(network, trained, files, **options)
    assert tagger.is_regression and scores.shape == (50, 1)
    truth, predicted = read_targets(predictions(trained, ending), ["log_pt"])
    np.testing.assert_allclose(predicted, scores, atol=1e-4)
    jets = ak.concatenate([tables.read(x, ["jet_pt"]) for x in files])
    np.testing.assert_allclose(truth[:, 0], np.log(jets.jet_pt), rtol=1e-5)
    words = (*predictions(trained, ending), "--data-config", trained / "config.yaml")
    printed = evaluate(capsys, *words, "--out", trained / "out")
    assert "resolution" in printed and (trained / "out" / "regression.png").exists()


def test_several_targets(run, folder):
    options = ("--network-option", "loss", "'huber'")
    trained = run("PFN", "--regression-mode", *options, labels=TARGETS)
    files = [folder / "test.parquet", folder / "more.parquet"]
    tagger, scores = tagged("PFN", trained, files)
    assert tagger.classes == ["log_pt", "eta"] and scores.shape == (50, 2)
    truth, predicted = read_targets(predictions(trained), tagger.classes)
    np.testing.assert_allclose(predicted, scores, atol=1e-4)
    jets = ak.concatenate([tables.read(x, ["jet_pt", "jet_eta"]) for x in files])
    expected = np.stack((np.log(jets.jet_pt), jets.jet_eta), axis=1)
    np.testing.assert_allclose(truth, expected, rtol=1e-5)


def test_the_best_epoch_is_that_of_the_lowest_loss(run, monkeypatch):
    losses = iter([0.3, 0.2, 0.4, 0.25])
    from jetzoo.training import loop

    monkeypatch.setattr(loop, "evaluation", lambda _: lambda *a, **k: next(losses))
    trained = run(
        "PFN", "--regression-mode", "--num-epochs", 3, "--run-mode", "train,val", labels=MASS
    )

    def same(epoch):
        best, other = (
            torch.load(trained / f"net_{x}_state.pt") for x in ("best_epoch", f"epoch-{epoch}")
        )
        return all(torch.equal(best[k], other[k]) for k in best)

    assert same(1) and not same(0) and not same(2)
    shutil.copy(trained / "net_epoch-2_state.pt", trained / "net_best_epoch_state.pt")
    more = ("--num-epochs", 4, "--load-epoch", 2, "--run-mode", "train,val")
    run("PFN", "--regression-mode", *more, labels=MASS)
    assert same(1)


def test_a_regression_on_the_fast_engine_and_in_weavers_prediction(run, folder):
    trained = run("ParT", "--regression-mode", labels=MASS)
    before = read_targets(predictions(trained), ["log_pt"])[1]
    checkpoint = trained / "net_best_epoch_state.pt"
    more = ("--predict", "--model-prefix", checkpoint, "--network-option", "fast", "True")
    run("ParT", "--regression-mode", *more, labels=MASS)
    np.testing.assert_allclose(read_targets(predictions(trained), ["log_pt"])[1], before, atol=1e-5)
    config = data_config.read(trained / "config.yaml")
    model, info = repository.build_network("ParT", config, for_inference=True, **SMALL)
    assert info["output_names"] == ["output"]
    model.load_state_dict(torch.load(checkpoint))
    tagger = jetzoo.load("ParT", checkpoint, trained / "config.yaml", **SMALL)
    jets = tables.read(folder / "test.parquet", tagger.branches)
    inputs = [torch.from_numpy(x) for x in tagger.inputs(jets).values()]
    with torch.no_grad():
        np.testing.assert_allclose(model.eval()(*inputs), tagger.predict(jets), atol=1e-5)
    int8 = jetzoo.accelerate(tagger.model, "int8", calibration=tuple(inputs))
    int8_file.save(int8, trained / "int8.pt", "ParT", config, SMALL)
    again = jetzoo.load(trained / "int8.pt")
    assert again.is_regression
    np.testing.assert_allclose(again.predict(jets), int8(*inputs), atol=1e-5)
    np.testing.assert_allclose(again.predict(jets), tagger.predict(jets), rtol=0.1)


QUANTIZE = "{'method': 'dynamic', 'qat': False, 'network': 'PFN', 'output': '.', 'calibration': []}"


@pytest.mark.parametrize(
    "labels, more, message",
    [
        (MASS, (), "trained with --regression-mode"),
        (INDEX, ("--regression-mode",), "labels are classes"),
        (None, ("--regression-mode",), "labels are classes"),
        ({**INDEX, "names": ["a"]}, (), "two or more"),
        ({**TARGETS, "names": ["a", "b"]}, (), "one formula, the index of the class, not 2"),
        ({"type": "other", "value": {"x": "jet_pt"}}, (), "type 'other', not simple or custom"),
        (MASS, ("--regression-mode", "--network-option", "loss", "'l3'"), "log-cosh, mse, huber"),
        (None, ("--network-option", "loss", "'mse'"), "cross entropy"),
        (MASS, ("--regression-mode", "--network-option", "quantize", QUANTIZE), "regression"),
    ],
)
def test_what_a_mode_cannot_serve_is_refused_before_the_training(labels, more, message, run):
    changes = {"labels": labels} if labels else {}
    with pytest.raises(jetzoo.UserError, match=message) as error:
        run("PFN", *more, **changes)
    assert "\n" not in str(error.value)


def test_a_loss_that_is_not_finite_stops_a_regression(run, monkeypatch):
    from jetzoo.training import regression

    monkeypatch.setitem(regression.LOSSES, "mse", lambda x, y: x.sum() * float("nan"))
    options = ("--regression-mode", "--network-option", "loss", "'mse'")
    with pytest.raises(jetzoo.UserError, match="The loss is nan at step 0 of epoch 0"):
        run("PFN", *options, labels=MASS)
