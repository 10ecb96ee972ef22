"""Everything about the attention of one network, written to a folder and to one page."""

import html
import json
from dataclasses import dataclass

import numpy as np

from jetzoo import UserError
from jetzoo import page as pages
from jetzoo.page import Panel

from . import figures
from .ablation import AUC_LOSS, TOP, ablate, ablation_rows, smallest_k
from .counterparts import implied_attention, shared_buckets, slot_projections
from .recorder import modules_named, transformer
from .sample import TYPES, read_jets, typical
from .streaming import RATIO_EDGES, WEIGHT_BINS, Study, initial, study

MEASURES = {
    "non_binary": "rows with a largest weight below 0.8",
    "argmax_moved": "rows in which the pair bias moves the argmax",
    "particles_moved": "particles with at least one such row",
    "score_exceeds_bias": "pairs with |A| > |U|",
    "entropy": "entropy of a row [nat]",
    "effective_number": "effective number of attended particles",
    "distance": "distance dR to what is attended to",
    "same_subjet": "attention within the own kT subjet",
    "same_subjet_chance": "the same, if attention were uniform",
    "same_subjet_ratio": "subjet attention over chance",
    "to_leptons": "attention to leptons, in jets that have one",
    "to_leptons_chance": "the same, if attention were uniform",
    "lepton_ratio": "lepton attention over chance",
    "head_cosine": "cosine between two heads",
}
SHARES = ("non_binary", "argmax_moved", "particles_moved", "score_exceeds_bias")


@dataclass
class Report:
    """The result of :func:`explain`: the study, the ablations if asked for, and the figures."""

    about: dict
    study: Study
    ablations: list
    panels: list
    notes: list

    def write(self, folder):
        """Write figures (PNG, PDF), measures (CSV, JSON), ablations (CSV) and ``index.html``.

        Returns
        -------
        list of Path
        """
        rows = measure_rows(self.study)
        contents = pages.draw(self.panels)
        contents["measures.csv"] = pages.csv_text(rows)
        contents["measures.json"] = _json(self, rows)
        if self.ablations:
            contents["ablation.csv"] = pages.csv_text(ablation_rows(self.ablations))
        contents["index.html"] = _page(self, contents)
        return pages.write(folder, contents)

    def tables(self):
        """The measures and the ablations as tables for the terminal.

        Returns
        -------
        list of rich.table.Table
        """
        from rich.table import Table

        found = []
        if summary(self):
            found.append(Table("measure", "mean over layers and heads"))
            for _, text, _, value in summary(self):
                found[-1].add_row(text, value)
        if self.ablations:
            found.append(Table("ablation", "AUC", caption=top_k_sentence(self.ablations)))
            for line in _ablation_lines(self.ablations):
                found[-1].add_row(*line)
        return found


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
    Report

    Raises
    ------
    UserError
        If the network has nothing to look at, or the jets cannot be read or, for ablations, are not
        of two known classes.
    """
    check_network(tagger.model, network)
    sample = read_jets(tagger, files, jets)
    # First, because it is what may refuse the jets.
    results = ablate(tagger, sample, batch_size=batch_size) if with_ablations else []
    named = jets is not None and not isinstance(jets, int)
    draw = range(len(sample)) if named else typical(tagger, sample)
    untrained = None
    if transformer(tagger.model) is not None:
        untrained = initial(network, tagger, sample, **options)
    found = study(
        tagger,
        sample,
        draw=draw,
        untrained=untrained,
        batch_size=batch_size,
        num_subjets=num_subjets,
    )
    if named:
        for drawn, index in zip(found.drawn, jets, strict=True):
            drawn.index = index
    notes = []
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
    return Report(about, found, results, _panels(tagger, found, results), notes)


def check_network(model, network):
    """Raise a :class:`jetzoo.UserError` unless the network has attention or a counterpart."""
    if transformer(model) is None and not modules_named(model, "EdgeConv"):
        raise UserError(
            f"{network} has no attention to look at: it is no transformer and no graph."
        )


def _panels(tagger, found, results):
    model, panels = tagger.model, []
    graph = modules_named(model, "EdgeConv")

    def add(name, title, text, figure):
        panels.append(Panel(name, title, text, figure))

    if "non_binary" in found.rows and not graph:
        add(
            "sparsity",
            "Sparsity by layer and head",
            "Rows of the particle attention that are not binary, the number of particles that a "
            "particle effectively looks at, and how often the pair bias decides at whom.",
            figures.sparsity(found),
        )
        add(
            "weights",
            "Distribution of attention weights",
            "All weights of the particle attention, in 20 bins; the untrained network is the same "
            "with initial weights.",
            figures.weight_distribution(found),
        )
    if found.ratios is not None:
        add(
            "score_ratio",
            "Scores against pair bias",
            "Size of the scores A = q.k / sqrt(d) relative to the interaction U that is added to "
            "them; what is beyond the axis is counted at its ends.",
            figures.score_ratio(found),
        )
    if found.importance:
        add(
            "importance",
            "Importance of particles",
            "What the class token looks at, directly and followed down through the layers by "
            "rollout; the dotted line is a token that looks at all particles alike.",
            figures.importance(found),
        )
    if results:
        add(
            "ablation",
            "Ablations",
            "AUC of the trained network when some of its attention is taken away, without any "
            "further training.",
            figures.ablation(results),
        )
    projections = slot_projections(model)
    if projections:
        add(
            "slots",
            "Projections to slots",
            "Which particles, by rank in pT, feed which slot of the keys.",
            figures.slots(projections),
        )
    for drawn in found.drawn:
        _jet_panels(add, model, drawn)
    return panels


def _jet_panels(add, model, drawn):
    jet, n = drawn.index, max(int(drawn.batch.num_particles[0]), 1)
    if modules_named(model, "EdgeConv"):
        add(
            f"jet{jet}_neighbours",
            f"Jet {jet}: neighbour graph",
            "Lines join particles of which one is among the nearest of the other.",
            figures.neighbour_graph(drawn),
        )
        return
    if any(r.kind == "particle" for r in drawn.records):
        add(
            f"jet{jet}_maps",
            f"Jet {jet}: attention matrices",
            "Particles in falling order of pT; each row adds up to one.",
            figures.attention_maps(drawn),
        )
    add(
        f"jet{jet}_graph",
        f"Jet {jet}: attention graph",
        "Width of the lines is attention, the mean over heads; self-attention is not drawn.",
        figures.attention_graph(drawn),
    )
    if any(r.bias is not None for r in drawn.records):
        add(
            f"jet{jet}_interaction",
            f"Jet {jet}: interaction matrix",
            "What the pair embedding adds to the scores of all layers, for each head.",
            figures.interaction(drawn),
        )
    buckets = [m[0, :n, :n] for m in shared_buckets(model, drawn.batch)]
    if buckets:
        add(
            f"jet{jet}_buckets",
            f"Jet {jet}: shared buckets",
            "Share of heads and rounds of hashing in which two particles have the same hash.",
            figures.layer_matrices(buckets, "share of common buckets"),
        )
    implied = [m[:n, :n] for m in implied_attention(model, drawn.batch)]
    implied = [m / m.sum(-1, keepdim=True).clamp(min=1e-12) for m in implied]
    if implied:
        add(
            f"jet{jet}_scan",
            f"Jet {jet}: implied attention of the scan",
            "Size of the coefficient with which the scan carries a particle to a later one, the "
            "mean over channels, rows scaled to one.",
            figures.layer_matrices(
                implied, "implied attention\n(square-root scale)", norm=figures.WEIGHT_NORM
            ),
        )


def measure_rows(found):
    """All numbers of a :class:`Study` as flat dicts; layers and heads are counted from 1.

    An empty layer, head, class or group stands for all.
    """
    rows = []

    def add(measure, value, layer="", head="", jet_class="", group=""):
        value = float(value)
        rows.append(
            {
                "measure": measure,
                "layer": layer,
                "head": head,
                "class": jet_class,
                "group": group,
                "value": value if np.isfinite(value) else None,
            }
        )

    for name, values in found.rows.items():
        add(name, _overall(found.rows, name))
        for (layer, head), value in np.ndenumerate(values):
            add(name, value, layer + 1, head + 1)
    if found.moved is not None:
        add("particles_moved", found.moved[0])
        for layer, value in enumerate(found.moved[1]):
            add("particles_moved", value, layer + 1)
    if found.cosines is not None and found.cosines.shape[1] > 1:
        heads = found.cosines.shape[1]
        # The mean over pairs of different heads; the diagonal is one.
        pairs = (found.cosines.sum((1, 2)) - heads) / (heads * (heads - 1))
        add("head_cosine", pairs.mean())
        for layer, value in enumerate(pairs):
            add("head_cosine", value, layer + 1)
    if found.ratios is not None:
        larger = found.ratios[:, RATIO_EDGES[:-1] >= 0].sum(1)
        add("score_exceeds_bias", larger.sum() / max(found.ratios.sum(), 1))
        for layer, value in enumerate(larger / found.ratios.sum(1).clip(1)):
            add("score_exceeds_bias", value, layer + 1)
    for (what, by), values in found.importance.items():
        for (c, group), value in np.ndenumerate(values):
            name = TYPES[group] if by == "type" else group + 1
            add(f"{what}_by_{by}", value, jet_class=found.classes[c], group=name)
    return rows


def _overall(rows, name):
    """Mean over layers and heads, which have the same rows; of ratios, the ratio of the means."""
    for ratio, base in (("same_subjet_ratio", "same_subjet"), ("lepton_ratio", "to_leptons")):
        if name == ratio:
            return rows[base].mean() / rows[f"{base}_chance"].mean()
    return rows[name].mean()


def summary(report):
    """Measures over all layers and heads: list of (name, meaning, value, value as text)."""
    overall = {
        row["measure"]: row["value"]
        for row in measure_rows(report.study)
        if row["layer"] == "" and row["value"] is not None
    }
    return [
        (name, text, value, f"{100 * value:.2f}%" if name in SHARES else f"{value:.4g}")
        for name, text in MEASURES.items()
        if (value := overall.get(name)) is not None
    ]


def _json(report, rows):
    found = report.study
    content = {
        **report.about,
        "notes": report.notes,
        "summary": {name: value for name, _, value, _ in summary(report)},
        "measures": rows,
        "weights": _histogram(np.linspace(0, 1, WEIGHT_BINS + 1), found.histogram),
        "weights_untrained": _histogram(np.linspace(0, 1, WEIGHT_BINS + 1), found.untrained),
        "log10_score_over_bias": _histogram(RATIO_EDGES, found.ratios),
    }
    if report.ablations:
        content["ablations"] = ablation_rows(report.ablations)
        content["smallest_k"] = smallest_k(report.ablations)
    return json.dumps(content, indent=2, allow_nan=False) + "\n"


def _histogram(edges, counts):
    return None if counts is None else {"edges": edges.tolist(), "counts": counts.tolist()}


def _page(report, contents):
    about = report.about
    lines = [f"{about['num_jets']:,} jets"]
    if about["num_jets_per_class"]:
        pairs = zip(about["classes"], about["num_jets_per_class"], strict=True)
        lines.append(", ".join(f"{number:,} {name}" for name, number in pairs))
    body = [f"<p>{html.escape(line)}</p>" for line in (": ".join(lines), *report.notes)]
    if summary(report):
        body.append("<h2>Measures</h2><p>Means over jets, layers and heads.</p>")
        body.append(pages.table([(text, value) for _, text, _, value in summary(report)]))
    if report.ablations:
        body.append("<h2>Ablations</h2>")
        body.append(f"<p>{html.escape(top_k_sentence(report.ablations))}</p>")
        body.append(pages.table(_ablation_lines(report.ablations)))
    body += [pages.figure(panel, contents) for panel in report.panels]
    return pages.page(f"Attention of {about['network']}", body)


def top_k_sentence(results):
    """What the top-k ablations found."""
    if not any(change.what == "top_k" for change, _ in results):
        return "Only the class attention of this network can be changed."
    k = smallest_k(results)
    if k is None:
        return f"No top-k attention up to k = {TOP[-1]} keeps the AUC within {AUC_LOSS}."
    return f"The top {k} of each row are enough to keep the AUC within {AUC_LOSS}."


def _ablation_lines(results):
    """AUC of all ablations but the single heads: (name, AUC)."""
    lines = []
    for change, metrics in results:
        name = {
            "none": "nothing changed",
            "pair_bias": "no pair bias in "
            + ("any layer" if change.layer is None else f"layer {change.layer + 1}"),
            "top_k": f"top {change.k} of each row",
        }.get(change.what)
        if name is not None:
            lines.append((name, f"{metrics['auc']:.4f}"))
    return lines
