"""Kill a way to get a data set at each of its moves of a file, and repeat it.

`python killed_runs.py convert|download|simulate FOLDER SOURCE...` prints how many moves there are;
it ends with an error where a repeated run does not give the files of an uninterrupted one. A
process of its own, as it forks, which the threads of a test session would not survive.
"""

import os
import shutil
import sys
import traceback
from concurrent.futures import Future
from dataclasses import replace
from itertools import count
from pathlib import Path

import awkward as ak
import numpy as np
import pandas  # noqa: F401 (otherwise pyarrow imports it in each child)

from jetzoo.datasets import CATALOGUE, Archive, Dataset, convert, download, simulation
from jetzoo.datasets.simulation import generate
from jetzoo.datasets.transfer import md5
from jetzoo.schema import jets_table

KILLED = 9


class InlineExecutor:
    """Does the work of a `ProcessPoolExecutor` at once."""

    def __init__(self, *args):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *args):
        pass

    def submit(self, function, *args):
        future = Future()
        try:
            future.set_result(function(*args))
        except Exception as error:
            future.set_exception(error)
        return future

    def shutdown(self, **options):
        pass


class ToyGenerator:
    """A generator of two classes that needs no Pythia; put in place of its module."""

    __name__ = "toy_generator"
    CLASSES = {0: None, 1: None}
    PATHS = {split: f"{split}_file_{{shard}}.parquet" for split in ("train", "val", "test")}

    @staticmethod
    def simulate(label, num_jets, seed):
        rng = np.random.default_rng(seed)
        p3 = ak.unflatten(rng.normal(size=(3 * num_jets, 3)), [3] * num_jets)
        px, py, pz = p3[..., 0], p3[..., 1], p3[..., 2]
        energy = np.sqrt(px**2 + py**2 + pz**2)
        return jets_table(px, py, pz, energy, np.full(num_jets, label))


TOY = Dataset(name="Toy", files="{train,val,test}_file_*.parquet", generator="toy_generator")


def use_toy():
    """Add the toy generator to this process."""
    sys.modules["toy_generator"] = ToyGenerator()
    CATALOGUE["Toy"] = TOY
    simulation.ProcessPoolExecutor = InlineExecutor


def tree(folder):
    """Content of the files, by path."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def attempt(work, folder, fatal=None):
    """Run in a child that dies, without any cleaning up, at move number `fatal`."""
    child = os.fork()
    if child == 0:
        moves, real_replace = count(), os.replace

        def dying_replace(source, target):
            if next(moves) == fatal:
                os._exit(KILLED)
            real_replace(source, target)

        os.replace = dying_replace
        try:
            work(folder)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main(way, base, *sources):
    base = Path(base)

    def unpack(folder):
        """The archive that was downloaded is there, as long as it is not unpacked."""
        if not (folder / "Toy").exists():
            folder.mkdir(parents=True)
            shutil.copy(sources[0], folder / "Toy.tar")
        archive = Archive(("http://127.0.0.1:9/Toy.tar",), md5(folder / "Toy.tar"))
        CATALOGUE["Toy"] = replace(TOY, archives=(archive,))
        download("Toy", folder)

    works = {
        "download": unpack,
        "convert": lambda folder: convert("QuarkGluon", sources, folder),
        "simulate": lambda folder: generate("Toy", 40, folder, seed=3),
    }
    if attempt(works[way], base / "whole") != 0:
        sys.exit("the uninterrupted run fails")
    whole = tree(base / "whole")
    for fatal in count():
        folder = base / str(fatal)
        if (code := attempt(works[way], folder, fatal)) == 0:
            print(fatal)
            return
        if code != KILLED or attempt(works[way], folder) != 0:
            sys.exit(f"the run killed at move {fatal}, or the one after it, fails")
        if tree(folder) != whole:
            sys.exit(f"the files after the kill at move {fatal} are {sorted(tree(folder))}")


if __name__ == "__main__":
    use_toy()
    main(*sys.argv[1:])
