"""The study of a network on many jets, and of single jets that are drawn."""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from jetzoo import UserError
from jetzoo.acceleration import counterpart
from jetzoo.repository import network_module
from jetzoo.state import restored
from jetzoo.tagger import Tagger

from .recorder import record
from .sample import Batch, batch, batches
from .streaming import (
    HeadCosines,
    Importance,
    MovedParticles,
    RatioHistogram,
    RowMeasures,
    WeightHistogram,
)

FIRST_BATCH = 128  # jets of the first step of a training


@dataclass
class Drawn:
    """One jet that figures show: its index, a batch of it alone, and its records."""

    index: int
    batch: Batch
    records: list


@dataclass
class Study:
    """What a network looks at in many jets.

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


def study(tagger, jets, *, batch_size=64, num_subjets=None):
    """Measure what a trained network looks at.

    Parameters
    ----------
    tagger : jetzoo.tagger.Tagger
    jets : ak.Array of records, (num_jets,), or Survey
        See :func:`batches`.
    batch_size : int
        Memory grows with it, and with nothing else.
    num_subjets : int, optional
        See :func:`batches`.

    Returns
    -------
    Study
        Without ``untrained`` and ``drawn``.

    Raises
    ------
    UserError
        If the network has no attention, or some attention is NaN or infinite.
    """
    counts = Counts(len(tagger.classes))
    found = {
        "rows": RowMeasures(),
        "moved": MovedParticles(),
        "cosines": HeadCosines(),
        "histogram": WeightHistogram(),
        "ratios": RatioHistogram(),
        "importance": Importance(len(tagger.classes)),
    }
    accumulate(tagger.model, tagger, jets, (counts, *found.values()), batch_size, num_subjets)
    results = {name: accumulator.result() for name, accumulator in found.items()}
    if not counts.has_labels:
        results["importance"] = {key: x[:1] for key, x in results["importance"].items()}
    return Study(
        classes=tagger.classes if counts.has_labels else ["all"],
        num_jets=len(jets),
        num_per_class=counts.per_class.tolist() if counts.has_labels else None,
        has_types=counts.has_types,
        has_subjets=counts.has_subjets,
        **results,
    )


class Counts:
    """What is known of the jets of a study: their classes, particle types and subjets.

    Parameters
    ----------
    num_classes : int
    """

    def __init__(self, num_classes):
        self.per_class = np.zeros(num_classes, int)
        self.has_labels = self.has_types = self.has_subjets = False

    def update(self, batch, records):
        """Add a batch."""
        if batch.labels is not None:
            self.has_labels = True
            self.per_class += np.bincount(batch.labels, minlength=len(self.per_class))
        self.has_types |= bool((batch.types >= 0).any())
        self.has_subjets |= batch.subjets is not None


@torch.inference_mode()
def accumulate(model, tagger, jets, accumulators, batch_size=64, num_subjets=None):
    """Record jets batch by batch and add them to accumulators.

    Parameters
    ----------
    model : nn.Module
        What is recorded, with the inputs of the tagger.
    tagger : jetzoo.tagger.Tagger
    jets : ak.Array of records, (num_jets,), or Survey
    accumulators : sequence
        With a method ``update(batch, records)``.
    batch_size, num_subjets
        See :func:`study`.

    Raises
    ------
    UserError
        If the network has no attention, or some attention is NaN or infinite.
    """
    with record(model) as records, tqdm(total=len(jets), unit="jet", desc="attention") as bar:
        for part in batches(tagger, jets, batch_size, num_subjets):
            records.clear()
            model(*part.inputs)
            check_finite(records)
            for accumulator in accumulators:
                accumulator.update(part, records)
            bar.update(len(part))


def weight_histogram(model, tagger, jets, batch_size=64, num_subjets=None):
    """The :class:`WeightHistogram` of a network; arguments are those of :func:`accumulate`.

    Returns
    -------
    ndarray of int, (layers, bins), or None
    """
    histogram = WeightHistogram()
    accumulate(model, tagger, jets, (histogram,), batch_size, num_subjets)
    return histogram.result()


def check_finite(records):
    """Raise a :class:`jetzoo.UserError` if the attention of some jets is NaN or infinite."""
    bad = [~r.weights.isfinite().flatten(1).all(1) for r in records]  # (B,) each
    if bad and torch.stack(bad).any():
        raise UserError(
            f"The attention of {int(torch.stack(bad).any(0).sum()):,} jets is NaN or infinite: "
            "their momenta are too large, or the weights of the network are not finite."
        )


@torch.inference_mode()
def look(tagger, jets, index, num_subjets=None):
    """Record one jet, as :class:`Drawn`; arguments are those of :func:`study`."""
    one = batch(tagger, jets[index : index + 1], num_subjets)
    with record(tagger.model) as records:
        tagger.model(*one.inputs)
    check_finite(records)
    return Drawn(index, one, records)


def look_at_all(tagger, jets, index, num_subjets=None):
    """Record jets, each as :class:`Drawn` with its ``index``, the number by which it is known."""
    drawn = []
    for place, number in enumerate(tqdm(index, unit="jet", desc="single jets")):
        drawn.append(look(tagger, jets, place, num_subjets))
        drawn[-1].index = int(number)
    return drawn


def with_counterpart(tagger):
    """The tagger with the zoo's own networks in place of weaver's, which can be looked into.

    Parameters
    ----------
    tagger : jetzoo.tagger.Tagger

    Returns
    -------
    jetzoo.tagger.Tagger

    Raises
    ------
    UserError
        See :func:`jetzoo.acceleration.counterpart`.
    """
    return Tagger(counterpart(tagger.model), tagger.data_config, tagger.device)


def initial(network, tagger, jets, seed=0, **options):
    """Build the network of a tagger as it was before the first step of a training.

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
    with restored():
        torch.manual_seed(seed)
        model, _ = network_module(network).get_model(tagger.data_config, **options)
        model = model.to(tagger.device)
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.momentum = 1.0
        model.train()
        with torch.no_grad():
            model(*batch(tagger, jets[:FIRST_BATCH]).inputs)
    return counterpart(model.eval())
