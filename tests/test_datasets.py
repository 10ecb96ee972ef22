"""`get_datasets.py` and `env.sh`, against a server on this machine."""

import errno
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from jetzoo import UserError, repository
from jetzoo.datasets import CATALOGUE, Archive, Dataset, download, fetch, transfer
from jetzoo.datasets import folder as folders
from jetzoo.datasets.archives import MANIFEST, _read_manifest
from jetzoo.datasets.command import main, set_datadir
from jetzoo.datasets.folder import at_work

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
        row = replace(CATALOGUE[dataset], archives=(archive,))
        monkeypatch.setitem(CATALOGUE, dataset, row)
        return archive

    return publish


@pytest.fixture
def get(tmp_path, capsys, monkeypatch):
    """Run the command in an empty repository; returns (exit code, stderr without bars)."""
    monkeypatch.setattr(repository, "samples", lambda dataset: tmp_path / "data/samples" / dataset)

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
    return {name: data for name, data in tree(folder).items() if MANIFEST not in name}


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
    row = replace(CATALOGUE["JetClass"], archives=tuple(archives))
    monkeypatch.setitem(CATALOGUE, "JetClass", row)
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
    splits = [archive.split for archive in CATALOGUE["JetClass"].archives]
    assert splits == ["train"] * 10 + ["val", "test"]
    archives = [archive for row in CATALOGUE.values() for archive in row.archives]
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
        patch.setattr(transfer, "open", FullDisk, raising=False)
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
    assert os.listdir(tmp_path) == []


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
    row = replace(CATALOGUE["QuarkGluon"], archives=(Archive(("http://127.0.0.1:9/x.tar",), "0"),))
    CATALOGUE["QuarkGluon"] = row
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
    source.write_bytes(b"")
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
        (["QuarkGluon", "-d", "caf\udce9"], "is not UTF-8"),
        (["QuarkGluon", "--simulate", "9" * 5000], "invalid"),
        (["QuarkGluon", "--simulate", "9" * 20], "takes 20 to 1000000000 jets"),
    ],
)
def test_misuse_is_one_sentence(get, tmp_path, args, sentence):
    code, message = get(*args)
    assert code == 2
    assert sentence in message
    assert tree(tmp_path) == {}


@pytest.mark.parametrize(
    "manifest",
    [
        b"",
        b"[]",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"QuarkGluon.tar": 1}',
        b'{"QuarkGluon.tar": {}}',
        b'{"QuarkGluon.tar": {"md5": 5, "files": {}}}',
        b'{"QuarkGluon.tar": {"md5": "", "files": []}}',
        b'{"QuarkGluon.tar": {"md5": "", "files": {"x": "1"}}}',
    ],
)
def test_damaged_manifest(server, publish, get, tmp_path, manifest):
    publish(tar_bytes(PUBLISHED.items()))
    assert get("QuarkGluon", "-d", tmp_path) == (0, "")
    path = tmp_path / "QuarkGluon" / MANIFEST
    path.write_bytes(manifest)
    before = tree(tmp_path)
    server.log.clear()
    code, message = get("QuarkGluon", "-d", tmp_path)
    assert code == 2
    assert f"{path} is damaged" in message
    assert tree(tmp_path) == before
    assert server.log == []

    # Where there are no jets, nothing is lost.
    for name in PUBLISHED:
        (tmp_path / name).unlink()
    assert get("QuarkGluon", "-d", tmp_path) == (0, "")
    assert visible(tmp_path / "QuarkGluon").keys() == {name.split("/")[1] for name in PUBLISHED}


@settings(max_examples=80, deadline=None)
@given(
    st.binary()
    | st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda x: (
            st.lists(x) | st.dictionaries(st.sampled_from(["a.tar", "md5", "files", "\0"]), x)
        ),
    ).map(lambda x: json.dumps(x).encode())
)
def test_any_manifest_is_read_or_refused(tmp_path_factory, data):
    base = tmp_path_factory.mktemp("manifest")
    (base / "Toy").mkdir()
    (base / "Toy" / MANIFEST).write_bytes(data)
    assert isinstance(_read_manifest(base / "Toy"), dict)
    (base / "Toy" / "jets.root").write_bytes(b"")
    row = Dataset("Toy", "*", archives=(Archive(("http://127.0.0.1:9/a.tar",), "x"),))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(CATALOGUE, "Toy", row)
        with pytest.raises(UserError, match="is damaged|other jets|no server"):
            download("Toy", base)
    assert tree(base) == {f"Toy/{MANIFEST}": data, "Toy/jets.root": b""}


@pytest.mark.parametrize("length", ["abc", "-5", "1e9", "9" * 30, "0x10", "5, 6", "\u0661"])
def test_nonsensical_size_of_a_file(server, publish, get, tmp_path, length):
    body = tar_bytes(PUBLISHED.items())
    publish(body)
    server.lengths["QuarkGluon.tar"] = length.encode()
    code, message = get("QuarkGluon", "-d", tmp_path)
    assert code == 2
    assert message.count("\n") == 0
    assert "nonsensical size" in message
    assert tree(tmp_path) == {}
    with pytest.raises(UserError, match="cannot download.*nonsensical size"):
        fetch(tmp_path / "x.tar", [f"{server.url}/QuarkGluon.tar"], "0")
    # Another server is asked.
    server.files["mine/QuarkGluon.tar"] = body
    mirrors = ["--mirror", server.url, "--mirror", f"{server.url}/mine"]
    assert get("QuarkGluon", "-d", tmp_path, *mirrors) == (0, "")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs Linux")
def test_a_folder_that_never_appears():
    with (
        pytest.raises(UserError, match="No such file or directory: /proc/jets"),
        at_work("/proc/jets"),
    ):
        pass


def test_two_runs_at_once(server, publish, get, tmp_path):
    publish(tar_bytes(PUBLISHED.items()))
    source = tmp_path / "QG_jets.npz"
    source.write_bytes(b"")
    with at_work(tmp_path / "QuarkGluon"):
        for way in ([], ["--convert", source], ["--simulate", 20]):
            code, message = get("QuarkGluon", "-d", tmp_path, *way)
            assert code == 2
            assert f"another run works in {tmp_path}/QuarkGluon (process {os.getpid()}" in message
    with at_work(tmp_path, ".QuarkGluon.tar.lock"):
        assert "another run works" in get("QuarkGluon", "-d", tmp_path)[1]
    assert server.gets() == []
    assert os.listdir(tmp_path) == ["QG_jets.npz"]
    assert get("QuarkGluon", "-d", tmp_path) == (0, "")


def test_the_lock_of_a_killed_run_is_taken_over(publish, get, tmp_path):
    publish(tar_bytes(PUBLISHED.items()))
    code = (
        "import sys, time\n"
        "from jetzoo.datasets.folder import at_work\n"
        "with at_work(sys.argv[1]):\n"
        "    print('locked', flush=True)\n"
        "    time.sleep(60)\n"
    )
    args = [sys.executable, "-c", code, tmp_path / "QuarkGluon"]
    with subprocess.Popen(args, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"locked\n"
        assert f"(process {process.pid} on " in get("QuarkGluon", "-d", tmp_path)[1]
        process.kill()
    assert (tmp_path / "QuarkGluon/.lock").exists()
    assert get("QuarkGluon", "-d", tmp_path) == (0, "")
    assert not (tmp_path / "QuarkGluon/.lock").exists()


def test_a_folder_is_one_run_at_a_time(tmp_path):
    """Many threads that come and go: never two of them inside."""
    inside, most, done, refused = [], [], [], []

    def work():
        for _ in range(50):
            try:
                with at_work(tmp_path):
                    inside.append(1)
                    most.append(len(inside))
                    inside.pop()
                    done.append(1)
            except UserError:
                refused.append(1)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(done) + len(refused) == 400
    assert max(most) == 1
    assert os.listdir(tmp_path) == []


def test_complete_data_on_a_disk_that_is_only_read(publish, get, tmp_path):
    publish(tar_bytes(PUBLISHED.items()))
    base = tmp_path / "data"
    assert get("QuarkGluon", "-d", base) == (0, "")
    (base / "QuarkGluon").chmod(0o555)
    base.chmod(0o555)
    try:
        assert get("QuarkGluon", "-d", base) == (0, "")
    finally:
        base.chmod(0o755)
        (base / "QuarkGluon").chmod(0o755)


def test_unpacking_killed_at_any_move_is_repeated(tmp_path):
    files = [("Toy/train.root", b"x" * 1000), ("Toy/val/val.root", b"y"), ("Toy/test.root", b"z")]
    (tmp_path / "Toy.tar").write_bytes(tar_bytes(files))
    script = Path(__file__).with_name("killed_runs.py")
    run = subprocess.run(
        [sys.executable, script, "download", tmp_path / "runs", tmp_path / "Toy.tar"],
        capture_output=True,
        text=True,
    )
    # The manifest is written, and the files are moved.
    assert (run.returncode, run.stdout.splitlines()[-1]) == (0, "4"), run.stderr


def test_full_disk_while_unpacking(publish, get, tmp_path, monkeypatch):
    publish(tar_bytes(PUBLISHED.items()))
    base = tmp_path / "data"
    assert get("QuarkGluon", "-d", base) == (0, "")
    (base / "QuarkGluon/test_file_0.parquet").unlink()
    before = tree(base)

    class FullDisk(io.FileIO):
        def write(self, data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("jetzoo.datasets.archives.open", FullDisk, raising=False)
        code, message = get("QuarkGluon", "-d", base)
    assert code == 2
    assert message.count("\n") == 0
    assert f"the work in {base}/QuarkGluon stopped (No space left on device)" in message
    assert before.items() <= tree(base).items()
    assert tree(base).keys() - before.keys() == {"QuarkGluon.tar"}
    assert get("QuarkGluon", "-d", base) == (0, "")
    assert visible(base) == PUBLISHED


def test_finish_moves_nothing_out_of_its_folders(tmp_path):
    source, target = tmp_path / "a" / "source", tmp_path / "b" / "c" / "target"
    for path in (source, target):
        path.mkdir(parents=True)
    (tmp_path / "a" / "secret").write_text("x")
    (source / ".complete").write_text(json.dumps({"names": ["../secret"], "order": None}))
    folders.finish(source, target)
    assert (tmp_path / "a" / "secret").exists()


def test_publish_replaces_nothing(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    for folder in (source, target):
        folder.mkdir()
        (folder / "jets.root").write_text(folder.name)
    with pytest.raises(UserError, match="already holds other jets"):
        folders.publish(source, target, ["jets.root"])
    assert (source / "jets.root").read_text() == "source"
    assert (target / "jets.root").read_text() == "target"


def test_a_data_set_is_a_row(server, get, tmp_path, monkeypatch, capsys):
    """The command, its help and the variable follow from a row; nothing else names the set."""
    body = server.files["Toy.tar"] = tar_bytes([("Toy/jets.root", b"jets")])
    archive = Archive((f"{server.url}/Toy.tar",), hashlib.md5(body).hexdigest())
    monkeypatch.setitem(CATALOGUE, "Toy", Dataset("Toy", "*.root", archives=(archive,)))
    assert get("Toy", "-d", tmp_path) == (0, "")
    assert visible(tmp_path / "Toy") == {"jets.root": b"jets"}
    assert (tmp_path / "env.local.sh").read_text() == f"export DATADIR_Toy={tmp_path}/Toy\n"
    assert "nothing to convert" in get("Toy", "-d", tmp_path, "--convert", "x")[1]
    assert "no generator of Toy, only of JetClass, " in get("Toy", "--simulate", "20")[1]
    with pytest.raises(SystemExit):
        main(["-h"])
    assert "DIR/Toy/*.root" in capsys.readouterr().out


def test_without_a_checkout_the_variable_is_printed(publish, tmp_path, monkeypatch, capsys):
    publish(tar_bytes(PUBLISHED.items()))
    monkeypatch.setattr(repository, "checkout", lambda: None)
    monkeypatch.chdir(tmp_path)
    assert main(["QuarkGluon", "-d", "my jets"]) == 0
    assert f"export DATADIR_QuarkGluon='{tmp_path}/my jets/QuarkGluon'" in capsys.readouterr().out
    assert os.listdir(tmp_path) == ["my jets"]


def test_simulate_calls_the_generator(get, tmp_path, monkeypatch):
    calls = []

    def generate(dataset, num_jets, folder, seed, jobs, workers, dask):
        calls.append((dataset, num_jets, seed, jobs, workers, dask))
        folder.mkdir()
        (folder / "train_file_0.parquet").write_bytes(b"jets")

    monkeypatch.setitem(
        sys.modules, "jetzoo.datasets.simulation", SimpleNamespace(generate=generate)
    )
    assert get("QuarkGluon", "--simulate", 50, "--seed", 3, "-j", 2, "-d", tmp_path) == (0, "")
    assert calls == [("QuarkGluon", 50, 3, 2, None, None)]
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


def test_env_files(tmp_path, monkeypatch):
    root = tmp_path / "a repo"
    root.mkdir()
    shutil.copy(ROOT / "env.sh", root)
    for dataset in CATALOGUE:
        (root / f"train_{dataset}.sh").touch()
    show = 'printf "%s|" "$DATADIR_JetClass" "$DATADIR_QuarkGluon" "$DATADIR_TopLandscape"'
    assert bash(root, show) == "|||"
    sample = root / "data/samples/QuarkGluon"
    sample.mkdir(parents=True)
    assert bash(root, show) == f"|{sample}||"
    monkeypatch.setattr(repository, "samples", lambda dataset: root / "data/samples" / dataset)
    assert main(["QuarkGluon", "--sample"], root=root) == 0
    assert bash(root, show) == f"|{sample}||"

    local = root / "env.local.sh"
    local.write_bytes(b"# mine: caf\xe9\nexport DATADIR_QuarkGluon=old\nexport OTHER=1\n")
    odd = tmp_path / "it's $HOME `here`"
    set_datadir("QuarkGluon", odd, root)
    set_datadir("JetClass", tmp_path, root)
    written = local.read_bytes()
    assert written.startswith(b"# mine: caf\xe9\nexport OTHER=1\nexport DATADIR_QuarkGluon=")
    assert written.count(b"DATADIR_QuarkGluon") == 1
    assert bash(root, show) == f"{tmp_path}|{odd}||"
    assert bash(root, "printenv DATADIR_QuarkGluon") == f"{odd}\n"
    assert bash(root, show, DATADIR_QuarkGluon="my own") == f"{tmp_path}|my own||"
