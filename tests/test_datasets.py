"""`get_datasets.py`, `env.sh` and the parquet schema, against a server on this machine."""

import errno
import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
from types import SimpleNamespace

import awkward as ak
import numpy as np
import pandas as pd
import pytest

from jetzoo import datasets
from jetzoo.datasets import Archive, main
from jetzoo.schema import jets_table, massless_p4, write_parquet

ROOT = datasets.ROOT

PUBLISHED = {
    "QuarkGluon/train_file_0.parquet": bytes(range(256)) * 2000,
    "QuarkGluon/test_file_0.parquet": b"test" * 1000,
}


def tar_bytes(entries):
    """A tar archive of (name, bytes) or ready-made TarInfo entries."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for entry in entries:
            if isinstance(entry, tarfile.TarInfo):
                tar.addfile(entry)
            else:
                info = tarfile.TarInfo(entry[0])
                info.size = len(entry[1])
                tar.addfile(info, io.BytesIO(entry[1]))
    return buffer.getvalue()


@pytest.fixture
def publish(server, monkeypatch):
    """Put an archive on the server and in the catalogue, as the only one of its data set."""

    def publish(body, dataset="QuarkGluon", md5=None, mirrors=(), **options):
        name = f"{dataset}.tar"
        server.files[name] = body
        urls = (*(f"{mirror}/{name}" for mirror in mirrors), f"{server.url}/{name}")
        archive = Archive(urls, md5 or hashlib.md5(body).hexdigest(), **options)
        monkeypatch.setitem(datasets.CATALOGUE, dataset, (archive,))
        return archive

    return publish


@pytest.fixture
def get(tmp_path, capsys):
    """Run the command in an empty repository; returns (exit code, stderr without bars)."""

    def get(*args):
        code = main([str(a) for a in args], root=tmp_path)
        lines = capsys.readouterr().err.splitlines()
        return code, "\n".join(line for line in lines if line.startswith("get_datasets.py:"))

    return get


def tree(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in files_in(folder)}


def files_in(folder):
    return [p for p in folder.rglob("*") if p.is_file()]


def visible(folder):
    """Content of a data folder, without the manifest."""
    return {name: data for name, data in tree(folder).items() if datasets.MANIFEST not in name}


def test_download_then_rerun(server, publish, get, tmp_path):
    publish(tar_bytes(PUBLISHED.items()))
    base = tmp_path / "data"
    assert get("QuarkGluon", "-d", base) == (0, "")
    assert visible(base) == PUBLISHED
    assert len(server.gets()) == 1
    env = (tmp_path / "env.local.sh").read_text()
    assert env == f"export DATADIR_QuarkGluon={base / 'QuarkGluon'}\n"

    server.log.clear()
    assert get("QuarkGluon", "-d", base) == (0, "")
    assert server.log == []

    (base / "QuarkGluon/test_file_0.parquet").write_bytes(b"damaged")
    assert get("QuarkGluon", "-d", base) == (0, "")
    assert visible(base) == PUBLISHED


def test_jetclass_splits_unpack_where_the_scripts_look(server, get, tmp_path, monkeypatch):
    parts = {
        "part0": ("HToBB_000.root", "JetClass/Pythia/train_100M", "train"),
        "part1": ("./HToCC_000.root", "JetClass/Pythia/train_100M", "train"),
        "val": ("val_5M/HToBB_120.root", "JetClass/Pythia", "val"),
    }
    archives = []
    for name, (member, into, split) in parts.items():
        body = server.files[f"{name}.tar"] = tar_bytes([(member, name.encode())])
        url = f"{server.url}/{name}.tar"
        archives.append(Archive((url,), hashlib.md5(body).hexdigest(), into, split))
    monkeypatch.setitem(datasets.CATALOGUE, "JetClass", tuple(archives))
    base = tmp_path / "data"

    assert get("JetClass", "-d", base, "--splits", "val") == (0, "")
    assert visible(base) == {"JetClass/Pythia/val_5M/HToBB_120.root": b"val"}
    assert get("JetClass", "-d", base) == (0, "")
    assert visible(base / "JetClass/Pythia") == {
        "train_100M/HToBB_000.root": b"part0",
        "train_100M/HToCC_000.root": b"part1",
        "val_5M/HToBB_120.root": b"val",
    }
    assert [path for _, path, _, _ in server.gets()] == ["/val.tar", "/part0.tar", "/part1.tar"]


def test_catalogue_holds_the_published_archives():
    splits = [archive.split for archive in datasets.CATALOGUE["JetClass"]]
    assert splits == ["train"] * 10 + ["val", "test"]
    archives = [archive for group in datasets.CATALOGUE.values() for archive in group]
    assert len({archive.md5 for archive in archives}) == len(archives) == 14
    assert archives[9].urls[0] == (
        "https://zenodo.org/record/6619768/files/JetClass_Pythia_train_100M_part9.tar"
    )


def test_cut_connection_is_resumed_in_the_same_run(server, publish, get, tmp_path):
    body = tar_bytes(PUBLISHED.items())
    publish(body)
    server.cuts = [100_000, 200_000]
    assert get("QuarkGluon", "-d", tmp_path / "data") == (0, "")
    assert [(asked, sent) for _, _, asked, sent in server.gets()] == [
        (None, 100_000),
        ("bytes=100000-", 200_000),
        ("bytes=300000-", len(body) - 300_000),
    ]
    assert visible(tmp_path / "data") == PUBLISHED


def test_cut_connection_is_resumed_by_the_next_run(server, publish, get, tmp_path):
    body = tar_bytes(PUBLISHED.items())
    publish(body)
    server.cuts = [100_000, 0]
    code, message = get("QuarkGluon", "-d", tmp_path / "data")
    assert code == 2
    assert "the connection was cut" in message
    assert "the same command resumes" in message
    assert tree(tmp_path) == {"data/QuarkGluon.tar.part": body[:100_000]}

    server.log.clear()
    assert get("QuarkGluon", "-d", tmp_path / "data") == (0, "")
    assert [(asked, sent) for _, _, asked, sent in server.gets()] == [
        ("bytes=100000-", len(body) - 100_000)
    ]
    assert visible(tmp_path / "data") == PUBLISHED


def test_a_server_without_ranges_starts_again(server, publish, get, tmp_path):
    body = tar_bytes(PUBLISHED.items())
    publish(body)
    (tmp_path / "QuarkGluon.tar.part").write_bytes(b"x" * 1000)
    server.ranges = False
    assert get("QuarkGluon", "-d", tmp_path) == (0, "")
    assert server.gets()[0][2:] == ("bytes=1000-", len(body))
    assert visible(tmp_path / "QuarkGluon") == {
        name.removeprefix("QuarkGluon/"): data for name, data in PUBLISHED.items()
    }


def test_a_complete_part_is_not_downloaded_again(server, publish, get, tmp_path):
    body = tar_bytes(PUBLISHED.items())
    publish(body)
    (tmp_path / "QuarkGluon.tar.part").write_bytes(body)
    assert get("QuarkGluon", "-d", tmp_path) == (0, "")
    assert [(asked, sent) for _, _, asked, sent in server.gets()] == [(f"bytes={len(body)}-", 0)]


def test_wrong_checksum(server, publish, get, tmp_path):
    publish(tar_bytes(PUBLISHED.items()))
    base = tmp_path / "data"
    assert get("QuarkGluon", "-d", base)[0] == 0
    before = tree(tmp_path)

    publish(tar_bytes([("QuarkGluon/train_file_0.parquet", b"forged")]), md5="0" * 32)
    code, message = get("QuarkGluon", "-d", base)
    assert code == 2
    assert message.count("\n") == 0
    assert "wrong checksum" in message
    assert "0" * 32 in message
    assert tree(tmp_path) == before


def test_an_archive_put_there_by_hand_is_checked(server, publish, get, tmp_path):
    body = tar_bytes(PUBLISHED.items())
    publish(body)
    archive = tmp_path / "QuarkGluon.tar"
    archive.write_bytes(body[:-1])
    code, message = get("QuarkGluon", "-d", tmp_path)
    assert (code, archive.exists()) == (2, True)
    assert "not the published file" in message
    archive.write_bytes(body)
    assert get("QuarkGluon", "-d", tmp_path) == (0, "")
    assert not archive.exists()
    assert server.log == []


def test_full_disk_is_refused_before_anything_is_written(
    server, publish, get, tmp_path, monkeypatch
):
    body = tar_bytes(PUBLISHED.items())
    publish(body)

    def with_free(free):
        usage = shutil.disk_usage(tmp_path)._replace(free=free)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
        return get("QuarkGluon", "-d", tmp_path / "a" / "b")

    code, message = with_free(2 * len(body) - 1)
    assert code == 2
    assert "choose another disk with -d" in message
    assert server.gets() == []
    assert tree(tmp_path) == {}
    assert not (tmp_path / "a").exists()
    assert with_free(2 * len(body)) == (0, "")


def test_disk_full_on_the_way_leaves_a_part_that_resumes(
    server, publish, get, tmp_path, monkeypatch
):
    body = tar_bytes(PUBLISHED.items())
    publish(body)

    class FullDisk(io.FileIO):
        def write(self, data):
            super().write(data[:65_536])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(datasets, "open", FullDisk, raising=False)
        code, message = get("QuarkGluon", "-d", tmp_path)
    assert code == 2
    assert "No space left on device" in message
    assert "the same command resumes" in message
    kept = (tmp_path / "QuarkGluon.tar.part").stat().st_size
    assert tree(tmp_path) == {"QuarkGluon.tar.part": body[:kept]}
    assert 0 < kept < len(body)

    server.log.clear()
    assert get("QuarkGluon", "-d", tmp_path) == (0, "")
    assert [(asked, sent) for _, _, asked, sent in server.gets()] == [
        (f"bytes={kept}-", len(body) - kept)
    ]


def link(kind, target):
    info = tarfile.TarInfo("QuarkGluon/link")
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize(
    "evil",
    [
        ("../evil", b"x"),
        ("QuarkGluon/../../evil", b"x"),
        ("{outside}", b"x"),
        ("Other/evil", b"x"),
        link(tarfile.SYMTYPE, "/etc"),
        link(tarfile.LNKTYPE, "QuarkGluon/train_file_0.parquet"),
        link(tarfile.CHRTYPE, ""),
        link(tarfile.FIFOTYPE, ""),
    ],
    ids=["parent", "inner parent", "absolute", "sibling", "symlink", "hardlink", "device", "fifo"],
)
def test_unsafe_archive_is_refused(publish, get, tmp_path, evil):
    if isinstance(evil, tuple):
        evil = (evil[0].format(outside=tmp_path / "evil"), evil[1])
    publish(tar_bytes([*PUBLISHED.items(), evil]))
    code, message = get("QuarkGluon", "-d", tmp_path / "a" / "b")
    assert code == 2
    assert "is refused" in message
    assert os.listdir(tmp_path) == ["a"]
    assert os.listdir(tmp_path / "a" / "b") == []


def test_truncated_archive_is_refused(publish, get, tmp_path):
    publish(tar_bytes(PUBLISHED.items())[:300_000])
    code, message = get("QuarkGluon", "-d", tmp_path)
    assert code == 2
    assert "is refused and removed: " in message
    assert os.listdir(tmp_path) == []


def test_an_interrupted_move_is_finished_without_a_download(
    server, publish, get, tmp_path, monkeypatch
):
    publish(tar_bytes(PUBLISHED.items()))
    real, calls = os.replace, []

    def killed(source, goal):
        calls.append(goal)
        if str(goal).endswith("train_file_0.parquet"):
            raise KeyboardInterrupt
        real(source, goal)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        code, message = get("QuarkGluon", "-d", tmp_path)
    assert code == 2
    assert "interrupted" in message
    assert not (tmp_path / "env.local.sh").exists()
    server.log.clear()
    assert get("QuarkGluon", "-d", tmp_path) == (0, "")
    assert server.log == []
    assert len(visible(tmp_path / "QuarkGluon")) == 2


def test_mirrors_are_tried_in_order(server, publish, get, tmp_path):
    publish(tar_bytes(PUBLISHED.items()), mirrors=["http://127.0.0.1:9", f"{server.url}/gone"])
    server.files["mine/QuarkGluon.tar"] = b"another file"
    assert get("QuarkGluon", "-d", tmp_path, "--mirror", f"{server.url}/mine/") == (0, "")
    assert [path for _, path, _, _ in server.gets()] == [
        "/mine/QuarkGluon.tar",
        "/QuarkGluon.tar",
    ]
    assert (tmp_path / "QuarkGluon/test_file_0.parquet").exists()


def test_no_server_answers(publish, get, tmp_path):
    publish(b"", mirrors=["http://127.0.0.1:9"])
    datasets.CATALOGUE["QuarkGluon"] = (Archive(("http://127.0.0.1:9/x.tar",), "0"),)
    code, message = get("QuarkGluon", "-d", tmp_path / "data")
    assert code == 2
    assert "no server has the archive" in message
    assert tree(tmp_path) == {}


def test_jets_of_another_origin_are_not_mixed_in(server, publish, get, tmp_path):
    publish(tar_bytes(PUBLISHED.items()))
    mine = tmp_path / "QuarkGluon" / "train_file_7.parquet"
    mine.parent.mkdir()
    mine.write_bytes(b"mine")
    source = tmp_path / "QG_jets.npz"
    np.savez(source, **qg_arrays([100.0]))
    for way in ([], ["--convert", source]):
        code, message = get("QuarkGluon", "-d", tmp_path, *way)
        assert code == 2
        assert "already holds other jets (train_file_7.parquet)" in message
    assert server.log == []
    assert visible(tmp_path / "QuarkGluon") == {"train_file_7.parquet": b"mine"}


@pytest.mark.parametrize(
    "args, sentence",
    [
        (["Quarks"], "invalid choice: 'Quarks'"),
        ([], "required"),
        (["QuarkGluon", "--simulate", "5", "--convert", "x"], "not allowed with"),
        (["QuarkGluon", "--simulate", "0"], "'0' is not a positive number"),
        (["QuarkGluon", "--seed", "1"], "belong to --simulate"),
        (["QuarkGluon", "--sample", "--mirror", "x"], "belong to a download"),
        (["QuarkGluon", "--splits", "test"], "--splits is for JetClass"),
        (["TopLandscape", "--sample"], "there is no sample of TopLandscape"),
        (["QuarkGluon", "--convert", "nowhere.npz"], "there is no file nowhere.npz"),
        (["JetClass", "--convert", "x.root"], "nothing to convert"),
        (["QuarkGluon", "-d", "a\nb"], "line break"),
    ],
)
def test_misuse_is_one_sentence(get, tmp_path, args, sentence):
    code, message = get(*args)
    assert code == 2
    assert sentence in message
    assert tree(tmp_path) == {}


def test_simulate_calls_the_generator(get, tmp_path, monkeypatch):
    calls = []

    def generate(dataset, num_jets, folder, seed, jobs):
        calls.append((dataset, num_jets, seed, jobs))
        folder.mkdir()
        (folder / "train_file_0.parquet").write_bytes(b"jets")

    monkeypatch.setitem(sys.modules, "jetzoo.simulate", SimpleNamespace(generate=generate))
    assert get("QuarkGluon", "--simulate", 50, "--seed", 3, "-j", 2, "-d", tmp_path) == (0, "")
    assert calls == [("QuarkGluon", 50, 3, 2)]
    assert tree(tmp_path / "QuarkGluon") == {"train_file_0.parquet": b"jets"}
    assert "DATADIR_QuarkGluon=" in (tmp_path / "env.local.sh").read_text()


def test_the_script_itself(tmp_path):
    script = ROOT / "get_datasets.py"
    run = subprocess.run([script, "-h"], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0
    assert "--convert train.h5 val.h5 test.h5" in run.stdout
    lone = shutil.copy(script, tmp_path)
    run = subprocess.run([sys.executable, "-IS", lone, "-h"], capture_output=True, text=True)
    assert run.returncode == 2
    assert "jetzoo is not installed" in run.stderr


def bash(root, command, **env):
    variables = {name: value for name, value in os.environ.items() if "DATADIR_" not in name}
    run = subprocess.run(
        ["bash", "-c", f'set -euo pipefail; source "$0/env.sh"; {command}', root],
        env=variables | env,
        capture_output=True,
        text=True,
        check=True,
    )
    return run.stdout


def test_env_files(tmp_path):
    root = tmp_path / "a repo"
    root.mkdir()
    shutil.copy(ROOT / "env.sh", root)
    show = 'printf "%s|" "$DATADIR_JetClass" "$DATADIR_QuarkGluon" "$DATADIR_TopLandscape"'
    assert bash(root, show) == "|||"
    sample = root / "data/samples/QuarkGluon"
    sample.mkdir(parents=True)
    assert bash(root, show) == f"|{sample}||"
    assert main(["QuarkGluon", "--sample"], root=root) == 0
    assert bash(root, show) == f"|{sample}||"

    local = root / "env.local.sh"
    local.write_text("# mine\nexport DATADIR_QuarkGluon=old\nexport OTHER=1\n")
    odd = tmp_path / "it's $HOME `here`"
    datasets.set_datadir("QuarkGluon", odd, root)
    datasets.set_datadir("JetClass", tmp_path, root)
    assert local.read_text().startswith("# mine\nexport OTHER=1\nexport DATADIR_QuarkGluon=")
    assert local.read_text().count("DATADIR_QuarkGluon") == 1
    assert bash(root, show) == f"{tmp_path}|{odd}||"
    assert bash(root, "printenv DATADIR_QuarkGluon") == f"{odd}\n"
    assert bash(root, show, DATADIR_QuarkGluon="my own") == f"{tmp_path}|my own||"


def qg_arrays(pt):
    """Jets as in the .npz release, their first particle at eta 0.5, phi 3.1, a photon."""
    x = np.zeros((len(pt), 4, 4))
    for i, first in enumerate(pt):
        x[i, 0] = [first, 0.5, 3.1, 22]
        x[i, 1] = [first / 2, 0.4, 3.2 - 2 * np.pi, -211]
    x[:, 2] = [200.0, 0.5, 3.1, 11]  # the hardest one does not come first
    return {"X": x, "y": np.arange(len(pt)) % 2.0}


def test_convert_quarkgluon(get, tmp_path):
    names = ["QG_jets.npz", *(f"QG_jets_{i}.npz" for i in range(1, 20))]
    for i, name in enumerate(names):
        np.savez(tmp_path / name, **qg_arrays([100.0 + i, 110.0 + i]))
    shuffled = sorted(tmp_path / name for name in names)
    assert get("QuarkGluon", "-d", tmp_path / "out", "--convert", *shuffled) == (0, "")
    folder = tmp_path / "out" / "QuarkGluon"
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


def test_convert_one_quarkgluon_file(get, tmp_path):
    np.savez(tmp_path / "QG_jets.npz", **qg_arrays(np.arange(100.0, 120.0)))
    assert get("QuarkGluon", "-d", tmp_path, "--convert", tmp_path / "QG_jets.npz") == (0, "")
    lengths = {
        split: len(ak.from_parquet(tmp_path / f"QuarkGluon/{split}_file_0.parquet"))
        for split in ("train", "test")
    }
    assert lengths == {"train": 18, "test": 2}


def test_convert_toplandscape(get, tmp_path):
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
    assert get("TopLandscape", "-d", tmp_path, "--convert", *sources) == (0, "")
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
def test_damaged_release(get, tmp_path, dataset, name, sentence):
    source = tmp_path / name
    source.write_bytes(b"PK\x03\x04 not what it seems")
    code, message = get(dataset, "-d", tmp_path, "--convert", source)
    assert code == 2
    assert sentence in message
    assert message.count("\n") == 0
    assert os.listdir(tmp_path) == [name]


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
    assert jets.jet_eta[0] > 0.5
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
