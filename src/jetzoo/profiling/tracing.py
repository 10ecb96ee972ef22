"""Memory over the time of one call, and its Chrome trace, from PyTorch's profiler."""

import tempfile
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, record_function

from .steps import STEP
from .timers import synchronize
from .watch import Frame, Watch

MODULE = "module "  # precedes the name of a module in a trace


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
        """Most bytes that the call holds at once."""
        return max((held for _, held in self.memory), default=0)


def trace(step):
    """Run a step once under PyTorch's profiler, which sees this thread alone.

    Parameters
    ----------
    step : Step

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
