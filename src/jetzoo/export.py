"""Networks as ONNX files, in float32 or int8, that onnxruntime runs without this project."""

import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch

from jetzoo import UserError, tables

from .comparison import calibration_jets
from .repository import network_module
from .tagger import load

# The exporter of PyTorch that works on traces knows everything that the networks do from here on.
OPSET = 17

# Jets that the int8 form is calibrated with, in all and at once.
JETS, BATCH = 256, 64


def export(network, checkpoint, data_config, path, int8=False, calibration=None, **options):
    """Write a trained network as ONNX.

    The inputs are those of the data config, ``pf_points`` (N, 2, n_pf) and so on, the output is
    ``softmax`` (N, num_classes). Batch size and length are dynamic; what stands in the padding does
    not matter.

    Parameters
    ----------
    network, checkpoint, data_config, **options
        See :func:`jetzoo.load`.
    path : str or Path
        Appears when complete.
    int8 : bool
        Matrix products in int8, by onnxruntime's quantizer.
    calibration : sequence of str or Path, optional
        Files of jets. With them the ranges of int8 are fixed (static), without them they are found
        at run time (dynamic).

    Raises
    ------
    UserError
        As :func:`jetzoo.load`; or if onnx or onnxruntime is not installed.
    """
    if Path(path).suffix != ".onnx":
        raise UserError(f"{path} should end in .onnx.")
    if calibration and not int8:
        raise UserError("Jets to calibrate with are for an export in int8.")
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"The export needs {error.name}: pip install -c constraints.txt -e '.[export]'."
        ) from error
    tagger = load(network, checkpoint, data_config, "cpu", **options)
    if getattr(tagger.model, "is_int8", False):
        raise UserError(f"{checkpoint} is in int8 already: export the weights it was made from.")
    jets = calibration_jets(tagger, calibration) if calibration else None
    tables.writable_folder(Path(path).parent)
    with tables.atomic(path) as partial, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing warns of what the tests check
        if int8:
            with tempfile.TemporaryDirectory() as folder:
                source = Path(folder) / "float32.onnx"
                _export(tagger, network, source, options)
                quantize(source, partial, jets)
        else:
            _export(tagger, network, partial, options)


def _export(tagger, network, path, options):
    model, info = network_module(network).get_model(
        tagger.data_config, for_inference=True, **options
    )
    model.load_state_dict(tagger.model.state_dict())
    # Two jets of more than one particle: sizes of 1 would become constants.
    ones = tuple(torch.ones(2, *info["input_shapes"][name][1:]) for name in info["input_names"])
    torch.onnx.export(
        model.eval().requires_grad_(False),
        ones,
        str(path),
        input_names=info["input_names"],
        output_names=info["output_names"],
        dynamic_axes=info["dynamic_axes"],
        opset_version=OPSET,
        dynamo=False,
    )


def quantize(source, path, jets=None):
    """Write the int8 form of an ONNX file, by onnxruntime's quantizer.

    Matrix products and convolutions with a weight of at least 16 inputs and outputs are in int8,
    one scale per output channel; the others, as in :func:`jetzoo.int8.quantize.stays_float`, and
    the products between activations stay in float32.

    Parameters
    ----------
    source, path : str or Path
    jets : tuple of Tensor, optional
        The inputs of the network to calibrate with: QuantizeLinear and DequantizeLinear with fixed
        ranges stand around the products, which onnxruntime fuses. Without, the ranges are found at
        run time.
    """
    import onnx
    from onnxruntime import quantization
    from onnxruntime.quantization.onnx_model import ONNXModel
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as folder:
        prepared = str(Path(folder) / "prepared.onnx")
        quant_pre_process(str(source), prepared, skip_symbolic_shape=True)
        model = ONNXModel(onnx.load(prepared))
        model.replace_gemm_with_matmul()  # the dynamic form knows no Gemm
        model.save_model_to_file(prepared)
        arguments = {
            "nodes_to_quantize": _weighted(model.model.graph),
            "per_channel": True,
            "weight_type": quantization.QuantType.QInt8,
        }
        if jets is None:
            quantization.quantize_dynamic(prepared, str(path), **arguments)
        else:
            quantization.quantize_static(
                prepared,
                str(path),
                _Reader(prepared, [x[:JETS].numpy() for x in jets]),
                quant_format=quantization.QuantFormat.QDQ,
                activation_type=quantization.QuantType.QUInt8,
                calibrate_method=quantization.CalibrationMethod.MinMax,
                **arguments,
            )


class _Reader:
    """Batches of jets for onnxruntime's calibration, cut to the longest jet of each.

    Cut, because the padding would count among the values otherwise.
    """

    def __init__(self, path, jets):
        import onnxruntime

        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        names = [x.name for x in session.get_inputs()]
        order = np.argsort(-jets[-1].sum((1, 2)), kind="stable")
        self.batches = iter(
            [
                dict(zip(names, self.cut(*(x[rows] for x in jets)), strict=True))
                for rows in np.split(order, range(BATCH, len(order), BATCH))
            ]
        )

    @staticmethod
    def cut(*jets):
        longest = max(int(jets[-1].sum(2).max()), 2)
        return [np.ascontiguousarray(x[..., :longest]) for x in jets]

    def get_next(self):
        """The next batch, or None."""
        return next(self.batches, None)


def _weighted(graph):
    """Names of the products and convolutions with a weight of at least 16 inputs and outputs."""
    sizes = {x.name: list(x.dims) for x in graph.initializer}
    names = []
    for node in graph.node:
        if node.op_type not in ("MatMul", "Conv"):
            continue
        dims = next((sizes[name] for name in node.input[:2] if name in sizes), None)
        if dims and len(dims) > 1 and min(dims[:2]) >= 16:
            names.append(node.name)
    return names
