"""A training step of ParT (forward, backward, update) against weaver-core's.

    python benchmarks/training.py
    python benchmarks/training.py --device cuda --batch-sizes 512 4096 --amp

Same weights, same jets, dropout as published, one step of each in turn. weaver trims in training:
it drops particles at random from the longest jets of a batch, so that it computes less; it is shown
with and without. Writes ``results/training_<device>.csv`` beside this file.
"""

import argparse
import csv
from pathlib import Path

import torch
from speed import SAMPLE, make_model, read_jets, weaver_part

from jetzoo import profiling, zoo

RESULTS = Path(__file__).parent / "results"
VARIANTS = ("weaver, all particles", "weaver, trimmed", "jetzoo")


def make_step(variant, model, jets, device, amp):
    """A function that trains one step on the same jets."""
    if variant == "jetzoo":
        network, inputs = model, jets
    else:
        network, inputs = weaver_part(model, trim=variant.endswith("trimmed")), jets[1:]
    network = network.to(device).train().requires_grad_()
    inputs = [x.to(device) for x in inputs]
    target = (torch.arange(len(jets[0]), device=device) % 2).long()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)
    loss = zoo.loss(None)

    def step():
        optimizer.zero_grad()
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=amp):
            logits = network(*inputs)
        loss(logits.float(), target).backward()
        optimizer.step()

    return step


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[128])
    parser.add_argument("--amp", action="store_true", help="autocast to bfloat16")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--data", type=Path, default=SAMPLE, help="parquet or npz, see speed.py")
    args = parser.parse_args()

    all_jets = read_jets(args.data)
    rows = []
    for batch_size in args.batch_sizes:
        chosen = torch.arange(batch_size) % len(all_jets[0])
        jets = [x[chosen] for x in all_jets]
        steps = {}
        for variant in VARIANTS:
            steps[variant] = make_step(variant, make_model(all_jets), jets, args.device, args.amp)
        # weaver's trimmer starts after five batches.
        timings = profiling.interleaved(steps, args.repeats, warmup=6, device=args.device)
        for variant, step in steps.items():
            seconds, spread = profiling.median_and_spread(timings[variant])
            pairs = zip(timings[VARIANTS[0]], timings[variant], strict=True)
            ratio, _ = profiling.median_and_spread([weaver / own for weaver, own in pairs])
            rows.append(
                {
                    "variant": variant,
                    "batch_size": batch_size,
                    "amp": args.amp,
                    "jets_per_second": f"{batch_size / seconds:.1f}",
                    "spread": f"{spread:.2f}",
                    "times_weaver": f"{ratio:.2f}",
                    "peak_mib": f"{profiling.peak_memory(step, args.device) / 2**20:.0f}",
                    **profiling.machine_stamp(args.device),
                }
            )
            print({key: rows[-1][key] for key in list(rows[-1])[:7]}, flush=True)
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"training_{torch.device(args.device).type}.csv"
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
