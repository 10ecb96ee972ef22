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
TYPE_BRANCHES = [f"part_is{name}" for name in TYPES]
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
    return read_branches(tagger, files, selection, extra=TYPE_BRANCHES)


def batches(tagger, jets, batch_size=64, num_subjets=None):
    """Cut jets into batches, in order of their number of particles, so that little is padding.

    Parameters
    ----------
    tagger : jetzoo.tagger.Tagger
    jets : ak.Array of records, (num_jets,), or jetzoo.interpret.survey.Survey
        From :func:`read_jets`; or of files of any size, which are in order within a chunk.
    batch_size : int
    num_subjets : int, optional
        Exclusive-kT subjets of each jet; by default 3 for t -> bqq' and 2 for the others.

    Yields
    ------
    Batch
    """
    for chunk in in_chunks(jets):
        order = np.argsort(num_particles(tagger, chunk), kind="stable")
        for start in range(0, len(chunk), batch_size):
            yield batch(tagger, chunk[order[start : start + batch_size]], num_subjets)


def in_chunks(jets):
    """Jets as arrays that one can iterate over: those of :func:`batches`."""
    return [jets] if isinstance(jets, ak.Array) else jets


def batch(tagger, jets, num_subjets=None):
    """Put an array of jets into one :class:`Batch`; arguments are those of :func:`batches`."""
    inputs = {name: torch.from_numpy(x) for name, x in tagger.inputs(jets).items()}
    found = check_groups(tagger)
    parts = []
    for groups in found:
        is_typed = len(found) == 1 or groups["mask"].startswith("pf_")
        parts.append(_sorted(inputs, groups, jets if is_typed else None))
    # One collection after the other, without the padding between them, as networks see them.
    points, vectors, mask, types = (torch.cat(x, dim=2) for x in zip(*parts, strict=True))
    order = mask[:, 0].byte().argsort(dim=1, descending=True, stable=True)[:, None]
    length = max(int(mask.sum(2).max()), 1)
    points, vectors, mask, types = (
        x.gather(2, order.expand_as(x))[..., :length] for x in (points, vectors, mask, types)
    )
    real = mask[:, 0]
    labels = true_classes(tagger, jets)
    if num_subjets is None:
        three = [tagger.classes.index(c) for c in THREE_PRONGED if c in tagger.classes]
        num_subjets = 2 if labels is None else np.where(np.isin(labels, three), 3, 2)
    subjets = None
    if has_fastjet():
        momenta = vectors.transpose(1, 2).numpy()
        found = exclusive_subjets(momenta, real.numpy(), num_subjets)
        subjets = torch.from_numpy(found).to(tagger.device)
    device = tagger.device
    return Batch(
        tuple(x.to(device) for x in inputs.values()),
        real.to(device),
        torch.hypot(vectors[:, 0], vectors[:, 1]).masked_fill(~real, 0).to(device),
        points[:, 0].masked_fill(~real, 0).to(device),
        points[:, 1].masked_fill(~real, 0).to(device),
        types[:, 0].masked_fill(~real, -1).to(device),
        labels,
        subjets,
    )


def check_groups(tagger):
    """The groups of each collection by kind, see :func:`jetzoo.groups.collections`.

    Raises
    ------
    UserError
        If groups are missing that the figures need.
    """
    found = [groups for groups in collections(tagger.data_config).values() if "mask" in groups]
    if not found:
        raise UserError("Attention is that of particles, and the data config has no mask of any.")
    for groups in found:
        for what in ("points", "lorentz_vectors"):
            if what not in groups:
                raise UserError(
                    f"Attention is drawn at the {what.replace('lorentz_', '')} of particles, and "
                    f"beside {groups['mask']} the data config has none."
                )
    return found


def _sorted(inputs, groups, jets):
    """Put the members of a collection in order of descending pT, in ``inputs``, too.

    ``jets`` have the types of its particles; None if they are those of another collection.

    Returns
    -------
    points, vectors, mask, types : Tensor, (B, C, N)
    """
    points, vectors, mask = (groups[kind] for kind in ("points", "lorentz_vectors", "mask"))
    key = pt_order(inputs[vectors], inputs[mask] > 0)
    order = key.argsort(dim=1, descending=True, stable=True)[:, None]  # (B, 1, N)
    for name in groups.values():
        inputs[name] = inputs[name].gather(2, order.expand_as(inputs[name]))
    types = torch.full_like(order, -1)
    if jets is not None:
        types = _types(jets, order.shape[2])[:, None].gather(2, order)
    return inputs[points], inputs[vectors], inputs[mask] > 0, types


def _types(jets, length):
    """Numbers of the particle types, (num_jets, length), in the order of the file."""
    types = np.full((len(jets), length), -1)
    for number, name in enumerate(TYPES):
        if f"part_is{name}" in jets.fields:
            column = ak.pad_none(jets[f"part_is{name}"], length, clip=True)
            types[ak.to_numpy(ak.fill_none(column, 0)) > 0.5] = number
    return torch.from_numpy(types)
