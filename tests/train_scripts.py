"""What the tests of the training scripts share: a checkout, data sets, runs with stubs on PATH."""

import ast
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import handmade
import pytest
from weaver.train import parser

ROOT = Path(__file__).resolve().parent.parent

FEATURES = {
    "JetClass": ["full", "kin", "kinpid"],
    "QuarkGluon": ["kinpid", "kin", "kinpidplus"],
    "TopLandscape": ["kin"],
}
# Where the runs of PFN on QuarkGluon go.
FOLDER = Path("training") / "QuarkGluon" / "PFN" / "kin"
# The first bytes of what weaver reads.
# Of weights the last 22 bytes are looked at, too: PyTorch writes zip files.
WHOLE_ZIP = b"PK\x03\x04" + b"PK\x05\x06" + bytes(18)
MAGIC = {".root": b"root", ".parquet": b"PAR1", ".h5": b"\x89HDF", ".pt": WHOLE_ZIP}
# A weaver that writes predictions, and nothing else.
WRITE_PREDICTIONS = """
while [[ $1 != --predict-output ]]; do shift; done
mkdir -p "${2%/*}" && touch "$2"
"""


def touch(path):
    """Write a file that is of the kind its name says by its first bytes, and nothing more."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(MAGIC[path.suffix])
    return path


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A checkout of its own, in a folder with a space, that no env.local.sh belongs to."""
    folder = tmp_path_factory.mktemp("check out")
    for name in ("env.sh", "train.sh", *(f"train_{dataset}.sh" for dataset in FEATURES)):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "scripts", folder / "scripts")
    for name in ("networks", "data"):
        (folder / name).symlink_to(ROOT / name)
    return folder


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Files of the names, numbers and sizes of the published data sets, empty but for the start."""
    folder = tmp_path_factory.mktemp("published data")
    names = [
        *(f"QuarkGluon/train_file_{i}.parquet" for i in range(18)),
        *(f"QuarkGluon/test_file_{i}.parquet" for i in range(2)),
        *(f"TopLandscape/{split}_file.parquet" for split in ("train", "val", "test")),
        *(
            f"JetClass/Pythia/{split}/{group}_{i:03}.root"
            for split in ("train_100M", "val_5M", "test_20M")
            for group in handmade.JETCLASS
            for i in range(5)
        ),
    ]
    for name in names:
        os.truncate(touch(folder / name), 100_000_000)
    return folder


@pytest.fixture
def run(checkout, published, tmp_path):
    """Run a script as a user would, outside of the checkout; without a data set train.sh."""

    def run(dataset, *arguments, **environment):
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("DDP_", "DATADIR_"))}
        for name in ("COMMENT", "JETZOO_PATH"):
            kept.pop(name, None)
        environment = {
            "VIRTUAL_ENV": sys.prefix,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "OMP_NUM_THREADS": "1",
            **{f"DATADIR_{name}": str(published / name) for name in FEATURES},
            **environment,
        }
        return subprocess.run(
            [checkout / f"train{dataset and '_'}{dataset}.sh", *map(str, arguments)],
            env=kept | {k: str(v) for k, v in environment.items()},
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )

    return run


@pytest.fixture
def dry_run(run):
    """The words of the command that would be run, and weaver's reading of it."""

    def dry_run(dataset, *arguments, stderr="", **environment):
        result = run(dataset, *arguments, "--dry-run", **environment)
        assert result.returncode == 0, result.stderr
        assert result.stderr == stderr
        assert result.stdout.count("\n") == 1
        words = shlex.split(result.stdout)
        start = next(i for i, word in enumerate(words) if Path(word).name == "weaver")
        return words, parser.parse_args(words[start + 1 :])

    return dry_run


def network_file(args):
    """Path of a user's network in weaver's arguments; scripts/own_network.py takes it up."""
    assert Path(args.network_config).name == "own_network.py"
    return ast.literal_eval(dict(args.network_option)["network_file"])


def stub(folder, name, script):
    """An executable on a PATH of the test's own; returns the folder."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/bash\n{script}\n")
    path.chmod(0o755)
    return folder


def with_path(folder):
    return f"{folder}:{Path(sys.executable).parent}:{os.environ['PATH']}"


def assert_misuse(result, *fragments):
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1, result.stderr
    for fragment in fragments:
        assert fragment in result.stderr


def files_below(folder):
    return sorted(path for path in folder.rglob("*") if "networks" not in path.parts)


@pytest.fixture
def refused(run, checkout, tmp_path):
    """Run a script that must refuse: one sentence, exit code 2, nothing started or created."""
    stub(tmp_path / "bin", "weaver", "echo started")
    stub(tmp_path / "bin", "jetzoo", "exit 1")

    def refused(*arguments, fragments=(), **environment):
        before = files_below(checkout)
        environment = {"PATH": with_path(tmp_path / "bin"), **environment}
        result = run("QuarkGluon", "PFN", "kin", *map(str, arguments), **environment)
        assert_misuse(result, *fragments)
        assert files_below(checkout) == before
        return result

    return refused
