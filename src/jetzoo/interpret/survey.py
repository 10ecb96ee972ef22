"""Jets of files of any size: what a report shows of them, and all of them, chunk by chunk."""

import awkward as ak
import numpy as np
from tqdm import tqdm

from jetzoo import UserError
from jetzoo.jets import JetFiles, finite, num_particles, true_classes
from jetzoo.streams import ahead

from .sample import TYPE_BRANCHES

# Jets that show what attention looks like before the training.
FIRST = 500


class Survey:
    """The jets of files whose inputs are finite, read anew, a chunk at a time, at each iteration.

    They are all checked in a first pass, which also keeps the few that a report shows.

    Parameters
    ----------
    tagger : jetzoo.tagger.Tagger
    files : sequence of str or Path
    limit : int, optional
        The first so many jets; by default all.

    Attributes
    ----------
    first : ak.Array of records
        The first 500 of them.
    typical : ak.Array of records
        See :class:`TypicalJets`.
    index : list of int
        The numbers of the typical ones among the jets of the files.
    notes : list of str
        A sentence on what was left out.

    Raises
    ------
    UserError
        If the jets cannot be read, or none of them is finite; see :class:`jetzoo.jets.JetFiles`.
    """

    def __init__(self, tagger, files, limit=None):
        self.tagger, self.limit = tagger, limit
        self.files = JetFiles(tagger, files, TYPE_BRANCHES)
        self._num_jets, total = 0, 0
        first, typical = [], TypicalJets(tagger)
        expected = min(limit or self.files.num_jets, self.files.num_jets)
        with tqdm(total=expected, unit="jet", desc="jets") as bar:
            for start, jets in self.files.chunks(limit):
                good = np.flatnonzero(finite(tagger, jets))
                if self._num_jets < FIRST:
                    first.append(ak.to_packed(jets[good[: FIRST - self._num_jets]]))
                typical.update(start + good, jets[good])
                self._num_jets += len(good)
                total += len(jets)
                bar.update(len(jets))
        self.notes = left_out(self._num_jets, total)
        self.first = ak.concatenate(first)
        self.index, self.typical = typical.result()

    def __len__(self):
        return self._num_jets

    def __iter__(self):
        for _, jets in ahead(self.files.chunks(self.limit)):
            good = finite(self.tagger, jets)
            if good.any():
                yield jets if good.all() else jets[good]


class TypicalJets:
    """One jet of each class, the first that has enough particles, else that of most particles.

    Parameters
    ----------
    tagger : jetzoo.tagger.Tagger
    enough : int
        Particles.
    """

    def __init__(self, tagger, enough=10):
        self.tagger, self.enough = tagger, enough
        self.found = {}  # class -> particles, number of the jet, jet

    def update(self, index, jets):
        """Look at more jets (num_jets,), of which ``index`` are the numbers."""
        labels = true_classes(self.tagger, jets)
        labels = np.zeros(len(jets), int) if labels is None else labels
        counts = num_particles(self.tagger, jets).clip(max=self.enough)
        for label in np.unique(labels):
            here = np.flatnonzero(labels == label)
            best = here[counts[here].argmax()]  # the first of several
            if label not in self.found or counts[best] > self.found[label][0]:
                jet = ak.to_packed(jets[best : best + 1])
                self.found[label] = counts[best], int(index[best]), jet

    def result(self, most=3):
        """Those of the first ``most`` classes.

        Returns
        -------
        index : list of int
        jets : ak.Array of records
        """
        chosen = [self.found[label] for label in sorted(self.found)[:most]]
        return [index for _, index, _ in chosen], ak.concatenate([jet for *_, jet in chosen])


def finite_jets(tagger, sample, selection):
    """Leave out jets with inputs that are NaN or infinite, of which there is no attention.

    Returns
    -------
    jets : ak.Array of records
    index : ndarray of int
        Of each jet among those of the files.
    notes : list of str
        A sentence on what was left out.
    """
    named = selection is not None and not isinstance(selection, int)
    index = np.asarray(selection) if named else np.arange(len(sample))
    good = finite(tagger, sample)
    notes = left_out(int(good.sum()), len(good))
    return (sample[good], index[good], notes) if notes else (sample, index, notes)


def left_out(num_finite, num_jets):
    """Say in a list of sentences what is left out, or raise a UserError if that is everything."""
    if not num_finite:
        raise UserError("All jets have particles with inputs that are NaN or infinite.")
    if num_finite == num_jets:
        return []
    return [
        f"{num_jets - num_finite:,} of {num_jets:,} jets have NaN or infinite inputs: they are "
        "left out."
    ]
