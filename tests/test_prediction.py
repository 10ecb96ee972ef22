"""Prediction of files as a stream: the same scores, parts that stay, outputs, workers."""

import os
import subprocess
import sys
import threading

import awkward as ak
import handmade
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import uproot
import zoo

import jetzoo
from jetzoo import UserError, cluster, comparison, sources, tables
from jetzoo.cli import main
from jetzoo.jets import read_jets
from jetzoo.metrics.predictions import read_predictions
from jetzoo.prediction import jobs, parts
from jetzoo.prediction.files import predict_files
from jetzoo.streams import ahead
from jetzoo.tagger import Tagger

CONFIG = "QuarkGluon/qg_kin"
COUNTS = (3, 0, 1, 12, 5, 30, 2, 7, 0, 9)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    """Parts of eight jets in chunks of four."""
    monkeypatch.setattr(tables, "CHUNK", 4)
    monkeypatch.setattr(jobs, "PART", 8)


@pytest.fixture
def tagger(network):
    return jetzoo.load(*network, CONFIG, device="cpu")


@pytest.fixture
def files(tmp_path):
    """Three files of 20 jets each, of different formats."""
    folder = tmp_path / "jets"
    folder.mkdir()
    found = []
    for i, name in enumerate(("a.parquet", "b.root", "c.parquet")):
        rng = np.random.default_rng(i)
        handmade.write_parquet(folder / "x.parquet", COUNTS * 2, rng)
        jets = ak.from_parquet(folder / "x.parquet")
        found.append(folder / name)
        tables.write(found[-1], jets)
    (folder / "x.parquet").unlink()
    return found


def read(path):
    return tables.read(path, tables.describe(path)[0])


def predict(tagger, files, output, **options):
    return predict_files(tagger, files, output, batch_size=4, **options)


def expected(tagger, files):
    return np.concatenate([tagger.predict(read(path), batch_size=4) for path in files])


def computed(monkeypatch):
    """The number of jets of each call of the network from now on."""
    found, answer = [], Tagger.answer

    def counting(self, good, *arguments):
        found.append(len(good))
        return answer(self, good, *arguments)

    monkeypatch.setattr(Tagger, "answer", counting)
    return found


@pytest.mark.parametrize("suffix", tables.FORMATS)
def test_a_stream_has_the_scores_of_the_whole(tagger, files, tmp_path, suffix):
    output = tmp_path / f"pred{suffix}"
    found = predict(tagger, files, output)
    assert found == (60, 0, True, [output])
    written = read(output)
    names = ["scores"] if suffix == ".parquet" else ["score_jet_isQ", "score_jet_isG"]
    scores = np.column_stack([ak.to_numpy(written[name]) for name in names])
    np.testing.assert_array_equal(scores, expected(tagger, files))
    for name, branch in (("_label_", "label"), ("jet_pt", "jet_pt"), ("jet_eta", "jet_eta")):
        truth = np.concatenate([ak.to_numpy(read(path)[branch]) for path in files])
        truth = 1 - truth if name == "_label_" else truth
        np.testing.assert_array_equal(ak.to_numpy(written[name]), truth)
    assert sorted(tmp_path.glob(".*")) == []
    if suffix == ".parquet":
        assert pq.ParquetFile(output).num_row_groups == 3 * 3


def test_chunks_are_read_while_the_network_computes(tagger, files, tmp_path, monkeypatch):
    threads, prepare = set(), Tagger.prepare
    monkeypatch.setattr(
        Tagger, "prepare", lambda *x: threads.add(threading.get_ident()) or prepare(*x)
    )
    predict(tagger, files, tmp_path / "pred.root")
    assert len(threads) == 1 and threading.get_ident() not in threads


def test_ahead():
    made = []

    def items(last):
        for i in range(10):
            if i == last:
                raise ValueError("the last one")
            made.append(i)
            yield i

    assert list(ahead(items(None))) == list(range(10))
    made.clear()
    for i in ahead(items(None), 3):
        if i == 2:
            break
    assert set(made) <= set(range(7)) and threading.active_count() < 20
    found = []
    with pytest.raises(ValueError, match="the last one"):
        found.extend(ahead(items(4)))
    assert found == [0, 1, 2, 3]


def test_jets_that_are_not_finite(tagger, files, tmp_path):
    jets = read(files[0])
    px = ak.to_numpy(ak.flatten(jets["part_px"])).copy()
    counts = ak.num(jets["part_px"])
    px[0] = np.nan
    bad = ak.with_field(jets, ak.unflatten(px, counts), "part_px")
    tables.write(files[0], bad)
    found = predict(tagger, files, tmp_path / "pred.parquet")
    assert found.num_bad == 1
    scores = ak.to_numpy(read(tmp_path / "pred.parquet")["scores"])
    np.testing.assert_array_equal(np.isnan(scores).any(1), np.arange(60) == 0)
    np.testing.assert_array_equal(scores, expected(tagger, files))


# Parts


def stop_after(monkeypatch, number, error=KeyboardInterrupt):
    """Let the writing of a part fail after some of them."""
    keep, done = parts.keep, []

    def failing(path, *arguments):
        if len(done) == number:
            raise error
        done.append(path)
        keep(path, *arguments)

    monkeypatch.setattr(parts, "keep", failing)


def folder_of(output):
    return output.with_name(f".{output.name}.parts")


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_finished_parts_are_kept(tagger, files, tmp_path, monkeypatch, error):
    output = tmp_path / "pred.parquet"
    predict(tagger, files, tmp_path / "whole.parquet")
    with monkeypatch.context() as patch:
        stop_after(patch, 7, error)
        with pytest.raises((KeyboardInterrupt, UserError)):
            predict(tagger, files, output)
    assert not output.exists() and len(list(folder_of(output).iterdir())) == 7
    calls = computed(monkeypatch)
    assert predict(tagger, files, output).num_jets == 60
    assert sum(calls) == 60 - (20 + 20 + 8)
    assert output.read_bytes() == (tmp_path / "whole.parquet").read_bytes()
    assert not folder_of(output).exists()


@pytest.mark.slow
def test_a_process_that_is_killed(network, files, tmp_path):
    """With a signal that nothing can catch, while a part is written."""
    script = tmp_path / "run.py"
    script.write_text(f"""
import os, sys, jetzoo
from jetzoo import tables
from jetzoo.prediction import jobs
tables.CHUNK, jobs.PART = 4, 8
import pyarrow.parquet as pq
from jetzoo.prediction import parts
write = pq.write_table
def killed(table, path, **options):
    write(table, path, **options)
    if len(list(path.parent.glob("*.parquet"))) == int(sys.argv[1]):
        os.truncate(path, 100)
        os.kill(os.getpid(), 9)
parts.pq.write_table = killed
tagger = jetzoo.load({str(network[0])!r}, {str(network[1])!r}, {CONFIG!r}, device="cpu")
output = {str(tmp_path / "pred.parquet")!r}
jetzoo.predict_files(tagger, {list(map(str, files))!r}, output, batch_size=4)
""")

    def run(number):
        command = [sys.executable, script, str(number)]
        return subprocess.run(command, capture_output=True, text=True)

    assert run(5).returncode == -9
    assert len(list(folder_of(tmp_path / "pred.parquet").glob("*.parquet"))) == 5
    done = run(100)
    assert done.returncode == 0 and "| 36/60" in done.stderr.splitlines()[1], done.stderr
    tagger = jetzoo.load(*network, CONFIG, device="cpu")
    predict(tagger, files, tmp_path / "whole.parquet")
    assert (tmp_path / "pred.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()
    assert not folder_of(tmp_path / "pred.parquet").exists()


def test_damaged_parts_are_made_again(tagger, files, tmp_path, monkeypatch):
    output = tmp_path / "pred.parquet"
    predict(tagger, files, tmp_path / "whole.parquet")
    with monkeypatch.context() as patch:
        stop_after(patch, 4)
        with pytest.raises(KeyboardInterrupt):
            predict(tagger, files, output)
    first, second, third, whole = sorted(folder_of(output).glob("*.parquet"))
    num_whole = pq.read_metadata(whole).num_rows
    first.write_bytes(first.read_bytes()[:-50])
    content = bytearray(second.read_bytes())
    content[60] ^= 255  # among the scores, which no length tells
    second.write_bytes(content)
    third.write_bytes(b"")
    calls = computed(monkeypatch)
    predict(tagger, files, output)
    assert sum(calls) == 60 - num_whole
    assert output.read_bytes() == (tmp_path / "whole.parquet").read_bytes()


def test_parts_of_a_file_do_not_depend_on_the_others(tagger, files, tmp_path, monkeypatch):
    output = tmp_path / "pred.parquet"
    with monkeypatch.context() as patch:
        stop_after(patch, 6)  # all those of the first two files
        with pytest.raises(KeyboardInterrupt):
            predict(tagger, files, output)
    calls = computed(monkeypatch)
    predict(tagger, [files[2], files[1]], output)
    assert sum(calls) == 20
    np.testing.assert_array_equal(
        ak.to_numpy(read(output)["scores"]), expected(tagger, [files[2], files[1]])
    )


def change_weights(network, files):
    state = torch.load(network[1])
    torch.save({name: 2 * x for name, x in state.items()}, network[1])


def change_code(network, files):
    network[0].write_text(network[0].read_text().replace(".sum(2)", ".sum(2).neg()"))


def change_input(network, files):
    jets = read(files[0])
    tables.write(files[0], jets[::-1])


def change_nothing(network, files):
    pass


CHANGES = {
    "weights": (change_weights, {}, 16),
    "code": (change_code, {}, 16),
    "input": (change_input, {}, 16),
    "option": (change_nothing, {"scale": 0.5}, 16),
    "nothing": (change_nothing, {}, 0),
}


@pytest.mark.parametrize("change", CHANGES)
def test_stale_parts(network, files, tmp_path, monkeypatch, change):
    act, options, again = CHANGES[change]
    output = tmp_path / "pred.parquet"
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            predict(jetzoo.load(*network, CONFIG, device="cpu"), files, output)
    act(network, files)
    tagger = jetzoo.load(*network, CONFIG, device="cpu", **options)
    calls = computed(monkeypatch)
    predict(tagger, files, output)
    assert sum(calls) == 60 - 16 + again
    scores = ak.to_numpy(read(output)["scores"])
    np.testing.assert_allclose(scores, expected(tagger, files), rtol=1e-6)


def test_a_network_that_nobody_can_load_again(network, files, tmp_path, monkeypatch):
    """Nothing tells whether it is the same next time."""
    tagger = jetzoo.load(*network, CONFIG, device="cpu")
    assert tagger.arguments is not None
    tagger.model = zoo.build("PFN")
    assert tagger.arguments is None
    output = tmp_path / "pred.root"
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            predict(tagger, files, output)
    calls = computed(monkeypatch)
    predict(tagger, files, output)
    assert sum(calls) == 60
    with pytest.raises(UserError, match="make the tagger with jetzoo.load"):
        predict(tagger, files, output, workers=2)


def test_two_at_once(tagger, files, tmp_path):
    from jetzoo.datasets.folder import at_work

    output = tmp_path / "pred.root"
    with (
        at_work(folder_of(output)),
        pytest.raises(UserError, match="another run works in .*pred.root.parts"),
    ):
        predict(tagger, files, output)
    assert not output.exists()


# Files and outputs


def command(network, *words):
    network, checkpoint = network
    given = [network, "--checkpoint", checkpoint, "--data-config", CONFIG, "--device", "cpu"]
    given += ["--batch-size", 4]
    return main(list(map(str, ["predict", *given, *words])))


def test_an_output_for_each_input(network, files, tmp_path, capsys):
    tagger = jetzoo.load(*network, CONFIG, device="cpu")
    output = tmp_path / "scores" / "{name}-pred.parquet"
    assert command(network, "--output", output, files[0].parent / "*.*") == 0
    names = [f"{x}-pred.parquet" for x in "abc"]
    assert sorted(x.name for x in output.parent.iterdir()) == names
    assert capsys.readouterr().out.count("wrote ") == 3
    for path, name in zip(files, names, strict=True):
        scores = ak.to_numpy(read(output.with_name(name))["scores"])
        np.testing.assert_allclose(scores, tagger.predict(read(path)), rtol=1e-6)
    other = tmp_path / "a.root"
    other.write_bytes(files[1].read_bytes())
    assert command(network, "--output", output, *files, other) == 2
    assert "would both be written to" in capsys.readouterr().err


def test_groups(network, files, tmp_path, capsys):
    output = tmp_path / "pred.root"
    words = [f"up:{files[0]}", f"down:{files[1]}", f"up:{files[2]}"]
    assert command(network, "--output", output, *words) == 0
    assert tables.describe(tmp_path / "pred_up.root")[1] == 40
    assert tables.describe(tmp_path / "pred_down.root")[1] == 20
    assert not output.exists()


def test_files_of_different_precision(tagger, files, tmp_path):
    jets = read(files[0])
    tables.write(files[0], ak.with_field(jets, ak.values_astype(jets["jet_pt"], float), "jet_pt"))
    for suffix in tables.FORMATS:
        predict(tagger, files, tmp_path / f"pred{suffix}")
        found = read(tmp_path / f"pred{suffix}")["jet_pt"]
        assert str(found.type.content) == "float64"
        np.testing.assert_array_equal(found, np.concatenate([read(x)["jet_pt"] for x in files]))


def test_observers_that_not_all_files_have(tagger, files, tmp_path):
    jets = read(files[2])
    tables.write(files[2], jets[[x for x in jets.fields if x not in ("jet_eta", "label")]])
    found = predict(tagger, files, tmp_path / "pred.parquet")
    assert not found.has_labels
    assert tables.describe(tmp_path / "pred.parquet") == (["scores", "jet_pt"], 60)


def damage(path):
    """Change bytes of a column, which the list of the columns does not tell."""
    if path.suffix == ".root":
        with uproot.open(path) as file:
            begin = int(file["Events"]["part_px"].member("fBasketSeek")[0])
    else:
        columns = pq.ParquetFile(path).metadata.row_group(0)
        begin = columns.column(columns.num_columns - 1).data_page_offset
    content = bytearray(path.read_bytes())
    content[begin : begin + 20] = bytes(range(200, 220))
    path.write_bytes(content)


@pytest.mark.parametrize("index", [1, 2])
def test_a_broken_file_among_others(network, files, tmp_path, capsys, index):
    output, whole = tmp_path / "pred.parquet", files[index].read_bytes()
    damage(files[index])
    assert command(network, "--output", output, *files) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(f"jetzoo: {files[index]} cannot be read as"), said
    kept = len(list(folder_of(output).glob("*.parquet")))
    assert not output.exists() and kept == 3 * index
    files[index].write_bytes(whole)
    os.utime(files[index], (0, 0))
    assert command(network, "--output", output, *files) == 0
    assert tables.describe(output)[1] == 60 and not folder_of(output).exists()


@pytest.mark.parametrize("missing", [True, False])
def test_a_file_that_changes_meanwhile(network, files, tmp_path, capsys, monkeypatch, missing):
    keep = parts.keep

    def changing(path, *arguments):
        keep(path, *arguments)
        if missing:
            files[2].unlink(missing_ok=True)
        else:
            tables.write(files[2], read(files[0])[:9])

    monkeypatch.setattr(parts, "keep", changing)
    assert command(network, "--output", tmp_path / "pred.root", *files) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    wrong = f"There is no file {files[2]}." if missing else f"{files[2]} has been changed"
    assert wrong in said
    assert len(list(folder_of(tmp_path / "pred.root").glob("*.parquet"))) >= 6


def test_a_place_in_a_long_file(tagger, files, tmp_path):
    jets = read(files[0])
    labels = ak.to_numpy(jets["label"]).copy()
    labels[19] = 7
    tables.write(files[0], ak.with_field(jets, labels, "label"))
    with pytest.raises(UserError, match="a.parquet, of the jets from 16 to 19: 1 of 4 .*jet 3"):
        predict(tagger, files, tmp_path / "pred.root")


def test_jets_behind_a_server(network, files, tmp_path, server):
    pytest.importorskip("aiohttp")
    urls = []
    for path in files:
        server.files[path.name] = path.read_bytes()
        urls.append(f"{server.url}/{path.name}")
    assert command(network, "--output", tmp_path / "remote.parquet", *urls) == 0
    assert command(network, "--output", tmp_path / "local.parquet", *files) == 0
    assert pq.read_table(tmp_path / "remote.parquet") == pq.read_table(tmp_path / "local.parquet")


def test_padded_jets_in_hdf5(tagger, files, tmp_path):
    """As weaver takes them: lists of one length, whose padding counts as particles."""
    import tables as pytables

    jets = read(files[0])
    with pytables.open_file(tmp_path / "jets.h5", "w") as file:
        for name in jets.fields:
            column = jets[name]
            if column.ndim == 2:
                column = ak.fill_none(ak.pad_none(column, 30, clip=True), 1.0)
            file.create_array("/", name, ak.to_numpy(column))
    predict(tagger, [tmp_path / "jets.h5"], tmp_path / "pred.parquet")
    scores = ak.to_numpy(read(tmp_path / "pred.parquet")["scores"])
    np.testing.assert_array_equal(scores, expected(tagger, [tmp_path / "jets.h5"]))


# The same sources elsewhere


def test_evaluation_of_a_pattern(tagger, files, tmp_path, capsys):
    tables.write(files[0], read(files[0])[:10])
    predict(tagger, files, tmp_path / "out" / "{name}.root")
    pattern = f"{tmp_path}/out/*.root:Events"
    assert main(["evaluate", pattern, "--out", str(tmp_path / "report")]) == 0
    labels, scores, _ = read_predictions(sources.listed([pattern]))
    assert len(labels) == 50
    np.testing.assert_array_equal(scores, expected(tagger, files))


def test_labelled_jets_of_all_kinds_of_files(tagger, files, tmp_path):
    jets = read(files[0])
    with uproot.recreate(tmp_path / "ntuple.root") as file:
        file["jets"] = jets
    paths = [f"{tmp_path / 'ntuple.root'}:jets", *files[1:]]
    assert comparison.check_labels(tagger, paths) == 60
    batches = list(comparison.labelled_batches(tagger, paths, 8))
    assert [len(labels) for _, labels in batches] == [8, 8, 4] * 3
    inputs = [x.numpy() for x in map(torch.cat, zip(*(x for x, _ in batches), strict=True))]
    whole = ak.concatenate([jets, *map(read, files[1:])])
    for found, wanted in zip(inputs, tagger.inputs(whole).values(), strict=True):
        np.testing.assert_array_equal(found, wanted)
    some = read_jets(tagger, paths, [59, 3, 21])
    np.testing.assert_array_equal(some["jet_pt"], whole["jet_pt"][[59, 3, 21]])


# Workers

MORTAL = zoo.LINEAR.replace(
    "        return self.fc",
    """        import os, pathlib
        marker = pathlib.Path(__file__).with_name("died")
        self.calls = getattr(self, "calls", 0) + 1
        if self.calls == 3 and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), 9)
        return self.fc""",
)


@pytest.fixture
def mortal(network):
    """A network that kills its process, once, at the third batch."""
    network[0].write_text(MORTAL)
    return network


def test_a_cluster_gives_the_same_bytes(network, files, tmp_path, monkeypatch):
    """With workers that are threads of this process."""
    distributed = pytest.importorskip("distributed")
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)
    with distributed.LocalCluster(
        n_workers=2,
        threads_per_worker=1,
        processes=False,
        protocol="tcp",
        dashboard_address="127.0.0.1:0",
    ) as farm:
        where = ["--dask", farm.scheduler_address]
        assert command(network, "--output", tmp_path / "farm.parquet", *where, *files) == 0
    assert command(network, "--output", tmp_path / "alone.parquet", *files) == 0
    assert (tmp_path / "farm.parquet").read_bytes() == (tmp_path / "alone.parquet").read_bytes()
    assert not folder_of(tmp_path / "farm.parquet").exists()


@pytest.mark.slow
def test_workers_give_the_same_bytes_though_one_is_killed(mortal, files, tmp_path):
    pytest.importorskip("distributed")
    marker = mortal[0].with_name("died")
    tagger = jetzoo.load(*mortal, CONFIG, device="cpu")
    found = predict(tagger, files, tmp_path / "workers.parquet", workers=2)
    assert marker.exists() and found.num_jets == 60
    predict(tagger, files, tmp_path / "alone.parquet")
    assert (tmp_path / "workers.parquet").read_bytes() == (tmp_path / "alone.parquet").read_bytes()


@pytest.mark.slow
def test_workers_that_die_again_and_again(network, files, tmp_path, capsys, monkeypatch):
    pytest.importorskip("distributed")
    deadly = MORTAL.replace("self.calls == 3 and not marker.exists()", "len(features) == 3")
    network[0].write_text(deadly)
    jets = read(files[1])
    tables.write(files[1], jets[:3])
    monkeypatch.setattr(cluster, "ATTEMPTS", 1)
    output = tmp_path / "pred.root"
    assert command(network, "--output", output, "--workers", 1, *files) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("jetzoo: 2 workers, of which tcp://"), said
    assert f"ended while they worked on {files[1]}, perhaps for lack of memory" in said
    assert not output.exists() and list(folder_of(output).glob("*.parquet"))


def test_clusters_that_do_not_help(network, files, tmp_path, capsys, monkeypatch):
    distributed = pytest.importorskip("distributed")
    import dask

    output = tmp_path / "pred.root"
    with dask.config.set({"distributed.comm.timeouts.connect": "0.3s"}):
        assert command(network, "--output", output, "--dask", "tcp://127.0.0.1:1", *files) == 2
    assert "No cluster answers at tcp://127.0.0.1:1" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "distributed", None)
    assert command(network, "--output", output, "--workers", 2, *files) == 2
    assert "pip install 'jetzoo[scale]'" in capsys.readouterr().err
    assert not output.exists() and not folder_of(output).exists() and distributed
