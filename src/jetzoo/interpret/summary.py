"""The numbers of a study and of its ablations, as rows, sentences and JSON."""

import json

import numpy as np

from .ablation import AUC_LOSS, TOP, ablation_rows, smallest_k
from .sample import TYPES
from .streaming import RATIO_EDGES, WEIGHT_BINS

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


def measure_rows(found):
    """Put all numbers of a :class:`Study` into flat dicts; layers and heads are counted from 1.

    An empty layer, head, class or group stands for all.
    """
    rows = []
    for name, values in found.rows.items():
        rows.append(_row(name, _overall(found.rows, name)))
        for (layer, head), value in np.ndenumerate(values):
            rows.append(_row(name, value, layer + 1, head + 1))
    if found.moved is not None:
        rows += _by_layer("particles_moved", *found.moved)
    if found.cosines is not None and found.cosines.shape[1] > 1:
        heads = found.cosines.shape[1]
        # The mean over pairs of different heads; the diagonal is one.
        pairs = (found.cosines.sum((1, 2)) - heads) / (heads * (heads - 1))
        rows += _by_layer("head_cosine", pairs.mean(), pairs)
    if found.ratios is not None:
        larger, counts = found.ratios[:, RATIO_EDGES[:-1] >= 0].sum(1), found.ratios.sum(1)
        overall = larger.sum() / max(counts.sum(), 1)
        share = np.where(counts > 0, larger / counts.clip(1), np.nan)
        rows += _by_layer("score_exceeds_bias", overall, share)
    for (what, by), values in found.importance.items():
        for (c, group), value in np.ndenumerate(values):
            name = TYPES[group] if by == "type" else group + 1
            rows.append(_row(f"{what}_by_{by}", value, jet_class=found.classes[c], group=name))
    return rows


def _row(measure, value, layer="", head="", jet_class="", group=""):
    value = float(value)
    return {
        "measure": measure,
        "layer": layer,
        "head": head,
        "class": jet_class,
        "group": group,
        "value": value if np.isfinite(value) else None,
    }


def _by_layer(measure, overall, values):
    layers = [_row(measure, value, layer) for layer, value in enumerate(values, start=1)]
    return [_row(measure, overall), *layers]


def _overall(rows, name):
    """Mean over layers and heads, which have the same rows; for ratios, the ratio of the means."""
    for ratio, base in (("same_subjet_ratio", "same_subjet"), ("lepton_ratio", "to_leptons")):
        if name == ratio:
            return rows[base].mean() / rows[f"{base}_chance"].mean()
    return np.nanmean(rows[name])


def summary(found):
    """Average the measures of a :class:`Study` over all layers and heads.

    Returns
    -------
    list of (str, str, float, str)
        Name, meaning, value, and value as text.
    """
    overall = {
        row["measure"]: row["value"]
        for row in measure_rows(found)
        if row["layer"] == "" and row["value"] is not None
    }
    return [
        (name, text, value, f"{100 * value:.2f}%" if name in SHARES else f"{value:.4g}")
        for name, text in MEASURES.items()
        if (value := overall.get(name)) is not None
    ]


def as_json(about, found, ablations, notes):
    """Write ``measures.json``.

    Parameters
    ----------
    about : dict
        What the study is of.
    found : Study
    ablations : list of (Ablation, dict)
    notes : list of str

    Returns
    -------
    str
    """
    weight_edges = np.linspace(0, 1, WEIGHT_BINS + 1)
    content = {
        **about,
        "notes": notes,
        "summary": {name: value for name, _, value, _ in summary(found)},
        "measures": measure_rows(found),
        "weights": _histogram(weight_edges, found.histogram),
        "weights_untrained": _histogram(weight_edges, found.untrained),
        "log10_score_over_bias": _histogram(RATIO_EDGES, found.ratios),
    }
    if ablations:
        content["ablations"] = ablation_rows(ablations)
        content["smallest_k"] = smallest_k(ablations)
    return json.dumps(content, indent=2, allow_nan=False) + "\n"


def _histogram(edges, counts):
    return None if counts is None else {"edges": edges.tolist(), "counts": counts.tolist()}


def top_k_sentence(results):
    """Say what the top-k ablations found."""
    if not any(change.what == "top_k" for change, _ in results):
        return "Only the class attention of this network can be changed."
    k = smallest_k(results)
    if k is None:
        return f"No top-k attention up to k = {TOP[-1]} keeps the AUC within {AUC_LOSS}."
    return f"The top {k} of each row are enough to keep the AUC within {AUC_LOSS}."


def ablation_lines(results):
    """List name and AUC, as text, of all ablations but the single heads."""
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
