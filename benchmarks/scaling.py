"""Time and memory against the number of particles, of every architecture and attention backend.

    python benchmarks/scaling.py
    python benchmarks/scaling.py --device cuda --amp

Writes ``results/scaling_<device>.csv`` beside this file and ``figures/scaling_<device>.{png,pdf}``.
"""

import torch
from common import (
    NETWORK,
    argument_parser,
    colours,
    figure_style,
    networks,
    save_figure,
    write_csv,
)
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from tqdm import tqdm

from jetzoo import accelerate, data_config, profiling
from jetzoo.attention.backends import BACKENDS
from jetzoo.repository import network_module

CONFIG = "JetClass/JetClass_full"
FAST = f"{NETWORK}, accelerate"
# What is measured by label: network and options. A backend stands beside the others without
# dropout of the attention weights, which not all of them have.
ARCHITECTURES = {name: (name, {}) for name in networks()}
FORMS = {FAST: (NETWORK, {}), f"{NETWORK}, no pair bias": (NETWORK, {"pair_bias": False})}
BY_BACKEND = {
    f"{NETWORK}, {name}": (
        NETWORK,
        {"attention": name, "pair_bias": backend.bias, "attn_dropout": 0.0},
    )
    for name, backend in BACKENDS.items()
}
CASES = ARCHITECTURES | FORMS | BY_BACKEND
LINES = {"-": ARCHITECTURES, "--": FORMS, ":": BY_BACKEND}


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


class Curve:
    """One network in inference or training, at growing lengths, as far as time and memory allow.

    Parameters
    ----------
    label : str
        Key of ``CASES``.
    training : bool
        A training step in place of inference.
    config : weaver.utils.data.config.DataConfig
    args : argparse.Namespace
    """

    def __init__(self, label, training, config, args):
        self.label, self.training, self.config, self.args = label, training, config, args

    def rows(self):
        """Rows of the CSV, the shortest jets first; ends where the next would take too much."""
        median, peak = 0.0, 0
        for length in self.args.lengths:
            try:
                if median > self.args.seconds:
                    raise MemoryError(f"the length before took more than {self.args.seconds:g} s")
                if (peak or 0) > self.args.gib * 2**30 / 4:  # twice as long, up to four times more
                    raise MemoryError(f"would take more than {self.args.gib:g} GiB")
                median, spread, peak = self.point(length)
            except (ValueError, MemoryError, RuntimeError) as error:
                tqdm.write(f"{self.label}, {length} particles: {str(error).splitlines()[0]}")
                return
            yield {
                "model": self.label,
                "pass": "training step" if self.training else "inference",
                "batch_size": self.args.batch_size,
                "length": length,
                "precision": "bf16" if self.args.amp else "fp32",
                "seconds": f"{median:.6g}",
                "spread": f"{spread:.3f}",
                "peak_mib": "" if peak is None else f"{peak / 2**20:.2f}",
            }

    def point(self, length):
        """Median time in seconds, its spread, and the peak memory in bytes, at one length."""
        args = self.args
        network, options = CASES[self.label]
        model, _ = network_module(network).get_model(self.config, **options)
        model.to(args.device).train(self.training)
        if self.label == FAST:
            model = accelerate(model, "bf16" if args.amp else "fp32")
        features = len(self.config.input_dicts["pf_features"])
        inputs = jets(args.batch_size, length, features, args.device)
        call = make_call(model, inputs, self.training, args.amp)
        times = profiling.interleaved({"": call}, args.repeats, device=args.device)[""]
        # The kernels for CPUs have memory of their own, which PyTorch does not see.
        hidden = self.label == FAST and args.device == "cpu"
        peak = None if hidden else profiling.peak_memory(call, args.device)
        return *profiling.median_and_spread(times), peak


def measure(args):
    """Rows of the CSV."""
    config = data_config.read(CONFIG)
    stamp = profiling.machine_stamp(args.device)
    curves = [
        Curve(label, training, config, args)
        for label in args.only
        for training in ((False,) if label == FAST else (False, True))
    ]
    return [row | stamp for curve in tqdm(curves, desc="scaling") for row in curve.rows()]


def looks(labels):
    """Colour and line style of each label, by the group that it belongs to."""
    labels, found = list(labels), {}
    for style, group in LINES.items():
        for label, colour in colours(x for x in labels if x in group).items():
            found[label] = colour, style
    return found


def draw(rows):
    """Four panels: time and memory of inference and of a training step."""
    with figure_style(10):
        figure = Figure(figsize=(11, 8), layout="constrained")
        axes = figure.subplots(2, 2, sharex=True)
        look = looks(row["model"] for row in rows)
        for column, which in enumerate(("inference", "training step")):
            for axis, key, title, factor in (
                (axes[0, column], "seconds", "time [ms]", 1e3),
                (axes[1, column], "peak_mib", "peak memory [MiB]", 1),
            ):
                ends = []
                for label, (colour, style) in look.items():
                    found = [
                        row
                        for row in rows
                        if (row["model"], row["pass"]) == (label, which) and row[key]
                    ]
                    if not found:
                        continue
                    x = [int(row["length"]) for row in found]
                    y = [max(factor * float(row[key]), 0.1) for row in found]
                    axis.plot(x, y, style, marker="o", markersize=3, linewidth=1.2, color=colour)
                    ends.append((y[-1], x[-1], label, colour))
                axis.set(xscale="log", yscale="log", ylabel=f"{title}, {which}")
                axis.grid(alpha=0.25)
                axis.spines[["top", "right"]].set_visible(False)
                axis.tick_params(which="both", top=False, right=False)
                if ends:
                    _label(axis, ends)
        for axis in axes[1]:
            lengths = sorted({int(row["length"]) for row in rows})
            axis.set_xticks(lengths, map(str, lengths))
            axis.xaxis.set_minor_locator(NullLocator())
            axis.set_xlabel("particles per jet")
        stamp = rows[0]
        figure.suptitle(
            f"batch {stamp['batch_size']}, {stamp['precision']}, {stamp['device']}, "
            f"torch {stamp['torch']}, {stamp['threads']} threads\n"
            f"solid: networks, dashed: forms of {NETWORK}, dotted: its attention backends by name, "
            "without dropout of the attention weights",
            fontsize=10,
        )
    return figure


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
    """Run the command line."""
    parser = argument_parser(__doc__, repeats=3, device=True)
    add = parser.add_argument
    add("--amp", action="store_true", help="bf16 autocast")
    add("--batch-size", type=int, default=1, metavar="N")
    add("--lengths", type=int, nargs="+", default=[2**n for n in range(6, 13)], metavar="N")
    add(
        "--only",
        nargs="+",
        choices=CASES,
        default=list(CASES),
        metavar="NAME",
        help=f"of: {'; '.join(CASES)} (default: all)",
    )
    add(
        "--seconds",
        type=float,
        default=4.0,
        help="a curve ends with the call that takes longer (default: 4)",
    )
    add(
        "--gib",
        type=float,
        default=8.0,
        help="a curve ends before it takes more memory (default: 8)",
    )
    args = parser.parse_args()
    rows = measure(args)
    name = f"scaling_{torch.device(args.device).type}"
    write_csv(args.results / f"{name}.csv", rows)
    save_figure(draw(rows), args.figures / name)


if __name__ == "__main__":
    main()
