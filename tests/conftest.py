"""Shared fixtures."""

import os
from pathlib import Path

import fileserver
import jets
import pytest
import torch
import zoo
from weaver.utils.data.config import DataConfig

# Read when Triton is imported: without a GPU its kernels run in the interpreter.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# Tiny networks to explain are fixtures of several files.
pytest_plugins = ["explained"]

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def real_data():
    """Folder of the published jets and weights; tests that need it skip where it is absent."""
    path = Path(os.environ.get("JETZOO_REAL_DATA", ROOT.parent / "shared" / "real"))
    if not path.is_dir():
        pytest.skip("the published jets and weights are not here (set JETZOO_REAL_DATA)")
    return path


@pytest.fixture(scope="session")
def data_config():
    """The data config that most networks are tested with."""
    return DataConfig.load(zoo.CONFIG)


@pytest.fixture
def network(tmp_path):
    """A small network file and its checkpoint."""
    return zoo.write_network(tmp_path)


@pytest.fixture
def jets_file(tmp_path):
    """A file of jets, some of them without particles or with too many."""
    return jets.write_jets(tmp_path)


@pytest.fixture
def server(monkeypatch):
    """A :class:`fileserver.Server` of this test alone."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = fileserver.Server()
    yield server
    server.stop()
