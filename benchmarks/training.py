"""A training step (forward, backward, update) of the zoo's networks and of weaver-core's.

    python benchmarks/training.py
    python benchmarks/training.py --device cuda --batch-sizes 512 4096 --networks ParT

Same weights, same jets, dropout as published, one step of each variant in turn. weaver trims in
training: it drops particles at random from the longest jets of a batch, so that it computes less;
its ParT is shown with and without. bf16 is what ``--use-amp`` of the train scripts does; on a CPU,
weaver has none. There the C library keeps freed memory, as the train scripts have it, for weaver's
networks, too. Writes ``results/training_<device>.csv`` beside this file.
"""

from pathlib import Path

import torch
from common import (
    TRIMMER,
    argument_parser,
    first,
    median_ratio,
    random_network,
    read_jets,
    weaver_network,
    write_csv,
)

from jetzoo import plugin, profiling, repository
from jetzoo.native.training import multiplies_half
from jetzoo.training.memory import keep_freed_memory

NETWORKS = ("ParT", "PN", "LinformerParT", "ReformerParT", "MambaParT")
PEERS = {
    "ParT": {
        "weaver, all particles": lambda model: weaver_network(model, trim=False),
        "weaver, trimmed": weaver_network,
    },
    "PN": {"weaver": weaver_network},
}


def variants(network, device, precisions):
    """By name: a function that makes what is trained of the zoo's network, and whether in bf16."""
    forms = PEERS.get(network, {}) | {"jetzoo": lambda model: model}
    found = {}
    for precision in precisions:
        half = precision == "bf16"
        for name, build in forms.items():
            if half and device == "cpu" and not (name == "jetzoo" and multiplies_half()):
                continue
            found[f"{name}, bf16" if half else name] = build, half
    return found


def make_step(network, jets, device, half):
    """Return a function that trains one step on the same jets."""
    network = network.to(device).train().requires_grad_()
    inputs = [x.to(device) for x in jets]
    target = torch.arange(len(jets[0]), device=device) % 2
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)
    loss = plugin.get_loss(None)

    def step():
        optimizer.zero_grad()
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=half):
            logits = network(*inputs)
        loss(logits.float(), target).backward()
        optimizer.step()

    return step


def measure(args):
    """Rows of the CSV."""
    jets = read_jets(args.data)
    for network in args.networks:
        for size in args.batch_sizes:
            steps = {
                name: make_step(
                    build(random_network(network, jets)), first(jets, size), args.device, half
                )
                for name, (build, half) in variants(network, args.device, args.precisions).items()
            }
            timings = profiling.interleaved(steps, args.repeats, warmup=TRIMMER, device=args.device)
            base = next(iter(timings))
            for name, step in steps.items():
                seconds, spread = profiling.median_and_spread(timings[name])
                ratio = median_ratio(timings[base], timings[name])
                yield {
                    "network": network,
                    "variant": name,
                    "batch_size": size,
                    "jets_per_second": f"{size / seconds:.1f}",
                    "spread": f"{spread:.2f}",
                    "times_weaver": f"{ratio:.2f}" if base.startswith("weaver") else "",
                    "peak_mib": f"{profiling.peak_memory(step, args.device) / 2**20:.0f}",
                    **profiling.machine_stamp(args.device),
                }


def main():
    """Run the command line."""
    parser = argument_parser(__doc__, repeats=7, batch_sizes=[128], device=True, figures=False)
    add = parser.add_argument
    add("--networks", nargs="+", choices=NETWORKS, default=NETWORKS, metavar="NAME")
    add("--precisions", nargs="+", choices=("fp32", "bf16"), default=("fp32", "bf16"))
    add(
        "--data",
        type=Path,
        default=repository.sample_jets(),
        metavar="FILE",
        help="parquet or npz, see speed.py",
    )
    args = parser.parse_args()
    if args.device == "cpu":
        keep_freed_memory()
    rows = []
    for row in measure(args):
        rows.append(row)
        print({key: row[key] for key in list(row)[:7]}, flush=True)
    write_csv(args.results / f"training_{torch.device(args.device).type}.csv", rows)


if __name__ == "__main__":
    main()
