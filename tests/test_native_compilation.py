"""The libraries of kernels: compiled once, kept, checked before they are loaded."""

import ctypes
import logging
import os
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from jetzoo import UserError, native
from jetzoo.native import compilation

pytestmark = pytest.mark.skipif(
    not (os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")),
    reason="no C++ compiler",
)

TINY = """
#define EXPORT extern "C" __attribute__((visibility("default")))
EXPORT int answer() { return 42; }
EXPORT long long sizeof_Pair() { return 16; }
"""


class Pair(ctypes.Structure):
    _fields_ = [("first", ctypes.c_int64), ("second", ctypes.c_int64)]


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A library that compiles fast, with a cache of its own; gives the cache folder."""
    (tmp_path / "tiny.cpp").write_text(TINY)
    monkeypatch.setattr(compilation, "SOURCES", tmp_path)
    monkeypatch.setattr(compilation, "LIBRARIES", {"tiny": ("tiny",)})
    monkeypatch.setattr(compilation, "STRUCTURES", {"tiny": (Pair,)})
    monkeypatch.setattr(compilation, "instruction_set", lambda: "plain")
    monkeypatch.setattr(compilation, "_state", compilation._State())
    monkeypatch.setattr(compilation.tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "jetzoo"


def loaded():
    """Whether a process that starts now has the library of `tiny`."""
    native.load.cache_clear()
    library = native.load("tiny")
    return library is not None and library.answer() == 42


def test_a_library_is_compiled_once(tiny, monkeypatch):
    assert loaded()
    assert sorted(path.suffix for path in tiny.iterdir()) == [".json", ".lock", ".so"]
    monkeypatch.setattr(compilation, "build", None)
    assert loaded()


@pytest.mark.parametrize("damage", ["cut", "empty", "changed", "foreign", "no seal", "bad seal"])
def test_a_damaged_library_is_compiled_again(tiny, damage):
    """In a process of its own, which a signal would end; `foreign` is not even a library."""
    assert loaded()
    library, seal = next(tiny.glob("*.so")), next(tiny.glob("*.json"))
    content = library.read_bytes()
    damages = {
        "cut": lambda: library.write_bytes(content[: len(content) // 2]),
        "empty": lambda: library.write_bytes(b""),
        "changed": lambda: library.write_bytes(content[:4000] + b"?" + content[4001:]),
        "foreign": lambda: library.write_bytes(b"something else"),
        "no seal": seal.unlink,
        "bad seal": lambda: seal.write_text('["size"]'),
    }
    library.unlink()  # what this process has mapped stays as it is
    library.write_bytes(content)
    damages[damage]()
    assert loaded()
    assert compilation._is_whole(library)


def test_threads_compile_together(tiny, monkeypatch):
    built = []
    build = compilation.build
    monkeypatch.setattr(compilation, "build", lambda *a: built.append(a) or build(*a))
    barrier = threading.Barrier(6)

    def first_use(_):
        barrier.wait()
        return native.load("tiny")

    with ThreadPoolExecutor(6) as pool:
        libraries = list(pool.map(first_use, range(6)))
    assert all(library is libraries[0] for library in libraries)
    assert libraries[0].answer() == 42
    assert len(built) == 1


def test_processes_compile_together(tmp_path):
    (tmp_path / "tiny.cpp").write_text(TINY)
    code = f"""
import logging, pathlib
logging.basicConfig(level=logging.INFO)
from jetzoo.native import compilation
compilation.SOURCES = pathlib.Path({str(tmp_path)!r})
compilation.LIBRARIES = {{"tiny": ("tiny",)}}
compilation.STRUCTURES = {{"tiny": ()}}
compilation.instruction_set = lambda: "plain"
print(compilation.load("tiny").answer())
"""
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    found = [process.communicate(timeout=240) for process in processes]
    assert [out for out, _ in found] == ["42\n"] * 4, found
    assert sum("compiling" in errors for _, errors in found) == 1


def test_a_cache_that_cannot_be_written(tiny, tmp_path, caplog):
    """The libraries then stand in one folder of this user in the temporary directory."""
    (tmp_path / "cache").write_text("not a folder")
    for _ in range(2):
        assert loaded()
    folders = list((tmp_path / "temporary").iterdir())
    assert [folder.name for folder in folders] == [f"jetzoo-{os.getuid()}"]
    assert folders[0].stat().st_mode & 0o777 == 0o700
    caplog.clear()
    with compilation._state.lock:
        compilation._state.libraries.clear()
    assert native.load("tiny").answer() == 42
    assert not caplog.records  # it was said once


@pytest.mark.parametrize("kind", ["link", "open", "file"])
def test_a_temporary_folder_of_somebody_else(tiny, tmp_path, kind, caplog):
    (tmp_path / "cache").write_text("not a folder")
    folder = tmp_path / "temporary" / f"jetzoo-{os.getuid()}"
    if kind == "link":
        (tmp_path / "elsewhere").mkdir()
        folder.symlink_to(tmp_path / "elsewhere")
    elif kind == "open":
        folder.mkdir()
        folder.chmod(0o777)
    else:
        folder.write_text("")
    assert native.load("tiny") is None
    assert "PyTorch's own" in caplog.text


def test_a_full_disk(tiny, tmp_path, monkeypatch, caplog):
    build = compilation.build

    def full(sources, command, library):
        if tiny in library.parents:
            raise OSError(28, "No space left on device")
        build(sources, command, library)

    monkeypatch.setattr(compilation, "build", full)
    assert loaded()
    assert caplog.text.count("No space left") == 1
    assert not list(tiny.glob("*.so")) and not list(tiny.glob(".compiling*"))


def test_the_line_of_a_compiler_that_says_why():
    said = "/tmp/x.s: Assembler messages:\n/tmp/x.s: Fatal error: No space left on device\n"
    error = subprocess.CalledProcessError(1, "g++", stderr=said)
    assert compilation._reason(error) == "/tmp/x.s: Fatal error: No space left on device"


def test_a_failure_that_may_pass_is_tried_again(tiny, monkeypatch, caplog):
    calls_made = []

    def fails(*arguments):
        calls_made.append(arguments)
        raise OSError("a server that is asleep")

    with monkeypatch.context() as patch:
        patch.setattr(compilation, "build", fails)
        for _ in range(10):
            assert native.load("tiny") is None
        # Both folders are tried, but not at every call.
        assert len(calls_made) == 2 * compilation.TRIES
    assert caplog.text.count("cannot be made now") == 1
    assert native.load("tiny") is None
    monkeypatch.setattr(compilation, "PAUSE", 0)
    assert native.load("tiny").answer() == 42


def test_once_is_enough_for_a_transient_failure(tiny, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(compilation, "build", lambda *a: (_ for _ in ()).throw(OSError("once")))
        assert native.load("tiny") is None
    assert native.load("tiny").answer() == 42


def test_what_does_not_pass_is_said_once(tiny, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("CXX", str(tmp_path / "no-such-compiler"))
    assert native.load("tiny") is None and native.load("tiny") is None
    assert caplog.text.count("no C++ compiler") == 1
    monkeypatch.setenv("JETZOO_NATIVE", "0")
    caplog.clear()
    with caplog.at_level(logging.INFO, "jetzoo"):
        assert not loaded()
    assert "switched off" in caplog.text


def test_sources_that_do_not_compile(tiny, tmp_path, caplog):
    (tmp_path / "tiny.cpp").write_text("this is no C++")
    assert native.load("tiny") is None and native.load("tiny") is None
    assert caplog.text.count("does not compile") == 1


def test_structures_of_another_size(tiny, monkeypatch, caplog):
    class Pair(ctypes.Structure):
        _fields_ = [("first", ctypes.c_int64)]

    monkeypatch.setattr(compilation, "STRUCTURES", {"tiny": (Pair,)})
    assert native.load("tiny") is None
    assert "Pair takes 16 bytes in C++ and 8 in Python" in caplog.text


# The instruction set, chosen when a library is loaded.


def sets_of_this_processor(monkeypatch):
    """Names of the instruction sets that this processor has."""
    found = []
    for name in compilation.INSTRUCTION_SETS:
        monkeypatch.setenv("JETZOO_ISA", name)
        try:
            found.append(compilation.instruction_set())
        except UserError as error:
            assert name in str(error)
    return found


def test_the_instruction_set_is_chosen_or_asked_for(monkeypatch):
    monkeypatch.delenv("JETZOO_ISA", raising=False)
    best = compilation.instruction_set()
    assert best in compilation.INSTRUCTION_SETS
    found = sets_of_this_processor(monkeypatch)
    assert best in found and found == [x for x in compilation.INSTRUCTION_SETS if x in found]
    monkeypatch.setenv("JETZOO_ISA", "mmx")
    with pytest.raises(UserError, match=f"'mmx', but this processor has {', '.join(found)}"):
        compilation.instruction_set()


def test_libraries_for_different_processors_share_a_cache(tiny, monkeypatch):
    assert loaded()
    monkeypatch.setattr(compilation, "instruction_set", lambda: "neon")  # no option of the compiler
    assert loaded()
    assert sorted(path.name[:10] for path in tiny.glob("*.so")) == ["tiny-neon-", "tiny-plain"]


def test_an_unknown_instruction_set_lets_pytorch_compute(tiny, monkeypatch, caplog):
    monkeypatch.setattr(compilation, "instruction_set", lambda: None)
    assert native.load("tiny") is None
    assert "PyTorch's own run" in caplog.text


@pytest.fixture
def carried(tiny, tmp_path, monkeypatch):
    """`tiny` with the library in the package, and no compiler; gives the library."""
    monkeypatch.setattr(compilation, "INSTRUCTION_SETS", {"plain": [], "odd": ["-no-such-option"]})
    compilation.compile_all()
    monkeypatch.setenv("CXX", "no-such-compiler")
    return tmp_path / compilation.CARRIED / "tiny-plain.so"


def test_a_library_of_the_package_needs_no_compiler(capsys, carried, tiny):
    assert "tiny-odd is left out" in capsys.readouterr().out
    assert [path.name for path in carried.parent.glob("*.so")] == ["tiny-plain.so"]
    assert loaded()
    assert not tiny.exists()  # nothing is cached


@pytest.mark.parametrize("damage", ["cut", "no seal", "other sources", "no library"])
def test_a_library_of_the_package_that_does_not_serve(
    carried, tmp_path, damage, monkeypatch, caplog
):
    if damage == "cut":
        carried.write_bytes(carried.read_bytes()[:-100])
    elif damage == "no seal":
        compilation._seal_of(carried).unlink()
    elif damage == "other sources":
        (tmp_path / "tiny.cpp").write_text(TINY + "// changed")
    else:
        carried.write_bytes(b"of another system")
        compilation._write_seal(compilation._seal_of(carried), "tiny", carried)
    assert not loaded()
    assert ("does not load" in caplog.text) == (damage == "no library")
    monkeypatch.delenv("CXX")
    assert loaded()


def test_a_wheel_carries_all_processors_of_an_architecture(monkeypatch):
    monkeypatch.setattr(compilation.platform, "machine", lambda: "x86_64")
    stems = [stem for name in compilation.LIBRARIES for stem, _ in compilation._all_targets(name)]
    assert {"isa", "part-plain", "part-avxvnni", "training-avx512vnni-bf16"} < set(stems)
    assert not any("neon" in stem for stem in stems)
    monkeypatch.setattr(compilation.platform, "machine", lambda: "aarch64")
    assert [stem for stem, _ in compilation._all_targets("part")] == ["part-neon"]
