"""Regression: the losses, and the evaluation, which is not weaver's.

weaver trains on the first label alone, and its evaluation fails at a batch of one jet and at
several targets. Here all labels are targets, one number each for a jet.
"""

import logging
import math
from collections import defaultdict

import awkward as ak
import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm
from weaver.utils.nn.tools import AllGather, get_autocast_config

from jetzoo import UserError

log = logging.getLogger("weaver")


def log_cosh(predicted, target):
    """Mean of log(cosh(predicted - target)): quadratic where small, linear where large."""
    x = (predicted - target).abs()
    return (x + F.softplus(-2 * x) - math.log(2)).mean()


LOSSES = {"log-cosh": log_cosh, "mse": F.mse_loss, "huber": F.huber_loss}


def regression_loss(name):
    """Loss function of predictions and targets of one shape; or a :class:`jetzoo.UserError`."""
    if name not in LOSSES:
        raise UserError(f"The loss of a regression is one of {', '.join(LOSSES)}, not {name!r}.")
    return LOSSES[name]


def targets(labels, config):
    """The labels of a batch as weaver's loops compare them with a network: (B,) or (B, T)."""
    columns = [labels[name].float() for name in config.label_names]
    return columns[0] if len(columns) == 1 else torch.stack(columns, dim=1)


def with_targets(batch, config):
    """A batch of weaver's whose first label is all targets, for the training loop of weaver."""
    inputs, labels, observers = batch
    return inputs, {**labels, config.label_names[0]: targets(labels, config)}, observers


@torch.no_grad()
def evaluate_regression(
    model,
    test_loader,
    dev,
    epoch,
    for_training=True,
    loss_func=None,
    steps_per_epoch=None,
    tb_helper=None,
    extra_args=None,
):
    """Validate or predict; arguments and results are those of weaver's ``evaluate_regression``.

    Returns
    -------
    loss : float
        Mean over the jets; alone with ``for_training``.
    predictions : ndarray, (num_jets,) or (num_jets, num_targets)
    labels, observers : dict of array
    """
    model.eval()
    config = test_loader.dataset.config
    enabled, dtype = get_autocast_config(extra_args["args"])
    predictions, labels, observers = [], defaultdict(list), defaultdict(list)
    total_loss = squares = absolutes = count = 0
    for step, (inputs, y, z) in enumerate(tqdm(test_loader)):
        y = {name: AllGather.apply(x.to(dev)) for name, x in y.items()}
        target = targets(y, config)
        with torch.autocast("cuda", enabled=enabled, dtype=dtype):
            output = AllGather.apply(model(*(inputs[x].to(dev) for x in config.input_names)))
        predicted = output.float().reshape(target.shape)
        if loss_func is not None:
            total_loss += loss_func(predicted, target).item() * len(target)
        error = predicted - target
        squares += error.square().sum().item()
        absolutes += error.abs().sum().item()
        count += len(target)
        predictions.append(predicted.numpy(force=True))
        for name, x in y.items():
            labels[name].append(x.numpy(force=True))
        for name, x in {} if for_training else z.items():
            observers[name].append(x)
        if steps_per_epoch is not None and step + 1 >= steps_per_epoch:
            break
    numbers = len(config.label_names) * count
    means = {
        "Loss": total_loss / count,
        "MSE": squares / numbers,
        "MAE": absolutes / numbers,
    }
    log.info("Eval %s", ", ".join(f"Avg{name}: {x:.5f}" for name, x in means.items()))
    if tb_helper:
        mode = "eval" if for_training else "test"
        tb_helper.write_scalars([(f"{k}/{mode} (epoch)", x, epoch) for k, x in means.items()])
    if for_training:
        return means["Loss"]
    labels = {name: np.concatenate(x) for name, x in labels.items()}
    observers = {name: ak.concatenate(x) for name, x in observers.items()}
    return means["Loss"], np.concatenate(predictions), labels, observers
