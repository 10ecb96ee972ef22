"""Read the original releases of the quark/gluon and the top jets.

The plan of a release maps its files to a list of (name of a parquet file, source, iterable of
tables as of `jetzoo.schema.jets_table`).
"""

import re
import sys
from contextlib import contextmanager

from jetzoo import UserError
from jetzoo.datasets.transfer import bar
from jetzoo.hdf5 import plain_pickles

BLOCK_JETS = 20_000
LARGEST = 1e30  # GeV; sums of more are infinite in float32


def plan_quarkgluon(sources):
    """Plan of the quark/gluon jets, `QG_jets*.npz` (Zenodo 3164691).

    A file holds `X` (jets, particles, 4) of pt in GeV, rapidity, phi, PDG id, and `y` (jets,), 1
    for a quark. The last tenth of the files, in the order of their numbers, becomes the test files,
    as in the published conversion; of a single file, the last tenth of its jets. Particles are
    massless.
    """
    sources = sorted(sources, key=_natural)
    if len(sources) == 1:
        source = sources[0]
        return [
            ("train_file_0", source, _quarkgluon_tables(source, 0, 0.9)),
            ("test_file_0", source, _quarkgluon_tables(source, 0.9, 1)),
        ]
    num_train = len(sources) - max(1, len(sources) // 10)
    numbered = [
        *(("train", i, source) for i, source in enumerate(sources[:num_train])),
        *(("test", i, source) for i, source in enumerate(sources[num_train:])),
    ]
    return [(f"{split}_file_{i}", s, _quarkgluon_tables(s, 0, 1)) for split, i, s in numbered]


def plan_toplandscape(sources):
    """Plan of the top jets, `train.h5`, `val.h5`, `test.h5` (Zenodo 2603256).

    Their key `table` has the columns `E_i`, `PX_i`, `PY_i`, `PZ_i` in GeV, and `is_signal_new`, 1
    for a top.
    """
    names = [source.name for source in sources]
    if not {"train.h5", "val.h5", "test.h5"}.issuperset(names) or len(set(names)) < len(names):
        raise UserError(f"expected train.h5, val.h5 and test.h5, not {', '.join(names)}")
    return [(f"{source.stem}_file", source, _toplandscape_tables(source)) for source in sources]


def _natural(path):
    """Sorts QG_jets.npz, QG_jets_2.npz, QG_jets_10.npz in this order."""
    return [int(word) if word.isdigit() else word for word in re.split(r"(\d+)", path.stem)]


def _quarkgluon_tables(path, start, stop):
    import numpy as np

    from jetzoo.schema import massless_p4

    with _reading(path):
        with np.load(path) as file:
            x, y = file["X"], file["y"]
        if x.ndim != 3 or x.shape[1] == 0 or x.shape[2] != 4 or y.shape != x.shape[:1]:
            raise ValueError(f"X has the shape {x.shape}, and y {y.shape}")
        start, stop = round(start * len(x)), round(stop * len(x))
        with _Jets(path, stop - start) as jets:
            for i in range(start, stop, BLOCK_JETS):
                block = x[i : min(i + BLOCK_JETS, stop)].astype(np.float64, casting="same_kind")
                pt, rapidity, phi, pid = np.moveaxis(block, 2, 0)  # (jets, particles)
                with np.errstate(over="ignore", invalid="ignore"):
                    p4 = massless_p4(pt, rapidity, phi)
                yield from jets.tables(p4, y[i : i + len(block)], i, pid)


def _toplandscape_tables(path):
    with _reading(path), plain_pickles():
        import pandas as pd

        with (
            pd.HDFStore(path, "r") as store,
            _Jets(path, store.get_storer("table").nrows) as jets,
        ):
            first = 0
            for frame in store.select("table", chunksize=BLOCK_JETS):
                num_particles = sum(re.fullmatch(r"E_\d+", name) is not None for name in frame)
                if num_particles == 0:
                    raise ValueError("there is no column E_0")
                p4 = [
                    frame[[f"{name}_{i}" for i in range(num_particles)]].to_numpy(float)
                    for name in ("PX", "PY", "PZ", "E")
                ]  # (jets, particles)
                yield from jets.tables(p4, frame["is_signal_new"].to_numpy(), first)
                first += len(frame)


class _Jets:
    """Makes the tables of a file, counts the jets that it leaves out, and shows the progress."""

    def __init__(self, path, num_jets):
        self.path, self.num_jets, self.num_left_out = path, num_jets, 0
        self.bar = bar(f"convert {path.name}", num_jets, unit=" jets")

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        self.bar.close()
        if self.num_left_out and kind is None:
            print(
                f"{self.path.name}: left out {self.num_left_out} of {self.num_jets} jets, with "
                "momenta or ids that are no numbers, or negative energies",
                file=sys.stderr,
            )

    def tables(self, p4, label, first, pid=None):
        """The sound ones of a block of jets as a table, if there are any.

        Parameters
        ----------
        p4 : sequence of ndarray (jets, particles)
            px, py, pz, energy; padding has no energy.
        label : ndarray (jets,)
        first : int
            Number of the first jet in the file.
        pid : ndarray (jets, particles), optional
        """
        import awkward as ak
        import numpy as np

        from jetzoo.schema import jets_table

        known = np.isin(label, (0, 1))
        if not known.all():
            which = np.flatnonzero(~known)[0]
            raise UserError(
                f"{self.path} has the label {label[which]} at jet {first + which} ({(~known).sum()}"
                " such jets in this part of the file): labels are 0 and 1"
            )
        # Comparisons with NaN are false.
        sound = (np.abs(p4) < LARGEST).all(axis=(0, 2)) & (p4[3] >= 0).all(axis=1)
        if pid is not None:
            sound &= ((np.abs(pid) < 2**31) & (pid == np.rint(pid))).all(axis=1)
        self.num_left_out += int((~sound).sum())
        self.bar.update(len(sound))
        if not sound.any():
            return
        real = p4[3][sound] > 0
        num_particles = real.sum(axis=1)
        columns = p4 if pid is None else (*p4, pid)
        jagged = [ak.unflatten(x[sound][real], num_particles) for x in columns]
        yield jets_table(*jagged[:4], label[sound], *jagged[4:])


@contextmanager
def _reading(path):
    """Whatever a library raises at a file that is damaged or not of the release is a sentence."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        text = str(error).strip().rpartition("\n")[2] or type(error).__name__
        raise UserError(f"cannot convert {path} ({text})") from error
