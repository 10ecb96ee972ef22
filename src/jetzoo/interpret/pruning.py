"""Pruning: a network without the layers that its AUC can spare, trained a little further.

A smaller network is one of the same file with other options, whose weights are some of the old
ones: whatever takes a network takes it, too.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from jetzoo import UserError, repository
from jetzoo.acceleration import accelerate
from jetzoo.checkpoint import load_weights
from jetzoo.checkpoint import read as read_checkpoint
from jetzoo.jets import read_jets, true_classes
from jetzoo.metrics.numbers import evaluate
from jetzoo.tagger import Tagger

from .recorder import Site, transformer

REACH = 0.02  # of AUC: what a fine-tuning is trusted to make up for
EPOCHS, BATCH_SIZE, LEARNING_RATE = 3, 128, "1e-4"
STACKS = {"particle": ("blocks", "num_layers"), "class": ("cls_blocks", "num_cls_layers")}


@dataclass
class Sample:
    """Jets with their classes, and the files they are from."""

    files: list
    jets: object
    labels: object

    def metrics(self, tagger):
        """Scores of the fast engine, and what they are worth."""
        fast = Tagger(accelerate(tagger.model), tagger.data_config, tagger.device)
        scores = fast.predict(self.jets)
        return scores, evaluate(self.labels, scores, tagger.classes)


def read_sample(tagger, files):
    """Read a :class:`Sample`; a UserError if its jets are not of two known classes or more."""
    jets = read_jets(tagger, files)
    labels = true_classes(tagger, jets)
    if labels is None or len(set(labels.tolist())) < 2:
        raise UserError(f"{files[0]}: pruning takes jets of two known classes or more.")
    return Sample(list(files), jets, labels)


class Shortener:
    """Makes a network without some of its layers.

    Parameters
    ----------
    tagger : jetzoo.tagger.Tagger
    network : str or Path
        The network file of the tagger.
    options : dict
        Of the network.
    """

    def __init__(self, tagger, network, options):
        self.tagger, self.network, self.given = tagger, network, options
        core = transformer(tagger.model)
        if core is None:
            raise UserError(f"{network} has no layers to remove: it is no transformer.")
        name = next(name for name, module in tagger.model.named_modules() if module is core)
        self.prefix = f"{name}." if name else ""
        self.layers = [
            Site(kind, layer)
            for kind, (stack, _) in STACKS.items()
            for layer in range(len(getattr(core, stack) or ()))
        ]

    def options(self, gone):
        """Options of the network without the layers ``gone``, a collection of Site."""
        left = [site.kind for site in self.layers if site not in gone]
        return self.given | {option: left.count(kind) for kind, (_, option) in STACKS.items()}

    def state(self, gone):
        """Weights of the network without the layers ``gone``, the others numbered anew."""
        state = dict(self.tagger.model.state_dict())
        for kind, (stack, _) in STACKS.items():
            layers = [site.layer for site in self.layers if site.kind == kind and site not in gone]
            start = re.compile(rf"{re.escape(self.prefix)}{stack}\.(\d+)\.")
            for key in [key for key in state if start.match(key)]:
                value, layer = state.pop(key), int(start.match(key)[1])
                if layer in layers:
                    # The new number is never larger: nothing is overwritten that is still to come.
                    rest = key[start.match(key).end() :]
                    state[f"{self.prefix}{stack}.{layers.index(layer)}.{rest}"] = value
        return state

    def without(self, gone, state=None):
        """The tagger without the layers ``gone``, with other weights if they are given."""
        config = self.tagger.data_config
        model, _ = repository.build_network(self.network, config, **self.options(gone))
        load_weights(model, state or self.state(gone), "The smaller network", self.network)
        return Tagger(model, config, self.tagger.device)


def spare(shortener, val):
    """Remove layers one after the other, each time the one that costs the least AUC.

    Parameters
    ----------
    shortener : Shortener
    val : Sample

    Returns
    -------
    list of (tuple of Site, float)
        The layers that are gone and the AUC, beginning with none; as long as the AUC falls by at
        most ``REACH``. One layer of each kind stays.
    """
    _, metrics = val.metrics(shortener.tagger)
    steps, layers = [((), metrics["auc"])], shortener.layers
    with tqdm(desc="layers", unit="network") as bar:
        while True:
            gone = steps[-1][0]
            left = [site for site in layers if site not in gone]
            kinds = [site.kind for site in left]
            found = []
            for site in (site for site in left if kinds.count(site.kind) > 1):
                _, metrics = val.metrics(shortener.without((*gone, site)))
                found.append((metrics["auc"], (*gone, site)))
                bar.update()
            auc, gone = max(found, key=lambda x: x[0], default=(0.0, ()))
            if auc < steps[0][1] - REACH:
                return steps
            steps.append((gone, auc))


def fine_tune(shortener, gone, data_config, train, val, epochs=EPOCHS):
    """Train a network without some of its layers for a few epochs, by weaver.

    Parameters
    ----------
    shortener : Shortener
    gone : collection of Site
    data_config : str or Path
    train, val : Sample
        weaver keeps the epoch of the best accuracy on the latter.
    epochs : int

    Returns
    -------
    Tagger

    Raises
    ------
    UserError
        If weaver ends with an error; the message is its last line.
    """
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        # weaver writes files beside the data config.
        config = shutil.copy(repository.data_config(data_config), folder)
        torch.save(shortener.state(gone), folder / "start.pt")
        command = [sys.executable, "-m", "weaver.train", "--data-config", config]
        command += ["--network-config", repository.network(shortener.network)]
        command += ["--data-train", *train.files, "--data-val", *val.files, "--in-memory"]
        command += ["--fetch-step", "1", "--num-workers", "1", "--samples-per-epoch"]
        command += [len(train.jets), "--samples-per-epoch-val", len(val.jets)]
        command += ["--batch-size", min(BATCH_SIZE, len(train.jets)), "--num-epochs", epochs]
        command += ["--optimizer", "ranger", "--start-lr", LEARNING_RATE]
        command += ["--gpus", "0" if shortener.tagger.device.type == "cuda" else ""]
        command += ["--load-model-weights", folder / "start.pt", "--model-prefix", folder / "net"]
        for key, value in shortener.options(gone).items():
            command += ["--network-option", key, repr(value)]
        done = subprocess.run([str(x) for x in command], capture_output=True, text=True)
        best = folder / "net_best_epoch_state.pt"
        if done.returncode or not best.exists():
            lines = done.stderr.strip().splitlines() or ["no message"]
            raise UserError(f"The fine-tuning failed: {lines[-1]}")
        return shortener.without(gone, read_checkpoint(best))


def smallest(steps, good):
    """Find the last of some steps that is good, trying as few as if all before it were.

    Parameters
    ----------
    steps : sequence
        The first is good without being asked.
    good : callable

    Returns
    -------
    int
        Its index.
    """
    low, high = 0, len(steps) - 1
    middle = high  # if all can go, one question is enough
    while low < high:
        low, high = (middle, high) if good(steps[middle]) else (low, middle - 1)
        middle = (low + high + 1) // 2
    return low
