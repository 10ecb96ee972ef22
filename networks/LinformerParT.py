"""LinformerParT: attention to a fixed number of slots (Linformer, arXiv 2006.04768).

The keys and the values of the N particles of a jet are projected to k slots by two learned
matrices, and every particle attends to the slots: O(N k) instead of O(N^2). A row of the matrices
belongs to a rank in pT, so the particles are put in that order.
"""

import functools

import torch
from linformer import LinformerSelfAttention

from jetzoo.attention import attention
from jetzoo.nn.kinematics import at_least_float32
from jetzoo.nn.transformer import JetClassifier, ParticleTransformer
from jetzoo.plugin import build, get_evaluate_fn, get_loss, get_train_fn  # noqa: F401 - weaver's


class LinformerAttention(LinformerSelfAttention):
    """Linformer's attention with its own parameters, aware of padding and of a pair bias.

    Parameters
    ----------
    embed_dim, num_heads : int
    dropout : float
        On the attention weights.
    seq_len : int
        Particles that feed the slots, the hardest ones.
    num_slots : int
    backend : str
        See :func:`jetzoo.attention`.
    """

    # Int8 files keep these in half precision: a row has one entry near 1, beside which 8 bits lose
    # all others, and 0.001 of AUC (TopLandscape).
    half_matrices = ("proj_k", "proj_v")
    unbounded_inputs = ("to_out",)  # a slot adds up particles
    mixes_particles = True

    def __init__(self, embed_dim, num_heads, dropout=0.0, *, seq_len, num_slots, backend="auto"):
        super().__init__(embed_dim, seq_len, k=num_slots, heads=num_heads, dropout=dropout)
        self.backend = backend
        # Slot i starts as the particle of rank i, to which those of the ranks i + k, i + 2k ... are
        # added. From the package's random mixtures of all particles a tagger learns more slowly:
        # accuracy 0.386 instead of 0.568 after 41,000 jets of JetClass (benchmarks/train_zoo.py).
        ranks = torch.arange(seq_len)
        for projection in (self.proj_k, self.proj_v):
            projection.data.zero_()[ranks, ranks % num_slots] = 1

    def forward(self, x, layout, bias=None):
        """Attention of the tokens ``x`` (..., D) to the slots of their jet.

        A bias (B, H, n, n) of the pairs is projected to the slots as the keys are.
        """
        padding = ~layout.mask  # (B, n)
        proj_k, proj_v = (p[: layout.mask.shape[1]] for p in (self.proj_k, self.proj_v))
        q, k, v = (layout.pad(project(x)) for project in (self.to_q, self.to_k, self.to_v))
        k = self.to_slots(k.masked_fill(padding[..., None], 0), proj_k)  # (B, k, D)
        v = self.to_slots(v.masked_fill(padding[..., None], 0), proj_v)
        if bias is not None:
            bias = bias.masked_fill(padding[:, None, None, :], 0).transpose(-2, -1)
            bias = self.to_slots(bias, proj_k).transpose(-2, -1)  # (B, H, n, k)
        q, k, v = (t.unflatten(-1, (self.heads, self.dim_head)).transpose(1, 2) for t in (q, k, v))
        # On a CPU in float32, as the slots are: there are few of them.
        with torch.autocast(x.device.type, enabled=x.is_cuda):
            out = attention(
                q if x.is_cuda else q.to(k.dtype),
                k,
                v,
                bias=bias,
                dropout_p=self.dropout.p if self.training else 0.0,
                backend=self.backend,
            )  # (B, H, n, d)
        # The exporter writes `flatten` such that it fails without jets.
        out = out.transpose(1, 2).reshape(*padding.shape, self.heads * self.dim_head)
        return self.to_out(layout.unpad(out))

    def slot_projection(self):
        """Matrix (seq_len, slots) that mixes the keys of all ranks in pT into the slots."""
        return self.proj_k.detach()

    def to_slots(self, rows, projection):
        """(..., n, D), zero in the padding, to (..., k, D)."""
        # `projection` has min(n, seq_len) rows.
        with torch.autocast(rows.device.type, enabled=False):  # a sum over all particles
            return projection.t() @ at_least_float32(rows[..., : self.seq_len, :])


class LinformerParT(ParticleTransformer):
    """ParT with low-rank attention.

    Cost: O(N) per layer in time and memory. With ``pair_bias='projected'`` the interaction of all
    pairs is computed and projected, which brings O(N^2) back.

    Parameters
    ----------
    input_dim, num_classes : int
    seq_len : int
        Particles that feed the slots; softer ones attend to the slots but do not feed them.
    compression : int
        ``seq_len`` over the number of slots.
    pair_bias : {None, 'projected'}
        'projected' adds U P to the attention scores: the pair interaction U (n, n) of
        arXiv 2202.03772 times the projection P (n, k) of the keys.
    **options
        See :class:`jetzoo.nn.transformer.ParticleTransformer`.

    Raises
    ------
    ValueError
        If ``seq_len`` is no multiple of ``compression``, or ``pair_bias`` is something else.
    """

    def __init__(
        self,
        input_dim,
        num_classes,
        *,
        seq_len=128,
        compression=4,
        pair_bias=None,
        attention="auto",
        **options,
    ):
        if seq_len % compression:
            raise ValueError(f"seq_len {seq_len} is no multiple of compression {compression}")
        if pair_bias not in (None, "projected"):
            raise ValueError(f"pair_bias is None or 'projected' here, not {pair_bias!r}")
        mixer = functools.partial(
            LinformerAttention,
            seq_len=seq_len,
            num_slots=seq_len // compression,
            backend=attention,
        )
        super().__init__(
            input_dim,
            num_classes,
            mixer=mixer,
            sort_by_pt=True,
            pair_bias=pair_bias is not None,
            attention=attention,
            **options,
        )


def get_model(data_config, **kwargs):
    """Build the network for weaver; options are those of ``LinformerParT``."""
    part, info = build(LinformerParT, data_config, **kwargs)
    return JetClassifier(part), info
