"""Measures of attention added up over many jets, of which no matrix is kept."""

import numpy as np
import torch

from . import measures
from .sample import LEPTONS, TYPES

WEIGHT_BINS = 20
RATIO_EDGES = np.arange(-4, 4.25, 0.25)  # log10(|A| / |U|)
RANKS = 30


class Sums:
    """Sums and counts of named arrays, whose ratio is the mean."""

    def __init__(self):
        self.sums, self.counts = {}, {}

    def add(self, key, total, count):
        """Add the sum of ``count`` values to those of a name."""
        self.sums[key] = self.sums.get(key, 0) + np.asarray(total, np.float64)
        self.counts[key] = self.counts.get(key, 0) + np.asarray(count, np.float64)

    def mean(self, key):
        """Mean of a name; NaN where nothing was counted."""
        count = self.counts[key]
        return np.divide(
            self.sums[key], count, out=np.full(np.shape(self.sums[key]), np.nan), where=count > 0
        )


class RowMeasures:
    """Means over the rows of real particles, for each layer and head.

    The result is a dict of name to ndarray (layers, heads); a name is absent where the records or
    the jets do not have what it takes, and NaN stands for layers without bias.
    """

    def __init__(self):
        self.sums, self.layers = Sums(), 0

    def update(self, batch, records):
        """Add a batch and its records."""
        real = batch.mask
        leptons = torch.isin(batch.types, torch.tensor(LEPTONS, device=real.device)) & real
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
            elif any(other.bias is not None for other in particles):
                self.sums.add(("argmax_moved", r.layer), np.zeros(r.weights.shape[1]), 0)
            if batch.subjets is not None:
                self._add_subjets(r, batch.subjets, real)
            if leptons.any():
                self._add_leptons(r, leptons, real)

    def _add_subjets(self, r, subjets, real):
        within = measures.same_subjet(r.weights, subjets)
        chance = measures.same_subjet_chance(subjets, real)[:, None].expand_as(within)
        self._add("same_subjet", r.layer, within, subjets >= 0)
        self._add("same_subjet_chance", r.layer, chance, subjets >= 0)

    def _add_leptons(self, r, leptons, real):
        """Add the attention to leptons in the jets that have any."""
        rows = real & leptons.any(1, keepdim=True)
        seen = measures.to_leptons(r.weights, leptons)
        chance = (leptons.sum(1) / real.sum(1).clamp(min=1))[:, None, None].expand_as(seen)
        self._add("to_leptons", r.layer, seen, rows)
        self._add("to_leptons_chance", r.layer, chance, rows)

    def _add(self, name, layer, values, rows):
        total = (values.double() * rows[:, None]).sum((0, 2))  # (H,)
        self.sums.add((name, layer), total.cpu(), int(rows.sum()))

    def result(self):
        """Return the means and their ratios."""
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

    The result is (of any layer and head, ndarray (layers,) of any head), or None without bias; NaN
    stands for a layer without.
    """

    def __init__(self):
        self.sums = Sums()

    def update(self, batch, records):
        """Add a batch and its records."""
        particles = [r for r in records if r.kind == "particle"]
        moved = {
            r.layer: measures.argmax_moved(r.scores, r.bias, r.mask).any(1) & r.mask  # (B, n)
            for r in particles
            if r.bias is not None
        }
        if not moved:
            return
        count = int(batch.mask.sum())
        ever = torch.stack(list(moved.values())).any(0)
        self.sums.add("ever", int(ever.sum()), count)
        per_layer = [int(moved[r.layer].sum()) if r.layer in moved else 0 for r in particles]
        self.sums.add("layer", per_layer, [count * (r.layer in moved) for r in particles])

    def result(self):
        """Return the shares, or None where there is no bias."""
        if not self.sums.sums:
            return None
        return float(self.sums.mean("ever")), self.sums.mean("layer")


class HeadCosines:
    """Mean cosine between heads, ndarray (layers, H, H), over jets of two particles or more."""

    def __init__(self):
        self.sums, self.layers = Sums(), 0

    def update(self, batch, records):
        """Add a batch and its records."""
        jets = batch.num_particles > 1
        particles = [r for r in records if r.kind == "particle"]
        self.layers = max(self.layers, len(particles))
        for r in particles:
            cosine = measures.head_cosine(r.weights[jets]).double().sum(0)
            self.sums.add(r.layer, cosine.cpu(), int(jets.sum()))

    def result(self):
        """Return the means."""
        if not self.layers:
            return None
        return np.stack([self.sums.mean(layer) for layer in range(self.layers)])


class Histogram:
    """Counts per layer of a quantity of pairs of particles, ndarray (layers, bins).

    Values beyond the edges are counted in the outermost bins.

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
        """Return the counts, or None where nothing was counted."""
        if not self.counts:
            return None
        none = np.zeros(self.bins, int)
        return np.stack([self.counts.get(layer, none) for layer in range(max(self.counts) + 1)])


class WeightHistogram(Histogram):
    """:class:`Histogram` of attention weights, in 20 equal bins from 0 to 1."""

    def __init__(self):
        super().__init__(WEIGHT_BINS)

    def update(self, batch, records):
        """Add a batch and its records."""
        for r in records:
            if r.kind == "particle":
                self.add(r.layer, r.weights * WEIGHT_BINS, r.mask)


class RatioHistogram(Histogram):
    """:class:`Histogram` of log10(|A|/|U|); nothing without bias."""

    def __init__(self):
        super().__init__(len(RATIO_EDGES) - 1)

    def update(self, batch, records):
        """Add a batch and its records."""
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
        """Add a batch and its records."""
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
        """Return the means by what and group."""
        return {key: self.sums.mean(key) for key in self.sums.sums}
