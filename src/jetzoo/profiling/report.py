"""The profile of one network in some configurations, written to a folder and to one page."""

import contextlib
import html
import json
import math
import time
from dataclasses import asdict, dataclass

import awkward as ak
import torch
from tqdm import tqdm

from jetzoo import UserError, repository, tables
from jetzoo import page as pages
from jetzoo.jets import read_jets, true_labels
from jetzoo.tagger import load, untrained

from . import configurations, figures, loading
from .modules import NETWORK, PARTS, STEP, Step, Timer, Trace, single_thread, tally, trace
from .rows import Row, merge, seconds_by
from .timers import Limits, machine_limits, machine_stamp, median_and_spread, synchronize

SAMPLE = repository.sample_jets()
DATA_CONFIG = "QuarkGluon/qg_kin"

INFERENCE, TRAINING = "inference", "training step"
WARM_UP = 2
LINES = 16  # of the table in the terminal
SMALLEST = 0.0005  # of the time, of a row of a table

COLUMNS = (
    "module",
    "type",
    "calls",
    "time [ms]",
    "share",
    "GFLOP",
    "MB moved",
    "FLOP/byte",
    "GFLOP/s",
    "GB/s",
    "bound by",
    "of the bound",
)
# Those that a terminal of 80 columns has room for.
TERMINAL = ("module", "time [ms]", "share", "FLOP/byte", "GFLOP/s", "GB/s", "bound by")


@dataclass
class Run:
    """One configuration in one mode.

    Attributes
    ----------
    name, mode : str
    bf16 : bool
        Under autocast.
    num_jets : int
        Of the batch.
    seconds, spread : float
        Of one call, without hooks: median and interquartile range over it.
    hooked : float
        Time with the hooks over the time without, of the fastest calls.
    rows : list of Row
    trace : Trace
    limits : Limits
    """

    name: str
    mode: str
    bf16: bool
    num_jets: int
    seconds: float
    spread: float
    hooked: float
    rows: list
    trace: Trace
    limits: Limits

    @property
    def jets_per_second(self):
        """Median."""
        return self.num_jets / self.seconds

    @property
    def peak(self):
        """Bytes that the call holds, or None where kernels outside of PyTorch do most of it."""
        outside = sum(row.seconds for row in self.rows if row.fused)
        return None if outside > 0.1 * self.seconds else self.trace.peak

    @property
    def label(self):
        """Name, and the precision if it is a choice."""
        return f"{self.name}, bf16" if self.bf16 else self.name

    @property
    def title(self):
        """Label and mode."""
        return f"{self.label}, {self.mode}"

    @property
    def key(self):
        """For names of files."""
        return f"{self.label}_{self.mode}".replace(", ", "_").replace(" ", "_")


@dataclass
class Report:
    """The result of :func:`profile`."""

    about: dict
    runs: list
    loading: loading.Loading | None
    notes: list

    def write(self, folder):
        """Write figures (PNG, PDF), tables (CSV, JSON), Chrome traces and ``index.html``.

        Returns
        -------
        list of Path
        """
        panels = self.panels()
        contents = pages.draw([panel for group in panels.values() for panel in group])
        contents["modules.csv"] = pages.csv_text(self.module_rows())
        contents["comparison.csv"] = pages.csv_text(self.kind_rows())
        if self.loading:
            contents["loading.csv"] = pages.csv_text(self.loading_rows())
        contents["profile.json"] = json.dumps(self.summary(), indent=2) + "\n"
        for run in self.runs:
            contents[f"trace_{run.key}.json.gz"] = run.trace.chrome
        contents["index.html"] = self.page(panels, contents)
        return pages.write(folder, contents)

    def panels(self):
        """Figures: by run, and under None those of all runs."""
        colours = figures.kind_colours(self.runs)
        panels = {
            None: [
                pages.Panel(
                    "comparison",
                    "Time by kind of layer",
                    "Time per jet, and how many times faster than the first. Norms belong to what "
                    "follows them.",
                    figures.comparison(self.runs, colours),
                )
            ]
        }
        if self.loading:
            panels[None].append(
                pages.Panel(
                    "loading",
                    "Data loading",
                    " ".join(self.loading_sentences())
                    + " The workers of the loader compete with the network for the cores of a CPU.",
                    figures.loading(self.loading, self.runs),
                )
            )
        for run in self.runs:
            counted = sum(row.seconds for row in run.rows if row.flops and row.bytes_moved)
            total = sum(row.seconds for row in run.rows)
            panels[run.key] = [
                pages.Panel(
                    f"layers_{run.key}",
                    f"Time by layer: {run.title}",
                    "Each layer with what is within it, by the class of the module that does it; "
                    "forward and backward together.",
                    figures.layers(run),
                ),
                pages.Panel(
                    f"roofline_{run.key}",
                    f"Roofline: {run.title}",
                    "What the modules achieve themselves, under the limits of the machine; the "
                    "area grows with the time. FLOPs are those of matrix products, convolutions "
                    f"and attention; modules that do any have {100 * counted / total:.0f}% of the "
                    "time. Bytes are the inputs and outputs of every operation: where these stay "
                    "in the cache, a point may stand above the line of the memory."
                    + (" The product is one of float32." if run.name == "int8" else ""),
                    figures.roofline(run, colours),
                ),
                pages.Panel(
                    f"memory_{run.key}",
                    f"Memory: {run.title}",
                    "What the tensors of one call hold, beyond weights and inputs; on top, the "
                    "layer at work. Taken under PyTorch's profiler, which makes the call slower; "
                    "the scratch space of kernels outside of PyTorch is not seen.",
                    figures.memory(run, colours),
                ),
            ]
        return panels

    def module_rows(self):
        """Every module of every run, as flat dicts."""
        return [
            {
                "configuration": run.label,
                "mode": run.mode,
                "module": row.module,
                "type": row.type,
                "kind": row.kind,
                "calls": row.calls,
                "milliseconds": _digits(1e3 * row.seconds),
                "share": _digits(row.seconds / sum(r.seconds for r in run.rows)),
                "forward_milliseconds": _digits(1e3 * row.forward_seconds),
                "backward_milliseconds": _digits(1e3 * row.backward_seconds),
                "forward_milliseconds_with_inner": _digits(1e3 * row.inclusive_seconds),
                "flops": row.flops,
                "bytes_moved": row.bytes_moved,
                "operations": row.operations,
                "flops_with_inner": sum(r.flops for r in _within(run, row)),
                "bytes_moved_with_inner": sum(r.bytes_moved for r in _within(run, row)),
                "flops_per_byte": _digits(row.intensity),
                "flops_per_second": _digits(row.flops / row.seconds if row.seconds else None),
                "bytes_per_second": _digits(row.bytes_moved / row.seconds if row.seconds else None),
                "bound": row.bound(run.limits)[0],
                "of_the_bound": _digits(row.bound(run.limits)[1]),
            }
            for run in self.runs
            for row in run.rows
        ]

    def kind_rows(self):
        """Time by kind of layer of every run, as flat dicts."""
        rows = []
        for run in self.runs:
            kinds = seconds_by(run.rows, "kind")
            for kind, seconds in kinds.items():
                share = seconds / sum(kinds.values())
                rows.append(
                    {
                        "configuration": run.label,
                        "mode": run.mode,
                        "jets": run.num_jets,
                        "kind": kind,
                        "microseconds_per_jet": _digits(1e6 * share / run.jets_per_second),
                        "share": _digits(share),
                        "jets_per_second": _digits(run.jets_per_second),
                        "times_first": _digits(self.first(run).seconds / run.seconds),
                        **self.about["machine"],
                    }
                )
        return rows

    def loading_rows(self):
        """Rates of the loader, as flat dicts."""
        return [
            {
                "files": loading.KINDS[in_memory],
                "workers": workers,
                "jets_per_second": _digits(rate),
            }
            for (in_memory, workers), rate in self.loading.rates.items()
        ]

    def loading_sentences(self):
        """What is the bottleneck in each run."""
        return [
            self.loading.sentence(
                f"the {run.mode} of {run.label}",
                run.jets_per_second,
                in_memory=run.mode == TRAINING,
            )
            for run in self.runs
        ]

    def first(self, run):
        """The first run of the same mode."""
        return next(other for other in self.runs if other.mode == run.mode)

    def summary(self):
        """What ``profile.json`` holds."""
        return {
            **self.about,
            "notes": self.notes,
            "runs": [
                {
                    "configuration": run.label,
                    "mode": run.mode,
                    "jets": run.num_jets,
                    "milliseconds": _digits(1e3 * run.seconds),
                    "spread": _digits(run.spread),
                    "jets_per_second": _digits(run.jets_per_second),
                    "times_first": _digits(self.first(run).seconds / run.seconds),
                    "time_with_hooks": _digits(run.hooked),
                    "flops": sum(row.flops for row in run.rows),
                    "bytes_moved": sum(row.bytes_moved for row in run.rows),
                    "peak_memory_bytes": run.peak,
                    "limits": {name: _digits(x) for name, x in asdict(run.limits).items()},
                }
                for run in self.runs
            ],
            "loading": self.loading and self.loading_rows(),
        }

    def overview(self):
        """One line for each run, and their header."""
        header = ("configuration", "mode", "ms", "jets/s", "times", "GFLOP", "MB moved", "peak MiB")
        return header, [
            (
                run.label,
                run.mode,
                _short(1e3 * run.seconds),
                f"{run.jets_per_second:,.0f}",
                f"{self.first(run).seconds / run.seconds:.2f}",
                _short(sum(row.flops for row in run.rows) / 1e9),
                _short(sum(row.bytes_moved for row in run.rows) / 1e6),
                "–" if run.peak is None else _short(run.peak / 2**20),
            )
            for run in self.runs
        ]

    def tables(self):
        """Overview and modules as tables for the terminal.

        Returns
        -------
        list of rich.table.Table
        """
        from rich.table import Table

        header, lines = self.overview()
        overview = Table(*header)
        for line in lines:
            overview.add_row(*line)
        found = [overview]
        columns = [COLUMNS.index(name) for name in TERMINAL]
        for run in self.runs:
            lines = table_lines(run)
            found.append(Table(*TERMINAL, title=run.title))
            for line in lines[:LINES]:
                found[-1].add_row(*(line[column] for column in columns))
            found[-1].caption = "smaller ones are in index.html and modules.csv"
        return found

    def page(self, panels, contents):
        """HTML of the report."""
        about = self.about
        title = f"Profile of {about['network']}"
        machine = ", ".join(f"{key} {value}" for key, value in about["machine"].items())
        header, lines = self.overview()
        body = [f"<p>{html.escape(text)}</p>" for text in (machine, *self.notes)]
        body += ["<h2>Overview</h2>", pages.table(lines, header)]
        body += [pages.figure(panel, contents) for panel in panels[None]]
        for run in self.runs:
            limits = run.limits
            body.append(f"<h2>Modules: {html.escape(run.title)}</h2>")
            body.append(
                f"<p>Repeated layers are added up (*); {run.num_jets} jets. What took less than "
                f"{SMALLEST:.2%} of the time is in modules.csv. The time of a module "
                "is without the modules within it. It is at least the FLOPs over "
                f"{limits.flops / 1e9:.3g} GFLOP/s, the bytes over {limits.memory / 1e9:.3g} GB/s "
                f"(from the cache {limits.cache / 1e9:.3g} GB/s) and {1e6 * limits.call:.2g} µs "
                "for every operation, measured on this machine; the largest of the three names the "
                "bound. Elementwise operations count no FLOPs. The hooks made the call "
                f"{run.hooked:.2f} times as long. <a href='trace_{run.key}.json.gz'>Chrome "
                "trace</a> for ui.perfetto.dev.</p>"
            )
            body.append(pages.table(table_lines(run), COLUMNS))
            body += [pages.figure(panel, contents) for panel in panels[run.key]]
        return pages.page(title, body)


def _digits(x):
    """Four significant digits; None stays None."""
    return None if x is None else float(f"{x:.4g}")


def _within(run, row):
    if row.module == NETWORK:
        return [r for r in run.rows if r.module not in (*PARTS, STEP)]
    inner = f"{row.module}."
    return [r for r in run.rows if r is row or r.module.startswith(inner)]


def _short(x):
    """Three digits without an exponent."""
    if 0 < x < 1e-3:
        return "<0.001"
    return f"{x:,.0f}" if x >= 1000 else f"{x:.3g}"


def table_lines(run):
    """Merged rows as text, in the order of ``COLUMNS``; the smallest ones are left out."""
    total = sum(row.seconds for row in run.rows)
    lines = []
    for row in merge(run.rows):
        if row.seconds < SMALLEST * total:
            break
        verdict, share = row.bound(run.limits)
        rate = 1e-9 / row.seconds
        lines.append(
            (
                row.short,
                row.type,
                f"{row.calls}",
                _short(1e3 * row.seconds),
                f"{100 * row.seconds / total:.1f}%",
                _short(row.flops / 1e9),
                _short(row.bytes_moved / 1e6),
                "–" if row.intensity is None else _short(row.intensity),
                _short(rate * row.flops),
                _short(rate * row.bytes_moved),
                verdict.removesuffix("-bound") or "–",
                f"{100 * share:.0f}%" if verdict else "–",
            )
        )
    return lines


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
        Configurations to put side by side, of :data:`configurations.CONFIGURATIONS`.
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
    Report

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
    inputs = _inputs(tagger, jets)
    labels = true_labels(tagger, jets)
    if labels is None:
        labels = [index % len(tagger.classes) for index in range(len(jets))]
    labels = torch.as_tensor(labels, device=tagger.device)

    def rebuild(**changes):
        try:
            return repository.network_module(network).get_model(
                tagger.data_config, **(options | changes)
            )[0]
        except ValueError as error:
            raise UserError(str(error)) from error

    def calibration(count):
        return _inputs(tagger, read_batch(tagger, files, count)[0])

    steps = {}
    for mode in (TRAINING, INFERENCE) if trains else (INFERENCE,):
        for name in names:
            model = configurations.configure(name, tagger.model, rebuild, calibration)
            bf16 = precision == "bf16" and name not in configurations.INFERENCE_ONLY
            steps[name, mode] = Step(model, inputs, labels if mode == TRAINING else None, bf16)
    measured = measure(steps, repeats)
    dtypes = {key: _dtype(step, *key) for key, step in steps.items()}
    limits = {dtype: machine_limits(tagger.device, dtype) for dtype in set(dtypes.values())}
    runs = []
    for (name, mode), step in tqdm(steps.items(), desc="count and trace", leave=False):
        plain, timers = measured[name, mode]
        seconds, spread = median_and_spread(plain)
        # The profiler does not look into the threads of an engine.
        threaded = any(timer.spans for timer in timers)
        with single_thread() if threaded else contextlib.nullcontext():
            traced = trace(step)
        runs.append(
            Run(
                name=name,
                mode=mode,
                bf16=step.bf16,
                num_jets=len(jets),
                seconds=seconds,
                spread=spread,
                hooked=min(timer.seconds for timer in timers) / min(plain),
                rows=make_rows(timers, tally(step)),
                trace=traced,
                limits=limits[dtypes[name, mode]],
            )
        )
    found = None
    if with_loading:
        path = repository.data_config(data_config)
        found = loading.measure(files, path, len(jets))
    about = {
        "network": str(network),
        "data": [str(path) for path in files],
        "jets": len(jets),
        "machine": machine_stamp(tagger.device),
    }
    return Report(about, runs, found, notes)


def read_batch(tagger, files, count):
    """So many jets, of all files alike, and notes on what is not as asked for.

    Raises
    ------
    UserError
        If there are no jets, or a file cannot be read.
    """
    treename = tagger.data_config.treename
    files = [path for path in files if tables.describe(path, treename)[1]]
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


def _dtype(step, name, mode):
    return torch.bfloat16 if step.bf16 or name == "bf16" else torch.float32


def measure(steps, repeats):
    """Time steps against each other, each without hooks and with them in turn.

    Parameters
    ----------
    steps : dict of (str, str) to Step
    repeats : int

    Returns
    -------
    dict of (str, str) to (list of float, list of Timer)
    """
    for (name, _), step in tqdm(steps.items(), desc="warm up", leave=False):
        try:
            for _ in range(configurations.TRIMMER if name == "padded" else WARM_UP):
                step()
        except (ValueError, ImportError, RuntimeError) as error:
            reason = str(error).strip().split("\n")[0].rstrip(".")
            raise UserError(f"{name} cannot run on {step.device}: {reason}.") from error
    measured = {key: ([], []) for key in steps}
    for _ in tqdm(range(repeats), desc="time", leave=False):
        for key, step in steps.items():
            plain, timers = measured[key]
            synchronize(step.device)
            start = time.perf_counter()
            step()
            synchronize(step.device)
            plain.append(time.perf_counter() - start)
            timers.append(Timer(step))
            with timers[-1] as timer:
                step(timer)
    return measured


def works_outside(module):
    """Whether a module works outside of PyTorch; it may tell what it does, see :class:`Tally`."""
    return type(module).__module__.startswith("jetzoo.native") or hasattr(module, "stage_seconds")


def make_rows(timers, counted):
    """Rows of a run: the times of the fastest call, which add up to the time it took, and counts.

    Parameters
    ----------
    timers : list of Timer
    counted : Tally

    Returns
    -------
    list of Row
        In the order of the network; what belongs to no module comes last.
    """
    best = min(timers, key=lambda timer: timer.seconds)
    types = {name: type(module).__name__ for name, module in counted.modules}
    outside = {name for name, module in counted.modules if works_outside(module)}
    order = {name: index for index, name in enumerate(types)}

    def parent(name):
        while name not in (NETWORK, ""):
            name = name.rpartition(".")[0]
            if name in types:
                return name
        return NETWORK

    rows = {}
    for name in dict.fromkeys([*types, *best.forward, *best.backward, *counted.operations]):
        stage = name not in types and parent(name) in outside
        rows[name] = Row(
            name,
            "stage" if stage else types.get(name, ""),
            best.calls[name],
            best.forward.get(name, 0.0),
            best.backward.get(name, 0.0),
            best.total.get(name, 0.0),
            fused=stage or name in outside,
        )
    for name in rows:
        # A network may take another way while its operations are counted, where a kernel outside
        # of PyTorch does the work of several modules: that belongs to the module that called it.
        doer = name
        while name not in PARTS and doer != NETWORK and not rows[doer].calls:
            doer = parent(doer)
        rows[doer].flops += counted.flops[name]
        rows[doer].bytes_moved += counted.bytes_moved[name]
        rows[doer].operations += counted.operations[name]
    rows = sorted(
        (row for row in rows.values() if row.seconds or row.flops or row.bytes_moved),
        key=lambda row: (
            row.module in PARTS,
            order.get(row.module, order.get(parent(row.module), 0)),
        ),
    )
    rest = best.seconds - sum(row.seconds for row in rows)
    rows.append(Row(STEP, "Python", forward_seconds=max(rest, 0.0)))
    return rows
