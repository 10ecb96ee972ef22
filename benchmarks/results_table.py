"""Measure what `train_zoo.py` trained; write CSVs, figures and the tables of README and docs.

    python benchmarks/results_table.py quarkgluon-kin          # CSV and figures
    python benchmarks/results_table.py --markdown              # print the tables of all CSVs
    python benchmarks/results_table.py --markdown docs/results.md README.md

The last line puts the tables between the marks in these files (``<!-- zoo tables -->`` and ``<!--
end of zoo tables -->``, for one), from the CSVs alone. Writes ``results/zoo_SET.csv`` beside this
file, one row per model, and ``figures/zoo_SET_{learning,roc}.{png,pdf}``. Quality: the test jets of
the training, and the published jets of the folder ``JETZOO_REAL_DATA`` where it has some of the
data set. Speed: weaver-core's own network (of ParT and PN), the network as it is, the fast engine
and int8, one call of each in turn on the same jets.
"""

import contextlib
import json
import statistics
import sys
import tempfile
from argparse import ArgumentTypeError
from pathlib import Path

import awkward as ak
import numpy as np
import torch
from common import (
    argument_parser,
    median_ratio,
    published_file,
    save_figure,
    warm_up,
    weaver_network,
    write_csv,
)
from results_figures import learning_figure, roc_figure
from results_markdown import LENGTHS, fill, zoo_tables
from tqdm import tqdm
from train_zoo import OUT, SETS, data_files

import jetzoo
from jetzoo import UserError, profiling, tables
from jetzoo.int8 import file as int8_file
from jetzoo.int8.calibration import CALIBRATION_JETS
from jetzoo.metrics.numbers import evaluate
from jetzoo.metrics.predictions import read_predictions
from jetzoo.models import CONFIGS

SPEED_JETS = 256


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
    """Name of the data config of a run."""
    return f"{run['dataset']}/{CONFIGS[run['dataset']]}_{run['features']}"


def load(run, fast=False):
    """The trained network of a run, as a tagger."""
    return jetzoo.load(run["model"], run["folder"] / "net.pt", data_config(run), "cpu", fast)


def sample(network, files, count, seed=1):
    """The four inputs of some of the jets of files, drawn at random; as many as there are."""
    tree = network.data_config.treename
    jets = ak.concatenate([tables.read(file, network.branches, tree) for file in files])
    chosen = np.random.default_rng(seed).permutation(len(jets))[:count]
    return tuple(torch.from_numpy(x) for x in network.inputs(jets[chosen]).values())


def test(network, files):
    """Metrics of a tagger on labelled jets."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "scores.root"
        jetzoo.predict_files(network, files, output, batch_size=1024)
        return evaluate(*read_predictions([output]))


def real_metrics(run):
    """Metrics on the published jets, or None where there are none with these features."""
    file = published_file(run["dataset"])
    if not file.is_file():
        return None
    network = load(run, fast=True)
    if not network.branches <= set(tables.describe(file)[0]):
        return None
    return test(network, [file])


def quality(metrics, prefix=""):
    """Columns of the metrics of one or several trainings: mean, binomial error, spread.

    Parameters
    ----------
    metrics : list of dict
        Of :func:`jetzoo.metrics.numbers.evaluate`, one per seed.
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


def cost(network):
    """Parameters, and millions of floating point operations per jet of each of ``LENGTHS``."""
    model = network.model.requires_grad_(False)
    columns = {"parameters": sum(p.numel() for p in model.parameters())}
    generator = torch.Generator().manual_seed(1)
    for length in LENGTHS:
        momentum = torch.randn(1, 3, length, generator=generator)
        vectors = torch.cat((momentum, momentum.norm(dim=1, keepdim=True)), 1)
        features = len(network.data_config.input_dicts["pf_features"])
        shapes = {"points": (1, 2, length), "features": (1, features, length)}
        points, features = (torch.randn(s, generator=generator) for s in shapes.values())
        jet = (points, features, vectors, torch.ones(1, 1, length))
        columns[f"mflop_{length}"] = profiling.flops(lambda jet=jet: model(*jet)) / 1e6
    return columns


def file_sizes(run, config, engine):
    """Megabytes of the weights as weaver writes them and of the int8 file, and their ratio."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "int8.pt"
        int8_file.save(engine, path, run["model"], config)
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
        network, files = load(run), data_files(run["folder"] / "train.log")
        jets = sample(network, files["test"], SPEED_JETS)
        counts[model] = len(jets[0])
        calibration = sample(network, files["val"], CALIBRATION_JETS)
        engines[model] = jetzoo.accelerate(network.model, "int8", calibration=calibration)
        forms = {
            "stock": torch.no_grad()(network.model),
            "fast": jetzoo.accelerate(network.model),
            "int8": engines[model],
        }
        with contextlib.suppress(UserError):
            forms["weaver"] = torch.no_grad()(weaver_network(network.model))
            warm_up(forms["weaver"], jets)
        for kind, form in forms.items():
            calls[model, kind] = lambda form=form, jets=jets: form(*jets)
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
                ratio = median_ratio(seconds[model, other], seconds[model, one])
                columns[model][f"{one}_over_{other}"] = ratio
    return columns, engines


def measure(name, out, repeats):
    """All columns of a set; see the module's text."""
    runs = read_runs(name, out)
    speed, engines = speeds(runs, repeats)
    rows = []
    for model, group in tqdm(runs.items(), desc="evaluate"):
        first = group[0]
        network = load(first)
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
        sizes = file_sizes(first, network.data_config, engines[model])
        row |= cost(network) | speed[model] | sizes
        network.model = engines[model]
        files = data_files(first["folder"] / "train.log")["test"]
        row |= quality([test(network, files)], "int8_")
        rows.append({**row, **profiling.machine_stamp()})
    return rows


def known_set(name):
    """Type of an argument: one of the sets of ``train_zoo.py``."""
    if name not in SETS:
        raise ArgumentTypeError(f"{name!r} is none of {', '.join(SETS)}")
    return name


def main(argv=None):
    """Run the command line; returns the exit code."""
    parser = argument_parser(__doc__, repeats=5)
    add = parser.add_argument
    add("sets", nargs="*", type=known_set, metavar="SET", help=", ".join(SETS))
    add("--out", type=Path, default=OUT, metavar="DIR", help="of train_zoo.py")
    add("--figures-only", action="store_true", help="measure nothing")
    add(
        "--markdown",
        nargs="*",
        type=Path,
        metavar="FILE",
        help="print the tables, or put them between the marks in files",
    )
    args = parser.parse_args(argv)
    try:
        for name in args.sets:
            runs = read_runs(name, args.out)
            if not args.figures_only:
                rows = measure(name, args.out, args.repeats)
                write_csv(args.results / f"zoo_{name}.csv", rows)
            for kind, figure in (("learning", learning_figure), ("roc", roc_figure)):
                save_figure(figure(runs), args.figures / f"zoo_{name}_{kind}")
        for path in args.markdown or ():
            fill(path, args.results)
        if args.markdown == []:
            print(zoo_tables(args.results))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
