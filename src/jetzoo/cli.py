"""The `jetzoo` command. Each subcommand adds its arguments and calls one module."""

import argparse
import ast
import sys
from pathlib import Path

from jetzoo import UserError


def add_evaluate(parser):
    parser.add_argument("files", nargs="+", metavar="PRED", help="weaver's .root or .parquet")
    parser.add_argument("--out", metavar="DIR", help="folder for roc.pdf, roc.png, metrics.json")
    parser.add_argument(
        "--data-config", metavar="YAML", help="names the classes of parquet files, which have none"
    )


def run_evaluate(args):
    from rich.console import Console

    from jetzoo import evaluate, tables

    classes = None
    if args.data_config:
        from jetzoo.zoo import read_data_config

        classes = list(read_data_config(args.data_config).label_value)
    jets = evaluate.read_predictions(args.files, classes)
    folder = tables.writable_folder(args.out or Path(args.files[0]).parent)
    metrics = evaluate.evaluate(*jets)
    written = evaluate.write_report(metrics, evaluate.roc_figure(*jets), folder)
    Console().print(*evaluate.summary(metrics))
    for note in metrics["notes"]:
        print(f"note: {note}")
    for path in written:
        print(f"wrote {path}")


def add_predict(parser):
    parser.add_argument("network", help="name of a file in networks/, such as ParT, or a path")
    parser.add_argument("files", nargs="+", metavar="FILE", help="jets, .root or .parquet")
    parser.add_argument("--checkpoint", required=True, metavar="FILE", help="weaver's state dict")
    parser.add_argument(
        "--data-config", required=True, metavar="YAML", help="path, or e.g. QuarkGluon/qg_kin"
    )
    parser.add_argument("--output", required=True, metavar="FILE", help=".root or .parquet")
    parser.add_argument("--batch-size", type=positive_integer, default=512, metavar="N")
    parser.add_argument("--device", help="default: the GPU if there is one")
    parser.add_argument(
        "--network-option",
        nargs=2,
        action="append",
        default=[],
        metavar=("KEY", "VALUE"),
        help="as in the training; repeat for several",
    )


def run_predict(args):
    from jetzoo import tables, zoo

    tables.check_format(args.output)
    options = {key: _literal(key, value) for key, value in args.network_option}
    tagger = zoo.load(args.network, args.checkpoint, args.data_config, args.device, **options)
    if not zoo.predict_files(tagger, args.files, args.output, args.batch_size):
        print("note: The files have no labels; only scores were written.")
    print(f"wrote {args.output}")


def positive_integer(text):
    value = int(text)
    if value < 1:
        raise ValueError
    return value


def _literal(key, text):
    """A Python literal, as weaver reads its --network-option."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError) as error:
        raise UserError(
            f"--network-option {key} {text}: the value must be a Python literal; "
            "text needs its own quotes, as in \"'text'\"."
        ) from error


COMMANDS = (
    ("evaluate", "accuracy, AUC, rejections and ROC of predictions", add_evaluate, run_evaluate),
    ("predict", "scores of a trained network on files of jets", add_predict, run_predict),
)


def main(argv=None):
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="jetzoo", description="A model zoo for weaver.")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, summary, add_arguments, run in COMMANDS:
        subparser = subparsers.add_parser(name, help=summary, description=summary)
        add_arguments(subparser)
        subparser.set_defaults(run=run)
    args = parser.parse_args(argv)
    try:
        args.run(args)
    except UserError as error:
        print(f"jetzoo: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0
