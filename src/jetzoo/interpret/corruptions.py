"""Corrupted jets that stay physical, of which path patching takes values."""

import awkward as ak
import numpy as np

from jetzoo import UserError
from jetzoo.jets import num_particles, true_labels

from .subjets import exclusive_subjets

MOMENTUM = ("part_px", "part_py", "part_pz", "part_energy")
POSITION = ("part_deta", "part_dphi")


def momenta(jets):
    """Four-vectors of jets in padded form, (num_jets, n, 4), and their mask (num_jets, n).

    Raises
    ------
    UserError
        If the jets do not have the columns of :data:`MOMENTUM`.
    """
    missing = [name for name in MOMENTUM if name not in jets.fields]
    if missing:
        raise UserError(f"The jets have no {', '.join(missing)}, which a corruption changes.")
    counts = ak.to_numpy(ak.num(jets[MOMENTUM[0]]))
    n = max(int(counts.max(initial=0)), 1)
    columns = [ak.fill_none(ak.pad_none(jets[name], n), 0) for name in MOMENTUM]
    vectors = np.stack([ak.to_numpy(x).astype(float) for x in columns], 2)
    return vectors, np.arange(n) < counts[:, None]


def masses_and_pts(jets):
    """Mass and pT of jets in GeV, two arrays (num_jets,)."""
    px, py, pz, energy = momenta(jets)[0].sum(1).T
    return np.sqrt(np.maximum(energy**2 - px**2 - py**2 - pz**2, 0)), np.hypot(px, py)


def matched(tagger, jets):
    """For each jet, the jet of another class that is nearest in mass, pT and number of particles.

    Nearest in the logarithms of mass and pT, and of the number at a tenth of their weight.

    Parameters
    ----------
    tagger : jetzoo.tagger.Tagger
    jets : ak.Array of records, (num_jets,)
        With labels of two classes or more.

    Returns
    -------
    ak.Array of records, (num_jets,)
    """
    labels, counts = true_labels(tagger, jets), num_particles(tagger, jets)
    mass, pt = masses_and_pts(jets)
    place = np.stack((np.log(mass + 0.1), np.log(pt + 0.1), 0.1 * np.log(counts + 1)), 1)
    distance = ((place[:, None] - place[None]) ** 2).sum(2)
    distance[labels[:, None] == labels[None]] = np.inf
    return jets[distance.argmin(1)]


def rotated(tagger, jets, seed=0):
    """Jets of which each particle is turned about the axis of its subjet by a random angle.

    In the plane of rapidity and azimuth, so that pT, mass of the particle and distance to the axis
    stay. Subjets are two, of exclusive kT.

    Parameters
    ----------
    tagger : jetzoo.tagger.Tagger
        Not used; corruptions are called alike.
    jets : ak.Array of records, (num_jets,)
    seed : int

    Returns
    -------
    ak.Array of records, (num_jets,)
    """
    vectors, mask = momenta(jets)
    subjets = exclusive_subjets(vectors, mask, 2)
    _, _, rapidity, phi = _coordinates(vectors)
    axes = np.stack([(vectors * (subjets == k)[..., None]).sum(1) for k in (0, 1)], 1)
    _, _, axis_rapidity, axis_phi = (
        np.take_along_axis(x, np.maximum(subjets, 0), 1) for x in _coordinates(axes)
    )
    dy, dphi = rapidity - axis_rapidity, _wrapped(phi - axis_phi)
    angle = np.random.default_rng(seed).uniform(0, 2 * np.pi, mask.shape)
    angle[subjets < 0] = 0
    turned_dy = np.cos(angle) * dy - np.sin(angle) * dphi
    turned_dphi = np.sin(angle) * dy + np.cos(angle) * dphi
    pt, transverse, _, _ = _coordinates(vectors)
    new_rapidity, new_phi = axis_rapidity + turned_dy, axis_phi + turned_dphi
    new = {
        "part_px": pt * np.cos(new_phi),
        "part_py": pt * np.sin(new_phi),
        "part_pz": transverse * np.sinh(new_rapidity),
        "part_energy": transverse * np.cosh(new_rapidity),
    }
    counts = mask.sum(1)
    out = jets
    for name, values in new.items():
        out = ak.with_field(out, ak.unflatten(values[mask], counts), name)
    # Some data sets give eta the sign of the jet: positions move as they are given.
    moved = (turned_dy - dy, turned_dphi - dphi)
    for name, move, old in zip(POSITION, moved, (dy, dphi), strict=True):
        if name in jets.fields:
            given = ak.to_numpy(ak.flatten(jets[name])).astype(float)
            jet = np.repeat(np.arange(len(counts)), counts)
            apart = (given - _mean(given, jet, counts)) * old[mask]
            covariance = np.bincount(jet, apart, len(counts))
            sign = np.where(covariance < 0, -1, 1)[jet]
            out = ak.with_field(out, ak.unflatten(given + sign * move[mask], counts), name)
    return out


def _coordinates(vectors):
    """Transverse momentum, transverse mass, rapidity and azimuth of four-vectors (..., 4)."""
    px, py, pz, energy = np.moveaxis(vectors, -1, 0)
    pt = np.hypot(px, py)
    transverse = np.sqrt(np.maximum(energy**2 - pz**2, 1e-24))
    return pt, transverse, np.arcsinh(pz / transverse), np.arctan2(py, px)


def _wrapped(angle):
    return (angle + np.pi) % (2 * np.pi) - np.pi


def _mean(values, jet, counts):
    return (np.bincount(jet, values, len(counts)) / np.maximum(counts, 1))[jet]


CORRUPTIONS = {"other_class": matched, "rotation": rotated}
