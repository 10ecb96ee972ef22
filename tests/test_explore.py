"""The page of `jetzoo explore`: what it holds, and the command. Its life is in test_browser.py."""

import base64
import hashlib
import json
import re
import zlib

import awkward as ak
import numpy as np
import pytest
import torch
from explained import CONFIG, OPTIONS, SAMPLE, checkpoint, planted, tagger_of

from jetzoo import interpret
from jetzoo.cli import main
from jetzoo.interpret import explorer as explorer_module
from jetzoo.interpret.encoding import BIAS_STEPS, SCORE_STEPS, WEIGHT_STEPS, encode
from jetzoo.interpret.explorer import BUNDLE, explorer, spread
from jetzoo.interpret.figures.jets import MARKERS
from jetzoo.interpret.recorder import Record
from jetzoo.interpret.studies import Drawn, look
from jetzoo.style import NAMES, OKABE_ITO, plain_class_name


def unpack(block, layout):
    """What a browser makes of a block: lists of (heads, rows, columns) by part."""
    content = zlib.decompress(base64.b64decode(block))
    n, heads = layout["n"], layout["heads"]
    biases = max(layout["bias"], default=-1) + 1
    parts = {
        "weights": (layout["layers"], heads, (n, n), WEIGHT_STEPS),
        "cls": (layout["clsLayers"], layout["clsHeads"], (1, n + 1), WEIGHT_STEPS),
        "scores": (layout["layers"] * layout["scores"], heads, (n, n), SCORE_STEPS),
        "bias": (biases, heads, (n, n), BIAS_STEPS),
    }
    count = sum(layers * width for layers, width, _, _ in parts.values())
    ranges = iter(np.frombuffer(content, "<f4", 2 * count).reshape(count, 2))
    at, found = 8 * count, {}
    for name, (layers, width, shape, steps) in parts.items():
        found[name] = np.zeros((layers, width, *shape))
        for place in np.ndindex(layers, width):
            q = np.frombuffer(content, np.uint8, np.prod(shape), at).reshape(shape)
            at += q.size
            low, high = next(ranges)
            values = low + np.cumsum(q, axis=0, dtype=np.uint8) * ((high - low) / steps)
            found[name][place] = values**2 if steps == WEIGHT_STEPS else values
    assert at == len(content)
    return found


def facts_of(page):
    return json.loads(re.search(r'id="facts">(.*?)</script>', page)[1])


def blocks_of(page):
    return re.findall(r'<script type="text/plain" id="jet-\d+">(.*?)</script>', page)


@pytest.mark.parametrize("index", range(8), ids=lambda i: f"jet{i}")
def test_blocks_hold_the_attention(tagger, jets, index):
    """Jets of 0, 1 and more particles, one of them longer than the network takes."""
    drawn = look(tagger, jets, index)
    found = unpack(*encode(drawn))
    n = int(drawn.batch.num_particles[0])
    particle = [r for r in drawn.records if r.kind == "particle"]
    cls = [r for r in drawn.records if r.kind == "class"]
    assert found["weights"].shape == (2, 2, n, n) and found["bias"].shape == (1, 2, n, n)
    for layer, r in enumerate(particle):
        scores, bias = r.scores[0, :, :n, :n].numpy(), r.bias[0, :, :n, :n].numpy()
        weights = r.weights[0, :, :n, :n].numpy()
        assert (abs(found["weights"][layer] - weights) < 0.0079 * np.sqrt(weights) + 2e-5).all()
        for head in range(2 if n else 0):
            step = np.ptp(scores[head]) / SCORE_STEPS
            assert abs(found["scores"][layer][head] - scores[head]).max() <= 0.501 * step + 1e-6
            step = np.ptp(bias[head]) / BIAS_STEPS
            assert abs(found["bias"][0][head] - bias[head]).max() <= 0.501 * step + 1e-6
    for layer, r in enumerate(cls):
        np.testing.assert_allclose(found["cls"][layer], r.weights[0, :, :, : n + 1], atol=0.008)


def test_a_bias_of_its_own_in_each_layer_and_layers_without():
    one, _ = planted(np.eye(3), 2)
    bias = torch.arange(9.0).reshape(1, 1, 3, 3)
    weights = torch.eye(3).reshape(1, 1, 3, 3)
    records = [
        Record("particle", layer, one.mask, weights, weights, b)
        for layer, b in enumerate((bias, None, bias.clone(), -bias))
    ]
    block, layout = encode(Drawn(0, one, records))
    assert layout["bias"] == [0, -1, 0, 1]
    assert layout["n"] == 2
    found = unpack(block, layout)
    np.testing.assert_allclose(
        found["bias"][:, 0], [[[0, 1], [3, 4]], [[0, -1], [-3, -4]]], atol=2.01 / 255
    )
    np.testing.assert_array_equal(found["weights"][:, 0], [np.eye(2)] * 4)


def explore(path, out, *extra, network="ParT", data=SAMPLE):
    words = ["explore", network, "--checkpoint", str(path), "--data-config", CONFIG]
    words += ["--data", str(data), "--out", str(out), "--device", "cpu", *extra]
    for key, value in OPTIONS.get(network, {}).items():
        words += ["--network-option", key, repr(value)]
    return main(words)


@pytest.mark.parametrize("network", ["ParT", "LinformerParT", "ReformerParT", "MambaParT", "PN"])
def test_command_on_every_family(network, tmp_path, capsys):
    out = tmp_path / "deep" / "page.html"
    path = checkpoint(tmp_path, network)
    assert explore(path, out, "--jets", "3,1", network=network) == 0
    assert str(out) in capsys.readouterr().out.replace("\n", "")
    page = out.read_text()
    facts = facts_of(page)
    assert [jet["index"] for jet in facts["jets"]] == [3, 1]
    tagger = tagger_of(tmp_path, network)
    sample = interpret.read_jets(tagger, [SAMPLE], [3, 1])
    for jet, scores, block in zip(
        facts["jets"], tagger.predict(sample), blocks_of(page), strict=True
    ):
        np.testing.assert_allclose(jet["scores"], scores, atol=1e-5)
        assert jet["pt"] == sorted(jet["pt"], reverse=True) and len(jet["pt"]) == jet["layout"]["n"]
        unpack(block, jet["layout"])
    layout = facts["jets"][0]["layout"]
    assert layout["scores"] == (network == "ParT")
    assert bool(layout["layers"]) == (network in ("ParT", "ReformerParT", "PN"))
    # Nothing is fetched, and no placeholder is left.
    assert not re.search(r"(src|href)=[\"']?(?!data:)", page.split("<script", 1)[0])
    assert not re.search(r"<!--\w+-->", page)


def test_by_default_fifty_jets_of_all_files(tmp_path):
    out = tmp_path / "page.html"
    assert explore(checkpoint(tmp_path), out) == 0
    index = [jet["index"] for jet in facts_of(out.read_text())["jets"]]
    total = len(ak.from_parquet(SAMPLE))
    assert index == spread(total, 50) and len(index) == 50 and index[-1] == total - 1
    assert spread(3, 50) == [0, 1, 2] and spread(1, 50) == [0]


def test_looks_are_those_of_the_figures(tagger, jets):
    drawn = look(tagger, jets, 2)
    page, _ = explorer("ParT", ["label_QCD", "label_</script>"], [drawn], np.array([[0.25, 0.75]]))
    facts = facts_of(page)
    assert facts["colors"] == list(OKABE_ITO)
    assert tuple(t["marker"] for t in facts["types"]) == MARKERS
    assert facts["classes"][1]["label"] == "label_</script>"
    jet = facts["jets"][0]
    assert jet["types"] == drawn.batch.types[0].tolist()
    np.testing.assert_allclose(jet["eta"], drawn.batch.eta[0], rtol=1e-4)


def test_names_of_classes_without_mathematics():
    names = {plain_class_name(label) for label in NAMES}
    assert {"H→bb̄", "Z→qq̄", "t→bℓν", "q/g", "W→qq'", "top"} < names
    assert not any(re.search(r"[$\\{]", name) for name in names)
    assert plain_class_name("label_my own") == "my own"


def test_a_page_that_is_too_large_leaves_out_the_scores(tagger, jets, monkeypatch):
    drawn, scores = [look(tagger, jets, 6)], np.array([[0.5, 0.5]])
    whole, notes = explorer("ParT", tagger.classes, drawn, scores)
    assert notes == []
    monkeypatch.setattr(explorer_module, "BUDGET", len(whole) - 1)
    page, (note,) = explorer("ParT", tagger.classes, drawn, scores)
    assert len(page) < len(whole) and "leaves out the scores A" in note
    assert not facts_of(page)["jets"][0]["layout"]["scores"] and facts_of(page)["notes"] == [note]
    monkeypatch.setattr(explorer_module, "BUDGET", 1000)
    assert "fewer jets" in explorer("ParT", tagger.classes, drawn, scores)[1][-1]


def test_jets_without_labels_and_types(tagger, jets, tmp_path, capsys):
    bare = jets[[name for name in jets.fields if name != "label" and "_is" not in name]]
    ak.to_parquet(bare, tmp_path / "bare.parquet")
    out = tmp_path / "page.html"
    assert explore(checkpoint(tmp_path), out, data=tmp_path / "bare.parquet") == 0
    printed = capsys.readouterr().out
    assert "no particle types" in printed and "no labels" in printed
    jet = facts_of(out.read_text())["jets"][2]
    assert jet["label"] is None and set(jet["types"]) == {-1}


def test_jets_that_are_not_finite_are_left_out(tmp_path, jets, capsys):
    momenta = jets["part_px"].to_list()
    momenta[0][3] = np.nan
    file = tmp_path / "changed.parquet"
    ak.to_parquet(ak.with_field(jets, ak.Array(momenta), "part_px"), file)
    assert explore(checkpoint(tmp_path), tmp_path / "page.html", data=file) == 0
    assert "1 of 8 jets have NaN" in capsys.readouterr().out
    index = [jet["index"] for jet in facts_of((tmp_path / "page.html").read_text())["jets"]]
    assert index == [1, 2, 3, 4, 5, 6, 7]


def test_misuse(tmp_path, capsys, jets):
    part = checkpoint(tmp_path)
    ak.to_parquet(jets[:0], tmp_path / "empty.parquet")
    for network, weights, out, extra, data, words in (
        ("PFN", checkpoint(tmp_path, "PFN"), "a.html", (), SAMPLE, "PFN has no attention"),
        ("ParT", part, "a.txt", (), SAMPLE, "should end in .html"),
        ("ParT", part, "a.html", ("--jets", "99999,"), SAMPLE, "There is no jet 99999"),
        ("ParT", part, "a.html", (), tmp_path / "empty.parquet", "There are no jets"),
        ("ParT", part, "a.html", (), tmp_path / "none.parquet", "There is no file"),
    ):
        assert explore(weights, tmp_path / out, *extra, network=network, data=data) == 2
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("jetzoo: ") and words in error and error.endswith(".")
        assert not (tmp_path / out).exists()


def test_the_bundle_is_that_of_the_sources():
    """`make page` writes it; the licences of all that is in it stand in it."""
    folder, bundle = BUNDLE.parent, BUNDLE.read_text()
    listed = re.search(r"const SOURCES = \[(.*?)\]", (folder / "build.mjs").read_text(), re.S)[1]
    sources = re.findall(r'"(.*?)"', listed)
    assert {p.name for p in folder.glob("*.*") if p != BUNDLE} - {".npmrc"} <= set(sources)
    content = b"".join((folder / name).read_bytes() for name in sources)
    assert hashlib.sha256(content).hexdigest() in bundle, "run `make page`"
    lock = json.loads((folder / "package-lock.json").read_text())["packages"]
    bundled = [name for name, package in lock.items() if name and not package.get("dev")]
    assert len(bundled) > 10
    for name in bundled:
        version = lock[name]["version"]
        assert f"{name.removeprefix('node_modules/')} {version}\n" in bundle
    assert bundle.count("Permission to use, copy, modify") >= len(bundled) - 3
