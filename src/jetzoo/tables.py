"""ROOT and parquet files alike: list the branches, read some, write a table.

Also where every command asks, before it works, whether its output can be written.
"""

import contextlib
import errno
import os
from pathlib import Path

import awkward as ak
import pyarrow.parquet as pq
import uproot

from jetzoo import UserError

FORMATS = (".root", ".parquet")

# What a disk says that takes no more: full, over the quota, too large, read-only.
REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)

# Bytes of a file name, of which a partial file needs some for itself.
LONGEST_NAME, LONGEST_PARTIAL = 255, 200


def check_format(path):
    """Raise a :class:`jetzoo.UserError` unless the name ends in .root or .parquet."""
    path = Path(path)
    if path.suffix not in FORMATS:
        raise UserError(f"{path} is neither .root nor .parquet by its name.")
    return path


def check_output(path, inputs=(), suffix=None):
    """Check that a file can be written, before long work whose result it is; makes nothing.

    Parameters
    ----------
    path : str or Path
    inputs : iterable of str or Path
        Files that are read for it; None and names of other things are skipped.
    suffix : str, optional
        What the name should end in.

    Returns
    -------
    Path

    Raises
    ------
    UserError
        If the name has another ending or is too long, is that of an input, a folder or a device, or
        its folder is not writable and cannot be made.
    """
    path = Path(path)
    if suffix is not None and path.suffix != suffix:
        raise UserError(f"{path} should end in {suffix}.")
    check_folder(path.parent)
    if len(os.fsencode(path.name)) > LONGEST_NAME:
        raise UserError(f"The file name {path.name[:20]}... is too long.")
    if path.is_dir():
        raise UserError(f"{path} is a folder: give the name of a file in it.")
    if path.exists() and not path.is_file():
        raise UserError(f"{path} is not a file.")
    for other in inputs:
        if other is not None and is_same_file(path, other):
            raise UserError(
                f"The output {path} would replace the input {other}: name another file."
            )
    return path


def is_same_file(path, other):
    """Whether two names, of which one may not exist, stand for one file."""
    try:
        return os.path.samefile(path, other)
    except (OSError, ValueError):
        return os.path.realpath(path) == os.path.realpath(other)


def check_folder(folder):
    """Raise a :class:`jetzoo.UserError` unless a folder is writable or can be made; makes none."""
    folder = Path(folder)
    try:
        existing = next(place for place in (folder, *folder.absolute().parents) if place.exists())
        if not existing.is_dir():
            why = "File exists" if existing == folder else f"{existing} is not a folder"
            raise UserError(f"The folder {folder} cannot be made: {why}.")
    except OSError as error:
        raise UserError(f"The folder {folder} cannot be made: {error.strerror}.") from error
    if any(len(os.fsencode(part)) > LONGEST_NAME for part in folder.parts):
        raise UserError(f"The folder {folder} cannot be made: File name too long.")
    if not os.access(existing, os.W_OK):
        raise UserError(f"The folder {existing} is not writable.")


def writable_folder(folder):
    """Make a folder unless it exists, or raise a :class:`jetzoo.UserError`."""
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"The folder {folder} cannot be made: {error.strerror}.") from error
    if not os.access(folder, os.W_OK):
        raise UserError(f"The folder {folder} is not writable.")
    return folder


@contextlib.contextmanager
def about(path):
    """Let a :class:`jetzoo.UserError` that is raised within name a file."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


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
    except UserError:
        raise
    except Exception as error:  # of a damaged file uproot raises anything, RecursionError included
        reason = next(iter(str(error).strip().splitlines()), "").strip(" ,.:")
        reason = reason or type(error).__name__
        raise UserError(f"{path} cannot be read as {path.suffix[1:]}: {reason}.") from error


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
    """Path to write to, which takes the place of `path` on success and vanishes on failure.

    Raises
    ------
    UserError
        If the disk is full or takes no more; what was there before stays.
    """
    path = Path(path)
    start = os.fsdecode(os.fsencode(path.name)[:LONGEST_PARTIAL])
    partial = path.with_name(f".{start}.{os.getpid()}")
    try:
        yield partial
        partial.replace(path)
    except OSError as error:
        if error.errno not in REFUSALS:
            raise
        raise UserError(f"{path} cannot be written: {os.strerror(error.errno)}.") from error
    finally:
        partial.unlink(missing_ok=True)


def write(path, table):
    """Write an awkward array of records, atomically, as weaver would.

    A .root file holds a TTree ``Events``, LZ4-compressed like the .parquet one.

    Raises
    ------
    UserError
        If the format has no such columns, or the disk is full.
    """
    path = check_format(path)
    with atomic(path) as partial:
        try:
            if path.suffix == ".parquet":
                ak.to_parquet(table, partial, compression="LZ4", compression_level=4)
            else:
                with uproot.recreate(partial, compression=uproot.LZ4(4)) as file:
                    tree = file.mktree("Events", {name: table[name].type for name in table.fields})
                    tree.extend({name: table[name] for name in table.fields})
        except (TypeError, ValueError, RuntimeError) as error:
            raise UserError(f"{path} cannot hold the columns {table.type}: {error}") from error
