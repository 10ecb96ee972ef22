"""Metrics against planted values, and the files that weaver itself writes."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score
from weaver.train import save_parquet, save_root

from jetzoo import UserError, tables
from jetzoo.metrics import numbers, predictions, roc

JETCLASS = ["QCD", "Hbb", "Hcc", "Hgg", "H4q", "Hqql", "Zqq", "Wqq", "Tbqq", "Tbl"]
JETCLASS = [f"label_{name}" for name in JETCLASS]
QUARK_GLUON = ["jet_isQ", "jet_isG"]


def binary(signal, background):
    """Labels and scores of jets with the given probabilities to be signal."""
    p = np.concatenate([signal, background])
    labels = np.repeat([0, 1], [len(signal), len(background)])
    return labels, np.stack([p, 1 - p], axis=1)


def random_predictions(rng, num_jets, classes):
    labels = rng.integers(len(classes), size=num_jets)
    logits = rng.normal(size=(num_jets, len(classes)))
    logits[np.arange(num_jets), labels] += 1
    scores = np.exp(logits)
    return labels, (scores / scores.sum(axis=1, keepdims=True)).astype(np.float32)


def test_binary_metrics_have_the_planted_values():
    # 100 quarks at 0.005, 0.015, ...; of 200 gluons, 20 stand above the median quark, four of
    # them above 70% of the quarks, and 180 below all quarks but the first.
    signal = (np.arange(100) + 0.5) / 100
    background = np.repeat([0.9, 0.6, 0.01], [4, 16, 180])
    metrics = numbers.evaluate(*binary(signal, background), QUARK_GLUON)

    auc = (4 * 0.10 + 16 * 0.40 + 180 * 0.99) / 200
    assert metrics["auc"] == pytest.approx(auc, abs=1e-12)
    assert metrics["accuracy"] == pytest.approx((50 + 180) / 300)
    assert metrics["accuracy_error"] == pytest.approx(math.sqrt(230 / 300 * 70 / 300 / 300))
    assert metrics["num_jets_per_class"] == {"jet_isQ": 100, "jet_isG": 200}

    half, third = metrics["rejections"]
    assert (half["signal"], half["background"]) == ("jet_isQ", "jet_isG")
    assert (half["signal_efficiency"], third["signal_efficiency"]) == (0.5, 0.3)
    assert half["rejection"] == pytest.approx(200 / 20)
    assert third["rejection"] == pytest.approx(200 / 4)
    assert third["background_passing"] == pytest.approx(4)
    # Four of 200: sigma(eps) = sqrt(0.02 * 0.98 / 200), relative error 49.5%.
    assert third["error"] == pytest.approx(50 * math.sqrt(0.98 / 4))
    assert third["lower_limit"] is None
    assert metrics["notes"] == []


def test_ties_are_interpolated():
    # One cut only: 80% of the signal and 10% of the background share one score.
    labels, scores = binary(np.repeat([0.8, 0.2], [80, 20]), np.repeat([0.8, 0.2], [10, 90]))
    metrics = numbers.evaluate(labels, scores, QUARK_GLUON)
    assert metrics["rejections"][0]["rejection"] == pytest.approx(1 / (0.1 * 50 / 80))
    assert metrics["auc"] == pytest.approx(0.8 * 0.9 + 0.5 * (0.8 * 0.1 + 0.2 * 0.9))


def test_flat_part_of_the_curve_counts_its_larger_background():
    # At exactly half of the signal, cuts with no and with one background jet both serve.
    labels, scores = binary([0.9, 0.5], [0.7, 0.1, 0.1, 0.1])
    assert numbers.evaluate(labels, scores, QUARK_GLUON)["rejections"][0]["rejection"] == 4


def test_no_background_passes():
    labels, scores = binary(np.full(50, 0.9), np.full(1000, 0.1))
    metrics = numbers.evaluate(labels, scores, QUARK_GLUON)
    row = metrics["rejections"][0]
    assert row["rejection"] is None and row["error"] is None
    # With that efficiency, no jet of a thousand passes in 5% of the cases.
    assert (1 - 1 / row["lower_limit"]) ** 1000 == pytest.approx(0.05)
    assert metrics["auc"] == 1.0
    json.dumps(metrics, allow_nan=False)
    assert roc.roc_figure(labels, scores, QUARK_GLUON) is not None


def test_saturated_float32_scores_are_still_ordered():
    background = np.array([1e-9, 1e-8, 1e-3], np.float32)
    scores = np.stack([1 - background, background], axis=1)
    assert scores[0, 0] == scores[1, 0] == 1
    assert numbers.evaluate([0, 1, 1], scores, QUARK_GLUON)["auc"] == 1.0


def test_multiclass_auc_and_rejections():
    labels, scores = random_predictions(np.random.default_rng(1), 5000, JETCLASS)
    metrics = numbers.evaluate(labels, scores, JETCLASS)

    # One vs one by hand: the mean over ordered pairs of the AUC of a against b on the score of a.
    aucs = [
        roc_auc_score(labels[pair] == a, scores[pair, a])
        for a in range(10)
        for b in range(10)
        if a != b
        for pair in [(labels == a) | (labels == b)]
    ]
    assert metrics["auc"] == pytest.approx(np.mean(aucs), abs=1e-9)
    assert metrics["accuracy"] == np.mean(scores.argmax(axis=1) == labels)

    rows = {row["signal"]: row for row in metrics["rejections"]}
    assert list(rows) == JETCLASS[1:]
    assert {row["background"] for row in rows.values()} == {"label_QCD"}
    for name, row in rows.items():
        expected = {"label_Hqql": 0.99, "label_Tbl": 0.995}.get(name, 0.5)
        assert row["signal_efficiency"] == expected
        index = JETCLASS.index(name)
        ratio = scores[:, index] / (scores[:, index] + scores[:, 0])
        # The efficiency lies between those of two neighbouring cuts.
        cuts = np.sort(ratio[labels == index])[::-1]
        kept = int(expected * len(cuts))
        low, high = (np.sum(ratio[labels == 0] > cuts[i]) for i in (kept - 1, kept))
        assert low <= row["background_passing"] <= high
        assert row["rejection"] == pytest.approx(np.sum(labels == 0) / row["background_passing"])


def test_missing_classes_are_said():
    labels, scores = random_predictions(np.random.default_rng(2), 2000, JETCLASS[:4])
    kept = labels != 2
    metrics = numbers.evaluate(labels[kept], scores[kept], JETCLASS[:4])
    aucs = [
        roc_auc_score(labels[pair] == a, scores[pair, a])
        for a in (0, 1, 3)
        for b in (0, 1, 3)
        if a != b
        for pair in [(labels == a) | (labels == b)]
    ]
    assert metrics["auc"] == pytest.approx(np.mean(aucs), abs=1e-9)
    assert [row["signal"] for row in metrics["rejections"]] == ["label_Hbb", "label_Hgg"]
    assert "label_Hcc" in metrics["notes"][0]

    no_qcd = numbers.evaluate(labels[labels > 0], scores[labels > 0], JETCLASS[:4])
    assert no_qcd["rejections"] == [] and "label_QCD" in no_qcd["notes"][-1]
    other = numbers.evaluate(labels, scores, ["a", "b", "c", "d"])
    assert other["rejections"] == [] and "label_QCD" in other["notes"][-1]
    assert roc.roc_figure(labels, scores, ["a", "b", "c", "d"]) is None


def test_one_class_alone_has_no_auc():
    metrics = numbers.evaluate([0, 0], [[0.9, 0.1], [0.2, 0.8]], QUARK_GLUON)
    assert (metrics["auc"], metrics["accuracy"], metrics["rejections"]) == (None, 0.5, [])
    assert len(numbers.summary(metrics)) == 1


def test_a_jet_without_signal_and_background_probability_is_neutral():
    scores = np.array([[0, 0, 1], [0.1, 0.9, 0], [0.9, 0.1, 0]])
    row = numbers.evaluate([1, 1, 0], scores, ["label_QCD", "b", "c"])["rejections"][0]
    assert row["rejection"] is None


@pytest.mark.parametrize(
    ("labels", "scores", "message"),
    [
        ([], np.empty((0, 2)), "no jets"),
        ([0, 1], [[0.5, 0.5], [np.nan, 1]], "1 of 2 jets"),
        ([0, 1], [[2.0, -1.0], [0, 1]], "probabilities"),
        ([0, 1], [[3.0, 2.0], [0, 1]], "probabilities"),
        ([0, 2], [[0.5, 0.5], [0, 1]], "between 0 and 1"),
        ([0], [[0.2, 0.3, 0.5]], "do not fit"),
    ],
)
def test_misuse(labels, scores, message):
    with pytest.raises(UserError, match=message):
        numbers.evaluate(labels, scores, QUARK_GLUON)


def weaver_files(folder, labels, scores, classes, stem="pred"):
    config = SimpleNamespace(label_type="simple", label_value=classes, label_names=["_label_"])
    observers = {"jet_pt": np.linspace(500, 550, len(labels), dtype=np.float32)}
    paths = [folder / f"{stem}.root", folder / f"{stem}.parquet"]
    save_root(None, str(paths[0]), config, scores, {"_label_": labels}, observers)
    save_parquet(None, str(paths[1]), scores, {"_label_": labels}, observers)
    return paths


def test_reads_what_weaver_writes(tmp_path):
    labels, scores = random_predictions(np.random.default_rng(3), 100, JETCLASS)
    root, parquet = weaver_files(tmp_path, labels, scores, JETCLASS)
    for path, names in ((root, None), (parquet, JETCLASS)):
        read_labels, read_scores, classes = predictions.read_predictions([path], names)
        np.testing.assert_array_equal(read_labels, labels)
        np.testing.assert_array_equal(read_scores, scores)
        assert classes == JETCLASS
    assert predictions.read_predictions([parquet])[2][:2] == ["class_0", "class_1"]
    read_labels, read_scores, _ = predictions.read_predictions([root, root])
    np.testing.assert_array_equal(read_labels, np.tile(labels, 2))
    np.testing.assert_array_equal(read_scores, np.tile(scores, (2, 1)))


@pytest.mark.parametrize("suffix", [".root", ".parquet"])
@pytest.mark.parametrize("num_jets", [1, 100])
def test_writes_what_weaver_writes(tmp_path, suffix, num_jets):
    labels, scores = random_predictions(np.random.default_rng(4), num_jets, QUARK_GLUON)
    observers = {"jet_pt": np.linspace(500, 550, num_jets, dtype=np.float32)}
    ours = tmp_path / f"ours{suffix}"
    predictions.write_predictions(ours, QUARK_GLUON, scores, labels, observers)
    branches, entries = tables.describe(ours)
    assert entries == num_jets
    np.testing.assert_array_equal(tables.read(ours, ["jet_pt"])["jet_pt"], observers["jet_pt"])
    np.testing.assert_array_equal(predictions.read_predictions([ours])[1], scores)
    if num_jets > 1:  # weaver's own ROOT file of a single jet is empty
        root, parquet = weaver_files(tmp_path, labels, scores, QUARK_GLUON)
        theirs = root if suffix == ".root" else parquet
        assert tables.describe(theirs)[0] == branches
        a, b = (tables.read(path, branches) for path in (ours, theirs))
        assert a.type == b.type and a.to_list() == b.to_list()


def test_files_that_are_no_predictions(tmp_path):
    labels, scores = random_predictions(np.random.default_rng(5), 20, QUARK_GLUON)
    root, parquet = weaver_files(tmp_path, labels, scores, QUARK_GLUON)
    other, _ = weaver_files(tmp_path, labels, scores, QUARK_GLUON[::-1], stem="other")
    untruthful = tmp_path / "data.root"
    predictions.write_predictions(untruthful, QUARK_GLUON, scores)
    jets = tmp_path / "jets.parquet"
    tables.write(jets, tables.read(parquet, ["jet_pt", "_label_"]))
    garbage = tmp_path / "garbage.root"
    garbage.write_bytes(b"no tree in here")
    empty = tmp_path / "empty.parquet"
    empty.touch()
    text = tmp_path / "pred.txt"
    text.touch()
    for files, message in (
        ([untruthful], "no branch _label_"),
        ([jets], "not weaver's output"),
        ([garbage], "cannot be read as root"),
        ([empty], "cannot be read as parquet"),
        ([text], "neither .root nor .parquet"),
        ([tmp_path / "absent.root"], "no file"),
        ([root, other], "has the classes jet_isG, jet_isQ"),
    ):
        with pytest.raises(UserError, match=message):
            predictions.read_predictions(files)
    with pytest.raises(UserError, match="2 classes"):
        predictions.read_predictions([parquet], JETCLASS)


def test_figure_shows_the_curve():
    labels, scores = random_predictions(np.random.default_rng(6), 4000, JETCLASS)
    (axes,) = roc.roc_figure(labels, scores, JETCLASS).axes
    lines = [line for line in axes.lines if line.get_marker() == "None"]
    assert len(lines) == 9
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == 9
    metrics = numbers.evaluate(labels, scores, JETCLASS)
    x, y = lines[0].get_data()
    assert np.interp(0.5, x, y) == pytest.approx(metrics["rejections"][0]["rejection"])
    assert axes.get_yscale() == "log" and axes.get_xlim() == (0, 1)


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "metrics.json"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), tables.atomic(path) as partial:
        partial.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
