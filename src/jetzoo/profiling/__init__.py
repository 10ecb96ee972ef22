"""Where the time of a network goes: timers, time and bytes by module, roofline, loader, report."""

from .timers import (
    Limits,
    flops,
    interleaved,
    machine_limits,
    machine_peak,
    machine_stamp,
    median_and_spread,
    peak_memory,
    saved_bytes,
    synchronize,
)

__all__ = [
    "Limits",
    "flops",
    "interleaved",
    "machine_limits",
    "machine_peak",
    "machine_stamp",
    "median_and_spread",
    "peak_memory",
    "saved_bytes",
    "synchronize",
]
