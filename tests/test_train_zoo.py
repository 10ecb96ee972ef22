"""The trainings of the zoo and its tables: plans, resuming, what is collected and measured."""

import csv
import json
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys

import handmade
import numpy as np
import pytest
import torch
from conftest import ROOT
from weaver.train import parser

from jetzoo import UserError, data_config
from jetzoo.metrics.numbers import evaluate
from jetzoo.metrics.predictions import write_predictions
from jetzoo.metrics.report import write_report
from jetzoo.repository import network_module

STUB_WEAVER = """
echo "$*" >> "$CALLS"
while (($#)); do
    case $1 in
        --model-prefix) prefix=$2 ;;
        --log-file) log=$2 ;;
        --predict-output) pred=$2 ;;
        --start-lr) [[ $BROKEN != "$2" ]] || { echo "out of luck"; exit 3; } ;;
    esac
    shift
done
mkdir -p "$(dirname "$pred")"
echo weights > "${prefix}_best_epoch_state.pt"
echo scores > "$pred"
echo "INFO: Epoch #0: Current validation metric: 0.75 (best: 0.75)"
for split in train val test; do
    echo " - ('data_$split', ['$DATADIR_QuarkGluon/${split}_file_*.parquet'])"
done > "$log"
"""
STUB_JETZOO = """
echo '{"accuracy": 0.75, "auc": 0.8}' > "$(dirname "$2")/metrics.json"
"""


def stub(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/usr/bin/env bash\n{text}")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.fixture(scope="module", autouse=True)
def benchmarks():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        yield


@pytest.fixture
def train_zoo():
    import train_zoo

    return train_zoo


@pytest.fixture
def results_table():
    import results_table

    return results_table


def test_plan(train_zoo):
    runs = [(run.model, run.seed) for run in train_zoo.plan("quarkgluon-kin")]
    assert runs[:7] == [(model, 1) for model in train_zoo.MODELS]
    assert sorted(runs[7:]) == [(m, s) for m in ("PFN", "ParT") for s in (2, 3)]
    runs = train_zoo.plan("jetclass-full", only=["PN"], seeds=[4, 5], epochs=2)
    assert [(r.model, r.seed, r.budget.epochs) for r in runs] == [("PN", 4, 2), ("PN", 5, 2)]
    with pytest.raises(UserError, match="no PN-FineTune; its models are LinformerParT, MambaParT"):
        train_zoo.plan("quarkgluon-kin", only=["PN-FineTune"])


def test_commands_are_what_the_scripts_and_weaver_take(train_zoo):
    """All models of a set get the same budget and data; the rates are those of the scripts."""
    environment = {**os.environ, "PATH": f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"}
    for name, chosen in train_zoo.SETS.items():
        budgets = set()
        for run in train_zoo.plan(name, seeds=[3]):
            if run.model in ("ReformerParT", "MambaParT", "PCNN"):  # a second each
                continue
            result = subprocess.run(
                [*run.command(), "--dry-run"],
                cwd=ROOT, env=environment, capture_output=True, text=True, check=True,
            )  # fmt: skip
            args = parser.parse_args(shlex.split(result.stdout)[1:])
            assert ["seed", "3"] in args.network_option
            assert f"{chosen.dataset}/" in args.data_config
            assert args.data_config.endswith(f"_{chosen.features}.yaml")
            budgets.add(
                (
                    args.num_epochs,
                    args.samples_per_epoch,
                    args.samples_per_epoch_val,
                    args.batch_size,
                )
            )
        assert budgets == {(chosen.budget.epochs, 4096, 2048, 128)}


def test_seed_decides_weights_and_batches():
    config = data_config.read("QuarkGluon/qg_kin")

    def draw(seed):
        model, _ = network_module("PFN").get_model(config, seed=seed)
        # weaver's loader seeds its processes with this number.
        return next(model.parameters()).detach(), torch.randint(2**40, ()), np.random.rand()  # noqa: NPY002

    first, again, other = draw(1), draw(1), draw(2)
    assert torch.equal(first[0], again[0]) and first[1:] == again[1:]
    assert not torch.equal(first[0], other[0])
    assert first[1] != other[1] and first[2] != other[2]


@pytest.fixture
def checkout(tmp_path, monkeypatch, train_zoo):
    """A checkout whose weaver is a stub that writes the files of a training, and counts calls."""
    folder = tmp_path / "checkout"
    shutil.copytree(ROOT / "scripts", folder / "scripts")
    for name in ("env.sh", "train_QuarkGluon.sh"):
        shutil.copy(ROOT / name, folder)
    for name in ("networks", "data"):
        (folder / name).symlink_to(ROOT / name)
    handmade.write_dataset(tmp_path / "jets", "QuarkGluon", np.random.default_rng(0), jets=32)
    stub(tmp_path / "bin" / "weaver", STUB_WEAVER)
    stub(tmp_path / "bin" / "jetzoo", STUB_JETZOO)
    monkeypatch.setattr(train_zoo, "ROOT", folder)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("VIRTUAL_ENV", "active")
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    monkeypatch.setenv("BROKEN", "none")
    monkeypatch.setenv("DATADIR_QuarkGluon", str(tmp_path / "jets"))
    return folder


def test_runs_are_collected_and_not_repeated(train_zoo, checkout, tmp_path, monkeypatch, capsys):
    out = tmp_path / "zoo"
    calls = tmp_path / "calls"
    words = ["quarkgluon-kin", "--only", "PFN", "PN", "--seeds", "1", "--out", str(out), "-j", "2"]

    # PFN fails; PN is trained all the same, and is not trained again.
    monkeypatch.setenv("BROKEN", "2e-2")
    assert train_zoo.main(words) == 1
    assert "out of luck" in capsys.readouterr().err
    monkeypatch.setenv("BROKEN", "none")
    assert train_zoo.main(words) == 0
    assert len(calls.read_text().splitlines()) == 3
    assert train_zoo.main(words) == 0
    assert len(calls.read_text().splitlines()) == 3

    folder = out / "quarkgluon-kin" / "PFN-seed1"
    assert sorted(p.name for p in folder.iterdir()) == [
        "metrics.json", "net.pt", "pred.root", "run.json", "train.log",
    ]  # fmt: skip
    record = json.loads((folder / "run.json").read_text())
    assert record["jets"] == {"train": 32, "val": 32, "test": 32}
    assert (record["model"], record["seed"], record["budget"]["epochs"]) == ("PFN", 1, 10)
    assert record["command"].startswith("./train_QuarkGluon.sh PFN kin --num-epochs 10 ")
    assert str(tmp_path) not in json.dumps(record)

    # Another budget would make a table of unequal trainings.
    assert train_zoo.main([*words, "--epochs", "3"]) == 2
    assert "another budget" in capsys.readouterr().err
    assert train_zoo.main([*words, "--seeds", "1", "2", "--dry-run"]) == 0
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines()] == ["PFN", "PN"]


def write_run(folder, model, seed, jets, labels):
    """A finished run of random weights, with predictions of some quality."""
    folder.mkdir(parents=True)
    network, _ = network_module(model).get_model(data_config.read("QuarkGluon/qg_kin"), seed=seed)
    torch.save(network.state_dict(), folder / "net.pt")
    rng = np.random.default_rng(seed)
    score = 1 / (1 + np.exp(rng.normal(0, 1, len(labels)) + 2 * labels - 1))
    classes, scores = ["jet_isQ", "jet_isG"], np.stack((score, 1 - score), 1)
    write_predictions(folder / "pred.root", classes, scores, labels)
    metrics = evaluate(labels, scores, classes)
    write_report(metrics, {}, folder)
    log = [f" - ('data_{s}', ['{jets}/{s}_file_*.parquet'])" for s in ("train", "val", "test")]
    for epoch in range(2):
        log.append(f"INFO: Eval AvgLoss: {0.6 - epoch / 10}, AvgAcc: 0.7")
        log.append(f"INFO: Epoch #{epoch}: Current validation metric: 0.{7 + epoch} (best: 0.8)")
    (folder / "train.log").write_text("\n".join(log))
    record = {
        "dataset": "QuarkGluon", "features": "kin", "model": model, "seed": seed, "seconds": 60,
        "budget": {"epochs": 2, "samples": 64}, "jets": {"train": 64, "val": 64, "test": 64},
    }  # fmt: skip
    (folder / "run.json").write_text(json.dumps(record))
    return metrics


@pytest.fixture
def results(tmp_path, monkeypatch, results_table):
    """Runs of two models, one with two seeds; everything is written to a folder of the test."""
    jets, out = tmp_path / "jets", tmp_path / "zoo"
    handmade.write_dataset(jets, "QuarkGluon", np.random.default_rng(0))
    handmade.write_parquet(
        tmp_path / "real" / "quarkgluon_1000.parquet", [5, 9, 20, 30] * 10, np.random.default_rng(4)
    )
    labels = np.arange(400) % 2
    metrics = [
        write_run(out / "quarkgluon-kin" / f"{model}-seed{seed}", model, seed, jets, labels)
        for model, seed in (("PFN", 1), ("PFN", 2), ("ParT", 1))
    ]
    monkeypatch.setenv("JETZOO_REAL_DATA", str(tmp_path / "real"))
    shutil.copy(ROOT / "benchmarks" / "results" / "published.csv", tmp_path)
    folders = ["--results", str(tmp_path), "--figures", str(tmp_path)]
    return ["--out", str(out), *folders], metrics


def test_tables_and_figures(results, results_table, tmp_path, capsys):
    options, (first, second, _) = results
    assert results_table.main(["quarkgluon-kin", *options, "--repeats", "1"]) == 0
    with open(tmp_path / "zoo_quarkgluon-kin.csv") as file:
        pfn, part = csv.DictReader(file)
    assert (part["model"], pfn["model"], pfn["seeds"]) == ("ParT", "PFN", "2")

    aucs = [first["auc"], second["auc"]]
    assert float(pfn["auc"]) == pytest.approx(np.mean(aucs), abs=1e-5)
    assert float(pfn["auc_spread"]) == pytest.approx(np.std(aucs, ddof=1), abs=1e-5)
    assert part["auc_spread"] == "" and float(part["accuracy_error"]) > 0
    rejections = [m["rejections"][0]["rejection"] for m in (first, second)]
    assert float(pfn["rejection_Q_50"]) == pytest.approx(np.mean(rejections), rel=1e-4)
    assert float(pfn["real_auc"]) > 0 and float(pfn["int8_auc"]) > 0
    ratio = float(part["megabytes"]) / float(part["int8_megabytes"])
    assert float(part["times_smaller"]) == pytest.approx(ratio, rel=1e-4) and ratio > 3.7

    network, _ = network_module("PFN").get_model(data_config.read("QuarkGluon/qg_kin"))
    assert int(pfn["parameters"]) == sum(p.numel() for p in network.parameters())
    # A sum over particles, and a head that does not depend on their number.
    phi, head = 2 * (7 * 128 + 2 * 128**2), 2 * (3 * 128**2 + 2 * 128)
    for length in (45, 128):
        assert float(pfn[f"mflop_{length}"]) == pytest.approx((length * phi + head) / 1e6, rel=1e-4)
    for kind in ("stock", "fast", "int8"):
        assert float(pfn[f"jets_per_second_{kind}"]) > 0
    assert float(part["jets_per_second_weaver"]) > 0 and pfn["jets_per_second_weaver"] == ""

    for kind in ("learning", "roc"):
        for suffix in ("png", "pdf"):
            assert (tmp_path / f"zoo_quarkgluon-kin_{kind}.{suffix}").stat().st_size > 5000

    capsys.readouterr()
    assert results_table.main([*options, "--markdown"]) == 0
    text = capsys.readouterr().out
    assert f"| `PFN` (2 seeds) | {np.mean([first['accuracy'], second['accuracy']]):.3f} ±" in text
    assert "rejection at 50%" in text and "1,000 published jets" in text
    assert (", no gain |" in text) == (
        min(float(row["int8_over_fast"]) for row in (part, pfn)) <= 1
    )
    assert "(64 to train, 128 seen by every model; `python benchmarks/train_zoo.py" in text
    assert re.search(r"\| TopLandscape kin \| ParT \| 0.940 \| 0.9858 \| 413", text)

    page = tmp_path / "page.md"
    page.write_text("before\n<!-- zoo tables -->\nold\n<!-- end of zoo tables -->\nafter\n")
    for _ in range(2):  # doing it again changes nothing
        assert results_table.main([*options, "--markdown", str(page)]) == 0
        start, end = "before\n<!-- zoo tables -->\n\n", "\n<!-- end of zoo tables -->\nafter\n"
        assert page.read_text() == start + text + end
    for wrong in ("no marks", "<!-- end of int8 -->\n<!-- int8 -->", "<!-- int8 -->"):
        page.write_text(wrong)
        assert results_table.main([*options, "--markdown", str(page)]) == 2
        assert page.read_text() == wrong


def test_tables_misuse(results, results_table, tmp_path, capsys):
    options, _ = results
    assert results_table.main(["toplandscape-kin", *options]) == 2
    assert "There are no runs" in capsys.readouterr().err
    path = tmp_path / "zoo" / "quarkgluon-kin" / "PFN-seed2" / "run.json"
    path.write_text(path.read_text().replace('"epochs": 2', '"epochs": 3'))
    assert results_table.main(["quarkgluon-kin", *options]) == 2
    assert "different budgets" in capsys.readouterr().err


def test_tables_in_the_pages_are_those_of_the_results(results_table, tmp_path):
    for page in ("README.md", "docs/results.md"):
        copy = tmp_path / "page.md"
        shutil.copy(ROOT / page, copy)
        assert results_table.main(["--markdown", str(copy)]) == 0
        assert copy.read_text() == (ROOT / page).read_text(), f"{page} has old tables"


def write_rows(path, text):
    """A CSV from lines of words."""
    path.write_text("\n".join(",".join(line.split()) for line in text.strip().splitlines()) + "\n")


def test_tables_of_speed_and_int8(results_table, tmp_path):
    from results_markdown import int8_table, speed_table, training_table

    write_rows(
        tmp_path / "speed_cpu.csv",
        """
    variant batch_size jets_per_second times_weaver_eager peak_mib logit_difference share_of_peak
    weaver  1          125             1.000              -        0                0.05
    fast    1          800             6.400              -        7e-06            0.3
    weaver  64         101.6           1.000              1478.2   0                0.081
    fast    64         1234.5          12.151             3.4      7e-06            0.76
        """,
    )
    assert speed_table(tmp_path).splitlines()[2:] == [
        "| weaver | 8.0 | 102 (1.0x) | 8% | 1,478 | 0 |",
        "| fast | 1.2 | 1,234 (12.2x) | 76% | 3 | 7e-06 |",
    ]
    write_rows(
        tmp_path / "training_cpu.csv",
        """
        network variant batch_size jets_per_second spread times_weaver peak_mib
        ParT    jetzoo  128        135.2           0.04   5.74         507
        """,
    )
    assert training_table(tmp_path).splitlines() == [
        "| network | variant | batch size | jets/s | over weaver | peak memory [MiB] |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
        "| `ParT` | jetzoo | 128 | 135.2 | 5.74 | 507 |",
    ]
    # A variant that could not be built has a note, and no numbers.
    (tmp_path / "quantization_cpu.csv").write_text(
        "variant,batch_size,jets_per_second,megabytes,accuracy,auc,rejection_50,note\n"
        "int8 static,1,1032.4,2.221,0.7903,0.86823,22.68,\n"
        "int8 static,64,2385,2.221,0.7903,0.86823,22.68,\n"
        "torchao,,,,,,,not installed\n"
    )
    assert int8_table(tmp_path).splitlines() == [
        "| variant | file [MB] | accuracy | AUC | rejection at 50% "
        "| batch 1 [jets/s] | batch 64 [jets/s] |",
        "| --- |" + " ---: |" * 6,
        "| int8 static | 2.22 | 0.7903 | 0.8682 | 22.7 | 1,032 | 2,385 |",
    ]


def test_no_background_passes(results_table):
    from results_markdown import cell

    row = {"signal": "jet_isQ", "background": "jet_isG", "signal_efficiency": 0.3}
    known = {"accuracy": 0.9, "accuracy_error": 0.01, "auc": 0.95}
    metrics = [
        {**known, "rejections": [{**row, "rejection": value, "error": value, "lower_limit": limit}]}
        for value, limit in ((50.0, None), (None, 270.0))
    ]
    columns = results_table.quality(metrics)
    assert columns["rejection_Q_30"] == "> 160" and "rejection_Q_30_spread" not in columns
    assert cell(columns, "rejection_Q_30", None) == "> 160"
    assert results_table.quality(metrics[:1])["rejection_Q_30"] == 50


def test_slurm_script_starts_the_train_script_on_every_node(tmp_path):
    """srun and scontrol are stubs; the train script prints the command of each node."""
    stub(tmp_path / "srun", 'for SLURM_NODEID in 0 1; do export SLURM_NODEID; "$@"; done\n')
    stub(tmp_path / "scontrol", "printf 'node17\\nnode18\\n'\n")
    environment = {
        **os.environ,
        "PATH": f"{tmp_path}:{os.path.dirname(sys.executable)}:{os.environ['PATH']}",
        "SLURM_JOB_ID": "71234", "SLURM_SUBMIT_DIR": str(ROOT), "SLURM_NNODES": "2",
        "SLURM_JOB_NODELIST": "node[17-18]", "SLURM_GPUS_ON_NODE": "4",
    }  # fmt: skip
    script = ROOT / "scripts" / "slurm_train.sh"

    def run(*words):
        return subprocess.run(
            [script, *words], env=environment, cwd=tmp_path, capture_output=True, text=True
        )

    result = run("JetClass", "PN", "kin", "--dry-run", "--gpus", "0", "--num-epochs", "7")
    assert result.returncode == 0, result.stderr
    commands = [shlex.split(line) for line in result.stdout.splitlines()]
    assert len(commands) == 2
    for words in commands:
        assert words[1:3] == ["--nnodes=2", "--nproc_per_node=4"]
        assert "--rdzv_endpoint=node17:31234" in words
        assert words[words.index("--num-epochs") + 3 :].count("--num-epochs") == 1
    assert "--run-mode" not in commands[0] and "--run-mode" in commands[1]

    for words in ((), ("Higgs",)):
        result = run(*words)
        assert result.returncode == 2 and len(result.stderr.splitlines()) == 1
