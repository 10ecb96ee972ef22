"""Jets that are not what a data config takes: right scores, NaN, or one sentence; never others."""

import re

import awkward as ak
import handmade
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import uproot
from test_outputs import command, refused

import jetzoo
from jetzoo import UserError, cli, comparison, repository, tables
from jetzoo.metrics import predictions
from jetzoo.prediction.files import predict_files

KIN = "QuarkGluon/qg_kin"


def columns(counts=(3, 5, 2), **changes):
    """Jets as columns, some of them replaced."""
    jets = handmade.particles(counts, np.random.default_rng(1))
    return {**jets, "label": np.arange(len(counts)) % 2, **changes}


def write(folder, suffix=".parquet", **changes):
    path = folder / f"jets{suffix}"
    table = ak.Array(columns(**changes))
    if suffix == ".root":
        with uproot.recreate(path) as file:
            tree = file.mktree("tree", {name: table[name].type for name in table.fields})
            tree.extend({name: table[name] for name in table.fields})
    else:
        ak.to_parquet(table, path)
    return path


@pytest.fixture
def tagger(network):
    return jetzoo.load(*network, KIN, "cpu")


LISTS = columns()["part_px"]


@pytest.mark.parametrize(
    "name, column, message",
    [
        ("part_px", [1.0, 2.0, 3.0], "Branch part_px has no list of particles for each jet"),
        ("part_energy", [1.0, 2.0, 3.0], "part_e_log = np.log.part_energy. has no number for each"),
        ("part_px", LISTS[:, 1:], "Branches part_d.* and part_px have jets of different lengths"),
        ("part_px", [["a"] * 3, ["b"] * 5, ["c"] * 2], "Branch part_px holds var . string, not"),
        ("part_px", ["a", "b", "c"], "Branch part_px holds string, not numbers"),
        ("part_px", [[1, 2, 3], None, [1, 2]], "Branch part_px lacks values in 1 of 3 jets"),
        ("part_px", [[1, 2, None], [1] * 5, [1, 2]], "Branch part_px lacks values in 1 of 3 jets"),
        ("part_px", [[[1, 2, 3]], [[1] * 5], [[1, 2]]], "Branch part_px holds var . var"),
        ("jet_pt", LISTS, "Branch jet_pt has a list in place of one number for each jet"),
        ("jet_pt", [1.0, None, 3.0], "Branch jet_pt lacks values in 1 of 3 jets"),
        ("jet_pt", ["a", "b", "c"], "Branch jet_pt holds string, not numbers"),
        ("jet_energy", [{"x": 1}] * 3, "Branch jet_energy holds .*x.*, not numbers"),
        ("label", [0, 7, 1], "1 of 3 jets have labels .label. that are not one of the classes"),
        ("label", [0, -1, 1], "1 of 3 jets have labels"),
        ("label", [0, 0.5, 1], "1 of 3 jets have labels"),
        ("label", [0, np.nan, 1], "1 of 3 jets have labels"),
        ("label", [0, None, 1], "1 of 3 jets have labels"),
        ("label", ["a", "b", "c"], "label"),
        ("label", [[0], [1], [1]], "label"),
    ],
)
def test_columns_that_are_none(tagger, tmp_path, name, column, message):
    path = write(tmp_path, **{name: ak.Array(column)})
    with pytest.raises(UserError, match=message) as caught:
        predict_files(tagger, [write(tmp_path, ".root"), path], tmp_path / "pred.root")
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)
    with pytest.raises(UserError, match=message) as caught:
        comparison.compare(tagger, [path], [path], tmp_path / "x.pt", "Mean", method="dynamic")
    assert str(caught.value).startswith(f"{path}: ")
    assert not (tmp_path / "pred.root").exists() and not (tmp_path / "x.pt").exists()
    if name != "label":
        with pytest.raises(UserError, match=message):
            tagger.inputs(ak.from_parquet(path))


@pytest.mark.parametrize("jets", [{"part_px": [1]}, [1, 2], None, np.zeros(3)])
def test_what_is_no_array_of_jets(tagger, jets):
    with pytest.raises(UserError, match="Jets are an awkward array of records"):
        tagger.inputs(jets)


@pytest.mark.parametrize("number", [1, 7, 20, 40])
def test_lists_of_a_fixed_size(tagger, tmp_path, number):
    """Also where there are as many jets as particles."""
    jets = ak.Array(columns((number,) * 20))
    expected = tagger.predict(jets)
    assert np.isfinite(expected).all() and (number == 1 or np.ptp(expected) > 1e-3)
    fixed = {name: ak.to_numpy(jets[name]) for name in jets.fields}
    np.testing.assert_array_equal(tagger.predict(ak.Array(fixed)), expected)
    np.testing.assert_array_equal(tagger.predict(ak.Array(fixed)[3:9]), expected[3:9])
    arrow = {
        name: pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), number) if x.ndim > 1 else x
        for name, x in fixed.items()
    }
    path = tmp_path / "fixed.parquet"
    pq.write_table(pa.table(arrow), path)
    assert "fixed_size_list" in str(pq.read_schema(path))
    predict_files(tagger, [path], tmp_path / "pred.parquet")
    scores = tables.read(tmp_path / "pred.parquet", ["scores"])["scores"].to_numpy()
    np.testing.assert_allclose(scores, expected, atol=1e-6)


@pytest.mark.parametrize("dtype", ["int32", "float16", "float64", "bool"])
def test_other_types_of_numbers(tagger, dtype):
    jets = ak.Array(columns())
    for name in tagger.branches:
        jets[name] = ak.values_astype(ak.ones_like(jets[name]), dtype)
    scores = tagger.predict(jets)
    expected = tagger.predict(ak.values_astype(jets, "float32"))
    np.testing.assert_allclose(scores, expected, atol=1e-3)
    assert np.isfinite(scores).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["part_px", "part_energy", "part_deta", "jet_pt"])
@pytest.mark.parametrize("fast", [True, False])
def test_jets_that_are_not_finite_have_no_score(network, value, name, fast):
    tagger = jetzoo.load(*network, KIN, "cpu", fast=fast)
    jets = ak.Array(columns((3, 5, 0, 2, 200)))
    expected = tagger.predict(jets)
    assert np.isfinite(expected).all()
    flat = np.asarray(ak.flatten(jets[name], axis=None)).copy()
    flat[1 if name == "jet_pt" else 4] = value  # of jet 1
    jets[name] = flat if name == "jet_pt" else ak.unflatten(flat, ak.num(jets[name]))
    scores = tagger.predict(jets)
    assert np.isnan(scores[1]).all()
    others = [0, 2, 3, 4]
    np.testing.assert_allclose(scores[others], expected[others], atol=1e-6)


def test_commands_say_how_many_jets_are_not_finite(network, tmp_path, capsys, caplog):
    px = np.asarray(ak.flatten(LISTS)).copy()
    px[[0, 1, 9]] = np.nan, np.inf, np.nan
    path = write(tmp_path, part_px=ak.unflatten(px, ak.num(LISTS)))
    output = tmp_path / "pred.root"
    words = command(network, "predict", "--output", output, path, write(tmp_path, ".root"))
    assert cli.main(list(map(str, words))) == 0
    out, err = capsys.readouterr()
    assert "Variable" not in err + caplog.text  # weaver has a warning for each branch
    assert "note: 2 of 6 jets have values that are NaN or infinite: their scores are NaN.\n" in out
    scores = tables.read(output, ["score_jet_isQ"])["score_jet_isQ"].to_numpy()
    np.testing.assert_array_equal(np.isnan(scores), [True, False, True, False, False, False])
    assert "2 of 6 jets have scores that are NaN" in refused(capsys, ["evaluate", output])
    words = command(network, "quantize", "--calibration", tmp_path / "jets.root", "--data", path)
    found = refused(capsys, [*words, "--method", "dynamic", "--output", tmp_path / "x.pt"])
    assert f"{path}: 2 of 3 jets have values that are NaN or infinite in part_px" in found


# Files that cannot be read


def cut(path, keep):
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
    return path


@pytest.mark.parametrize("suffix", [".parquet", ".root"])
@pytest.mark.parametrize("keep", [0, 0.3, 0.7, 0.95])
def test_cut_files(tagger, tmp_path, suffix, keep):
    path = cut(write(tmp_path, suffix), keep)
    with pytest.raises(UserError, match="cannot be read as|should hold") as caught:
        predict_files(tagger, [path], tmp_path / "pred.root")
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "pred.root").exists()


@pytest.mark.parametrize("error", [RecursionError, KeyError("x"), IndexError, MemoryError, OSError])
def test_whatever_uproot_raises(tagger, tmp_path, monkeypatch, error):
    path = write(tmp_path, ".root")

    def fail(*arguments):
        raise error

    monkeypatch.setattr(uproot, "open", fail)
    with pytest.raises(UserError, match="jets.root cannot be read as root: ."):
        predict_files(tagger, [path], tmp_path / "pred.root")


GOOD = (repository.home() / "data" / "QuarkGluon" / "qg_kin.yaml").read_text()


@pytest.mark.parametrize(
    "text, message",
    [
        (b"\xff\xfe\x00", "not a data config"),
        (b"a: [1", "not a data config"),
        (b"", "not a data config"),
        (b"- 1", "not a data config"),
        (b"inputs: 3", "not a data config"),
        (b"&a [*a, *a]", "not a data config"),
        (GOOD.replace("type: simple", "type: custom"), "labels of type 'custom'|not a data config"),
        (GOOD.replace("value: [jet_isQ, jet_isG]", "value: 3"), "not a data config"),
        (GOOD.replace("value: [jet_isQ, jet_isG]", "value: []"), "not a data config"),
        (GOOD.replace("np.log(part_pt)", "np.log(part_pt"), "not a data config.*SyntaxError"),
        (GOOD.replace("np.log(part_pt)", "3"), "not a data config.*TypeError|instead of a text"),
        (GOOD.replace("np.log(part_pt)", "np.lg(part_pt)"), "part_pt_log = np.lg.part_pt. of the"),
        (GOOD.replace("np.log(part_pt)", "lg(part_pt)"), "has no branch lg"),
        (GOOD.replace("np.log(part_pt)", "1 / 0 * part_pt"), "ZeroDivisionError"),
        (
            GOOD.replace("np.hypot(part_px, part_py)", "part_pt_log"),
            "Of part_pt, .*made of each other",
        ),
        (
            GOOD.replace("np.hypot(part_px, part_py)", "part_pt + 1"),
            "Of part_pt, .*made of each other",
        ),
        (GOOD.replace("length: 128", "length: 0"), "pad jets to 1"),
        (GOOD.replace("[part_pt_log, 1.7", "[part_pt_log, .nan"), "part_pt_log is not made of"),
        (GOOD.replace("[part_pt_log, 1.7", "[part_pt_log, a"), "not a data config"),
        (GOOD.replace("method: manual", "method: auto"), "leaves the range of .* to a training"),
        (
            GOOD.replace("pf_features:", "features:"),
            "config.yaml: Mean takes .* pf, features",
        ),
    ],
)
def test_broken_data_configs(network, tmp_path, capsys, text, message):
    path = tmp_path / "config.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    jets = write(tmp_path)
    words = command(network, "predict", "--output", tmp_path / "pred.root", jets)
    words[3] = f"--data-config={path}"
    found = refused(capsys, words)
    assert re.search(message, found), found
    assert not (tmp_path / "pred.root").exists()


# Predictions


@pytest.mark.parametrize(
    "labels, message",
    [
        ([0, 0.5, 1], "Labels must lie between 0 and 1, whole numbers; 1 of 3 do not"),
        ([0, np.nan, 1], "Labels must lie between 0 and 1, whole numbers; 1 of 3 do not"),
        ([0, 7, 1], "Labels must lie between 0 and 1, whole numbers; 1 of 3 do not"),
        ([0, -1, 1], "first is -1 of jet 1"),
        ([0, None, 1], "Branch _label_ lacks values"),
        (["a", "b", "c"], "Branch _label_"),
        ([[0], [1], [1]], "Branch _label_"),
    ],
)
def test_labels_that_are_no_classes(tmp_path, capsys, labels, message):
    path = tmp_path / "pred.parquet"
    scores = [[0.75, 0.25], [0.5, 0.5], [0.25, 0.75]]
    ak.to_parquet(ak.Array({"scores": np.array(scores), "_label_": ak.Array(labels)}), path)
    assert message in (found := refused(capsys, ["evaluate", path])) and f"{path}: " in found
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "scores, message",
    [
        ([[0.75, 0.25], [0.5], [0.25, 0.75]], "Branch scores"),
        ([[0.75, 0.25], None, [0.25, 0.75]], "Branch scores lacks values"),
        ([["a", "b"]] * 3, "Branch scores"),
        ([0.75, 0.5, 0.25], "Branch scores"),
        ([[0.75, np.nan], [0.5, 0.5], [0.25, 0.75]], "1 of 3 jets have scores that are NaN"),
        ([[2.0, 0.25], [0.5, 0.5], [0.25, 0.75]], "not probabilities"),
    ],
)
def test_scores_that_are_none(tmp_path, capsys, scores, message):
    path = tmp_path / "pred.parquet"
    ak.to_parquet(ak.Array({"scores": ak.Array(scores), "_label_": [0, 1, 1]}), path)
    assert message in refused(capsys, ["evaluate", path])


def test_good_predictions_are_read(tmp_path):
    scores = np.array([[0.75, 0.25], [0.5, 0.5], [0.25, 0.75]])
    predictions.write_predictions(tmp_path / "x.root", ["a", "b"], scores, np.array([0.0, 1, 1]))
    labels, found, classes = predictions.read_predictions([tmp_path / "x.root"])
    assert labels.dtype == np.int64 and labels.tolist() == [0, 1, 1] and classes == ["a", "b"]
    np.testing.assert_array_equal(found, scores)
