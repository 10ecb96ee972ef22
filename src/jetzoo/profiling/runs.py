"""Runs: configurations of a network timed against each other, and the rows of their modules."""

import contextlib
import time
from dataclasses import dataclass

import torch
from tqdm import tqdm

from jetzoo import UserError

from . import configurations
from .kinds import Kinds
from .rows import Row
from .steps import NETWORK, PARTS, STEP, single_thread
from .tally import tally
from .timers import Limits, machine_limits, median_and_spread, synchronize
from .tracing import Trace, trace
from .watch import Timer

INFERENCE, TRAINING = "inference", "training step"
WARM_UP = 2


@dataclass
class ProfileRun:
    """One configuration in one mode, measured.

    Attributes
    ----------
    name, mode : str
    bf16 : bool
        Under autocast.
    num_jets : int
        Of the batch.
    seconds, spread : float
        Of one call, without hooks: median and interquartile range over it.
    hooked : float
        Time with the hooks over the time without, of the fastest calls.
    rows : list of Row
        See :func:`make_rows`.
    trace : Trace
    limits : Limits
    """

    name: str
    mode: str
    bf16: bool
    num_jets: int
    seconds: float
    spread: float
    hooked: float
    rows: list
    trace: Trace
    limits: Limits

    @property
    def jets_per_second(self):
        """Jets over the median time."""
        return self.num_jets / self.seconds

    @property
    def peak(self):
        """Bytes that the call holds; None where kernels outside of PyTorch do much of the work."""
        outside = sum(row.seconds for row in self.rows if row.fused)
        return None if outside > 0.1 * self.seconds else self.trace.peak

    @property
    def label(self):
        """Name, and the precision where it is a choice."""
        return f"{self.name}, bf16" if self.bf16 else self.name

    @property
    def title(self):
        """Label and mode for headings."""
        return f"{self.label}, {self.mode}"

    @property
    def key(self):
        """Label and mode for the names of files."""
        return f"{self.label}_{self.mode}".replace(", ", "_").replace(" ", "_")


def run_all(steps, repeats):
    """Time, count and trace steps.

    Parameters
    ----------
    steps : dict of (str, str) to Step
        By configuration and mode.
    repeats : int

    Returns
    -------
    list of ProfileRun
    """
    measured = measure(steps, repeats)
    limits = {}
    runs = []
    for (name, mode), step in tqdm(steps.items(), desc="count and trace", leave=False):
        dtype = torch.bfloat16 if step.bf16 or name == "bf16" else torch.float32
        if dtype not in limits:
            limits[dtype] = machine_limits(step.device, dtype)
        plain, timers = measured[name, mode]
        seconds, spread = median_and_spread(plain)
        # The profiler does not look into the threads of an engine.
        threaded = any(timer.spans for timer in timers)
        with single_thread() if threaded else contextlib.nullcontext():
            traced = trace(step)
        runs.append(
            ProfileRun(
                name=name,
                mode=mode,
                bf16=step.bf16,
                num_jets=len(step.inputs[0]),
                seconds=seconds,
                spread=spread,
                hooked=min(timer.seconds for timer in timers) / min(plain),
                rows=make_rows(timers, tally(step), Kinds(step.network)),
                trace=traced,
                limits=limits[dtype],
            )
        )
    return runs


def measure(steps, repeats):
    """Time steps against each other, each without hooks and with them in turn.

    Parameters
    ----------
    steps : dict of (str, str) to Step
        By configuration and mode.
    repeats : int

    Returns
    -------
    dict of (str, str) to (list of float, list of Timer)
        Seconds without hooks, and timers.

    Raises
    ------
    UserError
        If a configuration cannot run on the device.
    """
    for (name, _), step in tqdm(steps.items(), desc="warm up", leave=False):
        try:
            for _ in range(configurations.TRIMMER if name == "padded" else WARM_UP):
                step()
        except (ValueError, ImportError, RuntimeError) as error:
            reason = str(error).strip().split("\n")[0].rstrip(".")
            raise UserError(f"{name} cannot run on {step.device}: {reason}.") from error
    measured = {key: ([], []) for key in steps}
    for _ in tqdm(range(repeats), desc="time", leave=False):
        for key, step in steps.items():
            plain, timers = measured[key]
            synchronize(step.device)
            start = time.perf_counter()
            step()
            synchronize(step.device)
            plain.append(time.perf_counter() - start)
            timers.append(Timer(step))
            with timers[-1] as timer:
                step(timer)
    return measured


def make_rows(timers, counted, kinds):
    """Make the rows of a run: times of the fastest call, which add up to its time, and counts.

    Parameters
    ----------
    timers : list of Timer
    counted : Tally
    kinds : Kinds

    Returns
    -------
    list of Row
        In the order of the network; what belongs to no module comes last.
    """
    best = min(timers, key=lambda timer: timer.seconds)
    types = {name: type(module).__name__ for name, module in counted.modules}
    outside = {name for name, module in counted.modules if hasattr(module, "stage_seconds")}
    order = {name: index for index, name in enumerate(types)}

    def parent(name):
        while name not in (NETWORK, ""):
            name = name.rpartition(".")[0]
            if name in types:
                return name
        return NETWORK

    rows = {}
    for name in dict.fromkeys([*types, *best.forward, *best.backward, *counted.operations]):
        is_stage = name not in types and parent(name) in outside
        fused = is_stage or name in outside
        rows[name] = Row(
            name,
            "stage" if is_stage else types.get(name, ""),
            best.calls[name],
            best.forward.get(name, 0.0),
            best.backward.get(name, 0.0),
            best.total.get(name, 0.0),
            fused=fused,
            kind=kinds.kind(name, fused),
            operation=kinds.operation(name),
        )
    for name in rows:
        # A network may take another way while its operations are counted, where a kernel outside
        # of PyTorch does the work of several modules: that belongs to the module that called it.
        doer = name
        while name not in PARTS and doer != NETWORK and not rows[doer].calls:
            doer = parent(doer)
        rows[doer].flops += counted.flops[name]
        rows[doer].bytes_moved += counted.bytes_moved[name]
        rows[doer].operations += counted.operations[name]

    def place(row):
        return row.module in PARTS, order.get(row.module, order.get(parent(row.module), 0))

    found = [row for row in rows.values() if row.seconds or row.flops or row.bytes_moved]
    rest = best.seconds - sum(row.seconds for row in found)
    return [
        *sorted(found, key=place),
        Row(STEP, "Python", forward_seconds=max(rest, 0.0)),
    ]
