"""Sources of jets: formats, chunks, patterns, and files behind a server."""

import re
import socket
from importlib.util import find_spec

import awkward as ak
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tables as pytables
import uproot

import jetzoo
from jetzoo import UserError, sources, tables

COUNTS = (3, 0, 1, 7, 2, 0, 4, 5, 1, 1, 6)


@pytest.fixture
def jets():
    """Records with a number and a list each, packed, as they come back."""
    rng = np.random.default_rng(5)
    lists = ak.unflatten(rng.normal(size=sum(COUNTS)).astype(np.float32), COUNTS)
    return ak.Array({"number": rng.normal(size=len(COUNTS)), "list": lists})


def write_ttree(path, jets):
    tables.write(path, jets)


def write_rntuple(path, jets):
    with uproot.recreate(path) as file:
        file["jets"] = jets


def write_parquet(path, jets):
    pq.write_table(tables.to_arrow(jets), path, row_group_size=4)


def write_hdf5(path, jets):
    with pytables.open_file(path, "w") as file:
        file.create_array("/", "number", ak.to_numpy(jets["number"]))
        padded = ak.fill_none(ak.pad_none(jets["list"], 8, clip=True), 0)
        file.create_array("/", "list", ak.to_numpy(padded))


WRITERS = {
    "ttree.root": write_ttree,
    "rntuple.root": write_rntuple,
    "jets.parquet": write_parquet,
    "jets.h5": write_hdf5,
}


@pytest.fixture(params=WRITERS)
def path(request, jets, tmp_path):
    path = tmp_path / request.param
    WRITERS[request.param](path, jets)
    return path


def assert_same(found, expected):
    if found["list"].type.content.__class__.__name__ == "RegularType":
        assert ak.all(found["list"][:, -1] == 0)
        expected = ak.with_field(
            expected, ak.fill_none(ak.pad_none(expected["list"], 8, clip=True), 0), "list"
        )
    for name in ("number", "list"):
        assert len(found) == len(expected) and ak.all(found[name] == expected[name])


@pytest.mark.parametrize("size", [1, 3, 4, 5, 11, 100])
@pytest.mark.parametrize("start, stop", [(0, None), (0, 11), (2, 9), (4, 8), (10, 11), (5, 5)])
def test_chunks(path, jets, size, start, stop):
    expected = jets[start:stop]
    branches, entries = tables.describe(path)
    assert set(branches) >= {"number", "list"} and entries == len(COUNTS)
    chunks = list(tables.chunks(path, ["list", "number"], None, size, start, stop))
    assert_same(ak.concatenate(chunks), expected)
    assert_same(tables.read(path, ["number", "list"], None, start, stop), expected)
    at = np.cumsum([0, *map(len, chunks)])
    cuts = np.arange(0, len(expected), size)
    assert set(cuts) <= set(at) and max(map(len, chunks)) <= size
    assert list(tables.read(path, ["number"]).fields) == ["number"]


@pytest.mark.parametrize("rows", [[0], [10, 0, 4, 4], list(range(11)), [7, 3]])
def test_some_entries(path, jets, monkeypatch, rows):
    monkeypatch.setattr(tables.chunks, "__defaults__", (None, 3, 0, None))
    assert_same(tables.pick(path, ["list", "number"], np.array(rows)), jets[rows])


@pytest.mark.parametrize("row_group_size", [10_000, 200_000])
def test_a_long_file_does_not_fill_the_memory(tmp_path, monkeypatch, row_group_size):
    """parquet: of 8 MB, there are a few chunks, pages and buffers at once."""
    monkeypatch.setattr(sources, "BUFFER", 2**16)
    numbers = np.random.default_rng(0).normal(size=(200_000, 5))
    table = pa.table({str(i): column for i, column in enumerate(numbers.T)})
    sizes = {"row_group_size": row_group_size, "data_page_size": 2**16}
    pq.write_table(table, tmp_path / "long.parquet", use_dictionary=False, **sizes)
    del table
    before, most = pa.total_allocated_bytes(), 0
    chunk = ()
    for chunk in tables.chunks(tmp_path / "long.parquet", list("01234")):  # noqa: B007
        most = max(most, pa.total_allocated_bytes() - before)
        assert len(chunk)
    assert 0 < most < 2 * 2**20


def test_a_file_of_no_jets(jets, tmp_path):
    for name in ("ttree.root", "rntuple.root", "jets.parquet"):
        WRITERS[name](tmp_path / name, jets[:0])
        (chunk,) = tables.chunks(tmp_path / name, ["number", "list"])
        assert len(chunk) == 0 and set(chunk.fields) == {"number", "list"}


def test_a_branch_that_is_none(path):
    message = re.escape(f"{path} has no branch absent, lost.")
    with pytest.raises(UserError, match=message):
        list(tables.chunks(path, ["lost", "number", "absent"]))


def test_a_tree_by_name(jets, tmp_path):
    path = tmp_path / "two.root"
    with uproot.recreate(path) as file:
        for name, table in (("few", jets[:2]), ("folder/all", jets)):
            file.mktree(name, {x: table[x].type for x in table.fields})
            file[name].extend({x: table[x] for x in table.fields})
    with pytest.raises(UserError, match="two.root should hold one tree, but holds: few, folder/a"):
        tables.describe(path)
    assert tables.describe(f"{path}:few")[1] == 2
    assert tables.describe(f"{path}:few", "folder/all")[1] == 2  # what the user says goes first
    assert tables.describe(path, "folder/all")[1] == len(COUNTS)
    assert sources.expand([f"{tmp_path}/*.root:folder/all"]) == {None: [f"{path}:folder/all"]}
    with pytest.raises(UserError, match="should hold a tree 'none', but holds"):
        tables.describe(f"{path}:none")


def test_hdf5_of_columns_of_different_lengths(tmp_path):
    with pytables.open_file(tmp_path / "x.h5", "w") as file:
        file.create_array("/", "a", np.zeros(3))
        file.create_array("/", "b", np.zeros(4))
    with pytest.raises(UserError, match="x.h5 cannot be read as h5: it has no arrays of one leng"):
        tables.describe(tmp_path / "x.h5")


def test_patterns(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("b2.root", "b10.root", "a.parquet", "odd[1].root", "x:y.root"):
        (tmp_path / name).touch()
    assert sources.expand(["a.parquet", "b*.root"]) == {None: ["a.parquet", "b10.root", "b2.root"]}
    assert sources.expand(["Hbb:b?.root", "QCD:a.*", "Hbb:b1*"]) == {
        "Hbb": ["b2.root", "b10.root"],
        "QCD": ["a.parquet"],
    }
    assert sources.expand(["odd[1].root", "x:y.root", "absent.root"]) == {
        None: ["odd[1].root", "x:y.root", "absent.root"]
    }
    url = "root://host:1094//store/jets.root"
    assert sources.expand([url, f"top:{url}:tree"]) == {None: [url], "top": [f"{url}:tree"]}
    assert sources.name(f"{url}:tree") == "jets"
    with pytest.raises(UserError, match=r"There is no file c\*.root"):
        sources.expand(["c*.root"])


def test_names_that_are_none(tmp_path):
    for name, message in (
        ("x.csv", "x.csv is neither .root nor .parquet nor .h5"),
        ("x.root", "There is no file .*x.root"),
        ("https://host/x.h5", "x.h5 is HDF5, which is read from a disk only"),
    ):
        name = name if sources.is_url(name) else tmp_path / name
        with pytest.raises(UserError, match=message):
            tables.describe(name)
    (tmp_path / "x.csv").touch()
    with pytest.raises(UserError, match="neither"):
        tables.describe(tmp_path / "x.csv")


# Files behind a server


@pytest.mark.parametrize("name", ["ttree.root", "rntuple.root", "jets.parquet"])
def test_files_of_a_server(name, jets, tmp_path, server):
    pytest.importorskip("aiohttp")
    WRITERS[name](tmp_path / name, jets)
    server.files[name] = (tmp_path / name).read_bytes()
    url = f"{server.url}/{name}"
    assert tables.describe(url) == tables.describe(tmp_path / name)
    chunks = list(tables.chunks(url, ["number", "list"], size=4))
    assert len(chunks) == 3
    assert_same(ak.concatenate(chunks), jets)
    before = sources.state(url)
    assert before == sources.state(url)
    server.files[name] += b"more"
    assert sources.state(url) != before


def test_servers_that_do_not_help(server, monkeypatch):
    pytest.importorskip("aiohttp")
    with pytest.raises(UserError, match="absent.root cannot be read as root: ") as caught:
        tables.describe(f"{server.url}/absent.root")
    assert "\n" not in str(caught.value)
    server.files["text.parquet"] = b"no parquet"
    with pytest.raises(UserError, match="text.parquet cannot be read as parquet: "):
        tables.describe(f"{server.url}/text.parquet")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        with pytest.raises(UserError, match=f"127.0.0.1:{port}/x.root cannot be read as root: "):
            tables.describe(f"http://127.0.0.1:{port}/x.root")
        free.listen()  # takes calls, and never says a word
        monkeypatch.setattr(sources, "ANSWERING", 0.2)
        for suffix in ("root", "parquet"):
            with pytest.raises(UserError, match=f"x.{suffix} cannot be read as {suffix}: ."):
                tables.describe(f"http://127.0.0.1:{port}/x.{suffix}")


def test_a_server_of_root_that_does_not_answer():
    if find_spec("XRootD") is None:  # which, once imported, does not look at its environment again
        pytest.skip("the client of root:// is not installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        for suffix in ("root", "parquet"):
            url = f"root://127.0.0.1:{free.getsockname()[1]}//x.{suffix}"
            with pytest.raises(UserError, match=f"{url} cannot be read as {suffix}: .*FATAL"):
                tables.describe(url)


def test_without_the_extra(monkeypatch):
    def fail(*arguments, **options):
        raise ImportError("no aiohttp")

    monkeypatch.setattr(sources, "_options", fail)
    with pytest.raises(UserError, match=r"pip install 'jetzoo\[remote\]'"):
        tables.describe("https://host/x.root")
    with pytest.raises(UserError, match=r"pip install 'jetzoo\[remote\]'"):
        sources.expand(["https://host/*.root"])


def test_predict_files_is_offered_by_the_package():
    assert jetzoo.predict_files.__module__ == "jetzoo.prediction.files"
