"""Speed, memory and exactness of ParT: the fast engine, step by step, against its peers.

    python benchmarks/speed.py
    python benchmarks/speed.py --data jets.npz
    python benchmarks/speed.py --device cuda --batch-sizes 1 512 4096 16384

Every variant has the same weights and gets the same jets, one call of each in turn. Writes
``results/speed_<device>.csv`` beside this file and ``figures/speed_<device>.{png,pdf}``.
"""

import argparse
import csv
import ctypes
import io
import subprocess
import sys
import warnings
from pathlib import Path
from unittest import mock

import awkward as ak
import matplotlib.pyplot as plt
import numpy as np
import torch
from tqdm import tqdm
from weaver.nn.model.ParticleTransformer import ParticleTransformer as WeaverParT

from jetzoo import accelerate, inference, profiling, zoo

ROOT = Path(__file__).resolve().parents[1]
SAMPLE = ROOT / "data" / "samples" / "QuarkGluon" / "test_file_0.parquet"
BASE = "weaver eager"
# Okabe and Ito, made for eyes that see fewer colours.
PEER, OURS = "#999999", "#0072B2"


def weaver_part(model, **options):
    """weaver-core's own network, with the weights of the zoo's."""
    part = WeaverParT(
        input_dim=model.mod.embed.input_bn.num_features,
        num_classes=model.mod.fc[-1].out_features,
        use_pre_activation_pair=False,
        **options,
    )
    part.load_state_dict(model.mod.state_dict())
    return part.eval()


def weaver_eager(model, device):
    part = weaver_part(model).to(device)
    return lambda points, features, vectors, mask: part(features, vectors, mask)


def weaver_compiled(model, device):
    part = torch.compile(weaver_part(model, compile_model=True).to(device))
    return lambda points, features, vectors, mask: part(features, vectors, mask)


def in_bf16(build):
    def built(model, device):
        call = build(model, device)

        def run(*jets):
            with torch.autocast(torch.device(device).type, torch.bfloat16):
                return call(*jets).float()

        return run

    return built


def onnx_session(model):
    """weaver's export of its own network, which stops before the softmax here."""
    import onnxruntime

    part = weaver_part(model, for_inference=True)
    part.for_inference = False  # logits instead of probabilities; no other effect after __init__
    shapes = {"features": (2, model.mod.embed.input_bn.num_features, 128)}
    shapes |= {"vectors": (2, 4, 128), "mask": (2, 1, 128)}
    axes = {name: {0: "N", 2: "n"} for name in shapes}
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            part,
            tuple(torch.ones(shape) for shape in shapes.values()),
            file,
            input_names=list(shapes),
            output_names=["logits"],
            dynamic_axes={**axes, "logits": {0: "N"}},
            opset_version=17,
            dynamo=False,
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(
        file.getvalue(), options, providers=["CPUExecutionProvider"]
    )


def onnx_padded(model, device):
    session = onnx_session(model)

    def run(points, features, vectors, mask):
        longest = max(int(mask.sum(2).max()), 1)  # what weaver's trimmer does before its network
        inputs = {"features": features, "vectors": vectors, "mask": mask}
        inputs = {name: x[..., :longest].numpy() for name, x in inputs.items()}
        return torch.from_numpy(session.run(None, inputs)[0])

    return run


def onnx_buckets(model, device):
    padded = onnx_padded(model, device)

    def run(*jets):
        order = jets[-1].sum(2)[:, 0].argsort()
        logits = torch.cat([padded(*(x[rows] for x in jets)) for rows in order.split(32)])
        return torch.empty_like(logits).index_copy_(0, order, logits)

    return run


def plain_micro_batches(model, device):
    return one_after_the_other(inference.MicroBatches(inference.Plain(model, torch.float32)))


def folded_micro_batches(model, device):
    return one_after_the_other(folded(model, device))


def folded(model, device):
    """The engine in PyTorch: what runs on a GPU, or without a C++ compiler."""
    return inference.rewrite(inference.copy_for_inference(model, device), torch.float32)


def one_after_the_other(engine):
    """Without a thread of its own for each micro-batch."""

    def run(*jets):
        with mock.patch.object(inference, "parallel", lambda f, items, _: [*map(f, items)]):
            return engine(*jets)

    return run


# In the order of the figure: the peers, then our steps.
PEERS = {
    BASE: weaver_eager,
    "weaver torch.compile": weaver_compiled,
    "weaver bf16 autocast": in_bf16(weaver_eager),
    "weaver torch.compile, bf16": in_bf16(weaver_compiled),
    "weaver in onnxruntime": onnx_padded,
    "weaver in onnxruntime, length buckets": onnx_buckets,
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
        skipped = ("onnxruntime", "+ a thread", "+ kernels", "int8")
    else:
        skipped = ("torch.compile, bf16",)
    return [name for name in VARIANTS if not any(word in name for word in skipped)]


def make_model(jets):
    """ParT at its published size; norms and biases away from their initial ones and zeros."""
    config = zoo.read_data_config("QuarkGluon/qg_kin")
    torch.manual_seed(0)
    model, _ = zoo.network_module("ParT").get_model(config)
    assert jets[1].shape[1] == model.mod.embed.input_bn.num_features
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
        model.train()(*(x[:256] for x in jets))  # running statistics of real jets
    return model.eval().requires_grad_(False)


def read_jets(path):
    """Inputs of the network from parquet in the schema of QuarkGluon, or weaver's own as ``.npz``.

    Features are the seven of the data configs ``*_kin``. The padding is filled as weaver does.
    """
    if path.suffix == ".npz":
        data = np.load(path)
        return kin_inputs(data["pf_vectors"].astype("float32"), data["pf_mask"][:, 0] > 0)
    config = zoo.read_data_config("QuarkGluon/qg_kin")
    tagger = zoo.Tagger(torch.nn.Identity(), config)
    return [torch.from_numpy(x) for x in tagger.inputs(ak.from_parquet(path)).values()]


def kin_inputs(vectors, mask):
    """The four inputs from four-vectors (B, 4, N) and a mask (B, N)."""
    wrap = np.arange(mask.shape[1]) % np.maximum(mask.sum(1), 1)[:, None]  # (B, N)
    px, py, pz, energy = vectors.transpose(1, 0, 2)
    jet_px, jet_py, jet_pz, jet_energy = (vectors * mask[:, None]).sum(2).T[:, :, None]
    pt, jet_pt = np.hypot(px, py), np.hypot(jet_px, jet_py)
    jet_eta = np.arcsinh(jet_pz / jet_pt)
    with np.errstate(divide="ignore", invalid="ignore"):
        deta = (np.arcsinh(pz / pt) - jet_eta) * np.sign(jet_eta)
        dphi = np.arctan2(py, px) - np.arctan2(jet_py, jet_px)
        dphi = (dphi + np.pi) % (2 * np.pi) - np.pi
        features = [
            (np.log(pt) - 1.7) * 0.7,
            (np.log(energy) - 2) * 0.7,
            (np.log(pt / jet_pt) + 4.7) * 0.7,
            (np.log(energy / jet_energy) + 4.7) * 0.7,
            (np.hypot(deta, dphi) - 0.2) * 4,
        ]
    features = [*(np.clip(x, -5, 5) for x in features), deta, dphi]
    groups = np.stack((deta, dphi), 1), np.stack(features, 1), vectors
    groups = [np.take_along_axis(x, wrap[:, None], 2) for x in groups]
    return [torch.from_numpy(np.ascontiguousarray(x, "float32")) for x in (*groups, mask[:, None])]


def first(jets, count):
    """The first jets, from the beginning again if there are too few."""
    index = torch.arange(count) % len(jets[0])
    return [x[index] for x in jets]


def peak_memory(call, small, jets, device):
    """Bytes that a call takes beyond what is held after a small call; in a process of its own."""
    with torch.no_grad():
        for _ in range(6):  # weaver trims the padding only after some calls
            call(*small)
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


def measure(args):
    """Rows of the CSV."""
    jets = read_jets(args.data)
    model = make_model(jets)
    names = variants(args.device)
    largest = max(args.batch_sizes)
    calls = {name: VARIANTS[name](model, args.device) for name in tqdm(names, desc="build")}
    sets = {}
    for size in args.batch_sizes:
        batch = [x.to(args.device) for x in first(jets, max(size, 16))]
        sets[size] = [batch] if size >= 16 else [*zip(*(x.split(size) for x in batch), strict=True)]
    with torch.no_grad():
        small = [x.to(args.device) for x in first(jets, 8)]
        for name in tqdm(names, desc="warm up"):
            for _ in range(6):  # weaver trims the padding only after some calls
                calls[name](*small)
            for size in args.batch_sizes:
                if size < largest:
                    calls[name](*sets[size][0])
        batch = [x.to(args.device) for x in first(jets, 256)]
        logits = {name: call(*batch).float() for name, call in calls.items()}
        flops = profiling.flops(lambda: model(*batch)) / 256
        timings, progress = {}, tqdm(sets.items(), desc="time")
        for size, batches in progress:
            timings[size] = profiling.interleaved(
                {
                    name: lambda c=call, b=batches: [c(*x) for x in b]
                    for name, call in calls.items()
                },
                repeats=2 if size == largest else args.repeats,
                warmup=0,
                device=args.device,
            )
    product, copy = profiling.machine_peak(args.device)
    stamp = profiling.machine_stamp(args.device)
    memory = {
        name: int(
            subprocess.check_output([sys.executable, __file__, *sys.argv[1:], "--peak", name])
        )
        for name in tqdm(names, desc="memory")
    }
    rows = []
    for size, batches in sets.items():
        count = size * len(batches)
        base = np.array(timings[size][BASE])
        for name in names:
            seconds = np.array(timings[size][name])
            low, speed, high = np.quantile(count / seconds, (0.25, 0.5, 0.75))
            rows.append(
                {
                    "variant": name,
                    "peer": name in PEERS,
                    "batch_size": size,
                    "jets_per_second": f"{speed:.5g}",
                    "lower_quartile": f"{low:.5g}",
                    "upper_quartile": f"{high:.5g}",
                    "times_weaver_eager": f"{np.median(base / seconds):.3f}",
                    "peak_mib": f"{memory[name] / 2**20:.1f}" if size == largest else "",
                    "logit_difference": f"{(logits[name] - logits[BASE]).abs().max():.2g}",
                    "share_of_product": f"{flops * speed / product:.4f}",
                    "mflop_per_jet": f"{flops / 1e6:.1f}",
                    "product_gflops": f"{product / 1e9:.1f}",
                    "copy_gb_per_s": f"{copy / 1e9:.1f}",
                    "data": args.data.name,
                    **stamp,
                }
            )
    return rows


def draw(rows, path):
    """One row per variant: speed, latency, memory and exactness."""
    names = list(dict.fromkeys(row["variant"] for row in rows))
    sizes = sorted({row["batch_size"] for row in rows})
    middle = sizes[len(sizes) // 2]
    find = {(row["variant"], row["batch_size"]): row for row in rows}

    def column(size, key):
        return [float(find[name, size][key]) for name in names]

    panels = [
        (f"jets/s, batch {middle}", column(middle, "jets_per_second"), "{:.0f}", "linear"),
        ("ms per jet, batch 1", [1e3 / x for x in column(1, "jets_per_second")], "{:.1f}", "linear")
        if 1 in sizes
        else None,
        (f"peak memory [MiB], batch {sizes[-1]}", column(sizes[-1], "peak_mib"), "{:.0f}", "log"),
        ("largest logit difference", column(middle, "logit_difference"), "{:.0e}", "log"),
    ]
    panels = [panel for panel in panels if panel]
    figure, axes = plt.subplots(
        1,
        len(panels),
        figsize=(3.2 * len(panels) + 1, 0.4 * len(names) + 1.3),
        sharey=True,
        layout="constrained",
    )
    colours = [PEER if name in PEERS else OURS for name in names]
    for axis, (title, values, style, scale) in zip(axes, panels, strict=True):
        floor = min((x for x in values if x > 0), default=1) / 2 if scale == "log" else 0
        bars = axis.barh(names, [max(x, floor) for x in values], color=colours, height=0.7)
        labels = [style.format(x) if x else "0" for x in values]
        if axis is axes[0]:
            ratios = (float(find[name, middle]["times_weaver_eager"]) for name in names)
            labels = [f"{x} ({r:.1f}x)" for x, r in zip(labels, ratios, strict=True)]
        axis.bar_label(bars, labels, padding=2, fontsize=8)
        axis.set(xscale=scale, title=title)
        axis.title.set_fontsize(9)
        axis.margins(x=0.35)
        axis.spines[["top", "right", "bottom"]].set_visible(False)
        axis.tick_params(bottom=False, labelbottom=False, which="both")
    axes[0].invert_yaxis()
    stamp = rows[0]
    figure.suptitle(
        f"ParT, {stamp['device']}, {stamp['threads']} threads, torch {stamp['torch']}, "
        f"weaver-core {stamp['weaver-core']}; grey: peers, blue: this project",
        fontsize=9,
    )
    path.parent.mkdir(exist_ok=True)
    for suffix in (".png", ".pdf"):
        figure.savefig(path.with_suffix(suffix), dpi=160)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, default=SAMPLE, metavar="FILE", help="parquet or npz")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 256, 1024])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--peak", choices=VARIANTS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peak:
        jets = read_jets(args.data)
        call = VARIANTS[args.peak](make_model(jets), args.device)
        small, large = (
            [x.to(args.device) for x in first(jets, n)] for n in (8, args.batch_sizes[-1])
        )
        print(peak_memory(call, small, large, args.device))
        return
    rows = measure(args)
    name = f"speed_{torch.device(args.device).type}"
    path = Path(__file__).parent / "results" / f"{name}.csv"
    path.parent.mkdir(exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    draw(rows, ROOT / "figures" / name)
    print(f"wrote {path} and figures/{name}.png, .pdf")


if __name__ == "__main__":
    main()
