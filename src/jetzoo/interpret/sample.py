"""Jets as networks see them, with what a physicist wants to know of their particles."""

from dataclasses import dataclass

import awkward as ak
import numpy as np
import torch

from jetzoo import UserError
from jetzoo.groups import collections
from jetzoo.jets import num_particles, true_classes
from jetzoo.jets import read_jets as read_branches
from jetzoo.nn.packing import pt_order

from .subjets import exclusive_subjets, has_fastjet

# Columns part_is<type>, in the order of the numbers of `Batch.types`.
TYPES = ("ChargedHadron", "NeutralHadron", "Photon", "Electron", "Muon")
TYPE_NAMES = ("charged hadron", "neutral hadron", "photon", "electron", "muon")
LEPTONS = (TYPES.index("Electron"), TYPES.index("Muon"))

# Hadronic top quarks decay to three quarks; other jets are split in two.
THREE_PRONGED = ("label_Tbqq", "jet_isTop")


@dataclass
class Batch:
    """Some jets with particles in order of descending pT, so that the position is the rank.

    Attributes
    ----------
    inputs : tuple of Tensor
        Of the network.
    mask : Tensor of bool, (B, n)
    pt, eta, phi : Tensor, (B, n)
        GeV; relative to the jet axis; radians, relative to the jet axis.
    types : Tensor of int, (B, n)
        Index in ``TYPES``; -1 where it is unknown.
    labels : ndarray of int, (B,), or None
        Index of the true class.
    subjets : Tensor of int, (B, n), or None
        0 for the hardest; -1 in jets of too few particles. None without FastJet.
    """

    inputs: tuple
    mask: torch.Tensor
    pt: torch.Tensor
    eta: torch.Tensor
    phi: torch.Tensor
    types: torch.Tensor
    labels: np.ndarray | None
    subjets: torch.Tensor | None

    def __len__(self):
        return len(self.mask)

    @property
    def num_particles(self):
        """Number of particles of each jet, (B,)."""
        return self.mask.sum(1)


def read_jets(tagger, files, selection=None):
    """Read jets with their labels and particle types if there are any.

    Arguments, result and errors are those of :func:`jetzoo.jets.read_jets`.
    """
    return read_branches(tagger, files, selection, extra=[f"part_is{name}" for name in TYPES])


def batches(tagger, jets, batch_size=64, num_subjets=None):
    """Cut jets into batches, in order of their number of particles, so that little is padding.

    Parameters
    ----------
    tagger : jetzoo.tagger.Tagger
    jets : ak.Array of records, (num_jets,)
        From :func:`read_jets`.
    batch_size : int
    num_subjets : int, optional
        Exclusive-kT subjets of each jet; by default 3 for t -> bqq' and 2 for the others.

    Yields
    ------
    Batch
    """
    order = np.argsort(num_particles(tagger, jets), kind="stable")
    for start in range(0, len(jets), batch_size):
        yield batch(tagger, jets[order[start : start + batch_size]], num_subjets)


def batch(tagger, jets, num_subjets=None):
    """Put all jets into one :class:`Batch`; arguments are those of :func:`batches`."""
    inputs = {name: torch.from_numpy(x) for name, x in tagger.inputs(jets).items()}
    groups = check_groups(tagger)
    real = inputs[groups["mask"]][:, 0] > 0
    pt2 = pt_order(inputs[groups["lorentz_vectors"]], real[:, None])
    order = pt2.argsort(dim=1, descending=True, stable=True)  # (B, N)
    for name in groups.values():
        inputs[name] = inputs[name].gather(2, order[:, None].expand_as(inputs[name]))
    points, vectors, mask = (inputs[groups[x]] for x in ("points", "lorentz_vectors", "mask"))
    length = max(int(real.sum(1).max()), 1)
    real = mask[:, 0, :length] > 0
    labels = true_classes(tagger, jets)
    if num_subjets is None:
        three = [tagger.classes.index(c) for c in THREE_PRONGED if c in tagger.classes]
        num_subjets = 2 if labels is None else np.where(np.isin(labels, three), 3, 2)
    subjets = None
    if has_fastjet():
        momenta = vectors[..., :length].transpose(1, 2).numpy()
        found = exclusive_subjets(momenta, real.numpy(), num_subjets)
        subjets = torch.from_numpy(found).to(tagger.device)
    types = _types(jets, order.shape[1]).gather(1, order)[:, :length].masked_fill(~real, -1)
    device = tagger.device
    return Batch(
        tuple(x.to(device) for x in inputs.values()),
        real.to(device),
        pt2.gather(1, order)[:, :length].clamp(min=0).sqrt().float().to(device),
        points[:, 0, :length].masked_fill(~real, 0).to(device),
        points[:, 1, :length].masked_fill(~real, 0).to(device),
        types.to(device),
        labels,
        subjets,
    )


def check_groups(tagger):
    """The groups of the one collection of particles that can be looked at, by kind.

    Raises
    ------
    UserError
        If there are several, or groups are missing that the figures need.
    """
    found = collections(tagger.data_config)
    if len(found) != 1:
        raise UserError(
            "Attention is shown of one collection of particles, and the data config has "
            f"{', '.join(found)}."
        )
    (groups,) = found.values()
    for what in ("points", "lorentz_vectors", "mask"):
        if what not in groups:
            raise UserError(
                f"Attention is drawn at the {what} of particles, of which the data config has none."
            )
    return groups


def typical(tagger, jets, most=3, particles=10):
    """Choose one jet of each of some classes: the first that has enough particles.

    Parameters
    ----------
    tagger : jetzoo.tagger.Tagger
    jets : ak.Array of records, (num_jets,)
    most : int
        Number of classes.
    particles : int
        Number that is enough; where no jet has it, the jet of most particles is taken.

    Returns
    -------
    list of int
    """
    labels = true_classes(tagger, jets)
    labels = np.zeros(len(jets), int) if labels is None else labels
    counts = num_particles(tagger, jets)
    return [
        int(max(np.flatnonzero(labels == label), key=lambda i: min(counts[i], particles)))
        for label in np.unique(labels)[:most]
    ]


def _types(jets, length):
    """Numbers of the particle types, (num_jets, length), in the order of the file."""
    types = np.full((len(jets), length), -1)
    for number, name in enumerate(TYPES):
        if f"part_is{name}" in jets.fields:
            column = ak.pad_none(jets[f"part_is{name}"], length, clip=True)
            types[ak.to_numpy(ak.fill_none(column, 0)) > 0.5] = number
    return torch.from_numpy(types)
