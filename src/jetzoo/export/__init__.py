"""Networks as ONNX files that onnxruntime runs without this project."""

import tempfile
from pathlib import Path

from .. import UserError, tables
from ..acceleration import traceable
from ..attention.backends import check_backend
from ..tagger import load

# Versions of the standard operators that can be written; onnxruntime 1.17 knows all of them.
OPSETS = range(13, 18)

OUTPUTS = ("probabilities", "logits", "embedding")

# What weaver calls the file with the preprocessing, which stands beside each ONNX file.
PREPROCESSING = "preprocess.json"


def export(
    network,
    checkpoint,
    data_config,
    path,
    *,
    int8=False,
    opset=17,
    output="probabilities",
    **options,
):
    """Write a trained network as ONNX, and beside it ``preprocess.json`` in weaver's format.

    The inputs are those of the data config, ``pf_points`` (N, 2, n_pf) and so on. Batch size and
    length are dynamic; what stands in the padding does not matter. The file describes itself, see
    :func:`jetzoo.export.description.describe`. It is compared with PyTorch on embedded jets before
    it appears, see :mod:`jetzoo.export.checks`.

    Parameters
    ----------
    network, checkpoint, data_config, **options
        See :func:`jetzoo.load`. A backend of the attention is that of the training: what is written
        computes in standard operators.
    path : str or Path
        Appears when complete.
    int8 : bool
        Most matrix products of ParT and ParticleNet in int8, with ranges that are found at run
        time.
    opset : int
        Version of the standard operators, one of ``OPSETS``.
    output : str
        ``probabilities`` (N, num_classes), called ``softmax`` as in weaver's files; ``logits``
        (N, num_classes); or ``embedding`` (N, D), what enters the last layer, which is the
        normalised class token of ParT.

    Raises
    ------
    UserError
        As :func:`jetzoo.load`; or if an argument is none of these, the network cannot be written
        so, onnx or onnxruntime is not installed, or the file gives other numbers than PyTorch.
    """
    path = tables.check_output(path, (checkpoint,), ".onnx")
    preprocessing = tables.check_output(path.with_name(PREPROCESSING), (checkpoint, data_config))
    if opset not in OPSETS:
        raise UserError(f"The opset is one of {OPSETS[0]} ... {OPSETS[-1]}, not {opset}.")
    if output not in OUTPUTS:
        raise UserError(f"The output is one of {', '.join(OUTPUTS)}, not {output}.")
    try:
        import onnx
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"The export needs {error.name}: pip install -c constraints.txt -e '.[export]'."
        ) from error
    from . import checks, conversion, description

    options = _in_plain_pytorch(options)
    tagger = load(network, checkpoint, data_config, "cpu", **options)
    if getattr(tagger.model, "is_int8", False):
        raise UserError(f"{checkpoint} is in int8 already: export the weights it was made from.")
    weights = tagger.model.state_dict()
    tagger.model = traceable(tagger.model)
    arguments = (tagger, network, output, opset)
    converted = {
        precision: conversion.convert(*arguments, precision == "int8", options, weights)
        for precision in (("int8", "float32") if int8 else ("float32",))
    }
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "network.onnx"
        for precision, model in reversed(converted.items()):
            onnx.save(model, source)
            checks.compare(tagger, source, path, output, checks.LARGEST[precision])
    description.describe(model, tagger, network, checkpoint, output, precision)
    tables.writable_folder(path.parent)
    with tables.atomic(path) as partial, tables.atomic(preprocessing) as beside:
        tagger.data_config.export_json(beside)
        onnx.save(model, partial)


def _in_plain_pytorch(options):
    """Options of a network whose attention the exporter can follow: it sees no kernel.

    Raises
    ------
    UserError
        If the backend is none.
    """
    if "attention" not in options:
        return options
    try:
        check_backend(options["attention"])
    except (ValueError, TypeError) as error:
        raise UserError(f"{error}.") from error
    return {**options, "attention": "reference"}
