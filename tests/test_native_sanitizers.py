"""The kernels under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer.

``CXX`` carries the options, so that the kernels are compiled and loaded as always; the runtime of
the sanitizer has to be in the process before them.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from jetzoo.native import compilation

pytestmark = pytest.mark.slow

COMPILER = shutil.which("g++")
SANITIZERS = {
    "address,undefined": ("asan", "ubsan"),
    "thread": ("tsan",),
}
OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=0",  # Python does not free everything at its end
    "UBSAN_OPTIONS": "print_stacktrace=1",
    # Neither Python nor PyTorch is instrumented.
    "TSAN_OPTIONS": "ignore_noninstrumented_modules=1",
}


def runtime(library):
    """Path of the runtime library of a sanitizer, or None."""
    command = [COMPILER, f"-print-file-name=lib{library}.so"]
    path = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    return path if Path(path).is_absolute() else None


# What -O3 makes of code under a sanitizer takes minutes to compile.
PRELUDE = """
from jetzoo.native import compilation
compilation.FLAGS[compilation.FLAGS.index("-O3")] = "-O1"
# The library that knows the processor would be instrumented.
compilation._target = lambda name: compilation._for_set(name, {isa!r})
"""
COMPILE = """
compilation.ctypes.CDLL = str  # without the runtime, loading a library would end the process
compilation._checked = lambda name, library: library
assert compilation.load("part") and compilation.load("training")
"""
CASES = """
import threading, torch
from test_native import *

assert native.load("part") is not None and native.load("training") is not None
torch.set_num_threads(3)
for method in PRECISIONS:
    engine = make_engine(method)
    for counts in (COUNTS, (0,), (1,), (50, 49, 48), (1,) * 40):
        assert engine(*make_jets(counts)).isfinite().all()
    spoilt = make_jets(COUNTS)
    spoilt[1][1] = torch.nan
    assert engine(*spoilt).isnan().any(1).tolist() == [i == 1 for i in range(len(COUNTS))]
def call():
    for counts in (COUNTS, (3, 20)):
        engine(*make_jets(counts))
threads = [threading.Thread(target=call) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()

model = make_model().train()
for counts in ((23, 40, 0, 1, 17), (1, 2), (0, 3)):
    model(*make_jets(counts)).logsumexp(1).sum().backward()
for queries, keys, dim in ((1, 1, 1), (17, 33, 5), (40, 40, 16)):
    q = torch.randn(3, 2, queries, dim, requires_grad=True)
    k, v = torch.randn(2, 3, 2, keys, dim, requires_grad=True)
    bias = torch.randn(3, 2, queries, keys, requires_grad=True)
    mask = torch.arange(keys) < torch.tensor([[keys], [1], [0]])
    jagged(q, k, v, bias=bias, mask=mask, dropout_p=0.2).sum().backward()
print("all is computed")
"""


@pytest.mark.skipif(COMPILER is None, reason="no g++")
@pytest.mark.parametrize("sanitizer", SANITIZERS)
def test_kernels_under_a_sanitizer(sanitizer, tmp_path):
    runtimes = [runtime(library) for library in SANITIZERS[sanitizer]]
    if None in runtimes:
        pytest.skip(f"the runtime of -fsanitize={sanitizer} is not installed")
    # ThreadSanitizer does not see that the threads of an OpenMP without it wait for one another.
    own = " -DOWN_THREADS" if sanitizer == "thread" else ""
    environment = {
        **os.environ,
        **OPTIONS,
        "CXX": f"{COMPILER} -fsanitize={sanitizer} -g1 -fno-omit-frame-pointer{own}",
        "XDG_CACHE_HOME": str(tmp_path),
        "PYTHONPATH": os.pathsep.join([os.path.dirname(__file__), *sys.path]),
    }
    prelude = PRELUDE.format(isa=compilation.instruction_set())
    # The compiler should not run under the sanitizer.
    compile_all = [sys.executable, "-c", prelude + COMPILE]
    subprocess.run(compile_all, env=environment, timeout=900, check=True)
    command = [sys.executable, "-c", prelude + CASES]
    if sanitizer == "thread" and shutil.which("setarch"):
        command = ["setarch", "-R", *command]  # its memory layout does not bear a random one
    environment["LD_PRELOAD"] = " ".join(runtimes)
    found = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=900, cwd=tmp_path
    )
    if "unexpected memory mapping" in found.stderr:
        pytest.skip("ThreadSanitizer does not bear the memory layout of this system")
    report = found.stdout + found.stderr
    for word in ("AddressSanitizer", "runtime error", "ThreadSanitizer"):
        assert word not in report, report[-6000:]
    assert "all is computed" in found.stdout, report[-6000:]
