"""A training step of ParT (forward, backward, update) against weaver-core's.

    python benchmarks/training.py
    python benchmarks/training.py --device cuda --batch-sizes 512 4096 --amp

Same weights, same jets, dropout as published, one step of each in turn. weaver trims in training:
it drops particles at random from the longest jets of a batch, so that it computes less; it is shown
with and without. Writes ``results/training_<device>.csv`` beside this file.
"""

from pathlib import Path

import torch
from common import (
    TRIMMER,
    argument_parser,
    first,
    median_ratio,
    random_part,
    read_jets,
    weaver_network,
    write_csv,
)

from jetzoo import plugin, profiling, repository

BASE = "weaver, all particles"
NETWORKS = {
    BASE: lambda model: weaver_network(model, trim=False),
    "weaver, trimmed": weaver_network,
    "jetzoo": lambda model: model,
}


def make_step(network, jets, device, amp):
    """Return a function that trains one step on the same jets."""
    network = network.to(device).train().requires_grad_()
    inputs = [x.to(device) for x in jets]
    target = torch.arange(len(jets[0]), device=device) % 2
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)
    loss = plugin.get_loss(None)

    def step():
        optimizer.zero_grad()
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=amp):
            logits = network(*inputs)
        loss(logits.float(), target).backward()
        optimizer.step()

    return step


def measure(args):
    """Rows of the CSV."""
    jets = read_jets(args.data)
    for size in args.batch_sizes:
        steps = {
            name: make_step(build(random_part(jets)), first(jets, size), args.device, args.amp)
            for name, build in NETWORKS.items()
        }
        timings = profiling.interleaved(steps, args.repeats, warmup=TRIMMER, device=args.device)
        for name, step in steps.items():
            seconds, spread = profiling.median_and_spread(timings[name])
            yield {
                "variant": name,
                "batch_size": size,
                "amp": args.amp,
                "jets_per_second": f"{size / seconds:.1f}",
                "spread": f"{spread:.2f}",
                "times_weaver": f"{median_ratio(timings[BASE], timings[name]):.2f}",
                "peak_mib": f"{profiling.peak_memory(step, args.device) / 2**20:.0f}",
                **profiling.machine_stamp(args.device),
            }


def main():
    """Run the command line."""
    parser = argument_parser(__doc__, repeats=7, batch_sizes=[128], device=True, figures=False)
    parser.add_argument("--amp", action="store_true", help="autocast to bfloat16")
    parser.add_argument(
        "--data",
        type=Path,
        default=repository.sample_jets(),
        metavar="FILE",
        help="parquet or npz, see speed.py",
    )
    args = parser.parse_args()
    rows = []
    for row in measure(args):
        rows.append(row)
        print({key: row[key] for key in list(row)[:7]}, flush=True)
    write_csv(args.results / f"training_{torch.device(args.device).type}.csv", rows)


if __name__ == "__main__":
    main()
