"""The weights file of the library in C++ (``file.h``)."""

import ctypes
import struct

import numpy as np
import torch

from .formulas import OPERATIONS, is_per_particle

MAGIC, VERSION, BYTE_ORDER, ALIGNMENT = b"JETZOO\r\n", 1, 0x01020304, 64
HEADER = 8  # words
CHECKSUM = 3  # word of the header

PART, GRAPH = range(2)  # of `enum Kind` in network.h


class WeightsFile:
    """Arrays, and a plan of numbers and of where arrays are, in the order in which it is read."""

    def __init__(self):
        self.data = bytearray(8 * HEADER)
        self.plan = []

    def integer(self, value):
        """Add a whole number to the plan."""
        self.plan.append(struct.pack("<q", int(value)))

    def number(self, value):
        """Add a fraction to the plan."""
        self.plan.append(struct.pack("<d", float(value)))

    def array(self, x):
        """Add a tensor, or None for an array of no numbers."""
        self._bytes(b"" if x is None else x.detach().contiguous().numpy().tobytes())

    def text(self, value):
        """Add a text."""
        content = value.encode() + b"\0"
        self.integer(len(content))
        self._bytes(content)

    def _bytes(self, content):
        if content:
            self._align()
        self.integer(len(self.data) if content else 0)
        self.integer(len(content))
        self.data += content

    def _align(self):
        self.data += bytes(-len(self.data) % ALIGNMENT)

    def structure(self, value, kept):
        """Add a structure of the kernels: its numbers, then what it holds or points to.

        Parameters
        ----------
        value : ctypes.Structure
        kept : list of Tensor or ctypes.Array
            What it points to, see :class:`jetzoo.native.part_weights.PackedArrays`.
        """
        tensors = {x.data_ptr(): x for x in kept if torch.is_tensor(x) and x.numel()}
        arrays = {ctypes.addressof(x): x for x in kept if not torch.is_tensor(x)}
        self._structure(value, tensors, arrays)

    def _structure(self, value, tensors, arrays):
        fields = [(getattr(value, name), kind) for name, kind in value._fields_]
        for field, kind in fields:
            if kind is ctypes.c_int32:
                self.integer(field)
            elif kind is ctypes.c_float:
                self.number(field)
        for field, kind in fields:
            if kind is ctypes.c_void_p:
                self.array(tensors[field] if field else None)
            elif isinstance(field, ctypes.Structure):
                self._structure(field, tensors, arrays)
            elif kind not in (ctypes.c_int32, ctypes.c_float):
                items = arrays[ctypes.addressof(field.contents)] if field else ()
                self.integer(len(items))
                for item in items:
                    self._structure(item, tensors, arrays)

    def inputs(self, program, groups, longest):
        """Add how the inputs are computed.

        Parameters
        ----------
        program : jetzoo.cpp.formulas.Program
        groups : list of list of (int, dict)
            Of each input group the column and the ``preprocess_params`` of its variables.
        longest : int
            Particles that the network looks at.
        """
        self.integer(len(program.branches))
        for name in program.branches:
            self.text(name)
            self.integer(is_per_particle(name))
        self.integer(len(program.instructions))
        for step in program.instructions:
            self.integer(OPERATIONS.index(step.operation))
            self.integer(step.a)
            self.integer(step.b)
            self.number(step.constant)
        self.integer(longest)
        for group in groups:
            self.integer(len(group))
            for column, params in group:
                self.integer(column)
                self.integer(params["center"] is not None)
                self.number(params["center"] or 0)
                for key in ("scale", "min", "max"):
                    self.number(params[key])

    def head(self, layers):
        """Add the layers after the kernels, as (LayerNorm or Linear, whether a ReLU follows)."""
        self.integer(len(layers))
        for layer, relu in layers:
            norm = hasattr(layer, "normalized_shape")
            outputs, inputs = layer.weight.shape * (2 if norm else 1)
            self.integer(norm)
            self.integer(relu)
            self.integer(inputs)
            self.integer(outputs)
            self.number(layer.eps if norm else 0)
            self.array(layer.weight if norm else layer.weight.t())
            self.array(layer.bias)

    def write(self, path, description):
        """Write the file.

        Parameters
        ----------
        path : Path
        description : str
            What ``jetzoo_describe`` gives.
        """
        text = description.encode() + b"\0"
        self._align()
        text_at = len(self.data)
        self.data += text
        self._align()
        plan_at = len(self.data)
        self.data += b"".join(self.plan)
        words = np.frombuffer(self.data, "<u8").copy()
        words[:HEADER] = np.frombuffer(
            struct.pack(
                "<8sIIQQQQQQ",
                *(MAGIC, VERSION, BYTE_ORDER, 8 * len(words), 0),
                *(plan_at, len(self.plan), text_at, len(text)),
            ),
            "<u8",
        )
        words[CHECKSUM] = checksum(words)
        path.write_bytes(words.tobytes())


def checksum(words):
    """Sum of words, each mixed with its place by the finalizer of splitmix64.

    Parameters
    ----------
    words : ndarray of uint64
        Of the whole file, that of the checksum being 0.
    """
    z = words + np.arange(len(words), dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (z ^ (z >> np.uint64(31))).sum(dtype=np.uint64)
