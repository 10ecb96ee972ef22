"""ROOT and parquet files alike: list the branches, read some, write a table."""

import contextlib
import os
from pathlib import Path

import awkward as ak
import pyarrow.parquet as pq
import uproot

from jetzoo import UserError

FORMATS = (".root", ".parquet")


def check_format(path):
    """Raise a :class:`jetzoo.UserError` unless the name ends in .root or .parquet."""
    path = Path(path)
    if path.suffix not in FORMATS:
        raise UserError(f"{path} is neither .root nor .parquet by its name.")
    return path


def writable_folder(folder):
    """Make a folder unless it exists, or raise a :class:`jetzoo.UserError`.

    To be called before long work whose result goes there.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"The folder {folder} cannot be made: {error.strerror}.") from error
    if not os.access(folder, os.W_OK):
        raise UserError(f"The folder {folder} is not writable.")
    return folder


@contextlib.contextmanager
def _reading(path):
    """The open file: an uproot tree or a ``ParquetFile``."""
    path = check_format(path)
    if not path.is_file():
        raise UserError(f"There is no file {path}.")
    try:
        if path.suffix == ".parquet":
            with pq.ParquetFile(path) as file:
                yield file
        else:
            with uproot.open(path) as file:
                yield file
    except (OSError, ValueError, uproot.DeserializationError) as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"{path} cannot be read as {path.suffix[1:]}: {reason}") from error


def _tree(file, path, treename):
    trees = [name for name, kind in file.classnames(cycle=False).items() if kind == "TTree"]
    if treename is None and len(trees) == 1:
        return file[trees[0]]
    if treename in trees:
        return file[treename]
    wanted = "one TTree" if treename is None else f"a TTree {treename!r}"
    raise UserError(f"{path} should hold {wanted}, but holds: {', '.join(trees) or 'none'}.")


def describe(path, treename=None):
    """Names of the branches of a file, in order, and its number of entries.

    Parameters
    ----------
    path : str or Path
        A .parquet file, or a .root file with a TTree.
    treename : str, optional
        Needed when a ROOT file holds several trees.

    Returns
    -------
    branches : list of str
    num_entries : int

    Raises
    ------
    UserError
        If the file is absent, is damaged or holds no such tree.
    """
    with _reading(path) as file:
        if isinstance(file, pq.ParquetFile):
            return list(file.schema_arrow.names), file.metadata.num_rows
        tree = _tree(file, path, treename)
        return tree.keys(recursive=False), tree.num_entries


def read(path, branches, treename=None):
    """Branches of a file as an awkward array of records; arguments and errors of `describe`.

    Raises
    ------
    UserError
        Also if a branch is missing; the message names it.
    """
    missing = sorted(set(branches) - set(describe(path, treename)[0]))
    if missing:
        raise UserError(f"{path} has no branch {', '.join(missing)}.")
    with _reading(path) as file:
        if isinstance(file, pq.ParquetFile):
            return ak.from_arrow(file.read(columns=list(branches)))
        return _tree(file, path, treename).arrays(list(branches), library="ak")


@contextlib.contextmanager
def atomic(path):
    """Path to write to, which takes the place of `path` on success and vanishes on failure."""
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write(path, table):
    """Write an awkward array of records, atomically, as weaver would.

    A .root file holds a TTree ``Events``, LZ4-compressed like the .parquet one.
    """
    path = check_format(path)
    with atomic(path) as partial:
        if path.suffix == ".parquet":
            ak.to_parquet(table, partial, compression="LZ4", compression_level=4)
        else:
            with uproot.recreate(partial, compression=uproot.LZ4(4)) as file:
                tree = file.mktree("Events", {name: table[name].type for name in table.fields})
                tree.extend({name: table[name] for name in table.fields})
