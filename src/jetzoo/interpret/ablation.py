"""What the scores of a trained network lose without some of its attention."""

from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm

from jetzoo import UserError
from jetzoo.attention.reference import weights as attention_weights
from jetzoo.jets import true_classes
from jetzoo.metrics.numbers import evaluate

from .measures import keep_top
from .recorder import replaced, set_on, sites, transformer
from .sample import batches, in_chunks

TOP = (1, 2, 4, 8, 16)
AUC_LOSS = 0.001


@dataclass(frozen=True)
class Ablation:
    """A change of the attention of a trained network.

    Attributes
    ----------
    what : {"none", "pair_bias", "head", "top_k"}
        Nothing; the pair bias set to zero; the output of a head set to zero; only the k largest
        weights of each row of the particle attention, scaled to sum to one.
    kind : str, optional
        "particle" or "class".
    layer, head : int, optional
        From 0; None for all.
    k : int, optional
    """

    what: str
    kind: str = "particle"
    layer: int | None = None
    head: int | None = None
    k: int | None = None

    def weights(self, site, q, k, bias, mask):
        """Attention weights at a site, see :func:`jetzoo.interpret.replaced`."""
        here = site.kind == self.kind and self.layer in (None, site.layer)
        if here and self.what == "pair_bias":
            bias = None
        weights = attention_weights(q, k, bias, mask)
        if here and self.what == "head":
            weights[:, self.head] = 0
        if here and self.what == "top_k":
            weights = keep_top(weights, self.k)
        return weights


def ablations(model):
    """List the ablations of a network.

    Parameters
    ----------
    model : nn.Module

    Returns
    -------
    list of Ablation
        Nothing, the pair bias, the heads, and the top k: what the network has of them.
    """
    places = sites(model)
    layers = [site.layer for site in places if site.kind == "particle"]
    found = [Ablation("none")]
    if layers and transformer(model).pair_embed is not None:
        found += [Ablation("pair_bias", layer=layer) for layer in (None, *layers)]
    found += [
        Ablation("head", site.kind, site.layer, head)
        for site, attn in places.items()
        for head in range(attn.num_heads)
    ]
    if layers:
        found += [Ablation("top_k", k=k) for k in TOP]
    return found


@torch.inference_mode()
def ablate(tagger, jets, *, batch_size=64):
    """Compute accuracy, AUC and rejections of a network under each of its ablations.

    What comes before the first change is computed once for all of them. The scores are kept.

    Parameters
    ----------
    tagger : jetzoo.tagger.Tagger
    jets : ak.Array of records, (num_jets,), or Survey
        With labels; see :func:`batches`.
    batch_size : int

    Returns
    -------
    list of (Ablation, dict)
        With the metrics of :func:`jetzoo.metrics.numbers.evaluate`; the first is the network as it
        is.

    Raises
    ------
    UserError
        If the jets have no labels or are of one class, or the network has no attention that can
        be changed.
    """
    changes = ablations(tagger.model)
    if len(changes) == 1:
        raise UserError("This network has no attention that an ablation can change.")
    known = [true_classes(tagger, chunk) for chunk in in_chunks(jets)]
    if known[0] is None:
        raise UserError("The jets have no labels of classes, so that ablations have no metrics.")
    if len(np.unique(np.concatenate(known))) < 2:
        raise UserError("The jets are of one class, so that ablations have no AUC.")
    core = transformer(tagger.model)
    scores = [[] for _ in changes]
    labels = []  # in the order of the batches
    with tqdm(total=len(jets) * len(changes), unit="jet", desc="ablations") as bar:
        for part in batches(tagger, jets, batch_size):
            labels.append(part.labels)
            outputs = {}
            for change, found in zip(changes, scores, strict=True):
                with skipping(core, change, outputs), replaced(tagger.model, change.weights):
                    logits = tagger.model(*part.inputs)
                found.append(logits.float().softmax(1).cpu().numpy())
                bar.update(len(part))
    labels = np.concatenate(labels)
    return [
        (change, evaluate(labels, np.concatenate(found), tagger.classes))
        for change, found in zip(changes, scores, strict=True)
    ]


def skipping(core, change, outputs):
    """Context in which what comes before a change is not computed again.

    Parameters
    ----------
    core : nn.Module
        See :func:`jetzoo.interpret.recorder.transformer`.
    change : Ablation
        With "none" the outputs are filled.
    outputs : dict of nn.Module to object
        Of the stages of the network for one batch.
    """
    stages = core.stages()
    if change.what == "none":
        return remembered(stages, outputs)
    blocks = core.blocks if change.kind == "particle" else core.cls_blocks
    before = stages[: stages.index(blocks[change.layer or 0])]
    forwards = {m: lambda *args, output=outputs[m]: output for m in before}
    return set_on(forwards, "forward")


@contextmanager
def remembered(stages, outputs):
    """While open, the outputs of some modules are put into a dict."""

    def remember(module, args, output):
        outputs[module] = output

    handles = []
    try:
        for module in stages:
            handles.append(module.register_forward_hook(remember))
        yield
    finally:
        for handle in handles:
            handle.remove()


def smallest_k(results, loss=AUC_LOSS):
    """Find the smallest k of the top-k ablations that costs at most ``loss`` of the AUC.

    Parameters
    ----------
    results : list of (Ablation, dict)
        From :func:`ablate`.
    loss : float

    Returns
    -------
    int or None
    """
    full = results[0][1]["auc"]
    enough = [
        change.k
        for change, metrics in results
        if change.what == "top_k" and metrics["auc"] >= full - loss
    ]
    return min(enough, default=None)


def ablation_rows(results):
    """Put the results of :func:`ablate` into flat dicts, layers and heads counted from 1."""
    full = results[0][1]
    rows = []
    for change, metrics in results:
        row = {
            "ablation": change.what,
            "kind": change.kind if change.what == "head" else "",
            "layer": "" if change.layer is None else change.layer + 1,
            "head": "" if change.head is None else change.head + 1,
            "k": "" if change.k is None else change.k,
            "accuracy": metrics["accuracy"],
            "auc": metrics["auc"],
            "auc_change": metrics["auc"] - full["auc"],
        }
        for entry in metrics["rejections"]:
            name = f"rejection_{entry['signal']}_{entry['signal_efficiency']:g}"
            row[name] = entry["rejection"]
        rows.append(row)
    return rows
