"""Networks as ONNX files, in float32 or int8, that onnxruntime runs without this project."""

import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch

from jetzoo import UserError, repository, tables

from . import data_config as data_configs
from .acceleration import counterpart
from .attention.backends import check_backend
from .comparison import calibration_jets
from .tagger import load

# The exporter of PyTorch that works on traces knows everything that the networks do from here on.
OPSET = 17

# Jets that the int8 form is calibrated with, in all and at once.
JETS, BATCH = 256, 64

# What is compared with PyTorch before a file appears: batch sizes, lengths, and the largest
# difference of a probability.
BATCHES, LENGTHS, LARGEST_DIFFERENCE = (1, 7), (1, 45, 128), 1e-4


def export(network, checkpoint, data_config, path, int8=False, calibration=None, **options):
    """Write a trained network as ONNX.

    The inputs are those of the data config, ``pf_points`` (N, 2, n_pf) and so on, the output is
    ``softmax`` (N, num_classes). Batch size and length are dynamic; what stands in the padding does
    not matter. The file is compared with PyTorch on embedded jets before it appears.

    Parameters
    ----------
    network, checkpoint, data_config, **options
        See :func:`jetzoo.load`. A backend of the attention is that of the training: what is written
        computes in plain PyTorch.
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
        As :func:`jetzoo.load`; or if onnx or onnxruntime is not installed, or the file gives other
        scores than PyTorch.
    """
    path = tables.check_output(path, (checkpoint, *(calibration or ())), ".onnx")
    if calibration and not int8:
        raise UserError("Jets to calibrate with are for an export in int8.")
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"The export needs {error.name}: pip install -c constraints.txt -e '.[export]'."
        ) from error
    options = _in_plain_pytorch(options)
    tagger = load(network, checkpoint, data_config, "cpu", **options)
    if getattr(tagger.model, "is_int8", False):
        raise UserError(f"{checkpoint} is in int8 already: export the weights it was made from.")
    jets = calibration_jets(tagger, calibration) if calibration else None
    weights = tagger.model.state_dict()
    tagger.model = counterpart(tagger.model)
    tables.writable_folder(path.parent)
    with (
        tables.atomic(path) as partial,
        tempfile.TemporaryDirectory() as folder,
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")  # tracing warns of what is compared below
        source = written = Path(folder) / "float32.onnx"
        _export(tagger, weights, network, source, options)
        _compare(tagger, source, path)
        if int8:
            written = Path(folder) / "int8.onnx"
            quantize(source, written, jets)
            _compare(tagger, written, path, largest=1)
        partial.write_bytes(written.read_bytes())


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


def _export(tagger, weights, network, path, options):
    model, info = repository.build_network(
        network, tagger.data_config, **{**options, "for_inference": True}
    )
    model.load_state_dict(weights)
    model = counterpart(model)
    # Two jets of more than one particle: sizes of 1 would become constants.
    ones = tuple(torch.ones(2, *info["input_shapes"][name][1:]) for name in info["input_names"])
    torch.onnx.export(
        _AllInputs(model).eval().requires_grad_(False),
        ones,
        str(path),
        input_names=info["input_names"],
        output_names=info["output_names"],
        dynamic_axes=info["dynamic_axes"],
        opset_version=OPSET,
        dynamo=False,
    )


class _AllInputs(torch.nn.Module):
    """A network whose graph keeps the inputs that it does not look at.

    Those of the zoo see to it themselves, for weaver's own export; one of a user may not.
    """

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, *inputs):
        out = self.network(*inputs)
        for x in inputs:
            out = out[: x.shape[0]]
        return out


@torch.inference_mode()
def _compare(tagger, source, path, largest=LARGEST_DIFFERENCE):
    """Let onnxruntime give the scores of PyTorch for embedded jets, of any number and length.

    Parameters
    ----------
    tagger : jetzoo.tagger.Tagger
    source, path : Path
        The file, and its name in the message.
    largest : float
        Difference of a probability.

    Raises
    ------
    UserError
        If it does not, or the file lacks inputs of the data config.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(str(source), providers=["CPUExecutionProvider"])
    names = [x.name for x in session.get_inputs()]
    if names != list(tagger.data_config.input_names):
        raise UserError(f"{path} is not written: it would have no inputs but {', '.join(names)}.")
    jets = _embedded_jets(tagger.data_config)
    for batch in BATCHES:
        for length in LENGTHS:
            for repeats in (True, False):
                some = {name: x[:batch, :, :length] for name, x in jets.items()}
                mask = next((x for name, x in some.items() if name.endswith("_mask")), 1)
                inputs = [x if repeats else x * mask for x in some.values()]
                expected = tagger.model(*map(torch.from_numpy, inputs)).softmax(1).numpy()
                try:
                    (found,) = session.run(None, dict(zip(names, inputs, strict=True)))
                except Exception as error:  # onnxruntime has a class for each reason
                    raise UserError(
                        f"{path} is not written: onnxruntime cannot run it on {batch} jets of "
                        f"{length} particles."
                    ) from error
                difference = np.abs(found - expected).max()
                if not difference <= largest:
                    raise UserError(
                        f"{path} is not written: onnxruntime and PyTorch differ by {difference:.2g}"
                        f" on {batch} jets of {length} particles."
                    )


def _embedded_jets(config):
    """Embedded jets as the inputs of any data config, padded with repeated particles.

    Features that quark and gluon jets do not have repeat those that they have.
    """
    sample = data_configs.Inputs(data_configs.read("QuarkGluon/qg_kin"))
    table = tables.read(repository.sample_jets(), sample.branches)[: max(BATCHES)]
    found = {name.split("_")[-1]: value for name, value in sample(table).items()}
    jets = {}
    for name, variables in config.input_dicts.items():
        values = found.get(name.split("_")[-1], found["features"])
        channels = np.arange(len(variables)) % values.shape[1]
        jets[name] = np.ascontiguousarray(values[:, channels])
    return jets


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
