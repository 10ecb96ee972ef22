"""Conversion of the original releases, and the parquet schema."""

import contextlib
import io
import os
import pickle
import subprocess
import sys
from pathlib import Path

import awkward as ak
import numpy as np
import pandas as pd
import pytest
import tables.attributeset as pytables
from conftest import ROOT
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jetzoo import UserError, hdf5
from jetzoo.datasets import convert
from jetzoo.schema import jets_table, massless_p4, write_parquet


def qg_arrays(pt):
    """Jets as in the .npz release, their first particle at eta 0.5, phi 3.1, a photon."""
    x = np.zeros((len(pt), 4, 4))
    for i, first in enumerate(pt):
        x[i, 0] = [first, 0.5, 3.1, 22]
        x[i, 1] = [first / 2, 0.4, 3.2 - 2 * np.pi, -211]
    x[:, 2] = [200.0, 0.5, 3.1, 11]  # the hardest one does not come first
    return {"X": x, "y": np.arange(len(pt)) % 2.0}


def test_convert_quarkgluon(tmp_path):
    names = ["QG_jets.npz", *(f"QG_jets_{i}.npz" for i in range(1, 20))]
    for i, name in enumerate(names):
        np.savez(tmp_path / name, **qg_arrays([100.0 + i, 110.0 + i]))
    shuffled = sorted(tmp_path / name for name in names)
    folder = convert("QuarkGluon", shuffled, tmp_path / "out")
    assert folder == tmp_path / "out" / "QuarkGluon"
    expected = {f"train_file_{i}.parquet" for i in range(18)}
    assert set(os.listdir(folder)) == expected | {"test_file_0.parquet", "test_file_1.parquet"}
    assert os.listdir(tmp_path / "out") == ["QuarkGluon"]

    jets = ak.from_parquet(folder / "test_file_0.parquet")  # QG_jets_18
    assert jets.label.tolist() == [0, 1]
    assert jets.jet_nparticles.tolist() == [3, 3]
    pt = np.hypot(jets.part_px, jets.part_py)
    np.testing.assert_allclose(pt, [[200, 118, 59], [200, 128, 64]], rtol=1e-6)
    np.testing.assert_allclose(jets.part_energy[0], pt[0] * np.cosh([0.5, 0.5, 0.4]), rtol=1e-6)
    assert jets.part_pid.tolist() == [[11, 22, -211]] * 2
    assert jets.part_charge.tolist() == [[-1, 0, -1]] * 2
    assert jets.part_isElectron.tolist() == [[1, 0, 0]] * 2
    assert jets.part_isPhoton.tolist() == [[0, 1, 0]] * 2
    assert jets.part_isChargedHadron.tolist() == [[0, 0, 1]] * 2
    # The azimuth crosses pi inside the jet.
    np.testing.assert_allclose(jets.part_dphi[0][2] - jets.part_dphi[0][0], 0.1, atol=1e-6)
    np.testing.assert_allclose(jets.part_deta[0][2] - jets.part_deta[0][0], -0.1, atol=1e-6)


def test_convert_one_quarkgluon_file(tmp_path):
    np.savez(tmp_path / "QG_jets.npz", **qg_arrays(np.arange(100.0, 120.0)))
    convert("QuarkGluon", [tmp_path / "QG_jets.npz"], tmp_path)
    lengths = {
        split: len(ak.from_parquet(tmp_path / f"QuarkGluon/{split}_file_0.parquet"))
        for split in ("train", "test")
    }
    assert lengths == {"train": 18, "test": 2}


def test_convert_toplandscape(tmp_path):
    p4 = np.array([[[5, 3, 0, 4], [13, 0, -12, 5], [0, 0, 0, 0]]] * 3)  # E, px, py, pz
    columns = {
        f"{name}_{i}": p4[:, i, j].astype(np.float32)
        for i in range(3)
        for j, name in enumerate(["E", "PX", "PY", "PZ"])
    }
    frame = pd.DataFrame(columns | {"is_signal_new": [0, 1, 1]}, index=[7, 8, 9])
    sources = [tmp_path / f"{split}.h5" for split in ("train", "val", "test")]
    for source in sources:
        frame.to_hdf(source, key="table", format="table")
    convert("TopLandscape", [tmp_path / "t*.h5", tmp_path / "val.h5"], tmp_path)
    assert sorted(os.listdir(tmp_path / "TopLandscape")) == [
        "test_file.parquet",
        "train_file.parquet",
        "val_file.parquet",
    ]
    jets = ak.from_parquet(tmp_path / "TopLandscape/val_file.parquet")
    assert jets.label.tolist() == [0, 1, 1]
    assert jets.part_energy.tolist() == [[13, 5]] * 3
    assert jets.part_py.tolist() == [[-12, 0]] * 3
    assert jets.jet_energy.tolist() == [18] * 3
    np.testing.assert_allclose(jets.jet_pt, np.hypot(3, 12))
    np.testing.assert_allclose(jets.jet_mass, np.sqrt(18**2 - 9**2 - 3**2 - 12**2))
    eta = np.arcsinh(9 / np.hypot(3, 12))
    np.testing.assert_allclose(jets.part_deta[0], np.arcsinh([5 / 12, 4 / 3]) - eta, atol=1e-6)


@pytest.mark.parametrize(
    "dataset, name, sentence",
    [
        ("QuarkGluon", "QG_jets.npz", "cannot convert"),
        ("TopLandscape", "train.h5", "cannot convert"),
        ("TopLandscape", "other.h5", "expected train.h5"),
    ],
)
def test_damaged_release(tmp_path, dataset, name, sentence):
    source = tmp_path / name
    source.write_bytes(b"PK\x03\x04 not what it seems")
    with pytest.raises(UserError, match=sentence) as caught:
        convert(dataset, [source], tmp_path)
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == [name]


def npz_bytes(**arrays):
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


GOOD = {"X": np.ones((3, 2, 4)), "y": np.ones(3)}


@settings(max_examples=100, deadline=None)
@given(st.data())
@example(None)
def test_any_npz_is_converted_or_refused(tmp_path_factory, data):
    """Random bytes, damaged files, and arrays of any shape and type: jets or a sentence."""
    whole = npz_bytes(**GOOD)
    if data is None:
        content = b""
    else:
        kind = data.draw(st.sampled_from(["bytes", "cut", "flipped", "arrays"]))
        if kind == "bytes":
            content = data.draw(st.sampled_from([b"", b"PK\x03\x04", b"\x93NUMPY"])) + data.draw(
                st.binary()
            )
        elif kind == "cut":
            content = whole[: data.draw(st.integers(0, len(whole) - 1))]
        elif kind == "flipped":
            content = bytearray(whole)
            content[data.draw(st.integers(0, len(whole) - 1))] ^= data.draw(st.integers(1, 255))
        else:
            shapes = st.lists(st.integers(0, 5), max_size=4).map(tuple)
            dtypes = st.sampled_from(["f4", "f8", "i8", "u1", "?", "c16", "U3", "M8[s]", "f2"])
            content = npz_bytes(
                **{name: np.zeros(data.draw(shapes), data.draw(dtypes)) for name in ("X", "y")}
            )
    base = tmp_path_factory.mktemp("npz")
    source = base / "QG_jets.npz"
    source.write_bytes(content)
    try:
        folder = convert("QuarkGluon", [source, source], base)
    except UserError as error:
        assert "\n" not in str(error)
        assert os.listdir(base) == ["QG_jets.npz"]
    else:
        assert len(ak.from_parquet(folder / "test_file_0.parquet")) > 0


@settings(max_examples=40, deadline=None)
@given(cut=st.floats(0, 0.999), tail=st.binary(max_size=200))
def test_any_h5_is_refused(tmp_path_factory, h5_bytes, cut, tail):
    base = tmp_path_factory.mktemp("h5")
    source = base / "train.h5"
    source.write_bytes(h5_bytes[: int(cut * len(h5_bytes))] + tail)
    with pytest.raises(UserError, match="cannot convert"):
        convert("TopLandscape", [source], base)
    assert os.listdir(base) == ["train.h5"]


@pytest.fixture(scope="module")
def h5_bytes(tmp_path_factory):
    path = tmp_path_factory.mktemp("h5") / "train.h5"
    top_frame([1, 0]).to_hdf(path, key="table", format="table")
    return path.read_bytes()


def top_frame(label, **columns):
    """Jets of the .h5 release with two particles, the second of which is padding in the first."""
    first = {"E": 13.0, "PX": 3.0, "PY": 12.0, "PZ": 4.0}
    data = {f"{name}_0": np.full(len(label), value) for name, value in first.items()}
    data |= {f"{name}_1": np.r_[0.0, np.full(len(label) - 1, x)] for name, x in first.items()}
    return pd.DataFrame(data | columns | {"is_signal_new": label})


@pytest.mark.parametrize(
    "jet, particle, component, value",
    [
        (1, 0, 0, np.nan),  # pt
        (1, 1, 0, np.inf),
        (2, 0, 0, -5.0),
        (2, 1, 1, np.nan),  # rapidity
        (2, 1, 1, 1e4),  # of which the energy is infinite
        (1, 0, 2, np.inf),  # phi
        (1, 0, 3, np.nan),  # PDG id
        (1, 0, 3, 1e20),
        (1, 0, 3, 21.5),
        (1, 3, 0, np.nan),  # padding otherwise
    ],
)
def test_quarkgluon_jets_without_numbers_are_left_out(
    tmp_path, capsys, jet, particle, component, value
):
    arrays = qg_arrays([100.0, 101.0, 102.0, 103.0])
    np.savez(tmp_path / "QG_jets_1.npz", **arrays)
    arrays["X"][jet, particle, component] = value
    np.savez(tmp_path / "QG_jets.npz", **arrays)
    folder = convert("QuarkGluon", tmp_path.glob("*.npz"), tmp_path)
    whole = ak.from_parquet(folder / "test_file_0.parquet")
    kept = ak.from_parquet(folder / "train_file_0.parquet")
    assert ak.array_equal(kept, whole[[i for i in range(4) if i != jet]])
    err = capsys.readouterr().err
    assert "QG_jets.npz: left out 1 of 4 jets" in err
    assert "QG_jets_1.npz: left out" not in err


@pytest.mark.parametrize("column", ["E_0", "E_1", "PX_0", "PY_1", "PZ_0"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
def test_top_jets_without_numbers_are_left_out(tmp_path, capsys, column, value):
    frame = top_frame([1, 0, 0])
    frame.loc[1, column] = value
    frame.to_hdf(tmp_path / "val.h5", key="table", format="table")
    folder = convert("TopLandscape", [tmp_path / "val.h5"], tmp_path)
    jets = ak.from_parquet(folder / "val_file.parquet")
    assert jets.label.tolist() == [1, 0]
    assert jets.jet_energy.tolist() == [13, 26]
    assert "val.h5: left out 1 of 3 jets" in capsys.readouterr().err


@pytest.mark.parametrize("label", [7, -1, 0.5, np.nan, np.inf])
def test_label_of_no_class_is_refused(tmp_path, label):
    arrays = qg_arrays([100.0, 101.0, 102.0])
    arrays["y"][2] = label
    source = tmp_path / "QG_jets.npz"
    np.savez(source, **arrays)
    with pytest.raises(UserError, match=rf"QG_jets.npz has the label {float(label)} at jet 2 \(1"):
        convert("QuarkGluon", [source, source], tmp_path)
    assert os.listdir(tmp_path) == ["QG_jets.npz"]

    frame = top_frame([0.0, 1.0, label])
    frame.to_hdf(tmp_path / "test.h5", key="table", format="table")
    with pytest.raises(UserError, match=rf"test.h5 has the label {float(label)} at jet 2"):
        convert("TopLandscape", [tmp_path / "test.h5"], tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["QG_jets.npz", "test.h5"]


class Evil:
    def __reduce__(self):
        return os.mkdir, ("made by a pickle",)


@pytest.mark.parametrize("attribute", ["info", "non_index_axes", "values_cols", "CLASS", "TITLE"])
def test_an_h5_file_runs_no_code(tmp_path, monkeypatch, attribute):
    monkeypatch.chdir(tmp_path)
    top_frame([1, 0]).to_hdf("train.h5", key="table", format="table")
    with pd.HDFStore("train.h5") as store:
        attributes = store.get_storer("table").attrs
        attributes._g__setattr(attribute, np.array(pickle.dumps(Evil(), 0)))
    with contextlib.suppress(UserError):
        convert("TopLandscape", ["train.h5"], "out")
    assert "made by a pickle" not in os.listdir()
    assert pytables.pickle is pickle
    with pd.HDFStore("train.h5") as store:  # as it would be without a guard
        getattr(store.root.table._v_attrs, attribute)
    assert "made by a pickle" in os.listdir()


def test_plain_pickles_are_read():
    for value in ([1, "a"], {"b": (None, 2.5)}, np.float32(2), np.dtype("f8"), np.str_("c")):
        for protocol in range(5):
            assert hdf5._load_plain(pickle.dumps(value, protocol)) == value


def test_conversion_killed_at_any_move_is_repeated(tmp_path):
    sources = [tmp_path / "QG_jets.npz", tmp_path / "QG_jets_1.npz"]
    for source in sources:
        np.savez(source, **qg_arrays([100.0, 101.0]))
    script = Path(__file__).with_name("killed_runs.py")
    run = subprocess.run(
        [sys.executable, script, "convert", tmp_path / "runs", *sources],
        capture_output=True,
        text=True,
    )
    # Two files are written and moved, and a list of them is written.
    assert (run.returncode, run.stdout) == (0, "5\n"), run.stderr


def test_finished_conversion_of_other_files_is_not_taken_for_this_one(tmp_path, monkeypatch):
    for i in range(3):
        np.savez(tmp_path / f"QG_jets_{i}.npz", **qg_arrays([100.0 + i, 101.0 + i]))
    sources = [tmp_path / f"QG_jets_{i}.npz" for i in range(3)]
    with monkeypatch.context() as patch:

        def killed(source, target, names):
            raise KeyboardInterrupt

        patch.setattr("jetzoo.datasets.folder.move_files", killed)
        with pytest.raises(KeyboardInterrupt):
            convert("QuarkGluon", sources[:2], tmp_path)
    with pytest.raises(UserError, match="already holds other jets"):
        convert("QuarkGluon", sources[1:], tmp_path)


def test_full_disk(tmp_path):
    """No file may grow beyond 4 KB: what a full disk does to a writer, in a process of its own."""
    rng = np.random.default_rng(0)
    arrays = {"X": rng.random((2000, 4, 4)).round(3), "y": np.arange(2000) % 2}
    arrays["X"][..., 3] = 22
    np.savez(tmp_path / "QG_jets.npz", **arrays)
    command = f"ulimit -f 4; exec {sys.executable} {ROOT / 'get_datasets.py'} QuarkGluon"
    run = subprocess.run(
        ["bash", "-c", f"{command} -d {tmp_path} --convert {tmp_path}/QG_jets.npz"],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 2
    sentence = run.stderr.splitlines()[-1]
    assert "train_file_0.parquet cannot be written: File too large" in sentence
    assert "Traceback" not in run.stderr
    assert os.listdir(tmp_path) == ["QG_jets.npz"]


def test_schema_flags():
    ids = [211, -321, 2212, -3112, 130, -2112, 22, -11, 11, 13, -13]
    ones = ak.Array([np.arange(len(ids), 0, -1.0)])
    jets = jets_table(ones, ones, ones, 2 * ones, [1], ak.Array([ids]))
    assert jets.part_charge[0].tolist() == [1, -1, 1, 1, 0, 0, 0, 1, -1, -1, 1]
    flags = ["ChargedHadron", "NeutralHadron", "Photon", "Electron", "Muon"]
    kinds = np.stack([jets[f"part_is{flag}"][0].to_numpy() for flag in flags])
    assert kinds.argmax(axis=0).tolist() == [0, 0, 0, 0, 1, 1, 2, 3, 3, 4, 4]
    assert kinds.sum(axis=0).tolist() == [1] * len(ids)


def test_schema_mirror_and_empty_jets():
    """A jet and its mirror image in the beam axis have the same part_deta."""
    rapidity = ak.Array([[0.5, 0.7], [-0.5, -0.7], []])
    pt, phi = ak.Array([[3.0, 1.0], [3.0, 1.0], []]), ak.zeros_like(rapidity)
    jets = jets_table(*massless_p4(pt, rapidity, phi), [1, 0, 0])
    np.testing.assert_allclose(jets.part_deta[0], jets.part_deta[1], atol=1e-6)
    np.testing.assert_allclose(jets.jet_eta[0], -jets.jet_eta[1])
    # Of a jet at phi = 0 the momenta simply add up.
    eta = np.arcsinh((3 * np.sinh(0.5) + np.sinh(0.7)) / 4)
    np.testing.assert_allclose(jets.jet_eta[0], eta, rtol=1e-6)
    np.testing.assert_allclose(jets.part_deta[0], [0.5 - eta, 0.7 - eta], atol=1e-7)
    assert jets[2].tolist() == {
        "label": 0,
        **dict.fromkeys([name for name in jets.fields if name.startswith("jet_")], 0),
        **{name: [] for name in jets.fields if name.startswith("part_")},
    }


def test_written_files_are_the_same_bytes_and_whole(tmp_path):
    rng = np.random.default_rng(0)
    p3 = [ak.unflatten(rng.normal(size=600), [3] * 200) for _ in range(3)]
    jets = jets_table(*p3, np.sqrt(sum(p**2 for p in p3)), rng.integers(0, 2, 200), p3[0] * 0 + 22)
    path = tmp_path / "jets.parquet"
    write_parquet(jets, path)
    first = path.read_bytes()
    write_parquet(jets, path)
    assert path.read_bytes() == first
    assert ak.array_equal(ak.from_parquet(path), jets)

    def breaks():
        yield jets
        raise ValueError("cut")

    for tables in (breaks(), []):
        with pytest.raises(ValueError, match="cut|no jets"):
            write_parquet(tables, path)
    assert path.read_bytes() == first
    assert os.listdir(tmp_path) == ["jets.parquet"]


@pytest.mark.real
@pytest.mark.parametrize("name", ["quarkgluon_1000", "toplandscape_1000"])
def test_schema_agrees_with_the_published_files(real_data, name):
    published = ak.from_parquet(real_data / f"{name}.parquet")
    p4 = [published[f"part_{component}"] for component in ("px", "py", "pz", "energy")]
    jets = jets_table(*p4, published.label)
    assert set(jets.fields) == set(published.fields)
    for field in published.fields:
        assert str(jets[field].type) == str(published[field].type)
        ours, theirs = (ak.flatten(a[field], axis=None).to_numpy() for a in (jets, published))
        # Published energies are rounded to float32, so masses only agree to 0.04 GeV.
        atol = 0.05 if field == "jet_mass" else 2e-6
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=atol)
