"""Int8: networks about four times smaller, whose matrix products run in integer arithmetic.

The network is first rewritten as :func:`jetzoo.accelerate` does (norms folded into the weights),
then its layers are replaced. Weights are int8, symmetric, with one scale per output channel.
Activations are

static
    uint8 with one scale and zero point per layer, from calibration jets;
dynamic
    int8 with one scale per token, found at run time; no calibration;
weight-only
    float32.

Norms, softmax, kinematics and the residual stream stay in float32, and so do the layers that read
the physical inputs or give the outputs (:func:`stays_float`).
"""

import functools
import io
import logging
import math
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize
from tqdm import tqdm
from weaver.utils.data.config import DataConfig

from jetzoo import UserError, tables

from . import inference, zoo
from .layers import Attention, Block, Embed

logger = logging.getLogger("jetzoo")

METHODS = ("static", "dynamic", "weight-only")
OBSERVERS = ("percentile", "mse")

# Jets to calibrate with: more change nothing (benchmarks/quantization.py --calibration).
CALIBRATION_JETS = 512

# Fine-tuning: jets, the part of them that judges, steps, jets of a step, and the learning rate.
TUNING_JETS, JUDGES, STEPS, TUNING_BATCH, LEARNING_RATE = 4096, 1024, 200, 64, 3e-5

# What the percentile observer cuts off at each end.
PERCENTILE = 1e-4

# Values of a layer that the observers look at, of each call.
PER_CALL = 2**14

# Products of at most this many numbers of 8 bits have a sum that float32 holds exactly.
EXACT = 2**24 // (255 * 127)

# Matrices that are no layers of their own: rounded, too, but they multiply in float32.
ROUNDED = re.compile(r"cls_mixers\.\d+\.(key|value)$|(proj_[kv]|A_log|conv1d\.weight)$")

# Of these the ones rounded to half precision: LinformerParT's projections have one entry near 1 in
# each row, beside which 8 bits lose all others, and 0.001 of AUC (TopLandscape).
HALVED = re.compile(r"proj_[kv]$")

FORMAT = "jetzoo int8 1"


def stays_float(name, layer):
    """Whether a layer stays in float32: fewer than 16 inputs or outputs.

    These read the physical inputs (logarithms and angles of very different spread), or give the
    pair bias or the logits, where an error is not averaged over many channels. They have 1% of the
    arithmetic and a quarter of the error: ``benchmarks/quantization.py --sensitivity``.
    """
    return min(layer.weight.shape[0], layer.weight[0].numel()) < 16


class QuantizedDense(nn.Module):
    """Linear layer in int8, followed by GELU if asked for; takes the place of a ``Dense``.

    The products ``(q - zero_point) * weight`` are summed as integers, exactly, and the sum is
    multiplied by ``input_scale * scale``; then bias and GELU in float32. Here q is the activation
    over ``input_scale``, plus the zero point, rounded to the nearest and clipped to 0 ... 255. The
    dynamic form has a scale per token, no zero point, and -127 ... 127.

    Parameters
    ----------
    weight : Tensor, (out, in)
        Of float, or what the attribute of this name should be.
    bias : Tensor, (out,), or None
    method : {"static", "dynamic", "weight-only"}
    gelu : bool

    Attributes
    ----------
    weight : Tensor of int8, (out, in)
    scale : Tensor, (out,)
    bias : Tensor, (out,), or None
    input_scale : Tensor, (), or None
        Of the static method, set by :meth:`set_range`.
    input_zero_point : int
        0 ... 255.
    gelu : bool
    """

    def __init__(self, weight, bias, method, gelu=False):
        super().__init__()
        weight, scale = round_rows(weight)
        self.method = method
        self.gelu = gelu
        self.register_buffer("weight", weight.to(torch.int8))
        self.register_buffer("scale", scale)
        self.register_buffer("bias", None if bias is None else bias.detach().float().clone())
        self.register_buffer("input_scale", torch.ones(()) if method == "static" else None)
        self.input_zero_point = 0
        self._prepared = None

    def set_range(self, low, high):
        """Let the 256 steps of the static method span ``low`` ... ``high``, and zero."""
        low, high = min(float(low), 0.0), max(float(high), 0.0)
        scale = max(high - low, 1e-12) / 255
        self.input_scale.fill_(scale)
        self.input_zero_point = round(-low / scale)
        self._prepared = None

    def correct(self, weight, mean):
        """Add what the rounding of the weights changes in the mean output to the bias.

        Bias correction (arXiv 1906.04721, section 4.2): most inputs are outputs of a GELU, whose
        mean is not zero, so that rounding shifts the outputs of all jets alike.

        Parameters
        ----------
        weight : Tensor, (out, in)
            Before rounding.
        mean : Tensor, (in,)
            Of the inputs.
        """
        shift = (weight - self.weight * self.scale[:, None]) @ mean
        self.bias = shift if self.bias is None else self.bias + shift
        self._prepared = None

    def extra_repr(self):
        """For ``print``."""
        rows, columns = self.weight.shape
        return f"{columns}, {rows}, method={self.method!r}, gelu={self.gelu}"

    def forward(self, x):
        """(..., in) to (..., out), float32."""
        out = self.product(x.reshape(-1, x.shape[-1]).float())
        return out.view(*x.shape[:-1], len(self.weight))

    def product(self, x):
        """(T, in) to (T, out)."""
        if self.method == "weight-only":
            if self._prepared is None:
                self._prepared = self.weight * self.scale[:, None]
            return self.finish(F.linear(x, self._prepared, self.bias))
        fast = x.device.type == "cpu" and len(x) > 0 and exact_products()
        if self.method == "dynamic":
            scale = x.abs().amax(1, keepdim=True).clamp_(min=1e-30).mul_(1 / 127)
            q = (x / scale).round_()
            total = torch._int_mm(q.to(torch.int8), self.weight.t()) if fast else self.exact(q)
            out = (total * scale).mul_(self.scale)
            return self.finish(out if self.bias is None else out.add_(self.bias))
        scale, zero = self.input_scale, self.input_zero_point
        q = torch.add(x.new_tensor(zero + 0.5), x, alpha=1 / scale.item()).clamp_(0, 255)
        q = q.to(torch.uint8)
        if fast:
            return self.fused(q)
        out = self.exact(q.float() - zero) * (scale * self.scale)
        return self.finish(out if self.bias is None else out.add_(self.bias))

    def exact(self, q):
        """Sum of products with numbers of 8 bits, kept in float32, on any device."""
        pieces = zip(q.split(EXACT, 1), self.weight.float().split(EXACT, 1), strict=True)
        return sum(a @ b.t() for a, b in pieces)

    def fused(self, q):
        """oneDNN's product of uint8 (T, in) with everything that follows in one kernel."""
        if self._prepared is None:
            self._prepared = (
                torch.ops.onednn.qlinear_prepack(self.weight, None),
                torch.zeros(len(self.weight), dtype=torch.int32),
                self.input_scale.item(),
            )
        weight, zeros, scale = self._prepared
        return torch.ops.onednn.qlinear_pointwise(
            q,
            scale,
            self.input_zero_point,
            weight,
            self.scale,
            zeros,
            self.bias,
            1.0,
            0,
            torch.float32,
            "gelu" if self.gelu else "none",
            [],
            "none",
        )

    def finish(self, x):
        """GELU, if there is one."""
        return torch.ops.aten.gelu_(x) if self.gelu else x

    def __getstate__(self):
        # What oneDNN has packed can be neither copied nor written.
        return {**self.__dict__, "_prepared": None}


class QuantizedConv(nn.Module):
    """One-dimensional convolution whose windows go through a :class:`QuantizedDense`.

    Parameters
    ----------
    conv : nn.Conv1d
        Not grouped, padded with zeros.
    method : str
    """

    def __init__(self, conv, method):
        super().__init__()
        (self.size,), (self.stride,), (self.padding,) = (
            conv.kernel_size,
            conv.stride,
            conv.padding,
        )
        self.dense = QuantizedDense(conv.weight.flatten(1), conv.bias, method)

    def forward(self, x):
        """(B, C, n) to (B, C', n')."""
        x = F.pad(x, (self.padding, self.padding)).unfold(2, self.size, self.stride)
        return self.dense(x.transpose(1, 2).flatten(2)).transpose(1, 2)  # of (B, n', C k)


def round_rows(weight):
    """Round each row of a matrix to multiples of its largest absolute value over 127.

    Parameters
    ----------
    weight : Tensor, (out, in)

    Returns
    -------
    integers : Tensor of float, (out, in)
        -127 ... 127.
    scale : Tensor of float32, (out,)
    """
    weight = weight.detach().float()
    scale = weight.abs().amax(1).clamp(min=1e-30) / 127
    return (weight / scale[:, None]).round(), scale


@functools.cache
def exact_products():
    """Whether the processor multiplies the largest numbers of 8 bits without overflow.

    Without VNNI, x86 adds pairs of products in 16 bits, which saturate.
    """
    q = torch.full((4, 64), 255, dtype=torch.uint8)
    weight = torch.full((4, 64), 127, dtype=torch.int8)
    layer = QuantizedDense(weight.float(), None, "static")
    try:
        fused = layer.fused(q)
        signed = torch._int_mm(weight, -weight.t())
    except (RuntimeError, AttributeError):  # PyTorch without oneDNN, or another processor
        return False
    return bool((fused == 64 * 255 * 127).all() and (signed == -64 * 127**2).all())


def layers_of(engine):
    """The layers that carry weight, by name: matrix products and convolutions."""
    return {
        name: module
        for name, module in engine.named_modules()
        if isinstance(module, (inference.Dense, nn.Linear))
        or getattr(module, "on_rows", False)
        or (type(module) is nn.Conv1d and module.groups == 1)
    }


def quantized(layer, method):
    """The int8 form of a layer of :func:`layers_of`."""
    if type(layer) is nn.Conv1d:
        return QuantizedConv(layer, method)
    weight = layer.weight.flatten(1)
    return QuantizedDense(weight, layer.bias, method, getattr(layer, "gelu", False))


def dense(layer):
    """The matrix product within a quantized layer."""
    return getattr(layer, "dense", layer)


class QuantizedNetwork(nn.Module):
    """A network in int8, called as the network it was made from.

    Attributes
    ----------
    engine : nn.Module
        The rewritten network, with :class:`QuantizedDense` in it.
    method : str
    layers : list of str
        Names within ``engine`` of what is in int8.
    rounded : dict of str to Tensor
        Other matrices of ``engine`` as they are saved; see :func:`encode`.
    """

    def __init__(self, engine, method, layers, rounded):
        super().__init__()
        self.engine = engine
        self.method = method
        self.layers = layers
        self.rounded = rounded
        self.run = inference.with_kernels(engine)

    def forward(self, points, features, lorentz_vectors, mask):
        """(B, 2, N), (B, C, N), (B, 4, N) and (B, 1, N) to (B, num_classes)."""
        with torch.no_grad():
            return self.run(points, features, lorentz_vectors, mask)


def quantize(
    model, calibration=None, method="static", device=None, *, keep=None, observer="percentile"
):
    """Rewrite a network for inference in int8; see :func:`jetzoo.accelerate`.

    Parameters
    ----------
    model : nn.Module
        A network of the zoo, left as it is.
    calibration : tuple of Tensor, iterable or DataLoader, optional
        Jets like those to tag, of which the first 512 are used: the four inputs of the network, or
        an iterable of such tuples, or of weaver's batches. Needed for ``"static"``; the others,
        too, are more exact with it, see :meth:`QuantizedDense.correct`.
    method : {"static", "dynamic", "weight-only"}
    device : str or torch.device, optional
        Only the CPU has fast int8 here.
    keep : callable, optional
        ``keep(name, layer)`` says which layers stay in float32. Default: :func:`stays_float`.
    observer : {"percentile", "mse"}
        How the range of the static method is chosen; see :func:`choose_range`.

    Returns
    -------
    QuantizedNetwork

    Raises
    ------
    UserError
        If the method, the observer or the device is not supported, or if there are no calibration
        jets, or some that do not fit the network or are not finite.
    """
    for what, value, known in (("method", method, METHODS), ("observer", observer, OBSERVERS)):
        if value not in known:
            raise UserError(f"The {what} of int8 is one of {', '.join(known)}, not {value!r}.")
    device = check_device(torch.device(device or next(model.parameters()).device))
    batches = None
    if calibration is not None:
        batches = calibration_batches(calibration)
    elif method == "static":
        raise UserError(
            "Static int8 needs jets to calibrate with: give calibration=, or take method 'dynamic'."
        )
    keep = keep or stays_float
    model = inference.copy_for_inference(model, device)
    engine = inference.rewrite(model, torch.float32)
    layers = {name: layer for name, layer in layers_of(engine).items() if not keep(name, layer)}
    seen = observe(engine, layers, batches) if batches else {}
    return replace(engine, layers, method, seen, observer)


def replace(engine, layers, method, seen=None, observer="percentile"):
    """Put layers of an engine into int8, in place.

    Parameters
    ----------
    engine : nn.Module
    layers : dict of str to nn.Module
        Some of :func:`layers_of`.
    method, observer : str
    seen : dict of str to Seen, optional
        Of :func:`observe`.

    Returns
    -------
    QuantizedNetwork
    """
    for name, layer in layers.items():
        new = quantized(layer, method)
        if seen:
            dense(new).correct(layer.weight.flatten(1), seen[name].mean)
        if method == "static":
            dense(new).set_range(*choose_range(seen[name].values, observer))
        engine.set_submodule(name, new)
    rounded = encode({k: v for k, v in engine.state_dict().items() if ROUNDED.search(k)})
    engine.load_state_dict(decode(rounded), strict=False)
    return QuantizedNetwork(engine, method, list(layers), rounded).eval()


def fine_tune(model, jets, method="static", device=None):
    """Quantize a network after a short fine-tuning that makes up for the rounding of its weights.

    The network is trained with rounded weights, the gradients going straight through the rounding
    (arXiv 1308.3432), to give the logits that it gives in float32: no truth is needed.
    Batch norms and dropout are as in the evaluation. The fine-tuned weights are taken if their int8
    form is nearer to the float32 one on jets that took no part.

    Parameters
    ----------
    model : nn.Module
        Left as it is.
    jets : tuple of Tensor
        The four inputs, some thousand jets; the last quarter judges, the first calibrate.
    method, device
        See :func:`quantize`.

    Returns
    -------
    QuantizedNetwork
    """
    (jets,) = calibration_batches(jets, limit=len(jets[0]))
    before = quantize(model, jets, method, device)
    count = len(jets[0]) - min(JUDGES, len(jets[0]) // 4)
    judges = [x[count:] for x in jets]
    tuned = inference.copy_for_inference(model).requires_grad_(True)
    norms = dict(_norms_before(tuned))
    rounded = [
        module
        for module in tuned.modules()
        if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d)) and not stays_float("", module)
    ]
    for module in rounded:
        straight = Straight(norms.get(module))
        parametrize.register_parametrization(module, "weight", straight, unsafe=True)
    optimizer = torch.optim.Adam(tuned.parameters(), LEARNING_RATE)
    with torch.no_grad():
        target = inference.accelerate(model)(*(x[:count] for x in jets))
    order = torch.Generator().manual_seed(0)
    for step in tqdm(range(STEPS), desc="fine-tune", unit="step"):
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * (1 - step / STEPS)
        rows = torch.randint(count, (TUNING_BATCH,), generator=order)
        loss = F.mse_loss(tuned(*(x[rows] for x in jets)), target[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for module in rounded:
        parametrize.remove_parametrizations(module, "weight")  # what stays is rounded
    after = quantize(tuned, jets, method, device)
    with torch.no_grad():
        expected = inference.accelerate(model)(*judges)
    errors = [(q(*judges) - expected).square().mean().sqrt() for q in (before, after)]
    logger.info("rms change of the logits by int8: %.4f, after fine-tuning %.4f", *errors)
    return after if errors[1] < errors[0] else before


def _norms_before(model):
    """Layers whose weight takes up the scale of a layer norm before it, with that norm."""
    for module in model.modules():
        if isinstance(module, Embed):
            yield from zip(module.embed[1::3], module.embed[0::3], strict=True)
        if isinstance(module, Block):
            yield module.fc1, module.pre_fc_norm
            yield module.fc2, module.post_fc_norm
            if isinstance(module.attn, Attention):
                yield module.attn.in_proj, module.pre_attn_norm


class Straight(nn.Module):
    """Parametrization of a weight that is rounded to int8 and hands gradients through.

    Parameters
    ----------
    norm : nn.LayerNorm, optional
        Whose scale multiplies the weight before it is rounded, see
        :func:`jetzoo.inference.fold_norm`.
    """

    def __init__(self, norm=None):
        super().__init__()
        self.norm = (norm,)  # not a module of this one

    def forward(self, weight):
        """(out, ...) to the same."""
        with torch.no_grad():
            rows = weight.flatten(1)
            (norm,) = self.norm
            if norm is not None:
                rows = rows * norm.weight
                rows = rows - rows.mean(1, keepdim=True)
            integers, scale = round_rows(rows)
            change = integers * scale[:, None] - rows
            if norm is not None:
                change = change / norm.weight
        return weight + change.view_as(weight)


def check_device(device):
    """The device, or a :class:`jetzoo.UserError` unless it is the CPU."""
    if device.type != "cpu":
        raise UserError(
            f"int8 runs on the CPU, not on {device.type!r}; for a GPU take precision 'bf16'."
        )
    return device


def calibration_batches(calibration, limit=CALIBRATION_JETS):
    """The first jets of what a user gave, as a list of tuples of the four inputs.

    Raises
    ------
    UserError
        If there are none, or some are not finite.
    """
    if isinstance(calibration, (tuple, list)) and any(map(torch.is_tensor, calibration)):
        calibration = [calibration]
    batches, count = [], 0
    for batch in calibration:
        if isinstance(batch[0], dict):  # weaver's (inputs, labels, observers)
            batch = tuple(batch[0].values())
        shapes = [tuple(x.shape) for x in batch if torch.is_tensor(x) and x.ndim == 3]
        if len(shapes) != 4 or any((b, 1, n) != shapes[3] for b, _, n in shapes):
            raise UserError(
                "Calibration jets are the four inputs of a network, (B, C, N) and a mask, or "
                "batches of weaver's loader."
            )
        jets = [x[: limit - count].cpu() for x in batch]
        *inputs, mask = jets
        real = mask.bool()
        bad = ~torch.stack([(x.isfinite() | ~real).flatten(1).all(1) for x in inputs]).all(0)
        if bad.any():
            raise UserError(
                f"{int(bad.sum())} of {len(bad)} calibration jets have values that are NaN or "
                "infinite: clean the file, or give another one."
            )
        batches.append(tuple(jets))
        count += len(mask)
        if count >= limit:
            break
    if count == 0:
        raise UserError("There are no jets to calibrate with.")
    return batches


@dataclass
class Seen:
    """Inputs of a layer on calibration jets.

    Attributes
    ----------
    values : Tensor, (S,)
        Some of them, of all channels.
    mean : Tensor, (in,)
    """

    values: torch.Tensor
    mean: torch.Tensor


def observe(engine, layers, batches):
    """Look at the inputs of layers on calibration jets.

    Parameters
    ----------
    engine : nn.Module
    layers : dict of str to nn.Module
    batches : list of tuple of Tensor, see :func:`calibration_batches`

    Returns
    -------
    dict of str to Seen
    """
    values = {name: [] for name in layers}
    sums = dict.fromkeys(layers, 0)
    counts = dict.fromkeys(layers, 0)

    def watch(name):
        def hook(layer, inputs):
            x = inputs[0].float()
            if isinstance(layer, nn.Conv1d) and not hasattr(layer, "on_rows"):
                x = x.transpose(1, 2).repeat_interleave(layer.kernel_size[0], 2)
            x = x.reshape(-1, x.shape[-1])
            sums[name] += x.double().sum(0)
            counts[name] += len(x)
            x = x.flatten()
            # Evenly spaced, by an odd number, lest all come from the same channels.
            values[name].append(x[:: -(-len(x) // PER_CALL) | 1].clone())

        return hook

    handles = [layer.register_forward_pre_hook(watch(name)) for name, layer in layers.items()]
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)  # micro-batches one after the other
        with torch.no_grad():
            for batch in batches:
                engine(*batch)
    except RuntimeError as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"The calibration jets do not fit the network: {reason}") from error
    finally:
        torch.set_num_threads(threads)
        for handle in handles:
            handle.remove()
    return {
        name: Seen(torch.cat(values[name]), (sums[name] / max(counts[name], 1)).float())
        for name in layers
    }


def choose_range(values, observer):
    """Range of the 256 steps that stand for ``values``; what is outside is clipped.

    Parameters
    ----------
    values : Tensor, (S,)
    observer : {"percentile", "mse"}
        All but a ten-thousandth of the values at each end, or the range within all values that
        gives the least mean squared error of rounding and clipping.

    Returns
    -------
    low, high : float
    """
    if observer == "percentile":
        values = values.sort().values
        cut = int(PERCENTILE * len(values))
        return values[cut].item(), values[len(values) - 1 - cut].item()
    low, high = (x.item() for x in values.aminmax())
    best = None
    for fraction in torch.linspace(1, 0.1, 46).tolist():
        bottom, top = min(fraction * low, 0), max(fraction * high, 0)
        step = max(top - bottom, 1e-12) / 255
        rounded = values.sub(bottom).div_(step).round_().clamp_(0, 255).mul_(step).add_(bottom)
        error = rounded.sub_(values).square_().mean().item()
        if best is None or error < best[0]:
            best = error, bottom, top
    return best[1:]


def encode(state):
    """Matrices (..., in) to int8, and a scale (..., 1) per row, ``name.scale``; or to float16."""
    encoded = {}
    for name, value in state.items():
        if HALVED.search(name):
            encoded[name] = value.half()
            continue
        integers, scale = round_rows(value.flatten(0, -2))
        encoded[name] = integers.to(torch.int8).view_as(value)
        encoded[f"{name}.scale"] = scale.view(*value.shape[:-1], 1)
    return encoded


def decode(encoded):
    """What :func:`encode` was given, rounded."""
    decoded = {}
    for name, value in encoded.items():
        if value.dtype == torch.int8:
            decoded[name] = value * encoded[f"{name}.scale"]
        elif value.dtype == torch.float16:
            decoded[name] = value.float()
    return decoded


def save(quantized, path, network, data_config, options=None):
    """Write a quantized network with all that is needed to run it, as one file.

    The file holds plain tensors and names, so that ``torch.load(..., weights_only=True)`` reads it.

    Parameters
    ----------
    quantized : QuantizedNetwork
    path : str or Path
        Appears when complete.
    network : str
        Name of a file in ``networks/``, or a path.
    data_config : weaver.utils.data.config.DataConfig
    options : dict, optional
        The ``--network-option`` pairs of the training.
    """
    state = quantized.engine.state_dict() | quantized.rounded
    # One tensor per type: a file with one per layer spends 5% of its size on their names.
    flat, layout = {}, {}
    for name, value in state.items():
        kind = str(value.dtype).removeprefix("torch.")
        flat.setdefault(kind, []).append(value.flatten())
        layout[name] = (kind, tuple(value.shape))
    content = {
        "format": FORMAT,
        "network": str(network),
        "options": dict(options or {}),
        "data_config": data_config.options,
        "method": quantized.method,
        "layers": {
            name: dense(quantized.engine.get_submodule(name)).input_zero_point
            for name in quantized.layers
        },
        "layout": layout,
        "tensors": {kind: torch.cat(values) for kind, values in flat.items()},
    }
    tables.writable_folder(Path(path).parent)
    plain = io.BytesIO()
    torch.save(content, plain)
    # A file of torch.save is a zip archive without compression; torch.load reads either kind.
    with (
        tables.atomic(path) as partial,
        zipfile.ZipFile(plain) as source,
        zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as target,
    ):
        for name in source.namelist():
            target.writestr(name, source.read(name))


def load(path, device=None, network=None, data_config=None, **options):
    """Read a file of :func:`save`.

    Parameters
    ----------
    path : str or Path
    device : str or torch.device, optional
        Only the CPU.
    network, data_config : str or Path, optional
        Checked against those in the file, as are further options.

    Returns
    -------
    jetzoo.zoo.Tagger
        Its ``model`` is a :class:`QuantizedNetwork`.

    Raises
    ------
    UserError
        If it is not such a file, was made of something else than is asked for, or if the device is
        not the CPU.
    """
    content = zoo.read_checkpoint(path)
    if content.get("format") != FORMAT:
        raise UserError(f"{path} is not an int8 network that this version of jetzoo can read.")
    check_device(torch.device(device or "cpu"))
    if network is not None and Path(network).stem != Path(content["network"]).stem:
        raise UserError(f"{path} is a {Path(content['network']).stem}, not a {network}.")
    if any(content["options"].get(key, value) != value for key, value in options.items()):
        raise UserError(f"{path} was made with the options {content['options']}.")
    config = DataConfig(print_info=False, **content["data_config"])
    if data_config is not None:
        given = zoo.read_data_config(data_config)
        if (given.input_dicts, given.label_value) != (config.input_dicts, config.label_value):
            raise UserError(f"{path} was made with other inputs or classes than {data_config}.")
    return zoo.Tagger(_restore(content, config), config)


def _restore(content, data_config):
    take = {kind: slicer(values) for kind, values in content["tensors"].items()}
    state = {name: take[kind](shape) for name, (kind, shape) in content["layout"].items()}
    rounded = {k: v for k, v in state.items() if ROUNDED.search(k.removesuffix(".scale"))}
    model, _ = zoo.network_module(content["network"]).get_model(data_config, **content["options"])
    engine = inference.rewrite(inference.copy_for_inference(model, "cpu"), torch.float32)
    for name, zero_point in content["layers"].items():
        new = quantized(engine.get_submodule(name), content["method"])
        dense(new).input_zero_point = zero_point
        for key, value in state.items():  # the correction has given a bias to layers without
            if key.startswith(f"{name}.") and key.endswith(".bias"):
                dense(new).bias = value
        engine.set_submodule(name, new)
    for name in rounded:
        del state[name]
    engine.load_state_dict(state | decode(rounded))
    layers = list(content["layers"])
    return QuantizedNetwork(engine, content["method"], layers, rounded).eval()


def slicer(flat):
    """A function that cuts the next tensor of a shape from a flat one."""
    start = 0

    def take(shape):
        nonlocal start
        stop = start + math.prod(shape)
        start, first = stop, start
        return flat[first:stop].view(shape).clone()

    return take
