"""Jets as networks see them, with what a physicist wants to know of their particles."""

from dataclasses import dataclass

import awkward as ak
import numpy as np
import torch
from weaver.utils.data.preprocess import _build_new_variables

from jetzoo import UserError, tables
from jetzoo.data_config import dependencies
from jetzoo.nn.packing import pt_order

# Columns part_is<type>, in the order of the numbers of `Batch.types`.
TYPES = ("ChargedHadron", "NeutralHadron", "Photon", "Electron", "Muon")
LEPTONS = (TYPES.index("Electron"), TYPES.index("Muon"))

# Hadronic top quarks decay to three quarks; other jets are split in two.
THREE_PRONGED = ("label_Tbqq", "jet_isTop")


@dataclass
class Batch:
    """Some jets, their particles in falling order of pT, so that the position is the rank.

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
        """(B,)"""
        return self.mask.sum(1)


def read_jets(tagger, files, selection=None):
    """Read what a network needs of some jets, and labels and particle types if there are any.

    Parameters
    ----------
    tagger : jetzoo.tagger.Tagger
    files : sequence of str or Path
    selection : int or sequence of int, optional
        The first so many jets, or the indices of some, counted through all files.

    Returns
    -------
    ak.Array of records, (num_jets,)

    Raises
    ------
    UserError
        If a file cannot be read, branches are missing, or there are no such jets.
    """
    treename = tagger.data_config.treename
    described = [tables.describe(path, treename) for path in files]
    common = set.intersection(*(set(branches) for branches, _ in described))
    total = sum(entries for _, entries in described)
    if total == 0:
        raise UserError("There are no jets in the files.")
    wanted = set(tagger.branches)
    labels, _ = _label_variables(tagger)
    if labels <= common:
        wanted |= labels
    wanted |= {f"part_is{name}" for name in TYPES} & common

    if isinstance(selection, int) or selection is None:
        index = np.arange(min(selection or total, total))
    else:
        index = np.asarray(selection)
        outside = index[(index < 0) | (index >= total)]
        if len(outside):
            raise UserError(f"There is no jet {outside[0]}: the files have jets 0 to {total - 1}.")
    parts, positions, first = [], [], 0
    for path, (_, entries) in zip(files, described, strict=True):
        here = np.flatnonzero((index >= first) & (index < first + entries))
        if len(here):
            parts.append(tables.read(path, wanted, treename)[index[here] - first])
            positions.append(here)
        first += entries
    return ak.concatenate(parts)[np.argsort(np.concatenate(positions))]


def _label_variables(tagger):
    return dependencies(tagger.data_config, tagger.data_config.label_names)


def batches(tagger, jets, batch_size=64, num_subjets=None):
    """Cut jets into batches, in order of their number of particles: little is padding.

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
    """One :class:`Batch` of all jets; arguments as for :func:`batches`."""
    inputs = tagger.inputs(jets)
    points, features, vectors, mask = (torch.from_numpy(x) for x in inputs.values())
    real = mask[:, 0] > 0
    pt2 = pt_order(vectors, real[:, None])
    order = pt2.argsort(dim=1, descending=True, stable=True)  # (B, N)
    points, features, vectors, mask = (
        x.gather(2, order[:, None].expand_as(x)) for x in (points, features, vectors, mask)
    )
    length = max(int(real.sum(1).max()), 1)
    real = mask[:, 0, :length] > 0
    labels = true_labels(tagger, jets)
    subjets = None
    if has_fastjet():
        if num_subjets is None:
            three = [tagger.classes.index(c) for c in THREE_PRONGED if c in tagger.classes]
            num_subjets = 2 if labels is None else np.where(np.isin(labels, three), 3, 2)
        subjets = exclusive_subjets(
            vectors[..., :length].transpose(1, 2).numpy(), real.numpy(), num_subjets
        )
        subjets = torch.from_numpy(subjets).to(tagger.device)
    types = _types(jets, order.shape[1]).gather(1, order)[:, :length].masked_fill(~real, -1)
    device = tagger.device
    return Batch(
        tuple(x.to(device) for x in (points, features, vectors, mask)),
        real.to(device),
        pt2.gather(1, order)[:, :length].clamp(min=0).sqrt().to(device),
        points[:, 0, :length].masked_fill(~real, 0).to(device),
        points[:, 1, :length].masked_fill(~real, 0).to(device),
        types.to(device),
        labels,
        subjets,
    )


def true_labels(tagger, jets):
    """Index of the true class of jets, ndarray of int (num_jets,), or None without labels."""
    branches, new_variables = _label_variables(tagger)
    if not branches <= set(jets.fields):
        return None
    table = _build_new_variables(jets[sorted(branches)], new_variables)
    return table[tagger.data_config.label_names[0]].to_numpy().astype(np.int64)


def num_particles(tagger, jets):
    """Number of particles of jets, ndarray of int (num_jets,)."""
    column = min(name for name in tagger.branches if name.startswith("part_"))
    return ak.to_numpy(ak.num(jets[column]))


def typical(tagger, jets, most=3, particles=10):
    """One jet of each of some classes: the first of at least so many particles.

    Returns
    -------
    list of int
    """
    labels = true_labels(tagger, jets)
    labels = np.zeros(len(jets), int) if labels is None else labels
    counts = num_particles(tagger, jets)
    return [
        int(max(np.flatnonzero(labels == label), key=lambda i: min(counts[i], particles)))
        for label in np.unique(labels)[:most]
    ]


def _types(jets, length):
    """(num_jets, length), in the order of the file."""
    types = np.full((len(jets), length), -1)
    for number, name in enumerate(TYPES):
        if f"part_is{name}" in jets.fields:
            column = ak.pad_none(jets[f"part_is{name}"], length, clip=True)
            types[ak.to_numpy(ak.fill_none(column, 0)) > 0.5] = number
    return torch.from_numpy(types)


def has_fastjet():
    """Whether subjets can be found: the ``fastjet`` package is optional."""
    try:
        import fastjet  # noqa: F401
    except ImportError:
        return False
    return True


def exclusive_subjets(vectors, mask, num_subjets):
    """Exclusive kT subjets of jets (Catani et al., Nucl. Phys. B 406 (1993) 187), by FastJet.

    Parameters
    ----------
    vectors : ndarray, (B, n, 4)
        px, py, pz, energy in GeV.
    mask : ndarray of bool, (B, n)
    num_subjets : int or ndarray of int, (B,)

    Returns
    -------
    ndarray of int64, (B, n)
        Number of the subjet of each particle, 0 for that of the largest pT; -1 in the padding and
        in jets of fewer particles than subjets.
    """
    import fastjet

    found = np.full(mask.shape, -1)
    num_subjets = np.broadcast_to(num_subjets, len(mask))
    definition = fastjet.JetDefinition(fastjet.kt_algorithm, 1.0)
    for number in np.unique(num_subjets):
        jets = np.flatnonzero((num_subjets == number) & (mask.sum(1) >= number))
        if not len(jets):
            continue
        counts = mask[jets].sum(1)
        flat = vectors[jets][mask[jets]].astype(np.float64)  # (particles, 4)
        particles = ak.zip(
            {
                name: ak.unflatten(flat[:, i], counts)
                for i, name in enumerate(("px", "py", "pz", "E"))
            },
            with_name="Momentum4D",
        )
        clusters = fastjet.ClusterSequence(particles, definition)
        indices = clusters.exclusive_jets_constituent_index(njets=int(number))
        for jet, subjets in zip(jets, indices.to_list(), strict=True):
            place = np.flatnonzero(mask[jet])
            hardest = np.argsort(
                [-np.hypot(*vectors[jet, place[members], :2].sum(0)) for members in subjets]
            )
            for rank, subjet in enumerate(hardest):
                found[jet, place[subjets[subjet]]] = rank
    return found
