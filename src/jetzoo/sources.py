"""Files of jets, wherever they lie: which ones a pattern names, and their entries in chunks.

A source is the path or the URL of a file of ROOT (TTree or RNTuple), parquet or HDF5. A ROOT file
with several trees takes the name of one behind a colon: ``file.root:tree``.
"""

import contextlib
import glob
import os
import re
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import awkward as ak
import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import uproot

from jetzoo import UserError, hdf5

URL = re.compile(r"[A-Za-z][\w+.-]*://")
GROUP = re.compile(r"(\w+):(?!//)(.+)")
TREE = re.compile(r"(.+\.root):([^:]+)")

# What a ROOT file calls a table.
TREES = ("TTree", "ROOT::RNTuple")

# Seconds to wait for a server: to accept a connection, and for the next bytes.
CONNECTING, ANSWERING = 15, 60

# The same for the client of root://, which by default tries for more than ten minutes.
XROOTD = {
    "XRD_CONNECTIONRETRY": 1,
    "XRD_CONNECTIONWINDOW": CONNECTING,
    "XRD_REQUESTTIMEOUT": ANSWERING,
    "XRD_STREAMTIMEOUT": ANSWERING,
}

# Bytes of a column of a parquet file that are read at once.
BUFFER = 2**20


class Opened(NamedTuple):
    """An open source.

    Attributes
    ----------
    branches : list of str
    num_entries : int
    chunks : callable
        ``chunks(branches, size, start, stop)`` iterates over arrays of records, of at most ``size``
        entries, none of which reaches beyond a multiple of ``size`` after ``start``; over one of no
        entries if there are none.
    """

    branches: list
    num_entries: int
    chunks: object


def is_url(path):
    """Whether a source is a URL, such as ``root://host//file.root``."""
    return URL.match(str(path)) is not None


def expand(patterns):
    """The sources that patterns stand for, as weaver takes them on its command line.

    Parameters
    ----------
    patterns : iterable of str or Path
        Paths or URLs, with ``*``, ``?`` and ``[...]`` as in a shell; in a URL only with ``*``. With
        ``name:`` in front, the files are of the group of this name.

    Returns
    -------
    dict of str or None to list of str
        The sources of each group, in the order of the patterns, those of one pattern sorted.

    Raises
    ------
    UserError
        If there is no file of a pattern, or the server of a URL does not answer.
    """
    groups = {}
    for pattern in map(str, patterns):
        group, rest = None, pattern
        if not os.path.exists(pattern) and (match := GROUP.fullmatch(pattern)):
            group, rest = match.groups()
        groups.setdefault(group, []).extend(_matches(rest))
    return groups


def listed(patterns):
    """The sources of all groups of :func:`expand`, one after the other."""
    return [source for group in expand(patterns).values() for source in group]


def _matches(pattern):
    """Sources of a pattern; a name without special characters is one, whether it exists or not."""
    location, tree = _split(pattern)
    if is_url(location):
        found = _remote_matches(location) if "*" in location else [location]
    elif os.path.exists(location) or not glob.has_magic(location):
        found = [location]
    else:
        found = sorted(glob.glob(location))
    if not found:
        raise UserError(f"There is no file {pattern}.")
    return [f"{path}:{tree}" if tree else path for path in found]


def _remote_matches(url):
    try:
        return sorted(file.full_name for file in fsspec.open_files(url, "rb", **_options(url)))
    except Exception as error:  # each protocol has its own
        raise _unreadable(url, error) from error


def _split(source):
    """Location of a source, and the name of its tree or None."""
    source = str(source)
    match = None if os.path.exists(source) else TREE.fullmatch(source)
    return match.groups() if match else (source, None)


def name(source):
    """Name of the file of a source, without its ending."""
    location, _ = _split(source)
    return Path(urlsplit(location).path if is_url(location) else location).stem


def state(source):
    """What changes when a file does: its size, the time of its last change, the tag of a server.

    Raises
    ------
    UserError
        If the file is gone, or its server does not answer.
    """
    location, _ = _split(source)
    if not is_url(location):
        found = os.stat(location)
        return [os.path.abspath(location), found.st_size, found.st_mtime_ns]
    try:
        system, path = fsspec.url_to_fs(location, **_options(location))
        found = system.info(path)
    except Exception as error:  # each protocol has its own
        raise _unreadable(source, error) from error
    return [location, *(str(found.get(key)) for key in ("size", "mtime", "ETag", "LastModified"))]


@contextlib.contextmanager
def opened(source, treename=None):
    """Open a source.

    Parameters
    ----------
    source : str or Path
    treename : str, optional
        The tree to read of a ROOT file with several ones; a name behind a colon goes before it.

    Yields
    ------
    Opened

    Raises
    ------
    UserError
        If the file is absent, is damaged or holds no such tree, or its server does not answer; also
        from within ``chunks``, for as long as the source is open.
    """
    location, tree = _split(source)
    suffix = Path(urlsplit(location).path if is_url(location) else location).suffix
    if suffix not in READERS:
        raise UserError(f"{source} is neither .root nor .parquet nor .h5 by its name.")
    if not is_url(location) and not os.path.isfile(location):
        raise UserError(f"There is no file {location}.")
    try:
        with READERS[suffix](location, tree or treename) as file:
            yield file
    except UserError as error:
        raise UserError(f"{source} {error}") from error
    except Exception as error:  # of a damaged file uproot raises anything, RecursionError included
        raise _unreadable(source, error) from error


def _unreadable(source, error):
    """The :class:`jetzoo.UserError` of whatever a library raised."""
    location, _ = _split(source)
    if is_url(location) and isinstance(error, ImportError):
        return UserError(f"{source} cannot be read without: pip install 'jetzoo[remote]'.")
    reason = next(iter(str(error).strip().splitlines()), "").strip(" ,.:")
    kind = Path(urlsplit(location).path).suffix[1:]
    return UserError(f"{source} cannot be read as {kind}: {reason or type(error).__name__}.")


def _options(url):
    """What fsspec should know of a URL; what the client of root:// should, in the environment."""
    if urlsplit(url).scheme not in ("http", "https"):
        for name, value in XROOTD.items():
            os.environ.setdefault(name, str(value))
        return {}
    import aiohttp

    patience = aiohttp.ClientTimeout(None, sock_connect=CONNECTING, sock_read=ANSWERING)
    return {"client_kwargs": {"timeout": patience, "trust_env": True}}


@contextlib.contextmanager
def _root(location, treename):
    options = _options(location) if is_url(location) else {}
    with uproot.open({location: None}, **options) as file:
        tree = _tree(file, treename)

        def chunks(branches, size, start, stop):
            span = {"filter_name": list(branches), "library": "ak", "entry_start": start}
            if start == stop:
                return iter([tree.arrays(**span, entry_stop=stop)])
            return tree.iterate(**span, entry_stop=stop, step_size=size)

        yield Opened(tree.keys(recursive=False), tree.num_entries, chunks)


def _tree(file, treename):
    trees = [name for name, kind in file.classnames(cycle=False).items() if kind in TREES]
    if treename is None and len(trees) == 1:
        return file[trees[0]]
    if treename in trees:
        return file[treename]
    wanted = "one tree" if treename is None else f"a tree {treename!r}"
    raise UserError(f"should hold {wanted}, but holds: {', '.join(trees) or 'none'}.")


@contextlib.contextmanager
def _parquet(location, _):
    with contextlib.ExitStack() as stack:
        place = location
        if is_url(location):
            place = stack.enter_context(fsspec.open(location, "rb", **_options(location)))
        # What is buffered before is kept until the end: of a long file, all of it.
        file = stack.enter_context(pq.ParquetFile(place, buffer_size=BUFFER, pre_buffer=False))

        def chunks(branches, size, start, stop):
            if start == stop:
                yield ak.from_arrow(file.schema_arrow.empty_table().select(list(branches)))
            for batch in _batches(file, list(branches), size, start, stop):
                yield ak.from_arrow(pa.Table.from_batches([batch]))

        yield Opened(list(file.schema_arrow.names), file.metadata.num_rows, chunks)


def _batches(file, branches, size, start, stop):
    """Record batches of the entries from ``start`` to ``stop``, cut as :class:`Opened` says."""
    groups, first, end = [], 0, 0  # row groups, of which `first` is the first entry
    for i in range(file.metadata.num_row_groups):
        begin, end = end, end + file.metadata.row_group(i).num_rows
        if begin < stop and end > start:
            first = first if groups else begin
            groups.append(i)
    for batch in file.iter_batches(size, row_groups=groups, columns=branches):
        begin, first = first, first + batch.num_rows
        at, last = max(begin, start), min(first, stop)
        while at < last:
            length = min(size - (at - start) % size, last - at)
            yield batch.slice(at - begin, length)
            at += length
        if first >= stop:
            return


@contextlib.contextmanager
def _hdf5(location, _):
    if is_url(location):
        raise UserError("is HDF5, which is read from a disk only: copy it first.")
    with hdf5.columns(location) as arrays:

        def chunks(branches, size, start, stop):
            wanted = {name: arrays[name] for name in branches}
            for at in range(start, max(stop, start + 1), size):
                yield hdf5.read(wanted, at, min(at + size, stop))

        yield Opened(list(arrays), len(next(iter(arrays.values()))), chunks)


READERS = {".root": _root, ".parquet": _parquet, ".h5": _hdf5, ".hdf5": _hdf5}
