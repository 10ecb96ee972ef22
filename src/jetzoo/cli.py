"""The `jetzoo` command. Each subcommand adds its arguments and calls one module."""

import argparse
import os
import sys
from importlib import import_module
from pathlib import Path

from jetzoo import UserError, __version__, insight
from jetzoo.arguments import (
    JETS,
    add_tagger,
    default_folder,
    expand_files,
    input_files,
    load_tagger,
    network_options,
    positive_integer,
    resolve,
)
from jetzoo.attention.backends import BACKENDS
from jetzoo.int8.methods import METHODS


def add_evaluate(parser):
    parser.add_argument("files", nargs="+", metavar="PRED", help="weaver's .root or .parquet")
    parser.add_argument("--out", metavar="DIR", help="folder for metrics.json and figures")
    parser.add_argument(
        "--data-config",
        metavar="YAML",
        help="says what labels of type custom are, classes or targets of a regression, and names "
        "the classes of parquet files, which have none",
    )


def run_evaluate(args):
    from rich.console import Console

    from jetzoo import labels, sources, tables
    from jetzoo.metrics import numbers, predictions, regression, report, roc

    files = sources.listed(args.files)
    classes, label, is_regression = None, "_label_", False
    if args.data_config:
        from jetzoo import data_config

        config = data_config.read(args.data_config)
        classes, label = labels.outputs(config), config.label_names[0]
        is_regression = labels.is_regression(config)
    folder = Path(args.out or ("" if sources.is_url(files[0]) else Path(files[0]).parent))
    if args.out:
        tables.check_folder(folder)
    if is_regression:
        jets = (*predictions.read_targets(files, classes), classes)
        measured, figures = regression, regression.figures
    else:
        jets = predictions.read_predictions(files, classes, label)
        measured, figures = numbers, roc.figures
    folder = tables.writable_folder(folder)
    metrics = measured.evaluate(*jets)
    written = report.write_report(metrics, figures(*jets), folder)
    Console().print(*measured.summary(metrics))
    for note in metrics["notes"]:
        print(f"note: {note}")
    for path in written:
        print(f"wrote {path}")


def add_predict(parser):
    add_tagger(parser)
    parser.add_argument(
        "files",
        nargs="+",
        metavar="FILE",
        help=f"{JETS}; group:files",
    )
    parser.add_argument(
        "--output",
        required=True,
        metavar="FILE",
        help=".root or .parquet; {name} in it stands for the name of each input",
    )
    parser.add_argument("--batch-size", type=positive_integer, default=512, metavar="N")
    parser.add_argument("--fast", action="store_true", help="the fast engine: the same scores")
    parser.add_argument(
        "--embedding",
        action="store_true",
        help="write the normalised class token of each jet, too; for ParT and its variants",
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--workers", type=positive_integer, metavar="N", help="share the work among N processes"
    )
    where.add_argument("--dask", metavar="ADDRESS", help="or among a cluster of dask.distributed")


def run_predict(args):
    from jetzoo.prediction import jobs
    from jetzoo.prediction.files import predict_files

    jobs.outputs(args.files, args.output, input_files(args))
    wanted = {"fast": args.fast, "embedding": args.embedding}
    tagger = load_tagger(args, **{name: True for name, is_wanted in wanted.items() if is_wanted})
    found = predict_files(tagger, args.files, args.output, args.batch_size, args.workers, args.dask)
    if not found.has_labels:
        print("note: The files have no labels; only scores were written.")
    if found.num_bad:
        print(
            f"note: {found.num_bad:,} of {found.num_jets:,} jets have values that are NaN or "
            "infinite: their scores are NaN."
        )
    for path in found.outputs:
        print(f"wrote {path}")


def add_models(parser):
    way = parser.add_mutually_exclusive_group()
    way.add_argument(
        "--fetch", nargs="+", metavar="NAME", help="download published weights, such as ParT_kin"
    )
    way.add_argument(
        "--add", nargs="+", metavar="RUN", help="runs of benchmarks/train_zoo.py, with a card each"
    )


def run_models(args):
    from rich.console import Console

    from jetzoo import models

    for name in args.fetch or ():
        print(f"{models.fetch(name)} is the published file")
    for run in args.add or ():
        print(f"wrote {models.add(run)} and its card")
    if not (args.fetch or args.add):
        table, bad = models.table()
        Console().print(table)
        if bad:
            raise UserError(f"Not what the cards say: {', '.join(bad)}.")


def add_profile(parser):
    add_tagger(parser, "QuarkGluon/qg_kin")
    parser.add_argument("--data", nargs="+", metavar="FILE", help=f"{JETS} (default: the sample)")
    parser.add_argument("--train", action="store_true", help="also profile the training step")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--fast", action="store_true", help="profile the fast engine")
    parser.add_argument(
        "--compare",
        nargs="+",
        metavar="NAME",
        help="configurations side by side: base, packed, padded (weaver-core's own "
        "ParT or ParticleNet), fast, bf16, int8 (the fast engine in these precisions), or "
        f"attention backends: {', '.join(BACKENDS)}",
    )
    parser.add_argument("--loader", action="store_true", help="also measure weaver's data loader")
    parser.add_argument("--batch-size", type=positive_integer, default=128, metavar="N")
    parser.add_argument("--repeats", type=positive_integer, default=5, metavar="N")
    parser.add_argument(
        "--out", metavar="DIR", help="default: the folder profile beside the checkpoint, or here"
    )


def run_profile(args):
    # PyTorch's profiler would tell that it starts and stops, and what it did not see begin.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    # As the training scripts do: threads that wait do not spin.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    if args.fast and args.compare:
        raise UserError("--compare has a configuration fast: leave out --fast.")
    options = network_options(args)
    # What --network-option fast True does to weaver's --predict; the training is not changed by it.
    fast = options.pop("fast", False) and not args.train
    names = args.compare or ["base"]
    if args.fast or (fast and not args.compare):
        names = ["bf16" if args.precision == "bf16" else "fast"]

    from rich.console import Console

    from jetzoo import tables
    from jetzoo.profiling import report

    folder = default_folder(args, "profile")
    tables.check_folder(folder)
    found = report.profile(
        args.network,
        args.checkpoint,
        args.data_config,
        args.data or (report.SAMPLE,),
        names=names,
        trains=args.train,
        precision=args.precision,
        device=args.device,
        batch_size=args.batch_size,
        repeats=args.repeats,
        with_loading=args.loader,
        **options,
    )
    found.write(folder)
    Console().print(*found.tables())
    for note in (*found.notes, *(found.loading_sentences() if args.loader else ())):
        print(f"note: {note}")
    print(f"wrote {folder / 'index.html'}, and figures, tables and Chrome traces beside it")


def add_quantize(parser):
    add_tagger(parser)
    parser.add_argument(
        "--calibration",
        nargs="+",
        required=True,
        metavar="FILE",
        help=f"{JETS}, to calibrate with; the validation jets, say",
    )
    parser.add_argument(
        "--data",
        nargs="+",
        required=True,
        metavar="FILE",
        help=f"{JETS}, with labels, to compare on",
    )
    parser.add_argument("--method", default="static", help=f"{', '.join(METHODS)}")
    parser.add_argument("--qat", action="store_true", help="fine-tune for int8; takes some minutes")
    parser.add_argument("--output", required=True, metavar="FILE", help="the int8 network, .pt")


def run_quantize(args):
    from jetzoo import comparison

    comparison.check_output(args.output, (*args.data, *args.calibration, *input_files(args)))
    options = network_options(args)
    args.device = args.device or "cpu"
    comparison.show(
        comparison.compare(
            load_tagger(args),
            args.data,
            args.calibration,
            args.output,
            args.network,
            options,
            args.method,
            args.qat,
        )
    )


def add_export(parser):
    add_tagger(parser)
    written = parser.add_mutually_exclusive_group(required=True)
    written.add_argument(
        "--onnx", metavar="FILE", help="what to write, .onnx; preprocess.json appears beside it"
    )
    written.add_argument("--cpp", metavar="FOLDER", help="a library in C++ to write")
    parser.add_argument("--int8", action="store_true", help="matrix products in int8")
    parser.add_argument(
        "--opset",
        type=int,
        metavar="N",
        help="with --onnx: version of the operators (default: 17)",
    )
    parser.add_argument(
        "--output",
        metavar="WHAT",
        help="with --onnx: probabilities (default), logits, or embedding: what enters the last "
        "layer",
    )
    parser.add_argument(
        "--calibration",
        nargs="+",
        metavar="FILE",
        help="with --cpp: jets to fix the ranges of int8 with (default: they are found at run "
        "time)",
    )


def run_export(args):
    needed = {"opset": "--onnx", "output": "--onnx", "calibration": "--cpp"}
    written = "--cpp" if args.cpp else "--onnx"
    for option, target in needed.items():
        if getattr(args, option) is not None and target != written:
            raise UserError(f"--{option} is an option of {target}: leave it out with {written}.")
    run_export_cpp(args) if args.cpp else run_export_onnx(args)


def run_export_onnx(args):
    from jetzoo import tables
    from jetzoo.export import export

    tables.check_output(args.onnx, input_files(args), ".onnx")
    given = {"opset": args.opset, "output": args.output}
    export(
        args.network,
        args.checkpoint,
        args.data_config,
        args.onnx,
        int8=args.int8,
        **{option: value for option, value in given.items() if value is not None},
        **network_options(args),
    )
    print(f"wrote {args.onnx}, and preprocess.json beside it")


def run_export_cpp(args):
    from jetzoo.cpp import export

    export(
        args.network,
        args.checkpoint,
        args.data_config,
        args.cpp,
        args.int8,
        args.calibration,
        **network_options(args),
    )
    print(f"wrote {args.cpp}")


def add_list(parser):
    parser.add_argument("kind", choices=tuple(LISTS), help="what to list, one name a line")


def run_list(args):
    print(*LISTS[args.kind](), sep="\n")


def _listed(module, name):
    def names():
        found = getattr(import_module(module), name)
        return list(found() if callable(found) else found)

    return names


LISTS = {
    "networks": _listed("jetzoo.repository", "networks"),
    "data": _listed("jetzoo.repository", "data_configs"),
    "models": _listed("jetzoo.models", "read_cards"),
    "backends": _listed("jetzoo.attention.backends", "BACKENDS"),
    "methods": _listed("jetzoo.int8.methods", "METHODS"),
    "observers": _listed("jetzoo.int8.methods", "OBSERVERS"),
}


def add_path(parser):
    parser.add_argument(
        "name",
        help="of a network (ParT), a data config (QuarkGluon/qg_kin), a model (ParT_full) or the "
        "embedded jets of a data set (samples/QuarkGluon)",
    )


def run_path(args):
    from jetzoo import repository

    print(repository.path(args.name))


COMMANDS = (
    ("evaluate", "what predictions are worth, with figures", add_evaluate, run_evaluate),
    ("predict", "scores of a trained network on files of jets", add_predict, run_predict),
    ("attention", "what a trained network looks at", insight.add_attention, insight.run_attention),
    (
        "explore",
        "a page to explore the attention in single jets",
        insight.add_explore,
        insight.run_explore,
    ),
    ("probe", "what a trained network knows, layer by layer", insight.add_probe, insight.run_probe),
    (
        "circuit",
        "which parts of a network carry its decision",
        insight.add_circuit,
        insight.run_circuit,
    ),
    (
        "prune",
        "a network without the layers that its AUC can spare",
        insight.add_prune,
        insight.run_prune,
    ),
    ("profile", "where the time of a network goes", add_profile, run_profile),
    ("quantize", "an int8 form of a network, and what it costs", add_quantize, run_quantize),
    ("export", "a trained network as an ONNX file or a library in C++", add_export, run_export),
    ("models", "list, check and fetch trained weights", add_models, run_models),
    ("list", "names of networks, data configs, models, backends, methods", add_list, run_list),
    ("path", "where a network, data config or model lies", add_path, run_path),
)


def main(argv=None):
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="jetzoo", description="A model zoo for weaver.")
    parser.add_argument("--version", action="version", version=f"jetzoo {__version__}")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, summary, add_arguments, run in COMMANDS:
        subparser = subparsers.add_parser(name, help=summary, description=summary)
        add_arguments(subparser)
        subparser.set_defaults(run=run)
    args = parser.parse_args(argv)
    try:
        if hasattr(args, "network"):
            resolve(args)
        expand_files(args)
        args.run(args)
    except UserError as error:
        print(f"jetzoo: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # `jetzoo list networks | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:  # a full disk, a file that may not be read
        if error.strerror is None:
            raise
        place = f"{error.filename} cannot be used" if error.filename else "Nothing can be written"
        print(f"jetzoo: {place}: {error.strerror}.", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0
