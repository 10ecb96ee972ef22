"""A network in float32 and in int8 on the same jets, side by side."""

import io
import json
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from jetzoo import UserError, tables

from .acceleration import accelerate
from .checkpoint import check_numbers
from .data_config import finite
from .int8 import file as int8_file
from .int8.calibration import CALIBRATION_JETS
from .int8.tuning import TUNING_JETS
from .jets import label_branches, true_labels
from .labels import is_regression, outputs
from .metrics.numbers import evaluate
from .streams import ahead

# What int8 may cost: the AUC may fall by this, the rejection at 50% by this part.
AUC_DROP, REJECTION_LOSS = 0.001, 0.03

# By these the project knows a report of its own again, which a later one may replace.
REPORT_KEYS = {"network", "method", "qat", "float32", "int8", "largest_difference"}

# Files that calibration jets are taken from: the classes of JetClass are in different files.
CALIBRATION_FILES = 20


class SideBySide(nn.Module):
    """Runs a network in float32 and in int8 on each batch, and answers as the former.

    One call of each in turn: what else the machine does slows both alike.

    Parameters
    ----------
    model : nn.Module
        Runs on the fast engine.
    quantized : jetzoo.acceleration.Accelerated
    jets : tuple of Tensor
        The first call on these is not timed: it packs the weights.

    Attributes
    ----------
    logits : list of Tensor
        Of the int8 form, batch by batch.
    seconds : list of float
        Of the float32 and of the int8 form.
    num_jets : int
    """

    def __init__(self, model, quantized, jets):
        super().__init__()
        self.networks = nn.ModuleList((accelerate(model, device="cpu"), quantized))
        self.eval()
        for network in self.networks:
            network(*jets)
        self.logits, self.seconds, self.num_jets = [], [0.0, 0.0], 0

    def forward(self, *inputs):
        """What the network takes, to (B, num_classes)."""
        logits = []
        for i, network in enumerate(self.networks):
            start = time.perf_counter()
            logits.append(network(*inputs))
            self.seconds[i] += time.perf_counter() - start
        self.num_jets += len(inputs[0])
        self.logits.append(logits[1])
        return logits[0]

    def scores(self):
        """Probabilities of the int8 form since the last call, (B, num_classes)."""
        scores = torch.cat(self.logits).softmax(1).numpy()
        self.logits.clear()
        return scores


def metrics(labels, scores, classes):
    """Metrics of both forms.

    Parameters
    ----------
    labels : ndarray of int, (num_jets,)
    scores : pair of ndarray, (num_jets, num_classes)
        In float32 and in int8.
    classes : list of str

    Returns
    -------
    dict
        JSON-ready: ``float32`` and ``int8``, each as of :func:`jetzoo.metrics.numbers.evaluate`,
        ``largest_difference`` of a probability, and ``within_bounds``: whether the AUC falls by at
        most 0.001 and the first rejection by at most 3%; None if neither is known.
    """
    found = {
        name: evaluate(labels, s, classes)
        for name, s in zip(("float32", "int8"), scores, strict=True)
    }
    before, after = found.values()
    checks = []
    if before["auc"] is not None:
        checks.append(before["auc"] - after["auc"] <= AUC_DROP)
    for a, b in zip(before["rejections"], after["rejections"], strict=True):
        if a["signal_efficiency"] == 0.5 and a["rejection"] and b["rejection"]:
            checks.append(1 - b["rejection"] / a["rejection"] <= REJECTION_LOSS)
    return {
        **found,
        "largest_difference": float(np.abs(scores[0] - scores[1]).max()),
        "within_bounds": all(checks) if checks else None,
    }


def table(found):
    """What :meth:`Comparison.finish` gives, for the terminal.

    Returns
    -------
    rich.table.Table
    """
    from rich.table import Table

    shown = Table("", "float32", f"int8, {found['method']}", "int8 / float32")

    def row(name, key, style):
        before, after = (found[form][key] for form in ("float32", "int8"))
        if before is None or after is None:
            shown.add_row(name, *("-" if x is None else style.format(x) for x in (before, after)))
        else:
            ratio = after / before if before else 1.0
            shown.add_row(name, style.format(before), style.format(after), f"{ratio:.4g}")

    row("accuracy", "accuracy", "{:.4f}")
    row("AUC", "auc", "{:.4f}")
    for a, b in zip(found["float32"]["rejections"], found["int8"]["rejections"], strict=True):
        pair = [
            f"> {x['lower_limit']:.0f}" if x["rejection"] is None else f"{x['rejection']:.1f}"
            for x in (a, b)
        ]
        known = a["rejection"] and b["rejection"]
        shown.add_row(
            f"rejection at {100 * a['signal_efficiency']:g}%, {a['signal']}",
            *pair,
            f"{b['rejection'] / a['rejection']:.4g}" if known else "",
        )
    row("file [MB]", "megabytes", "{:.2f}")
    row("jets/s", "jets_per_second", "{:.0f}")
    return shown


def notes(found):
    """Sentences on what a user should know of the comparison."""
    float32, int8 = found["float32"], found["int8"]
    if int8["jets_per_second"] < float32["jets_per_second"]:
        yield "int8 is not faster than the float32 engine here; what it gives is a smaller file."
    if found["within_bounds"] is False:
        yield (
            f"int8 costs more than {AUC_DROP} of the AUC or {REJECTION_LOSS:.0%} of the rejection "
            "at 50%: try --qat, or the method weight-only."
        )


def check_can_compare(data_config):
    """Raise a :class:`jetzoo.UserError` for a regression: what is compared are classes."""
    if is_regression(data_config):
        raise UserError(
            "Float32 and int8 are compared on classes of jets; the data config is of a regression."
        )


def calibration_jets(tagger, files, many=False):
    """The inputs of some jets of files, in equal shares.

    Parameters
    ----------
    tagger : jetzoo.tagger.Tagger
    files : sequence of str or Path
    many : bool
        Enough for a fine-tuning.

    Returns
    -------
    tuple of Tensor
        The inputs of the network.

    Raises
    ------
    UserError
        If there are no files or no jets, or a file does not fit the data config.
    """
    if not files:
        raise UserError("There are no files to calibrate with.")
    files = files[:: -(-len(files) // CALIBRATION_FILES)]
    count = TUNING_JETS if many else CALIBRATION_JETS
    share = -(-count // len(files))
    config = tagger.data_config
    inputs = []
    for path in files:
        jets = tables.read(path, tagger.branches, config.treename, stop=share)
        with tables.about(path):
            check_finite(tagger.columns(jets))
            if len(jets):
                inputs.append(tagger.inputs(jets))
    if not inputs:
        raise UserError("There are no jets to calibrate with.")
    groups = zip(*(part.values() for part in inputs), strict=True)
    jets = tuple(torch.from_numpy(np.concatenate(group)) for group in groups)
    # Mixed, because only the first of them are used to calibrate with.
    order = torch.randperm(len(jets[0]), generator=torch.Generator().manual_seed(0))
    return tuple(x[order] for x in jets)


def check_finite(columns):
    """Raise a :class:`jetzoo.UserError` if numbers of jets are NaN or infinite.

    weaver's preprocessing would make numbers of them.

    Parameters
    ----------
    columns : ak.Array of records, (num_jets,)
        See :meth:`jetzoo.data_config.Inputs.columns`.
    """
    bad = [name for name in columns.fields if not finite(columns[[name]]).all()]
    if bad:
        count = int((~finite(columns)).sum())
        raise UserError(
            f"{count:,} of {len(columns):,} jets have values that are NaN or infinite in "
            f"{', '.join(bad)}: clean the file, or give another one."
        )


def check_labels(tagger, files):
    """Check that files have what the network needs, and that their jets are labelled.

    Parameters
    ----------
    tagger : jetzoo.tagger.Tagger
    files : sequence of str or Path

    Returns
    -------
    num_jets : int

    Raises
    ------
    UserError
        If there are no jets, or labels are missing or none of the classes; the message names the
        file.
    """
    total = 0
    treename = tagger.data_config.treename
    for path in files:
        if missing := sorted(tagger.branches - set(tables.describe(path, treename)[0])):
            raise UserError(f"{path} has no branch {', '.join(missing)}.")
        for labels in tables.chunks(path, label_branches(tagger), treename):
            with tables.about(path):
                true_labels(tagger, labels)
            total += len(labels)
    if total == 0:
        raise UserError("There are no jets to compare on in the files.")
    return total


def labelled_batches(tagger, files, batch_size):
    """Inputs and true classes of the jets of files.

    Yields
    ------
    inputs : tuple of Tensor
    labels : ndarray of int, (B,)
    """
    branches = tagger.branches | label_branches(tagger)
    for path in files:
        chunks = tables.chunks(path, branches, tagger.data_config.treename, size=batch_size)
        for jets in ahead(chunks):
            with tables.about(path):
                labels = true_labels(tagger, jets)
                columns = tagger.columns(jets)
                check_finite(columns)
                inputs = tagger.inputs(columns).values()
            if len(jets):
                yield tuple(torch.from_numpy(x) for x in inputs), labels


def check_output(path, inputs=()):
    """Check that an int8 network and the report beside it can be written; makes nothing.

    Parameters
    ----------
    path : str or Path
        Of the network, ``.pt``.
    inputs : iterable of str or Path
        Files that are read for it.

    Raises
    ------
    UserError
        As :func:`jetzoo.tables.check_output`, or if the file with the ending .json beside it is no
        report of an earlier comparison.
    """
    path = tables.check_output(path, inputs, ".pt")
    report = tables.check_output(path.with_suffix(".json"), inputs)
    if report.exists() and not _is_report(report):
        raise UserError(
            f"The report would replace {report}, which is none: name another output than {path}."
        )


def _is_report(path):
    try:
        return set(json.loads(path.read_text())) >= REPORT_KEYS
    except (OSError, ValueError, TypeError, RecursionError):
        return False


class Comparison:
    """Quantizes a trained network, and finds out what that changes.

    Parameters
    ----------
    model : nn.Module
        In float32.
    data_config : weaver.utils.data.config.DataConfig
    jets : tuple of Tensor
        To calibrate with.
    output : str or Path
        Where the int8 network goes; what was found is written beside it, as ``.json``.
    network : str
        Name of the network's file.
    options : dict
        ``--network-option`` pairs of the training.
    method : str
    qat : bool
        Fine-tune the network for int8, see :func:`jetzoo.int8.tuning.fine_tune`.
    """

    def __init__(
        self, model, data_config, jets, output, network, options=None, method="static", qat=False
    ):
        check_output(output)
        check_numbers(model, network)
        check_can_compare(data_config)
        self.classes = outputs(data_config)
        quantized = accelerate(model, "int8", "cpu", jets, method, fine_tune=qat)
        self.both = SideBySide(model, quantized, tuple(x[:64] for x in jets))
        self.labels, self.scores = [], ([], [])
        self.found = {"network": str(network), "method": method, "qat": qat}
        self.paths = Path(output), Path(output).with_suffix(".json")
        file = io.BytesIO()
        torch.save(model.state_dict(), file)
        self.megabytes = [file.tell() / 1e6]
        self.made_from = network, data_config, options

    def add(self, labels, scores):
        """Take up true classes (B,), float32 scores (B, num_classes) and the int8 ones."""
        self.labels.append(np.asarray(labels))
        self.scores[0].append(np.asarray(scores))
        self.scores[1].append(self.both.scores())

    def finish(self):
        """Write the int8 network and what was found, and return the latter.

        Returns
        -------
        dict
            That of :func:`metrics`, with ``network``, ``method`` and ``qat``, and ``megabytes`` and
            ``jets_per_second`` in each form.
        """
        scores = tuple(map(np.concatenate, self.scores))
        found = self.found | metrics(np.concatenate(self.labels), scores, self.classes)
        int8_file.save(self.both.networks[1], self.paths[0], *self.made_from)
        self.megabytes.append(self.paths[0].stat().st_size / 1e6)
        for i, form in enumerate(("float32", "int8")):
            found[form]["megabytes"] = self.megabytes[i]
            found[form]["jets_per_second"] = self.both.num_jets / self.both.seconds[i]
        with tables.atomic(self.paths[1]) as partial:
            partial.write_text(json.dumps(found, indent=2, allow_nan=False) + "\n")
        return found


def compare(tagger, files, calibration, output, network, options=None, method="static", qat=False):
    """Quantize a trained network and compare both forms on the jets of files.

    Parameters
    ----------
    tagger : jetzoo.tagger.Tagger
        On the CPU.
    files : sequence of str or Path
        Labelled jets to compare on.
    calibration : sequence of str or Path
        Files of jets to calibrate with.
    output, network, options, method, qat
        See :class:`Comparison`.

    Returns
    -------
    Comparison
        Complete, but for :meth:`Comparison.finish`.
    """
    if getattr(tagger.model, "is_int8", False):
        raise UserError("The network is in int8 already: quantize the weights it was made from.")
    check_can_compare(tagger.data_config)
    check_output(output, (*files, *calibration))
    total = check_labels(tagger, files)
    comparison = Comparison(
        tagger.model,
        tagger.data_config,
        calibration_jets(tagger, calibration, many=qat),
        output,
        network,
        options,
        method,
        qat,
    )
    with tqdm(total=total, unit="jet", desc="compare") as progress:
        for inputs, labels in labelled_batches(tagger, files, 256):
            comparison.add(labels, comparison.both(*inputs).softmax(1).numpy())
            progress.update(len(labels))
    return comparison


def show(comparison):
    """Print what was found, after writing it."""
    from rich.console import Console

    found = comparison.finish()
    Console().print(table(found))
    for note in notes(found):
        print(f"note: {note}")
    for path in comparison.paths:
        print(f"wrote {path}")
