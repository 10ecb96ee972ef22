"""From a trained network to a model of ONNX: a graph written here, or what PyTorch traces."""

from pathlib import Path

from .. import UserError
from ..engine.folding import fold, freeze
from ..groups import kind, shapes
from ..nn.inputs import take_arrangement
from . import particlenet, transformer
from .graph import Graph
from .tracing import output_name, trace


def convert(tagger, network, output, opset, int8, options, weights=None):
    """Convert a network.

    Parameters
    ----------
    tagger : jetzoo.tagger.Tagger
    network : str or Path
    output, opset, int8
        See :func:`jetzoo.export.export`.
    options : dict
        Of the network.
    weights : dict of str to Tensor, optional
        State dict of the network as it is built, by default that of the tagger's.

    Returns
    -------
    onnx.ModelProto

    Raises
    ------
    UserError
        If the network cannot be written so.
    """
    graph = Graph(opset, int8)
    last = write(graph, tagger, output)
    if int8 and not graph.int8_products:
        raise UserError(
            f"{Path(network).stem} has no int8 form in ONNX: leave out --int8, or run it in int8 "
            'with jetzoo.accelerate(model, "int8").'
        )
    if last is None:
        weights = tagger.model.state_dict() if weights is None else weights
        return trace(tagger, network, output, opset, options, weights)
    inputs = {
        name: ["N", *shape[1:2], *[f"n_{kind(name)[0]}"] * (len(shape) > 2)]
        for name, shape in shapes(tagger.data_config).items()
    }
    width = last.in_features if output == "embedding" else last.out_features
    return graph.model(inputs, output_name(tagger, output), ["N", width])


def write(graph, tagger, output):
    """Write the folded form of a network.

    Returns
    -------
    nn.Linear or None
        The last layer; None if there is no such form, and nothing is written.
    """
    names = list(tagger.data_config.input_names)
    model = freeze(tagger.model, "cpu")
    arrangement = take_arrangement(model)
    if arrangement is not None:
        names = [place if place is None else names[place] for _, place in arrangement.places]
    folded = getattr(fold(model), "network", None)
    if tagger.is_regression and output == "probabilities":
        output = "logits"
    if hasattr(folded, "cls_mixers"):
        layers = transformer.layers_of_head(folded)
        if layers is not None:
            transformer.transformer(graph, folded, names, output)
            return layers[-1]
    elif hasattr(getattr(folded, "network", None), "core_and_head"):
        core, last = folded.network.core_and_head()
        layers = particlenet.layers_of_head(core, last) if hasattr(core, "edge_convs") else None
        if layers is not None:
            particlenet.particlenet(graph, core, last, names, output)
            return layers[-1]
    return None
