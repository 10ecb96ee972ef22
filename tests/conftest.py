"""Shared fixtures."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def real_data():
    """Folder of the published jets and weights; tests that need it skip where it is absent."""
    path = Path(os.environ.get("JETZOO_REAL_DATA", ROOT.parent / "shared" / "real"))
    if not path.is_dir():
        pytest.skip("the published jets and weights are not here (set JETZOO_REAL_DATA)")
    return path
