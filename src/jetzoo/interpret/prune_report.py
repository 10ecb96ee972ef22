"""A smaller network and what it is worth, written to a folder."""

import json
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from jetzoo import page, tables
from jetzoo.acceleration import accelerate
from jetzoo.tagger import Tagger

from .ablation import AUC_LOSS
from .errors import auc_error
from .pruning import EPOCHS, STACKS, Shortener, fine_tune, read_sample, smallest, spare
from .recorder import transformer

TIMED, REPEATS = 512, 7  # jets of a timed call, and calls


@dataclass
class PruneReport:
    """The result of :func:`prune`.

    Attributes
    ----------
    about : dict
        Network, data config, classes, and numbers of jets.
    steps : list of dict
        Of the validation jets: ``gone``, names of layers, the ``auc`` without them, and ``tuned``,
        the AUC after the fine-tuning of those that were tried.
    rows : list of dict
        Of the test jets, a row for each network: ``network``, ``layers``, ``class_layers``,
        ``parameters``, ``accuracy``, ``auc``, ``auc_change`` with its standard error, and
        ``jets_per_second`` on the fast engine.
    smaller : Tagger or None
        Fine-tuned. None if no layer can go.
    options : dict
        With which the smaller network is built.
    """

    about: dict
    steps: list
    rows: list
    smaller: Tagger | None
    options: dict

    @property
    def notes(self):
        """Sentences on what came out."""
        if self.smaller is None:
            return [
                f"No layer can go: fine-tuned without any one of them, the network loses more "
                f"than {AUC_LOSS} of AUC on the validation jets."
            ]
        words = "".join(f", {key}={value!r}" for key, value in self.options.items())
        network, config = self.about["network"], self.about["data_config"]
        return [f"jetzoo.load({network!r}, 'pruned.pt', {config!r}{words}) loads it."]

    def write(self, folder):
        """Write ``pruned.pt``, if there is a smaller network, ``pruned.csv`` and ``pruned.json``.

        Returns
        -------
        list of Path
        """
        content = self.about | {"steps": self.steps, "networks": self.rows}
        content |= {"options": self.options, "notes": self.notes}
        contents = {
            "pruned.csv": page.csv_text(self.rows),
            "pruned.json": json.dumps(content, indent=2, allow_nan=False) + "\n",
        }
        written = page.write(folder, contents)
        if self.smaller is not None:
            written.append(Path(folder) / "pruned.pt")
            with tables.atomic(written[-1]) as partial:
                torch.save(self.smaller.model.state_dict(), partial)
        return written

    def tables(self):
        """Put the networks into a table for the terminal."""
        from rich.table import Table

        shown = Table("network", "layers", "parameters", "AUC", "change of AUC", "jets/s")
        for row in self.rows:
            shown.add_row(
                row["network"],
                f"{row['layers']} + {row['class_layers']}",
                f"{row['parameters']:,}",
                f"{row['auc']:.4f}",
                f"{row['auc_change']:+.4f} ± {row['auc_change_error']:.4f}",
                f"{row['jets_per_second']:,.0f}",
            )
        return [shown]


def prune(tagger, network, data_config, train, val, test, *, epochs=EPOCHS, **options):
    """Make a network smaller by whole layers, as long as its AUC stays within 0.001.

    Layers go in the order of :func:`jetzoo.interpret.pruning.spare`. The smallest network that has
    the AUC on the validation jets after a fine-tuning is taken: without one that AUC is too good,
    since the layers were chosen by it. Test jets have no part in the choice. The network with all
    layers gets the same fine-tuning, to compare with.

    Parameters
    ----------
    tagger : jetzoo.tagger.Tagger
    network, data_config : str or Path
        Those of the tagger.
    train, val, test : sequence of str or Path
        Files of labelled jets. Those of the fine-tuning are read into memory.
    epochs : int
        Of each fine-tuning, on all jets of ``train``.
    **options
        Of the network.

    Returns
    -------
    PruneReport

    Raises
    ------
    UserError
        If the network is no transformer, the jets are not of two known classes or more, or a
        fine-tuning fails.
    """
    shortener = Shortener(tagger, network, options)
    train, val, test = (read_sample(tagger, files) for files in (train, val, test))
    steps = spare(shortener, val)
    goal, tuned, aucs = steps[0][1] - AUC_LOSS, {}, {}

    def tune(gone):
        tuned[gone] = fine_tune(shortener, gone, data_config, train, val, epochs)
        aucs[gone] = val.metrics(tuned[gone])[1]["auc"]
        return aucs[gone]

    best, _ = steps[smallest(steps, lambda step: tune(step[0]) >= goal)]
    tune(())
    networks = {"the network": tagger, "the network, fine-tuned": tuned[()]}
    if best:
        networks |= {"smaller": shortener.without(best), "smaller, fine-tuned": tuned[best]}
    smaller = tuned[best] if best else None
    about = {
        "network": str(network),
        "data_config": str(data_config),
        "classes": tagger.classes,
        "num_jets": {"train": len(train.jets), "val": len(val.jets), "test": len(test.jets)},
        "epochs": epochs,
    }
    listed = [
        {"gone": [site.name for site in gone], "auc": auc, "tuned": aucs.get(gone)}
        for gone, auc in steps
    ]
    return PruneReport(about, listed, compare(networks, test), smaller, shortener.options(best))


def compare(networks, test):
    """Measure networks on the same jets.

    Parameters
    ----------
    networks : dict of str to Tagger
        The first is what the others are compared with.
    test : Sample

    Returns
    -------
    list of dict
        See ``rows`` of :class:`PruneReport`.
    """
    speeds, rows, first = rates(list(networks.values()), test.jets[:TIMED]), [], None
    for (name, tagger), speed in zip(networks.items(), speeds, strict=True):
        scores, metrics = test.metrics(tagger)
        first = first or (scores, metrics["auc"])
        core = transformer(tagger.model)
        layers, class_layers = (len(getattr(core, stack)) for stack, _ in STACKS.values())
        rows.append(
            {
                "network": name,
                "layers": layers,
                "class_layers": class_layers,
                "parameters": sum(x.numel() for x in tagger.model.parameters()),
                "accuracy": metrics["accuracy"],
                "auc": metrics["auc"],
                "auc_change": metrics["auc"] - first[1],
                "auc_change_error": auc_error(test.labels, first[0], scores),
                "jets_per_second": speed,
            }
        )
    return rows


def rates(taggers, jets):
    """Jets per second on the fast engine, from the medians of calls that take turns.

    Parameters
    ----------
    taggers : list of Tagger
        They take the same inputs.
    jets : ak.Array of records

    Returns
    -------
    list of float
    """
    inputs = [torch.from_numpy(x).to(taggers[0].device) for x in taggers[0].inputs(jets).values()]
    networks = [accelerate(tagger.model) for tagger in taggers]
    seconds = [[] for _ in networks]
    for turn in range(REPEATS + 1):
        for network, times in zip(networks, seconds, strict=True):
            start = time.perf_counter()
            network(*inputs).cpu()
            if turn:  # the first call packs the weights
                times.append(time.perf_counter() - start)
    return [len(jets) / statistics.median(times) for times in seconds]
