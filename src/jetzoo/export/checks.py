"""Comparison of an ONNX file with PyTorch, on embedded jets, before the file appears."""

import itertools
import math

import numpy as np
import torch

from .. import UserError, data_config, repository, tables
from ..groups import kind, shapes
from .tracing import last_layer

# Largest numbers of particles, and what stands in the padding.
LENGTHS, PADDINGS = (1, 45, 128, 300), ("zeros", "repeated particles", "NaN")

# Particles of the jets of each batch, as shares of the largest number.
BATCHES = ((1,), (0.5,), (0,), (1, 0.5), (1, 0, 0.5, 0.25, 0.9, 0.02, 0.7))

# Embedded jets that the particles are from, and the distance between the particles that different
# collections get: ParticleNet may take either of two particles in one place as a neighbour.
NUM_JETS, BETWEEN_COLLECTIONS = 100, 1500

LEVELS = {"off": "ORT_DISABLE_ALL", "basic": "ORT_ENABLE_BASIC", "all": "ORT_ENABLE_ALL"}

# Largest difference of an output, over the output where that is larger than 1.
LARGEST = {"float32": 1e-4, "int8": 0.5}


@torch.inference_mode()
def compare(tagger, source, path, output, largest):
    """Let onnxruntime give what PyTorch gives, at each level of its optimisation.

    Jets come alone and in batches, of one particle and of more than a data config keeps, some
    without any particle; the padding holds zeros, repeated particles or NaN.

    Parameters
    ----------
    tagger : jetzoo.tagger.Tagger
    source, path : Path
        The file, and its name in the messages.
    output : str
        See :func:`jetzoo.export.export`.
    largest : float
        Difference, see ``LARGEST``.

    Raises
    ------
    UserError
        If it does not, or the file lacks inputs of the data config.
    """
    try:
        sessions = {level: session(source, level) for level in LEVELS}
    except Exception as error:  # onnxruntime has a class for each reason
        raise UserError(
            f"{path} is not written: onnxruntime cannot open it ({repository.reason(error)})."
        ) from error
    names = [x.name for x in sessions["all"].get_inputs()]
    if names != list(tagger.data_config.input_names):
        raise UserError(f"{path} is not written: it would have no inputs but {', '.join(names)}.")
    particles = embedded_particles(tagger.data_config)
    for length, shares in itertools.product(LENGTHS, BATCHES):
        inputs = jets(tagger.data_config, particles, length, shares)
        number = "a jet" if len(shares) == 1 else f"{len(shares)} jets"
        place = f"{number} of up to {length} particles"
        try:
            expected = reference(tagger, inputs, output)
        except Exception as error:  # whatever the code of a user raises
            if not any(shares):
                continue  # a network need not take jets without particles
            raise UserError(
                f"{path} is not written: PyTorch cannot run the network on {place} "
                f"({repository.reason(error)})."
            ) from error
        for level, network in sessions.items():
            try:
                (found,) = network.run(None, dict(zip(names, inputs, strict=True)))
            except Exception as error:
                raise UserError(
                    f"{path} is not written: onnxruntime cannot run it on {place}."
                ) from error
            difference = np.abs(found - expected) / np.maximum(1, np.abs(expected))
            # The network of a user may be NaN where the padding is.
            difference[np.isnan(found) & np.isnan(expected)] = 0
            difference = difference.max()
            if not difference <= largest:
                raise UserError(
                    f"{path} is not written: onnxruntime, with optimisations {level}, and PyTorch "
                    f"differ by {difference:.2g} on {place}."
                )


def session(source, level):
    """Open a file in onnxruntime at a level of its optimisation."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # threads of onnxruntime spin while PyTorch works
    options.log_severity_level = 3  # warnings of operators without a kernel for some type
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, LEVELS[level])
    return onnxruntime.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])


def reference(tagger, inputs, output):
    """What PyTorch gives, (B, num_classes) or (B, D)."""
    logits, embedding, _ = last_layer(tagger.model, [torch.from_numpy(x) for x in inputs])
    if output == "embedding":
        return embedding.numpy()
    return (tagger.scores(logits) if output == "probabilities" else logits).numpy()


def embedded_particles(config):
    """Particles of embedded jets, one jet after the other, as the inputs of any data config.

    Features that quark and gluon jets do not have repeat those that they have. Different
    collections begin with different particles.

    Returns
    -------
    list of ndarray, (C, num_particles)
        In the order of the inputs.
    """
    sample = data_config.Inputs(data_config.read("QuarkGluon/qg_kin"))
    table = tables.read(repository.sample_jets(), sample.branches)[:NUM_JETS]
    found = {kind(name)[1]: x.swapaxes(0, 1) for name, x in sample(table).items()}
    real = found["mask"][0] > 0  # (B, N)
    collections = list(dict.fromkeys(kind(name)[0] for name in config.input_names))
    particles = []
    for name in config.input_names:
        collection, values = collections.index(kind(name)[0]), found[kind(name)[1] or "features"]
        channels = np.arange(len(config.input_dicts[name])) % len(values)
        particles.append(np.roll(values[channels][:, real], -collection * BETWEEN_COLLECTIONS, 1))
    return particles


def jets(config, particles, length, shares):
    """Inputs (B, C, length) of jets with different numbers of particles and kinds of padding.

    Groups of one number for each jet get that of its first particle, (B, C) or (B,).

    Parameters
    ----------
    config : weaver.utils.data.config.DataConfig
    particles : list of ndarray, (C, num_particles)
        See :func:`embedded_particles`.
    length : int
    shares : sequence of float, (B,)
        Particles of each jet over the length.
    """
    counts = [math.ceil(share * length) for share in shares]
    inputs = [np.zeros((len(counts), len(x), length), np.float32) for x in particles]
    for jet, count in enumerate(counts):
        padding = PADDINGS[(jet + length) % len(PADDINGS)]
        for x, values in zip(inputs, particles, strict=True):
            x[jet, :, :count] = values[:, jet * length : jet * length + count]
        for x, name in zip(inputs, config.input_names, strict=True):
            if kind(name)[1] == "mask":
                continue
            if padding == "NaN":
                x[jet, :, count:] = np.nan
            elif padding == "repeated particles" and count:
                x[jet] = x[jet][:, np.arange(length) % count]
    return [
        x if len(shape) == 3 else np.nan_to_num(x[:, :, 0]).reshape(len(x), *shape[1:])
        for x, shape in zip(inputs, shapes(config).values(), strict=True)
    ]
