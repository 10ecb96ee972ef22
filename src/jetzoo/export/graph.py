"""A graph of ONNX, written node by node."""

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

# The first version of the standard operators that has LayerNormalization.
LAYER_NORM_OPSET = 17

# The version of the file format that goes with opset 17.
IR_VERSION = 8

# Weights of int8 stay below half of the range: processors without VNNI add two products in int16.
LARGEST_WEIGHT = 63


class Graph:
    """Nodes and constants of a graph, in the order in which they are computed.

    Parameters
    ----------
    opset : int
        Version of the standard operators.
    int8 : bool
        Compute the matrix products for which :meth:`linear` is told so in int8.

    Attributes
    ----------
    int8_products : int
        How many there are.
    """

    def __init__(self, opset, int8=False):
        self.opset, self.int8 = opset, int8
        self.int8_products = 0
        self.nodes, self.constants = [], []
        self._names, self._part = {}, ""

    def part(self, name):
        """Let the names of the nodes from here on begin with that of a part of the network."""
        self._part = f"{name}/"

    def __call__(self, kind, *inputs, outputs=None, **attributes):
        """Add a node.

        Parameters
        ----------
        kind : str
            A standard operator.
        *inputs : str, Tensor, ndarray, float, int or list of int
            What other nodes gave, or constants: Tensors and floats in float32, integers in int64.
        outputs : int, optional
            For operators with several.
        **attributes
            Of the operator.

        Returns
        -------
        str, or list of str with ``outputs``
        """
        name = f"{self._part}{kind}_{len(self.nodes)}"
        inputs = [x if isinstance(x, str) else self._constant(x) for x in inputs]
        names = [name] if outputs is None else [f"{name}:{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, inputs, names, name=name, **attributes))
        return name if outputs is None else names

    def _constant(self, value):
        if isinstance(value, torch.Tensor):
            value = value.detach().float().numpy()
        elif isinstance(value, float):
            value = np.array(value, np.float32)
        value = np.asarray(value)
        key = (value.dtype.str, value.shape, value.tobytes())
        if key not in self._names:
            self._names[key] = f"{self._part}constant_{len(self.constants)}"
            self.constants.append(numpy_helper.from_array(value, self._names[key]))
        return self._names[key]

    def cast(self, x, dtype):
        """``x`` as another type, such as ``FLOAT`` or ``BOOL``."""
        return self("Cast", x, to=getattr(TensorProto, dtype))

    def linear(self, x, weight, bias, int8=False):
        """``x @ weight.T + bias``: rows (T, in) to (T, out).

        Parameters
        ----------
        x : str
        weight : Tensor, (out, in)
        bias : Tensor (out,) or str (T, out)
        int8 : bool
            Compute in int8 if the graph does. The range of the rows is found at run time.
        """
        if not (int8 and self.int8):
            return self("Gemm", x, weight, bias, transB=1)
        self.int8_products += 1
        scale = weight.abs().amax(1).clamp(min=1e-30) / LARGEST_WEIGHT
        rounded = (weight / scale[:, None]).round().T.contiguous()
        x, x_scale, zero = self("DynamicQuantizeLinear", x, outputs=3)
        product = self("MatMulInteger", x, rounded.numpy().astype(np.int8), zero)
        product = self("Mul", self.cast(product, "FLOAT"), self("Mul", x_scale, scale))
        return self("Add", product, bias)

    def gelu(self, x):
        """GELU in the form that onnxruntime computes as one."""
        erf = self("Erf", self("Div", x, 2**0.5))
        return self("Mul", self("Mul", x, self("Add", erf, 1.0)), 0.5)

    def layer_norm(self, x, eps, weight, bias=None):
        """Layer norm over the last axis."""
        if self.opset >= LAYER_NORM_OPSET:
            affine = [weight] if bias is None else [weight, bias]
            return self("LayerNormalization", x, *affine, epsilon=eps)
        centred = self("Sub", x, self("ReduceMean", x, axes=[-1]))
        variance = self("ReduceMean", self("Mul", centred, centred), axes=[-1])
        x = self("Div", centred, self("Sqrt", self("Add", variance, eps)))
        x = self("Mul", x, weight)
        return x if bias is None else self("Add", x, bias)

    def model(self, inputs, output, shape):
        """The graph as a checked ONNX model.

        Parameters
        ----------
        inputs : dict of str to list
            Shapes of the inputs, with names for what is dynamic.
        output : str
            The name that the output gets; it is what the last node gave.
        shape : list
            Of the output.

        Returns
        -------
        onnx.ModelProto
        """
        self.nodes[-1].output[0] = output
        shapes = {**inputs, output: shape}
        values = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, x) for name, x in shapes.items()
        ]
        graph = helper.make_graph(self.nodes, "network", values[:-1], values[-1:], self.constants)
        opset = helper.make_opsetid("", self.opset)
        model = helper.make_model(graph, opset_imports=[opset], ir_version=IR_VERSION)
        onnx.checker.check_model(model)
        return model
