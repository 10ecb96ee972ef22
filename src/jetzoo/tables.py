"""Files of any format alike: list the branches, read some, write a table.

Also where every command asks, before it works, whether its output can be written.
"""

import contextlib
import errno
import itertools
import os
from pathlib import Path

import awkward as ak
import numpy as np
import pyarrow.parquet as pq
import uproot

from jetzoo import UserError, sources

FORMATS = (".root", ".parquet")

# What a disk says that takes no more: full, over the quota, too large, read-only.
REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)

# Jets that are read and made ready for a network at once.
CHUNK = 4096

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


def place(path, start, num_jets, size):
    """Where some jets of a source are, for messages, which count jets from there.

    Parameters
    ----------
    path : str or Path
    start : int
        The first of them.
    num_jets : int
    size : int
        Jets of a chunk: a source that is shorter is named alone.

    Returns
    -------
    str
    """
    if start == 0 and num_jets < size:
        return str(path)
    return f"{path}, of the jets from {start:,} to {start + num_jets - 1:,}"


def describe(path, treename=None):
    """Names of the branches of a source, in order, and its number of entries.

    Parameters
    ----------
    path : str or Path
        See :mod:`jetzoo.sources`.
    treename : str, optional
        Needed when a ROOT file holds several trees.

    Returns
    -------
    branches : list of str
    num_entries : int

    Raises
    ------
    UserError
        If the file is absent, is damaged or holds no such tree, or its server does not answer.
    """
    with sources.opened(path, treename) as source:
        return source.branches, source.num_entries


def chunks(path, branches, treename=None, size=CHUNK, start=0, stop=None):
    """Branches of a source, some entries after the other.

    Parameters
    ----------
    path, treename
        As of :func:`describe`.
    branches : iterable of str
    size : int or None
        Entries at once, at most: a chunk ends where so many, or a multiple, come after ``start``.
        All that are wanted with None.
    start, stop : int, optional
        The first entry, and that after the last one, if there are so many.

    Yields
    ------
    ak.Array of records
        One of no entries if there are none.

    Raises
    ------
    UserError
        Also if a branch is missing, or the file has become shorter; the message names the file.
    """
    branches = list(branches)
    with sources.opened(path, treename) as source:
        if missing := sorted(set(branches) - set(source.branches)):
            raise UserError(f"has no branch {', '.join(missing)}.")
        last = source.num_entries if stop is None else min(stop, source.num_entries)
        first = min(start, last)
        yield from source.chunks(branches, size or max(last - first, 1), first, last)


def read(path, branches, treename=None, start=0, stop=None):
    """Branches of a source as an awkward array of records; see :func:`chunks`."""
    found = list(chunks(path, branches, treename, None, start, stop))
    return found[0] if len(found) == 1 else ak.concatenate(found)


def pick(path, branches, rows, treename=None):
    """Some entries of a source; see :func:`chunks`.

    Parameters
    ----------
    rows : ndarray of int, (num_rows,)
        Their numbers, one or more, in any order.

    Returns
    -------
    ak.Array of records, (num_rows,)
        In the order of ``rows``.
    """
    order = np.argsort(rows, kind="stable")
    ordered, found, at = rows[order], [], int(rows.min())
    for chunk in chunks(path, branches, treename, start=at, stop=int(rows.max()) + 1):
        here = ordered[np.searchsorted(ordered, at) : np.searchsorted(ordered, at + len(chunk))]
        if len(here):
            found.append(ak.to_packed(chunk[here - at]))
        at += len(chunk)
    return ak.concatenate(found)[np.argsort(order)]


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


def write(path, tables):
    """Write awkward arrays of records, atomically, as weaver would.

    A .root file holds a TTree ``Events``, LZ4-compressed like the .parquet one.

    Parameters
    ----------
    path : str or Path
    tables : ak.Array or iterable of ak.Array
        Of several, with columns of the same types, each becomes a row group.

    Raises
    ------
    UserError
        If the format has no such columns, or the disk is full.
    """
    path = check_format(path)
    tables = iter([tables] if isinstance(tables, ak.Array) else tables)
    first = next(tables)
    with atomic(path) as partial:
        try:
            write = _write_parquet if path.suffix == ".parquet" else _write_root
            write(partial, first, itertools.chain([first], tables))
        except (TypeError, ValueError, RuntimeError) as error:
            raise UserError(f"{path} cannot hold the columns {first.type}: {error}") from error


def _write_parquet(path, first, tables):
    schema = to_arrow(first).schema
    with pq.ParquetWriter(path, schema, compression="LZ4", compression_level=4) as file:
        for table in tables:
            file.write_table(to_arrow(table).cast(schema))


def to_arrow(table):
    """A table as one of arrow, without types that only awkward knows."""
    return ak.to_arrow_table(ak.to_packed(table), extensionarray=False, list_to32=True)


def _write_root(path, first, tables):
    with uproot.recreate(path, compression=uproot.LZ4(4)) as file:
        tree = file.mktree("Events", {name: first[name].type for name in first.fields})
        for table in tables:
            tree.extend({name: table[name] for name in table.fields})
