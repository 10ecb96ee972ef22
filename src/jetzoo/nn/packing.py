"""Two layouts of a batch of jets, behind one interface.

Layers act on tokens ``(..., D)`` and do not care how tokens are laid out; only what mixes particles
calls :meth:`pad` first and :meth:`unpad` after. :class:`Packed` keeps the real particles alone, so
that no time goes into padding and batch norms see real particles only; it is what trains and
predicts. :class:`Padded` keeps the rectangle, because exported graphs want static indices.
"""

from dataclasses import dataclass
from functools import cached_property

import torch


def pt_order(lorentz_vectors, mask):
    """Sorting key that puts particles in order of descending pT, the padding last.

    Parameters
    ----------
    lorentz_vectors : Tensor, (B, 4, N)
    mask : Tensor of bool, (B, 1, N)

    Returns
    -------
    Tensor, (B, N)
        pT squared in GeV^2, -1 for padding.
    """
    px, py = lorentz_vectors[:, 0].double(), lorentz_vectors[:, 1].double()
    pt2 = px * px + py * py
    return pt2.masked_fill(~mask[:, 0], -1)


class Padded:
    """All positions, as given or in descending order of a key.

    Parameters
    ----------
    mask : Tensor of bool, (B, 1, N)
    key : Tensor, (B, N), optional
        Particles are put in descending order of this key.

    Attributes
    ----------
    mask : Tensor of bool, (B, N)
        True for the real particles of the padded form.
    """

    is_packed = False

    def __init__(self, mask, key=None):
        self.mask = mask[:, 0]
        self.order = None
        if key is not None:
            # topk rather than sort: the ONNX exporter knows no stable sort.
            self.order = (
                key.topk(key.shape[1], dim=1).indices
                if torch.jit.is_tracing()
                else (key.argsort(dim=1, descending=True, stable=True))
            )
            self.mask = self.mask.gather(1, self.order)

    def take(self, x):
        """Tokens of a weaver input: (B, C, N) -> (B, N, C)."""
        if self.order is not None:
            x = x.gather(2, self.order[:, None, :].expand_as(x))
        return x.transpose(1, 2)

    def pad(self, x):
        """Tokens to (B, N, D)."""
        return x

    def unpad(self, x):
        """(B, N, D) to tokens."""
        return x


@dataclass
class Packed:
    """Real particles only, jet after jet; T of them in all, n at most in one jet. See :func:`pack`.

    Attributes
    ----------
    mask : Tensor of bool, (B, n)
        True for the real particles of the padded form, which stand first.
    source : Tensor of int, (T,)
        Position of each token in the flattened (B, N) input.
    target : Tensor of int, (T,)
        Position of each token in the flattened (B, n) padded form.
    pairs : tuple of Tensor of int, (P,), or None
        Real pairs of particles, one of (i, j) and (j, i), the particle with itself included: the
        two tokens ``i`` and ``j``, and the positions ``ij`` and ``ji`` of the pair and its mirror
        in the flattened (B, n, n) matrices.
    """

    is_packed = True

    mask: torch.Tensor
    source: torch.Tensor
    target: torch.Tensor
    pairs: tuple | None

    @cached_property
    def counts(self):
        """Particles of each jet, (B,)."""
        return self.mask.sum(1)

    @cached_property
    def first(self):
        """First token of each jet, (B,)."""
        return self.counts.cumsum(0) - self.counts

    @cached_property
    def first_pair(self):
        """First pair of each jet, (B,)."""
        sizes = self.counts * (self.counts + 1) // 2
        return sizes.cumsum(0) - sizes

    def take(self, x):
        """Tokens of a weaver input: (B, C, N) -> (T, C)."""
        return x.transpose(1, 2).flatten(0, 1).index_select(0, self.source)

    def pad(self, x):
        """Tokens (T, D) to (B, n, D), zero where there is no particle."""
        padded = x.new_zeros(self.mask.numel(), x.shape[1])
        return padded.index_copy(0, self.target, x).unflatten(0, self.mask.shape)

    def unpad(self, x):
        """(B, n, D) to tokens (T, D)."""
        return x.flatten(0, 1).index_select(0, self.target)


# Sizes depend on the data: one graph break here leaves torch.compile a single graph behind it.
@torch._dynamo.disable
def pack(mask, key=None, with_pairs=False):
    """Find the real particles of a batch, and their pairs.

    Parameters
    ----------
    mask : Tensor of bool, (B, 1, N)
    key : Tensor, (B, N), optional
        Within each jet, particles are put in descending order of this key.
    with_pairs : bool

    Returns
    -------
    Packed
    """
    mask = mask[:, 0]
    batch_size, length = mask.shape
    key = mask.to(torch.uint8) if key is None else key
    order = key.argsort(dim=1, descending=True, stable=True)  # (B, N)
    counts = mask.sum(1)
    # At least one column, so that batches of empty jets have a shape that attention accepts.
    longest = max(int(counts.max()), 1) if batch_size else 1
    mask = torch.arange(longest, device=mask.device) < counts[:, None]  # (B, n)
    first = torch.arange(batch_size, device=mask.device)[:, None] * length
    target = mask.flatten().nonzero()[:, 0]  # (T,)
    source = (first + order[:, :longest]).flatten().index_select(0, target)
    pairs = _pairs(mask, target) if with_pairs else None
    # Without the hints, torch.compile would specialise on the sizes of the first batch.
    torch._dynamo.maybe_mark_dynamic(mask, 1)
    for tensor in (source, target, *(pairs or ())):
        torch._dynamo.maybe_mark_dynamic(tensor, 0)
    return Packed(mask, source, target, pairs)


def _pairs(mask, target):
    length = mask.shape[1]
    lower = torch.ones(length, length, dtype=torch.bool, device=mask.device).tril()
    # Real particles stand first, so row i of a jet of c particles pairs with 0..i if i < c.
    ij = (mask[:, :, None] & lower).flatten().nonzero()[:, 0]  # (P,)
    row, column = ij // length, ij % length
    jet, i = row // length, row % length
    ji = (jet * length + column) * length + i
    token = torch.zeros(mask.numel(), dtype=torch.long, device=mask.device)
    token[target] = torch.arange(len(target), device=mask.device)
    return token[row], token[jet * length + column], ij, ji


def mean_over_particles(x, layout):
    """Mean of tokens (..., D) over the real particles of each jet, (B, D); zero without any."""
    real = layout.mask.unsqueeze(2)  # (B, n, 1)
    return layout.pad(x).masked_fill(~real, 0).sum(1) / real.sum(1).clamp(min=1)
