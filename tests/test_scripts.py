"""The three training scripts: the command they build, their messages, and a short training each."""

# ruff: noqa: F401, F811  # pytest finds imported fixtures by the names of arguments

import argparse
import ast
import itertools
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import handmade
import numpy as np
import pytest
from train_scripts import (
    FEATURES,
    WRITE_PREDICTIONS,
    assert_misuse,
    checkout,
    dry_run,
    published,
    run,
    stub,
    touch,
    with_path,
)
from weaver.train import parser

from jetzoo.cli import add_profile

PARTS = ["ParT", "LinformerParT", "ReformerParT", "MambaParT"]
MODELS = [*PARTS, "PN", "PFN", "PCNN"]
FINE_TUNE = ["ParT-FineTune", "PN-FineTune"]
CONFIG = {"JetClass": "JetClass", "QuarkGluon": "qg", "TopLandscape": "top"}
GRID = [
    (dataset, model, features)
    for dataset in FEATURES
    for model, features in itertools.product(
        MODELS if dataset == "JetClass" else MODELS + FINE_TUNE, FEATURES[dataset]
    )
]
LEARNING_RATE = dict.fromkeys(PARTS, 1e-3) | {
    "PN": 1e-2,
    "PFN": 2e-2,
    "PCNN": 2e-2,
    "ParT-FineTune": 1e-4,
    "PN-FineTune": 1e-3,
}
SCHEDULE = {  # epochs, samples per epoch, samples to validate
    "JetClass": (50, 10_240_000, 1_280_000),
    "QuarkGluon": (20, 1_600_000, 200_000),
    "TopLandscape": (20, 1_228_800, 409_600),
}


@pytest.mark.parametrize("dataset, model, features", GRID)
def test_grid(dataset, model, features, dry_run, checkout, published):
    stderr = ""
    if model in FINE_TUNE:
        weights = (
            checkout
            / "models"
            / (
                {"ParT-FineTune": "ParT", "PN-FineTune": "ParticleNet"}[model]
                + ("_kin.pt" if features == "kin" else "_kinpid.pt")
            )
        )
        stderr = (
            f"note: {model} starts from JetClass weights, which are expected in {weights}; "
            f"jetzoo models --fetch {weights.stem} gets the published ones, for --load.\n"
        )
    _, args = dry_run(dataset, model, features, stderr=stderr)

    assert args.network_config == str(checkout / "networks" / f"{model}.py")
    assert args.data_config == str(
        checkout / "data" / dataset / f"{CONFIG[dataset]}_{features}.yaml"
    )
    assert Path(args.data_config).is_file()
    assert args.start_lr == LEARNING_RATE[model]
    assert args.batch_size == (4096 if model in ("PFN", "PCNN") else 512)
    assert (args.num_epochs, args.samples_per_epoch, args.samples_per_epoch_val) == SCHEDULE[
        dataset
    ]
    assert args.optimizer == "ranger"
    assert args.lr_scheduler == ("none" if model in FINE_TUNE else "flat+decay")
    decays = dataset != "JetClass" and model in [*PARTS, "ParT-FineTune"]
    assert args.optimizer_option == ([["weight_decay", "0.01"]] if decays else [])
    assert args.load_model_weights == (str(weights) if model in FINE_TUNE else None)
    assert (args.num_workers, args.fetch_step, args.in_memory) == (
        (2, 0.01, False) if dataset == "JetClass" else (1, 1, True)
    )

    folder = str(published / dataset)
    if dataset == "JetClass":
        for files, split in ((args.data_train, "train_100M"), (args.data_test, "test_20M")):
            assert sorted(files) == sorted(
                f"{name}:{folder}/Pythia/{split}/{name}_*.root" for name in handmade.JETCLASS
            )
        assert args.data_val == [f"{folder}/Pythia/val_5M/*.root"]
    elif dataset == "QuarkGluon":
        assert args.data_train == [f"{folder}/train_file_*.parquet"]
        assert args.data_test == [f"{folder}/test_file_*.parquet"]
        assert args.data_val == [] and args.train_val_split == 0.8889
    else:
        for files, split in (
            (args.data_train, "train"),
            (args.data_val, "val"),
            (args.data_test, "test"),
        ):
            assert files == [f"{folder}/{split}_file*.parquet"]

    prefix = Path(args.model_prefix)
    assert prefix.name == "net"
    assert prefix.parent.parent == checkout / "training" / dataset / model / features
    assert args.log == str(prefix.parent / "train.log")
    assert args.predict_output == str(prefix.parent / "predict_output" / "pred.root")
    assert not (checkout / "training").exists()


@pytest.mark.parametrize("dataset", FEATURES)
def test_defaults(dataset, dry_run):
    _, args = dry_run(dataset)
    assert Path(args.network_config).stem == "ParT"
    assert Path(args.data_config).stem == f"{CONFIG[dataset]}_{FEATURES[dataset][0]}"
    _, args = dry_run(dataset, "PFN", "--num-epochs", "7")
    assert Path(args.network_config).stem == "PFN"
    assert Path(args.data_config).stem == f"{CONFIG[dataset]}_{FEATURES[dataset][0]}"


def test_options_of_weaver_override(dry_run, tmp_path):
    touch(tmp_path / "a.parquet")
    touch(tmp_path / "b c.parquet")
    _, args = dry_run(
        "QuarkGluon", "ParT", "kin", "--start-lr", "0.5", "--batch-size=32", "--no-in-memory",
        "--optimizer-option", "weight_decay", "0.5", "-o", "num_layers", "3",
        "--gpus", "", "--predict-output", "scores.parquet", "--steps-per-epoch", "10",
        "--data-train", "a.parquet", "b c.parquet",
    )  # fmt: skip
    assert (args.start_lr, args.batch_size, args.in_memory, args.gpus) == (0.5, 32, False, "")
    assert dict(args.optimizer_option) == {"weight_decay": "0.5"}
    assert args.network_option == [["num_layers", "3"]]
    assert args.predict_output == "scores.parquet"
    assert args.data_train == ["a.parquet", "b c.parquet"]
    # weaver refuses to have both.
    assert (args.steps_per_epoch, args.samples_per_epoch) == (10, None)
    assert args.samples_per_epoch_val == 200_000


def test_demo(dry_run):
    for dataset, model in itertools.product(FEATURES, ("ParT", "PFN")):
        _, args = dry_run(dataset, model, "--demo")
        assert (args.num_epochs, args.samples_per_epoch, args.batch_size) == (3, 3200, 64)
        assert args.start_lr == LEARNING_RATE[model]
        assert not args.demo  # weaver's own option of that name does something else
    _, args = dry_run("QuarkGluon", "--demo", "--num-epochs", "1")
    assert args.num_epochs == 1


def test_attention(dry_run, run):
    for words in (["--attention", "sdpa"], ["--attention=sdpa"]):
        _, args = dry_run("QuarkGluon", "MambaParT", *words)
        assert args.network_option == [["attention", "'sdpa'"]]  # weaver reads Python literals
    assert_misuse(run("QuarkGluon", "PFN", "--attention", "sdpa"), "--attention", "PFN")


def test_comment_ends_the_folder(dry_run, run):
    _, args = dry_run("JetClass", COMMENT="_try 1")
    assert Path(args.model_prefix).parent.name.endswith("_try 1")
    for comment in ("a:b", "a/b"):
        assert_misuse(run("JetClass", COMMENT=comment), "COMMENT")


@pytest.mark.parametrize(
    "driver, torch, gpus",
    [("echo 'GPU 0: H200'", 2, "0"), ("echo 'GPU 0: H200'", 0, ""), ("exit 9", 1, "")],
)
def test_gpu_is_found(driver, torch, gpus, dry_run, tmp_path):
    """Driver and PyTorch must both have the GPU; mixed precision is for it only."""
    stub(tmp_path / "bin", "nvidia-smi", driver)
    path = with_path(stub(tmp_path / "bin", "python3", f"echo {torch}"))
    _, args = dry_run("QuarkGluon", "ParT", PATH=path)
    assert (args.gpus, args.use_amp) == (gpus, gpus != "")
    _, args = dry_run("QuarkGluon", "PN", PATH=path)
    assert (args.gpus, args.use_amp) == (gpus, False)
    _, args = dry_run("QuarkGluon", "ParT", "--gpus", "", PATH=path)
    assert (args.gpus, args.use_amp) == ("", False)


def test_data_parallel(dry_run):
    _, args = dry_run("QuarkGluon", "ParT", "--gpus", "0,1,2,3")
    assert args.gpus == "0,1,2,3" and args.use_amp and args.backend is None
    assert args.samples_per_epoch == 1_600_000


def test_distributed(dry_run, run):
    words, args = dry_run("JetClass", "ParT", "--gpus", "0", DDP_NGPUS=4)
    assert Path(words[0]).name == "torchrun"
    assert words[1:4] == ["--standalone", "--nnodes=1", "--nproc_per_node=4"]
    assert Path(words[4]) == Path(sys.executable).parent / "weaver"
    assert args.backend == "nccl" and args.gpus == "0"
    assert args.samples_per_epoch == 2_560_000 and args.samples_per_epoch_val == 1_280_000
    assert args.num_workers == 1  # 5 files of each class are not enough for 4 processes of 2

    words, args = dry_run("JetClass", "--gpus", "0", DDP_NGPUS=1)
    assert Path(words[0]).name == "torchrun" and args.backend == "nccl"
    words, args = dry_run("JetClass", "--gpus", "0")
    assert Path(words[0]).name == "weaver" and args.backend is None

    assert_misuse(run("JetClass", DDP_NGPUS="four"), "DDP_NGPUS")
    assert_misuse(run("JetClass", "--gpus", "", DDP_NGPUS=2), "DDP_NGPUS", "GPU")
    # weaver would fail when it hands one file to two processes.
    assert_misuse(run("TopLandscape", "--gpus", "0", DDP_NGPUS=2), "at least 2 files", "--gpus")


def test_several_nodes(dry_run, run):
    nodes = {"DDP_NNODES": 2, "DDP_NGPUS": 4, "DDP_RDZV": "head:29500"}
    words, args = dry_run("JetClass", "ParT", "--gpus", "0", **nodes, DDP_NODE_RANK=0)
    assert words[1:7] == [
        "--nnodes=2", "--nproc_per_node=4", "--rdzv_backend=c10d",
        "--rdzv_endpoint=head:29500", "--rdzv_id=JetClass-ParT-full",
        str(Path(sys.executable).parent / "weaver"),
    ]  # fmt: skip
    assert args.samples_per_epoch == 1_280_000
    assert args.run_mode == ["train", "val", "test"]
    # Every node saves its weights: in a folder of its own; only one predicts.
    _, args = dry_run("JetClass", "ParT", "--gpus", "0", **nodes, DDP_NODE_RANK=1)
    assert args.run_mode == ["train", "val"]
    assert Path(args.model_prefix).parent.name.endswith("-node1")

    assert_misuse(run("JetClass", **nodes), "DDP_NODE_RANK")
    assert_misuse(run("JetClass", **nodes, DDP_NODE_RANK=2), "DDP_NODE_RANK")
    assert_misuse(run("JetClass", **nodes | {"DDP_RDZV": "head"}, DDP_NODE_RANK=0), "DDP_RDZV")


def test_small_data_are_read_at_once(dry_run, tmp_path):
    handmade.write_dataset(tmp_path / "small", "JetClass", np.random.default_rng(0), jets=8)
    _, args = dry_run("JetClass", DATADIR_JetClass=tmp_path / "small")
    assert (args.num_workers, args.fetch_step, args.in_memory) == (1, 1, True)


def test_validation_files_are_used_where_they_are(dry_run, run, tmp_path):
    for split in ("train", "test"):
        touch(tmp_path / f"{split}_file_0.parquet")
    # weaver cannot split a single file.
    assert_misuse(run("QuarkGluon", DATADIR_QuarkGluon=tmp_path), "val_file_*.parquet")
    touch(tmp_path / "val_file_0.parquet")
    _, args = dry_run("QuarkGluon", DATADIR_QuarkGluon=tmp_path)
    assert args.data_val == [f"{tmp_path}/val_file_*.parquet"]


def test_predict(dry_run, run, tmp_path):
    assert_misuse(run("QuarkGluon", "--predict"), "--load")
    assert_misuse(run("QuarkGluon", "--predict", "--load", "absent.pt"), "absent.pt")
    assert_misuse(run("QuarkGluon", "--load"), "--load")
    touch(tmp_path / "net.pt")  # in the folder the script is started from
    _, args = dry_run("QuarkGluon", "ParT-FineTune", "--predict", "--load", "net.pt")
    assert args.predict and args.model_prefix == "net.pt"
    assert args.data_train == [] and args.data_test and args.load_model_weights is None
    _, args = dry_run("QuarkGluon", "ParT-FineTune", "--load=net.pt")
    assert not args.predict and args.load_model_weights == "net.pt"
    assert Path(args.model_prefix).name == "net"


@pytest.mark.parametrize("dataset", FEATURES)
def test_misuse(dataset, run, tmp_path):
    models = MODELS if dataset == "JetClass" else MODELS + FINE_TUNE
    assert_misuse(run(dataset, "Part"), "'Part'", " ".join(models))
    assert_misuse(run(dataset, "ParT", "all"), "'all'", " ".join(FEATURES[dataset]))
    assert_misuse(run(dataset, "ParT", "kin", "more"), "'more'")
    assert_misuse(run(dataset, "--demo", "ParT"), "'ParT'")
    absent = {f"DATADIR_{dataset}": tmp_path / "absent"}
    assert_misuse(run(dataset, **absent), str(tmp_path / "absent"), f"./get_datasets.py {dataset}")
    result = run(dataset, "--dry-run", **absent)
    assert result.returncode == 0 and "weaver --data" in result.stdout
    assert result.stderr.startswith("note: ") and "./get_datasets.py" in result.stderr
    colon = {f"DATADIR_{dataset}": tmp_path / "a:b"}
    assert_misuse(run(dataset, **colon), "a:b")


def test_fine_tuning_without_weights(run):
    for model, weights in (("ParT-FineTune", "ParT"), ("PN-FineTune", "ParticleNet")):
        assert_misuse(run("QuarkGluon", model), f"models/{weights}_kinpid.pt")
    assert_misuse(run("JetClass", "ParT-FineTune"), "no model")


@pytest.mark.parametrize("dataset", FEATURES)
def test_help(dataset, run):
    for result in (run(dataset, "-h"), run(dataset, "PFN", "--num-epochs", "3", "--help")):
        assert result.returncode == 0 and result.stderr == ""
        options = ["--demo", "--dry-run", "--gpus", "--attention", "--load", "--predict"]
        options += ["--profile [DIR]", "--quantize METHOD", "--qat"]
        environment = f"DATADIR_{dataset} COMMENT DDP_NGPUS DDP_NNODES DDP_NODE_RANK DDP_RDZV"
        for word in [*options, *environment.split(), *MODELS, *FEATURES[dataset]]:
            assert word in result.stdout
        assert max(map(len, result.stdout.splitlines())) <= 100


def test_environment_is_found(checkout, run):
    """Without an active environment the checkout's own is used; without any, one sentence."""
    bare = {"VIRTUAL_ENV": "", "CONDA_PREFIX": "", "PATH": "/usr/bin:/bin"}
    if shutil.which("weaver", path=bare["PATH"]):
        pytest.skip("weaver is installed on the system")
    assert_misuse(run("JetClass", **bare), "weaver", "make demo")
    bin_folder = checkout / ".venv" / "bin"
    bin_folder.mkdir(parents=True)
    try:
        for name in ("weaver", "jetzoo"):
            stub(bin_folder, name, "")
        result = run("JetClass", "--dry-run", **bare)
        assert shlex.split(result.stdout)[0] == str(bin_folder / "weaver")
    finally:
        shutil.rmtree(checkout / ".venv")


def test_started_by_a_link(checkout, run, tmp_path):
    link = tmp_path / "train"
    link.symlink_to(checkout / "train_JetClass.sh")
    direct = run("JetClass", "-h")
    environment = os.environ | {"PATH": with_path(tmp_path)}
    linked = subprocess.check_output([link, "-h"], text=True, env=environment)
    assert linked == direct.stdout


def profile_arguments(command):
    """What `jetzoo profile` reads in a command."""
    words = shlex.split(command)
    assert words[:2] == ["jetzoo", "profile"]
    profile = argparse.ArgumentParser()
    add_profile(profile)
    return profile.parse_args(words[2:])


def test_profile_command(run, checkout, published, tmp_path):
    def dry_run(*arguments, dataset="QuarkGluon"):
        result = run(dataset, *arguments, "--dry-run")
        assert result.returncode == 0, result.stderr
        weaver, profile = result.stdout.splitlines()
        start = weaver.index("weaver --data") + len("weaver ")
        return parser.parse_args(shlex.split(weaver[start:])), profile_arguments(profile)

    options = ["--attention", "sdpa", "-o", "num_layers", "4", "--batch-size", "32"]
    args, profile = dry_run("ParT", "kin", "--demo", "--profile", *options)
    assert profile.network == str(checkout / "networks" / "ParT.py")
    assert profile.checkpoint == f"{args.model_prefix}_best_epoch_state.pt"
    assert profile.data_config == args.data_config and profile.batch_size == 32
    assert profile.data == [str(published / "QuarkGluon" / "test_file_0.parquet")]
    assert profile.network_option == [["attention", "'sdpa'"], ["num_layers", "4"]]
    assert profile.train and profile.loader
    assert profile.device == "cpu" and profile.precision == "fp32"
    assert profile.out == str(Path(args.model_prefix).parent / "profile")

    touch(tmp_path / "net.pt")
    predict = ["--predict", "--load", "net.pt", "--gpus", "2,3"]
    _, profile = dry_run("--profile", "what it does", *predict)
    assert profile.checkpoint == "net.pt" and not profile.train
    assert profile.device == "cuda:2" and profile.precision == "bf16"
    assert profile.out == "what it does" and profile.batch_size == 512
    _, profile = dry_run("PFN", "--profile=a", "-m", "my/net", "-t", "x:y.root", "--gpus", "0")
    assert profile.checkpoint == "my/net_best_epoch_state.pt" and profile.data == ["y.root"]
    assert profile.out == "a" and profile.precision == "fp32"
    _, profile = dry_run("PN", "full", "--profile", dataset="JetClass")
    names = [f"Pythia/test_20M/{group}_000.root" for group in handmade.JETCLASS]
    assert sorted(profile.data) == sorted(str(published / "JetClass" / name) for name in names)
    assert_misuse(run("QuarkGluon", "--profile="), "--profile")


def test_quantize(dry_run, run, published, tmp_path):
    def settings(*arguments, dataset="QuarkGluon"):
        _, args = dry_run(dataset, *arguments, "--quantize", "static")
        return args, ast.literal_eval(dict(args.network_option)["quantize"])

    args, found = settings("PFN", "kin", "--qat")
    assert found.pop("output") == str(Path(args.model_prefix).parent)
    assert found == {
        "method": "static",
        "qat": True,
        "network": "PFN",
        # There is no validation file: weaver cuts the validation jets out of these.
        "calibration": [str(published / "QuarkGluon" / "train_file_*.parquet")],
    }
    _, found = settings(dataset="TopLandscape")
    assert found["calibration"] == [str(published / "TopLandscape" / "val_file*.parquet")]
    _, found = settings(dataset="JetClass")
    assert found["calibration"] == [str(published / "JetClass" / "Pythia" / "val_5M" / "*.root")]
    touch(tmp_path / "it's" / "here.parquet")
    _, found = settings("--data-val", "it's/here.parquet")
    assert found["calibration"] == ["it's/here.parquet"] and not found["qat"]
    assert_misuse(run("QuarkGluon", "--quantize", "int4"), "int4", "static dynamic weight-only")
    assert_misuse(run("QuarkGluon", "--attention", "fast"), "fast", "reference sdpa")
    assert_misuse(run("QuarkGluon", "--quantize"), "--quantize needs a value")
    assert_misuse(run("QuarkGluon", "--qat"), "--quantize")


def test_profile_runs_after_the_evaluation(run, tmp_path):
    folder = stub(tmp_path / "bin", "weaver", WRITE_PREDICTIONS)
    stub(folder, "jetzoo", 'echo "$1"')
    result = run("QuarkGluon", "--profile", PATH=with_path(folder))
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == ["evaluate", "profile"]
    assert "+ jetzoo profile " in result.stderr
    assert "profile" not in run("QuarkGluon", PATH=with_path(folder)).stdout


def test_failure_of_weaver_is_passed_on(run, tmp_path):
    folder = stub(tmp_path / "bin", "weaver", "exit 3")
    stub(folder, "jetzoo", "echo evaluated")
    result = run("QuarkGluon", PATH=with_path(folder))
    assert result.returncode == 3 and "evaluated" not in result.stdout


@pytest.mark.parametrize(
    "options, names",
    [
        ([], ["predict_output/pred.root"]),
        (["--predict-output", "{tmp}/out/scores.root"], ["{tmp}/out/scores.root"]),
        (
            ["-m", "{tmp}/mine/net", "--predict-output", "scores.parquet"],
            ["{tmp}/mine/predict_output/scores.parquet"],
        ),
        ([], ["predict_output/pred_a.root", "predict_output/pred_b.root"]),
        (["--run-mode", "train"], []),
    ],
)
def test_predictions_are_evaluated(options, names, run, tmp_path):
    """The files that weaver writes are found wherever the options send them."""
    folder = tmp_path / "bin"
    stub(
        folder,
        "weaver",
        'while [[ $1 != --log-file ]]; do shift; done; cd "$(dirname "$2")" || exit\n'
        + "\n".join(
            f'mkdir -p "$(dirname "{name}")" && touch "{name}"'
            for name in (name.format(tmp=tmp_path) for name in names)
        ),
    )
    stub(folder, "jetzoo", 'echo "$# $*"')
    result = run("QuarkGluon", *(o.format(tmp=tmp_path) for o in options), PATH=with_path(folder))
    assert result.returncode == 0, result.stderr
    if not names:
        assert result.stdout == "" and "nothing to evaluate" in result.stderr
        return
    assert result.stdout.startswith(f"{len(names) + 3} evaluate ")
    for name in names:
        assert name.format(tmp=tmp_path) in result.stdout
    assert result.stdout.rstrip().endswith("data/QuarkGluon/qg_kinpid.yaml")


@pytest.mark.parametrize(
    "dataset, model",
    [("JetClass", "PFN"), ("QuarkGluon", "ParT"), ("TopLandscape", "PFN")],
)
def test_training(dataset, model, run, tmp_path):
    """Train, predict and evaluate for real; then predict again from the saved weights."""
    handmade.write_dataset(tmp_path / "the jets", dataset, np.random.default_rng(0))
    options = ["--gpus", "", "--num-workers", "0", "--batch-size", "16"]
    if model == "ParT":
        options += ["-o", "num_layers", "1", "-o", "embed_dims", "(16,)", "-o", "num_heads", "2"]
    short = ["--num-epochs", "1", "--samples-per-epoch", "64", "--samples-per-epoch-val", "64"]
    where = {f"DATADIR_{dataset}": tmp_path / "the jets"}

    result = run(dataset, model, "kin", "--demo", *options, *short, **where)
    assert result.returncode == 0, result.stderr
    command = shlex.split(result.stderr.splitlines()[0].removeprefix("+ "))
    folder = Path(command[command.index("--log-file") + 1]).parent
    assert (folder / "train.log").is_file()
    metrics = json.loads((folder / "predict_output" / "metrics.json").read_text())
    assert (folder / "predict_output" / "roc.png").is_file()
    assert metrics["num_jets"] == (80 if dataset == "JetClass" else 64)

    if dataset == "TopLandscape":
        weights = folder / "net_best_epoch_state.pt"
        result = run(dataset, model, "kin", *options, "--predict", "--load", weights, **where)
        assert result.returncode == 0, result.stderr
        command = shlex.split(result.stderr.splitlines()[0].removeprefix("+ "))
        again = Path(command[command.index("--log-file") + 1]).parent
        assert again != folder
        assert json.loads((again / "predict_output" / "metrics.json").read_text()) == metrics
