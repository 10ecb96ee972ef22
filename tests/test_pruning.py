"""Networks without some of their layers, and the command `jetzoo prune`."""

import json

import awkward as ak
import numpy as np
import pytest
import torch
from explained import CONFIG, OPTIONS, SAMPLE, checkpoint, tagger_of

import jetzoo
from jetzoo import UserError
from jetzoo.cli import main
from jetzoo.interpret import prune_report, pruning
from jetzoo.interpret.pruning import Shortener, read_sample, smallest, spare
from jetzoo.interpret.recorder import Site, transformer

SECOND = Site("particle", 1)


def silence(block):
    """Make a block give back what it gets."""
    with torch.no_grad():
        for layer in (block.attn.out_proj, block.post_attn_norm, block.fc2):
            layer.weight.zero_(), layer.bias.zero_()
        block.w_resid.fill_(1)


@pytest.fixture(scope="module")
def silenced(tmp_path_factory):
    """A tiny ParT the second particle layer of which does nothing."""
    tagger = tagger_of(tmp_path_factory.mktemp("silenced"))
    silence(transformer(tagger.model).blocks[1])
    return tagger


@pytest.fixture(scope="module")
def files(silenced, tmp_path_factory):
    """Jets for training, validation and test, which the network tells apart without an error."""
    folder, jets = tmp_path_factory.mktemp("jets"), ak.from_parquet(SAMPLE)[:300]
    score = silenced.predict(jets)[:, 0]
    jets = ak.with_field(jets, (score > np.median(score)).astype(int), "label")
    paths = [folder / f"{name}.parquet" for name in ("train", "val", "test")]
    for k, path in enumerate(paths):
        ak.to_parquet(jets[100 * k : 100 * (k + 1)], path)
    return paths


def test_a_layer_that_does_nothing_is_removed(silenced, files):
    shortener = Shortener(silenced, "ParT", OPTIONS["ParT"])
    assert [site.name for site in shortener.layers] == ["L1", "L2", "C1"]
    short = shortener.without([SECOND])
    assert len(transformer(short.model).blocks) == 1
    jets = ak.from_parquet(files[0])
    np.testing.assert_allclose(short.predict(jets), silenced.predict(jets), atol=1e-6)
    steps = spare(shortener, read_sample(silenced, files[1:2]))
    assert [gone for gone, _ in steps][:2] == [(), (SECOND,)]
    assert steps[1][1] == pytest.approx(steps[0][1], abs=1e-3)


@pytest.mark.parametrize("network", ["ParT-FineTune", "LinformerParT", "ReformerParT", "MambaParT"])
def test_other_layers_keep_their_weights(network, tmp_path):
    options = OPTIONS.get(network, OPTIONS["ParT"]) | {"num_layers": 3, "num_cls_layers": 2}
    tagger = jetzoo.tagger.untrained(network, CONFIG, "cpu", **options)
    short = Shortener(tagger, network, options).without([SECOND, Site("class", 0)])
    old, new = transformer(tagger.model), transformer(short.model)
    for before, after in (
        (old.blocks[0], new.blocks[0]),
        (old.blocks[2], new.blocks[1]),
        (old.cls_blocks[1], new.cls_blocks[0]),
        (old.embed, new.embed),
    ):
        torch.testing.assert_close(dict(after.state_dict()), dict(before.state_dict()))


def test_few_are_tried():
    asked = []

    def good(step):
        asked.append(step)
        return step <= limit

    for limit in range(9):
        asked.clear()
        assert smallest(range(9), good) == limit
        assert len(asked) <= 5 and 0 not in asked
    assert smallest(range(1), good) == 0


def test_a_smaller_network_is_written_and_loaded(silenced, files, tmp_path, monkeypatch):
    """With a fine-tuning that changes nothing."""
    monkeypatch.setattr(
        prune_report, "fine_tune", lambda shortener, gone, *others: shortener.without(gone)
    )
    monkeypatch.setattr(pruning, "REACH", 0.002)
    found = prune_report.prune(silenced, "ParT", CONFIG, *([f] for f in files), **OPTIONS["ParT"])
    assert found.steps[1]["gone"] == ["L2"] and found.steps[1]["tuned"] is not None
    assert [row["layers"] for row in found.rows] == [2, 2, 1, 1]
    for row in found.rows:
        assert abs(row["auc_change"]) < 1e-3 and row["jets_per_second"] > 0
    folder = tmp_path / "out"
    found.write(folder)
    again = jetzoo.load("ParT", folder / "pruned.pt", CONFIG, "cpu", fast=True, **found.options)
    jets = ak.from_parquet(files[2])
    np.testing.assert_allclose(again.predict(jets), silenced.predict(jets), atol=1e-5)
    assert json.loads((folder / "pruned.json").read_text())["options"]["num_layers"] == 1


def test_nothing_goes_where_nothing_can(silenced, files, tmp_path, monkeypatch):
    monkeypatch.setattr(pruning, "REACH", -1)
    monkeypatch.setattr(prune_report, "fine_tune", lambda shortener, *others: shortener.tagger)
    found = prune_report.prune(silenced, "ParT", CONFIG, *([f] for f in files), **OPTIONS["ParT"])
    assert found.smaller is None and len(found.rows) == 2 and "No layer can go" in found.notes[0]
    found.write(tmp_path / "out")
    assert {f.name for f in (tmp_path / "out").iterdir()} == {"pruned.csv", "pruned.json"}


def prune(path, files, out, *extra, network="ParT", options=OPTIONS["ParT"]):
    words = ["prune", network, "--checkpoint", path, "--data-config", CONFIG, "--device", "cpu"]
    for name, file in zip(("--train", "--val", "--data"), files, strict=True):
        words += [name, file]
    for key, value in options.items():
        words += ["--network-option", key, repr(value)]
    return main([str(word) for word in (*words, "--out", out, *extra)])


@pytest.mark.slow
def test_command(silenced, files, tmp_path, capsys):
    """weaver fine-tunes."""
    path = tmp_path / "silenced.pt"
    torch.save(silenced.model.state_dict(), path)
    out = tmp_path / "deep" / "out"
    assert prune(path, files, out, "--epochs", "1") == 0
    content = json.loads((out / "pruned.json").read_text())
    assert content["steps"][1]["gone"] == ["L2"]
    assert content["networks"][1]["network"] == "the network, fine-tuned"
    assert content["networks"][1]["auc_change"] != 0
    assert "fine-tuned" in capsys.readouterr().out


def test_misuse(files, tmp_path, capsys):
    one = tmp_path / "one.parquet"
    jets = ak.from_parquet(files[0])
    ak.to_parquet(jets[jets["label"] == 1], one)
    cases = (
        ("PFN", {}, files, "no layers to remove"),
        ("ParT", OPTIONS["ParT"], [one, *files[1:]], "two known classes"),
        ("ParT", OPTIONS["ParT"], [*files[:2], tmp_path / "none.parquet"], "none.parquet"),
    )
    for network, options, given, words in cases:
        path = checkpoint(tmp_path, network)
        assert prune(path, given, tmp_path / "out", network=network, options=options) == 2
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("jetzoo: ") and words in error and error.endswith(".")
        assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_failed_fine_tuning_says_why(silenced, files, tmp_path):
    shortener = Shortener(silenced, "ParT", OPTIONS["ParT"])
    train, val = (read_sample(silenced, [file]) for file in files[:2])
    val.files = [tmp_path / "gone.parquet"]
    with pytest.raises(UserError, match="The fine-tuning failed: "):
        pruning.fine_tune(shortener, [SECOND], CONFIG, train, val)
