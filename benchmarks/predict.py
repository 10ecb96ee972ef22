"""`jetzoo predict --fast` against the rate of its engine, and against `weaver --predict`.

    python benchmarks/predict.py
    python benchmarks/predict.py --jets 20000 --weaver-jets 1000 --repeats 1

Whole commands are timed, from files of jets to files of scores, one of each in turn. The jets are
those of the embedded quark/gluon test sample, repeated; the weights are those of the model card.
weaver runs its own ParT with them, and the faster network of jetzoo. It is slow and gets fewer
jets. All get 100 jets, too: the time of these is that of the start. Writes ``results/predict.csv``
beside this file.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import awkward as ak
from common import argument_parser, median_ratio, write_csv

import jetzoo
from jetzoo import models, profiling, repository, schema, tables

MODEL = "ParT_QuarkGluon_kin"
BATCH = 512
FEW = 100  # jets of the run that tells how long the start takes
ENGINE_JETS = 10_000  # jets of the engine alone
ROW_GROUP = 20_000

FORMATS = ("parquet", "root")


def write_jets(folder, number):
    """Write jets of the sample, repeated, in each format; the files by format."""
    path = repository.sample_jets()
    jets = tables.read(path, tables.describe(path)[0])
    several = ak.to_packed(ak.concatenate([jets] * -(-number // len(jets)))[:number])
    found = {name: folder / f"{number}.{name}" for name in FORMATS}
    pieces = (several[i : i + ROW_GROUP] for i in range(0, number, ROW_GROUP))
    schema.write_parquet(map(ak.to_packed, pieces), found["parquet"])
    schema.write_root(several, found["root"])
    return found


def jetzoo_command(path, output):
    """Tag jets with the fast engine."""
    words = (MODEL, "--fast", "--batch-size", BATCH, "--output", output, path)
    return [sys.executable, "-m", "jetzoo", "predict", *words]


# A network file of weaver-core's own ParT.
OWN_NETWORK = """
from jetzoo.profiling.configurations import WeaverNetwork
from jetzoo.repository import network_module

zoo = network_module("ParT")
get_loss = zoo.get_loss


def get_model(data_config, **options):
    model, info = zoo.get_model(data_config)
    return WeaverNetwork(model), info
"""


def own_network_command(path, output):
    """Tag jets with weaver and its own network."""
    network = output.with_name("weaver_part.py")
    network.write_text(OWN_NETWORK)
    return weaver_command(path, output, network)


def weaver_command(path, output, network=None):
    """Tag jets with weaver, in the words of the training scripts."""
    name, checkpoint, config = models.find(MODEL)
    prefix = output.with_name("weaver.pt")
    if not prefix.exists():
        prefix.symlink_to(Path(checkpoint).absolute())
    return [
        *(sys.executable, "-m", "weaver.train", "--predict", "--gpus", "", "--batch-size", BATCH),
        # One process that loads, as weaver has with one file.
        *("--num-workers", "1", "--data-test", path, "--predict-output", output),
        *("--data-config", repository.data_config(config), "--model-prefix", prefix),
        *("--network-config", network or repository.network(name)),
    ]


COMMANDS = {
    "jetzoo": jetzoo_command,
    "weaver": own_network_command,
    "weaver, network of jetzoo": weaver_command,
}


def time_command(make, path):
    """Wall-clock seconds of a command; its output is checked and removed."""
    output = path.with_name(f"scores.{path.suffix[1:]}")
    words = list(map(str, make(path, output)))
    start = time.perf_counter()
    subprocess.run(words, check=True, capture_output=True)
    seconds = time.perf_counter() - start
    assert tables.describe(output)[1] == tables.describe(path)[1], f"not all jets: {words}"
    output.unlink()
    return seconds


def time_engine(tagger, path):
    """Seconds for a jet of the network alone, on inputs that lie ready."""
    good, inputs = tagger.prepare(tables.read(path, tagger.branches, stop=ENGINE_JETS))
    start = time.perf_counter()
    tagger.answer(good, inputs, BATCH)
    return (time.perf_counter() - start) / len(good)


def main():
    parser = argument_parser(__doc__, repeats=3, figures=False)
    parser.add_argument("--jets", type=int, default=100_000, metavar="N")
    parser.add_argument("--weaver-jets", type=int, default=5_000, metavar="N")
    args = parser.parse_args()
    counts = {what: args.jets if what == "jetzoo" else args.weaver_jets for what in COMMANDS}

    tagger = jetzoo.load(MODEL, device="cpu", fast=True)
    turns = []
    with tempfile.TemporaryDirectory() as folder:
        files = {n: write_jets(Path(folder), n) for n in {FEW, *counts.values()}}
        time_engine(tagger, files[FEW]["parquet"])
        for _ in range(args.repeats):
            for name in FORMATS:
                path = files[args.jets][name]
                turn = {"format": name, "engine": [time_engine(tagger, path)]}
                for what, make in COMMANDS.items():
                    turn[what] = [time_command(make, files[n][name]) for n in (FEW, counts[what])]
                    turn["engine"].append(time_engine(tagger, path))
                turns.append(turn)
                print(turn, flush=True)
    stamp = profiling.machine_stamp()
    rows = [
        row | {"repeats": args.repeats, **stamp}
        for name in FORMATS
        for row in summary([turn for turn in turns if turn["format"] == name], counts)
    ]
    write_csv(args.results / "predict.csv", rows)


def summary(turns, counts):
    """Rows of one format.

    Parameters
    ----------
    turns : list of dict
        Seconds of 100 jets and of all jets of each command, and for a jet of the engine before and
        after the commands.
    counts : dict of str to int
        Jets of each command.

    Returns
    -------
    list of dict
    """
    name = turns[0]["format"]
    whole = {what: [turn[what][1] / n for turn in turns] for what, n in counts.items()}
    running = {
        what: [(turn[what][1] - turn[what][0]) / (n - FEW) for turn in turns]
        for what, n in counts.items()
    }
    # The engine at the time of jetzoo's own command.
    engine = [statistics.mean(turn["engine"][:2]) for turn in turns]
    median = statistics.median
    return [
        {
            "what": "engine",
            "format": name,
            "jets": min(ENGINE_JETS, counts["jetzoo"]),
            "jets_per_second": 1 / median(engine),
            **dict.fromkeys(("of_engine", "of_engine_with_start", "times_weaver"), ""),
            "start_seconds": "",
        }
    ] + [
        {
            "what": what,
            "format": name,
            "jets": counts[what],
            "jets_per_second": 1 / median(running[what]),
            "of_engine": median_ratio(engine, running[what]),
            "of_engine_with_start": median_ratio(engine, whole[what]),
            "times_weaver": median_ratio(running["weaver"], running[what]),
            "start_seconds": median(turn[what][0] for turn in turns),
        }
        for what in counts
    ]


if __name__ == "__main__":
    main()
