"""Time by kind of layer of ParT, before and after each optimisation, from `jetzoo profile`.

    python benchmarks/layers.py
    python benchmarks/layers.py --only engines

Every comparison is one run, in which the configurations are timed in turn. Writes
``results/layers_<name>.csv`` beside this file and ``figures/profile_<name>.{png,pdf}``, and the
rooflines of the network as it is and of the fast engine.
"""

import sys
import tempfile
from pathlib import Path

from common import DATA_CONFIG, NETWORK, argument_parser, read_csv, write_csv

from jetzoo import tables
from jetzoo.attention.backends import BACKENDS
from jetzoo.cli import main as jetzoo

# The backends that train on a CPU without further packages.
TRAINING_BACKENDS = [
    name
    for name, backend in BACKENDS.items()
    if "cpu" in backend.devices and backend.cpu_gradients and not backend.package
]
COMPARISONS = {
    "engines": ["--compare", "padded", "base", "fast", "--batch-size", "256"],
    "int8": ["--compare", "fast", "int8", "--batch-size", "256"],
    "attention": ["--compare", *TRAINING_BACKENDS, "--train", "--batch-size", "64"],
}
ROOFLINES = {"engines": ("base", "fast"), "int8": ("int8",)}


def copy_figure(source, target):
    """Copy a figure, PNG and PDF; the names come without suffix."""
    for kind in ("png", "pdf"):
        with tables.atomic(target.with_suffix(f".{kind}")) as partial:
            partial.write_bytes(source.with_suffix(f".{kind}").read_bytes())
    print(f"wrote {target}.png and .pdf")


def main():
    """Run the command line."""
    parser = argument_parser(__doc__, repeats=3)
    add = parser.add_argument
    add("--only", nargs="+", choices=COMPARISONS, default=list(COMPARISONS))
    add(
        "--checkpoint",
        metavar="FILE",
        help=f"weights of {NETWORK} for {DATA_CONFIG} (default: random)",
    )
    add("--batch-size", type=int, metavar="N", help="default: 256, and 64 for attention")
    args = parser.parse_args()
    common = ["--data-config", DATA_CONFIG, "--repeats", str(args.repeats)]
    if args.checkpoint:
        common += ["--checkpoint", args.checkpoint]
    size = ["--batch-size", str(args.batch_size)] if args.batch_size else []
    tables.writable_folder(args.figures)
    for name in args.only:
        with tempfile.TemporaryDirectory() as out:
            if jetzoo(["profile", NETWORK, *common, *COMPARISONS[name], *size, "--out", out]):
                sys.exit(f"{name} was not measured.")
            folder = Path(out)
            write_csv(args.results / f"layers_{name}.csv", read_csv(folder / "comparison.csv"))
            copy_figure(folder / "comparison", args.figures / f"profile_{name}")
            for run in ROOFLINES.get(name, ()):
                source = folder / f"roofline_{run}_inference"
                copy_figure(source, args.figures / f"profile_roofline_{run}")


if __name__ == "__main__":
    main()
