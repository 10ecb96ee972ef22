"""Int8 of ParT: accuracy, size and speed of this project's forms and of other libraries.

    python benchmarks/quantization.py --checkpoint net_best_epoch_state.pt
    python benchmarks/quantization.py --checkpoint net_best_epoch_state.pt --sensitivity

Every form has the same weights and gets the same jets; the timed ones get one call each in turn.
Writes ``results/quantization_cpu.csv``, or ``results/quantization_sensitivity.csv`` and
``figures/quantization_sensitivity.{png,pdf}``. Needs ``pip install -e '.[quantize,export]'``.
"""

import argparse
import copy
import csv
import io
import os
import tempfile
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from tqdm import tqdm

from jetzoo import accelerate, comparison, evaluate, inference, profiling, quantization, zoo
from jetzoo import export as onnx_export

ROOT = Path(__file__).resolve().parents[1]
SAMPLE = ROOT / "data" / "samples" / "QuarkGluon"
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
    return Variant(accelerate(tagger.model), state_size(tagger.model))


def ours(method, compiled=True):
    def build(args, tagger, jets):
        network = quantization.quantize(tagger.model, jets, method)
        size = file_size(
            lambda path: quantization.save(network, path, args.network, tagger.data_config)
        )
        return Variant(network if compiled else network.engine, size)

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

    model, _ = zoo.network_module(args.network).get_model(tagger.data_config, for_inference=True)
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


def onnx(int8, static=False):
    """onnxruntime on the file of ``jetzoo export``, jets in buckets of 32 of similar length."""

    def build(args, tagger, jets):
        import onnxruntime

        with tempfile.TemporaryDirectory() as folder:
            path = str(Path(folder) / "network.onnx")
            onnx_export.export(
                args.network,
                args.checkpoint,
                args.data_config,
                path,
                int8=int8,
                calibration=args.calibration if static else None,
            )
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = torch.get_num_threads()
            session = onnxruntime.InferenceSession(
                path, options, providers=["CPUExecutionProvider"]
            )
            size = os.path.getsize(path)
        names = [x.name for x in session.get_inputs()]

        def run(*inputs):
            order = inputs[-1].sum(2)[:, 0].argsort()
            parts = []
            for rows in order.split(32):
                longest = max(int(inputs[-1][rows].sum(2).max()), 2)
                cut = [np.ascontiguousarray(x[rows, :, :longest]) for x in inputs]
                parts.append(session.run(None, dict(zip(names, cut, strict=True)))[0])
            logits = torch.from_numpy(np.concatenate(parts)).log()
            return torch.empty_like(logits).index_copy_(0, order, logits)

        return Variant(run, size)

    return build


VARIANTS = {
    BASE: float32,
    "int8 static": ours("static"),
    "int8 dynamic": ours("dynamic"),
    "int8 weight-only": ours("weight-only"),
    "int8 static, PyTorch instead of C++": ours("static", compiled=False),
    "torchao int8 dynamic": torchao_dynamic,
    "torchao pt2e, x86 inductor": torchao_pt2e,
    "onnxruntime float32": onnx(int8=False),
    "onnxruntime int8 static": onnx(int8=True, static=True),
    "onnxruntime int8 dynamic": onnx(int8=True),
}


def build_all(args, tagger, jets):
    """The variants, and why some of them cannot be."""
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
    found = evaluate.evaluate(labels, log_p.double().softmax(1).numpy(), classes)
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
    expected = built[BASE].call(*inputs)
    timings = {}
    for size in tqdm(args.batch_sizes, desc="time"):
        count = size * max(16 // size, 1)
        sets = [*zip(*(x[:count].split(size) for x in inputs), strict=True)]
        timings[size] = profiling.interleaved(
            {
                name: lambda call=variant.call, sets=sets: [call(*x) for x in sets]
                for name, variant in built.items()
            },
            repeats=args.repeats,
        )
    stamp = profiling.machine_stamp()
    rows = []
    for name in tqdm(args.variants, desc="quality"):
        if name in failed:
            rows.append({"variant": name, "note": failed[name]})
            continue
        batches = zip(*(x.split(256) for x in inputs), strict=True)
        log_p = torch.cat([built[name].call(*x) for x in batches])
        found = quality(log_p, expected, labels, tagger.classes)
        for size in args.batch_sizes:
            seconds, base = (np.array(timings[size][n]) for n in (name, BASE))
            jets_per_call = size * max(16 // size, 1)
            rows.append(
                {
                    "variant": name,
                    "batch_size": size,
                    "jets_per_second": f"{np.median(jets_per_call / seconds):.5g}",
                    "times_float32_engine": f"{np.median(base / seconds):.3f}",
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
    engine = inference.rewrite(inference.copy_for_inference(tagger.model, "cpu"), torch.float32)
    layers = quantization.layers_of(engine)
    seen = quantization.observe(engine, layers, [jets])
    floats = {name for name, layer in layers.items() if quantization.stays_float(name, layer)}
    sets = {name: {name} for name in layers}
    sets |= {"all": set(layers), "all but those that stay in float32": set(layers) - floats}
    rows = []
    for name, chosen in tqdm(sets.items(), desc="layers"):
        replica = copy.deepcopy(engine)
        some = {n: layer for n, layer in quantization.layers_of(replica).items() if n in chosen}
        network = quantization.replace(replica, some, args.method, seen)
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


def draw(rows, path):
    """What each layer costs in int8 on its own."""
    single, (everything, rule) = rows[:-2], rows[-2:]
    kinds = list(dict.fromkeys(kind(row["layer"]) for row in single))
    colours = dict(zip(kinds, evaluate.OKABE_ITO, strict=False))
    with plt.rc_context({**evaluate.STYLE, "font.size": 8, "axes.labelsize": 9}):
        figure, axis = plt.subplots(figsize=(6.3, 0.14 * len(single) + 1.2), layout="constrained")
        for i, row in enumerate(single):
            kept = row["stays_in_float32"]
            axis.barh(
                i,
                float(row["rms_logit_change"]),
                color="white" if kept else colours[kind(row["layer"])],
                edgecolor=colours[kind(row["layer"])],
                hatch="////" if kept else None,
                height=0.75,
            )
        for row, style, label in (
            (everything, ":", "all layers"),
            (rule, "--", "all that are not hatched"),
        ):
            axis.axvline(float(row["rms_logit_change"]), color="black", ls=style, lw=1, label=label)
        for title, colour in colours.items():
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
        for suffix in (".png", ".pdf"):
            figure.savefig(path.with_suffix(suffix), dpi=160)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--network", default="ParT")
    parser.add_argument("--data-config", default="QuarkGluon/qg_kin")
    parser.add_argument("--calibration", nargs="+", default=[SAMPLE / "val_file_0.parquet"])
    parser.add_argument("--data", nargs="+", default=[SAMPLE / "test_file_0.parquet"])
    parser.add_argument("--jets", type=int, default=10_000, help="to judge by, at most")
    parser.add_argument("--method", default="static", help="of --sensitivity")
    parser.add_argument("--sensitivity", action="store_true")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 64, 256])
    parser.add_argument("--repeats", type=int, default=9)
    args = parser.parse_args()
    if BASE not in args.variants:
        args.variants.insert(0, BASE)
    warnings.simplefilter("ignore")

    tagger = zoo.load(args.network, args.checkpoint, args.data_config, "cpu")
    jets = comparison.calibration_jets(tagger, args.calibration)
    batches, labels = zip(*comparison.labelled_batches(tagger, args.data, 512), strict=True)
    inputs = [torch.cat(x)[: args.jets] for x in zip(*batches, strict=True)]
    labels = np.concatenate(labels)[: args.jets]
    name = "quantization_sensitivity" if args.sensitivity else "quantization_cpu"
    rows = (sensitivity if args.sensitivity else compare)(args, tagger, jets, inputs, labels)
    path = ROOT / "benchmarks" / "results" / f"{name}.csv"
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    print(f"wrote {path}")
    if args.sensitivity:
        draw(rows, ROOT / "figures" / name)
        print(f"wrote {ROOT / 'figures' / name}.png and .pdf")


if __name__ == "__main__":
    main()
