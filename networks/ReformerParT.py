"""ReformerParT: attention among similar particles (Reformer, arXiv 2001.04451).

Queries and keys are the same vectors. They are hashed by angle, sorted by hash and cut into chunks;
a particle attends to its chunk and to the one before, O(N log N) for the sort and O(N) for the
rest. Several rounds of hashing make up for neighbours that one round has parted.
"""

import functools

import reformer_pytorch
import torch
import torch.nn.functional as F
from torch import nn

from jetzoo.attention import attention
from jetzoo.attention.reference import weights as attention_weights
from jetzoo.nn.kinematics import at_least_float32
from jetzoo.nn.transformer import JetClassifier, ParticleTransformer
from jetzoo.plugin import build, get_evaluate_fn, get_loss, get_train_fn  # noqa: F401 - weaver's

# Hashes per round: as many as chunks of 32 in the 128 hardest particles, above which jets are rare.
NUM_HASHES = 4

# Added to the score of a particle with itself, which counts where there is nobody else.
SELF_SCORE = -5e4
MASKED_SCORE = -1e9

# Longer jets go through the chunks. On a CPU the masked softmax takes a ninth of the time of the
# package for 128 particles in training, two thirds for 512, twice as much for 1024.
MAX_MASKED = 384


class LSHAttention(reformer_pytorch.LSHAttention):
    """LSH attention of the package, with a result that depends on the real vectors alone.

    The rounds, weighted as in the paper, are one softmax over all that they see, a particle seen
    by two rounds counting twice. Where the square of the length is no burden, :meth:`masked` takes
    that softmax; beyond, and where the weights are asked for, the package goes through the chunks.

    Random rotations decide what is hashed together. They are drawn anew at each call in training,
    as in the paper; in eval they are those of the buffer ``rotations``, which is saved with the
    weights. The number of hashes does not grow with the padded length, and padding, which is made
    of null vectors, comes last in each round.

    Parameters
    ----------
    dim : int
        Of the vectors.
    bucket_size : int
        Length of a chunk.
    n_hashes : int
        Rounds of hashing.
    dropout : float
        On the attention weights.
    """

    def __init__(self, dim, bucket_size, n_hashes, dropout=0.0):
        super().__init__(bucket_size=bucket_size, n_hashes=n_hashes, dropout=dropout)
        self.register_buffer("rotations", torch.randn(dim, n_hashes, NUM_HASHES // 2))

    def forward(self, qk, v, input_mask):
        """Attention of the vectors (B, n, d) that ``input_mask`` (B, n) says are real.

        Returns
        -------
        out : Tensor, (B, n, d)
        weights : Tensor, (B, n, n)
            Empty unless the package was told to return them.
        buckets : Tensor, (B, n_hashes * n)
        """
        length = qk.shape[1]
        if length <= MAX_MASKED and not self._return_attn:
            return self.masked(qk, v, input_mask)
        # The first chunk of a round looks back at the last one of the round before. At least one
        # chunk of padding between them makes the padded length irrelevant.
        chunk = self.bucket_size
        extra = chunk + (-length - chunk) % (2 * chunk)  # the package wants pairs of chunks
        qk, v = (F.pad(x, (0, 0, 0, extra)) for x in (qk, v))
        out, weights, buckets = super().forward(qk, v, input_mask=F.pad(input_mask, (0, extra)))
        buckets = buckets.unflatten(1, (self.n_hashes, -1))[..., :length].flatten(1)
        if self._return_attn:
            weights = weights[:, :length, :length]
        return out[:, :length], weights, buckets

    def masked(self, qk, v, mask):
        """The same as full attention, biased by how many rounds see a particle."""
        bias, buckets = self.rounds(qk)
        out = attention(
            *(x[:, None] for x in (qk, F.normalize(qk, dim=-1), v)),
            bias=bias[:, None],
            mask=mask,
            dropout_p=self.dropout.p if self.training else 0.0,
        )
        return out[:, 0], qk.new_empty(0), buckets

    def weights(self, qk, mask):
        """Attention weights (B, n, n) of the vectors (B, n, d), without dropout."""
        bias, _ = self.rounds(qk)
        q, k = qk[:, None], F.normalize(qk, dim=-1)[:, None]
        return attention_weights(q, k, bias[:, None], mask)[:, 0]

    def rounds(self, qk):
        """Logarithm (B, n, n) of the number of rounds in which a vector sees another, and buckets.

        The score of a vector with itself is ``SELF_SCORE``.
        """
        particle = torch.arange(qk.shape[1], device=qk.device)
        buckets = self.hash_vectors(None, qk)
        order = buckets.unflatten(1, (self.n_hashes, -1)) * qk.shape[1] + particle
        rank = order.argsort(dim=-1).argsort(dim=-1).transpose(1, 2)  # (B, n, n_hashes)
        chunk = (rank // self.bucket_size)[..., None]
        chunks = particle[:: self.bucket_size] // self.bucket_size
        own, next_one = chunk == chunks, chunk + 1 == chunks  # (B, n, n_hashes, chunks)
        queries, keys = (x.flatten(2).to(qk.dtype) for x in (own, own | next_one))
        rounds = queries @ keys.transpose(1, 2)  # (B, n, n): in how many one sees the other
        bias = rounds.log().clamp(min=MASKED_SCORE)
        return bias.masked_fill(particle[:, None] == particle, SELF_SCORE), buckets

    def hash_vectors(self, n_buckets, vecs, **cache):
        """Sorting key (B, n_hashes * n) of the vectors (B, n, d); rounds do not mix."""
        rotations = torch.randn_like(self.rotations) if self.training else self.rotations
        rotated = torch.einsum("bnd,drh->brnh", vecs.detach(), rotations)
        hashes = torch.cat((rotated, -rotated), dim=-1).argmax(-1)  # (B, n_hashes, n)
        padding = (vecs == 0).all(-1)[:, None]  # (B, 1, n)
        hashes = hashes.masked_fill(padding, NUM_HASHES)
        first = torch.arange(self.n_hashes, device=vecs.device)[:, None] * (NUM_HASHES + 1)
        return (hashes + first).reshape(-1, self.n_hashes * vecs.shape[1])


class ReformerAttention(nn.Module):
    """Self-attention of the tokens of a jet by locality-sensitive hashing.

    Parameters
    ----------
    embed_dim, num_heads : int
    dropout : float
        On the attention weights.
    bucket_size, n_hashes : int
        See :class:`LSHAttention`.
    """

    mixes_particles = True

    def __init__(self, embed_dim, num_heads, dropout=0.0, *, bucket_size, n_hashes):
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = embed_dim // num_heads
        self.to_qk = nn.Linear(embed_dim, embed_dim, bias=False)
        self.to_v = nn.Linear(embed_dim, embed_dim, bias=False)
        self.lsh = LSHAttention(self.head_dim, bucket_size, n_hashes, dropout)
        self.out_proj = nn.Linear(embed_dim, embed_dim)

    @torch._dynamo.disable  # sorting and gathering take torch.compile minutes and gain nothing
    def forward(self, x, layout, bias=None):
        """Tokens (..., D) to tokens; there is no bias."""
        qk, v = (self.vectors(project(x), layout) for project in (self.to_qk, self.to_v))
        mask = layout.mask.repeat_interleave(self.num_heads, dim=0)
        # Half precision cannot tell SELF_SCORE from that plus the logarithm of n_hashes.
        with torch.autocast(x.device.type, enabled=False):
            out, _, _ = self.lsh(at_least_float32(qk), at_least_float32(v), input_mask=mask)
        out = out.unflatten(0, (-1, self.num_heads)).transpose(1, 2).flatten(2)  # (B, n, D)
        return self.out_proj(layout.unpad(out).to(x.dtype))

    def vectors(self, x, layout):
        """Projected tokens (..., D) as vectors (B * H, n, d) of the heads, zero in the padding."""
        x = layout.pad(x).masked_fill(~layout.mask[..., None], 0)
        x = x.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)
        # Of `flatten(0, 1)` the ONNX exporter takes the length for a constant.
        return x.reshape(-1, layout.mask.shape[1], self.head_dim)

    def attention_weights(self, x, layout, bias=None):
        """Weights (B, H, n, n) with which the particles attend to each other."""
        mask = layout.mask.repeat_interleave(self.num_heads, dim=0)
        weights = self.lsh.weights(self.vectors(self.to_qk(x), layout).float(), mask)
        return weights.unflatten(0, (-1, self.num_heads))

    def shared_buckets(self, x, layout, bias=None):
        """Share of heads and rounds in which two particles have the same hash, (B, n, n)."""
        hashes = self.lsh.hash_vectors(None, self.vectors(self.to_qk(x), layout).float())
        hashes = hashes.unflatten(1, (self.lsh.n_hashes, -1))  # (B * H, n_hashes, n)
        same = (hashes[..., :, None] == hashes[..., None, :]).float().mean(1)
        same = same.unflatten(0, (-1, self.num_heads)).mean(1)  # (B, n, n)
        return same * (layout.mask[:, :, None] & layout.mask[:, None, :])


class ReformerParT(ParticleTransformer):
    """ParT with attention by locality-sensitive hashing, without pair interaction.

    Cost: O(N log N) per layer in time, O(N) in memory. The order in pT decides which of the
    particles with the same hash share a chunk.

    Parameters
    ----------
    input_dim, num_classes : int
    bucket_size : int
        Particles in a chunk. Jets of at most one chunk have full attention.
    n_hashes : int
        Rounds of hashing, in which the attention is averaged with the weights of the paper.
    **options
        See :class:`jetzoo.nn.transformer.ParticleTransformer`.
    """

    fixed_options = (*ParticleTransformer.fixed_options, "pair_bias", "pair_embed_dims")

    def __init__(self, input_dim, num_classes, *, bucket_size=32, n_hashes=4, **options):
        mixer = functools.partial(ReformerAttention, bucket_size=bucket_size, n_hashes=n_hashes)
        super().__init__(
            input_dim, num_classes, mixer=mixer, sort_by_pt=True, pair_bias=False, **options
        )


def get_model(data_config, **kwargs):
    """Build the network for weaver; options are those of ``ReformerParT``."""
    part, info = build(ReformerParT, data_config, **kwargs)
    return JetClassifier(part), info
