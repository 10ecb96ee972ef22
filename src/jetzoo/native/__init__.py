"""Kernels in C++ for CPUs, compiled for the processor at hand when they are first needed.

They have a plain C interface and know nothing of PyTorch: compiling them takes seconds, and a call
through ctypes lets other Python threads run. Where there is no compiler, the callers use PyTorch.

There are two libraries: ``part`` runs a trained Particle Transformer (:mod:`.part`), ``training``
holds what a training step computes: linear layers (:mod:`.dense`), where they are faster than
PyTorch's, attention (:mod:`jetzoo.attention.jagged`), element-wise chains (:mod:`.chains`) and the
pair MLP (:mod:`.pairs`). Whatever hands memory to them checks it first (:mod:`.calls`).
"""

from .compilation import load

__all__ = ["load"]
