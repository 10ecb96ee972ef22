"""Measure what `train_zoo.py` trained; write the CSVs, the figures and the tables of the README.

    python benchmarks/results_table.py quarkgluon-kin          # CSV and figures
    python benchmarks/results_table.py --markdown              # tables of all CSVs
    python benchmarks/results_table.py --markdown README.md    # between the marks in that file

Writes ``results/zoo_SET.csv`` beside this file, one row per model, and
``figures/zoo_SET_{learning,roc}.{png,pdf}``. Quality: the test jets of the training, and the
published jets of the folder ``JETZOO_REAL_DATA`` where it has some of the data set. Speed:
weaver-core's own network (of ParT and PN), the network as it is, the fast engine and int8, one call
of each in turn on the same jets.
"""

import argparse
import contextlib
import csv
import json
import math
import os
import re
import statistics
import sys
import tempfile
from pathlib import Path

import awkward as ak
import matplotlib as mpl
import numpy as np
import torch
from matplotlib.figure import Figure
from tqdm import tqdm
from train_zoo import FINE_TUNING, MODELS, OUT, ROOT, SETS, data_files

import jetzoo
from jetzoo import UserError, evaluate, profiling, quantization, tables, zoo
from jetzoo.models import CONFIGS
from jetzoo.profiling.configurations import TRIMMER, WeaverNetwork

RESULTS = Path(__file__).parent / "results"
FIGURES = ROOT / "figures"
REAL_FILES = {
    "QuarkGluon": "quarkgluon_1000.parquet",
    "TopLandscape": "toplandscape_1000.parquet",
}
LENGTHS = (45, 128)  # of a typical jet, and of the padded one
SPEED_JETS, CALIBRATION_JETS = 256, 512

COLORS = dict(zip(MODELS, evaluate.OKABE_ITO, strict=True))
COLORS |= {f"{model}-FineTune": COLORS[model] for model in ("ParT", "PN")}

MARKS = ("<!-- zoo tables -->", "<!-- end of zoo tables -->")


def read_runs(name, out):
    """The finished runs of a set by model, in the order of their seeds.

    Returns
    -------
    dict of str to list of dict
        The record of a run with its ``folder`` and ``metrics``.

    Raises
    ------
    UserError
        If there is none, or the budgets differ.
    """
    runs = {}
    for model in SETS[name].models:
        folders = sorted((Path(out) / name).glob(f"{model}-seed*"))
        found = [folder for folder in folders if (folder / "run.json").is_file()]
        for folder in found:
            record = json.loads((folder / "run.json").read_text())
            metrics = json.loads((folder / "metrics.json").read_text())
            runs.setdefault(model, []).append({**record, "folder": folder, "metrics": metrics})
    if not runs:
        raise UserError(f"There are no runs in {Path(out) / name}: train_zoo.py {name} makes them.")
    if len({json.dumps(run["budget"]) for group in runs.values() for run in group}) > 1:
        raise UserError(f"The runs in {Path(out) / name} have different budgets.")
    return runs


def data_config(run):
    return f"{run['dataset']}/{CONFIGS[run['dataset']]}_{run['features']}"


def load(run, fast=False):
    return jetzoo.load(run["model"], run["folder"] / "net.pt", data_config(run), "cpu", fast)


def sample(tagger, files, count, seed=1):
    """The four inputs of some of the jets of files, drawn at random; as many as there are."""
    tree = tagger.data_config.treename
    jets = ak.concatenate([tables.read(file, tagger.branches, tree) for file in files])
    chosen = np.random.default_rng(seed).permutation(len(jets))[:count]
    return tuple(torch.from_numpy(x) for x in tagger.inputs(jets[chosen]).values())


def test(tagger, files):
    """Metrics of a tagger on labelled jets."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "scores.root"
        zoo.predict_files(tagger, files, output, batch_size=1024)
        return evaluate.evaluate(*evaluate.read_predictions([output]))


def real_metrics(run):
    """Metrics on the published jets, or None where there are none with these features."""
    folder = Path(os.environ.get("JETZOO_REAL_DATA", ROOT.parent / "shared" / "real"))
    file = folder / REAL_FILES.get(run["dataset"], "none")
    if not file.is_file():
        return None
    tagger = load(run, fast=True)
    if not tagger.branches <= set(tables.describe(file)[0]):
        return None
    return test(tagger, [file])


def quality(metrics, prefix=""):
    """Columns of the metrics of one or several trainings: mean, binomial error, spread.

    Parameters
    ----------
    metrics : list of dict
        Of :func:`jetzoo.evaluate.evaluate`, one per seed.
    prefix : str
        Of the names of the columns.

    Returns
    -------
    dict of str to float or str
        ``accuracy``, ``auc`` and ``rejection_SIGNAL_EFFICIENCY``, each with ``_error``
        (statistical, of one training; not of the AUC) and ``_spread`` (standard deviation over
        seeds). A rejection is a limit, ``> 268``, where in a training no background jet passed.
    """
    measured = {
        "accuracy": [(m["accuracy"], m["accuracy_error"]) for m in metrics],
        "auc": [(m["auc"], None) for m in metrics],
    }
    limited = set()
    for rows in zip(*(m["rejections"] for m in metrics), strict=True):
        signal = rows[0]["signal"].removeprefix("label_").removeprefix("jet_is")
        name = f"rejection_{signal}_{100 * rows[0]['signal_efficiency']:g}"
        measured[name] = [(row["rejection"] or row["lower_limit"], row["error"]) for row in rows]
        if any(row["lower_limit"] for row in rows):
            limited.add(name)
    columns = {}
    for name, pairs in measured.items():
        values, errors = zip(*pairs, strict=True)
        columns[prefix + name] = statistics.mean(values)
        if name in limited:
            columns[prefix + name] = f"> {columns[prefix + name]:.0f}"
            continue
        if None not in errors:
            columns[f"{prefix}{name}_error"] = statistics.mean(errors)
        if len(values) > 1:
            columns[f"{prefix}{name}_spread"] = statistics.stdev(values)
    return columns


def cost(tagger):
    """Parameters, and millions of floating point operations per jet of each of ``LENGTHS``."""
    model = tagger.model.requires_grad_(False)
    columns = {"parameters": sum(p.numel() for p in model.parameters())}
    generator = torch.Generator().manual_seed(1)
    for length in LENGTHS:
        momentum = torch.randn(1, 3, length, generator=generator)
        vectors = torch.cat((momentum, momentum.norm(dim=1, keepdim=True)), 1)
        features = len(tagger.data_config.input_dicts["pf_features"])
        shapes = {"points": (1, 2, length), "features": (1, features, length)}
        points, features = (torch.randn(s, generator=generator) for s in shapes.values())
        jet = (points, features, vectors, torch.ones(1, 1, length))
        columns[f"mflop_{length}"] = profiling.flops(lambda jet=jet: model(*jet)) / 1e6
    return columns


def file_sizes(run, tagger, engine):
    """Megabytes of the weights as weaver writes them and of the int8 file, and their ratio."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "int8.pt"
        quantization.save(engine, path, run["model"], tagger.data_config)
        sizes = [file.stat().st_size / 1e6 for file in (run["folder"] / "net.pt", path)]
    return {"megabytes": sizes[0], "int8_megabytes": sizes[1], "times_smaller": sizes[0] / sizes[1]}


def speeds(runs, repeats):
    """Jets per second of all models of a set, all in one run.

    Returns
    -------
    dict of str to dict
        By model: ``jets_per_second_{weaver,stock,fast,int8}`` and the median ratios
        ``fast_over_weaver``, ``fast_over_stock``, ``int8_over_fast``; those of weaver-core where
        it has the network.
    engines : dict of str to nn.Module
        The int8 networks.
    """
    calls, counts, engines = {}, {}, {}
    for model, (run, *_) in tqdm(runs.items(), desc="prepare"):
        tagger, files = load(run), data_files(run["folder"] / "train.log")
        jets = sample(tagger, files["test"], SPEED_JETS)
        counts[model] = len(jets[0])
        engines[model] = jetzoo.accelerate(
            tagger.model, "int8", calibration=sample(tagger, files["val"], CALIBRATION_JETS)
        )
        networks = {
            "stock": torch.no_grad()(tagger.model),
            "fast": jetzoo.accelerate(tagger.model),
            "int8": engines[model],
        }
        for kind, network in networks.items():
            calls[model, kind] = lambda network=network, jets=jets: network(*jets)
        with contextlib.suppress(UserError):
            weaver = torch.no_grad()(WeaverNetwork(tagger.model).eval())
            calls[model, "weaver"] = lambda network=weaver, jets=jets: network(*jets)
            for _ in range(TRIMMER):
                calls[model, "weaver"]()
    print(f"timing {len(calls)} networks, {repeats} times each", flush=True)
    seconds = profiling.interleaved(calls, repeats)
    columns = {}
    for model in runs:
        columns[model] = {
            f"jets_per_second_{kind}": counts[model] / statistics.median(seconds[model, kind])
            for kind in ("weaver", "stock", "fast", "int8")
            if (model, kind) in seconds
        }
        for one, other in (("fast", "weaver"), ("fast", "stock"), ("int8", "fast")):
            if (model, other) in seconds:
                ratios = [
                    b / a for a, b in zip(seconds[model, one], seconds[model, other], strict=True)
                ]
                columns[model][f"{one}_over_{other}"] = statistics.median(ratios)
    return columns, engines


def measure(name, out, repeats):
    """All columns of a set; see the module's text."""
    runs = read_runs(name, out)
    speed, engines = speeds(runs, repeats)
    rows = []
    for model, group in tqdm(runs.items(), desc="evaluate"):
        first = group[0]
        tagger = load(first)
        row = {
            "set": name,
            "model": model,
            "seeds": len(group),
            "training_jets": first["jets"]["train"],
            "jets_seen": first["budget"]["epochs"] * first["budget"]["samples"],
            "minutes": statistics.mean(run["seconds"] for run in group) / 60,
            **quality([run["metrics"] for run in group]),
        }
        real = [real_metrics(run) for run in group]
        if None not in real:
            row |= quality(real, "real_")
        row |= cost(tagger) | speed[model] | file_sizes(first, tagger, engines[model])
        tagger.model = engines[model]
        files = data_files(first["folder"] / "train.log")["test"]
        row |= quality([test(tagger, files)], "int8_")
        rows.append({**row, **profiling.machine_stamp()})
    return rows


def write_csv(path, rows):
    names = list(dict.fromkeys(name for row in rows for name in row))
    with tables.atomic(path) as partial, open(partial, "w", newline="") as file:
        writer = csv.DictWriter(file, names, restval="")
        writer.writeheader()
        for row in rows:
            writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})


def read_csv(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def per_epoch(run, pattern):
    """What weaver logged after each epoch: the number that follows ``pattern``."""
    log = (run["folder"] / "train.log").read_text()
    return [float(x) for x in re.findall(rf"{pattern}: ([\d.]+)", log)][: run["budget"]["epochs"]]


def learning_figure(runs):
    """Validation loss and accuracy against the jets seen; bands span the seeds."""
    shown = {"Validation loss": "Eval AvgLoss", "Validation accuracy": "Current validation metric"}
    with mpl.rc_context(evaluate.STYLE):
        figure = Figure(figsize=(9, 3.8), layout="constrained")
        for axes, (label, pattern) in zip(figure.subplots(1, 2), shown.items(), strict=True):
            for model, group in runs.items():
                curves = np.array([per_epoch(run, pattern) for run in group])  # (seeds, epochs)
                seen = group[0]["budget"]["samples"] * np.arange(1, curves.shape[1] + 1) / 1000
                (line,) = axes.plot(
                    seen, curves.mean(0), ".-", color=COLORS[model], linewidth=1.3, label=model
                )
                if len(group) > 1:
                    band = curves.min(0), curves.max(0)
                    axes.fill_between(seen, *band, color=line.get_color(), alpha=0.2, linewidth=0)
            axes.set(xlabel="Jets seen in training [thousands]", ylabel=label)
        axes.legend(loc="lower right", fontsize=10)
    return figure


def roc_figure(runs):
    """Background rejection against signal efficiency, a panel for each signal, a line per model."""
    lines = {}
    for model, (run, *_) in runs.items():
        labels, scores, classes = evaluate.read_predictions(
            sorted(run["folder"].glob("pred*.root"))
        )
        for signal, background, curve in evaluate.curves(labels, scores, classes):
            count = int((labels == background).sum())
            title = f"{evaluate.NAMES[classes[signal]]} vs {evaluate.NAMES[classes[background]]}"
            lines.setdefault(title, {})[model] = (*curve, count)
    efficiency = np.linspace(0, 1, 501)
    columns = min(3, len(lines))
    rows = math.ceil(len(lines) / columns)
    size = (5.5, 4.5) if len(lines) == 1 else (3.6 * columns, 3.2 * rows)
    with mpl.rc_context(evaluate.STYLE):
        figure = Figure(figsize=size, layout="constrained")
        panels = figure.subplots(rows, columns, squeeze=False, sharex=True).flat
        for axes, (title, curves) in zip(panels, lines.items(), strict=False):
            for model, (*curve, count) in curves.items():
                eps = np.interp(efficiency, *curve)
                eps[eps * count < evaluate.MIN_PASSING] = np.nan
                axes.plot(efficiency, 1 / eps, color=COLORS[model], label=model, linewidth=1.3)
            axes.set(xlim=(0, 1), yscale="log", title=title)
            axes.set_ylim(bottom=1)
        if len(lines) == 1:
            axes.legend()
        else:
            figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=7)
        figure.supxlabel(r"Signal efficiency $\varepsilon_S$", fontsize=14)
        figure.supylabel(r"Background rejection $1/\varepsilon_B$", fontsize=14)
    return figure


def write_figures(name, runs):
    for kind, figure in (("learning", learning_figure(runs)), ("roc", roc_figure(runs))):
        for suffix in ("png", "pdf"):
            path = FIGURES / f"zoo_{name}_{kind}.{suffix}"
            with tables.atomic(path) as partial:
                figure.savefig(partial, format=suffix, dpi=160)
            print(f"wrote {path.relative_to(ROOT)}")


def cell(row, name, digits):
    """``0.870 ± 0.003``: the spread over seeds where there are several, else the error."""
    value = row.get(name)
    if not value:
        return ""
    uncertainty = row.get(f"{name}_spread") or row.get(f"{name}_error")
    try:
        value = float(value)
    except ValueError:  # with a remark
        return value
    if digits is None:
        digits = 1 if value < 100 else 0
    text = f"{value:.{digits}f}"
    return f"{text} ± {float(uncertainty):.{digits}f}" if uncertainty else text


def quality_columns(rows, prefix=""):
    """Heading, column and digits of the metrics that a set has."""
    found = [("accuracy", "accuracy", 3), ("AUC", "auc", 4)]
    matches = [re.fullmatch(r"rejection_([A-Za-z0-9]+)_([\d.]+)", name) for name in rows[0]]
    matches = [match for match in matches if match]
    several = len({match[1] for match in matches}) > 1
    for match in matches:
        signal = f"{match[1]} " if several else ""
        found.append((f"{signal}rejection at {match[2]}%", match[0], None))
    return [(heading, prefix + name, digits) for heading, name, digits in found]


def markdown_table(rows, columns):
    lines = ["| model | " + " | ".join(heading for heading, *_ in columns) + " |"]
    lines.append("| --- |" + " ---: |" * len(columns))
    for row in rows:
        seeds = int(row.get("seeds") or 1)
        model = f"`{row['model']}`" + (f" ({seeds} seeds)" if seeds > 1 else "")
        cells = [cell(row, name, digits) for _, name, digits in columns]
        lines.append(f"| {model} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def markdown():
    """The tables of all sets, from their CSVs and ``published.csv``."""
    blocks = []
    for name, chosen in SETS.items():
        path = RESULTS / f"zoo_{name}.csv"
        if not path.exists():
            continue
        rows = read_csv(path)
        first = rows[0]
        seen, training = int(first["jets_seen"]), int(first["training_jets"])
        tuned = ", fine-tuned" if chosen.models == FINE_TUNING else ""
        blocks.append(
            f"**{chosen.dataset} {chosen.features}{tuned}, generated jets** "
            f"({training:,} to train, {seen:,} seen by every model; "
            f"`python benchmarks/train_zoo.py {name}`):"
        )
        blocks.append(markdown_table(rows, quality_columns(rows)))
        if first.get("real_auc"):
            blocks.append("The same networks on 1,000 published jets:")
            blocks.append(markdown_table(rows, quality_columns(rows, "real_")))
        for row in rows:
            row["seeds"] = 1  # the first one
            gain = float(row["int8_over_fast"])
            row["int8_gain"] = f"{gain:.2f}" + ("" if gain > 1 else ", no gain")
        columns = [
            ("parameters", "parameters", 0),
            *((f"MFLOP at {n}", f"mflop_{n}", 0) for n in LENGTHS),
            ("weaver [jets/s]", "jets_per_second_weaver", 0),
            ("stock", "jets_per_second_stock", 0),
            ("fast", "jets_per_second_fast", 0),
            ("fast over weaver", "fast_over_weaver", 1),
            ("int8", "jets_per_second_int8", 0),
            ("int8 over fast", "int8_gain", 2),
            ("times smaller", "times_smaller", 2),
            ("accuracy in int8", "int8_accuracy", 3),
            ("AUC", "int8_auc", 4),
        ]
        columns = [column for column in columns if any(row.get(column[1]) for row in rows)]
        blocks.append(markdown_table(rows, columns))
    blocks.append("**Published, on the published data sets** (not comparable with the above):")
    blocks.append(published_table(read_csv(RESULTS / "published.csv")))
    return "\n\n".join(blocks) + "\n"


def published_table(rows):
    columns = ("data set", "model", "accuracy", "AUC", "rejection at 50%", "at 30%", "source")
    lines = ["| " + " | ".join(columns) + " |", "| --- | --- |" + " ---: |" * 4 + " --- |"]
    lines += ["| " + " | ".join(row.values()) + " |" for row in rows]
    return "\n".join(lines)


def replace_between_marks(path, text):
    """Put the tables into a file, between the two comments that stand there."""
    old = path.read_text()
    start, end = MARKS
    if old.count(start) != 1 or old.count(end) != 1:
        raise UserError(f"{path} has no place for the tables: {start} and {end}, once each.")
    before, _, rest = old.partition(start)
    _, _, after = rest.partition(end)
    with tables.atomic(path) as partial:
        partial.write_text(f"{before}{start}\n\n{text}\n{end}{after}")


def known_set(name):
    if name not in SETS:
        raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(SETS)}")
    return name


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("sets", nargs="*", type=known_set, metavar="SET", help=", ".join(SETS))
    add("--out", type=Path, default=OUT, metavar="DIR", help="of train_zoo.py")
    add("--repeats", type=int, default=5, metavar="N", help="timed calls of each network")
    add("--figures-only", action="store_true")
    add("--markdown", nargs="?", const="-", metavar="FILE", help="print the tables, or put them in")
    args = parser.parse_args(argv)
    try:
        for name in args.sets:
            runs = read_runs(name, args.out)
            if not args.figures_only:
                path = RESULTS / f"zoo_{name}.csv"
                write_csv(path, measure(name, args.out, args.repeats))
                print(f"wrote {path.relative_to(ROOT)}")
            write_figures(name, runs)
        if args.markdown == "-":
            print(markdown())
        elif args.markdown:
            replace_between_marks(Path(args.markdown), markdown())
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
