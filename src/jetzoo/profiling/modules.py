"""Time, FLOPs, bytes and memory by module, of one inference call or one training step.

Times come from hooks on the modules, with nothing else running; FLOPs and bytes from a second call
that looks at every ATen operation; memory and the Chrome trace from a third one.
"""

import contextlib
import re
import tempfile
import threading
import time
from bisect import bisect_right
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, record_function
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from jetzoo.attention.dispatch import watched
from jetzoo.modules import only_looks

from .timers import FLOP_FORMULAS, synchronize

aten = torch.ops.aten

# Names of what belongs to no module.
STEP, NETWORK = "(step)", "(network)"
LOSS, AUTOGRAD, OPTIMIZER = "(loss)", "(autograd)", "(optimizer)"
PARTS = (LOSS, AUTOGRAD, OPTIMIZER)

MODULE = "module "  # precedes the name of a module in a trace

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


class Step:
    """What is profiled: a network called on a batch of jets, or trained on it for one step.

    Parameters
    ----------
    network : nn.Module
        Called as ``network(points, features, lorentz_vectors, mask)``.
    inputs : sequence of Tensor
        On the device of the network.
    labels : Tensor of int, (B,), optional
        With them it is a training step, with the optimiser of the training scripts.
    bf16 : bool
        Autocast to bfloat16.
    """

    def __init__(self, network, inputs, labels=None, bf16=False):
        from weaver.utils.nn.optimizer.ranger import Ranger

        self.network = network
        self.inputs = inputs
        self.labels = labels
        self.device = inputs[0].device
        self.bf16 = bf16
        self.loss = torch.nn.CrossEntropyLoss()
        self.trains = labels is not None
        self.optimizer = Ranger(network.parameters(), lr=1e-5) if self.trains else None

    def __call__(self, watch=None):
        """Run it once; a :class:`Watch` is told about what is no module."""
        self.network.train(self.trains)
        autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)
        if not self.trains:
            with torch.no_grad(), autocast:
                self.network(*self.inputs)
            return
        watch = watch or contextlib.nullcontext()
        part = getattr(watch, "part", lambda name: contextlib.nullcontext())
        with part(OPTIMIZER):
            self.optimizer.zero_grad()
        with autocast:
            logits = self.network(*self.inputs)
        with part(LOSS):
            loss = self.loss(logits.float(), self.labels)
        if hasattr(watch, "attach"):
            watch.attach(loss)
        with part(AUTOGRAD):
            loss.backward()
        with part(OPTIMIZER):
            self.optimizer.step()


class Watch:
    """Context in which ``enter`` and ``leave`` are called around every module and every node.

    A node of the backward pass belongs to the module in whose forward pass it was made, known by
    its sequence number; the accumulation of a gradient belongs to the module of the parameter.

    Parameters
    ----------
    step : Step
    """

    def __init__(self, step):
        self.device = step.device
        self.modules = [(name or NETWORK, module) for name, module in step.network.named_modules()]
        self.owners = {
            id(parameter): name
            for name, module in self.modules
            for parameter in module.parameters(recurse=False)
        }
        self.local = threading.local()
        self.main = threading.get_ident()
        self.in_backward = False

    def __enter__(self):
        self.handles = []
        self.sequence = [(-1, NETWORK)]  # (number of the next node, module that makes it)
        for name, module in self.modules:
            self.handles += [
                module.register_forward_pre_hook(
                    only_looks(lambda *_, n=name: self._enter_module(n))
                ),
                module.register_forward_hook(
                    only_looks(lambda m, x, _, n=name: self._leave_module(n, m, x))
                ),
            ]
        return self

    def __exit__(self, *error):
        for handle in self.handles:
            handle.remove()

    @property
    def stack(self):
        """Frames of the modules at work in this thread, the innermost last."""
        if not hasattr(self.local, "stack"):
            self.local.stack = []
        return self.local.stack

    def _mark(self, name):
        if torch.is_grad_enabled():
            self.sequence.append((torch._C._autograd._get_sequence_nr(), name))

    def _enter_module(self, name):
        # Checkpoints run modules again in the backward pass: that belongs to the node that asks.
        if not self.in_backward:
            self._mark(name)
            self.enter(name)

    def _leave_module(self, name, module, inputs):
        if not self.in_backward:
            self.leave(name, module, inputs)
            self._mark(self.stack[-1].name if self.stack else NETWORK)

    @contextlib.contextmanager
    def part(self, name):
        """What is done here belongs to `name`."""
        self._mark(name)
        self.enter(name)
        self.in_backward = name == AUTOGRAD
        yield
        self.in_backward = False
        self.leave(name, None, ())

    def attach(self, loss):
        """Hook all nodes of the graph behind a loss."""
        pending, seen = [loss.grad_fn], set()
        # Of those with the same number, the last one made the node.
        numbers = [number for number, _ in self.sequence]
        while pending:
            node = pending.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            if hasattr(node, "variable"):
                owner = self.owners.get(id(node.variable), AUTOGRAD)
            else:
                owner = self.sequence[bisect_right(numbers, node._sequence_nr()) - 1][1]
            node.register_prehook(lambda _, name=owner: self.enter(name))
            node.register_hook(lambda *_, name=owner: self.leave(name, None, ()))
            pending += [following for following, _ in node.next_functions]


@dataclass
class Frame:
    """A module at work."""

    name: str
    start: float = 0.0
    inner: float = 0.0  # seconds in other modules
    record: record_function | None = None


class Timer(Watch):
    """Seconds of each module.

    Attributes
    ----------
    forward, backward : dict of str to float
        Of the module itself, without those within.
    total : dict of str to float
        Forward, those within included.
    calls : dict of str to int
    seconds : float
        Of everything between entering and leaving the context.
    """

    def __enter__(self):
        self.by_thread = defaultdict(lambda: defaultdict(float))
        self.backward = defaultdict(float)
        self.total = defaultdict(float)
        self.calls = Counter()
        self.spans = []  # of the outermost modules in other threads
        self.waiting = None
        self.main_stack = self.stack
        super().__enter__()
        synchronize(self.device)
        self.start = time.perf_counter()
        return self

    def __exit__(self, *error):
        synchronize(self.device)
        self.seconds = time.perf_counter() - self.start
        super().__exit__(*error)
        # Threads work side by side: together they get the time in which at least one does.
        union, end = 0.0, 0.0
        for start, stop in sorted(self.spans):
            union += max(stop - max(start, end), 0.0)
            end = max(end, stop)
        share = union / (sum(stop - start for start, stop in self.spans) or 1.0)
        self.forward = defaultdict(float, self.by_thread.pop(self.main, {}))
        for seconds in self.by_thread.values():
            for name, value in seconds.items():
                self.forward[name] += share * value
        if self.waiting is not None:
            self.forward[self.waiting] -= union

    def enter(self, name):
        synchronize(self.device)
        if threading.get_ident() != self.main and not self.in_backward and not self.stack:
            self.waiting = self.main_stack[-1].name
        self.stack.append(Frame(name, time.perf_counter()))

    def leave(self, name, module, inputs):
        synchronize(self.device)
        now = time.perf_counter()
        frame = self.stack.pop()
        seconds = now - frame.start
        if self.in_backward or name in PARTS:
            self.backward[name] += seconds - frame.inner
        else:
            self.calls[name] += 1
            self.total[name] += seconds
            own = self.by_thread[threading.get_ident()]
            stages = module.stage_seconds() if hasattr(module, "stage_seconds") else {}
            share = (seconds - frame.inner) / (sum(stages.values()) or 1.0)
            for stage, value in stages.items():
                self.calls[f"{name}.{stage}"] += 1
                self.total[f"{name}.{stage}"] += share * value
                own[f"{name}.{stage}"] += share * value
            if not stages:
                own[name] += seconds - frame.inner
        if self.stack:
            self.stack[-1].inner += seconds
        elif threading.get_ident() != self.main:
            if self.in_backward:  # of a GPU: the main thread waits for it
                self.main_stack[-1].inner += seconds
            else:
                self.spans.append((frame.start, now))


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


class Tracer(Watch):
    """Names the modules in a trace of PyTorch's profiler."""

    def enter(self, name):
        self.stack.append(Frame(name, record=record_function(f"{MODULE}{name}")))
        self.stack[-1].record.__enter__()

    def leave(self, name, module, inputs):
        self.stack.pop().record.__exit__(None, None, None)


@dataclass
class Trace:
    """Memory over the time of one call, and the Chrome trace of it.

    Attributes
    ----------
    memory : list of (float, int)
        Seconds since the start, and bytes of tensors that the call holds from then on.
    spans : list of (float, float, str)
        Start and end of each module and part, seconds.
    chrome : bytes
        Gzipped JSON for chrome://tracing or ui.perfetto.dev.
    """

    memory: list = field(default_factory=list)
    spans: list = field(default_factory=list)
    chrome: bytes = b""

    @property
    def peak(self):
        """Bytes."""
        return max((held for _, held in self.memory), default=0)


def trace(step):
    """Run a step once under PyTorch's profiler, which sees this thread alone.

    Returns
    -------
    Trace
    """
    activities, kind = [ProfilerActivity.CPU], torch.autograd.DeviceType.CPU
    if step.device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
        kind = torch.autograd.DeviceType.CUDA
    with torch.profiler.profile(activities=activities, profile_memory=True) as profiler:
        with Tracer(step) as tracer, record_function(MODULE + STEP):
            step(tracer)
        synchronize(step.device)
    events = list(profiler.profiler.kineto_results.events())
    modules = [event for event in events if event.name().startswith(MODULE)]
    origin = min(event.start_ns() for event in modules)
    changes = sorted(
        (event.start_ns() - origin, event.nbytes())
        for event in events
        if event.name() == "[memory]" and event.device_type() == kind
    )
    held = accumulate(nbytes for _, nbytes in changes)
    spans = [
        (1e-9 * start, 1e-9 * (start + event.duration_ns()), event.name().removeprefix(MODULE))
        for event in modules
        for start in [event.start_ns() - origin]
    ]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json.gz"
        profiler.export_chrome_trace(str(path))
        chrome = path.read_bytes()
    return Trace(
        [(1e-9 * when, total) for (when, _), total in zip(changes, held, strict=True)],
        spans,
        chrome,
    )


@contextlib.contextmanager
def single_thread():
    """One thread for PyTorch, so that engines with threads of their own work in this one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def tally(step):
    """Run a step once and count; see :class:`Tally`."""
    with single_thread(), Tally(step) as counted, watched(counted.count_attention):
        step(counted)
    return counted


def merged_name(name):
    """Name under which repeated layers are one: ``blocks.3.fc1`` is ``blocks.*.fc1``."""
    return re.sub(r"\.\d+(?=\.|$)", ".*", name)
