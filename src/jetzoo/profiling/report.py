"""The profile of one network in some configurations, written to a folder and to one page."""

import html
import json
import math
import shlex
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import awkward as ak
import torch

from jetzoo import UserError, choices, repository
from jetzoo import page as pages
from jetzoo.jets import read_jets, true_labels
from jetzoo.state import restored
from jetzoo.tables import describe
from jetzoo.tagger import load, untrained

from . import configurations, figures, loading, summary
from .runs import INFERENCE, TRAINING, run_all
from .steps import Step
from .timers import machine_stamp

SAMPLE = repository.sample_jets()
DATA_CONFIG = "QuarkGluon/qg_kin"

EXPLORER = "explore.html"  # the page of `jetzoo explore`

LINES = 16  # of the table in the terminal
# Columns of that table, for which a terminal of 80 columns has room.
TERMINAL = ("module", "time [ms]", "share", "FLOP/byte", "GFLOP/s", "GB/s", "bound by")


@dataclass
class ProfileReport:
    """The result of :func:`profile`.

    Attributes
    ----------
    about : dict
        Network, data, number of jets, machine, and the times of :mod:`jetzoo.choices`.
    runs : list of ProfileRun
    loading : Loading or None
    notes : list of str
        Sentences on what is not as asked for.
    """

    about: dict
    runs: list
    loading: loading.Loading | None
    notes: list

    def write(self, folder):
        """Write figures (PNG, PDF), tables (CSV, JSON), Chrome traces and ``index.html``.

        The page links to :data:`EXPLORER`, where there is one in the folder.

        Returns
        -------
        list of Path
        """
        panels = self.panels()
        contents = pages.draw([panel for group in panels.values() for panel in group])
        contents["modules.csv"] = pages.csv_text(summary.module_rows(self.runs))
        contents["comparison.csv"] = pages.csv_text(
            summary.kind_rows(self.runs, self.about["machine"])
        )
        if self.loading:
            contents["loading.csv"] = pages.csv_text(summary.loading_rows(self.loading))
        content = {
            **self.about,
            "notes": self.notes,
            "runs": summary.run_rows(self.runs),
            "loading": self.loading and summary.loading_rows(self.loading),
        }
        contents["profile.json"] = json.dumps(content, indent=2) + "\n"
        for run in self.runs:
            contents[f"trace_{run.key}.json.gz"] = run.trace.chrome
        contents["index.html"] = self.page(panels, contents, (Path(folder) / EXPLORER).exists())
        return pages.write(folder, contents)

    def panels(self):
        """Draw the figures: a dict of lists of panels by run, those of all runs under None."""
        colours = figures.kind_colours(self.runs)
        panels = {None: [self._comparison_panel(colours)]}
        if self.loading:
            panels[None].append(self._loading_panel())
        return panels | {run.key: _run_panels(run, colours) for run in self.runs}

    def _comparison_panel(self, colours):
        return pages.Panel(
            "comparison",
            "Time by kind of layer",
            "Time per jet, and how many times faster than the first. Norms belong to what follows "
            "them.",
            figures.comparison(self.runs, colours),
        )

    def _loading_panel(self):
        return pages.Panel(
            "loading",
            "Data loading",
            " ".join(self.loading_sentences())
            + " The workers of the loader compete with the network for the cores of a CPU.",
            figures.loading(self.loading, self.runs),
        )

    def loading_sentences(self):
        """Say for each run whether the network or the loading is the bottleneck."""
        return [
            self.loading.sentence(
                f"the {run.mode} of {run.label}",
                run.jets_per_second,
                in_memory=run.mode == TRAINING,
            )
            for run in self.runs
        ]

    def tables(self):
        """Put overview and modules into tables for the terminal.

        Returns
        -------
        list of rich.table.Table
        """
        from rich.table import Table

        overview = Table(*summary.OVERVIEW)
        for line in summary.overview_lines(self.runs):
            overview.add_row(*line)
        found = [overview]
        columns = [summary.COLUMNS.index(name) for name in TERMINAL]
        for run in self.runs:
            found.append(Table(*TERMINAL, title=run.title))
            for line in summary.module_lines(run)[:LINES]:
                found[-1].add_row(*(line[column] for column in columns))
            found[-1].caption = "smaller ones are in index.html and modules.csv"
        wins = Counter(map(choices.winner, self.about["fastest"].values()))
        if wins:
            found.append(Table("fastest here", "kinds of work", title="chosen by timing"))
            for way, count in wins.most_common():
                found[-1].add_row(way, str(count))
            found[-1].caption = "the times of each are in profile.json"
        return found

    def page(self, panels, contents, has_explorer):
        """Write ``index.html`` from :meth:`panels` and the contents of their files."""
        about = self.about
        machine = ", ".join(f"{key} {value}" for key, value in about["machine"].items())
        body = [f"<p>{html.escape(text)}</p>" for text in (machine, *self.notes)]
        body += ["<h2>Overview</h2>"]
        body += [pages.table(summary.overview_lines(self.runs), summary.OVERVIEW)]
        body += [pages.figure(panel, contents) for panel in panels[None]]
        for run in self.runs:
            body.append(f"<h2>Modules: {html.escape(run.title)}</h2>")
            body.append(f"<p>{_explanation(run)}</p>")
            body.append(pages.table(summary.module_lines(run), summary.COLUMNS))
            body += [pages.figure(panel, contents) for panel in panels[run.key]]
        if has_explorer:
            body.append(f'<p><a href="{EXPLORER}">Explore the attention, jet by jet</a>.</p>')
        else:
            words = ["jetzoo", "explore", about["network"], "--data", *about["data"]]
            command = html.escape(shlex.join([*words, "--out", EXPLORER]))
            body.append(
                f"<p>What the attention looks at, jet by jet, is shown by <code>{command}</code>. "
                "With that file in its folder, the next profile links to it.</p>"
            )
        return pages.page(f"Profile of {about['network']}", body)


def _explanation(run):
    """Say in HTML what the table of modules shows."""
    limits = run.limits
    return (
        f"Repeated layers are added up (*); {run.num_jets} jets. What took less than "
        f"{summary.SMALLEST:.2%} of the time is in modules.csv. The time of a module is without "
        "the modules within it. It is at least the FLOPs over "
        f"{limits.flops / 1e9:.3g} GFLOP/s of a large matrix product, the bytes over "
        f"{limits.memory / 1e9:.3g} GB/s (from the cache {limits.cache / 1e9:.3g} GB/s) and "
        f"{1e6 * limits.call:.2g} µs for every operation, measured on this machine; the largest of "
        "the three names the bound. "
        "Elementwise operations count no FLOPs. The hooks made the call "
        f"{run.hooked:.2f} times as long. <a href='trace_{run.key}.json.gz'>Chrome trace</a> for "
        "ui.perfetto.dev."
    )


def _run_panels(run, colours):
    """Panels of one run."""
    counted = sum(row.seconds for row in run.rows if row.flops and row.bytes_moved)
    total = sum(row.seconds for row in run.rows)
    return [
        pages.Panel(
            f"layers_{run.key}",
            f"Time by layer: {run.title}",
            "Each layer with what is within it, by what its modules compute; forward and backward "
            "together.",
            figures.layers(run),
        ),
        pages.Panel(
            f"roofline_{run.key}",
            f"Roofline: {run.title}",
            "What the modules achieve themselves, under the limits of the machine; the area grows "
            "with the time. FLOPs are those of matrix products, convolutions and attention; "
            f"modules that do any have {100 * counted / total:.0f}% of the time. Bytes are the "
            "inputs and outputs of every operation: where these stay in the cache, a point may "
            "stand above the line of the memory."
            + (" The product is one of float32." if run.name == "int8" else ""),
            figures.roofline(run, colours),
        ),
        pages.Panel(
            f"memory_{run.key}",
            f"Memory: {run.title}",
            "What the tensors of one call hold, beyond weights and inputs; on top, the layer at "
            "work. Taken under PyTorch's profiler, which makes the call slower; the scratch space "
            "of kernels outside of PyTorch is not seen.",
            figures.memory(run, colours),
        ),
    ]


@restored()
def profile(
    network,
    checkpoint=None,
    data_config=DATA_CONFIG,
    files=(SAMPLE,),
    *,
    names=("base",),
    trains=False,
    precision="fp32",
    device=None,
    batch_size=128,
    repeats=5,
    with_loading=False,
    **options,
):
    """Measure where the time of a network goes.

    Random states, the number of threads and log levels are put back at the end.

    Parameters
    ----------
    network : str or Path
        Name of a file in ``networks/``, or a path.
    checkpoint : str or Path, optional
        Weights; by default random ones.
    data_config : str or Path
    files : sequence of str or Path
        Jets with the branches of the data config; the batch is taken from all of them alike.
    names : sequence of str
        Configurations to put side by side, of :data:`configurations.FORMS` or attention backends.
    trains : bool
        Also profile the training step, with the optimiser of the training scripts.
    precision : {"fp32", "bf16"}
        bf16 is autocast, as in the training.
    device : str or torch.device, optional
        By default the GPU if there is one.
    batch_size, repeats : int
    with_loading : bool
        Also measure weaver's data loader.
    **options
        Of the network.

    Returns
    -------
    ProfileReport

    Raises
    ------
    UserError
        If a file is absent or damaged, the checkpoint does not fit, there are no jets, or a
        configuration is not possible.
    """
    configurations.check_names(names, trains)
    torch.manual_seed(0)
    if checkpoint is None:
        tagger = untrained(network, data_config, device, **options)
    else:
        tagger = load(network, checkpoint, data_config, device, **options)
    jets, notes = read_batch(tagger, files, batch_size)
    if checkpoint is None:
        notes.append("The weights are random.")

    def rebuild(**changes):
        module = repository.network_module(network)
        try:
            return module.get_model(tagger.data_config, **(options | changes))[0]
        except ValueError as error:
            raise UserError(str(error)) from error

    def calibration(count):
        return _inputs(tagger, read_batch(tagger, files, count)[0])

    inputs, labels = _inputs(tagger, jets), _labels(tagger, jets)
    steps = {}
    for mode in (TRAINING, INFERENCE) if trains else (INFERENCE,):
        for name in names:
            model = configurations.configure(name, tagger.model, rebuild, calibration)
            bf16 = precision == "bf16" and name not in configurations.INFERENCE_ONLY
            steps[name, mode] = Step(model, inputs, labels if mode == TRAINING else None, bf16)
    runs = run_all(steps, repeats)
    found = None
    if with_loading:
        found = loading.measure(files, repository.data_config(data_config), len(jets))
    about = {
        "network": str(network),
        "data": [str(path) for path in files],
        "jets": len(jets),
        "machine": machine_stamp(tagger.device),
        "fastest": choices.known(tagger.device),
    }
    return ProfileReport(about, runs, found, notes)


def read_batch(tagger, files, count):
    """Read jets, as many of each file.

    Parameters
    ----------
    tagger : jetzoo.tagger.Tagger
    files : sequence of str or Path
    count : int

    Returns
    -------
    jets : ak.Array of records
    notes : list of str
        A sentence if there are fewer.

    Raises
    ------
    UserError
        If there are no jets, or a file cannot be read.
    """
    treename = tagger.data_config.treename
    files = [path for path in files if describe(path, treename)[1]]
    if not files:
        raise UserError("There are no jets in the files.")
    share = math.ceil(count / len(files))
    parts = [read_jets(tagger, [path], share) for path in files]
    common = set.intersection(*(set(part.fields) for part in parts))
    jets = ak.concatenate([part[sorted(common)] for part in parts])[:count]
    notes = []
    if len(jets) < count:
        notes.append(f"The files have {len(jets)} jets, fewer than a batch of {count}.")
    return jets, notes


def _inputs(tagger, jets):
    return [torch.from_numpy(x).to(tagger.device) for x in tagger.inputs(jets).values()]


def _labels(tagger, jets):
    """True classes or targets; if the jets have none, every class in turn (B,) or zeros."""
    labels = true_labels(tagger, jets)
    if labels is None and tagger.is_regression:
        labels = torch.zeros(len(jets), len(tagger.classes))
    elif labels is None:
        labels = [index % len(tagger.classes) for index in range(len(jets))]
    return torch.as_tensor(labels, device=tagger.device)
