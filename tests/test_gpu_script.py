"""``benchmarks/gpu.sh``: parts, limits and what it says, with programs that only take notes."""

import csv
import os
import re
import subprocess
import sys

import pytest
from conftest import ROOT

SCRIPT = ROOT / "benchmarks" / "gpu.sh"
PARTS = ["correct", "backends", "speed", "training", "scaling", "ddp"]


def run(*options, path=None):
    environment = os.environ | ({"PATH": f"{path}:{os.environ['PATH']}"} if path else {})
    return subprocess.run(
        ["bash", str(SCRIPT), *options], env=environment, capture_output=True, text=True
    )


def test_dry_run_names_every_command():
    found = run("--dry-run")
    assert found.returncode == 0 and found.stderr == ""
    lines = dict(line.split(": ", 1) for line in found.stdout.splitlines())
    assert list(lines) == PARTS
    for command in lines.values():  # scripts and tests that exist
        paths = [x for x in re.findall(r"'([^']*)'", command) if x.endswith((".py", ".sh"))]
        assert paths and all(os.path.isfile(path) for path in paths)
    assert list(run("--dry-run", "ddp").stdout.splitlines()) == [f"ddp: {lines['ddp']}"]


def test_all_parts_take_eight_minutes_at_most():
    limits = re.findall(r"^    (\w+) +(\d+)$", run("--help").stdout, re.M)
    assert [name for name, _ in limits] == PARTS
    assert sum(int(seconds) for _, seconds in limits) <= 480


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["fly"], "there is no part fly; choose from correct"),
        (["--fly"], "there is no option --fly"),
    ],
)
def test_misuse_is_one_sentence(options, message):
    found = run(*options)
    assert found.returncode == 2 and message in found.stderr
    assert found.stderr.count("\n") == 1 and found.stdout == ""


@pytest.fixture
def copied(tmp_path):
    """The script in a checkout whose Python notes its arguments, and fails where it is told to."""
    folder = tmp_path / "benchmarks"
    folder.mkdir()
    (folder / "gpu.sh").write_bytes(SCRIPT.read_bytes())
    programs = tmp_path / ".venv" / "bin"
    programs.mkdir(parents=True)
    (programs / "python").write_text(
        f'#!/bin/sh\necho "$*" >>{tmp_path}/called\n'
        f'case "$*" in *training*) test ! -e {tmp_path}/broken ;; esac\n'
    )
    (programs / "python").chmod(0o755)
    return tmp_path


def test_a_part_that_failed_is_run_again_alone(copied):
    def call(*options):
        (copied / "called").unlink(missing_ok=True)
        found = subprocess.run(
            ["bash", str(copied / "benchmarks" / "gpu.sh"), *options],
            capture_output=True,
            text=True,
        )
        calls = (copied / "called").read_text().splitlines()[1:]  # after the look for a GPU
        return found, calls

    (copied / "broken").touch()
    found, calls = call("backends", "training")
    assert found.returncode == 1 and "training failed" in found.stderr and len(calls) == 2
    (copied / "broken").unlink()
    found, calls = call("backends", "training")
    assert found.returncode == 0 and [c for c in calls if "backends.py" in c] == []
    assert len(calls) == 1 and "training.py" in calls[0]
    assert len(call("--again", "backends", "training")[1]) == 2


def test_backends_are_timed_and_reported(tmp_path):
    script = [sys.executable, str(ROOT / "benchmarks" / "backends.py")]
    options = ["--batch-sizes", "2", "--lengths", "5", "--results", str(tmp_path)]
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    subprocess.run(
        [*script, *options, "--report", str(tmp_path / "report.md")],
        check=True,
        env=environment,
        capture_output=True,
    )
    with open(tmp_path / "backends_cpu.csv") as file:
        rows = list(csv.DictReader(file))
    works = {row["work"] for row in rows}
    assert len(works) == 4  # in training and in inference, in two dtypes
    for work in works:
        assert sum(row["chosen"] == "True" for row in rows if row["work"] == work) == 1
        assert work in (tmp_path / "report.md").read_text()
