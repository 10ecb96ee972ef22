"""Data sets: download, verify and unpack them, simulate them, or convert their original releases.

Every way ends in the same place: a folder per data set under `DIR`, and its path in `env.local.sh`,
which `env.sh` reads. Nothing incomplete stands under a final name: a download grows as `.part`, and
files are made in a hidden folder beside their destination, then moved there. One run at a time
works in a folder.

A data set is a row of `CATALOGUE`. `jetzoo.datasets.command` is `get_datasets.py`.
"""

from jetzoo.datasets.archives import download
from jetzoo.datasets.catalogue import CATALOGUE, Archive, Dataset
from jetzoo.datasets.conversion import convert
from jetzoo.datasets.transfer import fetch

__all__ = ["CATALOGUE", "Archive", "Dataset", "convert", "download", "fetch"]
