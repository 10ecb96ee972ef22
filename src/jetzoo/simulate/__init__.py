"""Simulated jets in the published parquet schemas.

One module per data set holds its physics: `CLASSES`, the labels it knows, and
`simulate(label, num_jets, seed)`, which returns jets as `jetzoo.schema.jets_table` does. What is
here is common to them: chunks with seeds of their own, processes, resumption, splits, shuffling.
"""

import os
import shutil
import signal
from concurrent.futures import ProcessPoolExecutor, as_completed
from importlib import import_module
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Thread

import awkward as ak
import numpy as np
from tqdm import tqdm

from jetzoo import UserError
from jetzoo.schema import write_parquet

GENERATORS = {"QuarkGluon": "jetzoo.simulate.quarkgluon"}
SPLITS = {"train": 0.7, "val": 0.8, "test": 1.0}  # each ends at this fraction of the jets
CHUNK_JETS = 500
SHARD_JETS = 100_000
PYTHIA_SEEDS = 900_000_000  # Pythia takes seeds from 1 to this
# Mantissa bits kept, of 24. Masses of pairs are differences of large numbers: momenta need more.
BITS = dict.fromkeys(("part_px", "part_py", "part_pz", "part_energy"), 20) | dict.fromkeys(
    ("part_deta", "part_dphi"), 12
)


def generate(dataset, num_jets, directory, *, seed=1, jobs=1):
    """Simulate jets and write them as shuffled training, validation and test files.

    The classes have equal shares of every file; the splits are 70%, 10% and 20% of the jets. The
    files depend on `num_jets` and `seed` only, byte for byte. Finished chunks are kept in a hidden
    folder inside `directory`, so that the same call continues after an interruption; the files
    appear when all jets are there. Processes are spawned, so a script calls this from under
    `if __name__ == "__main__":`.

    Digits beyond what any detector resolves are dropped, for smaller files: momenta are rounded to
    1e-6 of their value, `part_deta` and `part_dphi` to 2.5e-4 of theirs.

    Parameters
    ----------
    dataset : str
        "QuarkGluon".
    num_jets : int
        Number of jets of all classes and splits together, at least 10 per class.
    directory : path-like
        Folder of the files, made if needed.
    seed : int
        Seed of everything random, not negative.
    jobs : int
        Number of processes.

    Returns
    -------
    list of Path
        {train,val,test}_file_*.parquet, of at most 100,000 jets each.

    Raises
    ------
    UserError
        There is no generator of this data set or it is not installed, there are too few jets, the
        seed is negative, or `directory` already holds jets.
    """
    if dataset not in GENERATORS:
        raise UserError(f"there is no generator of {dataset}, only of {', '.join(GENERATORS)}")
    try:
        classes = import_module(GENERATORS[dataset]).CLASSES
    except ModuleNotFoundError as error:
        raise UserError(
            f"the simulation needs {error.name}: pip install -e '.[simulate]'"
        ) from error
    if num_jets < 10 * len(classes):
        raise UserError(f"{dataset} takes at least {10 * len(classes)} jets, not {num_jets}")
    if seed < 0:
        raise UserError(f"the seed must not be negative, not {seed}")
    directory = Path(directory)
    partial = directory / f".partial-{num_jets}-{seed}"
    if any(directory.glob("*_file_*.parquet")) and not partial.exists():
        raise UserError(f"{directory} already holds jets: give another folder")
    partial.mkdir(parents=True, exist_ok=True)

    rng = np.random.default_rng(seed)
    counts = {label: (num_jets + i) // len(classes) for i, label in enumerate(sorted(classes))}
    chunks = [
        (label, start, min(CHUNK_JETS, count - start))
        for label, count in counts.items()
        for start in range(0, count, CHUNK_JETS)
    ]
    # Distinct seeds are independent sequences of Pythia's generator (Marsaglia, Zaman).
    pythia_seeds = rng.choice(PYTHIA_SEEDS, len(chunks), replace=False) + 1
    tasks = [
        (GENERATORS[dataset], label, size, int(pythia_seed), _chunk_path(partial, label, start))
        for (label, start, size), pythia_seed in zip(chunks, pythia_seeds, strict=True)
    ]
    _run([task for task in tasks if not task[-1].exists()], num_jets, jobs)

    paths = []
    for name, shard in _shards(counts):
        jets = ak.concatenate([_read(partial, label, *span) for label, span in shard.items()])
        jets = jets[rng.permutation(len(jets))]
        for column, bits in BITS.items():
            jets[column] = _round(jets[column], bits)
        write_parquet(jets, partial / name)
        paths.append(directory / name)
    for path in paths:
        os.replace(partial / path.name, path)
    shutil.rmtree(partial)
    return paths


def _run(tasks, num_jets, jobs):
    """Simulate what is missing of `num_jets` jets."""
    done = num_jets - sum(size for _, _, size, _, _ in tasks)
    with (
        tqdm(total=num_jets, initial=done, unit=" jets", desc="simulate") as bar,
        ProcessPoolExecutor(jobs, get_context("spawn"), _start_worker) as pool,
    ):
        futures = [pool.submit(_simulate_chunk, *task) for task in tasks]
        try:
            for future in as_completed(futures):
                bar.update(future.result())
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _start_worker():
    # An interrupt is the parent's to handle: the chunk in work is finished and kept.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A worker must not outlive a parent that was killed.
    Thread(target=_exit_with_parent, daemon=True).start()
    # FastJet greets on stdout from C++.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _exit_with_parent():
    parent_process().join()
    os._exit(1)


def _simulate_chunk(module, label, num_jets, seed, path):
    write_parquet(import_module(module).simulate(label, num_jets, seed), path)
    return num_jets


def _chunk_path(folder, label, start):
    return folder / f"{label}_{start // CHUNK_JETS}.parquet"


def _shards(counts):
    """Names of the files, and the jets [start, stop) of each class that go into each."""
    begin = dict.fromkeys(counts, 0)
    for split, fraction in SPLITS.items():
        end = {label: round(fraction * count) for label, count in counts.items()}
        num_jets = sum(end[label] - begin[label] for label in counts)
        # One jet of each class of slack, as the edges are rounded.
        num_shards = -(-(num_jets + len(counts)) // SHARD_JETS)
        edges = {
            label: np.linspace(begin[label], end[label], num_shards + 1).round().astype(int)
            for label in counts
        }
        for i in range(num_shards):
            yield f"{split}_file_{i}.parquet", {label: edges[label][i : i + 2] for label in counts}
        begin = end


def _round(x, bits):
    mantissa, exponent = np.frexp(x)
    return np.ldexp(np.rint(np.ldexp(mantissa, bits)), exponent - bits)


def _read(folder, label, start, stop):
    """Jets [start, stop) of a class."""
    first = start - start % CHUNK_JETS
    chunks = [
        ak.from_parquet(_chunk_path(folder, label, i)) for i in range(first, stop, CHUNK_JETS)
    ]
    return ak.concatenate(chunks)[start - first : stop - first]
