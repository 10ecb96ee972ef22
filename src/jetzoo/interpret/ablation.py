"""What the answers of a trained network lose without some of its attention."""

from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from jetzoo import UserError
from jetzoo.attention.reference import weights as attention_weights
from jetzoo.metrics.numbers import evaluate

from .measures import keep_top
from .recorder import replaced, sites, transformer
from .sample import batches, true_labels

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
    """All ablations of a network: :class:`Ablation` "none", the pair bias, the heads, the top k."""
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
    """Accuracy, AUC and rejections of a network under each of its ablations.

    What comes before the first change is computed once for all of them.

    Parameters
    ----------
    tagger : jetzoo.tagger.Tagger
    jets : ak.Array of records, (num_jets,)
        With labels.
    batch_size : int

    Returns
    -------
    list of (Ablation, dict)
        With the metrics of :func:`jetzoo.metrics.numbers.evaluate`; the first is the network as it is.

    Raises
    ------
    UserError
        If the jets have no labels or are of one class, or the network has no attention that can
        be changed.
    """
    changes = ablations(tagger.model)
    if len(changes) == 1:
        raise UserError("This network has no attention that an ablation can change.")
    truth = true_labels(tagger, jets)
    if truth is None:
        raise UserError("The jets have no labels, so that ablations have no metrics.")
    if len(np.unique(truth)) < 2:
        raise UserError("The jets are of one class, so that ablations have no AUC.")
    core = transformer(tagger.model)
    stages = [core.embed, *filter(None, [core.pair_embed]), *core.blocks, *core.cls_blocks]
    scores = [[] for _ in changes]
    labels = []
    with tqdm(total=len(jets) * len(changes), unit="jet", desc="ablations") as bar:
        for part in batches(tagger, jets, batch_size):
            labels.append(part.labels)
            outputs = {}
            for change, found in zip(changes, scores, strict=True):
                if change.what == "none":
                    context = _remembered(stages, outputs)
                else:
                    group = core.blocks if change.kind == "particle" else core.cls_blocks
                    first = stages.index(group[change.layer or 0])
                    context = _replayed({m: outputs[m] for m in stages[:first]})
                with context, replaced(tagger.model, change.weights):
                    logits = tagger.model(*part.inputs)
                found.append(logits.float().softmax(1).cpu().numpy())
                bar.update(len(part))
    labels = np.concatenate(labels)
    return [
        (change, evaluate(labels, np.concatenate(found), tagger.classes))
        for change, found in zip(changes, scores, strict=True)
    ]


@contextmanager
def _remembered(stages: list[nn.Module], outputs):
    def remember(module, args, output):
        outputs[module] = output

    handles = [module.register_forward_hook(remember) for module in stages]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _replayed(outputs):
    for module, output in outputs.items():
        module.forward = lambda *args, output=output: output
    try:
        yield
    finally:
        for module in outputs:
            del module.forward


def smallest_k(results, loss=AUC_LOSS):
    """The smallest k of the top-k ablations that costs at most ``loss`` of the AUC, or None.

    Parameters
    ----------
    results : list of (Ablation, dict)
        From :func:`ablate`.
    loss : float
    """
    full = results[0][1]["auc"]
    enough = [
        change.k
        for change, metrics in results
        if change.what == "top_k" and metrics["auc"] >= full - loss
    ]
    return min(enough, default=None)


def ablation_rows(results):
    """The results of :func:`ablate` as flat dicts, layers and heads counted from 1."""
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
