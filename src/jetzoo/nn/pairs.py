"""The pair interaction of ParT (arXiv 2202.03772, eq. 3): features of pairs to attention biases."""

from contextlib import contextmanager, nullcontext

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from ..modules import fusible
from ..native.pairs import pair_mlp, takes_pairs
from .kinematics import pair_features, particle_kinematics


class PairBias:
    """Pair interaction of a batch of jets, which knows how it is laid out.

    Parameters
    ----------
    layout : Packed or Padded
    pairs : Tensor, (H, P), optional
        One number for each of the pairs of packed jets, see :attr:`jetzoo.nn.packing.Packed.pairs`.
    dense : Tensor, (B, H, n, n), optional
        Given where there are no ``pairs``.

    Attributes
    ----------
    pairs : Tensor, (H, P), or None
    dense : Tensor, (B, H, n, n)
        Symmetric; undefined where either particle is padding. Made of ``pairs`` when first asked
        for.
    """

    def __init__(self, layout, pairs=None, dense=None):
        self.layout = layout
        self.pairs = pairs
        self._dense = dense

    @property
    def dense(self):
        if self._dense is None:
            self._dense = self._mirrored()
        return self._dense

    def _mirrored(self):
        batch_size, length = self.layout.mask.shape
        size = batch_size * length * length
        matrices = Mirror.apply(self.pairs, *self.layout.pairs[2:], size)
        return matrices.unflatten(1, (batch_size, length, length)).transpose(0, 1)


class PointwiseConv(nn.Conv1d):
    """``Conv1d`` of kernel size 1 as a matrix product.

    torch.compile would specialise a convolution on the number of pairs, and recompile every step.
    """

    def __init__(self, in_channels, out_channels):
        super().__init__(in_channels, out_channels, kernel_size=1)

    def forward(self, x):
        """(1, C, P) to (1, C', P)."""
        return self.weight[..., 0] @ x + self.bias[:, None]


class PairEmbed(nn.Module):
    """Pair interaction: an MLP on ln kT, ln z, ln dR and ln m2 gives one bias per attention head.

    Nothing of its hidden layers is kept for the backward pass: they are computed again (in C++ on a
    CPU, see :func:`jetzoo.native.pairs.pair_mlp`). Without gradients and batch statistics, pairs
    are computed in chunks. So what grows with the square of the number of particles is the input
    and the output.

    Parameters
    ----------
    dims : sequence of int
        Widths; the last one is the number of heads.
    use_pre_activation_pair : bool
        Leave out the GELU after the last layer.
    remove_self_pair : bool
        A particle has no interaction with itself: these pairs have the bias 0, and no part in the
        batch statistics.
    """

    layer_kinds = {"": "pair embedding"}

    CHUNK = 2**17  # pairs; 32 MiB for each hidden layer of 64 in float32

    def __init__(self, dims, use_pre_activation_pair=False, remove_self_pair=False):
        super().__init__()
        self.remove_self_pair = remove_self_pair
        input_dim = 4
        layers = [nn.BatchNorm1d(input_dim)]
        for dim in dims:
            layers += [PointwiseConv(input_dim, dim), nn.BatchNorm1d(dim), nn.GELU()]
            input_dim = dim
        self.embed = nn.Sequential(*(layers[:-1] if use_pre_activation_pair else layers))
        self.out_dim = dims[-1]

    def forward(self, lorentz_vectors, layout):
        """Bias of all pairs of a batch of jets.

        Parameters
        ----------
        lorentz_vectors : Tensor, (B, 4, N)
        layout : Packed or Padded

        Returns
        -------
        PairBias
        """
        particles = _particles(lorentz_vectors, layout)
        if layout.is_packed:
            return PairBias(layout, pairs=self._pairs_of_tokens(particles, *layout.pairs[:2]))
        with torch.no_grad(), torch.autocast(lorentz_vectors.device.type, enabled=False):
            rows = [x.unsqueeze(2) for x in particles]  # (B, N, 1, ...)
            columns = [x.unsqueeze(1) for x in particles]  # (B, 1, N, ...)
            features = pair_features(rows, columns, self.embed[0].weight.dtype)  # (4, B, N, N)
        bias = self._mlp(features.flatten(1)[None])  # (H, B N N)
        bias = bias.unflatten(1, features.shape[1:]).transpose(0, 1)
        if self.remove_self_pair:
            rank = torch.arange(bias.shape[-1], device=bias.device)
            bias = bias.masked_fill(rank[:, None] == rank, 0)
        return PairBias(layout, dense=bias)

    def parts(self):
        """List the modules that a fused form computes together, with their classes."""
        kinds = (PointwiseConv, nn.BatchNorm1d, nn.GELU) * (len(self.embed) // 3)
        modules = zip(self.embed, (nn.BatchNorm1d, *kinds[: len(self.embed) - 1]), strict=True)
        return [(self.embed, nn.Sequential), *modules]

    def _pairs_of_tokens(self, particles, i, j):
        """Bias (H, P) of the pairs of tokens ``i`` and ``j``, some of which may be left out."""
        if not self.remove_self_pair:
            return self._pairs(particles, i, j)
        others = (i != j).nonzero()[:, 0]
        bias = self._pairs(particles, i[others], j[others])
        return bias.new_zeros(self.out_dim, len(i)).index_copy(1, others, bias)

    def _pairs(self, particles, i, j):
        """Bias (H, P) of the pairs of tokens ``i`` and ``j``."""
        dtype = self.embed[0].weight.dtype
        if not (self.training or torch.is_grad_enabled() or torch.compiler.is_compiling()):
            chunks = zip(i.split(self.CHUNK), j.split(self.CHUNK), strict=True)
            return torch.cat(
                [self._mlp(_features(particles, *pair, dtype)) for pair in chunks], dim=1
            )
        features = _features(particles, i, j, dtype)
        if fusible(self.parts()) and takes_pairs(features[0], self.embed):
            return pair_mlp(features[0], self.embed)
        if not torch.is_grad_enabled() or features.shape[-1] < 2:
            return self._mlp(features)
        # torch.compile takes no context, and needs none: it records the statistics once.
        context = {} if torch.compiler.is_compiling() else {"context_fn": self._contexts}
        return checkpoint(
            self._mlp, features, use_reentrant=False, preserve_rng_state=False, **context
        )

    def _mlp(self, features):
        """Features (1, 4, P) to the bias (H, P)."""
        if not self.training or features.shape[-1] > 1:
            return self.embed(features)[0]
        for layer in self.embed:  # one pair has no variance: the running statistics stand for it
            if isinstance(layer, nn.BatchNorm1d):
                features = F.batch_norm(
                    features,
                    layer.running_mean,
                    layer.running_var,
                    layer.weight,
                    layer.bias,
                    eps=layer.eps,
                )
            else:
                features = layer(features)
        return features[0]

    def _contexts(self):
        return nullcontext(), self._without_running_statistics()

    @contextmanager
    def _without_running_statistics(self):
        """While the hidden layers are computed again: a batch is to be counted once."""
        norms = [layer for layer in self.embed if hasattr(layer, "momentum")]
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.momentum = 0.0
        try:
            yield
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum
                if self.training:
                    norm.num_batches_tracked.sub_(1)


def _particles(lorentz_vectors, layout):
    """:func:`particle_kinematics` of the tokens."""
    with torch.no_grad(), torch.autocast(lorentz_vectors.device.type, enabled=False):
        return particle_kinematics(layout.take(lorentz_vectors))


def _features(particles, i, j, dtype):
    """Features (1, 4, P) of the pairs of tokens ``i`` and ``j``."""
    with torch.no_grad(), torch.autocast(i.device.type, enabled=False):
        return pair_features([x[i] for x in particles], [x[j] for x in particles], dtype)[None]


class Mirror(torch.autograd.Function):
    """Put each pair at two places of a matrix that is zero elsewhere.

    Parameters
    ----------
    x : Tensor, (H, P)
    ij, ji : Tensor of int, (P,)
        Places in the flattened matrices, the same for pairs of a particle with itself.
    size : int

    Returns
    -------
    Tensor, (H, size)
    """

    @staticmethod
    def forward(ctx, x, ij, ji, size):
        ctx.save_for_backward(ij, ji)
        out = x.new_zeros(len(x), size)
        out[:, ij] = x
        out[:, ji] = x
        return out

    @staticmethod
    def backward(ctx, grad):
        ij, ji = ctx.saved_tensors
        return grad[:, ij] + grad[:, ji].mul_(ij != ji), None, None, None
