"""Arguments that several commands of `jetzoo` share, and what they stand for."""

import ast
from pathlib import Path

from jetzoo import UserError

# What commands read.
JETS = "jets: .root, .parquet or .h5, paths or URLs, with * for many; file.root:tree"


def jet_selection(text):
    """``1000`` to an int, ``3,17`` to a list."""
    if "," not in text:
        return positive_integer(text)
    indices = [int(index) for index in text.split(",") if index.strip()]
    if not indices:
        raise ValueError
    return list(dict.fromkeys(indices))


def add_tagger(parser, data_config=None):
    """Arguments of :func:`load_tagger`; weights are optional with a default data config."""
    parser.add_argument(
        "network",
        help="a model card such as ParT_QuarkGluon_kin, which knows its checkpoint and data "
        "config; or the name of a network such as ParT, or the path of its file",
    )
    default = "" if data_config is None else " (default: random weights)"
    parser.add_argument("--checkpoint", metavar="FILE", help=f"weaver's state dict{default}")
    default = "" if data_config is None else f" (default: {data_config})"
    parser.add_argument(
        "--data-config", metavar="YAML", help=f"path, or e.g. QuarkGluon/qg_kin{default}"
    )
    parser.set_defaults(default_data_config=data_config)
    parser.add_argument("--device", help="default: the GPU if there is one")
    parser.add_argument(
        "--network-option",
        nargs=2,
        action="append",
        default=[],
        metavar=("KEY", "VALUE"),
        help="as in the training; repeat for several",
    )


def resolve(args):
    """Take a model card, or an int8 file, in place of a network, checkpoint and data config."""
    from jetzoo import models
    from jetzoo.tagger import resolve

    known = models.is_card(args.network) or Path(args.network).suffix == ".pt"
    args.is_card = args.checkpoint is None and (known or args.default_data_config is None)
    if args.is_card:
        given = args.network, None, args.data_config
        args.network, args.checkpoint, args.data_config = resolve(*given)
    args.data_config = args.data_config or args.default_data_config


def expand_files(args):
    """Replace patterns of jets among the arguments by the files that they stand for."""
    for name in ("data", "calibration"):
        if getattr(args, name, None):
            from jetzoo import sources  # half a second, which other commands do not need

            setattr(args, name, sources.listed(getattr(args, name)))


def default_folder(args, name):
    """Folder of a report: beside the checkpoint of a user, else in the present folder."""
    beside = args.checkpoint is not None and not args.is_card
    parent = Path(args.checkpoint).parent if beside else Path()
    return Path(args.out or parent / name).absolute()


def input_files(args):
    """The files that a network is made from, which no output may replace."""
    return args.network, args.checkpoint, args.data_config


def load_tagger(args, **options):
    from jetzoo import load

    options = network_options(args) | options
    return load(args.network, args.checkpoint, args.data_config, args.device, **options)


def network_options(args):
    for key, value in args.network_option:
        if key in ("network", "checkpoint", "data_config", "device"):
            raise UserError(f"{key} is no option of a network: --network-option {key} {value}.")
        if key == "embedding":
            raise UserError("An embedding is written by jetzoo predict --embedding.")
    return {key: _literal(key, value) for key, value in args.network_option}


def positive_integer(text):
    value = int(text)
    if value < 1:
        raise ValueError
    return value


def share(text):
    value = float(text)
    if not 0 < value <= 1:
        raise ValueError
    return value


def _literal(key, text):
    """A Python literal, as weaver reads its --network-option."""
    try:
        return ast.literal_eval(text)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError) as error:
        raise UserError(
            f"--network-option {key} {text}: the value must be a Python literal; "
            "text needs its own quotes, as in \"'text'\"."
        ) from error
