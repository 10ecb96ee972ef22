"""Speed, memory and exactness of ParT: the fast engine, step by step, against its peers.

    python benchmarks/speed.py
    python benchmarks/speed.py --data jets.npz
    python benchmarks/speed.py --device cuda --batch-sizes 1 512 4096 16384

Every variant has the same weights and gets the same jets, one call of each in turn. OpenVINO is in
the extra ``peers``; without it its row is left out. Writes
``results/speed_<device>.csv`` beside this file and ``figures/speed_<device>.{png,pdf}``.
"""

import argparse
import ctypes
import importlib.util
import queue
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from common import (
    argument_parser,
    batches_of,
    figure_style,
    first,
    in_buckets,
    median_ratio,
    onnxruntime_call,
    random_network,
    read_jets,
    save_figure,
    time_on,
    trimmed,
    warm_up,
    weaver_network,
    weaver_onnx,
    write_csv,
)
from matplotlib.figure import Figure
from tqdm import tqdm

from jetzoo import accelerate, profiling, repository
from jetzoo.engine import batching, folding
from jetzoo.native.peak import peaks

BASE = "weaver eager"
PEER, OURS = "#999999", "#0072B2"


def weaver_compiled(model, device):
    """weaver's own network, by its option to be compiled."""
    return torch.compile(weaver_network(model, device, compile_model=True))


def in_bf16(build):
    """The same network under autocast."""

    def built(model, device):
        call = build(model, device)

        def run(*jets):
            with torch.autocast(torch.device(device).type, torch.bfloat16):
                return call(*jets).float()

        return run

    return built


def onnx_eager(model):
    """weaver's export of its own network, which stops before the softmax here."""
    call = onnxruntime_call(weaver_onnx(model, "logits"))
    return lambda points, *others: call(*others)


def onnx_padded(model, device):
    """onnxruntime on batches cut to their longest jet, as weaver's trimmer cuts them."""
    return trimmed(onnx_eager(model))


def onnx_buckets(model, device):
    """onnxruntime on buckets of 32 jets of similar length."""
    return in_buckets(onnx_eager(model))


def openvino_buckets(model, device):
    """OpenVINO with its settings for throughput: buckets of 32 jets of similar length at once."""
    import openvino

    core = openvino.Core()
    settings = {
        "PERFORMANCE_HINT": "THROUGHPUT",
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }
    file = core.read_model(weaver_onnx(model, "logits"))
    compiled = core.compile_model(file, "CPU", settings)
    requests = queue.SimpleQueue()
    count = compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")
    for _ in range(count):
        requests.put(compiled.create_infer_request())

    def call(points, *others):
        request = requests.get()
        out = request.infer([x.contiguous().numpy() for x in others])[0]
        logits = torch.from_numpy(out.copy())
        requests.put(request)
        return logits

    return in_buckets(call, several=ThreadPoolExecutor(count).map)


def plain_micro_batches(model, device):
    """The network as it is, in micro-batches one after the other."""
    frozen = folding.freeze(model, device)
    return one_after_the_other(
        batching.MicroBatches(folding.MicroBatched(frozen, torch.float32)).eval()
    )


def folded(model, device):
    """The engine in PyTorch: what runs on a GPU, or without a C++ compiler."""
    return folding.fold(folding.freeze(model, device))


def folded_micro_batches(model, device):
    """The same, in micro-batches one after the other."""
    return one_after_the_other(folded(model, device))


def one_after_the_other(engine):
    """Without a thread of its own for each micro-batch."""

    def run(*jets):
        with mock.patch.object(batching, "parallel", lambda f, items, _: [*map(f, items)]):
            return engine(*jets)

    return run


# In the order of the figure: the peers, then our steps.
PEERS = {
    BASE: weaver_network,
    "weaver torch.compile": weaver_compiled,
    "weaver bf16 autocast": in_bf16(weaver_network),
    "weaver torch.compile, bf16": in_bf16(weaver_compiled),
    "weaver in onnxruntime": onnx_padded,
    "weaver in onnxruntime, length buckets": onnx_buckets,
    "weaver in OpenVINO, length buckets": openvino_buckets,
}
STEPS = {
    "packed, one triangle of real pairs": lambda model, device: model.to(device),
    "+ micro-batches by length": plain_micro_batches,
    "+ folded norms and class attention": folded_micro_batches,
    "+ a thread per micro-batch": folded,
    "+ kernels of our own = accelerate": lambda model, device: accelerate(model, device=device),
    "accelerate, bf16": lambda model, device: accelerate(model, "bf16", device),
    "accelerate, int8": lambda model, device: accelerate(model, "int8", device, method="dynamic"),
}
VARIANTS = PEERS | STEPS


def variants(device):
    """Names of what makes sense on a device."""
    if torch.device(device).type == "cuda":  # no micro-batches in threads, no onnxruntime
        skipped = ["onnxruntime", "OpenVINO", "+ a thread", "+ kernels", "int8"]
    else:
        skipped = ["torch.compile, bf16"]
    if importlib.util.find_spec("openvino") is None:
        skipped.append("OpenVINO")
    return [name for name in VARIANTS if not any(word in name for word in skipped)]


def peak_memory(call, small, jets, device):
    """Bytes that a call takes beyond what is held after a small call; in a process of its own."""
    with torch.no_grad():
        warm_up(call, small)
        if torch.device(device).type == "cuda":
            return profiling.peak_memory(lambda: call(*jets), device)
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # forget the high-water mark (Linux)
        before = high_water()
        call(*jets)
        return high_water() - before


def high_water():
    """Largest resident memory so far, bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmHWM")))


def peak_memories(names, device, batch_size, data):
    """Peak memory of each variant, bytes, each in a process of its own."""
    words = ["--device", device, "--batch-sizes", str(batch_size), "--data", str(data)]
    return {
        name: int(subprocess.check_output([sys.executable, __file__, *words, "--peak", name]))
        for name in tqdm(names, desc="memory")
    }


def print_peak_memory(args):
    """Print the peak memory of the variant ``args.peak``; :func:`peak_memories` reads it."""
    jets = read_jets(args.data)
    call = VARIANTS[args.peak](random_network("ParT", jets), args.device)
    small, large = ([x.to(args.device) for x in first(jets, n)] for n in (8, args.batch_sizes[-1]))
    print(peak_memory(call, small, large, args.device))


@torch.no_grad()
def time_variants(calls, jets, batch_sizes, repeats, device):
    """Time all variants at each batch size; the largest batch twice only.

    Returns
    -------
    timings : dict of int to (int, dict of str to ndarray)
        By batch size, the number of jets of a turn and the seconds of each variant.
    logits : dict of str to Tensor
        Of 256 jets.
    """
    largest = max(batch_sizes)
    batches = {size: batches_of(jets, size, device) for size in batch_sizes}
    small = [x.to(device) for x in first(jets, 8)]
    for call in tqdm(calls.values(), desc="warm up"):
        warm_up(call, small)
        for size in batch_sizes:
            if size < largest:
                call(*batches[size][0])
    some = [x.to(device) for x in first(jets, 256)]
    logits = {name: call(*some).float() for name, call in calls.items()}
    timings = {}
    for size in tqdm(batch_sizes, desc="time"):
        turns = min(2, repeats) if size == largest else repeats
        seconds = time_on(calls, batches[size], turns, warmup=0, device=device)
        timings[size] = size * len(batches[size]), seconds
    return timings, logits


def measure(args):
    """Rows of the CSV."""
    jets = read_jets(args.data)
    model = random_network("ParT", jets)
    calls = {
        name: VARIANTS[name](model, args.device)
        for name in tqdm(variants(args.device), desc="build")
    }
    timings, logits = time_variants(calls, jets, args.batch_sizes, args.repeats, args.device)
    some = [x.to(args.device) for x in first(jets, 256)]
    flops = profiling.flops(lambda: model(*some)) / 256
    product, copy = profiling.machine_peak(args.device)
    fp32, int8 = peaks() if torch.device(args.device).type == "cpu" else (None, None)
    stamp = profiling.machine_stamp(args.device)
    largest = max(args.batch_sizes)
    memory = peak_memories(calls, args.device, largest, args.data)
    rows = []
    for size, (count, seconds) in timings.items():
        for name in calls:
            peak = None if "bf16" in name else int8 if "int8" in name else fp32
            low, speed, high = np.quantile(count / seconds[name], (0.25, 0.5, 0.75))
            rows.append(
                {
                    "variant": name,
                    "peer": name in PEERS,
                    "batch_size": size,
                    "jets_per_second": f"{speed:.5g}",
                    "lower_quartile": f"{low:.5g}",
                    "upper_quartile": f"{high:.5g}",
                    "times_weaver_eager": f"{median_ratio(seconds[BASE], seconds[name]):.3f}",
                    "peak_mib": f"{memory[name] / 2**20:.1f}" if size == largest else "",
                    "logit_difference": f"{(logits[name] - logits[BASE]).abs().max():.2g}",
                    "share_of_peak": share(flops * speed, peak),
                    "mflop_per_jet": f"{flops / 1e6:.1f}",
                    "peak_gflops": peak and f"{peak / 1e9:.1f}",
                    "product_gflops": f"{product / 1e9:.1f}",
                    "copy_gb_per_s": f"{copy / 1e9:.1f}",
                    "data": args.data.name,
                    **stamp,
                }
            )
    return rows


def share(speed, peak):
    """Operations per second over what the units of the processor do in registers."""
    return None if peak is None else f"{speed / peak:.4f}"


def panels_of(rows):
    """Title, value of each variant, format and scale of the panels of the figure."""
    names = list(dict.fromkeys(row["variant"] for row in rows))
    sizes = sorted({row["batch_size"] for row in rows})
    middle = sizes[len(sizes) // 2]
    find = {(row["variant"], row["batch_size"]): row for row in rows}

    def column(size, key):
        return [float(find[name, size][key]) for name in names]

    speeds = column(middle, "jets_per_second")
    ratios = column(middle, "times_weaver_eager")
    labels = [f"{x:.0f} ({r:.1f}x)" for x, r in zip(speeds, ratios, strict=True)]
    yield f"jets/s, batch {middle}", speeds, labels, "linear"
    if 1 in sizes:
        latency = [1e3 / x for x in column(1, "jets_per_second")]
        yield "ms per jet, batch 1", latency, [f"{x:.1f}" for x in latency], "linear"
    for title, size, key, form in (
        (f"peak memory [MiB], batch {sizes[-1]}", sizes[-1], "peak_mib", "{:.0f}"),
        ("largest logit difference", middle, "logit_difference", "{:.0e}"),
    ):
        values = column(size, key)
        yield title, values, [form.format(x) if x else "0" for x in values], "log"


def draw(rows):
    """One row per variant: speed, latency, memory and exactness."""
    names = list(dict.fromkeys(row["variant"] for row in rows))
    panels = list(panels_of(rows))
    with figure_style(9):
        size = (3.2 * len(panels) + 1, 0.4 * len(names) + 1.3)
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        colours = [PEER if name in PEERS else OURS for name in names]
        for axis, (title, values, labels, scale) in zip(axes, panels, strict=True):
            floor = min((x for x in values if x > 0), default=1) / 2 if scale == "log" else 0
            bars = axis.barh(names, [max(x, floor) for x in values], color=colours, height=0.7)
            axis.bar_label(bars, labels, padding=2, fontsize=8)
            axis.set(xscale=scale, title=title)
            axis.margins(x=0.35)
            axis.spines[["top", "right", "bottom"]].set_visible(False)
            axis.tick_params(which="both", bottom=False, top=False, labelbottom=False)
            axis.tick_params(axis="y", which="both", left=False, right=False)
        axes[0].invert_yaxis()
        stamp = rows[0]
        figure.suptitle(
            f"ParT, {stamp['device']}, {stamp['threads']} threads, torch {stamp['torch']}, "
            f"weaver-core {stamp['weaver-core']}; grey: peers, blue: this project",
            fontsize=9,
        )
    return figure


def main():
    """Run the command line."""
    parser = argument_parser(__doc__, repeats=5, batch_sizes=[1, 256, 1024], device=True)
    parser.add_argument(
        "--data",
        type=Path,
        default=repository.sample_jets(),
        metavar="FILE",
        help="parquet or npz (default: the embedded quark/gluon test jets)",
    )
    parser.add_argument("--peak", choices=VARIANTS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peak:
        print_peak_memory(args)
        return
    rows = measure(args)
    name = f"speed_{torch.device(args.device).type}"
    write_csv(args.results / f"{name}.csv", rows)
    save_figure(draw(rows), args.figures / name)


if __name__ == "__main__":
    main()
