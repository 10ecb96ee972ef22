"""Kernels in C++ for CPUs, compiled for the processor at hand when they are first needed.

They have a plain C interface and know nothing of PyTorch: compiling one takes seconds, and a call
through ctypes lets other Python threads run. Where there is no compiler, the callers use PyTorch.
"""

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

from jetzoo.tables import atomic

logger = logging.getLogger("jetzoo")

SOURCES = Path(__file__).parent
# Not -ffast-math: it changes how the whole process treats small numbers.
FLAGS = [
    "-std=c++17",
    "-O3",
    "-march=native",
    "-fPIC",
    "-shared",
    "-pthread",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-ffp-contract=fast",
    "-fno-semantic-interposition",
    "-fvisibility=hidden",
    "-Wall",
    "-Wno-psabi",
]


@functools.cache
def load(name):
    """The library made of ``NAME.cpp``, or None where it cannot be compiled.

    The result is kept in ``$XDG_CACHE_HOME/jetzoo`` (``~/.cache/jetzoo``), under a name that
    depends on the sources, the compiler and the processor. ``CXX`` chooses the compiler;
    ``JETZOO_NATIVE=0`` does without.

    Parameters
    ----------
    name : str

    Returns
    -------
    ctypes.CDLL or None
        The reason for None is logged.
    """
    if os.environ.get("JETZOO_NATIVE") == "0":
        logger.info("native kernels are switched off (JETZOO_NATIVE=0)")
        return None
    compiler = os.environ.get("CXX") or next(filter(shutil.which, ("g++", "clang++")), None)
    if compiler is None:
        logger.warning("no C++ compiler (g++ or clang++): PyTorch's own kernels run instead")
        return None
    try:
        return ctypes.CDLL(str(_compiled(name, compiler)))
    except (OSError, subprocess.SubprocessError) as error:
        reason = (getattr(error, "stderr", None) or str(error)).strip().split("\n")[0]
        logger.warning("%s.cpp does not compile (%s): PyTorch's own kernels run", name, reason)
        return None


def _compiled(name, compiler):
    command = [*compiler.split(), *FLAGS]
    run = functools.partial(subprocess.run, check=True, capture_output=True, text=True)
    version = run([*command[: -len(FLAGS)], "--version"]).stdout
    digest = hashlib.sha256("\n".join((version, *command, _processor())).encode())
    for path in (SOURCES / f"{name}.cpp", *sorted(SOURCES.glob("*.h"))):
        digest.update(path.read_bytes())
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jetzoo"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError
    except OSError:
        folder = Path(tempfile.mkdtemp(prefix="jetzoo-"))
    library = folder / f"{name}-{digest.hexdigest()[:20]}.so"
    if not library.exists():
        logger.info("compiling %s.cpp for this processor", name)
        with atomic(library) as partial:
            run([*command, str(SOURCES / f"{name}.cpp"), "-o", str(partial)])
    return library


def _processor():
    """What -march=native looks at: a home folder may be shared by different machines."""
    try:
        with open("/proc/cpuinfo") as info:
            lines = [x for x in info if x.startswith(("flags", "Features", "model", "cpu family"))]
    except OSError:
        lines = []
    return platform.machine() + "".join(sorted(set(lines)))
