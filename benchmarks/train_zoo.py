"""Train the networks of the zoo on a data set, one after the other, all with the same budget.

    python benchmarks/train_zoo.py quarkgluon-kin
    python benchmarks/train_zoo.py quarkgluon-kin --only ParT PN --seeds 1 2 3 --epochs 20
    python benchmarks/train_zoo.py jetclass-full quarkgluon-kinpid --dry-run

A run is one call of a train script, which takes its jets from where it always does
(``DATADIR_QuarkGluon`` ...). Its weights of the best epoch, metrics, predictions and log are copied
to ``training/zoo/SET/MODEL-seedN/``; a run that is there is not done again. The default budgets are
what two CPU cores manage in hours, a small part of the published trainings.
"""

import argparse
import ast
import glob
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from common import FINE_TUNE, ROOT, fine_tunings, networks
from tqdm import tqdm

from jetzoo import UserError, profiling, tables

OUT = ROOT / "training" / "zoo"

MODELS, FINE_TUNINGS = networks(), fine_tunings()
# Those that fine-tuning starts from.
PRETRAINED = tuple(name.removesuffix(FINE_TUNE) for name in FINE_TUNINGS)


@dataclass(frozen=True)
class Budget:
    """What every model of a set gets, in jets.

    Learning rates are those of the train scripts; they fall in the last 30% of the epochs, except
    in fine-tuning. With a single epoch they would fall from its beginning.
    """

    epochs: int = 10
    samples: int = 4_096
    samples_val: int = 2_048
    batch_size: int = 128


@dataclass(frozen=True)
class Set:
    """Trainings that share a table: the same jets, features and budget.

    Attributes
    ----------
    dataset, features : str
        As the train scripts take them.
    models : tuple of str
        In the order in which they are trained.
    repeated : tuple of str
        Models that are trained with the seeds 1, 2 and 3 instead of 1 alone.
    budget : Budget
    """

    dataset: str
    features: str
    models: tuple = MODELS
    repeated: tuple = ()
    budget: Budget = Budget()

    @property
    def fine_tuned(self):
        """Whether all networks start from pretrained weights."""
        return all(name in FINE_TUNINGS for name in self.models)


SHORT, LONG = Budget(epochs=5), Budget(epochs=30)
SETS = {
    "quarkgluon-kin": Set("QuarkGluon", "kin", repeated=("ParT", "PFN")),
    "jetclass-full": Set("JetClass", "full"),
    "toplandscape-kin": Set("TopLandscape", "kin", budget=SHORT),
    "quarkgluon-kinpid": Set("QuarkGluon", "kinpid", budget=SHORT),
    # The weights that fine-tuning starts from, after `jetzoo models --add`; below with the budgets
    # of the trainings from scratch.
    "jetclass-kin": Set("JetClass", "kin", PRETRAINED, budget=LONG),
    "jetclass-kinpid": Set("JetClass", "kinpid", PRETRAINED, budget=SHORT),
    "quarkgluon-finetune": Set("QuarkGluon", "kin", FINE_TUNINGS),
    "toplandscape-finetune": Set("TopLandscape", "kin", FINE_TUNINGS, budget=SHORT),
}


@dataclass(frozen=True)
class TrainingRun:
    """One training of a set."""

    name: str
    model: str
    seed: int
    budget: Budget

    @property
    def of(self):
        """The set."""
        return SETS[self.name]

    def folder(self, out):
        """Where the results of the run are collected."""
        return Path(out) / self.name / f"{self.model}-seed{self.seed}"

    def command(self):
        """The call of the train script, from the root of the repository."""
        budget = self.budget
        return [
            f"./train_{self.of.dataset}.sh",
            self.model,
            self.of.features,
            *("--num-epochs", str(budget.epochs)),
            *("--samples-per-epoch", str(budget.samples)),
            *("--samples-per-epoch-val", str(budget.samples_val)),
            *("--batch-size", str(budget.batch_size)),
            *("--network-option", "seed", str(self.seed)),
            *("--network-option", "fast", "True"),  # the same test scores, sooner
        ]


def plan(name, only=None, seeds=None, **changes):
    """The runs of a set: seed 1 of all models first, so that a table is there early.

    Parameters
    ----------
    name : str
        Key of ``SETS``.
    only : sequence of str, optional
        Models; all of the set by default.
    seeds : sequence of int, optional
        For every model; by default 1, and 1, 2 and 3 for those that the set repeats.
    **changes
        Of the budget; None leaves it as it is.

    Returns
    -------
    list of TrainingRun

    Raises
    ------
    UserError
        If the set does not have a model.
    """
    chosen = SETS[name]
    for model in only or ():
        if model not in chosen.models:
            raise UserError(f"{name} has no {model}; its models are {', '.join(chosen.models)}.")
    budget = replace(chosen.budget, **{k: v for k, v in changes.items() if v is not None})
    return [
        TrainingRun(name, model, seed, budget)
        for seed in seeds or (1, 2, 3)
        for model in only or chosen.models
        if seeds or seed == 1 or model in chosen.repeated
    ]


def finished(run, out):
    """Whether a run is complete; a run of another budget raises a :class:`jetzoo.UserError`."""
    path = run.folder(out) / "run.json"
    if not path.exists():
        return False
    record = json.loads(path.read_text())
    if record["budget"] != asdict(run.budget):
        raise UserError(
            f"{path.parent} was trained with another budget, {record['budget']}: "
            "take another --out, or remove it."
        )
    return True


def train(run, out, bar, threads):
    """Run the train script and collect what it wrote.

    Parameters
    ----------
    run : TrainingRun
    out : Path
    bar : tqdm.tqdm
        Advanced by one for each epoch.
    threads : int
        That the training may use.

    Returns
    -------
    dict
        Its metrics.

    Raises
    ------
    UserError
        If the training fails; the message ends with the last lines that it printed.
    """
    comment = f"_{run.name}-{run.model}-seed{run.seed}-{os.getpid()}"
    start, last = time.monotonic(), deque(maxlen=8)
    process = subprocess.Popen(
        run.command(),
        cwd=ROOT,
        env=os.environ | {"COMMENT": comment, "OMP_NUM_THREADS": str(threads)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,  # the \r of progress bars end a line, too
        errors="replace",
    )
    try:
        for line in process.stdout:
            if metric := re.search(r"Current validation metric: (\S+)", line):
                bar.set_postfix_str(f"{run.model} seed {run.seed}: validation accuracy {metric[1]}")
                bar.update()
            elif line.strip() and "it/s" not in line and "s/it" not in line:
                last.append(line.rstrip())
    finally:
        process.terminate()
        process.wait()
    seconds = time.monotonic() - start
    pattern = ROOT / "training" / run.of.dataset / run.model / run.of.features / f"*{comment}*"
    found = sorted(glob.glob(str(pattern)))  # the name begins with the time
    if process.returncode or not found:
        raise UserError(f"{shlex.join(run.command())} failed:\n" + "\n".join(last))
    collect(run, Path(found[-1]), run.folder(out), seconds)
    return json.loads((run.folder(out) / "metrics.json").read_text())


def collect(run, source, target, seconds):
    """Copy the results of a training, the record last: with it the run counts as finished."""
    predictions = sorted((source / "predict_output").glob("pred*.root"))
    files = {"net.pt": source / "net_best_epoch_state.pt", "train.log": source / "train.log"}
    files["metrics.json"] = source / "predict_output" / "metrics.json"
    files |= {path.name: path for path in predictions}
    tables.writable_folder(target)
    for name, path in files.items():
        if not path.is_file():
            raise UserError(f"{shlex.join(run.command())} left no {path}.")
        shutil.copyfile(path, target / name)
    record = {
        "set": run.name,
        "dataset": run.of.dataset,
        "features": run.of.features,
        "model": run.model,
        "seed": run.seed,
        "budget": asdict(run.budget),
        "command": shlex.join(run.command()),
        "jets": {
            split: sum(tables.describe(file)[1] for file in files)
            for split, files in data_files(source / "train.log").items()
        },
        "seconds": round(seconds),
        "sha256": hashlib.sha256((target / "net.pt").read_bytes()).hexdigest(),
        "machine": profiling.machine_stamp(),
    }
    with tables.atomic(target / "run.json") as partial:
        partial.write_text(json.dumps(record, indent=1) + "\n")


def data_files(log):
    """Files of the training, validation and test jets that a training read, by its log.

    Parameters
    ----------
    log : Path
        weaver's ``train.log``.

    Returns
    -------
    dict of str to list of str
        By split: ``train``, ``val``, ``test``.
    """
    arguments = dict(re.findall(r"^ - \('data_(\w+)', (\[.*\])\)$", log.read_text(), re.MULTILINE))
    return {
        split: [
            file
            for pattern in ast.literal_eval(arguments[split])
            for file in sorted(glob.glob(pattern.rpartition(":")[2]))
        ]
        for split in ("train", "val", "test")
    }


def parse_arguments(argv):
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("sets", nargs="+", choices=SETS, metavar="SET", help=", ".join(SETS))
    add("--only", nargs="+", metavar="MODEL", help="default: all models of the set")
    add(
        "--seeds",
        nargs="+",
        type=int,
        metavar="N",
        help="default: 1, and 1 2 3 for the repeated models",
    )
    add("--epochs", type=int, metavar="N")
    add("--samples", type=int, metavar="N", help="jets per epoch")
    add("--samples-val", type=int, metavar="N", help="validation jets per epoch")
    add("--batch-size", type=int, metavar="N")
    add("--out", type=Path, default=OUT, metavar="DIR", help="default: training/zoo")
    add("-j", "--jobs", type=int, default=1, metavar="N", help="trainings at a time (default: 1)")
    add("--dry-run", action="store_true", help="print the commands that are left to do")
    return parser.parse_args(argv)


def main(argv=None):
    """Run the command line; returns the exit code."""
    args = parse_arguments(argv)
    changes = {k: getattr(args, k) for k in ("epochs", "samples", "samples_val", "batch_size")}
    failures = []
    try:
        runs = [r for name in args.sets for r in plan(name, args.only, args.seeds, **changes)]
        left = [run for run in runs if not finished(run, args.out)]
        if args.dry_run:
            print(*(shlex.join(run.command()) for run in left), sep="\n")
            return 0
        tables.writable_folder(args.out)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    threads = max(1, os.cpu_count() // args.jobs)
    with (
        tqdm(total=sum(run.budget.epochs for run in left), unit="epoch") as bar,
        ThreadPoolExecutor(args.jobs) as pool,
    ):
        results = {pool.submit(train, run, args.out, bar, threads): run for run in left}
        try:
            for result in as_completed(results):
                run = results[result]
                title = f"{run.name} {run.model} seed {run.seed}"
                try:
                    metrics = result.result()
                except UserError as error:  # the others may work
                    failures.append(run)
                    bar.write(f"{title}: {error}", file=sys.stderr)
                else:
                    scores = f"accuracy {metrics['accuracy']:.4f}, AUC {metrics['auc']:.4f}"
                    bar.write(f"{title}: {scores}")
        except KeyboardInterrupt:
            pool.shutdown(cancel_futures=True)
            return 130
    if failures:
        print(f"{len(failures)} of {len(left)} runs failed.", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
