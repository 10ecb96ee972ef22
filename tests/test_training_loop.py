"""A training that is stopped, by a kill or by NaN: what stays of it, and how it goes on."""

import logging
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import handmade
import numpy as np
import pytest
import torch
import weaver.train
from conftest import ROOT
from weaver.train import parser
from weaver.utils.nn.tools import evaluate_classification

from jetzoo import UserError
from jetzoo.native.training import multiplies_half
from jetzoo.training import files, loop, program

# A ParT of some hundred weights, whose loss is a hook of the test: STOP ends the process, or raises
# KeyboardInterrupt, at that call; NAN makes it NaN.
NETWORK = """
import os
import signal

from jetzoo.networks.ParT import *
from jetzoo.networks import ParT as whole
from jetzoo import plugin

SMALL = {"embed_dims": (8, 8), "pair_embed_dims": (4,), "num_heads": 2, "num_layers": 1,
         "num_cls_layers": 1}


def get_model(data_config, **options):
    return whole.get_model(data_config, **{**SMALL, **options})


class Loss:
    def __init__(self):
        self.calls = 0
        self.cross_entropy = plugin.get_loss(None)

    def __call__(self, logits, labels):
        if self.calls == int(os.environ.get("KILL", -1)):
            os.kill(os.getpid(), signal.SIGKILL)
        if self.calls == int(os.environ.get("STOP", -1)):
            raise KeyboardInterrupt
        loss = self.cross_entropy(logits, labels)
        if self.calls == int(os.environ.get("NAN", -1)):
            loss = loss * float("nan")
        self.calls += 1
        return loss


def get_loss(data_config, **options):
    return Loss()
"""

FINE_TUNING = """
from jetzoo.nn import finetune

init_opt = finetune.init_opt("mod.fc.*")
"""

# Calls of the loss in an epoch: 8 batches to train, 2 to validate. Lookahead takes a step in 6.
CALLS, EPOCHS = 10, 4
IN_MEMORY = ("--samples-per-epoch", 64, "--samples-per-epoch-val", 16, "--in-memory")
IN_MEMORY += ("--fetch-step", 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Jets, and a network file."""
    folder = tmp_path_factory.mktemp("training")
    handmade.write_dataset(folder / "jets", "QuarkGluon", np.random.default_rng(0))
    (folder / "Small.py").write_text(NETWORK)
    (folder / "Fine.py").write_text(NETWORK + FINE_TUNING)
    config = next((ROOT / "data" / "QuarkGluon").glob("qg_kin.yaml"))
    shutil.copy(config, folder)
    return folder


@pytest.fixture
def arguments(folder, tmp_path):
    """The arguments of a run of weaver, whose files begin with ``tmp_path / NAME / 'net'``."""

    def arguments(name, *more):
        words = ["--data-train", folder / "jets" / "train_file_0.parquet"]
        words += ["--data-val", folder / "jets" / "val_file_0.parquet"]
        words += ["--data-config", folder / "qg_kin.yaml", "--network-config", folder / "Small.py"]
        words += ["--model-prefix", tmp_path / name / "net", "--run-mode", "train,val"]
        words += ["--gpus", "", "--num-workers", 0, "--batch-size", 8, "--num-epochs", EPOCHS]
        words += ["--start-lr", 0.02, "--network-option", "seed", 3]
        more = [folder / word if word == "Fine.py" else word for word in more]
        return [str(word) for word in (*words, *more)]

    return arguments


@pytest.fixture
def run(arguments, tmp_path, monkeypatch):
    """Run weaver in this process; `stop` is the call of the loss at which it is interrupted."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for name in ("torch", "shutil", "os"):  # which the training loop replaces
        monkeypatch.setattr(weaver.train, name, getattr(weaver.train, name))
    monkeypatch.setattr(logging.getLogger("weaver"), "handlers", [])

    def run(name, *more, stop=-1, **environment):
        for key, value in {"STOP": stop, **environment}.items():
            monkeypatch.setenv(key, str(value))
        monkeypatch.setattr(sys, "argv", ["weaver", *arguments(name, *more)])
        try:
            weaver.train.main()
        except KeyboardInterrupt:
            assert stop >= 0
        for key in environment:
            monkeypatch.delenv(key)
        return tmp_path / name

    yield run
    torch.set_num_threads(threads)


def last_epoch(folder):
    """The last whole epoch."""
    return max(
        int(p.name.split("-")[1].split("_")[0]) for p in folder.glob("net_epoch-*_resume.pt")
    )


def weights(path):
    return torch.load(path, weights_only=True)


def assert_same_training(one, other):
    """The same weights after every epoch, bit for bit, and the same best epoch."""
    kinds = [f"epoch-{epoch}" for epoch in range(EPOCHS)]
    for name in (*kinds, "best_epoch"):
        first, second = (weights(folder / f"net_{name}_state.pt") for folder in (one, other))
        assert first.keys() == second.keys()
        for key, value in first.items():
            assert torch.equal(value, second[key]), (name, key)


@pytest.mark.parametrize("stop", [5, 15, 28, 35], ids="epoch {0}".format)
def test_a_stopped_training_goes_on_as_if_it_had_not_been(stop, run):
    """Also where it stops in the validation (28), and where the next epoch is the decay (35)."""
    whole = run("whole", *IN_MEMORY)
    stopped = run("stopped", *IN_MEMORY, stop=stop)
    if stop < CALLS:
        assert not list(stopped.glob("net_*"))
        return
    last = last_epoch(stopped)
    assert last == stop // CALLS - 1
    run("stopped", *IN_MEMORY, "--load-epoch", last)
    assert_same_training(whole, stopped)


@pytest.mark.parametrize(
    "calls, options",
    [
        (CALLS, ("--lr-scheduler", "flat+cos", *IN_MEMORY)),
        (CALLS, ("--lr-scheduler", "one-cycle", "--optimizer", "adamW", *IN_MEMORY)),
        (CALLS, ("--lr-scheduler", "none", "--num-workers", 1, *IN_MEMORY)),
        (
            CALLS,
            ("--network-config", "Fine.py", "--optimizer-option", "weight_decay", 0.01, *IN_MEMORY),
        ),
        (16, ("--lr-scheduler", "steps", "--fetch-step", 1)),  # all jets of both files
    ],
    ids=["flat+cos", "one-cycle", "a process that loads", "fine-tuning", "files read anew"],
)
def test_other_schedules_and_loaders(calls, options, run):
    """Stopped twice."""
    whole = run("whole", *options)
    stopped = run("stopped", *options, stop=calls + 5)
    run("stopped", *options, "--load-epoch", 0, stop=2 * calls + 5)
    assert last_epoch(stopped) == 2
    run("stopped", *options, "--load-epoch", 2)
    assert_same_training(whole, stopped)


def test_a_killed_training_goes_on(arguments, run, tmp_path):
    """A process of its own, killed in the third validation, with --auto-clean.

    weaver would have removed the second epoch by then.
    """
    options = (*IN_MEMORY, "--auto-clean")
    whole = run("whole", *options)
    assert sorted(p.name for p in whole.glob("net_epoch*")) == [
        f"net_epoch-{EPOCHS - 1}_{kind}.pt" for kind in ("optimizer", "resume", "state")
    ]
    environment = {**os.environ, "KILL": str(2 * CALLS + 8), "OMP_NUM_THREADS": "1"}
    environment.pop("STOP", None)
    command = [Path(sys.executable).with_name("weaver"), *arguments("killed", *options)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == -signal.SIGKILL, result.stderr
    killed = tmp_path / "killed"
    epochs = {p.name for p in killed.glob("net_epoch*_state.pt")}
    assert epochs == {"net_epoch-1_state.pt", "net_epoch-2_state.pt"}  # killed in the validation
    assert last_epoch(killed) == 1
    run("killed", *options, "--load-epoch", 1)
    for name in (f"epoch-{EPOCHS - 1}", "best_epoch"):
        first, second = (weights(x / f"net_{name}_state.pt") for x in (whole, killed))
        assert all(torch.equal(value, second[key]) for key, value in first.items())


def test_the_best_epoch_stays_the_best(run, monkeypatch):
    """weaver itself takes the first epoch of a resumed training for the best."""
    metrics = iter([0.5, 0.7, 0.6, 0.65])
    evaluate = evaluate_classification
    monkeypatch.setattr(
        loop, "evaluation", lambda _: lambda *a, **k: (evaluate(*a, **k), next(metrics))[1]
    )
    folder = run("net", *IN_MEMORY, stop=3 * CALLS)
    best = folder / "net_best_epoch_state.pt"
    best.write_bytes(b"lost")  # as if the stop had come before the copy
    (folder / ".net_epoch-3_state.pt.123").write_bytes(b"half")
    run("net", *IN_MEMORY, "--load-epoch", 2)
    assert not list(folder.glob(".*"))
    for key, value in weights(folder / "net_epoch-1_state.pt").items():
        assert torch.equal(value, weights(best)[key])


def test_runs_without_a_file_to_resume_from(run, caplog):
    """As weaver does, and it is said; the learning rate is right all the same."""
    folder = run("net", *IN_MEMORY, stop=3 * CALLS + 5)
    for path in folder.glob("*_resume.pt"):
        path.unlink()
    run("net", *IN_MEMORY, "--load-epoch", 2)
    assert "There is no" in caplog.text and "net_epoch-2_resume.pt" in caplog.text
    optimizer = weights(folder / "net_epoch-3_optimizer.pt")
    # The only decay, to 1%, comes before the last epoch; it is not repeated.
    assert optimizer["param_groups"][0]["lr"] == pytest.approx(0.02 * 0.01)


def test_what_else_is_said_at_a_resume(run, caplog):
    folder = run("net", *IN_MEMORY, stop=CALLS + 5)
    run("net", *IN_MEMORY, "--load-epoch", 0, "--batch-size", 16, stop=1)
    assert "batch_size 16 instead of 8" in caplog.text and "another order" in caplog.text
    path = folder / "net_epoch-0_resume.pt"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match="net_epoch-0_resume.pt is damaged"):
        run("net", *IN_MEMORY, "--load-epoch", 0)


def finite(path):
    return all(v.isfinite().all() for v in weights(path).values() if v.is_floating_point())


def test_a_loss_that_is_not_finite_stops_the_training(run):
    with pytest.raises(UserError, match=r"The loss is nan at step 3 of epoch 1: .*nonfinite_batch"):
        run("net", *IN_MEMORY, NAN=CALLS + 3)
    folder = run("net", "--num-epochs", 1, *IN_MEMORY)
    batch = torch.load(folder / "net_nonfinite_batch.pt", weights_only=True)
    assert batch["step"] == 3
    assert batch["inputs"]["pf_features"].shape == (8, 7, 128)
    assert {len(value) for value in batch["labels"].values()} == {8}
    assert {p.name for p in folder.glob("net_epoch*_state.pt")} == {"net_epoch-0_state.pt"}
    assert finite(folder / "net_best_epoch_state.pt")


def test_weights_that_are_not_finite_are_not_saved(run, monkeypatch):
    """Those that the last step of an epoch spoils; a mask that holds infinity is none of them."""
    train, masked = loop.train_classification, []

    def spoil(model, *rest, **arguments):
        train(model, *rest, **arguments)
        masked.append(model.mod.norm.weight.clone())
        if len(masked) == 2:
            model.mod.norm.weight.data[0] = float("inf")

    monkeypatch.setattr(loop, "train_classification", spoil)
    with pytest.raises(UserError, match=r"not finite after epoch 1 \(mod.norm.weight\)"):
        run("net", *IN_MEMORY)
    with pytest.raises(UserError, match=r"The loss is nan at step 0 of the validation of epoch 0"):
        run("net", *IN_MEMORY, NAN=8)


def test_masks_may_be_infinite():
    """Buffers that are not finite before the training are meant to be so."""
    model = torch.nn.BatchNorm1d(2)
    model.register_buffer("mask", torch.tensor([0.0, float("-inf")]))
    model.running_var[0] = float("nan")
    model.weight.data[0] = float("nan")
    assert loop.not_finite(model) == ["weight", "running_var", "mask"]


def test_a_learning_rate_that_is_far_too_large(arguments, tmp_path):
    """One sentence and exit code 2, and no file holds NaN."""
    command = [Path(sys.executable).with_name("weaver"), *arguments("net", *IN_MEMORY)]
    result = subprocess.run(
        [*command, "--start-lr", "1e30"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 2, result.stderr
    sentence = result.stderr.splitlines()[-1]
    assert sentence.startswith("jetzoo: The ") and " epoch 0" in sentence
    assert "Traceback" not in result.stderr
    assert not list((tmp_path / "net").glob("net_best*"))
    for path in (tmp_path / "net").glob("net_*_state.pt"):
        assert finite(path)


def test_two_runs_of_a_seed_are_equal(run):
    options = (*IN_MEMORY, "--num-epochs", 1, "--network-option")
    one, two, other = (
        weights(run(name, *options, "seed", seed) / "net_epoch-0_state.pt")
        for name, seed in (("one", 5), ("two", 5), ("other", 6))
    )
    assert all(torch.equal(value, two[key]) for key, value in one.items())
    assert not torch.equal(one["mod.fc.0.weight"], other["mod.fc.0.weight"])


def test_files_are_whole_or_stay_as_they_were(tmp_path, monkeypatch):
    path = tmp_path / "net.pt"
    files.save({"w": torch.ones(3)}, path)
    before = path.read_bytes()

    def full(partial, data):
        partial.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UserError, match=r"net.pt cannot be written: No space left on device\."):
        files.save({"w": torch.zeros(3)}, path)
    monkeypatch.setattr(shutil, "copy2", lambda source, target: full(target, None))
    with pytest.raises(UserError, match="cannot be written"):
        files.copy(tmp_path / "other.pt", path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_a_full_disk_ends_a_training(run, tmp_path, monkeypatch):
    """Here at the second file of the second epoch: the first epoch is whole, and the best."""
    write = Path.write_bytes

    def write_bytes(path, data):
        if "net_epoch-1_optimizer" in path.name:
            write(path, data[:100])
            raise OSError(28, "No space left on device")
        return write(path, data)

    monkeypatch.setattr(Path, "write_bytes", write_bytes)
    with pytest.raises(UserError, match="net_epoch-1_optimizer.pt cannot be written: No space"):
        run("net", *IN_MEMORY)
    names = [f"epoch-0_{kind}" for kind in ("optimizer", "resume", "state")] + ["epoch-1_state"]
    names += ["best_epoch_optimizer", "best_epoch_state"]
    assert {p.name for p in (tmp_path / "net").iterdir()} == {f"net_{name}.pt" for name in names}
    assert all(weights(p) for p in (tmp_path / "net").iterdir())


def load(model, path, *words):
    """What weaver does with --load-model-weights, then the check."""
    args = parser.parse_args(["--load-model-weights", str(path), *words])
    program.check_pretrained(model, args)


def test_weights_that_do_not_fit_are_refused(tmp_path, caplog):
    torch.save({"fc.weight": torch.ones(2, 3), "fc.bias": torch.ones(2)}, tmp_path / "fits.pt")
    torch.save({"mod.w": torch.ones(2, 3), "fc.bias": torch.ones(2)}, tmp_path / "other.pt")
    model = torch.nn.ModuleDict({"fc": torch.nn.Linear(3, 2)})
    load(model, tmp_path / "fits.pt")
    message = r"other.pt does not fit the network: it lacks fc.weight; it has in addition mod.w;"
    with pytest.raises(UserError, match=message):
        load(model, tmp_path / "other.pt")
    load(model, tmp_path / "other.pt", "--exclude-model-weights", "fc.w,mod")
    torch.save({"x.fc.weight": torch.ones(2, 3), "x.fc.bias": torch.ones(2)}, tmp_path / "x.pt")
    load(model, f"{tmp_path / 'x.pt'}:x")
    assert "starts anew" not in caplog.text


SIZES = ("-o", "embed_dims", (8, 8), "-o", "pair_embed_dims", (4,), "-o", "num_heads", 2)
SIZES += ("-o", "num_layers", 1, "-o", "num_cls_layers", 1)


@pytest.mark.parametrize(
    "network, problem",
    [
        ("PFN", "weights.pt does not fit the network: it lacks phi.0.weight, "),
        ("PN-FineTune", "The weights do not fit the network: Missing key"),
        ("ParT", "The weights do not fit the network: size mismatch for mod.fc.0.weight: "),
        ("ParT-FineTune", None),
    ],
)
def test_load_of_weights_of_part(network, problem, run, tmp_path, caplog, capsys):
    """Refused before anything is trained; a fine-tuning takes those of its pretraining."""
    state = weights(run("part", "--num-epochs", 1, *IN_MEMORY) / "net_epoch-0_state.pt")
    if network == "ParT":
        state["mod.fc.0.weight"] = torch.ones(5, 8)
    torch.save(state, tmp_path / "weights.pt")
    words = [*IN_MEMORY, "--num-epochs", 1, "--load-model-weights", tmp_path / "weights.pt"]
    words += ["--network-config", ROOT / "networks" / f"{network}.py"]
    words += SIZES if "ParT" in network else []
    if problem is None:
        folder = run("net", *words)
        assert "weights.pt is a pretraining: the last layer fc starts anew." in caplog.text
        assert "fc.0.weight" not in weights(folder / "net_epoch-0_state.pt")
        return
    with pytest.raises((UserError, RuntimeError)) as error:
        run("net", *words)
    with pytest.raises(SystemExit, match="2"):
        program.explain(error.type, error.value, None)
    (sentence,) = capsys.readouterr().err.splitlines()[-1:]
    assert sentence.startswith("jetzoo: ") and problem in sentence
    assert not (tmp_path / "net").exists()


def test_other_errors_keep_their_traceback(monkeypatch):
    seen = []
    monkeypatch.setattr(sys, "__excepthook__", lambda *error: seen.append(error))
    error = RuntimeError("something else")
    program.explain(RuntimeError, error, None)
    assert seen == [(RuntimeError, error, None)]


@pytest.mark.parametrize(
    "option, problem", [("num_heads", "embed_dim 8"), ("num_layer", "did you mean 'num_layers'")]
)
def test_options_of_the_network(option, problem, run, monkeypatch):
    """Where weaver is the program, a wrong option is a misuse; elsewhere it stays an error."""
    with pytest.raises(ValueError, match=problem):
        run("net", *IN_MEMORY, "-o", option, 3)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(sys.modules["__main__"], "main", weaver.train.main, raising=False)
    with pytest.raises(UserError, match=f"ParT cannot be built: .*{problem}"):
        run("net", *IN_MEMORY, "-o", option, 3)
    assert sys.excepthook is program.explain


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_amp_on_a_cpu(dtype):
    """weaver's autocast is for GPUs; on a CPU with such products, this one is in bfloat16."""
    model = torch.nn.Linear(64, 32)
    x = torch.randn(5, 64)
    args = SimpleNamespace(use_amp=True, amp_dtype=dtype)
    network = loop.in_autocast(model, torch.device("cpu"), args)
    if dtype == "fp16" or not multiplies_half():
        assert network is model
        return
    out = network(x)
    assert out.dtype == torch.float32
    assert 1e-5 < (out - model(x)).abs().max() < 0.05
    assert loop.in_autocast(model, "cpu", SimpleNamespace(use_amp=False, amp_dtype="bf16")) is model
