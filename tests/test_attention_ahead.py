"""The Triton kernels compiled for GPUs that are not there."""

import csv
import os
import subprocess
import sys

import pytest
from conftest import ROOT

pytest.importorskip("triton")


def compiled(folder, *options):
    """Rows of ``benchmarks/kernels.py``, in a process without Triton's interpreter."""
    environment = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(folder / "triton")}
    script = [sys.executable, str(ROOT / "benchmarks" / "kernels.py"), "--results", str(folder)]
    subprocess.run([*script, *options], check=True, env=environment, capture_output=True)
    with open(folder / "kernels_cuda.csv") as file:
        return list(csv.DictReader(file))


def assert_fits(rows):
    assert rows
    for row in rows:
        assert int(row["spill_bytes"]) == 0, row
        assert 0 < int(row["shared_bytes"]) <= int(row["shared_limit"]), row
        assert 0 < int(row["registers"]) <= 255, row


def test_kernels_fit_one_gpu(tmp_path):
    rows = compiled(tmp_path, "--targets", "90", "--particles", "16", "--dtypes", "bfloat16")
    assert len(rows) == 3 and {row["target"] for row in rows} == {"sm_90"}
    assert_fits(rows)


@pytest.mark.slow
def test_kernels_fit_every_gpu(tmp_path):
    rows = compiled(tmp_path)
    assert {row["target"] for row in rows} == {"sm_80", "sm_90"}
    assert len(rows) == 24
    assert_fits(rows)


def test_the_committed_numbers_fit():
    with open(ROOT / "benchmarks" / "results" / "kernels_cuda.csv") as file:
        assert_fits(list(csv.DictReader(file)))
