"""Everything about the attention of one network, written to a folder and to one page."""

import html
from dataclasses import dataclass

from jetzoo import UserError
from jetzoo import page as pages

from .ablation import ablate, ablation_rows
from .explorer import explorer
from .panels import study_panels
from .recorder import is_graph, transformer
from .sample import check_groups, read_jets
from .studies import Study, initial, look_at_all, study, weight_histogram, with_counterpart
from .summary import ablation_lines, as_json, measure_rows, summary, top_k_sentence
from .survey import FIRST, Survey, finite_jets


@dataclass
class AttentionReport:
    """The result of :func:`explain`: the study, the ablations if asked for, and the figures.

    Attributes
    ----------
    about : dict
        Network, classes and numbers of jets.
    study : Study
    ablations : list of (Ablation, dict)
    panels : list of Panel
    notes : list of str
        Sentences on what is missing.
    explorer : str
        The page of `jetzoo explore` with the jets that are drawn.
    """

    about: dict
    study: Study
    ablations: list
    panels: list
    notes: list
    explorer: str

    def write(self, folder):
        """Write figures (PNG, PDF), measures (CSV, JSON), ablations (CSV) and two pages.

        ``index.html`` shows all figures, ``explore.html`` the jets that are drawn.

        Returns
        -------
        list of Path
        """
        contents = pages.draw(self.panels)
        contents["measures.csv"] = pages.csv_text(measure_rows(self.study))
        contents["measures.json"] = as_json(self.about, self.study, self.ablations, self.notes)
        if self.ablations:
            contents["ablation.csv"] = pages.csv_text(ablation_rows(self.ablations))
        contents["explore.html"] = self.explorer
        contents["index.html"] = self.page(contents)
        return pages.write(folder, contents)

    def tables(self):
        """Put the measures and the ablations into tables for the terminal.

        Returns
        -------
        list of rich.table.Table
        """
        from rich.table import Table

        found, overall = [], summary(self.study)
        if overall:
            found.append(Table("measure", "mean over layers and heads"))
            for _, text, _, value in overall:
                found[-1].add_row(text, value)
        if self.ablations:
            found.append(Table("ablation", "AUC", caption=top_k_sentence(self.ablations)))
            for line in ablation_lines(self.ablations):
                found[-1].add_row(*line)
        return found

    def page(self, contents):
        """Write ``index.html``; ``contents`` hold the figures, see :func:`jetzoo.page.draw`."""
        about = self.about
        lines = [f"{about['num_jets']:,} jets"]
        if about["num_jets_per_class"]:
            pairs = zip(about["classes"], about["num_jets_per_class"], strict=True)
            lines.append(", ".join(f"{number:,} {name}" for name, number in pairs))
        body = [f"<p>{html.escape(line)}</p>" for line in (": ".join(lines), *self.notes)]
        body.append(
            '<p><a href="explore.html">Explore the attention of the jets that are drawn below</a>, '
            "particle by particle.</p>"
        )
        overall = [(text, value) for _, text, _, value in summary(self.study)]
        if overall:
            body.append("<h2>Measures</h2><p>Means over jets, layers and heads.</p>")
            body.append(pages.table(overall))
        if self.ablations:
            body.append("<h2>Ablations</h2>")
            body.append(f"<p>{html.escape(top_k_sentence(self.ablations))}</p>")
            body.append(pages.table(ablation_lines(self.ablations)))
        body += [pages.figure(panel, contents) for panel in self.panels]
        return pages.page(f"Attention of {about['network']}", body)


def explain(
    tagger,
    network,
    files,
    *,
    jets=None,
    with_ablations=False,
    batch_size=64,
    num_subjets=None,
    **options,
):
    """Find out what a trained network looks at.

    Files may be of any size: they are read a chunk at a time, several times. Jets with given
    indices are kept in memory, and so are the scores of ablations.

    Parameters
    ----------
    tagger : jetzoo.tagger.Tagger
    network : str or Path
        The network file of the tagger.
    files : sequence of str or Path
        Jets with the branches of the data config.
    jets : int or sequence of int, optional
        The first so many jets, or the indices of some, each of which is then drawn. By default all.
    with_ablations : bool
        Also measure what the network loses without some of its attention, which takes about fifty
        times as long.
    batch_size : int
    num_subjets : int, optional
        Exclusive-kT subjets; by default 3 for t -> bqq' and 2 for the others.
    **options
        Of the network, for its untrained twin.

    Returns
    -------
    AttentionReport

    Raises
    ------
    UserError
        If the network has nothing to look at, or the jets cannot be read or, for ablations, are not
        of two known classes.
    """
    tagger = with_counterpart(tagger)
    check_network(tagger.model, network)
    check_groups(tagger)
    if jets is None or isinstance(jets, int):
        sample = Survey(tagger, files, jets)
        first, drawn, index, notes = sample.first, sample.typical, sample.index, sample.notes
    else:
        sample, index, notes = finite_jets(tagger, read_jets(tagger, files, jets), jets)
        first, drawn = sample[:FIRST], sample
    # First, because it is what may refuse the jets.
    results = ablate(tagger, sample, batch_size=batch_size) if with_ablations else []
    cut = {"batch_size": batch_size, "num_subjets": num_subjets}
    found = study(tagger, sample, **cut)
    if found.histogram is not None and transformer(tagger.model) is not None:
        untrained = initial(network, tagger, first, **options)
        found.untrained = weight_histogram(untrained, tagger, first, **cut)
    found.drawn = look_at_all(tagger, drawn, index, num_subjets)
    if not found.has_types:
        notes.append("The jets have no particle types: all particles are drawn as dots.")
    if not found.has_subjets:
        notes.append("The fastjet package is not installed: there are no subjets.")
    if found.num_per_class is None:
        notes.append("The jets have no labels: classes are not told apart.")
    about = {
        "network": str(network),
        "classes": tagger.classes,
        "num_jets": found.num_jets,
        "num_jets_per_class": found.num_per_class,
    }
    panels = study_panels(tagger.model, found, results)
    scores = tagger.predict(drawn)
    page, notes = explorer(network, tagger.classes, found.drawn, scores, notes)
    return AttentionReport(about, found, results, panels, notes, page)


def check_network(model, network):
    """Raise a :class:`jetzoo.UserError` unless the network has attention or a counterpart."""
    if transformer(model) is None and not is_graph(model):
        raise UserError(
            f"{network} has no attention to look at: it is no transformer and no graph."
        )
