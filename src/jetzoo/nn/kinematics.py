"""Pairwise features of four-vectors, the input of the pair interaction.

Float32 at least, whatever autocast says: the invariant mass of two almost collinear particles is a
difference of large numbers. The order of the additions is that of weaver-core, because rounding
noise on the diagonal (m2 = 0) passes through the logarithm into the trained weights.
"""

import math

import torch

EPS = 1e-8


def cylindrical(lorentz_vectors):
    """Transverse momentum, rapidity and azimuth of each particle.

    Parameters
    ----------
    lorentz_vectors : Tensor, (..., 4)
        px, py, pz, energy in GeV.

    Returns
    -------
    pt, rapidity, phi : Tensor, (...)
        GeV, dimensionless, radians.
    """
    px, py, pz, energy = lorentz_vectors.unbind(-1)
    pt2 = px * px + py * py
    rapidity = 0.5 * torch.log(1 + 2 * pz / (energy - pz).clamp(min=1e-20))
    # atan2(0, 0) is 0 in PyTorch and NaN in the ONNX decomposition.
    phi = torch.atan2(py, torch.where(pt2 > 0, px, torch.ones_like(px)))
    return pt2.sqrt(), rapidity, phi


def pair_features(first, second):
    """ln kT, ln z, ln dR and ln m2 of pairs of particles (arXiv 2202.03772, eq. 3).

    Parameters
    ----------
    first, second : tuple
        ``(lorentz_vectors, pt, rapidity, phi)`` of the two particles of each pair, with shapes
        (..., 4) and (...); the leading axes broadcast against each other.

    Returns
    -------
    Tensor, (4, ...)
        Features first, as the convolutions of the pair embedding want them.
    """
    p_i, pt_i, rapidity_i, phi_i = first
    p_j, pt_j, rapidity_j, phi_j = second
    dphi = (phi_i - phi_j + math.pi) % (2 * math.pi) - math.pi
    delta = ((rapidity_i - rapidity_j).square() + dphi.square()).sqrt()
    pt_min = torch.minimum(pt_i, pt_j)
    ln_kt = torch.log((pt_min * delta).clamp(min=EPS))
    ln_z = torch.log((pt_min / (pt_i + pt_j).clamp(min=EPS)).clamp(min=EPS))
    ln_delta = torch.log(delta.clamp(min=EPS))
    px, py, pz, energy = (p_i + p_j).unbind(-1)
    m2 = energy.square() - (px.square() + py.square() + pz.square())
    return torch.stack((ln_kt, ln_z, ln_delta, torch.log(m2.clamp(min=EPS))))


def at_least_float32(x):
    """``x`` itself, or in float32 if it is a half precision tensor."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
