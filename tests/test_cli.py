"""The command line: what it prints, writes and refuses."""

import json
import subprocess
import sys

import awkward as ak
import numpy as np
import pytest
from jets import COUNTS

import jetzoo
from jetzoo import tables
from jetzoo.cli import main
from jetzoo.metrics import numbers, predictions
from jetzoo.tagger import Tagger

CONFIG = "QuarkGluon/qg_kin"


def predict(network, output, *files, **options):
    path, checkpoint = map(str, network)
    extra = [word for key, value in options.items() for word in (f"--{key}", value)]
    return main(
        ["predict", path, "--checkpoint", checkpoint, "--data-config", CONFIG]
        + ["--output", str(output), "--device", "cpu", *extra, *map(str, files)]
    )


@pytest.mark.parametrize("suffix", [".root", ".parquet"])
def test_predict_then_evaluate(suffix, network, jets_file, tmp_path, capsys):
    output = tmp_path / "new folder" / f"pred{suffix}"
    assert predict(network, output, jets_file, jets_file, **{"batch-size": "4"}) == 0
    tagger = jetzoo.load(*network, CONFIG, device="cpu")
    expected = tagger.predict(ak.from_parquet(jets_file))
    labels, scores, classes = predictions.read_predictions([output], tagger.classes)
    np.testing.assert_allclose(scores, np.tile(expected, (2, 1)), rtol=1e-6)
    np.testing.assert_array_equal(labels, np.arange(2 * len(COUNTS)) % 2)
    jet_pt = tables.read(output, ["jet_pt"])["jet_pt"]
    np.testing.assert_array_equal(jet_pt[: len(COUNTS)], ak.from_parquet(jets_file)["jet_pt"])

    capsys.readouterr()
    assert main(["evaluate", str(output), "--data-config", CONFIG]) == 0
    printed = capsys.readouterr().out
    metrics = json.loads((output.parent / "metrics.json").read_text())
    assert metrics == numbers.evaluate(labels, scores, classes)
    assert f"{metrics['accuracy']:.4f} ±" in printed and f"{metrics['auc']:.4f}" in printed
    assert "50%" in printed and "30%" in printed
    assert str(output.parent / "roc.png") in printed.replace("\n", "")
    assert (output.parent / "roc.png").read_bytes().startswith(b"\x89PNG")
    assert (output.parent / "roc.pdf").read_bytes().startswith(b"%PDF")
    assert sorted(path.name for path in output.parent.iterdir()) == sorted(
        [output.name, "metrics.json", "roc.pdf", "roc.png"]
    )


def test_evaluate_takes_several_files_and_a_folder(tmp_path, capsys):
    rng = np.random.default_rng(9)
    classes = ["label_QCD", "label_Hbb", "label_Tbl"]
    files = []
    for label in range(3):
        scores = rng.dirichlet(np.eye(3)[label] * 3 + 1, size=200).astype(np.float32)
        files.append(str(tmp_path / f"pred_{label}.root"))
        predictions.write_predictions(files[-1], classes, scores, np.full(200, label))
    assert main(["evaluate", *files, "--out", str(tmp_path / "a" / "b")]) == 0
    metrics = json.loads((tmp_path / "a" / "b" / "metrics.json").read_text())
    assert metrics["num_jets_per_class"] == dict.fromkeys(classes, 200)
    assert [row["signal_efficiency"] for row in metrics["rejections"]] == [0.5, 0.995]
    assert "99.5%" in capsys.readouterr().out

    assert main(["evaluate", files[0], "--out", str(tmp_path / "one")]) == 0
    assert "note: There are no jets of label_Hbb, label_Tbl" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "one").iterdir()] == ["metrics.json"]


def test_jets_without_truth_get_scores_only(network, jets_file, tmp_path, capsys):
    jets = ak.from_parquet(jets_file)
    unknown = tmp_path / "unknown.parquet"
    tables.write(unknown, jets[[name for name in jets.fields if name not in ("label", "jet_eta")]])
    output = tmp_path / "scores.root"
    assert predict(network, output, unknown) == 0
    assert "no labels" in capsys.readouterr().out
    assert tables.describe(output) == (["score_jet_isQ", "score_jet_isG", "jet_pt"], len(COUNTS))
    assert main(["evaluate", str(output)]) == 2
    assert "_label_" in capsys.readouterr().err


def test_misuse_is_one_sentence_and_leaves_nothing(network, jets_file, tmp_path, capsys):
    jets = ak.from_parquet(jets_file)
    cut = tmp_path / "cut.parquet"
    tables.write(cut, jets[["label", "jet_pt", "part_px"]])
    nothing = tmp_path / "nothing.parquet"
    tables.write(nothing, jets[:0])
    scores = tmp_path / "scores.root"
    predictions.write_predictions(scores, ["a", "b"], np.eye(2), np.arange(2))
    output = tmp_path / "pred.root"
    output.write_bytes(b"old")
    before = sorted(tmp_path.iterdir())
    for command, message in (
        (lambda: predict(network, output, jets_file, cut), "no branch jet_energy, part_d"),
        (lambda: predict(network, output, nothing), "no jets"),
        (lambda: predict(network, output, tmp_path / "absent.root"), "no file"),
        (lambda: predict(network, output, jets_file, device="abacus"), "abacus"),
        (lambda: predict(network, tmp_path / "pred.csv", jets_file), "neither .root nor .parquet"),
        (lambda: main(["evaluate", str(jets_file)]), "not weaver's output"),
        (lambda: main(["evaluate", str(tmp_path / "absent" / "x.root")]), "no file"),
        (
            lambda: main(["evaluate", str(scores), "--out", str(output)]),
            "cannot be made: File exists",
        ),
        (lambda: predict(network, output / "pred.root", jets_file), "cannot be made"),
    ):
        assert command() == 2
        error = capsys.readouterr().err
        assert message in error and error.startswith("jetzoo: ") and error.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before and output.read_bytes() == b"old"


def test_network_options(network, jets_file, tmp_path, capsys):
    path, checkpoint = map(str, network)
    command = ["predict", path, str(jets_file), "--checkpoint", checkpoint, "--data-config", CONFIG]
    command += ["--output", str(tmp_path / "pred.parquet"), "--network-option"]
    assert main([*command, "scale", "0.0"]) == 0
    scores = tables.read(tmp_path / "pred.parquet", ["scores"])["scores"].to_numpy()
    assert np.ptp(scores, axis=0).max() < 1e-6
    assert main([*command, "scale", "big"]) == 2
    assert "Python literal" in capsys.readouterr().err
    assert main([*command, "scael", "1"]) == 2
    assert "did you mean 'scale'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [[], ["tag"], ["evaluate"], ["predict", "ParT", "x.root"]], ids=" ".join
)
def test_usage_errors(arguments, capsys):
    with pytest.raises(SystemExit) as error:
        main(arguments)
    assert error.value.code == 2
    assert "usage: jetzoo" in capsys.readouterr().err


def test_ctrl_c(network, jets_file, tmp_path, monkeypatch):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(Tagger, "answer", interrupted)
    before = sorted(tmp_path.iterdir())
    assert predict(network, tmp_path / "pred.root", jets_file) == 130
    assert sorted(tmp_path.iterdir()) == before


def test_help_does_not_wait_for_torch():
    code = "import sys, jetzoo.cli; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
