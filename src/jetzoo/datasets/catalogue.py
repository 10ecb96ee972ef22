"""The data sets, one row each.

The choices of `get_datasets.py`, its help, what can be downloaded, converted and simulated, and the
names of the environment variables derive from the rows.
"""

from collections.abc import Callable
from dataclasses import dataclass

from jetzoo.datasets.releases import plan_quarkgluon, plan_toplandscape

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Archive:
    """A published tar archive.

    Attributes
    ----------
    urls : tuple of str
        The same file on several servers, tried in order.
    md5 : str
        Its published checksum.
    into : str
        The folder it unpacks into, relative to `DIR`.
    split : str or None
        The split it holds, None for all of them.
    """

    urls: tuple[str, ...]
    md5: str
    into: str = "."
    split: str | None = None

    @property
    def name(self):
        """Name of the file."""
        return self.urls[0].rpartition("/")[2]


@dataclass(frozen=True)
class Dataset:
    """A data set, and the ways to get it.

    Attributes
    ----------
    name : str
        Its folder under `DIR`, under `data/` and under `data/samples/`.
    files : str
        Where its files lie in its folder, for the help.
    archives : tuple of Archive
        What is published in weaver's format; empty if nothing is.
    plan : callable or None
        Maps the files of the original release to a list of (name of the parquet file, source,
        iterable of tables); None if there is nothing to convert.
    release : str
        The files that `plan` takes, for the help.
    generator : str or None
        Module that simulates it, as `jetzoo.simulate` describes; None if there is none.
    """

    name: str
    files: str
    archives: tuple[Archive, ...] = ()
    plan: Callable | None = None
    release: str = ""
    generator: str | None = None

    @property
    def variable(self):
        """The environment variable that holds the path of its folder."""
        return f"DATADIR_{self.name}"

    @property
    def has_splits(self):
        """Whether parts of it can be downloaded alone."""
        return any(archive.split for archive in self.archives)


def _jetclass(name, md5, into, split):
    servers = (
        "https://zenodo.org/record/6619768/files",
        "https://hqu.web.cern.ch/datasets/JetClass",
    )
    return Archive(tuple(f"{url}/JetClass_Pythia_{name}.tar" for url in servers), md5, into, split)


TRAIN_MD5 = (
    "de4fd2dca2e68ab3c85d5cfd3bcc65c3",
    "9722a359c5ef697bea0fbf79bf50f003",
    "1e9f66cd1f915f9d10e90ae1d7761720",
    "47348fc8985319fa4806da87500482fa",
    "6b0ce16bd93b442a8d51914466990279",
    "416e347512e716de51d392bee327b8e9",
    "e9b9c1557b1b39bf0a16e4ab631ae451",
    "5bfc6cb285ccb7680cefa9ac82ad1a2e",
    "540c1a0d66dfad78d2b363c5740ccf86",
    "668f40b3275167ff7104c48317c0ae2a",
)
ROWS = (
    Dataset(
        name="JetClass",
        files="Pythia/{train_100M,val_5M,test_20M}/*.root",
        archives=(
            *(
                _jetclass(f"train_100M_part{part}", md5, "JetClass/Pythia/train_100M", "train")
                for part, md5 in enumerate(TRAIN_MD5)
            ),
            _jetclass("val_5M", "7235ccb577ed85023ea3ab4d5e6160cf", "JetClass/Pythia", "val"),
            _jetclass("test_20M", "64e5156d26d101adeb43b8388207d767", "JetClass/Pythia", "test"),
        ),
        generator="jetzoo.simulate.jetclass",
    ),
    Dataset(
        name="QuarkGluon",
        files="{train,test}_file_*.parquet",
        archives=(
            Archive(
                ("https://hqu.web.cern.ch/datasets/QuarkGluon/QuarkGluon.tar",),
                "d8dd7f71a7aaaf9f1d2ee3cddef998f9",
            ),
        ),
        plan=plan_quarkgluon,
        release="QG_jets*.npz",
        generator="jetzoo.simulate.quarkgluon",
    ),
    Dataset(
        name="TopLandscape",
        files="{train,val,test}_file.parquet",
        archives=(
            Archive(
                ("https://hqu.web.cern.ch/datasets/TopLandscape/TopLandscape.tar",),
                "4fca2e47afbf321b0f201da6b804c404",
            ),
        ),
        plan=plan_toplandscape,
        release="train.h5 val.h5 test.h5",
        generator="jetzoo.simulate.toplandscape",
    ),
)
CATALOGUE = {row.name: row for row in ROWS}
