"""Shared fixtures."""

import os
from pathlib import Path

import fileserver
import pytest
import torch

# Read when Triton is imported: without a GPU its kernels run in the interpreter.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def real_data():
    """Folder of the published jets and weights; tests that need it skip where it is absent."""
    path = Path(os.environ.get("JETZOO_REAL_DATA", ROOT.parent / "shared" / "real"))
    if not path.is_dir():
        pytest.skip("the published jets and weights are not here (set JETZOO_REAL_DATA)")
    return path


@pytest.fixture
def server(monkeypatch):
    """A :class:`fileserver.Server` of this test alone."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = fileserver.Server()
    yield server
    server.stop()
