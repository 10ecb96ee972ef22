"""Timers that synchronise, memory, FLOPs, and the limits of the machine."""

import platform
import statistics
import time
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import accumulate

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from ..native.peak import peaks

aten = torch.ops.aten


def _fused_attention(q, k, v, *args, out_shape=None, **kwargs):
    return sdpa_flop_count(q, k, v)


def _fused_attention_backward(grad, q, k, v, *args, out_shape=None, **kwargs):
    return sdpa_backward_flop_count(grad, q, k, v)


def _integer_product(a, b, out_shape=None, **kwargs):
    return 2 * a[0] * a[1] * b[1]


# Operations that PyTorch's counter leaves out.
FLOP_FORMULAS = {
    aten._scaled_dot_product_flash_attention_for_cpu: _fused_attention,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _fused_attention_backward,
    aten._int_mm: _integer_product,
}

PACKAGES = ("torch", "weaver-core", "triton", "onnxruntime", "flash-attn", "mamba-ssm")


def machine_stamp(device="cpu"):
    """Describe what a measurement was taken on, in columns that the CSV of every benchmark has.

    Parameters
    ----------
    device : str or torch.device

    Returns
    -------
    dict of str
        ``device`` (name of the processor or GPU), ``threads``, ``python`` and one entry per
        package of ``PACKAGES`` that is installed.
    """
    device = torch.device(device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name()
    stamp = {
        "device": name,
        "threads": str(torch.get_num_threads()),
        "python": platform.python_version(),
    }
    for package in PACKAGES:
        try:
            stamp[package] = version(package)
        except PackageNotFoundError:
            continue
    return stamp


def _cpu_name():
    try:
        with open("/proc/cpuinfo") as info:
            return next(line.split(": ")[1].strip() for line in info if "model name" in line)
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def synchronize(device):
    """Wait until the device has done everything that was asked of it."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def interleaved(functions, repeats=5, warmup=1, device="cpu"):
    """Time functions against each other, one call of each in turn.

    What else the machine does meanwhile slows all of them alike.

    Parameters
    ----------
    functions : dict of str to callable
        Called without arguments.
    repeats, warmup : int
        Timed and untimed calls of each.
    device : str or torch.device
        Synchronised before and after each call.

    Returns
    -------
    dict of str to list of float
        Seconds of the timed calls.
    """
    seconds = {name: [] for name in functions}
    for turn in range(-warmup, repeats):
        for name, function in functions.items():
            synchronize(device)
            start = time.perf_counter()
            function()
            synchronize(device)
            if turn >= 0:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def median_and_spread(seconds):
    """Compute the median of timings, and their interquartile range over the median.

    Parameters
    ----------
    seconds : sequence of float

    Returns
    -------
    median : float
        Seconds.
    spread : float
        0 for fewer than two timings.
    """
    median = statistics.median(seconds)
    if len(seconds) < 2:
        return median, 0.0
    low, _, high = statistics.quantiles(seconds, n=4, method="inclusive")
    return median, (high - low) / median


def peak_memory(function, device="cpu"):
    """Measure the most bytes of tensors that a call holds at once, beyond those held before it.

    Parameters
    ----------
    function : callable
        Called once, without arguments.
    device : str or torch.device

    Returns
    -------
    int
        Bytes that PyTorch's allocator was asked for; the scratch space of libraries is not seen.
    """
    if torch.device(device).type == "cuda":
        synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        function()
        synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    # The resident memory of a process says little: the heap keeps what earlier calls freed.
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profiler:
        function()
    events = profiler.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    return max(accumulate((nbytes for _, nbytes in changes), initial=0))


def saved_bytes(function):
    """Count the bytes that autograd keeps for the backward pass of a call, but for parameters.

    Parameters
    ----------
    function : callable
        Called once, without arguments.

    Returns
    -------
    int
    """
    storages = {}

    def pack(tensor):
        if not isinstance(tensor, torch.nn.Parameter):
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = function()  # alive until the end, lest an address be used twice
    del out
    return sum(storages.values())


def flops(function):
    """Count the floating point operations of the matrix products and attentions of a call.

    Parameters
    ----------
    function : callable
        Called once, without arguments.

    Returns
    -------
    int
        A multiplication and an addition count as two.
    """
    with FlopCounterMode(display=False, custom_mapping=FLOP_FORMULAS) as counter:
        function()
    return counter.get_total_flops()


def machine_peak(device="cpu", dtype=torch.float32):
    """Measure what the machine can do at best, by a large matrix product and a large copy.

    Parameters
    ----------
    device : str or torch.device
    dtype : torch.dtype

    Returns
    -------
    flops_per_second, bytes_per_second : float
        The bytes of the copy are those read and those written.
    """
    size = 8192 if torch.device(device).type == "cuda" else 2048
    a = torch.randn(size, size, device=device, dtype=dtype)
    big = torch.empty(2**26, device=device, dtype=torch.float32)
    copy = torch.empty_like(big)
    timings = interleaved(
        {"product": lambda: a @ a, "copy": lambda: copy.copy_(big)}, repeats=7, device=device
    )
    return (
        2 * size**3 / min(timings["product"]),
        2 * big.nbytes / min(timings["copy"]),
    )


@dataclass(frozen=True)
class Limits:
    """Rates of a machine, which bound the time of a piece of work.

    Attributes
    ----------
    flops : float
        Of a large matrix product, FLOP/s.
    peak : float or None
        Of multiplications and additions in float32 that stay in the registers of a processor,
        FLOP/s; None on a GPU, in other dtypes and without a compiler.
    memory : float
        Of a large copy, read and written, bytes/s.
    cache : float
        Of a copy that stays in the cache, bytes/s.
    call : float
        Of one operation on hardly any data, s.
    """

    flops: float
    peak: float | None
    memory: float
    cache: float
    call: float


SMALL_CALLS = 200


def machine_limits(device="cpu", dtype=torch.float32):
    """Measure the :class:`Limits` of a machine for matrix products in a dtype.

    Parameters
    ----------
    device : str or torch.device
    dtype : torch.dtype

    Returns
    -------
    Limits
    """
    product, memory = machine_peak(device, dtype)
    # Half of the second-level cache of a common core; a GPU keeps as much in its own.
    block = torch.empty(2**16, device=device)
    target = torch.empty_like(block)
    x = torch.ones(8, 8, device=device)

    def cached():
        for _ in range(SMALL_CALLS):
            target.copy_(block)

    def small():
        for _ in range(SMALL_CALLS):
            torch.mm(x, x)
            torch.add(x, x)
            torch.softmax(x, -1)

    with torch.inference_mode():
        timings = interleaved({"cached": cached, "small": small}, repeats=7, device=device)
    in_registers = torch.device(device).type == "cpu" and dtype == torch.float32
    return Limits(
        product,
        peaks()[0] if in_registers else None,
        memory,
        SMALL_CALLS * 2 * block.nbytes / min(timings["cached"]),
        min(timings["small"]) / (3 * SMALL_CALLS),
    )
