"""The training loop: weaver's, with checks around each step and each epoch."""

import logging
import os
import shutil
import sys
from pathlib import Path

import torch
from torch import nn
from weaver.utils.nn.tools import (
    get_autocast_config,
    train_classification,
    train_regression,
    unwrap_model,
)

from jetzoo import UserError, tables
from jetzoo.labels import is_regression, outputs
from jetzoo.native.training import multiplies_half

from . import resuming
from .evaluation import evaluation
from .files import Overlay, copy, epoch_file, remove_partial, save, writes_files
from .memory import keep_freed_memory
from .program import check_pretrained, weaver_program
from .regression import with_targets

# Goes to weaver's log file, too.
log = logging.getLogger("weaver")


class TrainingLoop:
    """weaver's training loop, and the state of a training between its epochs.

    weaver calls it once per epoch, and :meth:`validate` after each. Both find weaver's own local
    variables in ``extra_args``: the arguments of the command line, the optimizer, the loaders.

    Parameters
    ----------
    is_regression : bool
        The best epoch is that of the lowest loss instead of the highest accuracy.

    Attributes
    ----------
    is_regression
    best_metric : float or None
        Of the validations so far.
    best_epoch : int or None
    first_epoch : int or None
        In which the loaders were first used.
    starts : dict of str to dict
        Random states when the loaders 'train' and 'val' were first used.
    """

    def __init__(self, is_regression=False):
        self.is_regression = is_regression
        self.best_metric = self.best_epoch = self.first_epoch = None
        self.starts = {}
        self._masks = set()
        self._outdated = []

    def __call__(self, model, loss_func, opt, scheduler, train_loader, dev, epoch, **arguments):
        """Train for one epoch.

        Raises
        ------
        UserError
            If a loss, or a weight at the end, is not finite, or a label is no class.
        """
        weaver = arguments["extra_args"]
        if not self.starts:
            if torch.device(dev).type == "cpu":
                keep_freed_memory()
            self.begin(unwrap_model(model), opt, scheduler, epoch, weaver)
        batches = CheckedBatches(train_loader, f"epoch {epoch}", weaver["args"].model_prefix)
        train = train_regression if self.is_regression else train_classification
        if self.is_regression:
            batches.stacks_targets = True
        network = in_autocast(model, dev, weaver["args"])
        train(network, batches.check(loss_func), opt, scheduler, batches, dev, epoch, **arguments)
        for name in not_finite(unwrap_model(model)):
            if name not in self._masks:
                raise UserError(
                    f"The weights are not finite after epoch {epoch} ({name}): the training stops,"
                    " and the weights of the epochs before stay; a smaller --start-lr may help."
                )

    def validate(self, model, val_loader, dev, epoch, loss_func=None, **arguments):
        """Validate one epoch, which is whole then.

        Returns
        -------
        ValidationMetric
            The accuracy, or the loss of a regression, as of weaver.

        Raises
        ------
        UserError
            If a loss is not finite.
        """
        weaver = arguments["extra_args"]
        args = weaver["args"]
        if "val" not in self.starts:
            self.starts["val"] = resuming.random_states()
        batches = CheckedBatches(val_loader, f"the validation of epoch {epoch}", args.model_prefix)
        metric = evaluation(val_loader.dataset.config)(
            model, batches, dev, epoch, loss_func=batches.check(loss_func), **arguments
        )
        best = self.best_metric
        is_best = best is None or (metric < best if self.is_regression else metric > best)
        if is_best:
            self.best_metric, self.best_epoch = metric, epoch
        if writes_files(args):
            save(self.state(weaver), epoch_file(args, epoch, "resume"))
            while self._outdated:
                Path(self._outdated.pop()).unlink(missing_ok=True)
        return ValidationMetric(metric, is_best)

    def begin(self, model, opt, scheduler, epoch, weaver):
        """Before the first epoch: check the weights, resume, let weaver write whole files."""
        args = weaver["args"]
        self._masks = set(not_finite(model)) - {name for name, _ in model.named_parameters()}
        if args.load_epoch is not None:
            self.resume(opt, scheduler, weaver)
        elif args.load_model_weights:
            check_pretrained(model, args)
        if weaver.get("train") is self:
            self.write_whole_files(validated="val" in args.run_mode)
        if not self.starts:
            self.first_epoch, self.starts = epoch, {"train": resuming.random_states()}

    def write_whole_files(self, validated):
        """Let weaver write whole files, and keep those of an epoch until the next one is whole.

        weaver calls ``torch.save`` and ``shutil.copy2`` itself and, with ``--auto-clean``,
        ``os.remove`` as soon as the next weights are there. They are replaced in its module, and
        only there.
        """
        weaver = weaver_program() or sys.modules["weaver.train"]
        weaver.torch = Overlay(torch, save=save)
        weaver.shutil = Overlay(shutil, copy2=copy)
        if validated:
            weaver.os = Overlay(os, remove=self._outdated.append)

    def state(self, weaver):
        """What :meth:`resume` needs, of numbers, texts and tensors alone."""
        grad_scaler = weaver["grad_scaler"]
        return {
            "best_metric": self.best_metric,
            "best_epoch": self.best_epoch,
            "first_epoch": self.first_epoch,
            "starts": self.starts,
            "random": resuming.random_states(),
            "settings": {name: getattr(weaver["args"], name) for name in resuming.SETTINGS},
            "grad_scaler": grad_scaler.state_dict() if grad_scaler else None,
            "lookahead": resuming.lookahead_state(weaver["opt"]),
        }

    def resume(self, opt, scheduler, weaver):
        """Go on after the epoch ``--load-epoch``, whose weights and optimizer weaver has loaded.

        Raises
        ------
        UserError
            If the file of that epoch is damaged.
        """
        args = weaver["args"]
        resuming.rewind(scheduler, args)
        if writes_files(args):
            remove_partial(args)
        path = epoch_file(args, args.load_epoch, "resume")
        if not path.exists():
            log.warning(
                "There is no %s: random states, the best epoch and Lookahead start anew.", path
            )
            return
        try:
            found = torch.load(path, map_location="cpu", weights_only=True)
            resuming.restore_lookahead(opt, found["lookahead"])
            if weaver["grad_scaler"] and found["grad_scaler"]:
                weaver["grad_scaler"].load_state_dict(found["grad_scaler"])
            changed = resuming.changed_settings(args, found["settings"])
            self.best_metric, self.best_epoch = found["best_metric"], found["best_epoch"]
            first_epoch, starts, states = (found[x] for x in ("first_epoch", "starts", "random"))
        except Exception as error:  # torch.load raises anything of a file that it did not write
            raise UserError(f"{path} is damaged: resume an earlier epoch.") from error
        if resuming.can_replay(args, weaver, changed):
            self.first_epoch, self.starts = first_epoch, starts
            resuming.replay(first_epoch, starts, args, weaver)
        else:
            log.warning("The jets come in another order than they would have without the stop.")
        resuming.set_random_states(states)
        if writes_files(args):
            self.restore_best(args)
        log.info(
            "Resumed after epoch #%d; the best so far is epoch #%d with %.5f",
            args.load_epoch,
            self.best_epoch,
            self.best_metric,
        )

    def restore_best(self, args):
        """Put the files of the best epoch so far in place, should the stop have prevented it."""
        for kind in ("state", "optimizer"):
            path = epoch_file(args, self.best_epoch, kind)
            if path.exists():
                copy(path, f"{args.model_prefix}_best_epoch_{kind}.pt")


class ValidationMetric(float):
    """A metric for weaver, which asks ``metric > best`` to find out whether an epoch is the best.

    In a regression it asks ``metric < best``. The answer is not that of the comparison: weaver's
    ``best`` is 0, or infinite, again in a resumed training.
    """

    def __new__(cls, value, is_best):
        metric = super().__new__(cls, value)
        metric.is_best = is_best
        return metric

    def __gt__(self, best):
        return self.is_best

    __lt__ = __gt__


def in_autocast(model, dev, args):
    """The network for ``--use-amp``: weaver's own autocast is for GPUs only.

    A CPU that does not multiply numbers in bfloat16 goes on in float32.
    """
    enabled, dtype = get_autocast_config(args)
    on_cpu = torch.device(dev).type == "cpu"
    if on_cpu and enabled and dtype == torch.bfloat16 and multiplies_half():
        return AutocastNetwork(model)
    return model


class AutocastNetwork(nn.Module):
    """A network that computes in bfloat16 where it can on a CPU, and returns float32."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, *inputs):
        """As the network."""
        with torch.autocast("cpu", torch.bfloat16):
            return self.network(*inputs).float()


class CheckedBatches:
    """A loader whose current batch is saved where its loss is not finite.

    Parameters
    ----------
    loader : torch.utils.data.DataLoader
    place : str
        Part of the training, for the message.
    prefix : str
        Of the files of the training; the batch goes to ``PREFIX_nonfinite_batch.pt``.

    Attributes
    ----------
    stacks_targets : bool
        Hand all targets of a regression over as the first label, the one that weaver trains on.
    """

    def __init__(self, loader, place, prefix):
        self.loader, self.dataset = loader, loader.dataset
        self.place, self.prefix = place, prefix
        self.step, self.batch = -1, None
        self.stacks_targets = False

    def __iter__(self):
        config = self.dataset.config
        for batch in self.loader:
            self.step, self.batch = self.step + 1, batch
            if not is_regression(config):
                self.check_classes(config)
            yield with_targets(batch, config) if self.stacks_targets else batch

    def check_classes(self, config):
        """Raise a UserError if a label of the batch is not the index of a class."""
        label, count = self.batch[1][config.label_names[0]], len(outputs(config))
        bad = (label < 0) | (label >= count) | (label != label.long())
        if bad.any():
            raise UserError(
                f"A label is {label[bad][0].item():g} at step {self.step} of {self.place}: that is "
                f"none of the indices 0 ... {count - 1} of the {count} classes."
            )

    def check(self, loss_func):
        """The same loss function, which raises a UserError instead of returning NaN or infinity."""

        def checked(*arguments):
            loss = loss_func(*arguments)
            if not torch.isfinite(loss).all():
                self.stop(loss)
            return loss

        return checked

    def stop(self, loss):
        """Save the batch and raise the error, before the step that would spoil the weights."""
        text = f"The loss is {loss.item()} at step {self.step} of {self.place}: the training stops"
        if self.prefix:
            path = Path(f"{self.prefix}_nonfinite_batch.pt")
            tables.writable_folder(path.parent)
            inputs, labels, _ = self.batch
            save({"inputs": inputs, "labels": labels, "step": self.step}, path)
            text += f", its batch is in {path}"
        raise UserError(
            f"{text}, and the weights of the epochs before stay; a smaller --start-lr may help."
        )


def not_finite(model):
    """Names of the weights and buffers that hold NaN or infinity."""
    return [
        name
        for name, value in model.state_dict().items()
        if torch.is_tensor(value) and value.is_floating_point() and not value.isfinite().all()
    ]
