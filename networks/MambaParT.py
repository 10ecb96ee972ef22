"""MambaParT: a selective state-space model in place of attention (Mamba, arXiv 2312.00752).

Particles are read one after the other in order of descending pT. A state of ``d_state`` numbers per
channel decays and takes up the next particle at rates that depend on that particle: O(N).
"""

import functools
import math

import torch
import torch.nn.functional as F
from torch import nn

from jetzoo.nn.kinematics import at_least_float32
from jetzoo.nn.transformer import JetClassifier, ParticleTransformer
from jetzoo.plugin import build, get_evaluate_fn, get_loss, get_train_fn  # noqa: F401 - weaver's

try:
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
except ImportError:  # CUDA only, compiled from source
    selective_scan_fn = None


def padded_scan(u, dt, A, B, C):
    """Selective scan, step by step: h_t = exp(dt_t A) h_(t-1) + dt_t u_t B_t, y_t = C_t h_t.

    Parameters
    ----------
    u, dt : Tensor, (B, n, D)
        Inputs and step widths.
    A : Tensor, (D, S)
    B, C : Tensor, (B, n, S)

    Returns
    -------
    Tensor, (B, n, D)
    """
    h = torch.zeros_like(u[:, 0, :, None] * A)  # (B, D, S)
    ys = []
    for t in range(u.shape[1]):
        h = torch.exp(dt[:, t, :, None] * A) * h + (dt[:, t] * u[:, t])[..., None] * B[:, t, None]
        ys.append((h * C[:, t, None]).sum(-1))
    return torch.stack(ys, dim=1)


class PackedScan(torch.autograd.Function):
    """Selective scan of jets of different lengths that keeps no states for the backward pass.

    The tokens stand rank after rank: first those of rank 0 of all jets, then those of rank 1 of
    the jets that have one, and so on, the longest jets first. A step works on the jets that are
    not over, on a slab that stays in the cache of a CPU. States, S times larger than the inputs,
    are computed again in the backward pass.

    Parameters
    ----------
    x, dt : Tensor, (T, D)
        Inputs times step widths, and step widths.
    A : Tensor, (S, D)
    B, C : Tensor, (T, S)
    sizes : list of int
        Number of jets that reach each rank, falling.

    Returns
    -------
    Tensor, (T, D)
    """

    @staticmethod
    def states(x, dt, A, B, sizes):
        """Decays exp(dt A) and states h (b, S, D) of each rank."""
        h = x.new_zeros(1, *A.shape)
        for x_t, dt_t, B_t in zip(*(t.split(sizes) for t in (x, dt, B)), strict=True):
            decay = (dt_t[:, None] * A).exp_()
            h = torch.addcmul(decay * h[: len(x_t)], B_t[..., None], x_t[:, None])
            yield decay, h

    @staticmethod
    def forward(ctx, x, dt, A, B, C, sizes):
        ctx.save_for_backward(x, dt, A, B, C)
        ctx.sizes = sizes
        states = PackedScan.states(x, dt, A, B, sizes)
        ys = [(C_t[:, None] @ h)[:, 0] for C_t, (_, h) in zip(C.split(sizes), states, strict=True)]
        return torch.cat(ys) if ys else torch.zeros_like(x)

    @staticmethod
    def backward(ctx, grad_y):
        x, dt, A, B, C = ctx.saved_tensors
        states = list(PackedScan.states(x, dt, A, B, ctx.sizes))
        grads = tuple(torch.empty_like(t) for t in (x, dt, B, C))
        grad_A = torch.zeros_like(A)
        steps = list(zip(*(t.split(ctx.sizes) for t in (x, dt, B, C, grad_y, *grads)), strict=True))
        grad_h = x.new_zeros(ctx.sizes[0] if ctx.sizes else 0, *A.shape)  # (B, S, D)
        for t in reversed(range(len(steps))):
            x_t, dt_t, B_t, C_t, grad_y_t, grad_x_t, grad_dt_t, grad_B_t, grad_C_t = steps[t]
            decay, h = states.pop()
            # Jets that end here enter with the zeros of `grad_h`.
            grad = grad_h[: len(x_t)].addcmul_(C_t[..., None], grad_y_t[:, None])
            torch.sum(h * grad_y_t[:, None], dim=2, out=grad_C_t)
            torch.sum(grad * x_t[:, None], dim=2, out=grad_B_t)
            torch.sum(grad * B_t[..., None], dim=1, out=grad_x_t)
            grad.mul_(decay)
            if t:
                grad_decay = grad * states[-1][1][: len(x_t)]  # times the decay
                torch.sum(grad_decay * A, dim=1, out=grad_dt_t)
                grad_A += (grad_decay * dt_t[:, None]).sum(0)
            else:
                grad_dt_t.zero_()
        grad_x, grad_dt, grad_B, grad_C = grads
        return grad_x, grad_dt, grad_A, grad_B, grad_C, None


def packed_scan(u, dt, A, B, C, layout):
    """Selective scan of packed tokens (T, ...), jet after jet; see :func:`padded_scan`."""
    counts = layout.mask.sum(1)
    order = counts.argsort(descending=True)
    rank = torch.arange(layout.mask.shape[1], device=u.device)[:, None]  # (n, 1)
    tokens = (counts.cumsum(0) - counts + rank)[:, order][layout.mask[order].t()]  # (T,)
    sizes = [size for size in layout.mask.sum(0).tolist() if size]
    inputs = (t.index_select(0, tokens) for t in (dt * u, dt))
    y = PackedScan.apply(
        *inputs, A.t().contiguous(), *(t.index_select(0, tokens) for t in (B, C)), sizes
    )
    return torch.zeros_like(y).index_copy(0, tokens, y)


def fused_scan(u, dt, A, B, C, layout):
    """Selective scan of tokens by the CUDA kernel, which wants (B, D, n) and (B, S, n)."""
    u, dt, B, C = (layout.pad(t).transpose(1, 2).contiguous() for t in (u, dt, B, C))
    return layout.unpad(selective_scan_fn(u, dt, A, B, C).transpose(1, 2))


@torch._dynamo.disable  # a loop over the particles, whose number changes with each batch
def selective_scan(u, dt, A, B, C, layout):
    """Scan of the tokens of each jet, in float32 at least, by the fastest way there is."""
    with torch.autocast(u.device.type, enabled=False):
        u, dt, B, C = (at_least_float32(t) for t in (u, dt, B, C))
        if u.is_cuda and selective_scan_fn is not None:
            return fused_scan(u, dt, A, B, C, layout)
        if torch.jit.is_tracing():  # a script is exported as a loop, a trace as so many steps
            return torch.jit.script(padded_scan)(u, dt, A, B, C)
        if not layout.is_packed:
            return padded_scan(u, dt, A, B, C)
        return packed_scan(u, dt, A, B, C, layout)


class Mamba(nn.Module):
    """Selective state-space layer with the parameters of ``mamba_ssm.Mamba``.

    Parameters
    ----------
    embed_dim, num_heads : int
        There are no heads: each channel has a state of its own.
    dropout : float
        Not used; the layer has no attention weights.
    d_state : int
        Size of the state of a channel.
    d_conv : int
        Particles that the causal convolution before the scan sees.
    expand : int
        Channels over ``embed_dim``.
    """

    int8_matrices = ("A_log", "conv1d.weight")  # no layers of their own
    mixes_particles = True

    def __init__(self, embed_dim, num_heads=1, dropout=0.0, *, d_state=16, d_conv=4, expand=2):
        super().__init__()
        d_inner = expand * embed_dim
        dt_rank = math.ceil(embed_dim / 16)
        self.sizes = (dt_rank, d_state, d_state)
        self.in_proj = nn.Linear(embed_dim, 2 * d_inner, bias=False)
        self.conv1d = nn.Conv1d(d_inner, d_inner, d_conv, groups=d_inner, padding=d_conv - 1)
        self.x_proj = nn.Linear(d_inner, sum(self.sizes), bias=False)
        self.dt_proj = nn.Linear(dt_rank, d_inner)
        self.A_log = nn.Parameter(torch.empty(d_inner, d_state))
        self.D = nn.Parameter(torch.empty(d_inner))
        self.out_proj = nn.Linear(d_inner, embed_dim, bias=False)
        self.reset_parameters()

    def reset_parameters(self, dt_min=0.001, dt_max=0.1, dt_floor=1e-4):
        """Initial weights of ``mamba_ssm``: step widths log-uniform, A = -(1, 2, ..., d_state)."""
        for layer in (self.in_proj, self.conv1d, self.x_proj, self.out_proj):
            layer.reset_parameters()
        d_inner, d_state = self.A_log.shape
        bound = self.dt_proj.in_features**-0.5
        nn.init.uniform_(self.dt_proj.weight, -bound, bound)
        dt = torch.empty(d_inner).uniform_(math.log(dt_min), math.log(dt_max)).exp()
        dt = dt.clamp(min=dt_floor)
        with torch.no_grad():
            self.dt_proj.bias.copy_(dt + torch.log(-torch.expm1(-dt)))  # inverse of softplus
            self.A_log.copy_(torch.arange(1, d_state + 1).log())
            self.D.fill_(1)

    def forward(self, x, layout, bias=None):
        """Tokens (..., D) to tokens, each of which knows those before it; there is no bias."""
        u, z, dt, B, C = self.scan_inputs(x, layout)
        y = selective_scan(u, dt, -self.A_log.exp(), B, C, layout) + self.D * u
        return self.out_proj(y.to(z.dtype) * F.silu(z))

    def scan_inputs(self, x, layout):
        """Inputs u and gate z (..., d_inner), step widths dt and the matrices B and C of tokens."""
        u, z = self.in_proj(x).chunk(2, dim=-1)
        u = layout.pad(u).transpose(1, 2)  # (B, d_inner, n)
        u = self.conv1d(u)[..., : u.shape[-1]].transpose(1, 2)
        u = F.silu(layout.unpad(u))
        dt, B, C = self.x_proj(u).split(self.sizes, dim=-1)
        return u, z, F.softplus(self.dt_proj(dt)), B, C

    def scan_coefficients(self, x, layout):
        """Coefficients with which the scan carries each particle to those after it.

        The scan is linear in its inputs, y_t = sum over s <= t of alpha_ts u_s for each channel:
        alpha_ts = sum over the state of C_t exp(A (dt_(s+1) + ... + dt_t)) B_s dt_s
        (arXiv 2403.01590, eq. 11).

        Returns
        -------
        Tensor, (B, d_inner, n, n)
            Zero where either particle is padding.
        """
        _, _, *inputs = self.scan_inputs(x, layout)
        dt, B, C = (layout.pad(t).float() for t in inputs)  # (B, n, ...)
        dt = dt.masked_fill(~layout.mask[..., None], 0).transpose(1, 2)  # (B, d_inner, n)
        time = dt.cumsum(-1)
        causal = torch.ones(2 * time.shape[-1:], dtype=torch.bool, device=time.device).tril()
        elapsed = time[..., :, None] - time[..., None, :]  # (B, d_inner, n, n)
        elapsed = elapsed.masked_fill(~causal, 0)
        rates = -self.A_log.float().exp()  # (d_inner, S)
        alpha = torch.zeros_like(elapsed)
        for s in range(rates.shape[1]):
            decay = torch.exp(rates[:, s, None, None] * elapsed)
            alpha += decay * (C[..., s, None] * B[..., None, :, s])[:, None]
        real = layout.mask[:, None, :, None] & causal
        return (alpha * dt[..., None, :]).masked_fill(~real, 0)

    def implied_attention(self, x, layout, bias=None):
        """Mean of |alpha| over the channels, (B, n, n), see :meth:`scan_coefficients`."""
        return self.scan_coefficients(x, layout).abs().mean(1)


class BidirectionalMamba(nn.Module):
    """Sum of two layers, one from the hardest particle down and one from the softest up.

    Parameters are those of :class:`Mamba`.
    """

    mixes_particles = True

    def __init__(self, *args, **options):
        super().__init__()
        self.down = Mamba(*args, **options)
        self.up = Mamba(*args, **options)

    def forward(self, x, layout, bias=None):
        """Tokens (..., D) to tokens; there is no bias."""
        return self.down(x, layout) + flip(self.up(flip(x, layout), layout), layout)

    def implied_attention(self, x, layout, bias=None):
        """Sum over both directions, (B, n, n), see :meth:`Mamba.implied_attention`."""
        up = self.up.implied_attention(flip(x, layout), layout)
        source = mirrored(layout)
        up = up.gather(1, source[:, :, None].expand_as(up))
        up = up.gather(2, source[:, None, :].expand_as(up))
        return self.down.implied_attention(x, layout) + up


def flip(x, layout):
    """Reverse the real particles of each jet; the padding stays behind them."""
    x = layout.pad(x)
    return layout.unpad(x.gather(1, mirrored(layout)[..., None].expand_as(x)))


def mirrored(layout):
    """Position from which each place of the reversed jets is filled, (B, n)."""
    length = layout.mask.shape[1]
    rank = torch.arange(length, device=layout.mask.device)
    return (layout.mask.sum(1, keepdim=True) - 1 - rank) % length


class MambaParT(ParticleTransformer):
    """ParT with a selective state-space model as mixer, without pair interaction.

    Cost: O(N) per layer, in N steps that follow each other. The steps run in the kernel of
    ``mamba_ssm`` where it is installed and the data are on a GPU, in PyTorch elsewhere.

    Parameters
    ----------
    input_dim, num_classes : int
    bidirectional : bool
        Add a second layer per block that reads the particles from the softest up.
    d_state, d_conv, expand : int
        See :class:`Mamba`.
    **options
        See :class:`jetzoo.nn.transformer.ParticleTransformer`.
    """

    fixed_options = (*ParticleTransformer.fixed_options, "pair_bias", "pair_embed_dims")

    def __init__(
        self,
        input_dim,
        num_classes,
        *,
        bidirectional=False,
        d_state=16,
        d_conv=4,
        expand=2,
        **options,
    ):
        mixer = functools.partial(
            BidirectionalMamba if bidirectional else Mamba,
            d_state=d_state,
            d_conv=d_conv,
            expand=expand,
        )
        super().__init__(
            input_dim, num_classes, mixer=mixer, sort_by_pt=True, pair_bias=False, **options
        )

    def reset_parameters(self):
        """Initial weights of ParT, but those of Mamba in the mixers."""
        super().reset_parameters()
        for module in self.modules():
            if hasattr(module, "A_log"):
                module.reset_parameters()


def get_model(data_config, **kwargs):
    """Build the network for weaver; options are those of ``MambaParT``."""
    part, info = build(MambaParT, data_config, **kwargs)
    return JetClassifier(part), info
