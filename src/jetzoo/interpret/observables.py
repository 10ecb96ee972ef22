"""Observables of jets that physicists know, for probes of what a network knows of them.

All are of the particles that the network sees. Angles are dR in rapidity and azimuth, and z is the
share of a particle in the scalar sum of pT.
"""

import awkward as ak
import numpy as np
import torch

from jetzoo.nn.kinematics import particle_kinematics

from .sample import LEPTONS
from .subjets import exclusive_subjets, has_fastjet

# Exponents of the angles in the energy correlators.
BETAS = (0.5, 1, 2)
SMALLEST = 1e-12  # of which a logarithm is taken

# In the order of tables. Of quantities that span decades it is the logarithm that is probed.
OBSERVABLES = {
    "mass": "ln of the mass [GeV]",
    "soft_drop_mass": "ln of the soft-drop mass [GeV] (z > 0.1, beta = 0), of 0.1 GeV at least",
    "pt": "ln of pT [GeV]",
    "multiplicity": "number of particles",
    "leptons": "number of electrons and muons",
    "ptd": "pTD, the root of the sum of z squared",
    "width": "width, the mean of dR to the axis in z",
    "tau21": "N-subjettiness ratio tau2 / tau1, with exclusive kT axes and beta = 1",
    "tau32": "N-subjettiness ratio tau3 / tau2",
    **{f"e2_{b:g}": f"ln of the two-point energy correlator, beta = {b:g}" for b in BETAS},
    **{f"e3_{b:g}": f"ln of the three-point energy correlator, beta = {b:g}" for b in BETAS},
    "c2": "ln of C2 = e3 / e2^2, beta = 1",
    "d2": "ln of D2 = e3 / e2^3, beta = 1",
    "n2": "ln of N2, beta = 1",
}


def observables(batch):
    """Compute the observables of the jets of a batch.

    Parameters
    ----------
    batch : Batch

    Returns
    -------
    dict of str to ndarray of float64, (B,)
        Those of :data:`OBSERVABLES` that the jets allow: without particle types no number of
        leptons, without FastJet neither soft-drop mass nor N-subjettiness. NaN where a jet has
        fewer than three particles.
    """
    n = batch.mask.shape[1]
    mask = batch.mask.cpu()
    vectors = batch.inputs[2][..., :n].transpose(1, 2).cpu().double()  # (B, n, 4)
    vectors = vectors.masked_fill(~mask[..., None], 0)
    _, pt, rapidity, phi = particle_kinematics(vectors)
    pt = pt.masked_fill(~mask, 0)
    z = pt / pt.sum(1, keepdim=True).clamp(min=SMALLEST)
    theta = distances(rapidity, phi, rapidity, phi) * (mask[:, :, None] & mask[:, None])
    total = vectors.sum(1, keepdim=True)  # (B, 1, 4)
    _, jet_pt, axis_rapidity, axis_phi = particle_kinematics(total)
    to_axis = distances(rapidity, phi, axis_rapidity, axis_phi)[..., 0]
    mass2 = total[:, 0, 3] ** 2 - (total[:, 0, :3] ** 2).sum(1)
    found = {
        "mass": _log(mass2.clamp(min=0).sqrt()),
        "pt": _log(jet_pt[:, 0]),
        "multiplicity": mask.sum(1).double(),
        "ptd": (z**2).sum(1).sqrt(),
        "width": (z * to_axis).sum(1),
    }
    if (batch.types >= 0).any():
        found["leptons"] = torch.isin(batch.types.cpu(), torch.tensor(LEPTONS)).sum(1).double()
    for beta in BETAS:
        e2, e3 = correlators(z, theta, beta)
        found[f"e2_{beta:g}"], found[f"e3_{beta:g}"] = _log(e2), _log(e3)
        if beta == 1:
            found["c2"] = _log(e3) - 2 * _log(e2)
            found["d2"] = _log(e3) - 3 * _log(e2)
            found["n2"] = _log(two_angle_correlator(z, theta)) - 2 * _log(e2)
    if has_fastjet():
        momenta, real = vectors.numpy(), mask.numpy()
        tau = [_subjettiness(vectors, mask, z, rapidity, phi, k) for k in (1, 2, 3)]
        found["tau21"], found["tau32"] = (tau[k] / tau[k - 1].clamp(min=SMALLEST) for k in (1, 2))
        # Of a jet that is one particle after grooming the mass is that of a particle.
        found["soft_drop_mass"] = torch.from_numpy(soft_drop_mass(momenta, real)).clamp(min=0.1)
        found["soft_drop_mass"] = found["soft_drop_mass"].log()
    few = mask.sum(1) < 3
    return {
        name: found[name].masked_fill(few, np.nan).numpy() for name in OBSERVABLES if name in found
    }


def _log(x):
    return x.clamp(min=SMALLEST).log()


def distances(rapidity, phi, other_rapidity, other_phi):
    """Distances dR between particles (B, n) and others (B, m), (B, n, m)."""
    dphi = phi[:, :, None] - other_phi[:, None]
    dphi = torch.remainder(dphi + torch.pi, 2 * torch.pi) - torch.pi
    return torch.hypot(rapidity[:, :, None] - other_rapidity[:, None], dphi)


def correlators(z, theta, beta=1):
    """Two- and three-point energy correlators e2 and e3 (arXiv 1305.0007, with z of pT).

    Sums over pairs and triples of different particles of the product of their z and of all angles
    between them, to the power ``beta``.

    Parameters
    ----------
    z : Tensor, (B, n)
        Zero in the padding.
    theta : Tensor, (B, n, n)
        Zero between a particle and itself.
    beta : float

    Returns
    -------
    e2, e3 : Tensor, (B,)
    """
    angles = theta**beta
    e2 = (z[:, :, None] * z[:, None] * angles).sum((1, 2)) / 2
    # Triples are closed walks of three steps, since no step stays where it is.
    steps = (z[:, :, None] * z[:, None]).sqrt() * angles
    e3 = ((steps @ steps) * steps).sum((1, 2)) / 6
    return e2, e3


def two_angle_correlator(z, theta):
    """Sum over triples of their z and the two smallest of their angles (arXiv 1609.07483, 2e3).

    Arguments are those of :func:`correlators`; beta is 1. Returns (B,).
    """
    total = torch.zeros_like(z[:, 0])
    for i in range(z.shape[1]):
        first, second = theta[:, i, :, None], theta[:, i, None, :]
        largest = torch.maximum(torch.maximum(first, second), theta).clamp(min=SMALLEST)
        smallest_two = first * second * theta / largest
        total += z[:, i] * (z[:, :, None] * z[:, None] * smallest_two).sum((1, 2))
    return total / 6


def _subjettiness(vectors, mask, z, rapidity, phi, count):
    """N-subjettiness of ``count`` exclusive kT axes, up to the radius of the jet, (B,)."""
    subjets = torch.from_numpy(exclusive_subjets(vectors.numpy(), mask.numpy(), count))
    members = torch.stack([subjets == k for k in range(count)], 1).double()  # (B, count, n)
    _, _, axis_rapidity, axis_phi = particle_kinematics(members @ vectors)
    nearest = distances(rapidity, phi, axis_rapidity, axis_phi).amin(2)
    return (z * nearest).sum(1)


def soft_drop_mass(vectors, mask, z_cut=0.1):
    """Mass after soft drop with beta = 0 (arXiv 1402.2657).

    Parameters
    ----------
    vectors : ndarray, (B, n, 4)
    mask : ndarray of bool, (B, n)
    z_cut : float

    Returns
    -------
    ndarray of float64, (B,)
        In GeV; 0 for jets without particles.
    """
    import fastjet

    found = np.zeros(len(mask))
    some = mask.any(1)
    if not some.any():
        return found
    flat = vectors[some][mask[some]].astype(np.float64)
    names = ("px", "py", "pz", "E")
    columns = {name: flat[:, i] for i, name in enumerate(names)}
    particles = ak.unflatten(ak.zip(columns, with_name="Momentum4D"), mask[some].sum(1))
    # So large a radius that all particles are one jet.
    cambridge = fastjet.JetDefinition(fastjet.cambridge_algorithm, 100.0)
    clusters = fastjet.ClusterSequence(particles, cambridge)
    groomed = clusters.exclusive_jets_softdrop_grooming(njets=1, beta=0, symmetry_cut=z_cut)
    found[some] = ak.to_numpy(groomed.msoftdrop).reshape(-1)
    return found
