"""Which attention backend "auto" chooses on a device, by the timing that it does itself.

    python benchmarks/backends.py --device cuda

Times the backends as ``jetzoo.attention`` does at the first use of a class of shapes, for the
shapes of ParT, in training and in inference. Writes ``results/backends_<device>.csv`` beside this
file, and with ``--report`` a page that says what wins.
"""

from pathlib import Path

import torch
from common import argument_parser, write_csv

from jetzoo import choices, profiling
from jetzoo.attention.dispatch import measured_backend

HEADS, DIM = 8, 16  # of ParT


def measure(device, batch_sizes, lengths, dtypes):
    """Rows of the CSV."""
    for dtype in dtypes:
        for size in batch_sizes:
            for length in lengths:
                for trains in (True, False):
                    torch.manual_seed(0)
                    q, k = torch.randn(2, size, HEADS, length, DIM, device=device, dtype=dtype)
                    bias = torch.randn(size, HEADS, length, length, device=device, dtype=dtype)
                    counts = torch.randint(length // 2, length + 1, (size, 1), device=device)
                    mask = torch.arange(length, device=device) < counts
                    before = set(choices.known(device))
                    dropout_p = 0.1 if trains else 0.0
                    chosen = measured_backend(q, k, bias, mask, dropout_p, trains)
                    times = {w: t for w, t in choices.known(device).items() if w not in before}
                    for work, found in times.items():
                        for name, milliseconds in found.items():
                            yield {
                                "work": work,
                                "backend": name,
                                "milliseconds": milliseconds,
                                "chosen": name == chosen,
                                **profiling.machine_stamp(device),
                            }


def write_report(path, rows):
    """Write a page with one line for each kind of work."""
    lines = ["# Attention backends", "", "| work | milliseconds | auto |", "| --- | --- | --- |"]
    for work in dict.fromkeys(row["work"] for row in rows):
        found = [row for row in rows if row["work"] == work]
        times = ", ".join(f"{row['backend']} {row['milliseconds']:.3g}" for row in found)
        chosen = next(row["backend"] for row in found if row["chosen"])
        lines.append(f"| {work} | {times} | {chosen} |")
    path.write_text("\n".join(lines) + "\n")


def main():
    """Run the command line."""
    parser = argument_parser(__doc__, device=True, batch_sizes=[512, 2048], figures=False)
    parser.add_argument("--lengths", type=int, nargs="+", default=[32, 64, 128], metavar="N")
    parser.add_argument("--report", type=Path, metavar="FILE")
    args = parser.parse_args()
    dtypes = (torch.float32, torch.bfloat16)
    choices.forget(kept=False)
    rows = list(measure(args.device, args.batch_sizes, args.lengths, dtypes))
    write_csv(args.results / f"backends_{torch.device(args.device).type}.csv", rows)
    if args.report:
        write_report(args.report, rows)


if __name__ == "__main__":
    main()
