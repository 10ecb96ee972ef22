"""Reports of files of any size: the same numbers as of jets in memory, in constant memory."""

import awkward as ak
import handmade
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from explained import OPTIONS

from jetzoo import UserError, interpret, jets, tables
from jetzoo.interpret import report, studies, survey
from jetzoo.interpret.survey import Survey, finite_jets

COUNTS = (9, 0, 20, 1, 3, 12, 30, 7, 15, 2)


def write(path, repeat=1, seed=0):
    handmade.write_parquet(path, COUNTS * repeat, np.random.default_rng(seed))
    return path


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Three files of 20, 10 and 20 jets of several chunks each, of which four are not finite."""
    monkeypatch.setattr(tables, "CHUNK", 16)
    paths = [write(tmp_path / "a.parquet", 2), write(tmp_path / "b.parquet", 1, 1)]
    whole = ak.from_parquet(paths[0])
    momenta = whole["part_px"].to_list()
    for jet in (0, 2, 5, 12):
        momenta[jet][0] = np.nan
    changed = {name: whole[name] for name in whole.fields} | {"part_px": momenta}
    ak.to_parquet(ak.Array(changed), paths[0])
    tables.write(tmp_path / "c.root", ak.from_parquet(write(tmp_path / "x.parquet", 2, 2)))
    return [*paths, tmp_path / "c.root"]


def assert_same(one, other):
    """Studies of the same jets, in batches of another order."""
    assert (one.num_jets, one.num_per_class, one.classes) == (
        other.num_jets,
        other.num_per_class,
        other.classes,
    )
    assert one.rows.keys() == other.rows.keys() and one.importance.keys() == other.importance.keys()
    for name, values in one.rows.items():
        np.testing.assert_allclose(other.rows[name], values, 1e-4, 1e-6, err_msg=name)
    for name, values in one.importance.items():
        np.testing.assert_allclose(other.importance[name], values, 1e-4, 1e-6, err_msg=name)
    np.testing.assert_allclose(other.moved[0], one.moved[0], atol=0.01)
    np.testing.assert_allclose(other.cosines, one.cosines, rtol=1e-4)
    for name in ("histogram", "ratios"):
        counts = getattr(one, name), getattr(other, name)
        np.testing.assert_array_equal(*(x.sum(1) for x in counts))
        np.testing.assert_allclose(*counts, atol=2)  # rounded to the other side of an edge


@pytest.mark.parametrize("limit", [None, 1, 26])
def test_a_survey_is_the_jets_in_memory(tagger, files, limit):
    whole = interpret.read_jets(tagger, files, limit)
    try:
        expected, index, notes = finite_jets(tagger, whole, limit)
    except UserError as error:
        with pytest.raises(UserError, match=str(error)):
            Survey(tagger, files, limit)
        assert limit == 1
        return
    found = Survey(tagger, files, limit)
    assert len(found) == len(expected) and found.notes == notes
    for _ in range(2):
        chunks = list(found)
        assert max(map(len, chunks)) <= 16
        assert ak.concatenate(chunks).to_list() == expected.to_list()
    assert found.first.to_list() == expected.to_list() and len(expected) < survey.FIRST
    known = dict(zip(index.tolist(), expected.to_list(), strict=True))
    assert [known[i] for i in found.index] == found.typical.to_list()
    labels = jets.true_classes(tagger, found.typical)
    assert labels.tolist() == sorted(set(jets.true_classes(tagger, expected)))


def test_a_report_is_that_of_the_jets_in_memory(tagger, files, monkeypatch):
    monkeypatch.setattr(report, "study_panels", lambda *arguments: [])
    options = OPTIONS["ParT"]
    found = interpret.explain(tagger, "ParT", files, with_ablations=True, **options)
    sample, index, notes = finite_jets(tagger, interpret.read_jets(tagger, files), None)
    assert (
        found.notes[0] == notes[0] == "4 of 50 jets have NaN or infinite inputs: they are left out."
    )
    assert_same(interpret.study(tagger, sample, batch_size=50), found.study)
    first = studies.initial("ParT", tagger, sample, **options)
    expected = studies.weight_histogram(first, tagger, sample)
    np.testing.assert_array_equal(found.study.untrained, expected)
    assert [one.index for one in found.study.drawn] == [6, 15]
    for one in found.study.drawn:
        other = interpret.look(tagger, sample, index.tolist().index(one.index))
        np.testing.assert_array_equal(one.records[0].weights, other.records[0].weights)
    expected = interpret.ablate(tagger, sample)
    for (change, a), (other, b) in zip(expected, found.ablations, strict=True):
        assert change == other and a["num_jets_per_class"] == b["num_jets_per_class"]
        assert b["accuracy"] == a["accuracy"] and b["auc"] == pytest.approx(a["auc"], abs=1e-9)


def test_the_first_jets_stop_there(tagger, files, monkeypatch):
    read, chunks = [], tables.chunks
    monkeypatch.setattr(
        tables, "chunks", lambda path, *x, **y: read.append(path) or chunks(path, *x, **y)
    )
    found = jets.read_jets(tagger, files, 26)
    assert read == files[:2] and len(found) == 26
    with pytest.raises(UserError, match="must be positive, not 0"):
        jets.read_jets(tagger, files, 0)


def test_a_file_that_changes_between_the_passes(tagger, files):
    found = Survey(tagger, files)
    tables.write(files[2], ak.from_parquet(files[1]))
    with pytest.raises(UserError, match="c.root has been changed: it has fewer jets than before"):
        interpret.study(tagger, found)


def test_a_place_in_a_long_file(tagger, files):
    whole = ak.from_parquet(files[0])
    labels = ak.to_numpy(whole["label"]).copy()
    labels[18] = 7
    ak.to_parquet(ak.with_field(whole, labels, "label"), files[0])
    with pytest.raises(UserError, match="a.parquet, of the jets from 16 to 19: 1 of 4 .*is jet 2"):
        jets.read_jets(tagger, files)


def test_memory_does_not_grow_with_the_jets(tagger, tmp_path, monkeypatch):
    """Arrow has what is read, and all that is kept of it without a copy."""
    monkeypatch.setattr(tables, "CHUNK", 100)
    monkeypatch.setattr(survey, "FIRST", 100)
    most = []
    for repeat in (30, 120):
        path = write(tmp_path / f"{repeat}.parquet", repeat)
        pq.write_table(pq.read_table(path), path, row_group_size=100)
        before, held = pa.total_allocated_bytes(), []
        found = Survey(tagger, [path])
        held.append(pa.total_allocated_bytes() - before)
        for chunk in found:
            held.append(pa.total_allocated_bytes() - before)
            assert len(chunk) == 100
        most.append(max(held))
    assert len(held) == 13 and 0 < most[1] < 1.5 * most[0], most
