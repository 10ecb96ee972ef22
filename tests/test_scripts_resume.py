"""Training scripts that are stopped: nothing of them survives, and --resume goes on."""

# ruff: noqa: F401, F811  # pytest finds imported fixtures by the names of arguments

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import handmade
import numpy as np
import pytest
import torch
from train_scripts import (
    FOLDER,
    checkout,
    dry_run,
    published,
    refused,
    run,
    stub,
    touch,
    with_path,
)


def alive(pids):
    """Those of the processes that run; one that ended and waits for its parent does not."""

    def runs(pid):
        try:
            return Path(f"/proc/{pid}/stat").read_text().rsplit(")")[1].split()[0] != "Z"
        except FileNotFoundError:
            return False

    return [pid for pid in pids if runs(pid)]


def processes_with(word):
    """Processes that have this in their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if word.encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue  # it has just ended
    return alive(found)


def wait_for(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


@pytest.fixture
def started(checkout, tmp_path):
    """Start a script and go on; what it prints goes to the files `output` and `errors`."""
    processes = []

    def started(*arguments, **environment):
        environment = {"VIRTUAL_ENV": sys.prefix, "PATH": with_path(tmp_path), **environment}
        with (tmp_path / "output").open("w") as output, (tmp_path / "errors").open("w") as errors:
            process = subprocess.Popen(
                [checkout / "train_QuarkGluon.sh", "PFN", "kin", *arguments],
                env={**os.environ, **{key: str(value) for key, value in environment.items()}},
                stdout=output,
                stderr=errors,
                # Tests that run in the background of a shell would hand down that it is ignored.
                preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
            )
        processes.append(process)
        return process

    yield started
    for process in processes:
        if process.poll() is None:
            process.terminate()
            process.wait()


@pytest.fixture
def started_stub(started, published, tmp_path):
    """Start a script with a weaver of the test; returns it and the process ids of weaver."""

    def started_stub(script):
        pids = tmp_path / "pids"
        folder = stub(tmp_path / "bin", "weaver", f"{script} echo $$ $! >'{pids}'; wait")
        stub(folder, "jetzoo", "echo evaluated")
        process = started(PATH=with_path(folder), DATADIR_QuarkGluon=published / "QuarkGluon")
        wait_for(lambda: pids.is_file() and pids.read_text().count("\n"))
        children = [int(word) for word in pids.read_text().split()]
        assert alive(children) == children
        return process, children

    return started_stub


@pytest.mark.parametrize("number, code", [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_interruption_ends_all_processes(number, code, started_stub, tmp_path):
    """weaver and what it started end, with one sentence and the code of the signal."""
    process, children = started_stub("sleep 300 &")
    process.send_signal(getattr(signal, number))
    assert process.wait(timeout=30) == code
    assert alive(children) == []
    assert (tmp_path / "output").read_text() == ""
    command, empty, sentence = (tmp_path / "errors").read_text().splitlines()
    assert empty == ""
    assert command.startswith("+ ")
    assert "weaver and its processes have ended" in sentence and "--resume" in sentence


def test_the_second_signal_kills_what_does_not_listen(started_stub, tmp_path):
    process, children = started_stub("trap '' TERM; (while true; do sleep 0.1; done) &")
    process.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    assert alive(children) == children
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == 143
    assert alive(children) == []
    assert (tmp_path / "errors").read_text().splitlines()[-1].startswith("Stopped by SIGTERM")


@pytest.fixture
def stopped(checkout):
    """Write the output folder of a stopped training with whole and cut epochs."""

    def stopped(name, whole, cut=(), kinds=("state", "optimizer")):
        folder = checkout / FOLDER / name
        folder.mkdir(parents=True)
        made.append(folder)
        for epoch in (*whole, *cut):
            for kind in kinds:
                torch.save({"w": torch.ones(3)}, folder / f"net_epoch-{epoch}_{kind}.pt")
        for epoch in cut:
            path = folder / f"net_epoch-{epoch}_optimizer.pt"
            path.write_bytes(path.read_bytes()[:-30])
        return folder

    made = []
    yield stopped
    for folder in made:
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()


def test_resume(stopped, dry_run, checkout):
    old = stopped("20250101-000000", [0, 1, 2, 3])
    new = stopped("20250102-000000_try", [0, 2, 10], cut=[11])
    (new / "net_epoch-12_state.pt").write_bytes((new / "net_epoch-10_state.pt").read_bytes())
    stopped("20250103-000000", [])  # stopped in its first epoch
    stopped("20250104-000000-node1", [5])  # no folder of node 0
    for words in (["--resume"], ["--resume", str(new)], [f"--resume={new}/"]):
        _, args = dry_run("QuarkGluon", "PFN", "kin", *words, "--num-epochs", "20")
        assert args.model_prefix.replace("//", "/") == f"{new}/net" and args.load_epoch == 10
        assert args.log.replace("//", "/") == f"{new}/train.log"
        assert args.load_model_weights is None and args.num_epochs == 20
    _, args = dry_run("QuarkGluon", "PFN", "kin", "--resume", old)
    assert args.model_prefix == f"{old}/net" and args.load_epoch == 3


def test_resume_of_an_epoch_that_was_not_validated(stopped, dry_run):
    """It lacks the file that is written last; runs of older versions have none."""
    folder = stopped("20250101-000000", [0, 1], kinds=("state", "optimizer", "resume"))
    for kind in ("state", "optimizer"):
        path = folder / f"net_epoch-2_{kind}.pt"
        path.write_bytes((folder / f"net_epoch-1_{kind}.pt").read_bytes())
    _, args = dry_run("QuarkGluon", "PFN", "kin", "--resume", folder)
    assert args.load_epoch == 1
    path = folder / "net_epoch-1_resume.pt"
    path.write_bytes(path.read_bytes()[:50])
    _, args = dry_run("QuarkGluon", "PFN", "kin", "--resume", folder)
    assert args.load_epoch == 0


def test_resume_of_several_nodes(stopped, run, published, tmp_path):
    """Every node goes on from the epoch of node 0, in a folder of its own."""
    old = stopped("20250101-000000", [0, 1], kinds=("state", "optimizer", "resume"))
    stopped("20250101-000001-node1", [0])
    folder = stub(tmp_path / "bin", "torchrun", "exit 0")
    stub(folder, "python3", "echo 1")
    nodes = {"DDP_NNODES": 2, "DDP_RDZV": "head:29500", "DDP_NODE_RANK": 1}
    result = run(
        "QuarkGluon", "PFN", "kin", "--resume", "--gpus", "0", PATH=with_path(folder), **nodes
    )
    assert result.returncode == 0, result.stderr
    words = shlex.split(result.stderr.splitlines()[0])
    output = Path(words[words.index("--model-prefix") + 1]).parent
    assert words[words.index("--load-epoch") + 1] == "1"
    assert output.name.endswith("-node1") and output.parent == old.parent
    for kind in ("state", "optimizer", "resume"):
        name = f"net_epoch-1_{kind}.pt"
        assert (output / name).read_bytes() == (old / name).read_bytes()


def test_resume_misuse(refused, stopped, tmp_path):
    refused("--resume", fragments=["no training to resume", str(FOLDER)])
    refused("--resume", "absent", fragments=["absent"])
    refused("--resume", tmp_path, fragments=["no epoch is whole"])
    refused("--resume=", fragments=["--resume"])
    folder = stopped("20250101-000000", [0])
    touch(tmp_path / "net.pt")
    refused("--resume", "--load", "net.pt", fragments=["--resume", "--load"])
    refused("--resume", folder, "-m", "a/net", fragments=["--resume", "--model-prefix"])
    found = refused("--resume", "--predict", "--load", "net.pt", fragments=["--resume"])
    assert "--predict" in found.stderr
    assert not (folder / "net_epoch-1_state.pt").exists()


def test_interrupted_and_resumed_training(run, started, tmp_path):
    """A real training is stopped after its first epoch, then continued in the same folder."""
    handmade.write_dataset(tmp_path / "jets", "QuarkGluon", np.random.default_rng(0))
    options = ["--gpus", "", "--num-workers", "1", "--batch-size", "16", "--seed", "1"]
    options += ["--samples-per-epoch", "512", "--samples-per-epoch-val", "64"]
    where = {"DATADIR_QuarkGluon": tmp_path / "jets", "OMP_NUM_THREADS": 1}
    process = started(*options, "--num-epochs", "1000", **where)
    wait_for(lambda: (tmp_path / "errors").read_text().count("\n"))
    words = shlex.split((tmp_path / "errors").read_text().splitlines()[0])
    folder = Path(words[words.index("--model-prefix") + 1]).parent
    wait_for(lambda: process.poll() or (folder / "net_epoch-1_resume.pt").is_file(), seconds=120)
    children = processes_with(f"{folder}/net")
    assert len(children) >= 3  # weaver, and those that load the jets to train and to validate
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130
    assert alive(children) == [] and processes_with(f"{folder}/net") == []
    errors = (tmp_path / "errors").read_text()
    assert errors.splitlines()[-1].startswith("Stopped by Ctrl-C")
    assert "Traceback" not in errors
    for path in folder.glob("net_*.pt"):
        assert torch.load(path, weights_only=True)

    epochs = [int(path.name.split("-")[1].split("_")[0]) for path in folder.glob("net_*_resume.pt")]
    end = max(epochs) + 3
    result = run("QuarkGluon", "PFN", "kin", *options, "--num-epochs", end, "--resume", **where)
    assert result.returncode == 0, result.stderr
    assert f"--load-epoch {max(epochs)} " in result.stderr.splitlines()[0]
    assert f"Resumed after epoch #{max(epochs)}" in result.stdout
    assert (folder / f"net_epoch-{end - 1}_state.pt").is_file()
    assert json.loads((folder / "predict_output" / "metrics.json").read_text())["num_jets"] == 64
    assert "Epoch #0 training" in (folder / "train.log").read_text()


def test_a_training_that_is_not_finite(run, checkout, tmp_path):
    """One sentence and exit code 2; nothing is predicted with its weights."""
    handmade.write_dataset(tmp_path / "jets", "QuarkGluon", np.random.default_rng(0))
    options = ["--gpus", "", "--batch-size", "16", "--samples-per-epoch", "64", "--num-epochs", 2]
    result = run(
        "QuarkGluon", "PFN", "kin", *options, "--start-lr", "1e30", COMMENT="_nan",
        DATADIR_QuarkGluon=tmp_path / "jets",
    )  # fmt: skip
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert re.fullmatch(
        "jetzoo: .* not finite .*|jetzoo: The loss .*", result.stderr.split("\n")[-2]
    )
    (folder,) = (checkout / FOLDER).glob("*_nan")
    assert not (folder / "predict_output").exists()
    assert not list(folder.glob("net_best*"))
