"""Files of weights: reading a state dict once, and loading it into a network."""

import warnings
from pathlib import Path

import torch

from jetzoo import UserError

# What weights may be stored in; a network computes in float32.
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

# What PyTorch puts before the names of all weights of a network that it wraps.
WRAPPERS = ("module.", "_orig_mod.")

# Weights may lie within {"state_dict": ...} so often; a damaged file may even hold itself.
DEEPEST = 8


def read(path):
    """Read a file of weights.

    Parameters
    ----------
    path : str or Path
        A state dict that weaver wrote, or an int8 network.

    Returns
    -------
    dict
        Its keys are texts.

    Raises
    ------
    UserError
        If the file is absent, damaged, or holds something else; code in it is never run.
    """
    if not Path(path).exists():
        raise UserError(f"There is no checkpoint {path}.")
    if not Path(path).is_file():
        raise UserError(f"{path} is not a checkpoint, but a folder or a device.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the kind of file, which is judged here
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises anything of a file that it did not write
        raise UserError(f"{path} is not a checkpoint that can be read.") from error
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise UserError(f"{path} is not a state dict.")
    return content


def load_weights(model, state, checkpoint, network):
    """Load a state dict into a network, all of it or nothing.

    Parameters
    ----------
    model : nn.Module
    state : dict of str to Tensor
        As weaver writes it, or what :func:`unwrapped` makes such a one of.
    checkpoint, network : str or Path
        Named in the message.

    Raises
    ------
    UserError
        If entries are missing, unexpected, of another shape or type, or not numbers that a trained
        network can have; the message names some. The weights of a pretraining leave the last layer
        of a fine-tuning network random, and are refused, too.
    """
    state = unwrapped(state, model.state_dict())
    if not state or not all(map(torch.is_tensor, state.values())):
        raise UserError(f"{checkpoint} is not a state dict.")
    for check in (_wrong_type, _load, _new_layer):
        if problem := check(model, state):
            raise UserError(f"{checkpoint} does not fit {network}: {problem}.")
    check_numbers(model, checkpoint)


def unwrapped(state, own):
    """Weights under the names that a network has for them.

    Parameters
    ----------
    state : dict of str
        Also one within ``{"state_dict": ...}``, or of a network within ``DataParallel`` (names
        begin with ``module.``), ``torch.compile`` (``_orig_mod.``) or weaver's wrapper (``mod.``),
        or of one that the network at hand has in such a wrapper.
    own : dict of str
        State dict of the network.

    Returns
    -------
    dict of str
    """
    for _ in range(DEEPEST):
        if isinstance(state.get("state_dict"), dict):
            state = state["state_dict"]
    if not all(isinstance(key, str) for key in state):
        return {}
    while prefix := next((x for x in WRAPPERS if _all_begin(state, x)), None):
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    without = {key.removeprefix("mod."): value for key, value in state.items()}
    within = {f"mod.{key}": value for key, value in state.items()}
    candidates = [state, within] + ([without] if _all_begin(state, "mod.") else [])
    return max(candidates, key=lambda names: len(names.keys() & own.keys()))


def _all_begin(state, prefix):
    return bool(state) and all(key.startswith(prefix) for key in state)


def _wrong_type(model, state):
    """What is wrong with the types of weights, or None."""
    own = model.state_dict()
    for key, value in state.items():
        if value.layout != torch.strided or value.device.type != "cpu" or value.is_quantized:
            return f"it has {key}, which is not a plain tensor"
        if key not in own or own[key].is_floating_point():
            good = value.dtype in FLOATS
        else:
            good = value.dtype == own[key].dtype
        if not good:
            return f"it has {key} of type {str(value.dtype).removeprefix('torch.')}"
    return None


def _load(model, state):
    """Load weights; what is wrong with their names and shapes, or None."""
    try:
        missing, unexpected = model.load_state_dict(state, strict=False)
    except Exception as error:  # other shapes; networks also rename what an older file has
        lines = [x.strip().rstrip(".") for x in str(error).splitlines() if x.strip()]
        return lines[min(1, len(lines) - 1)] if lines else type(error).__name__
    problems = [
        f"it {what} {', '.join(keys[:3])}" + (f" and {len(keys) - 3} more" if keys[3:] else "")
        for what, keys in (("lacks", missing), ("has in addition", unexpected))
        if keys
    ]
    return "; ".join(problems) or None


def _new_layer(model, state):
    """Say it where a network takes weights of its pretraining, which lack its last layer."""
    if not hasattr(model, "old") or any(key.startswith(f"{model.name}.") for key in state):
        return None
    return f"it lacks the last layer {model.name}, which would be random: train it first"


def check_numbers(model, name):
    """Check that a network has weights that a training can give.

    Parameters
    ----------
    model : nn.Module
    name : str or Path
        Named in the message.

    Raises
    ------
    UserError
        If a weight is NaN or infinite, or a variance negative.
    """
    for key, value in model.state_dict().items():
        if value.is_floating_point() and not value.isfinite().all():
            raise UserError(f"{name} has weights that are NaN or infinite: {key}.")
        if key.endswith("running_var") and (value < 0).any():
            raise UserError(f"{name} has a negative variance: {key}.")
