"""What belongs to the whole process: random states, number of threads, log levels."""

import logging
import random
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def restored():
    """Put back random states, PyTorch's number of threads and log levels at the end.

    The random states are those of Python, of NumPy's global generator, and of PyTorch on the CPU
    and on the GPUs if these are in use. All are put back after an error, too.
    """
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - what weaver uses
    threads = torch.get_num_threads()
    levels = {logger: logger.level for logger in _loggers()}
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    try:
        with torch.random.fork_rng(devices=list(gpus)):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        torch.set_num_threads(threads)
        for logger in _loggers():
            if logger in levels and logger.level != levels[logger]:
                logger.setLevel(levels[logger])


def _loggers():
    known = logging.Logger.manager.loggerDict.values()
    return [logging.getLogger(), *(x for x in known if isinstance(x, logging.Logger))]
