"""Int8 of ParT: accuracy, size and speed of this project's forms and of other libraries.

    python benchmarks/quantization.py --checkpoint net_best_epoch_state.pt
    python benchmarks/quantization.py --checkpoint net_best_epoch_state.pt --sensitivity

Every form has the same weights and gets the same jets; the timed ones get one call each in turn.
Writes ``results/quantization_cpu.csv``, or ``results/quantization_sensitivity.csv`` and
``figures/quantization_sensitivity.{png,pdf}``. Needs ``pip install -e '.[quantize,export]'``.
"""

import copy
import io
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
from common import (
    DATA_CONFIG,
    NETWORK,
    argument_parser,
    batches_of,
    colours,
    figure_style,
    in_buckets,
    median_ratio,
    onnxruntime_call,
    save_figure,
    time_on,
    write_csv,
)
from matplotlib.figure import Figure
from tqdm import tqdm

from jetzoo import accelerate, comparison, load, profiling, repository
from jetzoo.engine import folding
from jetzoo.export import export as export_onnx
from jetzoo.int8 import calibration, file, quantize
from jetzoo.int8.layers import layers_of
from jetzoo.int8.methods import METHODS
from jetzoo.metrics.numbers import evaluate
from jetzoo.repository import network_module

BASE = "float32 engine"


class Variant:
    """A form of the network: what runs it, and the bytes of its file."""

    def __init__(self, call, size):
        self.call = call  # the four inputs to log-probabilities, up to a constant per jet
        self.size = size


def file_size(write):
    """Bytes that a function writes to the path it gets."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        write(path)
        return path.stat().st_size


def state_size(model):
    """Bytes of a state dict."""
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    return file.tell()


def float32(args, tagger, jets):
    """The fast engine."""
    return Variant(accelerate(tagger.model), state_size(tagger.model))


def ours(method, kernels=True):
    """One of this project's methods."""

    def build(args, tagger, jets):
        network = accelerate(tagger.model, "int8", calibration=jets, method=method)
        size = file_size(lambda path: file.save(network, path, args.network, tagger.data_config))
        return Variant(network if kernels else network.network, size)

    return build


def torchao_dynamic(args, tagger, jets):
    """The zoo's network with the layers of ``torch.nn.Linear`` in int8, run eagerly."""
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    model = copy.deepcopy(tagger.model)

    def wanted(module, name):
        # The class attention takes its projections apart, which torchao's tensors do not allow.
        parts = "cls_blocks" in name and name.endswith("in_proj")
        return isinstance(module, torch.nn.Linear) and min(module.weight.shape) >= 16 and not parts

    quantize_(model, Int8DynamicActivationInt8WeightConfig(), filter_fn=wanted)
    return Variant(model, state_size(model))


def torchao_pt2e(args, tagger, jets):
    """Exported graph, x86 inductor quantizer, compiled."""
    from torch.export import Dim, export
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    model, _ = network_module(args.network).get_model(tagger.data_config, for_inference=True)
    model.load_state_dict(tagger.model.state_dict())
    model.eval().requires_grad_(False)
    batch, length = Dim("batch", min=2, max=4096), Dim("length", min=32, max=512)
    shapes = tuple({0: batch, 2: length} for _ in jets)
    graph = export(model, tuple(x[:64] for x in jets), dynamic_shapes=shapes).module()
    quantizer = x86.X86InductorQuantizer()
    quantizer.set_global(x86.get_default_x86_inductor_quantization_config())
    prepared = prepare_pt2e(graph, quantizer)
    prepared(*(x[:128] for x in jets))
    converted = convert_pt2e(prepared)
    compiled = torch.compile(converted, dynamic=True)
    return Variant(lambda *x: compiled(*x).log(), state_size(converted))


def onnx(int8):
    """onnxruntime on the file of ``jetzoo export``, jets in buckets of 32 of similar length."""

    def build(args, tagger, jets):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "network.onnx"
            export_onnx(args.network, args.checkpoint, args.data_config, path, int8=int8)
            content = path.read_bytes()
        call = in_buckets(onnxruntime_call(content))
        return Variant(lambda *x: call(*x).log(), len(content))

    return build


VARIANTS = {
    BASE: float32,
    **{f"int8 {method}": ours(method) for method in METHODS},
    "int8 static, PyTorch instead of C++": ours("static", kernels=False),
    "torchao int8 dynamic": torchao_dynamic,
    "torchao pt2e, x86 inductor": torchao_pt2e,
    "onnxruntime float32": onnx(int8=False),
    "onnxruntime int8 dynamic": onnx(int8=True),
}


def build_all(args, tagger, jets):
    """The variants that can be built, and for each of the others the reason why not."""
    built, failed = {}, {}
    for name in tqdm(args.variants, desc="build"):
        try:
            variant = VARIANTS[name](args, tagger, jets)
            variant.call(*(x[:64] for x in jets))
            built[name] = variant
        except (RuntimeError, ImportError) as error:
            failed[name] = str(error).strip().split("\n")[0][:160]
    return built, failed


def quality(log_p, expected, labels, classes):
    """Metrics of log-probabilities (B, num_classes), and their distance from the float32 ones."""
    found = evaluate(labels, log_p.double().softmax(1).numpy(), classes)
    change = log_p.log_softmax(1) - expected.log_softmax(1)
    margin = change[:, 0] - change[:, 1] if change.shape[1] == 2 else change
    return {
        "accuracy": f"{found['accuracy']:.4f}",
        "auc": f"{found['auc']:.5f}",
        **{
            f"rejection_{100 * row['signal_efficiency']:g}": f"{row['rejection'] or np.nan:.2f}"
            for row in found["rejections"][:2]
        },
        "rms_logit_change": f"{margin.square().mean().sqrt():.4f}",
        "largest_logit_change": f"{margin.abs().max():.4f}",
    }


@torch.no_grad()
def compare(args, tagger, jets, inputs, labels):
    """Rows of quantization_cpu.csv."""
    built, failed = build_all(args, tagger, jets)
    calls = {name: variant.call for name, variant in built.items()}
    expected = calls[BASE](*inputs)
    timings = {}
    for size in tqdm(args.batch_sizes, desc="time"):
        batches = batches_of(inputs, size)
        timings[size] = size * len(batches), time_on(calls, batches, args.repeats)
    stamp = profiling.machine_stamp()
    rows = []
    for name in tqdm(args.variants, desc="quality"):
        if name in failed:
            rows.append({"variant": name, "note": failed[name]})
            continue
        batches = zip(*(x.split(256) for x in inputs), strict=True)
        log_p = torch.cat([calls[name](*x) for x in batches])
        found = quality(log_p, expected, labels, tagger.classes)
        for size, (count, seconds) in timings.items():
            rows.append(
                {
                    "variant": name,
                    "batch_size": size,
                    "jets_per_second": f"{np.median(count / seconds[name]):.5g}",
                    "times_float32_engine": f"{median_ratio(seconds[BASE], seconds[name]):.3f}",
                    "megabytes": f"{built[name].size / 1e6:.3f}",
                    "times_smaller": f"{built[BASE].size / built[name].size:.2f}",
                    **found,
                    "num_jets": len(labels),
                    **stamp,
                }
            )
    return rows


@torch.no_grad()
def sensitivity(args, tagger, jets, inputs, labels):
    """Rows of quantization_sensitivity.csv: one layer in int8 at a time, and rules for all."""
    expected = accelerate(tagger.model)(*inputs)
    engine = folding.fold(folding.freeze(tagger.model, "cpu"))
    layers = layers_of(engine)
    observed = calibration.observe(engine, layers, [jets])
    floats = {name for name, layer in layers.items() if quantize.stays_float(name, layer)}
    sets = {name: {name} for name in layers}
    sets |= {"all": set(layers), "all but those that stay in float32": set(layers) - floats}
    rows = []
    for name, chosen in tqdm(sets.items(), desc="layers"):
        replica = copy.deepcopy(engine)
        some = {n: layer for n, layer in layers_of(replica).items() if n in chosen}
        network = quantize.replace(replica, some, args.method, observed)
        found = quality(network(*inputs), expected, labels, tagger.classes)
        weight = layers[name].weight if name in layers else None
        rows.append(
            {
                "layer": name.removeprefix("network."),
                "outputs": "" if weight is None else weight.shape[0],
                "inputs": "" if weight is None else weight[0].numel(),
                "stays_in_float32": name in floats,
                **found,
                "method": args.method,
                "num_jets": len(labels),
                **profiling.machine_stamp(),
            }
        )
    return rows


def kind(layer):
    """Of the legend, from the name of a layer."""
    for part, title in (
        ("pair_embed", "pair MLP"),
        ("cls_", "class attention"),
        ("embed", "embedding"),
        ("mixers", "attention"),
        ("feed_forwards", "feed-forward"),
    ):
        if layer.startswith(part):
            return title
    return "head"


def draw(rows):
    """What each layer costs in int8 on its own."""
    single, (everything, rule) = rows[:-2], rows[-2:]
    legend = colours(kind(row["layer"]) for row in single)
    with figure_style(8):
        figure = Figure(figsize=(6.3, 0.14 * len(single) + 1.2), layout="constrained")
        axis = figure.subplots()
        for i, row in enumerate(single):
            kept, colour = row["stays_in_float32"], legend[kind(row["layer"])]
            axis.barh(
                i,
                float(row["rms_logit_change"]),
                color="white" if kept else colour,
                edgecolor=colour,
                hatch="////" if kept else None,
                height=0.75,
            )
        for row, style, label in (
            (everything, ":", "all layers"),
            (rule, "--", "all that are not hatched"),
        ):
            axis.axvline(float(row["rms_logit_change"]), color="black", ls=style, lw=1, label=label)
        for title, colour in legend.items():
            axis.barh([-9], [0], color=colour, label=title)
        axis.barh([-9], [0], color="white", edgecolor="black", hatch="////", label="stays float32")
        axis.set(
            yticks=range(len(single)),
            yticklabels=[row["layer"] for row in single],
            ylim=(len(single) - 0.4, -0.6),
            xlabel="rms change of the logit difference, one layer in int8",
        )
        axis.tick_params(axis="y", which="both", length=0, labelsize=6)
        axis.legend(
            fontsize=7, loc="center", bbox_to_anchor=(0.58, 0.5), frameon=True, framealpha=1
        )
    return figure


def main():
    """Run the command line."""
    parser = argument_parser(__doc__, repeats=9, batch_sizes=[1, 64, 256])
    add = parser.add_argument
    folder = repository.samples(DATA_CONFIG.partition("/")[0])
    add("--checkpoint", required=True, metavar="FILE")
    add("--network", default=NETWORK)
    add("--data-config", default=DATA_CONFIG, metavar="YAML")
    add("--calibration", nargs="+", default=[folder / "val_file_0.parquet"], metavar="FILE")
    add("--data", nargs="+", default=[repository.sample_jets()], metavar="FILE")
    add("--jets", type=int, default=10_000, metavar="N", help="test jets, at most")
    add("--sensitivity", action="store_true", help="put one layer at a time into int8")
    add("--method", default="static", choices=METHODS, help="of --sensitivity")
    add(
        "--variants",
        nargs="+",
        default=list(VARIANTS),
        choices=VARIANTS,
        metavar="NAME",
        help=f"of: {'; '.join(VARIANTS)} (default: all)",
    )
    args = parser.parse_args()
    if BASE not in args.variants:
        args.variants.insert(0, BASE)
    warnings.simplefilter("ignore")

    tagger = load(args.network, args.checkpoint, args.data_config, "cpu")
    jets = comparison.calibration_jets(tagger, args.calibration)
    batches, labels = zip(*comparison.labelled_batches(tagger, args.data, 512), strict=True)
    inputs = [torch.cat(x)[: args.jets] for x in zip(*batches, strict=True)]
    labels = np.concatenate(labels)[: args.jets]
    name = "quantization_sensitivity" if args.sensitivity else "quantization_cpu"
    rows = (sensitivity if args.sensitivity else compare)(args, tagger, jets, inputs, labels)
    write_csv(args.results / f"{name}.csv", rows)
    if args.sensitivity:
        save_figure(draw(rows), args.figures / name)


if __name__ == "__main__":
    main()
