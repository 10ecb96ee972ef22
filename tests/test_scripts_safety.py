"""The training scripts at their boundaries: misuse, own networks, odd names, failed steps."""

# ruff: noqa: F401, F811  # pytest finds imported fixtures by the names of arguments

import os
import re
from pathlib import Path

import pytest
from train_scripts import (
    FOLDER,
    WRITE_PREDICTIONS,
    assert_misuse,
    checkout,
    dry_run,
    files_below,
    network_file,
    published,
    refused,
    run,
    stub,
    touch,
    with_path,
)


def says(result, *fragments):
    """Whether the sentence of a script that refused has these fragments."""
    return all(str(fragment) in result.stderr for fragment in fragments)


@pytest.fixture
def own_folder(tmp_path):
    """A folder for JETZOO_PATH, with a network and a data config that no list knows."""
    folder = tmp_path / "my zoo"
    network = "from jetzoo.networks.PFN import *\n"
    for name in ("networks/Mine.py", "networks/PFN.py", "networks/_parts.py"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(network)
    for name in ("qg_mine", "qg_kin.0123456789abcdef.auto", "top_mine"):
        path = folder / "data" / "QuarkGluon" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return folder


def test_networks_and_data_configs_of_a_user(dry_run, run, own_folder, tmp_path):
    where = {"JETZOO_PATH": f"{tmp_path / 'absent'}:{own_folder}"}
    _, args = dry_run("QuarkGluon", "Mine", "mine", **where)
    assert network_file(args) == str(own_folder / "networks" / "Mine.py")
    assert args.data_config == str(own_folder / "data" / "QuarkGluon" / "qg_mine.yaml")
    assert (args.start_lr, args.batch_size) == (1e-3, 512)
    assert args.optimizer_option == [] and args.load_model_weights is None
    # What comes earlier wins; a row of the table holds for every network of its name.
    _, args = dry_run("QuarkGluon", "PFN", "kin", **where)
    assert network_file(args) == str(own_folder / "networks" / "PFN.py")
    assert (args.start_lr, args.batch_size) == (2e-2, 4096)

    listed = run("QuarkGluon", "-h", **where).stdout
    assert re.search(r"MODEL +ParT LinformerParT .* PN-FineTune Mine\n", listed)
    assert re.search(r"FEATURES +kinpid kin kinpidplus mine\n", listed)
    assert_misuse(run("QuarkGluon", "Mine"), "no model 'Mine'")
    assert_misuse(run("TopLandscape", "Mine", "mine", **where), "no feature set 'mine'")
    assert_misuse(run("QuarkGluon", "Mine", "--attention", "sdpa", **where), "--attention")


def test_lists_of_jetzoo(run, dry_run, tmp_path):
    """Methods and backends are those that jetzoo names; without it, Python checks them later."""
    script = 'case "$*" in "list methods") printf "a\\nb\\n";; "list backends") echo c;; esac'
    path = with_path(stub(tmp_path / "bin", "jetzoo", script))
    assert_misuse(run("QuarkGluon", "--quantize", "static", PATH=path), "'static'", "are a b.")
    assert_misuse(run("QuarkGluon", "--attention", "sdpa", PATH=path), "'sdpa'", "are c.")
    words, _ = dry_run("QuarkGluon", "--quantize", "b", "--attention", "c", PATH=path)
    assert "'c'" in words
    assert "METHOD is a b\n" in run("QuarkGluon", "-h", PATH=path).stdout
    path = with_path(stub(tmp_path / "bin", "jetzoo", "exit 2"))
    dry_run("QuarkGluon", "--quantize", "anything", "--attention", "any", PATH=path)


@pytest.mark.parametrize(
    "option, values",
    [
        ("--batch-size", ["0", "-1", "1.5", "many", "", "nan"]),
        ("--num-epochs", ["0", "-1", "two", "1e1"]),
        ("--steps-per-epoch", ["0", "-1"]),
        ("--samples-per-epoch-val", ["0", "x"]),
        ("--num-workers", ["-1", "half"]),
        ("--start-lr", ["0", "-1e-3", "nan", "inf", "1e", "0.0e3", "fast"]),
        ("--data-fraction", ["0", "1.5", "-0.5", "2", "5e0"]),
        ("--train-val-split", ["0", "1", "8"]),
        ("--fetch-step", ["all"]),
        ("--gpus", ["abc", "-1", "0;1", "0,", "cuda:0"]),
        ("--predict-gpus", ["one"]),
        ("--seed", ["-1", "1.5", "4294967296", "99999999999", "x", ""]),
    ],
)
def test_numbers(option, values, refused):
    calls = [[option]]
    for value in values:
        calls += [[option, value], [f"{option}={value}"]]
    for call in calls:
        found = refused(*call, fragments=[option])
        assert found.returncode == 2
        assert len(found.stderr.splitlines()) == 1


def test_numbers_that_python_takes(dry_run):
    options = "--batch-size 1_024 --start-lr 5E-4 --data-fraction 1e-1 --fetch-step -1 "
    options += "--samples-per-epoch-val -1 --data-fraction-val 1.0 --warmup-steps 0"
    _, args = dry_run("QuarkGluon", *options.split())
    assert (args.batch_size, args.start_lr, args.data_fraction) == (1024, 5e-4, 0.1)


def test_choices(dry_run, refused):
    refused("--run-mode", "tset", fragments=["--run-mode", "'tset'"])
    refused("--optimizer", "nadam", fragments=["--optimizer", "'nadam'"])
    refused("--optimizer", "lr_scheduler", fragments=["--optimizer", "'lr_scheduler'"])
    for name in ("Ranger", "SGD"):
        _, args = dry_run("QuarkGluon", "--optimizer", name, "--run-mode", "train,val")
        assert (args.optimizer, args.run_mode) == (name, ["train", "val"])
    for name in ("-c", "--data-config", "-n", "--network-config"):
        refused(name, "absent", fragments=[name, "'absent' is not a file"])


def test_seed(dry_run):
    for words in (["--seed", "7"], ["--seed=7"], ["--seed", "007"]):
        _, args = dry_run("TopLandscape", "PN", *words)
        assert args.network_option == [["seed", "7"]]


def test_options_that_are_no_python(refused, dry_run):
    refused("-o", "attention", "sdpa", fragments=["attention", "'sdpa'", "quotes"])
    refused("--optimizer-option", "betas", "(0.9,", fragments=["betas"])
    refused("--network-option", "num_layers", fragments=["--network-option", "a name and a value"])
    values = ["-1", "'a b'", "(1, 2)", "None", "1e-3", '{"a": [1]}']
    _, args = dry_run("QuarkGluon", *[w for value in values for w in ("-o", "x", value)])
    assert args.network_option == [["x", value] for value in values]


@pytest.mark.parametrize(
    "gpus, seen, fragment",
    [("0", 0, "no GPU"), ("0,2", 2, "2 GPUs"), ("10", 2, "2 GPUs"), ("0, 1", 2, None)],
)
def test_gpus_that_are_not_there(gpus, seen, fragment, refused, run, tmp_path):
    stub(tmp_path / "bin", "python3", f"echo {seen}")
    if fragment:
        refused("--gpus", gpus, fragments=[f"--gpus {gpus}", fragment])
    else:
        stub(tmp_path / "bin", "weaver", WRITE_PREDICTIONS)
        stub(tmp_path / "bin", "jetzoo", "")
        result = run("QuarkGluon", "--gpus", gpus, PATH=with_path(tmp_path / "bin"))
        assert result.returncode == 0, result.stderr


def test_more_processes_than_gpus(refused, tmp_path):
    stub(tmp_path / "bin", "python3", "echo 2")
    assert says(refused("--gpus", "0", DDP_NGPUS=4), "DDP_NGPUS=4", "2 GPUs")


def test_weights(refused, tmp_path):
    (tmp_path / "folder.pt").mkdir()
    (tmp_path / "text.pt").write_text("weights")
    (tmp_path / "empty.pt").touch()
    touch(tmp_path / "a:b.pt")
    touch(tmp_path / "net.pt").rename(tmp_path / "net.pth")
    for name in ("absent.pt", "folder.pt", "text.pt", "empty.pt", "a:b.pt", "net.pth"):
        assert says(refused("--load", name), "--load", name)
        assert says(refused("--predict", "--load", name), "--load", name)
        assert says(refused("--load-model-weights", name), "--load-model-weights")
    (tmp_path / "cut.pt").write_bytes(touch(tmp_path / "net.pt").read_bytes()[:-1])
    for option in (["--load"], ["--predict", "--load"], ["--load-model-weights"]):
        assert says(refused(*option, "cut.pt"), option[-1], "cut.pt is cut")
    assert says(refused("-m", "a/net", "--load-epoch", "3"), "--load-epoch 3", "a/net_epoch-3")
    if os.geteuid():
        touch(tmp_path / "secret.pt").chmod(0)
        assert says(refused("--load", "secret.pt"), "secret.pt", "permission")
    assert says(refused("--load-epoch", "1"), "--load-epoch", "--resume")


@pytest.mark.parametrize("option", ["--data-train", "--data-val", "--data-test", "-i", "-l", "-t"])
def test_files_of_the_user(option, refused, tmp_path):
    (tmp_path / "empty.parquet").touch()
    (tmp_path / "folder.root").mkdir()
    (tmp_path / "page.root").write_text("<html>")
    (tmp_path / "zeros.h5").write_bytes(bytes(1000))
    (tmp_path / "jets.csv").write_text("1,2")
    good = str(touch(tmp_path / "good.root"))
    for name in (
        "absent.root",
        "empty.parquet",
        "folder.root",
        "page.root",
        "zeros.h5",
        "jets.csv",
    ):
        assert says(refused(option, name), name)
        assert says(refused(option, good, f"group:{name}"), name)
    assert says(refused(option, "*.csv"), "jets.csv")
    assert says(refused(option, "a:root://host/b.root"), "colon")
    assert says(refused(option), "needs a file")


def test_files_of_the_data_set(refused, tmp_path):
    for split in ("train", "val", "test"):
        touch(tmp_path / "data" / f"{split}_file_0.parquet")
    (tmp_path / "data" / "test_file_0.parquet").write_text("version https://git-lfs")
    where = {"DATADIR_QuarkGluon": tmp_path / "data"}
    assert says(refused(**where), "test_file_0.parquet is not a parquet file")
    (tmp_path / "data" / "train_file_1.parquet").touch()
    assert says(refused(**where), "train_file_1.parquet is empty")


@pytest.mark.parametrize(
    "comment", ["x" * 300, "é" * 150, "*[a]", "what?", "a/b", "a:b", "a\\b", "a\nb", "{auto}"]
)
def test_comments(comment, refused):
    assert says(refused(COMMENT=comment), "COMMENT")


@pytest.mark.parametrize("name", ["two\nlines", "back\\slash"])
def test_paths_that_weaver_cannot_take(name, refused, tmp_path):
    folder = tmp_path / name
    path = touch(folder / "train_file_0.parquet")
    why = "backslash or a line break"
    for option in ("--data-train", "--load", "-m", "--predict-output", "--profile", "--resume"):
        assert says(refused(option, path), why)
    assert says(refused(DATADIR_QuarkGluon=folder), why)


def test_output_folder_that_cannot_be_made(checkout, run):
    path = checkout / "training" / "TopLandscape" / "MambaParT"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("a file")
    assert_misuse(run("TopLandscape", "MambaParT"), str(path), "cannot be made")
    assert path.read_text() == "a file"


def test_odd_folders_work(run, checkout, tmp_path):
    """Spaces, quotes and dollars, in data, output and weights."""
    odd = 'it\'s $HOME; "x" & é'
    data = tmp_path / odd
    for split in ("train", "val", "test"):
        touch(data / f"{split}_file_0.parquet")
    folder = stub(
        tmp_path / "bin", "weaver", f'printf "%s\\n" "$@" >{tmp_path}/words\n' + WRITE_PREDICTIONS
    )
    stub(folder, "jetzoo", 'printf "%s\\n" "$@"')
    load = touch(data / "net.pt")
    result = run(
        "QuarkGluon", "PFN", "kin", "--load", load,
        PATH=with_path(folder), DATADIR_QuarkGluon=data, COMMENT=f"_{odd}",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    words = (tmp_path / "words").read_text().splitlines()
    assert f"{data}/train_file_*.parquet" in words and str(load) in words
    output = Path(words[words.index("--model-prefix") + 1]).parent
    assert output.parent == checkout / FOLDER and output.name.endswith(f"_{odd}")
    assert result.stdout.splitlines()[:2] == [
        "evaluate",
        str(output / "predict_output" / "pred.root"),
    ]


@pytest.mark.parametrize("options", [[], ["--run-mode", "train,test"], ["--profile"]])
def test_a_run_without_predictions_fails(options, run, tmp_path):
    folder = stub(tmp_path / "bin", "weaver", "")
    stub(folder, "jetzoo", "echo started")
    result = run("QuarkGluon", *options, PATH=with_path(folder))
    assert result.returncode == 1 and result.stdout == ""
    assert "nothing to evaluate" in result.stderr


@pytest.mark.parametrize("command", ["evaluate", "profile"])
def test_a_run_whose_last_step_failed_fails(command, run, tmp_path):
    folder = stub(tmp_path / "bin", "weaver", WRITE_PREDICTIONS)
    stub(folder, "jetzoo", f"[[ $1 != {command} ]] || exit 5")
    result = run("QuarkGluon", "--profile", PATH=with_path(folder))
    assert result.returncode == 5


def test_no_folder_is_left_where_weaver_did_not_start(checkout, run, tmp_path):
    """weaver refuses an option that it does not know with exit code 2, before its log starts."""
    folder = stub(tmp_path / "bin", "weaver", "exit 2")
    (checkout / FOLDER).mkdir(parents=True, exist_ok=True)
    before = files_below(checkout)
    result = run("QuarkGluon", "PFN", "kin", "--no-such-option", "1", PATH=with_path(folder))
    assert result.returncode == 2
    assert files_below(checkout) == before
