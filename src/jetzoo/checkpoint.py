"""Files of weights: reading a state dict once, and loading it into a network."""

import pickle

import torch

from jetzoo import UserError


def read(path):
    """Read a file of weights.

    Parameters
    ----------
    path : str or Path
        A state dict that weaver wrote, or an int8 network.

    Returns
    -------
    dict

    Raises
    ------
    UserError
        If the file is absent, damaged, or holds something else; code in it is never run.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"There is no checkpoint {path}.") from error
    except (OSError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
        raise UserError(f"{path} is not a checkpoint that can be read.") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a state dict.")
    return content


def load_weights(model, state, checkpoint, network):
    """Load a state dict into a network, all of it or nothing.

    Parameters
    ----------
    model : nn.Module
    state : dict of str to Tensor
    checkpoint, network : str or Path
        Named in the message.

    Raises
    ------
    UserError
        If entries are missing, unexpected or of another shape; the message names some.
    """
    if not all(map(torch.is_tensor, state.values())):
        raise UserError(f"{checkpoint} is not a state dict.")
    try:
        missing, unexpected = model.load_state_dict(state, strict=False)
        problems = [
            f"{what} {', '.join(keys[:3])}" + (f" and {len(keys) - 3} more" if keys[3:] else "")
            for what, keys in (("lacks", missing), ("has in addition", unexpected))
            if keys
        ]
    except RuntimeError as error:  # tensors of other shapes; the first line is a heading
        problems = [str(error).split("\n")[1].strip().rstrip(".")]
    if problems:
        raise UserError(f"{checkpoint} does not fit {network}: it {'; it '.join(problems)}.")
