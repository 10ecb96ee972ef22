"""One jet at a time on one thread, as taggers run in the software of experiments; and batches.

Each jet goes through all variants in turn: weaver's own export in onnxruntime and OpenVINO, that of
``jetzoo export``, the library in C++, which also makes the inputs from the raw variables, and the
fast engine. Jets come at their own length or padded to 128 particles. Opening a network and its
memory are measured in a process of its own. Then the files run in onnxruntime on batches of 64
jets, on one thread and on two. OpenVINO is in the extra ``peers``; without it its rows are left
out, as are those of C++ without CMake.
"""

import argparse
import ctypes
import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
import torch
from common import (
    argument_parser,
    figure_style,
    inputs_of,
    published_jets,
    read_table,
    save_figure,
    weaver_onnx,
    write_csv,
)
from matplotlib.figure import Figure
from tqdm import tqdm

import jetzoo
from jetzoo import cpp, models, profiling, repository
from jetzoo.export import conversion
from jetzoo.style import OKABE_ITO

MODELS = ("ParT_kin", "ParticleNet_kin")
INPUTS = ("pf_points", "pf_features", "pf_vectors", "pf_mask")

# Particles that weaver's ParticleNet needs, padding included: its 16 neighbours and itself.
SHORTEST = 17

BASE = "weaver in onnxruntime"
PADDED = "padded to 128"


def in_onnxruntime(path, card, threads=1):
    """Open a file."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # Threads of one session would spin while another one works.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [x.name for x in session.get_inputs()]
    return lambda jet: session.run(None, {name: jet[name] for name in names})[0]


def in_openvino(path, card):
    """Open a file on one thread, for the shortest time of a jet."""
    import openvino

    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": 1}
    settings["INFERENCE_PRECISION_HINT"] = "f32"
    compiled = openvino.Core().compile_model(path, "CPU", settings)
    names = [x.any_name for x in compiled.inputs]
    request = compiled.create_infer_request()
    return lambda jet: request.infer({name: jet[name] for name in names})[0]


def in_cpp(path, card):
    """Open a weights file with the library in C++ that stands beside it."""
    library = ctypes.CDLL(str(Path(path).with_name("libjetzoo.so")))
    library.jetzoo_variable.restype = ctypes.c_char_p
    network, workspace = ctypes.c_void_p(), ctypes.c_void_p()
    _check(library.jetzoo_open(os.fsencode(path), ctypes.byref(network)))
    _check(library.jetzoo_workspace_create(ctypes.byref(workspace)))
    count = library.jetzoo_num_variables(network)
    names = [library.jetzoo_variable(network, i).decode() for i in range(count)]
    num_classes = library.jetzoo_num_classes(network)

    def run(jet):
        columns = [jet[name] for name in names]
        pointers = (ctypes.c_void_p * count)(*(x.ctypes.data for x in columns))
        size = ctypes.c_int64(max(map(len, columns)))
        scores = np.empty((1, num_classes), np.float32)
        address = ctypes.c_void_p(scores.ctypes.data)
        _check(library.jetzoo_predict(network, workspace, pointers, size, address))
        return scores

    return run


def _check(status):
    if status:
        raise SystemExit(f"the library in C++ says {status}, see enum jetzoo_status")


def engine(precision):
    """``jetzoo.accelerate`` of the trained weights."""

    def build(path, card):
        model = jetzoo.load(card, device="cpu").model
        options = {"method": "dynamic"} if precision == "int8" else {}
        fast = jetzoo.accelerate(model, precision, "cpu", **options)

        @torch.inference_mode()
        def run(jet):
            return fast(*(torch.from_numpy(jet[name]) for name in INPUTS)).softmax(1).numpy()

        return run

    return build


# File that a variant opens, and what opens it.
VARIANTS = {
    BASE: ("weaver.onnx", in_onnxruntime),
    f"{BASE}, {PADDED}": ("weaver.onnx", in_onnxruntime),
    "weaver in OpenVINO": ("weaver.onnx", in_openvino),
    "jetzoo export in onnxruntime": ("jetzoo.onnx", in_onnxruntime),
    f"jetzoo export in onnxruntime, {PADDED}": ("jetzoo.onnx", in_onnxruntime),
    "jetzoo export in OpenVINO": ("jetzoo.onnx", in_openvino),
    "jetzoo export --int8 in onnxruntime": ("jetzoo_int8.onnx", in_onnxruntime),
    "jetzoo export --cpp": ("weights.bin", in_cpp),
    "jetzoo export --cpp --int8": ("weights_int8.bin", in_cpp),
    "accelerate": (None, engine("fp32")),
    "accelerate, int8": (None, engine("int8")),
}


# Those that run on batches.
BATCHED = (BASE, "jetzoo export in onnxruntime", "jetzoo export --int8 in onnxruntime")
BATCH_SIZE, NUM_BATCHES, THREADS = 64, 3, (1, 2)


def write_files(card, folder):
    """Write the files that the variants open; one that a network has no form for is not there."""
    network, checkpoint, data_config = models.find(card)
    tagger = jetzoo.load(card, device="cpu")
    Path(folder, "weaver.onnx").write_bytes(weaver_onnx(tagger.model))
    for name, int8 in (("jetzoo.onnx", False), ("jetzoo_int8.onnx", True)):
        try:
            model = conversion.convert(tagger, network, "probabilities", 17, int8, {})
        except jetzoo.UserError as error:
            print(f"note: {error}")
        else:
            onnx.save(model, Path(folder, name))
    if not shutil.which("cmake"):
        return
    for name, int8 in (("weights.bin", False), ("weights_int8.bin", True)):
        exported = Path(folder, name).with_suffix("")
        try:
            cpp.export(network, checkpoint, data_config, exported, int8)
        except jetzoo.UserError as error:
            print(f"note: {error}")
        else:
            shutil.copyfile(exported / "weights.bin", Path(folder, name))
    build_folder = Path(folder, "build")
    for command in (
        ["cmake", "-S", Path(folder, "weights"), "-B", build_folder],
        ["cmake", "--build", build_folder, "--target", "jetzoo"],
    ):
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    shutil.copyfile(build_folder / "libjetzoo.so", Path(folder, "libjetzoo.so"))


def variants(folder):
    """Names of the variants that can be built."""
    openvino = importlib.util.find_spec("openvino") is not None
    return [
        name
        for name, (file, _) in VARIANTS.items()
        if (file is None or Path(folder, file).exists()) and (openvino or "OpenVINO" not in name)
    ]


def build(name, card, folder):
    """Open a variant: a function of one jet."""
    file, opened = VARIANTS[name]
    return opened(str(Path(folder, file or "")), card)


def read(num_jets, path):
    """Jets with their own length and padded: the inputs of a file, and the raw variables."""
    table = read_table(path)[:num_jets]
    jets = [x.numpy() for x in inputs_of(table)]
    found = []
    for i, record in enumerate(table):
        raw = {
            name: np.atleast_1d(np.asarray(record[name], np.float32))
            for name in table.fields
            if name.startswith(("part_", "jet_"))
        }
        length = max(int(jets[-1][i].sum()), SHORTEST)
        found.append(
            [
                raw
                | {
                    name: np.ascontiguousarray(x[i : i + 1, :, :stop])
                    for name, x in zip(INPUTS, jets, strict=True)
                }
                for stop in (length, None)
            ]
        )
    return found


def resident():
    """Memory that the process holds, bytes (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmRSS")))


def print_opening(args):
    """Print the time that opening takes and the memory after all jets; for :func:`opening`."""
    jets = read(args.jets, args.data)
    for package in {"OpenVINO": ("openvino",)}.get(args.opening.split()[-1], ("onnxruntime",)):
        importlib.import_module(package)
    before, start = resident(), time.perf_counter()
    call = build(args.opening, args.models[0], args.folder)
    call(jets[0][0])
    seconds = time.perf_counter() - start
    for own, padded in jets:
        call(padded if PADDED in args.opening else own)
    print(json.dumps({"open_ms": 1e3 * seconds, "mib": (resident() - before) / 2**20}))


def opening(name, card, args, folder):
    """Milliseconds up to the first scores, median of three processes, and MiB after all jets."""
    words = ["--models", card, "--jets", str(args.jets), "--data", str(args.data)]
    words += ["--folder", str(folder), "--opening", name]
    command = [sys.executable, __file__, *words]
    found = [json.loads(subprocess.check_output(command).splitlines()[-1]) for _ in range(3)]
    return {key: statistics.median(x[key] for x in found) for key in found[0]}


def interleaved(calls, jets, repeats, description):
    """Time every variant on every jet or batch, one after the other.

    Parameters
    ----------
    calls : dict of str to callable
    jets : dict of str to list of dict
        What each variant is called with.
    repeats : int
    description : str

    Returns
    -------
    seconds : dict of str to ndarray, (repeats, num_jets)
    scores : dict of str to ndarray, (num_jets, num_classes)
    """
    seconds = {name: [] for name in calls}
    scores = {name: [] for name in calls}
    count = len(next(iter(jets.values())))
    for turn in tqdm(range(repeats + 1), desc=description):  # the first one warms up
        for i in range(count):
            for name, call in calls.items():
                start = time.perf_counter()
                out = call(jets[name][i])
                seconds[name].append(time.perf_counter() - start)
                if not turn:
                    scores[name].append(out)
    seconds = {name: np.reshape(x, (-1, count))[1:] for name, x in seconds.items()}
    return seconds, {name: np.concatenate(x) for name, x in scores.items()}


def measure(card, args, folder, stamp):
    """Rows of the CSV of one model, jet by jet."""
    names = variants(folder)
    calls = {name: build(name, card, folder) for name in names}
    own, padded = zip(*read(args.jets, args.data), strict=True)
    jets = {name: padded if PADDED in name else own for name in names}
    seconds, scores = interleaved(calls, jets, args.repeats, card)
    rows = []
    for name in names:
        p50, p99 = 1e3 * np.quantile(seconds[name], (0.5, 0.99))
        file = VARIANTS[name][0]
        size = Path(folder, file).stat().st_size / 1e6 if file else None
        found = opening(name, card, args, folder)
        difference = np.abs(scores[name] - scores[BASE]).max()
        rows.append(
            {
                "model": card,
                "variant": name,
                "p50_ms": f"{p50:.3f}",
                "p99_ms": f"{p99:.3f}",
                "times_weaver": f"{np.median(seconds[BASE] / seconds[name]):.2f}",
                "megabytes": "" if size is None else f"{size:.2f}",
                "open_ms": f"{found['open_ms']:.0f}",
                "mib": f"{found['mib']:.0f}",
                "score_difference": f"{difference:.2g}",
                "num_jets": len(own),
                "data": args.data.name,
                **stamp,
            }
        )
    return rows


def cases(jets):
    """What the files run on in onnxruntime: single jets, and batches cut to their longest jet.

    Parameters
    ----------
    jets : list of (dict, dict)
        See :func:`read`.

    Returns
    -------
    dict of str to list of dict
    """

    def batches(order):
        parts = [order[i : i + BATCH_SIZE] for i in range(0, len(order), BATCH_SIZE)]
        return [
            {
                name: np.concatenate([jets[i][1][name] for i in part])[
                    :, :, : max(lengths[i] for i in part)
                ].copy()
                for name in INPUTS
            }
            for part in parts
        ]

    lengths = [own["pf_mask"].shape[2] for own, _ in jets]
    some = jets[:BATCH_SIZE]
    return {
        "one jet": [own for own, _ in some],
        f"one jet, {PADDED}": [padded for _, padded in some],
        f"batch of {BATCH_SIZE}, as they come": batches(range(len(jets))),
        f"batch of {BATCH_SIZE}, jets of similar length": batches(np.argsort(lengths)),
    }


def measure_batches(card, args, folder, stamp):
    """Rows of the CSV of one model in onnxruntime, batch by batch."""
    names = [name for name in BATCHED if name in variants(folder)]
    found = cases(read(NUM_BATCHES * BATCH_SIZE, args.data))
    rows = []
    for threads in THREADS:
        calls = {
            name: in_onnxruntime(str(Path(folder, VARIANTS[name][0])), card, threads)
            for name in names
        }
        for case, jets in found.items():
            count = sum(len(jet["pf_mask"]) for jet in jets)
            given = dict.fromkeys(names, jets)
            seconds, _ = interleaved(calls, given, args.repeats, f"{card}, {case}, {threads}")
            for name in names:
                ratio = np.median(seconds[BASE].sum(1) / seconds[name].sum(1))
                rows.append(
                    {
                        "model": card,
                        "case": case,
                        "variant": name,
                        "ms_per_jet": f"{1e3 * np.median(seconds[name].sum(1)) / count:.3f}",
                        "times_weaver": f"{ratio:.2f}",
                        "num_jets": count,
                        "data": args.data.name,
                        **stamp,
                        "threads": threads,
                    }
                )
    return rows


def draw(rows):
    """Milliseconds of a jet: a bar to the median, a line to the 99th percentile."""
    cards = list(dict.fromkeys(row["model"] for row in rows))
    names = [name for name in VARIANTS if any(row["variant"] == name for row in rows)]
    with figure_style(9):
        figure = Figure(figsize=(4.2 * len(cards) + 2, 0.36 * len(names) + 1), layout="constrained")
        axes = figure.subplots(1, len(cards), sharey=True, squeeze=False)[0]
        for axis, card in zip(axes, cards, strict=True):
            found = {row["variant"]: row for row in rows if row["model"] == card}
            for place, name in enumerate(names):
                if name not in found:
                    continue
                row = found[name]
                p50, p99 = float(row["p50_ms"]), float(row["p99_ms"])
                colour = "#999999" if name.startswith("weaver") else OKABE_ITO[0]
                axis.barh(place, p50, color=colour, height=0.7)
                axis.plot([p50, p99], [place, place], color="black", linewidth=1)
                text = f"{p50:.2f} ms ({row['times_weaver']}x)"
                axis.annotate(text, (p99, place), (3, 0), textcoords="offset points", va="center")
            axis.set(title=card, yticks=range(len(names)), yticklabels=names)
            axis.margins(x=0.35)
            axis.spines[["top", "right", "bottom"]].set_visible(False)
            axis.tick_params(which="both", bottom=False, top=False, labelbottom=False, left=False)
            axis.tick_params(axis="y", which="both", left=False, right=False)
        axes[0].invert_yaxis()
        stamp = rows[0]
        figure.suptitle(
            f"one jet, one thread, {stamp['device']}, onnxruntime {stamp['onnxruntime']}; "
            "lines: 99th percentile; grey: peers, coloured: this project",
            fontsize=9,
        )
    return figure


def main():
    """Run the command line."""
    parser = argument_parser(__doc__, repeats=5)
    published = published_jets() / "jetclass_hbb_500.npz"
    add = parser.add_argument
    add("--models", nargs="+", default=MODELS, metavar="CARD", help=f"default: {' '.join(MODELS)}")
    add("--jets", type=int, default=100, metavar="N")
    add(
        "--data",
        type=Path,
        default=published if published.exists() else repository.sample_jets(),
        metavar="FILE",
        help="parquet or npz (default: published H->bb jets, or the embedded quark/gluon jets)",
    )
    add("--opening", choices=VARIANTS, help=argparse.SUPPRESS)
    add("--folder", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.opening:
        print_opening(args)
        return
    stamp = profiling.machine_stamp("cpu")
    rows, batches = [], []
    for card in args.models:
        with tempfile.TemporaryDirectory() as folder:
            write_files(card, folder)
            rows += measure(card, args, folder, stamp)
            batches += measure_batches(card, args, folder, stamp)
        write_csv(args.results / "deploy_cpu.csv", rows)
        write_csv(args.results / "deploy_batches_cpu.csv", batches)
    save_figure(draw(rows), args.figures / "deploy_cpu")


if __name__ == "__main__":
    main()
