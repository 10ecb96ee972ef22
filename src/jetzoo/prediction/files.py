"""Tag files of jets and write the scores: ``jetzoo.predict_files``."""

import contextlib
import threading
from typing import NamedTuple

import torch
from tqdm import tqdm

from jetzoo import UserError, cluster, tables
from jetzoo.datasets.folder import at_work
from jetzoo.tagger import load

from . import parts as kept
from .jobs import plan, weights_digest
from .stream import predict_parts


class Predicted(NamedTuple):
    """What :func:`predict_files` has done.

    Attributes
    ----------
    num_jets : int
    num_bad : int
        Jets whose scores are NaN, because some of their values are NaN or infinite.
    has_labels : bool
        False if files lack the branches of the labels, so that only scores were written.
    outputs : list of Path
    """

    num_jets: int
    num_bad: int
    has_labels: bool
    outputs: list


def predict_files(tagger, files, output, batch_size=512, workers=None, dask=None):
    """Tag the jets of files and write the scores as weaver does.

    Truth labels, and those observers of the data config that all files have, are written too; so is
    the ``embedding`` of a network that gives one. Files may be of any size: there are a few
    thousand jets in memory at once.

    What is finished is kept in parts in a hidden folder beside the output. The same call after an
    interruption goes on from there. Parts that were made with another network, other weights,
    options or inputs are made again; so are all those of a tagger that :func:`jetzoo.load` did not
    make.

    Parameters
    ----------
    tagger : Tagger
    files : iterable of str or Path
        With the branches of the data config; see :func:`jetzoo.sources.expand`.
    output : str or Path
        ``.root`` or ``.parquet``, see :func:`jetzoo.prediction.jobs.outputs`; appears when
        complete.
    batch_size : int
    workers : int, optional
        Number of processes to do the work with; by default it is done here.
    dask : str, optional
        Address of the scheduler of a cluster that does the work. Its workers find the files, the
        network and the folder of the output under the same paths.

    Returns
    -------
    Predicted

    Raises
    ------
    UserError
        If a file cannot be read or misses branches, or the output cannot be written, before
        anything is computed; or if branches do not hold what the data config takes, labels are none
        of its classes, a file vanishes, the disk is full or workers end. The message names the
        file; finished parts stay.
    """
    if (workers or dask) and tagger.arguments is None:
        raise UserError("Workers load the network themselves: make the tagger with jetzoo.load.")
    jobs = plan(tagger, files, output, batch_size)
    folder = kept.folder_of(tables.check_format(output))
    tables.writable_folder(folder.parent)
    with at_work(folder):
        kept.clean(folder, jobs)
        missing = [(job, kept.missing(folder, job)) for job in jobs]
        total = sum(len(part) for job in jobs for part in job.parts)
        todo = sum(len(part) for _, parts in missing for part in parts)
        with tqdm(total=total, initial=total - todo, unit="jet", desc="predict") as progress:
            if workers or dask:
                _spread(tagger, missing, folder, workers, dask, progress)
            else:
                for job, parts in missing:
                    _work(tagger, job, parts, folder, progress)
        num_bad = sum(kept.join(folder, job) for job in jobs if job.parts)
        kept.clean(folder, [])
    with contextlib.suppress(OSError):
        folder.rmdir()  # unless another run has just begun there
    has_labels = all(job.has_labels for job in jobs)
    return Predicted(total, num_bad, has_labels, [job.output for job in jobs if job.parts])


def _work(tagger, job, parts, folder, progress=None):
    """Tag parts and keep them."""
    for part, table, num_bad in predict_parts(tagger, job, parts, progress):
        kept.keep(folder / part.name, table, num_bad)


def _spread(tagger, missing, folder, workers, dask, progress):
    """Tag parts on a cluster."""
    setup = tagger.arguments, weights_digest(tagger.model), cluster.threads(workers)
    tasks = [
        (*setup, job._replace(parts=[]), part, folder.absolute())
        for job, parts in missing
        for part in parts
    ]
    if not tasks:
        return
    names = [part.path for _, parts in missing for part in parts]
    with cluster.connect(min(workers or 1, len(tasks)), dask) as client:
        for num_jets in cluster.run(client, _predict_part, tasks, names):
            progress.update(num_jets)


_LOADED, _LOADING = {}, threading.Lock()


def _predict_part(arguments, weights, threads, job, part, folder):
    """Tag a part in a worker, which keeps the network for the next one; number of its jets."""
    torch.set_num_threads(threads)
    with _LOADING:
        if weights not in _LOADED:
            _LOADED.clear()
            _LOADED[weights] = _load(arguments, weights)
        tagger = _LOADED[weights]
    tables.writable_folder(folder)
    _work(tagger, job, [part], folder)
    return len(part)


def _load(arguments, weights):
    *given, options = arguments
    tagger = load(*given, **options)
    if weights_digest(tagger.model) != weights:
        raise UserError(f"{given[1]} gives other weights to a worker: it has been changed.")
    return tagger
