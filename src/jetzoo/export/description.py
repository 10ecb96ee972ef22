"""What an ONNX file says about itself, in its metadata."""

import json
from pathlib import Path

from onnx import helper

from .. import __version__, models


def describe(model, tagger, network, checkpoint, output, precision):
    """Add the metadata of a network to its model.

    All values are text; those of ``inputs``, ``classes``, ``data_config`` and ``card`` are JSON.

    - ``jetzoo``: version of this package.
    - ``network``, ``weights``: name of the network, and SHA-256 of the checkpoint.
    - ``inputs``: names of the inputs in their order, each with its variables, the standardisation
      of each variable (``(x - center) * scale``, limited to ``min`` ... ``max``), its padding
      (``pad_mode``, ``pad_value``) and the length that jets are padded or cut to.
    - ``classes``: labels in the order of the scores.
    - ``output``: ``probabilities``, ``logits`` or ``embedding``.
    - ``precision``: ``float32`` or ``int8``.
    - ``data_config``: the whole data config, formulas of the variables included.
    - ``card``: the model card, for weights of the zoo.

    Parameters
    ----------
    model : onnx.ModelProto
    tagger : jetzoo.tagger.Tagger
    network, checkpoint : str or Path
    output, precision : str
    """
    config = tagger.data_config
    weights = models.sha256(checkpoint)
    cards = [card for card in models.read_cards().values() if card["sha256"] == weights]
    metadata = {
        "jetzoo": __version__,
        "network": Path(network).stem,
        "weights": weights,
        "inputs": json.dumps(
            {
                name: {variable: config.preprocess_params[variable] for variable in variables}
                for name, variables in config.input_dicts.items()
            }
        ),
        "classes": json.dumps(tagger.classes),
        "output": output,
        "precision": precision,
        "data_config": json.dumps(config.options, default=str),
    }
    if cards:
        metadata["card"] = json.dumps(cards[0])
    model.producer_name = "jetzoo"
    model.producer_version = __version__
    helper.set_model_props(model, metadata)
