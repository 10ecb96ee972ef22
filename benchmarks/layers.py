"""Time by kind of layer of ParT, before and after each optimisation: `jetzoo profile`, thrice.

    python benchmarks/layers.py
    python benchmarks/layers.py --only engines

Every comparison is one run, in which the configurations are timed in turn. Writes
``results/layers_<name>.csv`` beside this file and ``figures/profile_<name>.{png,pdf}``, and the
rooflines of the network as it is and of the fast engine.
"""

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from jetzoo.cli import main as jetzoo

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).parent / "results"

COMPARISONS = {
    "engines": ["--compare", "padded", "base", "fast", "--batch-size", "256"],
    "int8": ["--compare", "fast", "int8", "--batch-size", "256"],
    "attention": ["--compare", "reference", "sdpa", "jagged", "--train", "--batch-size", "64"],
}
ROOFLINES = {"engines": ("base", "fast"), "int8": ("int8",)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="+", choices=COMPARISONS, default=list(COMPARISONS))
    parser.add_argument("--checkpoint", help="weights of ParT kin on QuarkGluon; default: random")
    parser.add_argument("--repeats", default="3")
    args = parser.parse_args()
    weights = ["--checkpoint", args.checkpoint] if args.checkpoint else []
    RESULTS.mkdir(exist_ok=True)
    for name in args.only:
        with tempfile.TemporaryDirectory() as folder:
            words = ["profile", "ParT", *weights, *COMPARISONS[name]]
            if jetzoo([*words, "--repeats", args.repeats, "--out", folder]):
                sys.exit(f"{name} was not measured.")
            folder = Path(folder)
            copies = {f"comparison.{kind}": f"profile_{name}.{kind}" for kind in ("png", "pdf")}
            for run in ROOFLINES.get(name, ()):
                for kind in ("png", "pdf"):
                    copies[f"roofline_{run}_inference.{kind}"] = f"profile_roofline_{run}.{kind}"
            for source, target in copies.items():
                shutil.copy(folder / source, ROOT / "figures" / target)
            shutil.copy(folder / "comparison.csv", RESULTS / f"layers_{name}.csv")


if __name__ == "__main__":
    main()
