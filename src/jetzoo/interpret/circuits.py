"""Circuits: which parts of a network carry its decision, and how heads pass it on.

Effects are on the log-odds of the true class: its logit less the logarithm of the sum of the
exponentials of the others, which for two classes is the difference of the logits.
"""

import copy
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from tqdm import tqdm

from jetzoo.engine.batching import parallel
from jetzoo.metrics.numbers import evaluate

from .corruptions import CORRUPTIONS
from .errors import auc_error, mean_error, ratio_error
from .explorer import spread
from .interventions import Means, nodes, resampled, zeros
from .recorder import transformer
from .replay import Replay
from .sample import batch as one_batch

MODES = ("zero", "mean", "resample")
MOST_HEADS = 12  # between which paths are patched
EDITED = 1000  # jets of the ablations, the search and the paths


@dataclass
class Circuit:
    """The result of :func:`find_circuit`.

    Attributes
    ----------
    auc : float
        Of the network.
    effects : list of dict
        Of each ``node`` and ``mode`` of ablation: ``auc_change``; ``log_odds_change``, the mean
        over jets; ``size``, the mean of its absolute value. The first two with their standard
        errors ``auc_change_error`` and ``log_odds_change_error``, of the same jets with and
        without.
    heads : list of Node
        The smallest set that was found of heads that keep enough of the AUC when all others have
        their mean values; the largest effect first.
    circuit_auc : float
        Of the network with these heads.
    edges : list of dict
        ``corruption``, ``sender``, ``receiver`` (None for all that follows but heads) and
        ``effect``, the share of what corrupting the whole jet does to the log-odds, with its
        standard error ``effect_error``.
    num_edited : int
        Jets of the effects, the search and the edges.
    """

    auc: float
    effects: list
    heads: list
    circuit_auc: float
    edges: list
    num_edited: int


class Patching:
    """A network, some jets in batches, and their logits.

    Parameters
    ----------
    tagger : jetzoo.tagger.Tagger
    jets : ak.Array of records, (num_jets,)
        With labels, sorted by their number of particles.
    batch_size : int
    """

    def __init__(self, tagger, jets, batch_size=64):
        self.tagger, self.model = tagger, tagger.model
        self.jets, self.batch_size = jets, batch_size
        self.batches = self.cut(jets)
        self.labels = np.concatenate([b.labels for b in self.batches])
        # A replay changes the modules of its network while it runs: each thread has one of its own.
        threads = torch.get_num_threads() if tagger.device.type == "cpu" else 1
        others = min(threads, len(self.batches)) - 1
        self.models = [self.model, *(copy.deepcopy(self.model) for _ in range(others))]

    def cut(self, jets):
        """Batches of so many jets as there are, in their order."""
        size = self.batch_size
        return [one_batch(self.tagger, jets[k : k + size]) for k in range(0, len(jets), size)]

    def side_by_side(self, function, items, desc=None):
        """``[function(model, item) for item in items]``, each on one thread, on all of them.

        Parameters
        ----------
        function : callable
        items : sequence
            One for each batch: those of a batch have the same model each time.
        desc : str, optional
            Title of a progress bar of jets; without one there is no bar.

        Returns
        -------
        list
        """
        found, count = [None] * len(items), len(self.models)
        total = len(self.labels)
        with tqdm(total=total, unit="jet", desc=desc, disable=desc is None) as bar:

            def share(worker):
                for k in range(worker, len(items), count):
                    found[k] = function(self.models[worker], items[k])
                    bar.update(len(self.batches[k]))

            parallel(share, range(count), count)
        return found

    @cached_property
    def starts(self):
        """A :class:`Replay` of each batch that remembers what is before the first block."""
        return self.side_by_side(_start, self.batches, "network")

    @property
    def logits(self):
        """Logits of each batch."""
        return [start.logits for start in self.starts]

    @cached_property
    def means(self):
        """Mean values at all places."""

        def of_batch(model, part):
            means = Means()
            means.update(Replay(model, part, stages=()).values, part.mask)
            return means

        total = Means()
        for means in self.side_by_side(of_batch, self.batches, "means"):
            total.add(means)
        return total

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

    def effect(self, logits):
        """Changes by an edit, see ``effects`` of :class:`Circuit`; logits of all batches."""
        change = self.log_odds(logits) - self.log_odds(self.logits)
        scores = [torch.cat(x).softmax(1).cpu().numpy() for x in (self.logits, logits)]
        return {
            "auc_change": self.auc(logits) - self.auc(self.logits),
            "auc_change_error": auc_error(self.labels, *scores),
            "log_odds_change": float(change.mean()),
            "log_odds_change_error": mean_error(change),
            "size": float(abs(change).mean()),
        }


def _start(model, part):
    """A :class:`Replay` that remembers what is before the first block."""
    core = transformer(model)
    stages = core.stages()
    return Replay(model, part, (), stages[: stages.index(core.blocks[0])])


def ablation_effects(patching, modes=MODES):
    """Ablate each node by itself; see ``effects`` of :class:`Circuit`."""
    todo = [(node, mode) for node in nodes(patching.model) for mode in modes]
    means = patching.means

    def ablated(model, part):
        replay = Replay(model, part)
        sources = {
            "zero": zeros,
            "mean": means,
            "resample": resampled(replay.values, part.mask, means),
        }
        return [replay.run(node, sources[mode]) for node, mode in todo]

    logits = patching.side_by_side(ablated, patching.batches, "ablations")
    return [
        {"node": node, "mode": mode, **patching.effect(changed)}
        for (node, mode), changed in zip(todo, zip(*logits, strict=True), strict=True)
    ]


def smallest_circuit(patching, effects, kept):
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
        gone = [head for head in ranked if head not in heads]

        def logits(_, start):
            return start.without(gone, patching.means)

        return patching.auc(patching.side_by_side(logits, patching.starts))

    # Performance need not grow with each head; the number is halved as if it did.
    low, high = 0, len(ranked)
    with tqdm(desc="circuit", unit="set") as bar:
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
    later = {s: [r for r in heads if s.depth < r.depth] for s in heads}
    paths = [(s, r) for s in heads for r in (None, *later[s])]
    clean = patching.log_odds(patching.logits)

    def patched(model, pair):
        """Logits of a batch whose jets are corrupted, and of each path."""
        part, other = pair
        replay = Replay(model, part)
        corrupted = Replay(model, other, {head.place for head in heads}, ())
        bad = _aligned(corrupted.values, other.mask, replay.values, part.mask)
        found = [corrupted.logits]
        for sender in heads:
            logits, received = replay.send(sender, bad, later[sender])
            found.append(logits)
            found += [replay.run(receiver, _source(received)) for receiver in later[sender]]
        return found

    edges = []
    for name in corruptions:
        others = patching.cut(CORRUPTIONS[name](patching.tagger, patching.jets))
        pairs = list(zip(patching.batches, others, strict=True))
        whole, *logits = zip(*patching.side_by_side(patched, pairs, f"paths, {name}"), strict=True)
        lost = clean - patching.log_odds(whole)
        for (sender, receiver), changed in zip(paths, logits, strict=True):
            change = clean - patching.log_odds(changed)
            effect = float(change.mean() / lost.mean()) if lost.mean() else 0.0
            edges.append(
                {
                    "corruption": name,
                    "sender": sender,
                    "receiver": receiver,
                    "effect": effect,
                    "effect_error": ratio_error(change, lost),
                }
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


def find_circuit(tagger, jets, batch_size=64, kept=0.95, edited=EDITED):
    """Ablate all nodes, search the smallest circuit and patch its paths.

    Parameters
    ----------
    tagger : jetzoo.tagger.Tagger
    jets : ak.Array of records, (num_jets,)
        With labels of two classes or more, sorted by their number of particles. The AUC of the
        network and of the circuit is that of all of them.
    batch_size : int
    kept : float
        Share of AUC - 1/2, by the heads of the circuit.
    edited : int
        Jets, at equal distances among all, of the ablations, the search and the paths, which take
        much longer than the AUC.

    Returns
    -------
    Circuit
    """
    whole = some = Patching(tagger, jets, batch_size)
    if edited < len(jets):
        some = Patching(tagger, jets[spread(len(jets), edited)], batch_size)
    effects = ablation_effects(some)
    heads, auc = smallest_circuit(some, effects, kept)
    edges = path_effects(some, heads[:MOST_HEADS])
    full = some.auc(some.logits)
    if whole is not some:
        gone = [n for n in nodes(tagger.model) if n.what == "head" and n not in heads]

        def logits(model, part):  # nothing else is kept of a batch
            start = _start(model, part)
            return start.logits, start.without(gone, some.means)

        found = whole.side_by_side(logits, whole.batches, "all jets")
        full, auc = map(whole.auc, zip(*found, strict=True))
    return Circuit(full, effects, heads, auc, edges, len(some.labels))
