"""FLOPs, bytes and number of the operations of every module, counted in one call."""

import contextlib
from collections import Counter

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from jetzoo.attention.dispatch import watched

from .steps import NETWORK, single_thread
from .timers import FLOP_FORMULAS
from .watch import Frame, Watch

aten = torch.ops.aten

# Operations that look at a few places of a large tensor: they read as much as they return.
GATHERS = {aten.gather, aten.index, aten.index_select, aten.embedding, aten.take}
# Operations that overwrite their first argument without reading it.
WRITES = {aten.copy_, aten.fill_, aten.zero_, aten.index_copy_, aten.masked_fill_, aten.bernoulli_}
# Operations that touch no memory.
FREE = {
    aten.empty,
    aten.empty_like,
    aten.empty_strided,
    aten.new_empty,
    aten.new_empty_strided,
    aten.detach,
    aten._unsafe_view,
    aten._local_scalar_dense,
}


class Tally(Watch, TorchDispatchMode):
    """FLOPs, bytes and number of the ATen operations of each module itself.

    FLOPs are those of PyTorch's own counter: matrix products, convolutions and attention, a
    multiplication and an addition being two; elementwise operations count as none. Bytes are the
    inputs and outputs of each operation, as if nothing stayed in a cache; views are free.

    A module that works outside of PyTorch may have methods ``flops(*inputs)`` and
    ``bytes_moved(*inputs)``, which return a number, or a dict by stage; and ``stage_seconds()``,
    the seconds of each stage of the last call (the sum over threads will do). A stage is shown as
    a module within the module.

    Operations of other threads are not seen, so that a network is to run in one.
    """

    def __init__(self, step):
        TorchDispatchMode.__init__(self)
        Watch.__init__(self, step)
        self.formulas = FlopCounterMode(display=False, custom_mapping=FLOP_FORMULAS).flop_registry
        self.flops, self.bytes_moved, self.operations = Counter(), Counter(), Counter()

    def __enter__(self):
        Watch.__enter__(self)
        return TorchDispatchMode.__enter__(self)

    def __exit__(self, *error):
        TorchDispatchMode.__exit__(self, *error)
        Watch.__exit__(self, *error)

    def enter(self, name):
        self.stack.append(Frame(name))

    def leave(self, name, module, inputs):
        self.stack.pop()
        for counter in ("flops", "bytes_moved"):
            if hasattr(module, counter):
                counted = getattr(module, counter)(*inputs)
                by_stage = isinstance(counted, dict)
                for stage, value in counted.items() if by_stage else [("", counted)]:
                    getattr(self, counter)[f"{name}.{stage}" if by_stage else name] += value

    def count_attention(self, backend, q, k, bias, mask):
        """Count the attention that works jet by jet outside of PyTorch, by its formula."""
        if backend != "jagged":
            return
        keys = torch.full((len(k),), k.shape[2]) if mask is None else mask.sum(1)
        own = mask is not None and q.shape[2] == k.shape[2]
        pairs = int((keys * (keys if own else q.shape[2])).sum())
        # Products with k and v; backward again that with k, and two gradients of each.
        trains = torch.is_grad_enabled() and q.requires_grad
        name = self.stack[-1].name if self.stack else NETWORK
        self.flops[name] += (7 if trains else 2) * 2 * pairs * q.shape[1] * q.shape[3]
        tensors = (q, k, k, q) + (() if bias is None else (bias,))
        self.bytes_moved[name] += (3 if trains else 1) * sum(map(_nbytes, tensors))

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        operation = getattr(function, "_overloadpacket", function)
        if operation not in self.formulas and hasattr(function, "decompose"):
            with self._nested():
                out = function.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        out = function(*args, **kwargs)
        # The backward pass of a GPU runs in a thread of its own, in which nodes are entered, too.
        name = self.stack[-1].name if self.stack else NETWORK
        if operation in self.formulas:
            self.flops[name] += self.formulas[operation](*args, **kwargs, out_val=out)
        if moved := bytes_of(function, operation, args, kwargs, out):
            self.bytes_moved[name] += moved
        if operation not in FREE and not is_view(function):
            self.operations[name] += 1
        return out

    @contextlib.contextmanager
    def _nested(self):
        TorchDispatchMode.__enter__(self)
        try:
            yield
        finally:
            TorchDispatchMode.__exit__(self, None, None, None)


def is_view(function):
    """Whether an ATen operation returns a view of an argument."""
    if not hasattr(function, "_schema"):
        return False
    aliases = [value.alias_info for value in function._schema.returns]
    return any(alias is not None and not alias.is_write for alias in aliases)


def bytes_of(function, operation, args, kwargs, out):
    """Bytes that an operation reads and writes."""
    if operation in FREE or is_view(function):
        return 0
    inputs = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
    outputs = [x for x in tree_leaves(out) if isinstance(x, torch.Tensor)]
    written = sum(map(_nbytes, outputs))
    if operation in GATHERS:
        return 2 * written + sum(map(_nbytes, inputs[1:]))
    if operation in WRITES:
        # A copy into a large tensor writes what it copies.
        read = sum(map(_nbytes, inputs[1:]))
        return read + (read if operation is aten.index_copy_ else written)
    return written + sum(map(_nbytes, inputs))


def _nbytes(x):
    """Bytes of the elements of a tensor, those of an expanded axis once."""
    count = 1
    for size, stride in zip(x.shape, x.stride(), strict=True):
        count *= 1 if stride == 0 and size > 0 else size
    return count * x.element_size()


def tally(step):
    """Run a step once and count, see :class:`Tally`."""
    with single_thread(), Tally(step) as counted, watched(counted.count_attention):
        step(counted)
    return counted
