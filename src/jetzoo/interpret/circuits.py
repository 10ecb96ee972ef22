"""Circuits: which parts of a network carry its decision, and how heads pass it on.

Effects are on the log-odds of the true class: its logit less the logarithm of the sum of the
exponentials of the others, which for two classes is the difference of the logits.
"""

from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm

from jetzoo.metrics.numbers import evaluate

from .ablation import Ablation, known
from .corruptions import CORRUPTIONS
from .interventions import Means, edited, nodes, remembering, replacing, resampled, zeros
from .recorder import transformer
from .sample import batch as one_batch

MODES = ("zero", "mean", "resample")
KEPT = 0.95  # of AUC - 1/2, by the heads of a circuit
MOST_HEADS = 8  # between which paths are patched


@dataclass
class Circuit:
    """The result of :func:`find_circuit`.

    Attributes
    ----------
    auc : float
        Of the network.
    effects : list of dict
        Of each ``node`` and ``mode`` of ablation: ``auc_change``; ``log_odds_change``, the mean
        over jets; ``size``, the mean of its absolute value.
    heads : list of Node
        The smallest set that was found of heads that keep 95% of the AUC over 1/2 when all others
        have their mean values; the largest effect first.
    circuit_auc : float
        Of the network with these heads.
    edges : list of dict
        ``corruption``, ``sender``, ``receiver`` (None for all that follows but heads) and
        ``effect``, the share of what corrupting the whole jet does to the log-odds.
    """

    auc: float
    effects: list
    heads: list
    circuit_auc: float
    edges: list


class Patching:
    """A network, some jets, and their values.

    Parameters
    ----------
    tagger : jetzoo.tagger.Tagger
    jets : ak.Array of records, (num_jets,)
        With labels, sorted by their number of particles.
    batch_size : int
    """

    def __init__(self, tagger, jets, batch_size=64):
        self.tagger, self.model, self.core = tagger, tagger.model, transformer(tagger.model)
        self.jets, self.batch_size = jets, batch_size
        self.batches = self.cut(jets)
        self.labels = np.concatenate([b.labels for b in self.batches])
        self.means = Means()
        self.logits = []
        for part in self.batches:
            values = {}
            self.logits.append(self.run(part, remembering(values)))
            self.means.update(values, part.mask)

    def cut(self, jets):
        """Batches of so many jets as there are, in their order."""
        size = self.batch_size
        return [one_batch(self.tagger, jets[k : k + size]) for k in range(0, len(jets), size)]

    @torch.inference_mode()
    def run(self, part, edit, first=None, outputs=None):
        """Logits (B, classes) of a batch with an edit.

        What comes before the node ``first`` is taken from ``outputs``; without ``first``, it is put
        there.
        """
        change = Ablation("none") if first is None else first
        with known(self.core, change, {} if outputs is None else outputs), edited(self.model, edit):
            return self.model(*part.inputs).double()

    def log_odds(self, logits):
        """Of the true class, (num_jets,), from the logits of all batches."""
        logits = torch.cat(logits)
        labels = torch.from_numpy(self.labels).to(logits.device)[:, None]
        others = logits.scatter(1, labels, float("-inf")).logsumexp(1)
        return (logits.gather(1, labels)[:, 0] - others).cpu().numpy()

    def auc(self, logits):
        """AUC of the logits of all batches."""
        scores = torch.cat(logits).softmax(1).cpu().numpy()
        return evaluate(self.labels, scores, self.tagger.classes)["auc"]


def ablation_effects(patching, modes=MODES):
    """Ablate each node by itself; see ``effects`` of :class:`Circuit`."""
    found, clean = [], patching.log_odds(patching.logits)
    todo = [(node, mode) for node in nodes(patching.model) for mode in modes]
    logits = {key: [] for key in todo}
    with tqdm(total=len(todo) * len(patching.labels), unit="jet", desc="ablations") as bar:
        for part in patching.batches:
            values, outputs = {}, {}
            patching.run(part, remembering(values), outputs=outputs)
            sources = {
                "zero": zeros,
                "mean": patching.means,
                "resample": resampled(values, part.mask, patching.means),
            }
            for node, mode in todo:
                edit = replacing([node], sources[mode])
                logits[node, mode].append(patching.run(part, edit, node, outputs))
                bar.update(len(part))
    full = patching.auc(patching.logits)
    for (node, mode), changed in logits.items():
        found.append(
            {
                "node": node,
                "mode": mode,
                "auc_change": patching.auc(changed) - full,
                "log_odds_change": float((patching.log_odds(changed) - clean).mean()),
                "size": float(abs(patching.log_odds(changed) - clean).mean()),
            }
        )
    return found


def smallest_circuit(patching, effects, kept=KEPT):
    """Search greedily for the smallest set of heads that keeps the performance.

    All other heads have their mean values. Heads are taken in the order of the size of their own
    effect until enough is kept; then each of them that can go goes, the smallest effect first.

    Parameters
    ----------
    patching : Patching
    effects : list of dict
        From :func:`ablation_effects`, with the mode "mean".
    kept : float
        Share of AUC - 1/2.

    Returns
    -------
    heads : list of Node
    auc : float
    """
    sizes = {
        e["node"]: e["size"] for e in effects if e["mode"] == "mean" and e["node"].what == "head"
    }
    ranked = sorted(sizes, key=sizes.get, reverse=True)
    goal = 0.5 + kept * (patching.auc(patching.logits) - 0.5)

    def auc(heads):
        edit = replacing([head for head in ranked if head not in heads], patching.means)
        return patching.auc([patching.run(part, edit) for part in patching.batches])

    # Performance need not grow with each head; the number is halved as if it did.
    low, high = 0, len(ranked)
    with tqdm(desc="circuit") as bar:
        while low < high:
            middle = (low + high) // 2
            bar.update()
            low, high = (low, middle) if auc(ranked[:middle]) >= goal else (middle + 1, high)
        heads = ranked[:low]
        for head in reversed(heads.copy()):
            without = [other for other in heads if other != head]
            bar.update()
            if auc(without) >= goal:
                heads = without
    return heads, auc(heads)


def path_effects(patching, heads, corruptions=tuple(CORRUPTIONS)):
    """Patch the paths between heads, and from each to what follows; see ``edges`` of a circuit.

    A sender takes the value of the corrupted jet, while all other heads but the receiver keep those
    of the jet; what the receiver then gives, and nothing else, goes into the network (path
    patching, arXiv 2304.05969).

    Parameters
    ----------
    patching : Patching
    heads : list of Node
    corruptions : sequence of str
        Names in :data:`jetzoo.interpret.corruptions.CORRUPTIONS`.
    """
    model = patching.model
    everything = [node for node in nodes(model) if node.what == "head"]
    pairs = [(s, None) for s in heads]
    pairs += [(s, r) for s in heads for r in heads if s.depth < r.depth]
    clean = patching.log_odds(patching.logits)
    edges = []
    for name in corruptions:
        patched, whole = {pair: [] for pair in pairs}, []
        others = patching.cut(CORRUPTIONS[name](patching.tagger, patching.jets))
        for part, other in zip(tqdm(patching.batches, desc=name), others, strict=True):
            values, corrupted = {}, {}
            patching.run(part, remembering(values))
            whole.append(patching.run(other, remembering(corrupted)))
            bad = _aligned(corrupted, other.mask, values, part.mask)
            good = _source(values)
            for sender, receiver in pairs:
                frozen = replacing([h for h in everything if h not in (sender, receiver)], good)
                send, seen = replacing([sender], bad), {}

                def step(place, value, frozen=frozen, send=send, seen=seen):
                    seen[place] = value
                    return send(place, frozen(place, value))

                logits = patching.run(part, step)
                if receiver is not None:
                    logits = patching.run(part, replacing([receiver], _source(seen)))
                patched[sender, receiver].append(logits)
        lost = float((clean - patching.log_odds(whole)).mean())
        for (sender, receiver), logits in patched.items():
            effect = float((clean - patching.log_odds(logits)).mean()) / lost if lost else 0.0
            edges.append(
                {"corruption": name, "sender": sender, "receiver": receiver, "effect": effect}
            )
    return edges


def _source(values):
    return lambda place, value: values[place]


def _aligned(corrupted, other, values, mask):
    """Values of corrupted jets (B, m) in the places of the jets (B, n), by rank in pT.

    Where the corrupted jet has no particle, the value of the jet stays.
    """
    n = mask.shape[1]
    there = torch.nn.functional.pad(other, (0, max(n - other.shape[1], 0)))[:, :n] & mask

    def source(place, value):
        what, site = place
        if site.kind == "class":
            return corrupted[place]
        new, old = corrupted[place], values[place].clone()  # heads (B, H, n, d)
        length = min(n, new.shape[2])
        fits = there[:, None, :length, None]
        old[:, :, :length] = torch.where(fits, new[:, :, :length], old[:, :, :length])
        return old

    return source


def find_circuit(tagger, jets, batch_size=64):
    """Ablate all nodes, search the smallest circuit and patch its paths.

    Parameters
    ----------
    tagger : jetzoo.tagger.Tagger
    jets : ak.Array of records, (num_jets,)
        With labels of two classes or more, sorted by their number of particles.
    batch_size : int

    Returns
    -------
    Circuit
    """
    patching = Patching(tagger, jets, batch_size)
    effects = ablation_effects(patching)
    heads, auc = smallest_circuit(patching, effects)
    edges = path_effects(patching, heads[:MOST_HEADS])
    return Circuit(patching.auc(patching.logits), effects, heads, auc, edges)
