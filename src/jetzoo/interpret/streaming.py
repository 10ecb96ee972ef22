"""Measures of attention over many jets, without keeping their matrices."""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from jetzoo.repository import network_module

from . import measures
from .recorder import record
from .sample import LEPTONS, TYPES, Batch, batch, batches

WEIGHT_BINS = 20
RATIO_EDGES = np.arange(-4, 4.25, 0.25)  # log10(|A| / |U|)
RANKS = 30

# Jets that show what attention looks like before the training, and those of its first batch.
UNTRAINED_JETS = 500
FIRST_BATCH = 128


class Sums:
    """Sums and counts of named arrays; the ratio is the mean."""

    def __init__(self):
        self.sums, self.counts = {}, {}

    def add(self, key, total, count):
        self.sums[key] = self.sums.get(key, 0) + np.asarray(total, np.float64)
        self.counts[key] = self.counts.get(key, 0) + np.asarray(count, np.float64)

    def mean(self, key):
        """NaN where nothing was counted."""
        count = self.counts[key]
        return np.divide(
            self.sums[key], count, out=np.full(np.shape(self.sums[key]), np.nan), where=count > 0
        )


class RowMeasures:
    """Means over the rows of real particles, for each layer and head.

    The result is a dict of name to ndarray (layers, heads); a name is absent where the records or
    the jets do not have what it takes.
    """

    def __init__(self):
        self.sums, self.layers = Sums(), 0

    def update(self, batch, records):
        real = batch.mask
        leptons = torch.isin(batch.types, torch.tensor(LEPTONS, device=real.device)) & real
        with_leptons = real & leptons.any(1, keepdim=True)
        particles = [r for r in records if r.kind == "particle"]
        self.layers = max(self.layers, len(particles))
        for r in particles:
            self._add("non_binary", r.layer, measures.non_binary(r.weights), real)
            entropy = measures.entropy(r.weights)
            self._add("entropy", r.layer, entropy, real)
            self._add("effective_number", r.layer, entropy.exp(), real)
            spread = measures.distance(r.weights, batch.eta, batch.phi)
            self._add("distance", r.layer, spread, real)
            if r.bias is not None:
                moved = measures.argmax_moved(r.scores, r.bias, real)
                self._add("argmax_moved", r.layer, moved, real)
            if batch.subjets is not None:
                split = batch.subjets >= 0
                within = measures.same_subjet(r.weights, batch.subjets)
                self._add("same_subjet", r.layer, within, split)
                chance = measures.same_subjet_chance(batch.subjets, real)
                self._add("same_subjet_chance", r.layer, chance[:, None].expand_as(within), split)
            if with_leptons.any():
                seen = measures.to_leptons(r.weights, leptons)
                self._add("to_leptons", r.layer, seen, with_leptons)
                chance = (leptons.sum(1) / real.sum(1).clamp(min=1))[:, None, None]
                self._add("to_leptons_chance", r.layer, chance.expand_as(seen), with_leptons)

    def _add(self, name, layer, values, rows):
        total = (values.double() * rows[:, None]).sum((0, 2))  # (H,)
        self.sums.add((name, layer), total.cpu(), int(rows.sum()))

    def result(self):
        means = {
            name: np.stack([self.sums.mean((name, layer)) for layer in range(self.layers)])
            for name in dict.fromkeys(name for name, _ in self.sums.sums)
        }
        for name, ratio in (("same_subjet", "same_subjet_ratio"), ("to_leptons", "lepton_ratio")):
            if name in means:
                means[ratio] = means[name] / means[f"{name}_chance"]
        return means


class MovedParticles:
    """Share of particles with a row in which the bias moves the argmax.

    The result is (of any layer and head, ndarray (layers,) of any head), or None without bias.
    """

    def __init__(self):
        self.sums = Sums()

    def update(self, batch, records):
        biased = [r for r in records if r.kind == "particle" and r.bias is not None]
        if not biased:
            return
        moved = torch.stack(
            [measures.argmax_moved(r.scores, r.bias, r.mask).any(1) & r.mask for r in biased]
        )  # (layers, B, n)
        count = int(batch.mask.sum())
        self.sums.add("ever", moved.any(0).sum().item(), count)
        self.sums.add("layer", moved.sum((1, 2)).cpu(), count)

    def result(self):
        if not self.sums.sums:
            return None
        return float(self.sums.mean("ever")), self.sums.mean("layer")


class HeadCosines:
    """Mean cosine between heads, ndarray (layers, H, H), over jets of two particles or more."""

    def __init__(self):
        self.sums, self.layers = Sums(), 0

    def update(self, batch, records):
        jets = batch.num_particles > 1
        particles = [r for r in records if r.kind == "particle"]
        self.layers = max(self.layers, len(particles))
        for r in particles:
            cosine = measures.head_cosine(r.weights[jets]).double().sum(0)
            self.sums.add(r.layer, cosine.cpu(), int(jets.sum()))

    def result(self):
        return np.stack([self.sums.mean(layer) for layer in range(self.layers)])


class Histogram:
    """Counts per layer of a quantity of pairs of particles, ndarray (layers, bins).

    What is beyond the edges is counted in the outermost bins.

    Parameters
    ----------
    bins : int
    """

    def __init__(self, bins):
        self.bins, self.counts = bins, {}

    def add(self, layer, index, mask):
        """Count ``index`` (B, H, n, n), in which all padding must be in the first bin."""
        index = index.clamp(0, self.bins - 1).long()
        counts = torch.bincount(index.flatten(), minlength=self.bins)
        counts[0] -= index.numel() - index.shape[1] * int(mask.sum(1).square().sum())
        self.counts[layer] = self.counts.get(layer, 0) + counts.cpu().numpy()

    def result(self):
        """None where nothing was counted."""
        if not self.counts:
            return None
        return np.stack([self.counts[layer] for layer in sorted(self.counts)])


class WeightHistogram(Histogram):
    """:class:`Histogram` of attention weights, in 20 equal bins from 0 to 1."""

    def __init__(self):
        super().__init__(WEIGHT_BINS)

    def update(self, batch, records):
        for r in records:
            if r.kind == "particle":
                self.add(r.layer, r.weights * WEIGHT_BINS, r.mask)


class RatioHistogram(Histogram):
    """:class:`Histogram` of log10(|A|/|U|); nothing without bias."""

    def __init__(self):
        super().__init__(len(RATIO_EDGES) - 1)

    def update(self, batch, records):
        width = RATIO_EDGES[1] - RATIO_EDGES[0]
        for r in records:
            if r.kind == "particle" and r.bias is not None:
                ratio = r.scores.abs() / r.bias.abs().clamp(min=1e-20)
                self.add(r.layer, (ratio.log10() - RATIO_EDGES[0]) / width, r.mask)


class Importance:
    """What the class token looks at, by particle type and by rank in pT, for each class of jets.

    The result is a dict; keys are ``(what, "type")``, importance over the share of particles that
    are of the type, ndarray (classes, types), 1 for a token that looks at all particles alike; and
    ``(what, "rank")``, importance, ndarray (classes, ranks). ``what`` is "class_attention" or
    "rollout", which follows it down through the particle blocks. Without labels there is one row.

    Parameters
    ----------
    num_classes : int
    """

    def __init__(self, num_classes):
        self.num_classes, self.sums = num_classes, Sums()

    def update(self, batch, records):
        classes = [r.weights for r in records if r.kind == "class"]
        if not classes:
            return
        share = measures.class_importance(classes)  # (B, n)
        self._add("class_attention", share, batch)
        particles = [r.weights for r in records if r.kind == "particle"]
        if particles:
            flow = share[:, None] @ measures.rollout(particles)  # (B, 1, n)
            self._add("rollout", flow[:, 0], batch)

    def _add(self, what, share, batch):
        share = share.double().cpu().numpy()
        mask, types = batch.mask.cpu().numpy(), batch.types.cpu().numpy()
        labels = np.zeros(len(mask), int) if batch.labels is None else batch.labels
        uniform = np.repeat(1 / mask.sum(1).clip(1), mask.sum(1))
        jet, rank = mask.nonzero()
        share, kind, label = share[mask], types[mask], labels[jet]

        def table(index, width, values, where):
            flat = label[where] * width + index[where]
            size = self.num_classes * width
            return np.bincount(flat, values[where], size).reshape(self.num_classes, width)

        known, hard = kind >= 0, rank < RANKS
        if known.any():
            self.sums.add(
                (what, "type"),
                table(kind, len(TYPES), share, known),
                table(kind, len(TYPES), uniform, known),
            )
        ones = np.ones(len(rank))
        self.sums.add(
            (what, "rank"), table(rank, RANKS, share, hard), table(rank, RANKS, ones, hard)
        )

    def result(self):
        return {key: self.sums.mean(key) for key in self.sums.sums}


@dataclass
class Drawn:
    """One jet that figures show: a batch of it alone, and its records."""

    index: int
    batch: Batch
    records: list


@dataclass
class Study:
    """What a network looks at in a set of jets.

    Attributes
    ----------
    classes : list of str
        Classes of the rows of ``importance``: those of the network, or "all" without labels.
    num_jets : int
    num_per_class : list of int or None
    rows : dict of ndarray, (layers, heads)
        See :class:`RowMeasures`.
    moved : tuple or None
        See :class:`MovedParticles`.
    cosines, histogram, untrained, ratios : ndarray or None
        See :class:`HeadCosines`, :class:`WeightHistogram` (of the network, and of one with initial
        weights) and :class:`RatioHistogram`.
    importance : dict
        See :class:`Importance`.
    drawn : list of Drawn
    has_types, has_subjets : bool
    """

    classes: list
    num_jets: int
    num_per_class: list | None
    rows: dict
    moved: tuple | None
    cosines: np.ndarray | None
    histogram: np.ndarray | None
    ratios: np.ndarray | None
    importance: dict
    untrained: np.ndarray | None = None
    drawn: list = field(default_factory=list)
    has_types: bool = False
    has_subjets: bool = False


@torch.inference_mode()
def study(tagger, jets, *, draw=(), untrained=None, batch_size=64, num_subjets=None):
    """Measure what a trained network looks at.

    Parameters
    ----------
    tagger : jetzoo.tagger.Tagger
    jets : ak.Array of records, (num_jets,)
        From :func:`read_jets`.
    draw : sequence of int
        Jets whose matrices are kept for figures.
    untrained : nn.Module, optional
        The same network with initial weights, see :func:`initial`.
    batch_size : int
        Memory grows with it, and with nothing else.
    num_subjets : int, optional
        See :func:`batches`.

    Returns
    -------
    Study

    Raises
    ------
    UserError
        If the network has no attention.
    """
    row_measures, moved, cosines = RowMeasures(), MovedParticles(), HeadCosines()
    histogram, ratios, before = WeightHistogram(), RatioHistogram(), WeightHistogram()
    num_classes = len(tagger.classes)
    importance = Importance(num_classes)
    accumulators = (row_measures, moved, cosines, histogram, ratios, importance)
    per_class, has_labels, has_types, has_subjets = np.zeros(num_classes, int), False, False, False
    with (
        record(tagger.model) as records,
        tqdm(total=len(jets), unit="jet", desc="attention") as bar,
    ):
        for part in batches(tagger, jets, batch_size, num_subjets):
            records.clear()
            tagger.model(*part.inputs)
            for accumulator in accumulators:
                accumulator.update(part, records)
            if part.labels is not None:
                has_labels = True
                per_class += np.bincount(part.labels, minlength=num_classes)
            has_types |= bool((part.types >= 0).any())
            has_subjets |= part.subjets is not None
            bar.update(len(part))
    if untrained is not None and row_measures.layers:
        some = jets[:UNTRAINED_JETS]
        with record(untrained) as records:
            for part in batches(tagger, some, batch_size, num_subjets):
                records.clear()
                untrained(*part.inputs)
                before.update(part, records)
    has_particles = row_measures.layers > 0
    seen = importance.result()
    return Study(
        classes=tagger.classes if has_labels else ["all"],
        num_jets=len(jets),
        num_per_class=per_class.tolist() if has_labels else None,
        rows=row_measures.result(),
        moved=moved.result(),
        cosines=cosines.result() if has_particles else None,
        histogram=histogram.result(),
        ratios=ratios.result(),
        importance=seen if has_labels else {key: value[:1] for key, value in seen.items()},
        untrained=before.result(),
        drawn=[look(tagger, jets, index, num_subjets) for index in draw],
        has_types=has_types,
        has_subjets=has_subjets,
    )


@torch.inference_mode()
def look(tagger, jets, index, num_subjets=None):
    """Record one jet, as :class:`Drawn`."""
    one = batch(tagger, jets[index : index + 1], num_subjets)
    with record(tagger.model) as records:
        tagger.model(*one.inputs)
    return Drawn(index, one, records)


def initial(network, tagger, jets, seed=0, **options):
    """The network of a tagger as it was before the first step of a training.

    Parameters
    ----------
    network : str or Path
        See :func:`jetzoo.tagger.load`.
    tagger : jetzoo.tagger.Tagger
    jets : ak.Array of records
        They give the batch norms their means and widths, as the first batch of a training does.
    seed : int
    **options
        Of the network.

    Returns
    -------
    nn.Module
        In eval mode.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model, _ = network_module(network).get_model(tagger.data_config, **options)
    model = model.to(tagger.device)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = 1.0
    model.train()
    with torch.no_grad():
        model(*batch(tagger, jets[:FIRST_BATCH]).inputs)
    return model.eval()
