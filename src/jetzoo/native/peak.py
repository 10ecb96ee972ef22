"""What the processor does at best, measured on its registers."""

import ctypes
import time
from concurrent.futures import ThreadPoolExecutor

import torch

from .compilation import load

# Rounds of a call, some milliseconds, and calls, the fastest of which counts.
ROUNDS, CALLS = 2**21, 9


def peaks():
    """Measure the operations per second of multiplications and additions that need no memory.

    On as many threads as PyTorch has; a multiplication and an addition count as two.

    Returns
    -------
    float32, int8 : float or None
        None where there is no compiler for the kernels; of int8 also where the processor has no
        instruction for products of bytes.
    """
    library = load("peak")
    if library is None:
        return None, None
    return (
        _fastest(library.multiply_add, ctypes.c_float, (0.5, 1.0)),
        _fastest(library.multiply_add_bytes, ctypes.c_int32, (0x01010101, 0x01010101)),
    )


def _fastest(kernel, kind, numbers):
    """Operations per second of all threads in the best of several calls."""
    kernel.argtypes = (ctypes.c_int64, ctypes.POINTER(kind))
    kernel.restype = ctypes.c_int64
    threads = torch.get_num_threads()

    def run(_):
        return kernel(ROUNDS, (kind * 2)(*numbers))

    best = 0.0
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(CALLS):
            start = time.perf_counter()
            operations = sum(pool.map(run, range(threads)))
            best = max(best, operations / (time.perf_counter() - start))
    return best or None
