"""Exclusive kT subjets of jets, found by the optional package FastJet."""

import awkward as ak
import numpy as np


def has_fastjet():
    """Whether the optional package ``fastjet`` is installed, so that subjets can be found."""
    try:
        import fastjet  # noqa: F401
    except ImportError:
        return False
    return True


def exclusive_subjets(vectors, mask, num_subjets):
    """Find exclusive kT subjets of jets (Catani et al., Nucl. Phys. B 406 (1993) 187).

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
    vectors = vectors.astype(np.float64)  # sums of float32 may overflow
    num_subjets = np.broadcast_to(num_subjets, len(mask))
    definition = fastjet.JetDefinition(fastjet.kt_algorithm, 1.0)
    for number in np.unique(num_subjets):
        jets = np.flatnonzero((num_subjets == number) & (mask.sum(1) >= number))
        if not len(jets):
            continue
        counts = mask[jets].sum(1)
        flat = vectors[jets][mask[jets]]  # (particles, 4)
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
