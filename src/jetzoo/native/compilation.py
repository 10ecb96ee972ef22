"""Compiles the kernels at their first use, keeps the libraries, and loads them with care.

A wheel can carry them: ``python -m jetzoo.native.compilation`` compiles all of them for every
instruction set, into a folder of the package (``make wheel``). What a wheel carries is taken before
anything is compiled, if it is of the sources beside it and loads here.

A library that was cut short would kill the process that maps it, so the size and the checksum of
each are kept beside it and compared before it is loaded. Threads and processes that need the same
library at the same time wait for the first of them.
"""

import contextlib
import ctypes
import hashlib
import json
import logging
import os
import platform
import shutil
import stat
import subprocess
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from jetzoo import UserError

from .structures import STRUCTURES

try:
    import fcntl
except ImportError:  # there is none on Windows
    fcntl = None

logger = logging.getLogger("jetzoo")

SOURCES = Path(__file__).parent
CARRIED = "compiled"  # the folder beside the sources for what a wheel carries
# What is compiled for each instruction set of its own, and what is the same for all.
PART_KERNELS = ("part_group", "part_layers", "part_pairs", "part_attention")
LIBRARIES = {
    "isa": ("isa",),
    "peak": ("peak",),
    "part": ("threads", "workspace", "part", *PART_KERNELS),
    "training": (
        "threads",
        "workspace",
        "products",
        "attention",
        "chains",
        "dense",
        "edges",
        "pairs",
    ),
}
# Not -ffast-math: it changes how the whole process treats small numbers.
FLAGS = [
    "-std=c++17",
    "-O3",
    "-fPIC",
    "-pthread",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-ffp-contract=fast",
    "-fno-semantic-interposition",
    "-fvisibility=hidden",
    "-Wall",
    "-Wno-psabi",
]
AVX2 = ["-mavx2", "-mfma"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"]
# Options of the compiler for the instruction sets of isa.cpp.
INSTRUCTION_SETS = {
    "plain": [],
    "avx2": AVX2,
    "avxvnni": [*AVX2, "-mavxvnni"],
    "avx512": AVX512,
    "avx512vnni": [*AVX512, "-mavx512vnni"],
    "neon": [],
}

X86 = ("x86_64", "amd64")

# A failure that may pass is tried again at once, this often, and from then on after a while.
TRIES = 3
PAUSE = 60  # seconds
PATIENCE = 300  # seconds to wait for another process that compiles


class Unavailable(Exception):
    """The kernels cannot run in this process, now or later."""


class _State:
    """What this process knows of the libraries."""

    def __init__(self):
        self.lock = threading.RLock()
        self.libraries = {}  # of each name a library, or None if there will never be one
        self.failures = {}  # of each name how many there were, and when the last one was
        self.said = set()

    def warn(self, message, *values):
        """Log a warning, once."""
        if (message, *values) not in self.said:
            self.said.add((message, *values))
            logger.warning(message, *values)


_state = _State()
if hasattr(os, "register_at_fork"):
    # Another thread may have held the lock when the process was forked.
    os.register_at_fork(after_in_child=lambda: setattr(_state, "lock", threading.RLock()))


def load(name):
    """A library of kernels, or None where it cannot be compiled.

    It is kept in ``$XDG_CACHE_HOME/jetzoo`` (``~/.cache/jetzoo``), or, if nothing can be written
    there, in a folder of this user in the temporary directory, under a name that depends on the
    sources, the compiler and the instruction set: machines with different processors may share a
    cache. ``CXX`` chooses the compiler; ``JETZOO_NATIVE=0`` does without kernels, and
    ``JETZOO_ISA`` takes another instruction set than the best, see :func:`instruction_set`. Nothing
    is compiled where the installed package carries the library.

    Parameters
    ----------
    name : {"part", "training", "isa", "peak"}

    Returns
    -------
    ctypes.CDLL or None
        The reason for None is logged. A failure that may pass is tried again later.

    Raises
    ------
    UserError
        If the processor lacks the instruction set that ``JETZOO_ISA`` names.
    """
    try:
        return _state.libraries[name]
    except KeyError:
        pass
    with _state.lock:
        if name in _state.libraries:  # another thread was first
            return _state.libraries[name]
        count, last = _state.failures.get(name, (0, 0.0))
        if count >= TRIES and time.monotonic() < last + PAUSE:
            return None
        try:
            library = _find_or_compile(name)
        except Unavailable as reason:
            _state.warn("%s: PyTorch's own kernels run instead", str(reason))
            library = None
        except (OSError, subprocess.SubprocessError) as error:
            _state.failures[name] = (count + 1, time.monotonic())
            _state.warn(
                "the kernels %r cannot be made now (%s): PyTorch's own run", name, _reason(error)
            )
            return None
        _state.libraries[name] = library
        return library


def forget():
    """Let the next :func:`load` look for the libraries anew."""
    with _state.lock:
        for found in (_state.libraries, _state.failures, _state.said):
            found.clear()


load.cache_clear = forget


def _find_or_compile(name):
    if os.environ.get("JETZOO_NATIVE") == "0":
        logger.info("native kernels are switched off (JETZOO_NATIVE=0)")
        return None
    stem, options = _target(name)
    library = _carried(name, stem)
    if library is not None:
        return library
    compiler = _compiler()
    command = [*compiler, *FLAGS, *options]
    file = f"{stem}-{_digest(name, compiler, command)}.so"
    failure = None
    for folder in _folders():
        path = folder / file
        try:
            if not _is_whole(path):
                _compile(name, command, path)
            return _checked(name, ctypes.CDLL(str(path)))
        except (OSError, subprocess.SubprocessError) as error:
            if isinstance(error, subprocess.CalledProcessError) and not _may_pass(error):
                raise Unavailable(
                    f"the library {name!r} does not compile ({_reason(error)})"
                ) from error
            _state.warn("compiled kernels cannot be kept in %s (%s)", folder, _reason(error))
            failure = error
    raise failure or OSError("there is no folder that the kernels can be kept in")


def _compiler():
    """The compiler as words of a command."""
    compiler = os.environ.get("CXX") or next(filter(shutil.which, ("g++", "clang++")), None)
    if compiler is None or not shutil.which(compiler.split()[0]):
        raise Unavailable(f"no C++ compiler ({compiler or 'g++ or clang++'})")
    return compiler.split()


def _target(name):
    """What a library is called on this machine, and the options of the compiler for it."""
    if name == "isa":
        return name, []
    isa = instruction_set()
    if isa is None:
        raise OSError("it is not known which instructions the processor has")
    half = name == "training" and "avx512" in isa and load("isa").multiplies_bfloat16()
    return _for_set(name, isa, half)


def _for_set(name, isa, half=False):
    """The same for an instruction set, with products of bfloat16 if there are any."""
    options = [f"-DISA={isa}", *INSTRUCTION_SETS[isa]]
    return (
        (f"{name}-{isa}-bf16", [*options, "-mavx512bf16"]) if half else (f"{name}-{isa}", options)
    )


def _carried(name, stem):
    """A library of the installed package, or None where it has none that serves."""
    path = SOURCES / CARRIED / f"{stem}.so"
    if not _is_whole(path) or _seal(path).get("sources") != _digest_of_sources(name):
        return None
    try:
        return _checked(name, ctypes.CDLL(str(path)))
    except (OSError, Unavailable) as error:
        _state.warn("%s of the package does not load (%s): it is compiled", stem, _reason(error))
        return None


def instruction_set():
    """Name of the instruction set that the kernels are compiled for, such as ``"avx512vnni"``.

    Returns
    -------
    str or None
        The best of :data:`INSTRUCTION_SETS` that the processor has, or the one that ``JETZOO_ISA``
        names; None if that cannot be found out now.

    Raises
    ------
    UserError
        If the processor lacks what ``JETZOO_ISA`` names.
    """
    library = load("isa")
    if library is None:
        return None
    find = library.name_of_instruction_set
    find.argtypes, find.restype = (ctypes.c_char_p,), ctypes.c_char_p
    wanted = os.environ.get("JETZOO_ISA", "")
    found = find(wanted.encode())
    if found is None:
        there = ", ".join(name for name in INSTRUCTION_SETS if find(name.encode()))
        raise UserError(f"JETZOO_ISA asks for {wanted!r}, but this processor has {there}.")
    return found.decode()


def _digest(name, compiler, command):
    """What a library depends on: its sources, the compiler and its options."""
    version = _run([*compiler, "--version"], check=False).stdout
    text = "\n".join((version, platform.machine(), *command, _digest_of_sources(name)))
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def _digest_of_sources(name):
    digest = hashlib.sha256()
    for path in (*_sources(name), *sorted(SOURCES.glob("*.h"))):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _sources(name):
    return [SOURCES / f"{source}.cpp" for source in LIBRARIES[name]]


def _folders():
    """Where libraries may be kept: the first folder, or the second one if that does not serve."""
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jetzoo"
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home
        _state.warn("there is no folder for compiled kernels (%s)", _reason(error))
    user = getattr(os, "getuid", lambda: os.environ.get("USERNAME", ""))()
    folder = Path(tempfile.gettempdir()) / f"jetzoo-{user}"
    folder.mkdir(mode=0o700, exist_ok=True)
    # Anybody may write to the temporary directory: what is loaded must be of this user.
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_mode & 0o022 or found.st_uid != user:
        raise Unavailable(f"{folder} is not a folder of this user alone")
    yield folder


def _is_whole(path):
    """Whether a library is, byte for byte, what was compiled."""
    try:
        expected = _seal(path)
        return path.stat().st_size == expected["size"] and _sha256(path) == expected["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _seal(path):
    """What was written down of a library when it was compiled."""
    return json.loads(_seal_of(path).read_text())


def _seal_of(path):
    return path.with_name(path.name + ".json")


def _write_seal(seal, name, library):
    content = {"size": library.stat().st_size, "sha256": _sha256(library)}
    seal.write_text(json.dumps(content | {"sources": _digest_of_sources(name)}))


def _sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _compile(name, command, path):
    """Write a library and its checksum, unless another process does it meanwhile."""
    with _between_processes(path.with_name(path.name + ".lock")):
        if _is_whole(path):
            return
        logger.info("compiling the kernels %r", name)
        with tempfile.TemporaryDirectory(
            prefix=".compiling-", dir=path.parent, ignore_cleanup_errors=True
        ) as folder:
            library, seal = Path(folder) / path.name, Path(folder) / "seal.json"
            build(_sources(name), command, library)
            _write_seal(seal, name, library)
            library.replace(path)
            seal.replace(_seal_of(path))


def build(sources, command, library):
    """Compile sources, two at a time, and link them to a shared library.

    Parameters
    ----------
    sources : sequence of Path
    command : list of str
        The compiler and its options.
    library : Path
        To be written; object files are left beside it.
    """
    objects = [library.with_name(source.stem + ".o") for source in sources]
    with ThreadPoolExecutor(2) as pool:
        pairs = zip(map(str, sources), map(str, objects), strict=True)
        list(pool.map(lambda pair: _run([*command, "-c", pair[0], "-o", pair[1]]), pairs))
    _run([*command, "-shared", *map(str, objects), "-o", str(library)])


def compile_all():
    """Compile what a wheel carries: each library for each instruction set of this architecture.

    What the compiler has no options for is left out with a note.
    """
    folder = SOURCES / CARRIED
    folder.mkdir(exist_ok=True)
    command = [*_compiler(), *FLAGS]
    for name in LIBRARIES:
        for stem, options in _all_targets(name):
            library = folder / f"{stem}.so"
            with tempfile.TemporaryDirectory() as work:
                try:
                    build(_sources(name), [*command, *options], Path(work) / library.name)
                except subprocess.CalledProcessError as error:
                    print(f"note: {stem} is left out: {_reason(error)}")
                    continue
                shutil.copyfile(Path(work) / library.name, library)
            _write_seal(_seal_of(library), name, library)
            print(f"compiled {stem}")


def _all_targets(name):
    """As :func:`_target`, for all processors of this architecture."""
    if name == "isa":
        return [(name, [])]
    machine = platform.machine().lower()
    if machine in ("aarch64", "arm64"):
        sets = ("neon",)
    else:
        sets = [x for x in INSTRUCTION_SETS if x != "neon"] if machine in X86 else ["plain"]
    halves = [isa for isa in sets if name == "training" and "avx512" in isa]
    return [_for_set(name, isa) for isa in sets] + [_for_set(name, isa, True) for isa in halves]


def _run(command, check=True):
    return subprocess.run(
        command, check=check, capture_output=True, encoding="utf-8", errors="replace"
    )


@contextlib.contextmanager
def _between_processes(path):
    """Hold a file that one process at a time can hold, or go on without after a while.

    Without, two processes may compile the same library, each in a folder of its own.
    """
    if fcntl is None:
        yield
        return
    with open(path, "a") as file:
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.05)
            except OSError:  # a file system without locks
                break
        yield


def _checked(name, library):
    """The library, if its structures are as large as those of Python."""
    for structure in STRUCTURES[name]:
        size = getattr(library, f"sizeof_{structure.__name__}", None)
        if size is None:
            raise Unavailable(f"the library {name!r} does not know {structure.__name__}")
        size.restype = ctypes.c_int64
        if size() != ctypes.sizeof(structure):
            raise Unavailable(
                f"{structure.__name__} takes {size()} bytes in C++ and "
                f"{ctypes.sizeof(structure)} in Python"
            )
    return library


# What a compiler says for want of memory or space, whatever it compiles.
PASSING = ("No space left", "Killed", "emory", "Read-only file system", "Permission denied")


def _may_pass(error):
    """Whether a compiler failed for want of memory or space, not because of what it compiled."""
    return error.returncode < 0 or any(sign in (error.stderr or "") for sign in PASSING)


def _reason(error):
    """One line that says why: of a compiler's many, the one that names what is wanting."""
    text = getattr(error, "stderr", None) or str(error) or type(error).__name__
    lines = text.strip().split("\n")
    return next((x for x in lines if any(sign in x for sign in PASSING)), lines[0])


if __name__ == "__main__":
    compile_all()
