"""Jets of parts of files to scores: reading, preparing and tagging go on side by side."""

from typing import NamedTuple

import awkward as ak
import numpy as np

from jetzoo import UserError, tables
from jetzoo.data_config import add_variables, dependencies
from jetzoo.jets import true_labels
from jetzoo.streams import ahead

from .jobs import Part


class PreparedChunk(NamedTuple):
    """Some jets of a part, ready for the network; see :meth:`jetzoo.tagger.Tagger.prepare`."""

    part: Part
    good: np.ndarray
    inputs: tuple
    labels: np.ndarray | None
    observers: dict


def predict_parts(tagger, job, parts, progress=None):
    """Tag the jets of some parts of a job.

    Parameters
    ----------
    tagger : jetzoo.tagger.Tagger
    job : jetzoo.prediction.jobs.Job
    parts : list of Part
        In the order of the job.
    progress : tqdm.tqdm, optional
        Bar to advance, in jets.

    Yields
    ------
    part : Part
    table : ak.Array of records, (num_jets,)
        Branches of the output.
    num_bad : int
        Jets whose scores are NaN.

    Raises
    ------
    UserError
        If a file cannot be read or has been changed, or its branches do not hold what the data
        config takes, or labels are none of its classes; the message names the file.
    """
    # The engine lets go of the interpreter while it computes: what else there is to do needs no
    # process of its own.
    pieces, num_jets, num_bad = [], 0, 0
    for chunk in ahead(_prepare(tagger, job, ahead(_read(tagger, job, parts)))):
        found = tagger.answer(chunk.good, chunk.inputs, job.batch_size, progress)
        pieces.append(job.table(tagger, found, chunk.labels, chunk.observers))
        num_jets += len(found)
        num_bad += int((~chunk.good).sum())
        if num_jets == len(chunk.part):
            yield chunk.part, ak.concatenate(pieces), num_bad
            pieces, num_jets, num_bad = [], 0, 0


def _read(tagger, job, parts):
    """Chunks of the jets of parts: parts that follow one another in a file are read in one go."""
    for run in _runs(parts):
        remaining = iter(run)
        part, position = next(remaining), run[0].start
        span = part.start, run[-1].stop
        treename = tagger.data_config.treename
        for jets in tables.chunks(part.path, job.branches, treename, job.size, *span):
            yield part, position, jets
            position += len(jets)
            if position == part.stop and position < span[1]:
                part = next(remaining)
        if position != span[1]:
            raise UserError(f"{part.path} has been changed: it has fewer jets than before.")


def _runs(parts):
    """Lists of parts, each of which begins where the one before ends."""
    runs = []
    for part in parts:
        if runs and runs[-1][-1].path == part.path and runs[-1][-1].stop == part.start:
            runs[-1].append(part)
        else:
            runs.append([part])
    return runs


def _prepare(tagger, job, chunks):
    """What the network takes, and what is written beside its scores, of each chunk."""
    branches, new_variables = dependencies(tagger.data_config, job.observers)
    for part, start, jets in chunks:
        with tables.about(tables.place(part.path, start, len(jets), job.size)):
            labels = true_labels(tagger, jets) if job.has_labels else None
            good, inputs = tagger.prepare(jets)
            observers = {}
            if job.observers:
                seen = add_variables(jets[sorted(branches)], new_variables)
                observers = {name: seen[name] for name in job.observers}
        yield PreparedChunk(part, good, inputs, labels, observers)
