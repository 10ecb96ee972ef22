"""Hooks around every module of a network and every node of its backward pass, and their times."""

import contextlib
import threading
import time
from bisect import bisect_right
from collections import Counter, defaultdict
from dataclasses import dataclass

import torch
from torch.profiler import record_function

from jetzoo.modules import only_looks

from .steps import AUTOGRAD, NETWORK, PARTS
from .timers import synchronize


class Watch:
    """Context that calls ``enter`` and ``leave`` around every module and every autograd node.

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
        """Frames of the modules that are at work in this thread, the innermost last."""
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
        """While open, what is done belongs to ``name``, one of ``PARTS``."""
        self._mark(name)
        self.enter(name)
        self.in_backward = name == AUTOGRAD
        try:
            yield
        finally:
            self.in_backward = False
            self.leave(name, None, ())

    def attach(self, loss):
        """Hook all nodes of the graph behind a loss, see the class."""
        pending, seen = [loss.grad_fn], set()
        # Of several modules with the same number, the last one made the node.
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
            self._add_forward(name, module, seconds, seconds - frame.inner)
        if self.stack:
            self.stack[-1].inner += seconds
        elif threading.get_ident() != self.main:
            if self.in_backward:  # on a GPU: the main thread waits for it
                self.main_stack[-1].inner += seconds
            else:
                self.spans.append((frame.start, now))

    def _add_forward(self, name, module, seconds, own):
        """Add a call of a module: its seconds, and those without the modules within it."""
        self.calls[name] += 1
        self.total[name] += seconds
        by_name = self.by_thread[threading.get_ident()]
        stages = module.stage_seconds() if hasattr(module, "stage_seconds") else {}
        share = own / (sum(stages.values()) or 1.0)
        for stage, value in stages.items():
            self.calls[f"{name}.{stage}"] += 1
            self.total[f"{name}.{stage}"] += share * value
            by_name[f"{name}.{stage}"] += share * value
        if not stages:
            by_name[name] += own
