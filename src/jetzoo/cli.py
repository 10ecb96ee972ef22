"""The `jetzoo` command. Each subcommand adds its arguments and calls one module."""

import argparse
import os
import sys
from importlib import import_module
from pathlib import Path

from jetzoo import UserError, __version__
from jetzoo.arguments import (
    add_tagger,
    default_folder,
    expand_files,
    input_files,
    jet_selection,
    load_tagger,
    network_options,
    positive_integer,
    resolve,
)
from jetzoo.attention.backends import BACKENDS
from jetzoo.int8.methods import METHODS

JETS = "jets: .root, .parquet or .h5, paths or URLs, with * for many; file.root:tree"


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


def add_attention(parser):
    _add_jets(parser, "all; those with indices are drawn", "attention", subjets=True)
    parser.add_argument(
        "--ablate", action="store_true", help="measure what is lost without some of the attention"
    )


def run_attention(args):
    from jetzoo import interpret

    options = {"with_ablations": args.ablate, "num_subjets": args.subjets}
    _write_report(args, "attention", interpret.explain, **options)


def add_explore(parser):
    _add_jets(parser, "50 at equal distances", subjets=True)
    parser.add_argument("--out", required=True, metavar="FILE", help="the page, .html")


def run_explore(args):
    from jetzoo import interpret, tables
    from jetzoo import page as pages

    out = tables.check_output(args.out, (*args.data, *input_files(args)), ".html")
    tagger = load_tagger(args)
    page, notes = interpret.explore(
        tagger, args.network, args.data, jets=args.jets, num_subjets=args.subjets
    )
    pages.write(out.parent, {out.name: page})
    for note in notes:
        print(f"note: {note}")
    print(f"wrote {out}, {len(page) / 1e6:.1f} MB; open it in a browser")


def add_probe(parser):
    _add_jets(parser, "all", "probes")


def run_probe(args):
    from jetzoo import interpret

    _write_report(args, "probes", interpret.probe)


def add_circuit(parser):
    _add_jets(parser, "300 at equal distances", "circuit")


def run_circuit(args):
    from jetzoo import interpret

    _write_report(args, "circuit", interpret.circuit)


def _add_jets(parser, default, folder=None, subjets=False):
    """Arguments of a command that looks into a network at some jets."""
    add_tagger(parser)
    parser.add_argument("--data", nargs="+", required=True, metavar="FILE", help=JETS)
    text = "the first N jets, or the jets with these indices; '7,' is jet 7 alone"
    parser.add_argument(
        "--jets", type=jet_selection, metavar="N|I,J,...", help=f"{text} (default: {default})"
    )
    if subjets:
        text = "default: 3 for t -> bqq', 2 for the others"
        parser.add_argument("--subjets", type=int, choices=(2, 3), help=text)
    if folder is not None:
        text = f"default: the folder {folder} beside the checkpoint, or here for a model card"
        parser.add_argument("--out", metavar="DIR", help=text)
        parser.add_argument("--batch-size", type=positive_integer, default=64, metavar="N")


def _write_report(args, name, find, **options):
    """Find something out about a network, write it to a folder, and print it."""
    from rich.console import Console

    from jetzoo import tables

    folder = default_folder(args, name)
    tables.check_folder(folder)
    options |= {"jets": args.jets, "batch_size": args.batch_size, **network_options(args)}
    report = find(load_tagger(args), args.network, args.data, **options)
    report.write(folder)
    Console().print(*report.tables())
    for note in report.notes:
        print(f"note: {note}")
    print(f"wrote {folder / 'index.html'}, and figures and tables beside it")


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
    output = parser.add_mutually_exclusive_group(required=True)
    output.add_argument("--onnx", metavar="FILE", help="what to write, .onnx")
    output.add_argument("--cpp", metavar="FOLDER", help="a library in C++ to write")
    parser.add_argument("--int8", action="store_true", help="matrix products in int8")
    parser.add_argument(
        "--calibration",
        nargs="+",
        metavar="FILE",
        help="jets to fix the ranges of int8 with (default: they are found at run time)",
    )


def run_export(args):
    if args.cpp:
        run_export_cpp(args)
    else:
        run_export_onnx(args)


def run_export_onnx(args):
    from jetzoo import tables
    from jetzoo.export import export

    tables.check_output(args.onnx, (*(args.calibration or ()), *input_files(args)), ".onnx")
    export(
        args.network,
        args.checkpoint,
        args.data_config,
        args.onnx,
        args.int8,
        args.calibration,
        **network_options(args),
    )
    print(f"wrote {args.onnx}")


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
    ("attention", "what a trained network looks at", add_attention, run_attention),
    ("explore", "a page to explore the attention in single jets", add_explore, run_explore),
    ("probe", "what a trained network knows, layer by layer", add_probe, run_probe),
    ("circuit", "which parts of a network carry its decision", add_circuit, run_circuit),
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
