"""What the kernels of a training step have in common: when they run, and on what they draw."""

import torch
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from . import load
from .calls import call

MULTIPLE = 16  # of the widths: the longest vectors there are


def usable(*tensors):
    """Whether the kernels can take the place of PyTorch's operations on tensors.

    They see float32 on a CPU, and no tracer sees them: neither those that compile or export a
    graph, nor one that counts operations.
    """
    return (
        all(x.device.type == "cpu" and x.dtype == torch.float32 for x in tensors)
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and not is_in_torch_dispatch_mode()
        and load("training") is not None
    )


def run(name, arguments):
    """Call a kernel with a structure, on as many threads as PyTorch uses."""
    call(getattr(load("training"), name), arguments)


def new_seed(dropout_p):
    """Seed of what is dropped, from PyTorch's own generator."""
    return int(torch.randint(2**63 - 1, ())) if dropout_p else 0
