"""What the kernels of a training step have in common: when they run, and on what they draw."""

import torch
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from . import load
from .calls import call

MULTIPLE = 16  # of the widths: the longest vectors there are


def usable(*tensors):
    """Whether the kernels can take the place of PyTorch's operations on tensors.

    They see float32 on a CPU, and no tracer sees them: neither those that compile or export a
    graph, nor one that counts operations. Under autocast to bfloat16 they run where the processor
    multiplies such numbers: products round their factors, and all else stays in float32.
    """
    return (
        all(x.device.type == "cpu" and x.dtype == torch.float32 for x in tensors)
        and not torch.jit.is_tracing()
        and not torch.compiler.is_compiling()
        and not is_in_torch_dispatch_mode()
        and load("training") is not None
        and (not torch.is_autocast_enabled("cpu") or (autocasts() and multiplies_half()))
    )


def autocasts():
    """Whether this is within autocast to bfloat16 on a CPU."""
    return torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16


def multiplies_half():
    """Whether this processor multiplies numbers in bfloat16."""
    library = load("training")
    return library is not None and bool(library.multiplies_half())


def run(name, arguments):
    """Call a kernel with a structure, on as many threads as PyTorch uses."""
    call(getattr(load("training"), name), arguments)


def new_seed(dropout_p):
    """Seed of what is dropped, from PyTorch's own generator."""
    return int(torch.randint(2**63 - 1, ())) if dropout_p else 0
