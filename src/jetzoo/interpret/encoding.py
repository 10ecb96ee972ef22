"""The attention of single jets as small integers, which a browser unpacks by itself.

Of each jet a block of bytes is deflated and written in base64: first the smallest and the largest
value of each matrix, float32, then the matrices of its real particles, in steps between these two,
uint8; all in the order of :data:`PARTS`.
"""

import base64
import zlib

import numpy as np
import torch

# Noise of more steps would not deflate. Weights are stored as their square root, so that small ones
# are not lost: a weight w is within 0.008 sqrt(w) of its own.
WEIGHT_STEPS = 127
SCORE_STEPS = 31
BIAS_STEPS = 255

# What a block holds, in this order, with the shape of each part.
PARTS = {
    "weights": "(layers, heads, n, n)",
    "cls": "(class layers, heads, 1, 1 + n)",
    "scores": "(layers, heads, n, n)",
    "bias": "(biases, heads, n, n)",
}


def encode(drawn, with_scores=True):
    """Pack what a network does with one jet.

    Parameters
    ----------
    drawn : Drawn
    with_scores : bool
        Keep the scores A, too, which take as much room as the weights.

    Returns
    -------
    block : str
        Base64 of deflated bytes.
    layout : dict
        ``n``, the number of particles; ``layers``, ``heads``, ``clsLayers``, ``clsHeads``;
        ``scores``, whether they are there; ``bias``, for each layer the index of its bias, or -1.
    """
    n = int(drawn.batch.num_particles[0])
    particle = [r for r in drawn.records if r.kind == "particle"]
    cls = [r.weights[0, :, 0, : n + 1] for r in drawn.records if r.kind == "class"]
    weights = [r.weights[0, :, :n, :n] for r in particle]
    scores = [r.scores[0, :, :n, :n] for r in particle if r.scores is not None and with_scores]
    biases, bias_of_layer = _distinct([r.bias for r in particle])
    bias = [b[0, :, :n, :n] for b in biases]
    layout = {
        "n": n,
        "layers": len(weights),
        "heads": len(weights[0]) if weights else 0,
        "clsLayers": len(cls),
        "clsHeads": len(cls[0]) if cls else 0,
        "scores": bool(scores),
        "bias": bias_of_layer,
    }
    ranges, matrices = [], []
    parts = (
        ([x.sqrt() for x in weights], WEIGHT_STEPS),
        ([x.sqrt()[:, None] for x in cls], WEIGHT_STEPS),
        (scores, SCORE_STEPS),
        (bias, BIAS_STEPS),
    )
    for values, steps in parts:
        for x in values:
            low_high, matrix = _steps(x, steps)
            ranges.append(low_high)
            matrices.append(matrix)
    content = b"".join(np.ascontiguousarray(x).tobytes() for x in (*ranges, *matrices))
    return base64.b64encode(zlib.compress(content, 9)).decode(), layout


def _distinct(biases):
    """List the biases that differ, and the index of each in that list; -1 for None."""
    found, index = [], []
    for bias in biases:
        if bias is None:
            index.append(-1)
            continue
        same = (i for i, other in enumerate(found) if torch.equal(bias, other))
        index.append(next(same, len(found)))
        if index[-1] == len(found):
            found.append(bias)
    return found, index


def _steps(values, steps):
    """Smallest and largest value of each head, (H, 2), and steps between them.

    Parameters
    ----------
    values : Tensor, (H, rows, columns)
    steps : int

    Returns
    -------
    ndarray of float32, (H, 2)
    ndarray of uint8, (H, rows, columns)
        Rows are differences modulo 256 to the row above, which deflate better.
    """
    values = values.float().cpu().numpy()
    if not values.size:
        return np.zeros((len(values), 2), "<f4"), values.astype(np.uint8)
    low_high = np.stack((values.min((1, 2)), values.max((1, 2))), 1).astype("<f4")
    low, high = low_high.T[..., None, None]
    step = np.maximum(high - low, np.finfo("f4").tiny) / steps
    matrix = np.rint((values - low) / step).clip(0, steps).astype(np.uint8)
    return low_high, np.diff(matrix, axis=1, prepend=np.zeros_like(matrix[:, :1]))
