"""Time and memory against the number of particles, of every architecture and attention backend.

    python benchmarks/scaling.py
    python benchmarks/scaling.py --device cuda --amp

Writes ``results/scaling_<device>.csv`` beside this file and ``figures/scaling_<device>.{png,pdf}``.
"""

import argparse
import csv
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from matplotlib.ticker import NullLocator
from tqdm import tqdm

from jetzoo import accelerate, profiling, zoo
from jetzoo.attention import BACKENDS

ROOT = Path(__file__).resolve().parents[1]
FAST = "ParT, accelerate"
# Network, options, label; ParT comes once more for each backend of the attention.
NETWORKS = [
    ("ParT", {}, "ParT"),
    ("ParT", {"fast": True}, FAST),
    ("ParT", {"pair_bias": False}, "ParT, no pair bias"),
    ("LinformerParT", {}, "LinformerParT"),
    ("ReformerParT", {}, "ReformerParT"),
    ("MambaParT", {}, "MambaParT"),
    ("PN", {}, "PN"),
    ("PCNN", {}, "PCNN"),
    ("PFN", {}, "PFN"),
]
# Okabe and Ito, made for eyes that see fewer colours.
COLOURS = (
    *("#000000", "#777777", "#0072B2", "#D55E00", "#009E73"),
    *("#CC79A7", "#E69F00", "#56B4E9", "#8C6D00"),
)


def jets(batch_size, length, num_features, device):
    """Jets of ``length`` particles with a falling spectrum of transverse momenta."""
    torch.manual_seed(0)
    pt = torch.exp(torch.randn(batch_size, length)).sort(descending=True).values  # GeV
    deta, dphi = 0.2 * torch.randn(2, batch_size, length)
    px, py, pz = pt * dphi.cos(), pt * dphi.sin(), pt * deta.sinh()
    energy = (px**2 + py**2 + pz**2 + 0.14**2).sqrt()
    inputs = (
        torch.stack((deta, dphi), 1),
        torch.randn(batch_size, num_features, length),
        torch.stack((px, py, pz, energy), 1),
        torch.ones(batch_size, 1, length),
    )
    return [x.to(device) for x in inputs]


def make_call(model, inputs, training, amp):
    """A forward pass, or a forward and a backward pass, as a function without arguments."""

    def call():
        device = inputs[0].device.type
        with torch.set_grad_enabled(training), torch.autocast(device, torch.bfloat16, enabled=amp):
            logits = model(*inputs)
            if training:
                target = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
                loss = torch.nn.functional.cross_entropy(logits, target)
        if training:
            loss.backward()
            model.zero_grad(set_to_none=True)

    return call


def measure(args):
    """Rows of the CSV."""
    config = zoo.read_data_config("JetClass/JetClass_full")
    num_features = len(config.input_dicts["pf_features"])
    stamp = profiling.machine_stamp(args.device)
    cases = [*NETWORKS]
    for backend in BACKENDS:
        options = {"attention": backend, "pair_bias": backend != "flash_attn"}
        cases.append(("ParT", options, f"ParT, {backend}"))
    rows = []
    progress = tqdm(total=(2 * len(cases) - 1) * len(args.lengths), desc="scaling")
    for network, options, label in cases:
        if "attention" in options:  # FlexAttention has no dropout
            options = {**options, "attn_dropout": 0.0}
        for training in (False,) if label == FAST else (False, True):
            peak = 0
            for index, length in enumerate(args.lengths):
                model, _ = zoo.network_module(network).get_model(config, **options)
                model.to(args.device).train(training)
                if label == FAST:
                    model = accelerate(model, "bf16" if args.amp else "fp32")
                inputs = jets(args.batch_size, length, num_features, args.device)
                call = make_call(model, inputs, training, args.amp)
                try:
                    if (
                        peak or 0
                    ) > args.gib * 2**30 / 4:  # twice the length may take four times as much
                        raise MemoryError(f"would take more than {args.gib:g} GiB")
                    times = profiling.interleaved({"": call}, args.repeats, device=args.device)[""]
                    # The kernels for CPUs have memory of their own, which PyTorch does not see.
                    hidden = label == FAST and args.device == "cpu"
                    peak = None if hidden else profiling.peak_memory(call, args.device)
                except (ValueError, MemoryError, RuntimeError) as error:
                    progress.write(f"{label}, {length} particles: {str(error).splitlines()[0]}")
                    progress.update(len(args.lengths) - index)
                    break
                median, spread = profiling.median_and_spread(times)
                rows.append(
                    {
                        "model": label,
                        "pass": "training step" if training else "inference",
                        "batch_size": args.batch_size,
                        "length": length,
                        "precision": "bf16" if args.amp else "fp32",
                        "seconds": f"{median:.6g}",
                        "spread": f"{spread:.3f}",
                        "peak_mib": "" if peak is None else f"{peak / 2**20:.2f}",
                        **stamp,
                    }
                )
                progress.update()
                if median > args.seconds:
                    progress.update(len(args.lengths) - index - 1)
                    break
    progress.close()
    return rows


def draw(rows, path):
    """Four panels: time and memory of inference and of a training step."""
    figure, axes = plt.subplots(2, 2, figsize=(11, 8), sharex=True, layout="constrained")
    labels = list(dict.fromkeys(row["model"] for row in rows))
    for column, which in enumerate(("inference", "training step")):
        for axis, key, title in zip(
            axes[:, column],
            ("seconds", "peak_mib"),
            ("time [ms]", "peak memory [MiB]"),
            strict=True,
        ):
            ends = []
            for number, label in enumerate(labels):
                found = [row for row in rows if (row["model"], row["pass"]) == (label, which)]
                found = [row for row in found if row[key]]
                if not found:
                    continue
                x = [int(row["length"]) for row in found]
                factor = 1e3 if key == "seconds" else 1
                y = [max(factor * float(row[key]), 0.1) for row in found]
                colour = COLOURS[number % len(COLOURS)]
                style = "-" if number < len(NETWORKS) else "--"
                axis.plot(x, y, style, marker="o", markersize=3, linewidth=1.2, color=colour)
                ends.append((y[-1], x[-1], label, colour))
            axis.set(xscale="log", yscale="log", ylabel=f"{title}, {which}")
            axis.grid(alpha=0.25)
            axis.spines[["top", "right"]].set_visible(False)
            _label(axis, ends)
    for axis in axes[1]:
        lengths = sorted({int(row["length"]) for row in rows})
        axis.set_xticks(lengths, map(str, lengths))
        axis.xaxis.set_minor_locator(NullLocator())
        axis.set_xlabel("particles per jet")
    first = rows[0]
    figure.suptitle(
        f"batch {first['batch_size']}, {first['precision']}, {first['device']}, "
        f"torch {first['torch']}, {first['threads']} threads\n"
        "dashed: a backend asked for by name, without dropout of the attention weights",
        fontsize=10,
    )
    path.parent.mkdir(exist_ok=True)
    for suffix in (".png", ".pdf"):
        figure.savefig(path.with_suffix(suffix), dpi=160)


def _label(axis, ends):
    """Names beside the ends of the curves, moved apart where they would overlap."""
    low, high = axis.get_ylim()
    step = (high / low) ** (1 / 26)
    right = max(x for _, x, _, _ in ends)
    at = 0.0
    for y, x, label, colour in sorted(ends):
        at = max(y, at * step)
        axis.annotate(
            label,
            (x, y),
            (right * 1.25, at),
            color=colour,
            fontsize=7,
            va="center",
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.4, "alpha": 0.6},
            annotation_clip=False,
        )
    axis.set_xlim(right=right * 3.2)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--amp", action="store_true", help="bf16 autocast")
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument(
        "--lengths", type=int, nargs="+", default=[64, 128, 256, 512, 1024, 2048, 4096]
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--seconds", type=float, default=4.0, help="a curve ends with the call that takes longer"
    )
    parser.add_argument(
        "--gib", type=float, default=8.0, help="a curve ends before it takes more memory"
    )
    args = parser.parse_args()

    rows = measure(args)
    name = f"scaling_{torch.device(args.device).type}"
    results = ROOT / "benchmarks" / "results" / f"{name}.csv"
    results.parent.mkdir(exist_ok=True)
    with results.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    draw(rows, ROOT / "figures" / name)


if __name__ == "__main__":
    main()
