"""Layers whose matrix products run in integer arithmetic."""

import functools

import torch
import torch.nn.functional as F
from torch import nn

from ..engine.dense import Dense

# Products of at most this many numbers of 8 bits have a sum that float32 holds exactly.
EXACT = 2**24 // (255 * 127)


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
    method : str

    Raises
    ------
    ValueError
        If the convolution is grouped, dilated, or padded with anything but a number of zeros.
    """

    def __init__(self, conv, method):
        super().__init__()
        if reason := unsupported(conv):
            raise ValueError(f"int8 has no convolution that is {reason}")
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


def unsupported(conv):
    """What keeps a convolution from int8, or an empty string."""
    if conv.groups != 1:
        return "grouped"
    if conv.dilation != (1,):
        return "dilated"
    if isinstance(conv.padding, str) or (conv.padding_mode != "zeros" and conv.padding != (0,)):
        return f"padded as in {conv.padding_mode if conv.padding_mode != 'zeros' else conv.padding}"
    return ""


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
        if isinstance(module, (Dense, nn.Linear))
        or getattr(module, "on_rows", False)
        or (type(module) is nn.Conv1d and not unsupported(module))
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
