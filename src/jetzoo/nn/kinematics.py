"""Features of pairs of four-vectors, the input of the pair interaction.

Rapidities, angles and masses of nearly collinear particles are differences of large numbers: in
float32 their logarithms would be rounding noise. They are computed in float64, whatever the dtype
of the network and of autocast, and limited such that every finite input gives finite features. The
kernels in C++ (``native/part_pairs.cpp``) and exported graphs compute the same.
"""

import math

import torch

EPS = 1e-8
LARGEST = 1e38  # so that nothing overflows in float32
SMALLEST = 1e-20


def particle_kinematics(lorentz_vectors):
    """Four-vectors, transverse momentum, rapidity and azimuth of particles, in float64.

    Parameters
    ----------
    lorentz_vectors : Tensor, (..., 4)
        px, py, pz, energy in GeV.

    Returns
    -------
    lorentz_vectors : Tensor, (..., 4)
    pt, rapidity, phi : Tensor, (...)
        GeV, dimensionless, radians. The rapidity is finite for every finite input, along the beam
        and for energies below the momentum, too.
    """
    lorentz_vectors = lorentz_vectors.double()
    px, py, pz, energy = lorentz_vectors.unbind(-1)
    pt2 = px * px + py * py
    ratio = 1 + 2 * pz / (energy - pz).clamp(min=SMALLEST)
    rapidity = 0.5 * torch.log(ratio.clamp(min=SMALLEST))
    pt = pt2.sqrt()
    return lorentz_vectors, pt, rapidity, azimuth(py, px)


def azimuth(py, px):
    """``torch.atan2`` in float64, in a traced graph as well."""
    if not torch.jit.is_tracing():
        return torch.atan2(py, px)
    # onnxruntime has arcs in float32 only. One step of Newton's method restores float64.
    scale = torch.maximum(px.abs(), py.abs())
    # atan2(0, 0) is 0 in PyTorch and NaN in the ONNX decomposition.
    scale, px = (torch.where(scale > 0, x, torch.ones_like(x)) for x in (scale, px))
    py, px = py / scale, px / scale
    phi = torch.atan2(py.float(), px.float()).double()
    return phi + (py * phi.cos() - px * phi.sin()) / (px * phi.cos() + py * phi.sin())


def pair_features(first, second, dtype=torch.float32):
    """ln kT, ln z, ln dR and ln m2 of pairs of particles (arXiv 2202.03772, eq. 3).

    Parameters
    ----------
    first, second : sequence of Tensor
        Of :func:`particle_kinematics`, of the two particles of each pair; the leading axes
        broadcast against each other.
    dtype : torch.dtype
        Of the result.

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
    kt = pt_min * delta
    z = pt_min / (pt_i + pt_j).clamp(min=EPS)
    px, py, pz, energy = (p_i + p_j).unbind(-1)
    m2 = energy.square() - (px.square() + py.square() + pz.square())
    features = torch.stack((kt, z, delta, m2)).clamp(min=EPS, max=LARGEST)
    return features.to(dtype).log()


def at_least_float32(x):
    """``x`` itself, or in float32 if it is a half precision tensor."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
