#!/usr/bin/env python3
"""Download, simulate or convert a data set; -h explains."""

import importlib.util
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"

if importlib.util.find_spec("jetzoo") is None:
    python = VENV / "bin" / "python"
    if python.exists() and Path(sys.prefix).resolve() != VENV.resolve():
        os.execv(python, [str(python), str(ROOT / "get_datasets.py"), *sys.argv[1:]])
    print(
        "get_datasets.py: jetzoo is not installed: run `make demo`, or `pip install -e .`",
        file=sys.stderr,
    )
    sys.exit(2)

from jetzoo.datasets.command import main  # noqa: E402

# Simulation spawns processes, which import this file.
if __name__ == "__main__":
    sys.exit(main(root=ROOT))
