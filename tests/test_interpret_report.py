"""Figures of `jetzoo.interpret`, and the command `jetzoo attention`."""

import csv
import io
import json
import re
import sys

import awkward as ak
import numpy as np
import pytest
import torch
from explained import CONFIG, OPTIONS, SAMPLE, checkpoint, planted, tagger_of
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.colors import to_rgb

from jetzoo import UserError, interpret
from jetzoo.cli import main
from jetzoo.interpret import counterparts, figures, studies
from jetzoo.interpret.recorder import Record, transformer
from jetzoo.interpret.sample import TYPES
from jetzoo.interpret.summary import measure_rows
from jetzoo.interpret.survey import TypicalJets
from jetzoo.style import OKABE_ITO

MUON = TYPES.index("Muon")


def drawn_jet():
    """Particle 1 looks at particle 3, the others at themselves; one is a photon."""
    weights = np.eye(4)
    weights[0] = [0, 0, 1, 0]
    one, records = planted(
        np.stack([weights, np.eye(4)]),
        4,
        types=[0, 2, MUON, 1],
        subjets=[0, 0, 1, 1],
        positions=[[-0.3, -0.3], [0.3, -0.3], [0.3, 0.3], [-0.3, 0.3]],
    )
    cls = torch.tensor([[[[0.0, 0, 0, 0, 1]]]]).expand(1, 2, 1, 5)
    records.append(Record("class", 0, one.mask, cls))
    return studies.Drawn(0, one, records)


def pixels(figure):
    """The figure as an RGB array, and a function from data coordinates to (row, column)."""
    figure.set_dpi(100)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="raw", dpi=100)
    width, height = figure.canvas.get_width_height()
    image = np.frombuffer(buffer.getvalue(), np.uint8).reshape(height, width, 4)[..., :3]

    def at(axes, x, y):
        column, row = axes.transData.transform((x, y))
        return image[height - 1 - int(row), int(column)] / 255

    return image, at


def test_attention_maps_show_the_matrix():
    figure = figures.attention_maps(drawn_jet())
    panels = [a for a in figure.axes if a.get_title() or a.images]
    first, second = (a for a in figure.axes if a.get_title().startswith("head"))
    assert len(panels) >= 2
    _, at = pixels(figure)
    dark, bright = (np.array(first.images[0].cmap(v)[:3]) for v in (0.0, 1.0))
    for panel, matrix in ((first, drawn_jet().records[0].weights[0, 0]), (second, torch.eye(4))):
        for (row, column), weight in np.ndenumerate(matrix.numpy()):
            color = at(panel, column + 1, row + 1)
            np.testing.assert_allclose(color, bright if weight else dark, atol=0.02)


def test_attention_graph_draws_particles_and_lines():
    figure = figures.attention_graph(drawn_jet())
    image, at = pixels(figure)
    particles, cls = figure.axes
    (lines,) = (c for c in particles.collections if isinstance(c, LineCollection))
    (segment,) = lines.get_segments()  # of particles 1 and 3; looks at oneself have no line
    np.testing.assert_allclose(segment, [[-0.3, -0.3], [0.3, 0.3]])
    assert at(particles, 0.05, 0.05).max() < 0.75 and at(particles, 0.05, -0.15).min() > 0.99
    (star,) = (c for c in cls.collections if isinstance(c, LineCollection))
    (ray,) = star.get_segments()
    np.testing.assert_allclose(ray, [[0, 0], [-0.3, 0.3]])
    spots = [c for c in particles.collections if isinstance(c, PathCollection)]
    assert len(spots) == 4  # a marker of its own for each type
    assert len({tuple(c.get_paths()[0].vertices.ravel()) for c in spots}) == 4
    np.testing.assert_allclose(at(particles, -0.3, -0.3), to_rgb(OKABE_ITO[0]), atol=0.02)
    softest = at(particles, -0.3, 0.3)  # the second subjet, and fainter
    expected = 0.625 * np.array(to_rgb(OKABE_ITO[1])) + 0.375
    np.testing.assert_allclose(softest, expected, atol=0.03)
    legend = {text.get_text() for text in figure.legends[0].get_texts()}
    assert {"charged hadron", "neutral hadron", "photon", "muon"} < legend
    assert "electron" not in legend and (image < 250).any(axis=2).mean() > 0.03


def test_unknown_types_are_dots_and_the_legend_says_so():
    drawn = drawn_jet()
    drawn.batch.types = torch.full((1, 4), -1)
    drawn.batch.subjets = None
    figure = figures.attention_graph(drawn)
    (spots,) = (c for c in figure.axes[0].collections if isinstance(c, PathCollection))
    assert len(spots.get_offsets()) == 4
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert "particle (type unknown)" in legend and not any("subjet" in name for name in legend)


def test_figures_of_numbers_show_the_numbers(tagger, jets):
    untrained = studies.initial("ParT", tagger, jets, **OPTIONS["ParT"])
    found = interpret.study(tagger, jets)
    found.untrained = studies.weight_histogram(untrained, tagger, jets)
    shares = found.histogram[1] / found.histogram[1].sum()
    panel = figures.weight_distribution(found).axes[1]
    fill, line, dashed = panel.patches
    np.testing.assert_allclose(fill.get_data().values, shares)
    np.testing.assert_allclose(
        np.nan_to_num(dashed.get_data().values), found.untrained[1] / found.untrained[1].sum()
    )
    ratio = figures.score_ratio(found).axes[0]
    assert len(ratio.patches) == 2 and ratio.get_xscale() == "log"
    sparsity = figures.sparsity(found)
    texts = [[t.get_text() for t in axes.texts] for axes in sparsity.axes]
    assert texts[0] == [f"{100 * v:.1f}" for v in found.rows["non_binary"].ravel()]
    assert texts[2] == [f"{100 * v:.1f}" for v in found.rows["argmax_moved"].ravel()]
    ranks = figures.importance(found).axes[1].lines
    np.testing.assert_allclose(
        ranks[0].get_ydata(), 100 * found.importance["class_attention", "rank"][0]
    )
    bias = interpret.look(tagger, jets, 2).records[0].bias[0, 1].numpy()
    image = figures.interaction(interpret.look(tagger, jets, 2)).axes[1].images[0]
    np.testing.assert_allclose(image.get_array(), bias)
    results = interpret.ablate(tagger, interpret.read_jets(tagger, [SAMPLE], 24), batch_size=10)
    top, zeroed, heads, _ = figures.ablation(results).axes
    aucs = [metrics["auc"] for change, metrics in results if change.what == "top_k"]
    np.testing.assert_allclose(top.lines[1].get_ydata(), aucs)
    assert len(zeroed.patches) == 3 and len(heads.texts) == 4


def test_projections_and_layers_are_drawn(tmp_path):
    tagger = tagger_of(tmp_path, "LinformerParT")
    projections = counterparts.slot_projections(tagger.model)
    images = [a.images[0] for a in figures.slots(projections).axes if a.images]
    np.testing.assert_array_equal(images[1].get_array(), projections[1].abs())
    matrix = torch.eye(3)
    (panel,) = (a for a in figures.layer_matrices([matrix], "x").axes if a.images)
    np.testing.assert_array_equal(panel.images[0].get_array(), matrix)


def attention(network, path, out, *extra, data=SAMPLE):
    words = ["attention", network, "--checkpoint", str(path), "--data-config", CONFIG]
    words += ["--data", str(data), "--out", str(out), "--device", "cpu", *extra]
    for key, value in OPTIONS.get(network, {}).items():
        words += ["--network-option", key, repr(value)]
    return main(words)


FILES = {
    "ParT": {"sparsity", "weights", "score_ratio", "importance", "ablation"}
    | {f"jet{i}_{name}" for i in (0, 1) for name in ("maps", "graph", "interaction")},
    "LinformerParT": {"importance", "slots", "jet0_graph", "jet1_graph", "ablation"},
    "ReformerParT": {"sparsity", "weights", "importance"}
    | {"jet1_maps", "jet1_graph", "jet1_buckets"},
    "MambaParT": {"importance", "jet1_graph", "jet1_scan"},
    "PN": {"jet1_neighbours"},
}


@pytest.mark.parametrize("network", FILES)
def test_command_on_every_family(network, tmp_path, capsys):
    path = checkpoint(tmp_path, network)
    out = tmp_path / "deep" / "out"
    ablate = "ablation" in FILES[network]
    extra = ("--jets", "1,0", "--ablate") if ablate else ("--jets", "1,")
    assert attention(network, path, out, *extra) == 0
    written = {file.name for file in out.iterdir()}
    tables = {"measures.csv", "measures.json", "index.html", "explore.html"} | (
        {"ablation.csv"} if ablate else set()
    )
    assert written == tables | {f"{n}.{kind}" for n in FILES[network] for kind in ("png", "pdf")}
    content = json.loads((out / "measures.json").read_text())
    assert content["num_jets"] == 1 + ablate == sum(content["num_jets_per_class"])
    with open(out / "measures.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(content["measures"]) > 0
    page = (out / "index.html").read_text()
    assert len(re.findall('src="data:image/png;base64,', page)) == len(FILES[network])
    assert set(re.findall(r"(?:src|href)=\"(?!data:)(.*?)\"", page)) == {"explore.html"}
    assert "index.html" in capsys.readouterr().out.replace("\n", "")


def test_jets_are_counted_through_all_files(tagger):
    whole = ak.from_parquet(SAMPLE)
    picked = interpret.read_jets(tagger, [SAMPLE, SAMPLE], [len(whole) + 5, 0, 5])
    assert picked["jet_pt"].to_list() == [whole["jet_pt"][i] for i in (5, 0, 5)]
    assert len(interpret.read_jets(tagger, [SAMPLE, SAMPLE], len(whole) + 1)) == len(whole) + 1


def test_default_jets_and_rows(tagger, jets):
    typical = TypicalJets(tagger, enough=10)
    for start in (0, 3, 6):
        typical.update(np.arange(start, start + 3), jets[start : start + 3])
    index, chosen = typical.result()
    assert index == [2, 5] and chosen.to_list() == jets[[2, 5]].to_list()
    found = interpret.study(tagger, jets)
    rows = measure_rows(found)
    names = {row["measure"] for row in rows}
    assert {"non_binary", "particles_moved", "head_cosine", "score_exceeds_bias"} < names
    (overall,) = (r for r in rows if r["measure"] == "non_binary" and r["layer"] == "")
    assert overall["value"] == pytest.approx(found.rows["non_binary"].mean())
    assert {row["class"] for row in rows} == {"", "jet_isQ", "jet_isG"}


def test_jets_without_labels_and_types(tagger, jets, tmp_path, capsys):
    bare = jets[[name for name in jets.fields if name != "label" and "_is" not in name]]
    file = tmp_path / "bare.parquet"
    ak.to_parquet(bare, file)
    report = interpret.explain(tagger, "ParT", [file], **OPTIONS["ParT"])
    assert [note.split(":")[0] for note in report.notes] == [
        "The jets have no particle types",
        "The jets have no labels",
    ]
    assert report.study.classes == ["all"] and not report.study.has_types
    assert "to_leptons" not in report.study.rows
    by_rank = report.study.importance["class_attention", "rank"]
    assert by_rank.shape == (1, 30) and not np.isnan(by_rank).any()
    code = attention("ParT", checkpoint(tmp_path), tmp_path / "no", "--ablate", data=file)
    assert code == 2 and "no labels" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()


def test_without_fastjet(tagger, jets, monkeypatch):
    monkeypatch.setitem(sys.modules, "fastjet", None)
    found = interpret.study(tagger, jets)
    assert not found.has_subjets and "same_subjet" not in found.rows


def test_misuse(tmp_path, capsys, jets):
    part, pfn = checkpoint(tmp_path), checkpoint(tmp_path, "PFN")
    ak.to_parquet(jets[:0], tmp_path / "empty.parquet")
    (tmp_path / "file").write_text("")
    for network, weights, extra, data, words in (
        ("PFN", pfn, (), SAMPLE, "PFN has no attention"),
        ("PCNN", checkpoint(tmp_path, "PCNN"), (), SAMPLE, "PCNN has no attention"),
        ("ParT", pfn, (), SAMPLE, "does not fit ParT"),
        ("ParT", tmp_path / "none.pt", (), SAMPLE, "There is no checkpoint"),
        ("ParT", part, ("--jets", "3,99999"), SAMPLE, "There is no jet 99999"),
        ("ParT", part, ("--jets", "0,"), tmp_path / "empty.parquet", "There are no jets"),
        ("ParT", part, (), tmp_path / "none.parquet", "There is no file"),
    ):
        assert attention(network, weights, tmp_path / "out", *extra, data=data) == 2
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("jetzoo: ") and words in error and error.endswith(".")
        assert not (tmp_path / "out").exists()
    assert attention("ParT", part, tmp_path / "out", "--jets", "0,", "--ablate") == 2
    assert "of one class" in capsys.readouterr().err
    assert attention("PN", checkpoint(tmp_path, "PN"), tmp_path / "out", "--ablate") == 2
    assert "no attention that an ablation can change" in capsys.readouterr().err
    assert attention("ParT", part, tmp_path / "file", "--jets", "2,") == 2
    assert "cannot be made" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        attention("ParT", part, tmp_path / "out", "--jets", "x")
    assert stop.value.code == 2
    with pytest.raises(UserError, match="no attention"), interpret.record(torch.nn.Linear(1, 1)):
        pass


def changed(jets, folder, **columns):
    """The jets with other columns, in a file."""
    path = folder / "changed.parquet"
    ak.to_parquet(ak.Array({n: columns.get(n, jets[n]) for n in jets.fields}), path)
    return path


def test_jets_that_are_not_finite_are_left_out(tagger, tmp_path, capsys, jets):
    momenta = jets["part_px"].to_list()
    momenta[0][3], momenta[4][0] = np.inf, np.nan
    file = changed(jets, tmp_path, part_px=momenta)
    some = interpret.explain(tagger, "ParT", [file], **OPTIONS["ParT"])
    assert "2 of 8 jets have NaN or infinite inputs: they are left out." in some.notes
    good = changed(jets[[1, 2, 3, 5, 6, 7]], tmp_path)
    expected = interpret.explain(tagger, "ParT", [good], **OPTIONS["ParT"])
    assert some.study.num_jets == expected.study.num_jets == 6
    np.testing.assert_array_equal(some.study.histogram, expected.study.histogram)
    np.testing.assert_allclose(some.study.rows["entropy"], expected.study.rows["entropy"], 1e-5)
    assert [d.index for d in some.study.drawn] == [2, 5]  # as the files count them
    assert [d.index for d in expected.study.drawn] == [1, 3]

    file = changed(jets, tmp_path, part_px=ak.ones_like(jets["part_px"]) * np.inf)
    path = checkpoint(tmp_path)
    assert attention("ParT", path, tmp_path / "none", "--jets", "0,", data=file) == 2
    assert "All jets have particles with inputs that are NaN" in capsys.readouterr().err


def test_attention_that_is_not_finite(tmp_path, jets):
    tagger = tagger_of(tmp_path)
    transformer(tagger.model).blocks[1].attn.in_proj.weight.data[0] = np.nan
    with pytest.raises(UserError, match="attention of 7 jets is NaN or infinite"):
        interpret.study(tagger, jets)  # the eighth has no particles


LABELS = [1, 0, 1, 0, 1, 0, 1, 0]


@pytest.mark.parametrize(
    "name, column, words",
    [
        ("label", [np.nan, *LABELS[1:]], "1 of 8 jets have labels .label. that are not one of"),
        ("label", [None, None, *LABELS[2:]], "2 of 8 jets have labels"),
        ("label", [1, 0, 7, -1, 0, 1, 0, 1], "2 of 8 jets have labels .*first is jet 2"),
        ("label", [1, 0, 0.5, 1, 0, 1, 0, 1], "1 of 8 jets have labels"),
        ("label", ["quark"] * 8, "label holds string, not numbers"),
        ("label", [[1]] * 8, "label is a label, which is one number for each jet"),
        ("part_px", [1.0] * 8, "part_px has no list of particles"),
        ("part_px", ["much"] * 8, "part_px holds string, not numbers"),
        ("part_px", [[[1.0]]] * 8, "part_px holds var . var . float64, not numbers"),
        ("part_px", [[1.0]] * 8, "part_px have jets of different lengths"),
        ("part_px", [[None]] + [[1.0]] * 7, "part_px lacks values in 1 of 8 jets"),
        ("jet_pt", [None] * 2 + [1.0] * 6, "jet_pt lacks values in 2 of 8 jets"),
        ("part_isMuon", [1] * 8, "part_isMuon has no list of particles"),
    ],
)
def test_columns_that_are_not_jets(tagger, jets, tmp_path, name, column, words):
    file = changed(jets, tmp_path, **{name: ak.Array(column)})
    with pytest.raises(UserError, match=words) as error:
        interpret.read_jets(tagger, [file])
    assert str(file) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.real
def test_published_jets(real_data, tagger):
    data = [real_data / "quarkgluon_1000.parquet"]
    report = interpret.explain(tagger, "ParT", data, jets=20, **OPTIONS["ParT"])
    assert report.study.num_jets == 20 and any("drawn as dots" in note for note in report.notes)
    assert 0 <= report.study.rows["non_binary"].mean() <= 1
