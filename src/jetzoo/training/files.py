"""The files of a training, each written whole or not at all."""

import glob
import io
import shutil
from pathlib import Path

import torch

from jetzoo import tables


def save(content, path):
    """``torch.save``, whole or not at all.

    Raises
    ------
    UserError
        If the disk is full; what was there before stays.
    """
    buffer = io.BytesIO()  # torch.save would raise an error of its own where the disk is full
    torch.save(content, buffer)
    with tables.atomic(path) as partial:
        partial.write_bytes(buffer.getbuffer())


def copy(source, target):
    """``shutil.copy2``, whole or not at all; errors of :func:`save`."""
    with tables.atomic(target) as partial:
        shutil.copy2(source, partial)


def epoch_file(args, epoch, kind):
    """Path of the file 'state', 'optimizer' or 'resume' of an epoch."""
    return Path(f"{args.model_prefix}_epoch-{epoch}_{kind}.pt")


def writes_files(args):
    """Whether this process, of several, is the one that writes."""
    return bool(args.model_prefix) and (args.backend is None or args.local_rank == 0)


def remove_partial(args):
    """Remove what a killed process has left of a file that it was writing."""
    prefix = Path(args.model_prefix)
    for path in prefix.parent.glob(f".{glob.escape(prefix.name)}_*.pt.*"):
        path.unlink(missing_ok=True)


class Overlay:
    """A module with some functions replaced, for one other module that uses it."""

    def __init__(self, module, **functions):
        self._module = module
        vars(self).update(functions)

    def __getattr__(self, name):
        return getattr(self._module, name)
