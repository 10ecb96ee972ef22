"""Trained networks as a library in C++ that needs neither Python nor anything else."""

import json
import shutil
import tempfile
from pathlib import Path

import awkward as ak
import numpy as np

import jetzoo
from jetzoo import UserError, repository, tables

from ..acceleration import lower
from ..comparison import calibration_jets
from ..data_config import dependencies
from ..engine.folding import fold, freeze
from ..int8.quantize import quantize
from ..native import part as native_part
from ..native.part_weights import PackedWeights
from ..nn.inputs import is_arranged
from ..tagger import Tagger, load
from .formulas import Program, is_per_particle
from .graph import PackedGraph
from .graph import unfit as unfit_graph
from .weights import GRAPH, PART, WeightsFile

LIBRARY = Path(__file__).parent / "library"
KERNELS = Path(native_part.__file__).parent

# Folder of each file of the library; those of the kernels are taken from the engine.
FILES = {
    "": ("CMakeLists.txt", "README.md"),
    "include": ("jetzoo.h", "jetzoo.hpp"),
    "src": (
        *("jetzoo.cpp", "network.cpp", "inputs.cpp", "file.cpp", "choice.cpp", "kernels.cpp"),
        *("network.h", "inputs.h", "file.h", "kernels.h"),
    ),
    "example": ("score.cpp", "csv.hpp"),
    "test": ("check.cpp",),
}
KERNEL_FILES = (
    *("isa.h", "isa.cpp", "workspace.h", "workspace.cpp", "simd.h", "part.h", "part_dense.h"),
    *("part_kernels.h", "part_group.cpp", "part_layers.cpp", "part_pairs.cpp"),
    *("part_attention.cpp", "graph.h", "graph_kernels.h", "graph.cpp"),
)

# Jets of the test, and the difference of a probability from PyTorch's that it allows. In int8 an
# activation on the border of two integers may be rounded either way.
JETS = 24
ALLOWED = {False: 1e-4, True: 2e-2}


def export(network, checkpoint, data_config, folder, int8=False, calibration=None, **options):
    """Write a trained network as a library in C++, with its weights, an example and a test.

    Parameters
    ----------
    network, checkpoint, data_config, **options
        See :func:`jetzoo.load`. An int8 network is written as it is.
    folder : str or Path
        Appears when complete; there should be none, or an empty one.
    int8 : bool
        Put the matrix products of a ParT into int8.
    calibration : sequence of str or Path, optional
        Files of jets. With them the ranges of int8 are fixed (static), without them they are found
        for each particle (dynamic).

    Raises
    ------
    UserError
        As :func:`jetzoo.load`; or if the folder is in use, or the library does not compute the
        network, or a formula of the data config.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists already: give a new folder.")
    if calibration and not int8:
        raise UserError("Jets to calibrate with are for an export in int8.")
    tagger = load(network, checkpoint, data_config, "cpu", **options)
    jets = calibration_jets(tagger, calibration) if calibration else None
    weights, tagger, is_int8 = _weights(tagger, int8, jets)
    tables.writable_folder(folder.parent)
    with tempfile.TemporaryDirectory(prefix=".exporting-", dir=folder.parent) as temporary:
        partial = Path(temporary) / "library"
        for place, names in FILES.items():
            (partial / place).mkdir(parents=True, exist_ok=True)
            for name in names:
                shutil.copyfile(LIBRARY / name, partial / place / name)
        (partial / "kernels").mkdir()
        for name in KERNEL_FILES:
            shutil.copyfile(KERNELS / name, partial / "kernels" / name)
        weights.write(partial / "weights.bin", _description(network, tagger, is_int8))
        _write_test(tagger, partial / "test", ALLOWED[is_int8])
        partial.replace(folder)


def _weights(tagger, int8, jets):
    """The weights file of a tagger, and the tagger with the network that is in it."""
    config = tagger.data_config
    if tagger.is_regression:
        raise UserError("The library in C++ gives probabilities of classes, and no regression.")
    if is_arranged(tagger.model):
        raise UserError(
            "The library in C++ takes the inputs in the order points, features, four-vectors, "
            f"mask, and the data config has {', '.join(config.input_names)}."
        )
    weights = WeightsFile()
    _add_inputs(weights, config)
    weights.integer(len(tagger.classes))
    for name in tagger.classes:
        weights.text(name)
    if getattr(tagger.model, "is_int8", False):
        if int8:
            raise UserError("The network is in int8 already.")
        quantized = tagger.model.network
        _add_part(weights, getattr(quantized.engine, "network", None))
        return weights, tagger, True
    frozen = freeze(tagger.model, "cpu")
    core, head = frozen, None
    if hasattr(frozen, "core_and_head"):
        core, head = frozen.core_and_head()
    folded = fold(frozen)
    if not int8 and hasattr(core, "edge_convs") and folded is not None:
        # What was folded shares the modules of the frozen network.
        if reason := unfit_graph(core):
            raise UserError(f"The library in C++ cannot run this network: {reason}.")
        packed = PackedGraph(core)
        weights.integer(GRAPH)
        weights.structure(packed.struct, packed.kept)
        weights.head(_layers(core.fc) + _layers(head))
        return weights, tagger, False
    if int8 and folded is not None and hasattr(folded.network, "cls_mixers"):
        quantized = quantize(folded, jets, "static" if jets else "dynamic")
        _add_part(weights, quantized.engine.network)
        return weights, Tagger(lower(quantized), config), True
    if int8:
        raise UserError("The library in C++ runs no network but ParT and its kin in int8.")
    _add_part(weights, getattr(folded, "network", None))
    return weights, tagger, False


def _add_part(weights, folded):
    reason = "it is neither a ParT nor a ParticleNet"
    if hasattr(folded, "cls_mixers"):
        reason = native_part.unfit(folded)
        if folded.sort_by_pt:
            reason = "it orders the particles itself"
    if reason:
        raise UserError(f"The library in C++ cannot run this network: {reason}.")
    packed = PackedWeights(folded)
    weights.integer(PART)
    weights.structure(packed.struct, packed.kept)
    weights.head(_layers(folded.head))


def _layers(module):
    """(LayerNorm or Linear, whether a ReLU follows) of a head, in order."""
    found = []
    for layer in () if module is None else module.modules():
        kind = type(layer).__name__
        if kind in ("LayerNorm", "Linear"):
            found.append((layer, False))
        elif kind == "ReLU":
            found[-1] = (found[-1][0], True)
        elif kind not in ("Outputs", "Sequential", "Dropout", "Identity"):
            raise UserError(f"The library in C++ does not know the layer {kind} of the head.")
    return found


def _add_inputs(weights, config):
    groups = list(config.input_dicts.values())
    if len(groups) != 4 or len(groups[0]) != 2 or len(groups[2]) != 4 or len(groups[3]) != 1:
        raise UserError(
            "The library in C++ takes data configs with the four inputs pf_points, pf_features, "
            "pf_vectors and pf_mask."
        )
    names = [name for group in groups for name in group]
    params = config.preprocess_params
    lengths = {params[name]["length"] for name in names}
    if len(lengths) != 1 or None in lengths:
        raise UserError("The library in C++ takes inputs of one length.")
    branches, new_variables = dependencies(config, names)
    program = Program(sorted(branches), new_variables)
    for name in names:
        if not program.per_particle(name):
            raise UserError(f"The library in C++ takes inputs of particles, which {name} is not.")
    columns = [[(program.column(name), params[name]) for name in group] for group in groups]
    weights.inputs(program, columns, lengths.pop())


def _description(network, tagger, is_int8):
    """JSON that tells what a weights file holds."""
    config = tagger.data_config
    names = [name for group in config.input_dicts.values() for name in group]
    branches, new_variables = dependencies(config, names)
    return json.dumps(
        {
            "jetzoo": jetzoo.__version__,
            "network": Path(network).stem,
            "precision": "int8" if is_int8 else "float32",
            "classes": tagger.classes,
            "variables": sorted(branches),
            "new_variables": new_variables,
            "inputs": config.input_dicts,
            "preprocess": {name: config.preprocess_params[name] for name in names},
        },
        indent=1,
    )


def probe_jets(branches):
    """Jets to compare scores on: embedded ones, and some that are not like them.

    Numbers that quark and gluon jets do not have are made up.

    Parameters
    ----------
    branches : set of str

    Returns
    -------
    ak.Array of records
        Embedded jets, then those without a particle, with one, with 200, and with a NaN.
    """
    path = repository.sample_jets()
    known = {"part_px", *branches} & set(tables.describe(path)[0])
    table = tables.read(path, known)[:JETS]
    rng = np.random.default_rng(0)
    particles = np.asarray(ak.num(table["part_px"]))
    long = np.concatenate([np.full(JETS, -1), [0, 1, 200, 3]])
    columns = {}
    for name in sorted(branches):
        if name in table.fields:
            column = ak.values_astype(table[name], np.float32)
        elif is_per_particle(name):
            numbers = rng.uniform(0, 1, particles.sum()).astype(np.float32)
            column = ak.unflatten(numbers, particles)
        else:
            column = rng.uniform(1, 2, JETS).astype(np.float32)
        if is_per_particle(name):
            flat = np.asarray(ak.flatten(column))
            more = [np.resize(flat, n) for n in long[JETS:]]
            if name == min(x for x in branches if is_per_particle(x)):
                more[-1] = more[-1].copy()
                more[-1][1] = np.nan
            columns[name] = ak.concatenate([column, ak.Array(more)])
        else:
            columns[name] = ak.concatenate([column, column[: len(long) - JETS]])
    return ak.zip(columns, depth_limit=1)


def _write_test(tagger, folder, allowed):
    """Write jets, and the scores that PyTorch gives them."""
    jets = probe_jets(tagger.branches)
    names = sorted(tagger.branches)
    lines = [",".join(("jet", *names))]
    for number, jet in enumerate(jets.to_list()):
        sizes = {len(jet[name]) for name in names if is_per_particle(name)}
        for i in range(max(*sizes, 1)):
            cells = [
                jet[name] if not is_per_particle(name) else (*jet[name], "")[i] for name in names
            ]
            lines.append(",".join((str(number), *(_cell(x) for x in cells))))
    (folder / "jets.csv").write_text("\n".join(lines) + "\n")
    scores = tagger.predict(jets)
    lines = [f"{allowed:g}", *(",".join(map(_cell, row)) for row in scores.tolist())]
    (folder / "scores.csv").write_text("\n".join(lines) + "\n")


def _cell(value):
    return value if value == "" else f"{value:.9g}"
