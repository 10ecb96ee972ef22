"""How many jets per second weaver's data loader delivers."""

import math
import time
from dataclasses import dataclass

import torch
from torch.utils.data import DataLoader
from tqdm import tqdm
from weaver.utils.dataset import SimpleIterDataset

WORKERS = (0, 1, 2)
KINDS = {False: "read again in each pass", True: "kept in memory"}
PREFETCH = 2  # batches per worker, weaver's default


@dataclass
class Loading:
    """Rates of the loader, jets/s, by (in memory, number of workers)."""

    rates: dict

    def balance(self, consumed, in_memory):
        """Find the smallest number of workers that deliver what a network consumes.

        Parameters
        ----------
        consumed : float
            Jets/s.
        in_memory : bool

        Returns
        -------
        int
            Beyond the measured numbers it is extrapolated in proportion.
        """
        for workers in WORKERS[1:]:
            if self.rates[in_memory, workers] >= consumed:
                return workers
        best = max(self.rates[in_memory, workers] / workers for workers in WORKERS[1:])
        return math.ceil(consumed / best)

    def sentence(self, what, consumed, in_memory):
        """Say what the bottleneck is.

        Parameters
        ----------
        what : str
            What consumes, such as "the inference".
        consumed : float
            Jets/s.
        in_memory : bool
        """
        delivered = self.rates[in_memory, 1]
        loader = f"one worker delivers {delivered:,.0f} jets/s with the files {KINDS[in_memory]}"
        workers = self.balance(consumed, in_memory)
        if workers == 1:
            return (
                f"{what[0].upper()}{what[1:]} is the bottleneck: it consumes {consumed:,.0f} "
                f"jets/s, and {loader}; more workers bring nothing."
            )
        return (
            f"The loading is the bottleneck: {what} consumes {consumed:,.0f} jets/s, but {loader}; "
            f"{workers} workers balance them, if there are as many idle cores."
        )


def measure(files, data_config, batch_size, seconds=1.0):
    """Time weaver's loader, built as weaver builds it, after its first batch.

    Parameters
    ----------
    files : sequence of str
        Read again by each worker if there are fewer, because weaver gives workers whole files.
    data_config : str
        Path of the YAML.
    batch_size : int
    seconds : float
        For each number of workers, with and without ``--in-memory``.

    Returns
    -------
    Loading
    """
    rates = {}
    copies = math.ceil(max(WORKERS) / len(files))
    runs = [(in_memory, workers) for in_memory in KINDS for workers in WORKERS]
    for in_memory, workers in tqdm(runs, desc="data loading", leave=False):
        # Not for training, in which weaver may write files beside the data config.
        jets = SimpleIterDataset(
            {"_": [str(path) for path in files for _ in range(copies)]},
            str(data_config),
            batch_size=batch_size,
            for_training=False,
            load_range_and_fraction=((0, 1), 1, 1),
            fetch_step=1,
            infinity_mode=True,
            in_memory=in_memory,
        )
        loader = DataLoader(
            jets,
            batch_size=batch_size,
            drop_last=True,
            pin_memory=torch.cuda.is_available(),
            num_workers=workers,
            persistent_workers=workers > 0,
            prefetch_factor=PREFETCH if workers else None,
        )
        batches = iter(loader)
        for _ in range(1 + PREFETCH * workers):  # batches that wait already tell nothing
            next(batches)
        start, count = time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            next(batches)
            count += 1
        rates[in_memory, workers] = count * batch_size / (time.perf_counter() - start)
        del batches, loader
    return Loading(rates)
