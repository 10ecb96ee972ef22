"""The library in C++: its files, its scores, what it refuses, and what it is compiled to."""

import ctypes
import json
import os
import re
import shutil
import subprocess

import awkward as ak
import numpy as np
import pytest
import torch
from zoo import CONFIG, SIZES, build, stir

import jetzoo
from jetzoo import UserError, cli, cpp
from jetzoo.cpp import weights
from jetzoo.cpp.formulas import OPERATIONS, Program
from jetzoo.native import compilation

pytestmark = pytest.mark.filterwarnings("ignore")
needs_cmake = pytest.mark.skipif(
    not (shutil.which("cmake") and (shutil.which("g++") or shutil.which("clang++"))),
    reason="no cmake or no C++ compiler",
)
NAMES = ("ParT", "ParT-FineTune", "PN", "PN-FineTune")


def trained(name, folder):
    """A network's checkpoint and options, its numbers stirred so that all of them matter."""
    options = dict(SIZES.get(name, {}))
    path = folder / f"{name}.pt"
    torch.save(stir(build(name, **options)).state_dict(), path)
    return path, options


def compiled(folder, *options, target=()):
    """Build an exported folder with CMake; gives the folder of the build."""
    command = ["cmake", "-S", folder, "-B", folder / "build", *options]
    for step in (command, ["cmake", "--build", folder / "build", "-j2", *target]):
        done = subprocess.run(step, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        assert "warning:" not in done.stdout + done.stderr
    return folder / "build"


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Folders of all networks; the ParT through the command line."""
    root = tmp_path_factory.mktemp("cpp")
    folders = {}
    for name in NAMES:
        checkpoint, options = trained(name, root)
        folders[name] = root / f"{name}-cpp"
        cpp.export(name, checkpoint, CONFIG, folders[name], **options)
    return folders


class Library:
    """The functions of jetzoo.h, which any weights file can be opened with."""

    def __init__(self, path):
        self.own = ctypes.CDLL(str(path))
        for name in ("error_text", "describe", "instruction_set", "class", "variable"):
            getattr(self.own, f"jetzoo_{name}").restype = ctypes.c_char_p
        self.workspace = ctypes.c_void_p()
        assert self.own.jetzoo_workspace_create(ctypes.byref(self.workspace)) == 0

    def open(self, path):
        """Status, and the network."""
        network = ctypes.c_void_p()
        status = self.own.jetzoo_open(os.fsencode(path), ctypes.byref(network))
        assert (status == 0) == bool(network)
        return status, network

    def names(self, network):
        count = self.own.jetzoo_num_variables(network)
        return [self.own.jetzoo_variable(network, i).decode() for i in range(count)]

    def score(self, path, jets):
        """Scores (num_jets, num_classes) of an awkward array of jets."""
        status, network = self.open(path)
        assert status == 0, self.own.jetzoo_error_text(status)
        found = []
        for jet in jets:
            columns = [
                np.atleast_1d(np.asarray(jet[name], np.float32)) for name in self.names(network)
            ]
            pointers = (ctypes.c_void_p * len(columns))(*(x.ctypes.data for x in columns))
            scores = np.empty(self.own.jetzoo_num_classes(network), np.float32)
            size = ctypes.c_int64(len(jet["part_px"]))
            address = ctypes.c_void_p(scores.ctypes.data)
            assert not self.own.jetzoo_predict(network, self.workspace, pointers, size, address)
            found.append(scores)
        self.own.jetzoo_close(network)
        return np.array(found)


@pytest.fixture(scope="module")
def library(exported):
    best = compilation.instruction_set()
    folder = compiled(exported["ParT"], f"-DJETZOO_SETS={best}", target=("--target", "jetzoo"))
    return Library(folder / "libjetzoo.so")


def hand_made(tagger):
    """Embedded jets, without a particle, with one, with 200, with numbers at the limits."""
    jets = cpp.probe_jets(tagger.branches).to_list()
    spoilt = jets.pop()
    assert [len(jet["part_px"]) for jet in jets[-3:]] == [0, 1, 200]
    long = jets[-1]
    late = {**long, "part_pz": [*long["part_pz"][:-1], float("inf")]}  # past what is looked at
    soft = {**jets[0], "part_px": [0.0] * 4, "part_py": [0.0] * 4}  # the logarithm of zero
    soft = {k: v[:4] if isinstance(v, list) else v for k, v in soft.items()}
    hard = {**jets[1], "jet_pt": 1e-30, "part_deta": [1e6] * len(jets[1]["part_px"])}
    vanishing = {**jets[2], "jet_pt": 0.0}
    return ak.Array([*jets, spoilt, late, soft, hard, vanishing])


@needs_cmake
@pytest.mark.parametrize("name", NAMES)
def test_scores_are_those_of_the_tagger(name, exported, library, tmp_path):
    checkpoint, options = trained(name, tmp_path)
    tagger = jetzoo.load(name, checkpoint, CONFIG, "cpu", **options)
    jets = hand_made(tagger)
    expected = tagger.predict(jets)
    found = library.score(exported[name] / "weights.bin", jets)
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)
    assert np.isnan(found).any(1).sum() >= 2 and np.isfinite(found).all(1).sum() > 20
    # The particles past the length of the data config do not matter, but for NaN among them.
    cut = ak.Array(
        [{k: v[:128] if isinstance(v, list) else v for k, v in jets[26].to_list().items()}]
    )
    assert len(jets[26]["part_px"]) == 200
    np.testing.assert_array_equal(library.score(exported[name] / "weights.bin", cut)[0], found[26])


@needs_cmake
@pytest.mark.parametrize("method", ["static", "dynamic"])
def test_int8(method, library, tmp_path):
    checkpoint, options = trained("ParT", tmp_path)
    calibration = [jetzoo.repository.sample_jets()] if method == "static" else None
    cpp.export("ParT", checkpoint, CONFIG, tmp_path / "out", True, calibration, **options)
    (allowed, *rows) = (tmp_path / "out" / "test" / "scores.csv").read_text().split()
    expected = np.array([row.split(",") for row in rows], np.float32)
    tagger = jetzoo.load("ParT", checkpoint, CONFIG, "cpu", **options)
    found = library.score(tmp_path / "out" / "weights.bin", cpp.probe_jets(tagger.branches))
    np.testing.assert_allclose(found, expected, atol=float(allowed), rtol=0)


@needs_cmake
def test_damaged_files_are_refused(exported, library, tmp_path):
    good = (exported["PN"] / "weights.bin").read_bytes()
    path = tmp_path / "weights.bin"
    middle = len(good) // 2
    damages = {
        "empty": b"",
        "cut": good[: middle // 8 * 8],
        "no header": good[:64],
        "longer": good + bytes(8),
        "foreign": b"something else" * 100,
        "version": good[:8] + b"\2" + good[9:],
        **{
            f"bit {at}": good[:at] + bytes([good[at] ^ 0x80]) + good[at + 1 :]
            for at in (0, 24, 33, 57, middle, len(good) - 1)
        },
    }
    for damage, content in damages.items():
        path.write_bytes(content)
        assert library.open(path)[0] == 5, damage
    assert library.open(tmp_path / "absent")[0] == library.open(tmp_path)[0] == 4
    assert b"damaged" in library.own.jetzoo_error_text(5)


@needs_cmake
def test_plans_that_do_not_fit_are_refused(exported, library, tmp_path):
    """Whatever the checksum says: each number of the plan is changed, or the plan is cut."""
    words = np.fromfile(exported["PN"] / "weights.bin", "<u8")
    start, count = int(words[4]) // 8, int(words[5])
    path = tmp_path / "weights.bin"
    refused = 0
    for place in range(0, count, 7):
        for value in (2**63, 2**31, 3):
            changed = words.copy()
            changed[start + place] = value
            changed[weights.CHECKSUM] = 0
            changed[weights.CHECKSUM] = weights.checksum(changed)
            changed.tofile(path)
            status, network = library.open(path)
            assert status in (0, 5)
            refused += status == 5
            library.own.jetzoo_close(network)
    assert refused > count / 7  # a number such as a scale may be any


@needs_cmake
def test_misuse_is_a_status(exported, library, monkeypatch):
    own, workspace = library.own, library.workspace
    _, network = library.open(exported["PN"] / "weights.bin")
    scores = (ctypes.c_float * 8)()
    nothing = (ctypes.c_void_p * 16)()
    for size in (-1, 3, 2**40):
        assert own.jetzoo_predict(network, workspace, nothing, ctypes.c_int64(size), scores) == 3
    assert own.jetzoo_predict(None, workspace, nothing, ctypes.c_int64(1), scores) == 3
    assert own.jetzoo_variable(network, -1) is own.jetzoo_class(network, 99) is None
    description = json.loads(own.jetzoo_describe(network))
    assert description["network"] == "PN" and len(description["classes"]) == 2
    assert own.jetzoo_instruction_set(network).decode() == compilation.instruction_set()
    own.jetzoo_close(network)
    monkeypatch.setenv("JETZOO_ISA", "mmx")
    assert library.open(exported["PN"] / "weights.bin")[0] == 6


# What is written.


def test_the_folder_holds_the_files_of_the_engine(exported):
    folder = exported["ParT"]
    for name in cpp.KERNEL_FILES:
        assert (folder / "kernels" / name).read_bytes() == (cpp.KERNELS / name).read_bytes()
    present = {path.name for path in cpp.LIBRARY.iterdir()}
    assert present == {name for names in cpp.FILES.values() for name in names}


def test_lists_that_stand_twice_are_the_same():
    header = (cpp.LIBRARY / "inputs.h").read_text()
    (listed,) = re.findall(r"enum Operation \{(.*?)OPERATIONS", header, re.DOTALL)
    assert tuple(re.findall(r"\w+", listed.lower())) == OPERATIONS
    build = (cpp.LIBRARY / "CMakeLists.txt").read_text()
    build = build.replace("${JETZOO_AVX512}", " ".join(compilation.AVX512))
    build = build.replace("${JETZOO_AVX2}", " ".join(compilation.AVX2))
    for name, options in compilation.INSTRUCTION_SETS.items():
        assert not options or f"set(options_{name} {' '.join(options)})" in build


def test_the_command_writes_a_folder(tmp_path, capsys):
    checkpoint, options = trained("PN", tmp_path)
    command = ["export", "PN", "--checkpoint", str(checkpoint), "--data-config", str(CONFIG)]
    command += ["--cpp", str(tmp_path / "out")]
    given = [x for k, v in options.items() for x in ("--network-option", k, str(v))]
    cli.main([*command, *given])
    assert (tmp_path / "out" / "weights.bin").is_file() and "wrote" in capsys.readouterr().out
    with pytest.raises(UserError, match="exists already"):
        cpp.export("PN", checkpoint, CONFIG, tmp_path / "out", **options)


@pytest.mark.parametrize("name", ["PFN", "LinformerParT"])
def test_other_networks_are_refused(name, tmp_path):
    checkpoint, options = trained(name, tmp_path)
    with pytest.raises(UserError, match="cannot run this network"):
        cpp.export(name, checkpoint, CONFIG, tmp_path / "out", **options)
    assert sorted(path.name for path in tmp_path.iterdir()) == [checkpoint.name]


def test_int8_is_for_part(tmp_path):
    checkpoint, options = trained("PN", tmp_path)
    with pytest.raises(UserError, match="in int8"):
        cpp.export("PN", checkpoint, CONFIG, tmp_path / "out", True, **options)


# Formulas.

KNOWN = {
    "part_a": "np.hypot(part_x, jet_y) / 2 - -part_x * 3",
    "part_b": "(np.abs(part_x) == 1) + 0.5 * (part_x > part_a)",
    "part_c": "np.where(part_x > 0, 1, 2)",
    "part_d": "(part_x > 0) + (jet_y > 0)",
    "part_e": "part_x[:2]",
    "part_f": "np.log(part_x > 0)",
    "jet_z": "np.log(jet_y)",
}


def test_formulas_become_programs():
    program = Program(["jet_y", "part_x"], KNOWN)
    assert program.column("part_x") == 1
    assert program.column("part_a") == 2 + [x.operation for x in program.instructions].index(
        "subtract"
    )
    program.column("part_b")
    before = len(program.instructions)
    assert program.column("part_b") == program.column("part_b")
    assert len(program.instructions) == before
    assert program.per_particle("part_a") and not program.per_particle("jet_z")


@pytest.mark.parametrize("name", ["part_c", "part_d", "part_e", "part_f"])
def test_formulas_that_are_not_computed(name):
    with pytest.raises(UserError, match=f"does not compute the formula {name} = "):
        Program(["jet_y", "part_x"], KNOWN).column(name)


# All instruction sets.

DOT4 = """
#include "part_dense.h"
#include <cstdio>
int main() {
    for (int x = 0; x < 256; x += 5)
        for (int y = -128; y < 128; y += 5) {
            const int32_t bytes[4] = {x, 255, x ^ 85, 0}, weights[4] = {y, -128, 127, y};
            int32_t a = 0, b = 0, sum = 1000;
            for (int i = 0; i < 4; i++) {
                a |= bytes[i] << (8 * i);
                b |= int32_t(uint32_t(weights[i] & 255) << (8 * i));
                sum += bytes[i] * weights[i];
            }
            const ISA::vi found = ISA::dot4(isplat(1000), isplat(a), isplat(b));
            for (int i = 0; i < W; i++)
                if (found[i] != sum) return std::printf("%d %d: %d not %d", x, y, found[i], sum);
        }
}
""".replace("ISA::vi", "vi")


def sets_of_this_processor():
    find = compilation.load("isa").name_of_instruction_set
    return [name for name in compilation.INSTRUCTION_SETS if find(name.encode())]


@pytest.mark.skipif(not shutil.which("g++"), reason="no g++")
def test_products_of_bytes_are_the_same_integers(tmp_path):
    compilation.instruction_set()
    (tmp_path / "dot4.cpp").write_text(DOT4)
    for name in sets_of_this_processor():
        options = ["-std=c++17", "-O1", "-Wno-psabi", f"-DISA={name}", f"-I{cpp.KERNELS}"]
        options += compilation.INSTRUCTION_SETS[name]
        program = tmp_path / name
        subprocess.run(["g++", *options, tmp_path / "dot4.cpp", "-o", program], check=True)
        assert subprocess.run([program], capture_output=True, text=True).stdout == "", name


@needs_cmake
@pytest.mark.slow
def test_all_instruction_sets_agree(tmp_path):
    """One library with all of them: in float32 the scores, in int8 nearly always."""
    found = {}
    for int8 in (False, True):
        folder = tmp_path / f"out-{int8}"
        cpp.export(*jetzoo.tagger.resolve("ParT_QuarkGluon_kin"), folder, int8)
        build = compiled(folder)
        done = subprocess.run(["ctest", "--output-on-failure"], cwd=build, capture_output=True)
        assert done.returncode == 0, done.stdout
        for name in sets_of_this_processor():
            done = subprocess.run(
                [build / "jetzoo_score", folder / "weights.bin", folder / "test" / "jets.csv"],
                env={**os.environ, "JETZOO_ISA": name},
                capture_output=True,
                text=True,
                check=True,
            )
            rows = [row.split(",") for row in done.stdout.split()[1:]]
            found[int8, name] = np.array(rows, np.float32)
    for (int8, name), scores in found.items():
        if not (int8 and name == "plain"):  # without FMA activations are rounded otherwise
            np.testing.assert_allclose(scores, found[int8, "avx2"], atol=1e-5, rtol=0)
    stripped = tmp_path / "stripped.so"
    subprocess.run(["strip", build / "libjetzoo.so", "-o", stripped], check=True)
    assert stripped.stat().st_size < 1e6
    # A weak symbol could be taken from the kernels for a processor with more instructions.
    objects = list(build.glob("CMakeFiles/kernels_*.dir/**/*.o"))
    assert len(objects) >= 12
    symbols = subprocess.run(["nm", "-C", *objects], capture_output=True, text=True, check=True)
    weak = [x for x in symbols.stdout.splitlines() if re.search(r" [WVu] ", x)]
    assert not [x for x in weak if not re.search(r"(plain|avx|neon)\w*::", x)]


@needs_cmake
@pytest.mark.slow
@pytest.mark.parametrize("sanitizer", ["address,undefined", "thread"])
@pytest.mark.parametrize("name", ["ParT", "PN"])
def test_sanitizers(name, sanitizer, exported, tmp_path):
    folder = tmp_path / "out"
    shutil.copytree(exported[name], folder, ignore=shutil.ignore_patterns("build"))
    flags = f"-fsanitize={sanitizer} -fno-sanitize-recover=all -g1"
    best = compilation.instruction_set()
    build = compiled(folder, f"-DCMAKE_CXX_FLAGS={flags}", f"-DJETZOO_SETS={best}")
    command = [build / "jetzoo_check", folder / "weights.bin"]
    command += [folder / "test" / "jets.csv", folder / "test" / "scores.csv"]
    if sanitizer == "thread" and shutil.which("setarch"):
        command = ["setarch", "-R", *command]
    done = subprocess.run(command, capture_output=True, text=True)
    if "unexpected memory mapping" in done.stderr:
        pytest.skip("ThreadSanitizer does not bear the memory layout of this system")
    assert done.returncode == 0, done.stdout + done.stderr
