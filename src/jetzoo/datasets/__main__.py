"""`python -m jetzoo.datasets`: `get_datasets.py` of an installed jetzoo."""

import sys

from jetzoo.datasets.command import main

# Simulation spawns processes, which import this file.
if __name__ == "__main__":
    sys.exit(main())
