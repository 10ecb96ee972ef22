"""What a prediction cannot finish: one sentence, and the same command goes on from there."""

import socket
from functools import cache

import awkward as ak
import handmade
import numpy as np
import pytest
import torch
from test_prediction import command, computed, damage, folder_of

from jetzoo import tables
from jetzoo.prediction import jobs, parts
from jetzoo.tagger import Tagger

COUNTS = (3, 0, 1, 12, 5, 30, 2, 7)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    """Parts of four jets."""
    monkeypatch.setattr(tables, "CHUNK", 4)
    monkeypatch.setattr(jobs, "PART", 4)


@pytest.fixture
def jets(tmp_path):
    """A file of two parts."""
    path = tmp_path / "jets" / "jets.parquet"
    handmade.write_parquet(path, COUNTS, np.random.default_rng(1))
    return path


def refused(capsys, *words):
    """What is said by a command that fails: one line behind the progress."""
    assert command(*words) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("jetzoo: ") and said.endswith("."), said
    return said


def num_kept(output):
    return len(list(folder_of(output).glob("*.parquet")))


def test_a_broken_file_among_two_hundred(network, tmp_path, capsys, monkeypatch):
    files = [tmp_path / f"{i:03}.parquet" for i in range(200)]
    handmade.write_parquet(files[0], COUNTS[:4], np.random.default_rng(1))
    whole = files[0].read_bytes()
    for path in files:
        path.write_bytes(whole)
    damage(files[120])
    prepare, jets = Tagger.prepare, ak.from_parquet(files[0])
    same = cache(lambda tagger: prepare(tagger, jets))
    # weaver takes its time, and the files are all the same.
    monkeypatch.setattr(Tagger, "prepare", lambda tagger, _: same(tagger))
    output = tmp_path / "pred.root"
    words = (network, "--output", output, tmp_path / "???.parquet")
    assert f"{files[120]} cannot be read as parquet: " in refused(capsys, *words)
    assert not output.exists() and num_kept(output) == 120
    files[120].write_bytes(whole)
    calls = computed(monkeypatch)
    assert command(*words) == 0
    assert sum(calls) == 4 * 80 and tables.describe(output)[1] == 800  # not one is made again
    assert not folder_of(output).exists()


def test_a_server_that_no_longer_answers(network, jets, tmp_path, capsys, monkeypatch, server):
    pytest.importorskip("aiohttp")
    urls = []
    for name in "abcd":
        server.files[f"{name}.parquet"] = jets.read_bytes()
        urls.append(f"{server.url}/{name}.parquet")
    keep = parts.keep

    def cut(path, *arguments):
        server.cuts = [0] * 1000
        keep(path, *arguments)

    output = tmp_path / "pred.parquet"
    with monkeypatch.context() as patch:
        patch.setattr(parts, "keep", cut)
        said = refused(capsys, network, "--output", output, *urls)
    assert any(f"{url} cannot be read as parquet: " in said for url in urls[1:]), said
    assert not output.exists() and num_kept(output) >= 2
    server.cuts = []
    assert command(network, "--output", output, *urls) == 0
    assert tables.describe(output)[1] == 32


def test_a_scheduler_that_dies(network, jets, tmp_path, capsys, monkeypatch):
    """It runs in this process, where all that it can do is to cut the connection."""
    distributed = pytest.importorskip("distributed")
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)
    files = [jets.with_name(f"{i}.parquet") for i in range(6)]
    for path in files:
        path.write_bytes(jets.read_bytes())
    keep, done = parts.keep, []

    async def die():
        for comm in farm.scheduler.client_comms.values():
            comm.abort()

    def dying(path, *arguments):
        keep(path, *arguments)
        done.append(path)
        if len(done) == 3:
            farm.sync(die)

    output = tmp_path / "pred.parquet"
    with (
        distributed.LocalCluster(
            n_workers=1,
            threads_per_worker=1,
            processes=False,
            protocol="tcp",
            dashboard_address="127.0.0.1:0",
        ) as farm,
        monkeypatch.context() as patch,
    ):
        patch.setattr(parts, "keep", dying)
        address = farm.scheduler_address
        said = refused(capsys, network, "--output", output, "--dask", address, *files)
    assert f"The cluster at {address} is gone: what is finished is kept" in said
    assert not output.exists() and 3 <= num_kept(output) < 12
    assert command(network, "--output", output, *files) == 0
    assert tables.describe(output)[1] == 48


def test_a_scheduler_that_never_says_a_word(network, jets, tmp_path, capsys):
    pytest.importorskip("distributed")
    import dask

    output = tmp_path / "pred.parquet"
    with socket.socket() as silent, dask.config.set({"distributed.comm.timeouts.connect": "0.3s"}):
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"tcp://127.0.0.1:{silent.getsockname()[1]}"
        said = refused(capsys, network, "--output", output, "--dask", address, jets)
    assert f"No cluster answers at {address}" in said
    assert not output.exists() and not folder_of(output).exists()
