"""Memory that is kept between the steps of a training on a CPU."""

import platform
import subprocess
import sys

import pytest
from conftest import ROOT

# Pages that the system gives for 64 MiB, after they were used and freed once.
PROBE = """
import ctypes, resource, runpy, sys
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
if sys.argv[2] == "kept":
    assert runpy.run_path(sys.argv[1])["keep_freed_memory"]()
def use():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    pieces = [ctypes.c_void_p(libc.malloc(16 << 20)) for _ in range(4)]
    for piece in pieces:
        ctypes.memset(piece, 1, 16 << 20)
        libc.free(piece)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
use()
print(use())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="not the GNU C library")
def test_freed_memory_is_kept():
    script = ROOT / "src" / "jetzoo" / "training" / "memory.py"
    pages = [
        int(subprocess.check_output([sys.executable, "-c", PROBE, script, kept]))
        for kept in ("given back", "kept")
    ]
    assert pages[0] > 1000 and pages[1] < 100
