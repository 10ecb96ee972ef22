"""The border to C++: nothing crosses it unchecked, and what fails behind it raises here."""

import ctypes
import os

import torch

# Of `enum Status` in threads.h.
NO_MEMORY = 1

_forked = False


def _mark_forked():
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_mark_forked)


class serial_after_fork:  # noqa: N801 - a context, called for every batch of jets
    """PyTorch on one thread within the context, if this process was forked from another.

    The threads of PyTorch's own operations do not exist in a forked process, and an operation that
    waits for them never ends. Those of the kernels start anew: the number of threads that they
    may use is what the context gives.
    """

    def __enter__(self):
        self.threads = torch.get_num_threads()
        if _forked:
            torch.set_num_threads(1)
        return self.threads

    def __exit__(self, *error):
        if _forked:
            torch.set_num_threads(self.threads)


def address(name, x, shape, dtype=torch.float32):
    """Address of the numbers of a tensor whose kernels read ``shape`` of them, row by row.

    Parameters
    ----------
    name : str
        What messages call the tensor.
    x : Tensor
    shape : sequence of int
    dtype : torch.dtype

    Returns
    -------
    int

    Raises
    ------
    TypeError
        If ``x`` is no tensor, or of another dtype.
    ValueError
        If it is not on a CPU, of another shape, or not contiguous.
    """
    if not isinstance(x, torch.Tensor):
        raise TypeError(f"{name} should be a tensor, not {type(x).__name__}")
    if x.dtype != dtype:
        raise TypeError(f"{name} should be of {dtype}, not {x.dtype}")
    if x.device.type != "cpu" or x.layout != torch.strided:
        raise ValueError(f"{name} should be a dense tensor on a CPU, not {x.layout} on {x.device}")
    if x.shape != tuple(shape):
        raise ValueError(f"{name} should have the shape {tuple(shape)}, not {tuple(x.shape)}")
    if not x.is_contiguous():
        raise ValueError(f"{name} should be contiguous, but its strides are {x.stride()}")
    return x.data_ptr()


def call(kernel, *structures, threads=None):
    """Run a kernel on structures, on as many threads as PyTorch uses if no number is given.

    Raises
    ------
    MemoryError
        If there is not enough memory.
    RuntimeError
        If it failed otherwise.
    """
    threads = torch.get_num_threads() if threads is None else threads
    status = kernel(*map(ctypes.byref, structures), threads)
    if status == NO_MEMORY:
        raise MemoryError(f"there is not enough memory for the kernel {kernel.__name__}")
    if status:
        raise RuntimeError(f"the kernel {kernel.__name__} failed with status {status}")
