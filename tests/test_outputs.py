"""Where commands write: never over an input, checked before the work, and whole or not at all."""

import errno
import json
import os
import subprocess
from pathlib import Path

import awkward as ak
import handmade
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from zoo import build

import jetzoo
from jetzoo import UserError, cli, models, page, tables
from jetzoo.metrics.predictions import write_predictions
from jetzoo.metrics.report import write_report

KIN = "QuarkGluon/qg_kin"


def write_jets(folder):
    """Jets of 3, 5 and 2 particles."""
    path = folder / "jets.parquet"
    jets = handmade.particles((3, 5, 2), np.random.default_rng(1))
    jets |= {"label": np.array([1, 0, 1])}
    ak.to_parquet(ak.Array(jets), path)
    return path


def command(network, *words):
    path, weights = network
    return [words[0], str(path), f"--checkpoint={weights}", f"--data-config={KIN}", *words[1:]]


def refused(capsys, words):
    """The one sentence of a command that exits with 2."""
    assert cli.main([str(word) for word in words]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("jetzoo: ")
    return error


def test_outputs_never_replace_inputs(network, tmp_path, capsys, monkeypatch):
    jets = write_jets(tmp_path)
    link = tmp_path / "link.parquet"
    link.symlink_to(jets)
    hard = tmp_path / "hard.parquet"
    hard.hardlink_to(jets)
    before = {path: path.read_bytes() for path in (*network, jets)}
    for output in (jets, link, hard, tmp_path / "x" / ".." / "jets.parquet"):
        words = command(network, "predict", "--output", output, jets)
        assert "would replace the input" in refused(capsys, words)
    words = ("quantize", "--output", network[1], "--calibration", jets, "--data", jets)
    assert "would replace the input" in refused(capsys, command(network, *words))
    weights = tmp_path / "net.onnx"
    weights.touch()
    monkeypatch.chdir(tmp_path)
    words = command((network[0], "net.onnx"), "export", "--onnx", weights)
    assert "would replace the input" in refused(capsys, words)
    assert {path: path.read_bytes() for path in before} == before


def test_a_report_replaces_nothing_else(network, tmp_path, capsys):
    jets = write_jets(tmp_path)
    report, output = tmp_path / "x.json", tmp_path / "x.pt"
    words = command(network, "quantize", "--output", output, "--calibration", jets, "--data", jets)
    for text in ('{"mine": 1}', "[]", "3", "no json", ""):
        report.write_text(text)
        assert f"would replace {report}, which is none" in refused(capsys, words)
        assert report.read_text() == text and not output.exists()
    report.unlink()
    assert cli.main(list(map(str, words))) == 0
    assert cli.main(list(map(str, words))) == 0  # its own report may be replaced
    assert json.loads(report.read_text())["int8"]["num_jets"] == 3


@pytest.mark.parametrize(
    "place, message",
    [
        ("folder", "is a folder"),
        ("n" * 300, "too long"),
        ("n" * 300 + "/pred", "too long"),
        ("folder/" + "n" * 300 + "/pred", "too long"),
        ("file/pred", "File exists"),
        ("file/new/pred", "is not a folder"),
        ("sealed/pred", "is not writable"),
        ("sealed/new/pred", "is not writable"),
    ],
)
@pytest.mark.parametrize("name", ["predict", "quantize", "export"])
def test_outputs_are_checked_before_the_work(
    network, tmp_path, capsys, monkeypatch, name, place, message
):
    jets = write_jets(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "sealed").mkdir()
    monkeypatch.setattr(  # as root everything is writable
        os, "access", lambda path, mode, access=os.access: Path(path).name != "sealed"
    )
    monkeypatch.setattr(jetzoo.tagger, "read_checkpoint", lambda path: 1 / 0)  # the work
    flag, suffix, more = {
        "predict": ("--output", ".root", [jets]),
        "quantize": ("--output", ".pt", ["--calibration", jets, "--data", jets]),
        "export": ("--onnx", ".onnx", []),
    }[name]
    output = tmp_path / f"{place}{suffix}"
    (tmp_path / f"folder{suffix}").mkdir()
    assert message in refused(capsys, command(network, name, flag, output, *more))
    wrong = command(network, name, flag, tmp_path / "x.txt", *more)
    assert any(x in refused(capsys, wrong) for x in ("should end in", "neither .root nor"))
    assert set(tmp_path.iterdir()) >= {jets} and not list(tmp_path.glob(".*"))


def test_evaluate_checks_its_folder_first(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(tables, "describe", lambda *arguments: 1 / 0)
    (tmp_path / "file").touch()
    words = ["evaluate", "x.root", "--out", tmp_path / "file" / "new"]
    assert "is not a folder" in refused(capsys, words)


def test_an_evaluation_is_written_as_a_whole(tmp_path):
    (tmp_path / "roc.png").mkdir()
    with pytest.raises(UserError, match="roc.png is a folder"):
        write_report({"auc": 1.0}, {"roc": Figure()}, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["roc.png"]


def test_long_names_are_written(tmp_path):
    path = tmp_path / ("n" * 250 + ".root")
    tables.write(path, ak.Array({"x": [1.0, 2.0]}))
    assert tables.describe(path) == (["x"], 2)
    assert list(tmp_path.iterdir()) == [path]


@pytest.fixture
def full_disk(tmp_path):
    """A folder on a disk of its own, of 64 kB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


NAMES = {"predict": "x.root", "evaluate": "roc.png", "quantize": "x.pt", "export": "x.onnx"}


@pytest.mark.parametrize("name", NAMES)
def test_full_disk(network, full_disk, tmp_path, capsys, name):
    rng = np.random.default_rng(2)
    jets = tmp_path / "jets.parquet"
    handmade.write_parquet(jets, rng.integers(1, 9, 3000 if name == "predict" else 50), rng)
    output, pfn = full_disk / NAMES[name], tmp_path / "pfn.pt"
    torch.save(build("PFN").state_dict(), pfn)
    words = {
        "predict": command(network, "predict", "--output", output, jets),
        "quantize": command(
            network, "quantize", "--output", output, "--calibration", jets, "--data", jets
        ),
        "export": [
            "export",
            "PFN",
            f"--checkpoint={pfn}",
            f"--data-config={KIN}",
            "--onnx",
            output,
        ],
        "evaluate": ["evaluate", tmp_path / "scores.root", "--out", full_disk],
    }
    scores = np.tile([[0.75, 0.25], [0.5, 0.5], [0.25, 0.75]], (40, 1))
    write_predictions(tmp_path / "scores.root", ["a", "b"], scores, np.arange(120) % 2)
    output.write_bytes(b"old")
    (full_disk / "filling").write_bytes(bytes(60 * 1024))
    found = refused(capsys, words[name])
    said = {"predict": "stopped (No space left on device): what was there before is whole"}
    assert said.get(name, "cannot be written: No space left on device.") in found
    assert output.read_bytes() == b"old"
    assert not list(full_disk.glob(".*"))


def test_a_report_on_a_full_disk(full_disk):
    (full_disk / "index.html").write_text("old")
    contents = {"measures.csv": "a,b\n", "index.html": bytes(100_000)}
    with pytest.raises(UserError, match="index.html cannot be written: No space left on device"):
        page.write(full_disk, contents)
    assert sorted(x.name for x in full_disk.iterdir()) == ["index.html", "measures.csv"]
    assert (full_disk / "index.html").read_text() == "old"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_what_was_there_before_stays(tmp_path, code):
    path = tmp_path / "x.json"
    path.write_text("old")
    message = f"x.json cannot be written: {os.strerror(code)}"
    with pytest.raises(UserError, match=message), tables.atomic(path) as partial:
        partial.write_text("half")
        raise OSError(code, os.strerror(code))
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_other_errors_of_the_system_are_one_sentence(monkeypatch, capsys):
    for error, message in (
        (PermissionError(13, "Permission denied", "/x/y"), "/x/y cannot be used: Permission den"),
        (OSError(28, "No space left on device"), "Nothing can be written: No space left"),
    ):

        def fail(error=error):
            raise error

        monkeypatch.setitem(cli.LISTS, "networks", fail)
        assert message in refused(capsys, ["list", "networks"])


def test_damaged_cards(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(models.repository, "models", lambda: tmp_path)
    for text in ("", "[]", "3", '{"ParT": 3}', '{"ParT": {}}', '{"ParT": {"network": 1}}', "\0"):
        (tmp_path / "models.json").write_text(text)
        assert "models.json is damaged" in refused(capsys, ["models"])
