"""Jets to test with: as a network gets them, and as files."""

import handmade
import numpy as np
import torch

COUNTS = (3, 0, 1, 128, 129, 300, 20, 7, 0, 41)


def make_jets(counts, length=None, seed=2, spread=0.2):
    """Jets with so many particles, as weaver hands them over, real particles first.

    `spread` is their width in eta and phi, one number or one for each jet.
    """
    rng = np.random.default_rng(seed)
    length = length or max(max(counts), 1)
    shape = (len(counts), length)
    pt = rng.exponential(10, shape) + 0.5
    deta, dphi = rng.normal(0, np.reshape(spread, (-1, 1)), (2, *shape))
    energy = pt * np.cosh(deta)
    vectors = np.stack((pt * np.cos(dphi), pt * np.sin(dphi), pt * np.sinh(deta), energy), 1)
    kinematics = np.log(pt), np.log(energy), np.log(pt / 500), np.log(energy / 500)
    features = np.stack((*kinematics, np.hypot(deta, dphi), deta, dphi), 1)
    mask = np.arange(length) < np.array(counts)[:, None]
    arrays = np.stack((deta, dphi), 1), features, vectors, mask[:, None]
    return [torch.from_numpy(x.astype("float32")) for x in arrays]


def repad(jets, length=None, filling=0.0):
    """The same jets at another padded length, with something else in the padding."""
    *inputs, mask = jets
    length = length or mask.shape[2]
    real = min(length, mask.shape[2])
    longer = torch.zeros(len(mask), 1, length)
    longer[..., :real] = mask[..., :real]
    result = []
    for x in inputs:
        new = torch.full((len(x), x.shape[1], length), filling)
        new[..., :real] = torch.where(mask[..., :real].bool(), x[..., :real], torch.tensor(filling))
        result.append(new)
    return [*result, longer]


def random_jets(*lengths, padded=24, num_features=7):
    """Jets of normally distributed numbers, for networks that look at no four-vectors."""
    generator = torch.Generator().manual_seed(1)
    points, features, vectors = (
        torch.randn(len(lengths), c, padded, generator=generator) for c in (2, num_features, 4)
    )
    mask = torch.arange(padded) < torch.tensor(lengths)[:, None, None]
    return points, features, vectors, mask.float()


def masks(counts, length=None):
    """Mask (B, 1, N) of bool of jets whose real particles stand first."""
    return torch.arange(length or max(counts)) < torch.tensor(counts)[:, None, None]


def write_jets(folder):
    """Write jets of `COUNTS` particles to a file."""
    path = folder / "jets.parquet"
    handmade.write_parquet(path, COUNTS, np.random.default_rng(7))
    return path
