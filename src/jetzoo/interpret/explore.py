"""`jetzoo explore`: jets and their attention in one page that a reader can take in hand."""

from jetzoo import UserError, tables

from .explorer import explorer, spread
from .report import check_network
from .sample import read_jets
from .studies import look_at_all, with_counterpart
from .survey import finite_jets

# How many jets a page shows where none are named.
JETS = 50


def explore(tagger, network, files, *, jets=None, num_subjets=None):
    """Make a page to explore the attention in some jets.

    Parameters
    ----------
    tagger : jetzoo.tagger.Tagger
    network : str or Path
        The network file of the tagger.
    files : sequence of str or Path
        Jets with the branches of the data config.
    jets : int or sequence of int, optional
        The first so many jets, or the indices of some. By default 50, at equal distances.
    num_subjets : int, optional
        Exclusive-kT subjets; by default 3 for t -> bqq' and 2 for the others.

    Returns
    -------
    page : str
        HTML that needs no other file.
    notes : list of str
        Sentences on what is missing.

    Raises
    ------
    UserError
        If the network has nothing to look at, or the jets cannot be read.
    """
    tagger = with_counterpart(tagger)
    check_network(tagger.model, network)
    if jets is None:
        treename = tagger.data_config.treename
        total = sum(tables.describe(path, treename)[1] for path in files)
        if total == 0:
            raise UserError("There are no jets in the files.")
        jets = spread(total, JETS)
    sample, index, notes = finite_jets(tagger, read_jets(tagger, files, jets), jets)
    scores = tagger.predict(sample)
    drawn = look_at_all(tagger, sample, index, num_subjets)
    if all((d.batch.types < 0).all() for d in drawn):
        notes.append("The jets have no particle types: all particles are drawn as dots.")
    if drawn[0].batch.subjets is None:
        notes.append("The fastjet package is not installed: there are no subjets.")
    if drawn[0].batch.labels is None:
        notes.append("The jets have no labels: none can be told to be wrong.")
    return explorer(network, tagger.classes, drawn, scores, notes)
