"""What the training scripts ask before a training: can it start, and how many jets does it have?

Prints the numbers of jets to train and to validate on. Ends with one sentence and exit code 2 where
weaver would end in a traceback after it has begun.
"""

import argparse
import ast
import inspect
import sys
from pathlib import Path

from jetzoo import UserError, data_config, repository, tables, tagger


def describe(path, treename):
    """Branches and number of jets of a file that weaver reads, see :func:`jetzoo.tables.describe`.

    Also of HDF5 files, which hold one array for each branch.
    """
    if Path(path).suffix == ".awkd":
        raise UserError(f"The jets of {path} cannot be counted: give --samples-per-epoch.")
    if Path(path).suffix != ".h5":
        return tables.describe(path, treename)
    import tables as pytables

    try:
        with pytables.open_file(path) as file:
            lengths = {node._v_name: len(node) for node in file.root if hasattr(node, "__len__")}
    except Exception as error:  # of the library below, which has its own classes
        reason = repository.reason(error)
        raise UserError(f"{path} cannot be read as h5: {reason}.") from error
    return list(lengths), max(lengths.values(), default=0)


def count(files, config, branches):
    """Number of jets in files, which must have some branches.

    Parameters
    ----------
    files : list of str
    config : weaver.utils.data.config.DataConfig
    branches : set of str

    Returns
    -------
    int

    Raises
    ------
    UserError
        If a file is damaged, lacks a branch or has no jets at all.
    """
    total = 0
    for path in files:
        found, number = describe(path, config.treename)
        missing = sorted(branches - set(found))
        if missing:
            raise UserError(
                f"{path} has no branch {', '.join(missing)}, which the data config needs."
            )
        total += number
    return total


def check_network(network, config, options, with_attention):
    """Build a network and run it, with a backend for its attention if that was asked for.

    A network whose file has loops of its own is only built: they may call it in another way.

    Parameters
    ----------
    network, config : str
        Paths of the network file and of the data config.
    options : dict
    with_attention : bool

    Raises
    ------
    UserError
        If that fails, or nothing in the network takes the backend.
    """
    name = Path(network).stem
    if with_attention:
        options = {**options, "attention": "reference"}
    try:
        if repository.has_own_loops(network):
            model, _ = repository.build_network(network, data_config.read(config), **options)
        else:
            model = tagger.untrained(network, config, "cpu", **options).model
    except UserError as error:
        if with_attention:
            raise UserError(f"--attention is not for {name}: {error}") from error
        raise
    classes = {cls for module in model.modules() for cls in type(module).__mro__}
    if with_attention and not any(
        "attention" in inspect.signature(cls.__init__).parameters for cls in classes
    ):
        raise UserError(f"--attention is not for {name}, which does nothing with that option.")


def main():
    """Check, and print the numbers of jets; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("network", help="path of the network file")
    parser.add_argument("data_config", help="path of the data config")
    parser.add_argument("--option", nargs=2, action="append", default=[], help="of the network")
    parser.add_argument("--attention", action="store_true", help="it must have this option")
    parser.add_argument("--train", nargs="*", default=[], help="files to train with")
    parser.add_argument("--val", nargs="*", default=[], help="files to validate with")
    parser.add_argument("--share", type=float, help="of the jets to train on, without --val")
    parser.add_argument("--test", nargs="*", default=[], help="files to predict")
    args = parser.parse_args()
    try:
        config = data_config.read(args.data_config)
        options = {name: ast.literal_eval(value) for name, value in args.option}
        check_network(args.network, args.data_config, options, args.attention)
        train, val = (
            count(files, config, config.train_load_branches) for files in (args.train, args.val)
        )
        if args.share is not None:
            total, train = train, int(train * args.share)
            val = total - train
        count(args.test, config, config.test_load_branches)
        print(train, val)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
