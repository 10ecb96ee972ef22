"""What a prediction writes, and of which parts of which files."""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

import awkward as ak
import torch

from jetzoo import UserError, __version__, repository, sources, tables
from jetzoo.data_config import dependencies
from jetzoo.jets import label_branches
from jetzoo.metrics.predictions import prediction_table, target_table

# Jets of a part, about: what a kill may lose, and what travels to a worker of a cluster.
PART = 4 * tables.CHUNK

# In the name of an output, stands for that of the input without its ending.
NAME = "{name}"

# URLs that are asked for at once what they hold.
CONNECTIONS = 8


class Part(NamedTuple):
    """Entries ``start`` to ``stop`` of a source, and the file that keeps their scores."""

    path: str
    start: int
    stop: int
    name: str

    def __len__(self):
        return self.stop - self.start


class Job(NamedTuple):
    """One output.

    Attributes
    ----------
    output : Path
    parts : list of Part
    branches : list of str
        What is read.
    has_labels : bool
        Whether all files have the branches of the labels.
    observers : list of str
        Those observers of the data config that all files have.
    size : int
        Jets of a chunk.
    batch_size : int
    """

    output: Path
    parts: list
    branches: list
    has_labels: bool
    observers: list
    size: int
    batch_size: int

    def table(self, tagger, found, labels, observers):
        """The branches of the output.

        Parameters
        ----------
        tagger : jetzoo.tagger.Tagger
        found : ndarray, (num_jets, num_classes + embed_dim)
            See :meth:`jetzoo.tagger.Tagger.outputs`.
        labels : ndarray or None
        observers : dict of array

        Returns
        -------
        ak.Array of records, (num_jets,)
        """
        scores, embedding = found[:, : len(tagger.classes)], found[:, len(tagger.classes) :]
        if tagger.appended is not None:
            observers = {**observers, "embedding": ak.from_numpy(embedding)}
        table = target_table if tagger.is_regression else prediction_table
        return table(self.output.suffix, tagger.classes, scores, labels, observers)


def outputs(files, output, inputs=()):
    """The files of each output.

    Parameters
    ----------
    files : iterable of str or Path
        Patterns, see :func:`jetzoo.sources.expand`.
    output : str or Path
        ``.root`` or ``.parquet``. ``{name}`` in it stands for the name of the input without its
        ending: there is an output for each. Without, there is one for all; of the files of a group,
        given as ``group:pattern``, it has ``_group`` behind its name, as with weaver.
    inputs : iterable of str or Path
        Further files that no output may replace.

    Returns
    -------
    dict of Path to list of str

    Raises
    ------
    UserError
        If an output cannot be written, or would be that of two inputs, or there is no such file.
    """
    output = tables.check_format(output)
    found = {}
    for group, paths in sources.expand(files).items():
        for path in paths:
            if NAME in output.name:
                place = output.with_name(output.name.replace(NAME, sources.name(path)))
                if place in found:
                    raise UserError(
                        f"{found[place][0]} and {path} would both be written to {place}: give them "
                        "in two commands."
                    )
            elif group is None:
                place = output
            else:
                place = output.with_stem(f"{output.stem}_{group}")
            found.setdefault(place, []).append(path)
    everything = [path for paths in found.values() for path in paths]
    for place in found:
        tables.check_output(place, (*everything, *inputs))
    return found


def plan(tagger, files, output, batch_size):
    """The jobs of a prediction.

    Arguments are those of :func:`jetzoo.prediction.files.predict_files`, as are the errors.

    Returns
    -------
    list of Job
    """
    found = outputs(files, output)
    described = _describe(tagger, dict.fromkeys(path for paths in found.values() for path in paths))
    identity = _identity(tagger, batch_size)
    jobs = [
        _job(tagger, place, {path: described[path] for path in paths}, paths, batch_size, identity)
        for place, paths in found.items()
    ]
    if not any(job.parts for job in jobs):
        raise UserError("There are no jets to tag in the files.")
    return jobs


def _describe(tagger, paths):
    """Branches and number of entries of files, and what changes when they do."""

    def describe(path):
        branches, entries = tables.describe(path, tagger.data_config.treename)
        if missing := sorted(tagger.branches - set(branches)):
            raise UserError(f"{path} has no branch {', '.join(missing)}.")
        return branches, entries, sources.state(path)

    # PyTables, which reads HDF5, is not made for threads; servers take their time.
    threads = CONNECTIONS if all(map(sources.is_url, paths)) else 1
    with ThreadPoolExecutor(threads) as pool:
        return dict(zip(paths, pool.map(describe, paths), strict=True))


def _job(tagger, output, described, paths, batch_size, identity):
    config = tagger.data_config
    common = set.intersection(*(set(branches) for branches, _, _ in described.values()))
    has_labels = label_branches(tagger) <= common
    observers = [x for x in config.observer_names if dependencies(config, [x])[0] <= common]
    wanted = tagger.branches | dependencies(config, observers)[0]
    wanted |= label_branches(tagger) if has_labels else set()
    size = max(batch_size, tables.CHUNK)
    step = size * max(1, PART // size)
    parts = []
    for path in paths:
        _, entries, state = described[path]
        for start in range(0, entries, step):
            stop = min(start + step, entries)
            made_of = (identity, path, state, start, stop, sorted(wanted), has_labels, observers)
            digest = _digest(made_of, output.suffix)
            # No number among the parts: without a file, those of the others are the same.
            parts.append(Part(path, start, stop, f"{start:09}-{digest}.parquet"))
    return Job(output, parts, sorted(wanted), has_labels, observers, size, batch_size)


def _identity(tagger, batch_size):
    """What changes when the scores of a jet may."""
    if tagger.arguments is None:
        return uuid4().hex  # Nobody knows what the network will be next time.
    network, checkpoint, *_ = tagger.arguments
    code = None if network is None else _file_digest(repository.network(network))
    return _digest(
        (__version__, code, _file_digest(checkpoint), weights_digest(tagger.model), batch_size),
        (tagger.data_config.options, tagger.data_config.preprocess_params),
        (str(tagger.device), type(tagger.model).__qualname__, tagger.appended, tagger.arguments),
    )


def weights_digest(model):
    """A digest of the weights of a network."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        if isinstance(value, torch.Tensor):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        else:
            digest.update(f"{name} {value}".encode())
    return digest.hexdigest()


def _file_digest(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(*things):
    return hashlib.sha256(json.dumps(things, sort_keys=True, default=str).encode()).hexdigest()[:16]
