"""The fast engine: a trained network rewritten for inference, with the same answers.

On a CPU, ParT runs in the kernels of :mod:`jetzoo.native`. What follows is true of all the rest.
Jets are sorted by length and cut into micro-batches that stay in the cache of a CPU (on a GPU, into
few large ones), so that hardly any padding is computed and memory does not grow with the batch. The
pair interaction is computed for one triangle of the pairs, in blocks. Batch norms, the affine part
and the centring of layer norms, ``c_attn`` and 1/sqrt(d) are folded into neighbouring matrices. A
class token looks at the particles through two small matrices per jet, in place of projections of
all particles.
"""

import copy
import logging
from concurrent.futures import ThreadPoolExecutor

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import sdpa_kernel

from .attention.dispatch import SDPA_KERNELS
from .finetune import FineTune
from .kinematics import cylindrical, pair_features
from .layers import Attention, JetClassifier, ParticleTransformer
from .native import part as native_part
from .packing import Padded, pack, pt_order

logger = logging.getLogger("jetzoo")

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}

# Tokens of a micro-batch, and pairs of a block. On a CPU the activations, 512 and 64 wide, should
# stay in the second-level cache; on a GPU there should be enough of them to fill it.
TOKENS = {"cpu": 768, "cuda": 2**17}
PAIRS = {"cpu": 4096, "cuda": 2**20}

# Networks that gain by micro-batches alone. By name: a network file is imported anew at each use.
MICRO_BATCHED = ("ParticleFlowNetwork", "ParticleNet", "DynamicGraphNetwork")

# Up to this length the scores of all pairs of a jet stay in the cache of a CPU.
SHORT = 192

# Score of a key that does not exist: finite, so that jets without any particle give no NaN.
NO_KEY = -1e30


def accelerate(model, precision="fp32", device=None, calibration=None, method="static"):
    """Rewrite a network for the fastest inference with the same answers.

    Parameters
    ----------
    model : nn.Module
        A network of the zoo. It is read now and left as it is: later changes of its weights do not
        change what is returned.
    precision : {"fp32", "bf16", "int8"}
        Of the matrix products. Kinematics, norms and softmax stay in float32.
    device : str or torch.device, optional
        By default that of the model.
    calibration, method
        For int8; see :func:`jetzoo.quantization.quantize`.

    Returns
    -------
    nn.Module
        In eval mode, without gradients, called as the network itself:
        ``(points, features, lorentz_vectors, mask) -> logits (B, num_classes)``. Batch sizes and
        lengths may change from call to call. If the engine does not know the network, this is a
        copy of the network as it is, and a warning is logged.

    Raises
    ------
    ValueError
        If the precision is unknown.
    UserError
        If int8 is not possible as asked for.
    """
    if precision == "int8":
        from .quantization import quantize

        return quantize(model, calibration, method, device)
    if precision not in PRECISIONS:
        raise ValueError(f"precision is one of {', '.join(PRECISIONS)}, int8, not {precision!r}")
    plain = copy_for_inference(model, device)
    engine = rewrite(plain, PRECISIONS[precision])
    if engine is plain:
        logger.warning("no fast form of %s: it runs as it is, in float32", type(plain).__name__)
    return with_kernels(engine)


def with_kernels(engine):
    """The engine on this project's own kernels where they can run it, else as it is.

    Parameters
    ----------
    engine : nn.Module
        What :func:`rewrite` returns.
    """
    folded = getattr(engine, "network", None)
    if not isinstance(folded, FoldedTransformer) or folded.cls_token.is_cuda:
        return engine
    reason = native_part.obstacle(folded)
    if reason is None:
        return native_part.NativePart(folded).eval()
    logger.info("ParT runs in PyTorch, not in the kernels for CPUs: %s", reason)
    return engine


def copy_for_inference(model, device=None):
    """Copy of a network in eval mode, in float32, without gradients."""
    device = torch.device(device or next(model.parameters()).device)
    return copy.deepcopy(model).to(device).float().eval().requires_grad_(False)


def rewrite(plain, dtype):
    """The fast form of a network, which may share its parameters, or the network itself.

    Parameters
    ----------
    plain : nn.Module
        See :func:`copy_for_inference`.
    dtype : torch.dtype
        Of the matrix products.
    """
    core, head = plain, nn.Identity()
    if isinstance(plain, FineTune):
        core, head = plain.mod, plain.get_submodule(plain.name)
    elif isinstance(plain, JetClassifier):
        core = plain.mod
    if isinstance(core, ParticleTransformer):
        return MicroBatches(FoldedTransformer(core, head, dtype)).eval()
    if type(core).__name__ in MICRO_BATCHED:
        return MicroBatches(Plain(plain, dtype)).eval()
    return plain


class MicroBatches(nn.Module):
    """Sorts jets by length, cuts them into micro-batches and puts the answers back in order.

    On a CPU each thread works on a micro-batch of its own: no thread waits for another after every
    operation, and each finds its data in the cache of its core.

    Parameters
    ----------
    network : nn.Module
        Called as ``network(points, features, lorentz_vectors, mask)`` on jets of nearly equal
        length whose real particles stand first; ``mask`` is of bool, (b, n).
    """

    def __init__(self, network):
        super().__init__()
        self.network = network
        # glibc hands memory back to the system after each operation, which costs a quarter of the
        # time in page faults, until a block of nearly 32 MiB has been freed once.
        torch.empty(2**25 - 2**16, dtype=torch.uint8)

    def forward(self, points, features, lorentz_vectors, mask):
        """(B, 2, N), (B, C, N), (B, 4, N) and (B, 1, N) to (B, num_classes)."""
        if len(mask) == 0:
            inputs = (points, features, lorentz_vectors, mask)
            return self(*(x.new_zeros(1, *x.shape[1:]) for x in inputs))[:0]
        with torch.inference_mode():
            mask = mask[:, 0].bool()  # (B, N)
            lengths, jets = mask.sum(1).sort(descending=True)
            inputs = (points, features, lorentz_vectors)
            if mask[:, 1:].gt(mask[:, :-1]).any():  # real particles do not stand first
                order = mask.byte().argsort(dim=1, descending=True, stable=True)
                inputs = [x.gather(2, order[:, None].expand_as(x)) for x in inputs]
            rank = torch.arange(max(mask.shape[1], 1), device=mask.device)

            @torch.inference_mode()
            @torch.autocast(mask.device.type, enabled=False)
            def run(cut):
                start, stop, longest = cut
                rows, real = jets[start:stop], rank[:longest] < lengths[start:stop, None]
                return self.network(
                    *(x[:, :, :longest].index_select(0, rows) for x in inputs), real
                )

            cuts = list(micro_batches(lengths.tolist(), self.network.tokens))
            threads = torch.get_num_threads()
            if mask.is_cuda or len(cuts) < threads or threads == 1:
                logits = torch.cat([run(cut) for cut in cuts])
            else:
                logits = torch.cat(parallel(run, cuts, threads))
        return torch.empty_like(logits).index_copy_(0, jets, logits)


def parallel(function, items, threads):
    """``[function(item) for item in items]`` on several threads, each a single one for PyTorch."""
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(function, items))
    finally:
        torch.set_num_threads(threads)  # MKL keeps one number for all threads


def micro_batches(lengths, tokens):
    """Cut jets in order of falling length: slices (start, stop) and the longest length in each."""
    start = 0
    while start < len(lengths):
        longest = max(lengths[start], 1)
        stop = min(start + max(tokens // longest, 1), len(lengths))
        yield start, stop, longest
        start = stop


class Dense(nn.Module):
    """Linear layer, followed by GELU if asked for.

    Parameters
    ----------
    weight : Tensor, (out, in)
    bias : Tensor, (out,), or None
    dtype : torch.dtype
    gelu : bool
    """

    def __init__(self, weight, bias, dtype, gelu=False):
        super().__init__()
        self.register_buffer("weight", weight.to(dtype).contiguous())
        self.register_buffer("bias", None if bias is None else bias.to(dtype))
        self.gelu = gelu

    def forward(self, x):
        """(..., in) to (..., out)."""
        # oneDNN's product with GELU fused is 5% faster, but keeps 1 MiB for each shape it has seen.
        x = F.linear(x.to(self.weight.dtype), self.weight, self.bias)
        return torch.ops.aten.gelu_(x) if self.gelu else x


def inverse_std(x, eps, centred=False):
    """1 / sqrt(variance + eps) over the last axis, (..., 1), in float32.

    Parameters
    ----------
    x : Tensor, (..., D)
    eps : float
    centred : bool
        The mean is known to be zero.
    """
    x = x.float()
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    variance = norm.square_().div_(x.shape[-1])
    if not centred:
        mean = x.mean(-1, keepdim=True)
        variance.addcmul_(mean, mean, value=-1).clamp_(min=0)
    return variance.add_(eps).rsqrt_()


def standardise(x, eps, centred=False):
    """``x`` over its standard deviation; the weights that follow ignore its mean, see `fold_norm`.

    On a CPU this takes a third of the time of ``F.layer_norm``.
    """
    return x * inverse_std(x, eps, centred)


def fold_norm(norm, weight, bias):
    """``linear(norm(x))`` as weight and bias on ``standardise(x)``, in float64."""
    weight, bias = weight.double(), bias.double()
    bias = bias + weight @ norm.bias.double()
    weight = weight * norm.weight.double()
    return weight - weight.mean(1, keepdim=True), bias


def fold_output(block, weight, bias):
    """Projection after attention times ``c_attn``, its mean over the channels taken out."""
    scale = block.c_attn.double().repeat_interleave(len(bias) // len(block.c_attn))
    weight, bias = weight.double() * scale[:, None], bias.double() * scale
    return weight - weight.mean(0), bias - bias.mean()


def fold_batch_norm(bn):
    """Scale and shift of a batch norm, in float64."""
    scale = bn.weight.double() / (bn.running_var.double() + bn.eps).sqrt()
    return scale, bn.bias.double() - bn.running_mean.double() * scale


class FoldedEmbed(nn.Module):
    """:class:`jetzoo.layers.Embed`."""

    def __init__(self, embed, dtype):
        super().__init__()
        scale, shift = fold_batch_norm(embed.input_bn)
        self.register_buffer("scale", scale.float())
        self.register_buffer("shift", shift.float())
        norms, linears = embed.embed[0::3], embed.embed[1::3]
        self.eps = [norm.eps for norm in norms]
        self.layers = nn.ModuleList(
            Dense(*fold_norm(norm, linear.weight, linear.bias), dtype, gelu=True)
            for norm, linear in zip(norms, linears, strict=True)
        )

    def forward(self, x):
        """(..., C) to (..., D)."""
        x = torch.addcmul(self.shift, x, self.scale)
        for eps, layer in zip(self.eps, self.layers, strict=True):
            x = layer(standardise(x, eps))
        return x.float()


class FoldedPairEmbed(nn.Module):
    """:class:`jetzoo.layers.PairEmbed` of one triangle of the pairs, in blocks."""

    def __init__(self, pair_embed, dtype):
        super().__init__()
        self.num_heads = pair_embed.out_dim
        first, *rest = pair_embed.embed
        scale, shift = fold_batch_norm(first)
        self.layers = nn.Sequential()
        for conv, bn in zip(rest[0::3], rest[1::3], strict=True):
            weight, bias = conv.weight[..., 0].double(), conv.bias.double()
            if not self.layers:
                weight, bias = weight * scale, bias + weight @ shift
            scale, shift = fold_batch_norm(bn)
            self.layers.append(
                Dense(weight * scale[:, None], bias * scale + shift, dtype, gelu=True)
            )

    def forward(self, vectors):
        """Four-vectors (b, n, 4) to the bias (H, b, n, n)."""
        batch_size, length = vectors.shape[:2]
        device = vectors.device
        first, second = torch.tril_indices(length, length, device=device)
        start = torch.arange(batch_size, device=device)[:, None] * length
        i, j = (start + first).flatten(), (start + second).flatten()  # (P,)
        vectors = vectors.flatten(0, 1)
        particles = (vectors, *cylindrical(vectors))
        bias = vectors.new_empty(self.num_heads, len(i))
        size = PAIRS[device.type]
        for rows, columns, out in zip(*(x.split(size, -1) for x in (i, j, bias)), strict=True):
            features = pair_features(
                [x.index_select(0, rows) for x in particles],
                [x.index_select(0, columns) for x in particles],
            )  # (4, P)
            out.copy_(self.layers(features.t()).t())
        rank = torch.arange(length, device=device)
        high, low = torch.maximum(rank[:, None], rank), torch.minimum(rank[:, None], rank)
        pair = (high * (high + 1) // 2 + low).flatten()  # (n * n,)
        bias = bias.view(self.num_heads, batch_size, -1).index_select(2, pair)
        return bias.unflatten(2, (length, length))


class FoldedAttention(nn.Module):
    """Norm, self-attention and ``c_attn`` of a particle block."""

    def __init__(self, block, dtype):
        super().__init__()
        attn = block.attn
        self.num_heads = attn.num_heads
        self.eps = block.pre_attn_norm.eps
        weight, bias = fold_norm(block.pre_attn_norm, attn.in_proj.weight, attn.in_proj.bias)
        dim = weight.shape[1]
        scale = (dim // self.num_heads) ** -0.5
        weight[:dim] *= scale
        bias[:dim] *= scale
        self.in_proj = Dense(weight, bias, dtype)
        self.out_proj = Dense(*fold_output(block, attn.out_proj.weight, attn.out_proj.bias), dtype)

    def forward(self, x, layout, bias):
        """Tokens (b, n, D) and a bias (H, b, n, n) to (b, n, D), without mean over the channels."""
        qkv = self.in_proj(standardise(x, self.eps))
        qkv = qkv.unflatten(-1, (3, self.num_heads, -1))  # (b, n, 3, H, d)
        attend = self.long if x.is_cuda or x.shape[1] > SHORT else self.short
        return self.out_proj(attend(qkv, bias).flatten(2))

    @staticmethod
    def short(qkv, bias):
        """Plain products, on a CPU the fastest as long as the scores stay in its cache."""
        b, n, _, num_heads, _ = qkv.shape
        q, k, v = qkv.permute(2, 3, 0, 1, 4).reshape(3, num_heads * b, n, -1)
        scores = torch.bmm(q, k.transpose(1, 2)).float().add_(bias.flatten(0, 1))
        out = torch.bmm(scores.softmax(-1).to(v.dtype), v)
        return out.view(num_heads, b, n, -1).permute(1, 2, 0, 3)  # (b, n, H, d)

    @staticmethod
    def long(qkv, bias):
        """PyTorch's fused attention."""
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        bias = bias.transpose(0, 1).to(q.dtype)
        with sdpa_kernel(SDPA_KERNELS):
            out = F.scaled_dot_product_attention(q, k, v, bias, scale=1.0)
        return out.transpose(1, 2)  # (b, n, H, d)


class OtherMixer(nn.Module):
    """Norm, mixer and ``c_attn`` of a block whose mixer is not full attention."""

    def __init__(self, block, dtype):
        super().__init__()
        self.norm = block.pre_attn_norm
        self.attn = block.attn
        self.dtype = dtype
        scale = block.c_attn.detach()
        self.register_buffer("scale", scale.repeat_interleave(len(block.w_resid) // len(scale)))

    def forward(self, x, layout, bias):
        """Tokens (..., D) and a bias (H, b, n, n) or None to tokens, without their mean."""
        bias = None if bias is None else bias.transpose(0, 1)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            mixed = self.attn(self.norm(x), layout, bias)
        mixed = mixed.float() * self.scale
        return mixed - mixed.mean(-1, keepdim=True)


class FoldedClassAttention(nn.Module):
    """Norm, attention of the class token to the particles, and ``c_attn`` of a class block.

    There is one query per jet, so the projections of the keys are moved to the query,
    q . (W u) = (W^T q) . u, and those of the values to the weighted sum of the particles.
    """

    def __init__(self, block, dtype):
        super().__init__()
        attn = block.attn
        self.num_heads = attn.num_heads
        self.eps = block.pre_attn_norm.eps
        w_q, w_k, w_v = attn.in_proj.weight.double().chunk(3)
        b_q, b_k, b_v = attn.in_proj.bias.double().chunk(3)
        scale = (len(w_q) // self.num_heads) ** -0.5
        self.query = Dense(scale * w_q, scale * b_q, dtype)
        # The bias of the keys adds the same to all scores of a query, which the softmax ignores.
        w_k, _ = fold_norm(block.pre_attn_norm, w_k, b_k)
        w_v, b_v = fold_norm(block.pre_attn_norm, w_v, b_v)
        for name, weight in (("key", w_k), ("value", w_v)):
            self.register_buffer(name, weight.unflatten(0, (self.num_heads, -1)).to(dtype))
        w_out, b_out = fold_output(block, attn.out_proj.weight, attn.out_proj.bias)
        self.out = Dense(w_out, b_out + w_out @ b_v, dtype)

    def forward(self, cls, x, no_key):
        """Class tokens (b, D), particles over their spread (b, n, D) and 0 or NO_KEY (b, 1, n)."""
        query = self.query(cls).unflatten(-1, (self.num_heads, -1)).transpose(0, 1)  # (H, b, d)
        query = (query @ self.key).transpose(0, 1)  # (b, H, D)
        own = standardise(cls, self.eps).to(x.dtype)[:, None]  # (b, 1, D)
        scores = (query @ x.transpose(1, 2) + no_key, query @ own.transpose(1, 2))
        weights = torch.cat(scores, dim=2).softmax(-1).to(x.dtype)  # (b, H, n + 1)
        mean = weights[..., :-1] @ x + weights[..., -1:] * own  # (b, H, D)
        values = mean.transpose(0, 1) @ self.value.transpose(1, 2)  # (H, b, d)
        return self.out(values.transpose(0, 1).flatten(1))


class FoldedFeedForward(nn.Module):
    """What a block does after the attention."""

    def __init__(self, block, dtype):
        super().__init__()
        self.norms = (block.post_attn_norm.eps, block.pre_fc_norm.eps, block.post_fc_norm.eps)
        self.register_buffer("scale", block.post_attn_norm.weight.detach())
        self.register_buffer("shift", block.post_attn_norm.bias.detach())
        self.fc1 = Dense(
            *fold_norm(block.pre_fc_norm, block.fc1.weight, block.fc1.bias), dtype, gelu=True
        )
        weight, bias = fold_norm(block.post_fc_norm, block.fc2.weight, block.fc2.bias)
        self.fc2 = Dense(weight, None, dtype)
        self.register_buffer("bias", bias.float())
        self.register_buffer("w_resid", block.w_resid.detach())

    def forward(self, x, mixed):
        """Tokens (..., D), and what the attention gave without its mean, to tokens."""
        eps_attn, eps_fc1, eps_fc2 = self.norms
        mixed = standardise(mixed, eps_attn, centred=True)
        x = torch.addcmul(self.shift, mixed, self.scale).add_(x)
        hidden = self.fc1(standardise(x, eps_fc1))
        out = torch.addcmul(self.bias, self.fc2(hidden), inverse_std(hidden, eps_fc2))
        return out.addcmul_(x, self.w_resid)


class FoldedTransformer(nn.Module):
    """:class:`jetzoo.layers.ParticleTransformer` on jets of nearly equal length.

    Parameters
    ----------
    part : ParticleTransformer
        In eval mode.
    head : nn.Module
        Applied to the output of ``part``.
    dtype : torch.dtype
        Of the matrix products.
    """

    def __init__(self, part, head, dtype):
        super().__init__()
        self.sort_by_pt = part.sort_by_pt
        self.embed = FoldedEmbed(part.embed, dtype)
        self.pair_embed = (
            None if part.pair_embed is None else FoldedPairEmbed(part.pair_embed, dtype)
        )
        self.full = all(type(block.attn) is Attention for block in part.blocks)
        mixer = FoldedAttention if self.full else OtherMixer
        self.mixers = nn.ModuleList(mixer(block, dtype) for block in part.blocks)
        self.feed_forwards = nn.ModuleList(FoldedFeedForward(block, dtype) for block in part.blocks)
        self.register_buffer("cls_token", part.cls_token.detach()[0])
        self.cls_mixers = nn.ModuleList(FoldedClassAttention(b, dtype) for b in part.cls_blocks)
        self.cls_feed_forwards = nn.ModuleList(FoldedFeedForward(b, dtype) for b in part.cls_blocks)
        self.head = nn.Sequential(part.norm, part.fc or nn.Identity(), head)
        if part.for_inference:
            self.head.append(nn.Softmax(1))
        self.dtype = dtype
        self.tokens = TOKENS[self.cls_token.device.type]

    def forward(self, points, features, lorentz_vectors, mask):
        """(b, 2, n), (b, C, n), (b, 4, n) and a mask of bool, (b, n), to (b, num_classes)."""
        mask = mask[:, None]  # (b, 1, n)
        zero = features.new_zeros(())
        features, lorentz_vectors = (
            torch.where(mask, x, zero) for x in (features, lorentz_vectors)
        )
        key = pt_order(lorentz_vectors, mask) if self.sort_by_pt else None
        # Only full attention wants the rectangle; with it, the padding is not worth the packing.
        layout = Padded(mask, key) if self.full else pack(mask, key)
        padding = ~layout.mask
        bias = None
        if self.pair_embed is not None:
            bias = self.pair_embed(layout.pad(layout.take(lorentz_vectors)).float())
        elif self.full:
            shape = (self.mixers[0].num_heads, len(mask), *2 * mask.shape[2:])
            bias = features.new_zeros(shape)
        if bias is not None and padding.any():
            bias.masked_fill_(padding[:, None], NO_KEY)
        x = self.embed(layout.take(features))
        for mixer, feed_forward in zip(self.mixers, self.feed_forwards, strict=True):
            x = feed_forward(x, mixer(x, layout, bias))
        x = layout.pad(standardise(x, self.cls_mixers[0].eps).to(self.dtype))  # (b, n, D)
        no_key = x.new_zeros(padding.shape).masked_fill_(padding, NO_KEY)[:, None]
        cls = self.cls_token.expand(len(mask), -1)  # (b, D)
        for mixer, feed_forward in zip(self.cls_mixers, self.cls_feed_forwards, strict=True):
            cls = feed_forward(cls, mixer(cls, x, no_key))
        return self.head(cls)


class Plain(nn.Module):
    """A network nearly as it is, in micro-batches.

    Parameters
    ----------
    network : nn.Module
        In eval mode. Modules of it with a method ``fold`` are folded.
    dtype : torch.dtype
        Of the matrix products.
    """

    def __init__(self, network, dtype):
        super().__init__()
        for module in list(network.modules()):
            if hasattr(module, "fold"):
                module.fold()
        self.network = network
        self.dtype = dtype
        self.tokens = TOKENS[next(network.parameters()).device.type]

    def forward(self, points, features, lorentz_vectors, mask):
        """(b, 2, n), (b, C, n), (b, 4, n) and a mask of bool, (b, n), to (b, num_classes)."""
        with torch.autocast(mask.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            logits = self.network(points, features, lorentz_vectors, mask[:, None])
        return logits.float()
