"""From a generator to files: chunks with seeds of their own, processes, resumption, shuffling."""

import os
import signal
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from importlib import import_module
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Thread

import awkward as ak
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from jetzoo import UserError, cluster, repository
from jetzoo.datasets.catalogue import CATALOGUE
from jetzoo.datasets.folder import at_work, finish, publish, refuse_jets
from jetzoo.schema import write_parquet, write_root

# Each split ends at this fraction of the jets.
SPLIT_ENDS = {"train": 0.7, "val": 0.8, "test": 1.0}
CHUNK_JETS = 500
SHARD_JETS = 100_000
MAX_JETS = 1_000_000_000
PYTHIA_SEEDS = 900_000_000  # Pythia takes seeds from 1 to this
# Mantissa bits kept, of 24. Masses of pairs are differences of large numbers: momenta need more.
BITS = dict.fromkeys(("part_px", "part_py", "part_pz", "part_energy"), 20) | dict.fromkeys(
    ("part_deta", "part_dphi", "part_d0val", "part_d0err", "part_dzval", "part_dzerr"), 12
)


def generate(dataset, num_jets, directory, *, seed=1, jobs=1, workers=None, dask=None):
    """Simulate jets and write them as shuffled training, validation and test files.

    The classes have equal shares of every split, and of every file unless they have files of their
    own; the splits are 70%, 10% and 20% of the jets. The jets depend on `num_jets` and `seed` only,
    and so do parquet files, byte for byte; ROOT files hold the time of writing, too. Finished
    chunks are kept in a hidden folder inside `directory`, so that the same call continues after an
    interruption; the files appear when all jets are there. Processes are spawned, so a script
    calls this from under `if __name__ == "__main__":`.

    Digits beyond what any detector resolves are dropped, for smaller files: momenta are rounded to
    1e-6 of their value, angles and impact parameters to 2.5e-4 of theirs.

    Parameters
    ----------
    dataset : str
        A name of `jetzoo.datasets.CATALOGUE` with a generator.
    num_jets : int
        Number of jets of all classes and splits together, at least 10 per class.
    directory : path-like
        Folder of the files, made if needed.
    seed : int
        Seed of everything random, not negative.
    jobs : int
        Number of processes.
    workers, dask : int, str, optional
        Instead of ``jobs``: processes of a cluster on this machine, which replaces those that end,
        or the address of the scheduler of a cluster, see :mod:`jetzoo.cluster`. Its workers find
        `directory` under the same path.

    Returns
    -------
    list of Path
        The files, as the published ones are named.

    Raises
    ------
    UserError
        There is no generator of this data set or it is not installed, there are too few or too
        many jets, the seed is negative, `directory` already holds jets of another run, another run
        works there, the disk is full, or workers end again and again.
    """
    module = _generator(dataset)
    classes = sorted(module.CLASSES)
    if not 10 * len(classes) <= num_jets <= MAX_JETS:
        raise UserError(
            f"{dataset} takes {10 * len(classes)} to {MAX_JETS} jets at once, not {num_jets}"
        )
    if seed < 0:
        raise UserError(f"the seed must not be negative, not {seed}")
    directory = Path(directory)
    partial = directory / f".partial-{num_jets}-{seed}"
    with at_work(directory):
        done = finish(partial, directory)
        if done is None:
            refuse_jets(directory)
            names = _make_files(module, num_jets, seed, partial.absolute(), (jobs, workers, dask))
            publish(partial, directory, names)
        else:
            names = done["names"]
    return [directory / name for name in names]


def _generator(dataset):
    """The module that simulates a data set."""
    name = CATALOGUE[dataset].generator if dataset in CATALOGUE else None
    if name is None:
        known = ", ".join(row.name for row in CATALOGUE.values() if row.generator)
        raise UserError(f"there is no generator of {dataset}, only of {known}")
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        package = "-e '.[simulate]'" if repository.checkout() else "'jetzoo[simulate]'"
        raise UserError(f"the simulation needs {error.name}: pip install {package}") from error


def _make_files(module, num_jets, seed, folder, processes):
    """Simulate what is missing, write the files into `folder`, and return their names."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(seed)
    classes = sorted(module.CLASSES)
    counts = {label: (num_jets + i) // len(classes) for i, label in enumerate(classes)}
    chunks = [
        (label, start, min(CHUNK_JETS, count - start))
        for label, count in counts.items()
        for start in range(0, count, CHUNK_JETS)
    ]
    # Distinct seeds are independent sequences of Pythia's generator (Marsaglia, Zaman).
    pythia_seeds = rng.choice(PYTHIA_SEEDS, len(chunks), replace=False) + 1
    tasks = [
        (module.__name__, label, size, int(pythia_seed), _chunk_path(folder, label, start))
        for (label, start, size), pythia_seed in zip(chunks, pythia_seeds, strict=True)
    ]
    tasks = [task for task in tasks if not _is_whole(task[-1], task[2])]
    done = num_jets - sum(size for _, _, size, _, _ in tasks)
    with tqdm(total=num_jets, initial=done, unit=" jets", desc="simulate") as bar:
        for number in _simulate(tasks, *processes):
            bar.update(number)

    names = []
    for name, shard in _files(module.PATHS, counts):
        jets = ak.concatenate([_read(folder, label, *span) for label, span in shard.items()])
        jets = jets[rng.permutation(len(jets))]
        for column in BITS.keys() & set(jets.fields):
            jets[column] = _round(jets[column], BITS[column])
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write = write_root if name.endswith(".root") else write_parquet
        write(jets, folder / name)
        names.append(name)
    return names


def _simulate(tasks, jobs, workers, dask):
    """Simulate chunks; the numbers of their jets, as they are finished."""
    if not tasks:
        return
    if workers or dask:
        with cluster.connect(min(workers or 1, len(tasks)), dask) as client:
            names = [f"jets of {label}" for _, label, *_ in tasks]
            yield from cluster.run(client, _simulate_silently, tasks, names)
        return
    with ProcessPoolExecutor(min(jobs, len(tasks)), get_context("spawn"), _start_worker) as pool:
        futures = [pool.submit(_simulate_chunk, *task) for task in tasks]
        try:
            for future in as_completed(futures):
                yield future.result()
        except (BrokenProcessPool, MemoryError) as error:
            raise UserError(
                "a process of the simulation ended, perhaps for lack of memory: what is finished "
                "is kept, and the same command continues"
            ) from error
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _start_worker():
    # An interrupt is the parent's to handle: the chunk in work is finished and kept.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A worker must not outlive a parent that was killed.
    Thread(target=_exit_with_parent, daemon=True).start()
    _silence()


def _silence():
    """FastJet greets on stdout from C++."""
    with open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), 1)


def _exit_with_parent():
    parent_process().join()
    os._exit(1)


def _simulate_silently(*task):
    _silence()
    return _simulate_chunk(*task)


def _simulate_chunk(module, label, num_jets, seed, path):
    write_parquet(import_module(module).simulate(label, num_jets, seed), path)
    return num_jets


def _chunk_path(folder, label, start):
    return folder / f"{label}_{start // CHUNK_JETS}.parquet"


def _is_whole(path, num_jets):
    """Whether a chunk is there; a damaged one, as a crash may leave, is simulated again."""
    try:
        return pq.read_table(path).num_rows == num_jets
    except (OSError, ValueError, pa.ArrowException):
        return False


def _files(paths, counts):
    """Names of the files, and the jets [start, stop) of each class that go into each."""
    begin = dict.fromkeys(counts, 0)
    for split, fraction in SPLIT_ENDS.items():
        end = {label: round(fraction * count) for label, count in counts.items()}
        own = "{label" in paths[split]
        for labels in ([label] for label in counts) if own else [list(counts)]:
            num_jets = sum(end[label] - begin[label] for label in labels)
            # One jet of each class of slack, as the edges are rounded.
            num_shards = (
                -(-(num_jets + len(labels)) // SHARD_JETS) if "{shard" in paths[split] else 1
            )
            edges = {
                label: np.linspace(begin[label], end[label], num_shards + 1).round().astype(int)
                for label in labels
            }
            for i in range(num_shards):
                name = paths[split].format(label=labels[0], shard=i)
                yield name, {label: edges[label][i : i + 2] for label in labels}
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
