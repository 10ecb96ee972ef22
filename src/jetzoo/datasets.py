"""Get a data set: download, verify and unpack it, simulate it, or convert its original release.

Every way ends in the same place: a folder per data set under `DIR`, and its path in `env.local.sh`,
which `env.sh` reads. Nothing incomplete stands under a final name: a download grows as `.part`, and
files are made in a hidden folder beside their destination, then moved there.
"""

import argparse
import hashlib
import json
import os
import re
import shlex
import shutil
import sys
import tarfile
import urllib.error
import urllib.request
import zipfile
from contextlib import closing, contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from jetzoo import UserError

ROOT = Path(__file__).resolve().parents[2]
MANIFEST = ".archives.json"
SPLITS = ("train", "val", "test")
CHUNK = 1 << 20
TIMEOUT = 60
# What numpy, pandas and the HDF5 library raise at a file that is damaged or not of the release.
UNREADABLE = (KeyError, TypeError, ValueError, OSError, RuntimeError, zipfile.BadZipFile)


def md5(path):
    """Checksum of a file, in hex, with a progress bar."""
    digest = hashlib.md5(usedforsecurity=False)
    with open(path, "rb") as file, _bar(f"check {path.name}", path.stat().st_size) as bar:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            bar.update(len(chunk))
    return digest.hexdigest()


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
        return self.urls[0].rpartition("/")[2]


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
CATALOGUE = {
    "JetClass": (
        *(
            _jetclass(f"train_100M_part{part}", md5, "JetClass/Pythia/train_100M", "train")
            for part, md5 in enumerate(TRAIN_MD5)
        ),
        _jetclass("val_5M", "7235ccb577ed85023ea3ab4d5e6160cf", "JetClass/Pythia", "val"),
        _jetclass("test_20M", "64e5156d26d101adeb43b8388207d767", "JetClass/Pythia", "test"),
    ),
    "QuarkGluon": (
        Archive(
            ("https://hqu.web.cern.ch/datasets/QuarkGluon/QuarkGluon.tar",),
            "d8dd7f71a7aaaf9f1d2ee3cddef998f9",
        ),
    ),
    "TopLandscape": (
        Archive(
            ("https://hqu.web.cern.ch/datasets/TopLandscape/TopLandscape.tar",),
            "4fca2e47afbf321b0f201da6b804c404",
        ),
    ),
}


class _Unavailable(Exception):
    """A server did not give what it was asked for; another one, or a later time, may."""


def download(dataset, directory, splits=SPLITS, mirrors=()):
    """Download, verify and unpack a published data set; what is already there stays.

    Parameters
    ----------
    dataset : {'JetClass', 'QuarkGluon', 'TopLandscape'}
    directory : path-like
        Where the data set's folder goes.
    splits : sequence of {'train', 'val', 'test'}
        Which parts to take; only JetClass is published in parts.
    mirrors : sequence of str
        Base addresses that hold files of the published names; tried before the published ones.

    Returns
    -------
    Path
        The data set's folder.

    Raises
    ------
    UserError
        No server answers, the disk is too small, a checksum is wrong, or an archive is unsafe.
        Downloaded bytes that can be resumed are kept; a file with a wrong checksum is removed.
    """
    directory = Path(directory)
    folder = directory / dataset
    archives = [a for a in CATALOGUE[dataset] if a.split is None or a.split in splits]
    manifest = _read_manifest(folder)
    missing = [a for a in archives if not _is_unpacked(a, folder, manifest)]
    if not missing:
        print(f"{dataset} is complete in {folder}")
        return folder
    _refuse_foreign(folder, {name for entry in manifest.values() for name in entry["files"]})
    urls = {a: [f"{m.rstrip('/')}/{a.name}" for m in mirrors] + list(a.urls) for a in missing}
    _require_space(dataset, directory, urls)
    directory.mkdir(parents=True, exist_ok=True)
    for archive in missing:
        path = directory / archive.name
        fetch(path, urls[archive], archive.md5)
        _unpack(archive, path, directory, dataset)
        path.unlink()
    return folder


def _read_manifest(folder):
    try:
        return json.loads((folder / MANIFEST).read_text())
    except FileNotFoundError:
        return {}


def _is_unpacked(archive, folder, manifest):
    entry = manifest.get(archive.name)
    if entry is None or entry["md5"] != archive.md5:
        return False
    paths = {folder / name: size for name, size in entry["files"].items()}
    return all(path.is_file() and path.stat().st_size == size for path, size in paths.items())


def _refuse_foreign(folder, known=frozenset()):
    """Jets of two origins in one folder would be read as one data set."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.suffix in (".parquet", ".root") and name not in known:
            raise UserError(f"{folder} already holds other jets ({name}): choose a folder with -d")


def _require_space(dataset, directory, urls):
    """An archive is removed once it is unpacked, so only the largest counts twice."""
    sizes, present = [], 0
    for archive, addresses in urls.items():
        whole, part = directory / archive.name, _part(directory / archive.name)
        sizes.append(whole.stat().st_size if whole.exists() else _published_size(addresses))
        present += sum(path.stat().st_size for path in (whole, part) if path.exists())
    existing = next(p for p in (directory, *directory.absolute().parents) if p.exists())
    need, free = sum(sizes) + max(sizes) - present, shutil.disk_usage(existing).free
    if need > free:
        raise UserError(
            f"{dataset} needs {need / 1e9:.1f} GB to download and unpack, but {existing} has only "
            f"{free / 1e9:.1f} GB free: choose another disk with -d"
        )


def _part(path):
    return path.with_name(path.name + ".part")


def _published_size(addresses):
    failures = []
    for url in addresses:
        try:
            with _request(url, method="HEAD") as response:
                return _length(response)
        except _Unavailable as error:
            failures.append(f"{url}: {error}")
    raise UserError(f"no server has the archive ({'; '.join(failures)})")


def _request(url, **options):
    try:
        return urllib.request.urlopen(urllib.request.Request(url, **options), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416:
            return error
        raise _Unavailable(f"HTTP {error.code} {error.reason}") from error
    except (OSError, HTTPException, ValueError) as error:
        raise _Unavailable(str(getattr(error, "reason", error))) from error


def _length(response):
    length = response.headers["Content-Length"]
    if length is None:
        raise _Unavailable("the server does not tell the size of the file")
    return int(length)


def fetch(path, addresses, checksum, digest=md5):
    """Download a file of a known checksum, as far as it is not there yet.

    What has arrived grows as `path` with `.part`, and the next call continues it.

    Parameters
    ----------
    path : Path
        In a folder that exists.
    addresses : sequence of str
        The same file on several servers, tried in order.
    checksum : str
    digest : callable
        Gives the checksum of a path; its name is that of the kind of checksum.

    Raises
    ------
    UserError
        No server has it, its checksum is wrong (it is removed then), the disk is full, or another
        file of its name is there.
    """
    if path.exists():
        if digest(path) != checksum:
            raise UserError(
                f"{path} is not the published file ({digest.__name__}): remove it and run again"
            )
        return
    part = _part(path)
    failures = []
    for url in addresses:
        try:
            _download(url, part)
        except _Unavailable as error:
            failures.append(f"{url}: {error}")
            continue
        except OSError as error:
            raise UserError(
                f"cannot write {part} ({error.strerror}): what has arrived is kept, and the same "
                "command resumes"
            ) from error
        if (found := digest(part)) == checksum:
            os.replace(part, path)
            return
        part.unlink()
        failures.append(
            f"{url}: wrong checksum, {digest.__name__} {found} instead of {checksum}, file removed"
        )
    resume = ": the same command resumes" if part.exists() else ""
    raise UserError(f"cannot download {path.name} ({'; '.join(failures)}){resume}")


def _download(url, part):
    """Append to `part` what it lacks; a cut connection is taken up again as long as bytes come."""
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            return _download_once(url, part, before)
        except _Unavailable:
            if not part.exists() or part.stat().st_size <= before:
                raise


def _download_once(url, part, offset):
    headers = {"Range": f"bytes={offset}-"} if offset else {}
    with _request(url, headers=headers) as response:
        if response.status == 416:
            if response.headers["Content-Range"] == f"bytes */{offset}":
                return
            part.unlink()
            raise _Unavailable("the server's file is shorter than what was there, which is removed")
        total = _length(response)
        if response.status == 206:
            sent = response.headers["Content-Range"] or ""
            if not sent.startswith(f"bytes {offset}-"):
                raise _Unavailable("the server sent another part of the file than asked for")
            total += offset
        else:
            offset = 0
        with (
            open(part, "ab" if offset else "wb") as file,
            _bar(part.stem, total, initial=offset) as bar,
        ):
            while chunk := _read(response):
                file.write(chunk)
                bar.update(len(chunk))
    if part.stat().st_size != total:
        raise _Unavailable("the connection was cut")


def _read(response):
    try:
        return response.read1(CHUNK)
    except (OSError, HTTPException) as error:
        raise _Unavailable(f"the connection was cut ({error})") from error


def _bar(title, total, unit="B", initial=0):
    return tqdm(
        desc=title, total=total, initial=initial, unit=unit, unit_scale=True, dynamic_ncols=True
    )


def _unpack(archive, path, directory, dataset):
    """Unpack into a hidden folder, then move; the manifest first, as it is checked by the files."""
    folder = directory / dataset
    with _staging(directory, dataset) as staging:
        try:
            with tarfile.open(path) as tar:
                files = _safe_files(tar, archive, dataset)
                _extract(tar, files, staging, archive.name)
        except (tarfile.TarError, EOFError) as error:
            path.unlink()
            raise UserError(f"{archive.name} is refused and removed: {error}") from error
        entry = {"md5": archive.md5, "files": {n: member.size for n, member in files.items()}}
        folder.mkdir(parents=True, exist_ok=True)
        manifest = _read_manifest(folder) | {archive.name: entry}
        _write_text(folder / MANIFEST, json.dumps(manifest, indent=1) + "\n")
        _move_files(staging, folder)


def _safe_files(tar, archive, dataset):
    """Regular files by their path in the data set's folder; anything suspicious is refused."""
    files = {}
    for member in tar:
        inside = PurePosixPath(archive.into) / member.name
        if (
            not (member.isfile() or member.isdir())
            or ".." in inside.parts
            or (member.isfile() and inside.parts[:1] != (dataset,))
        ):
            raise tarfile.ExtractError(
                f"its entry {member.name!r} is a link or a device, or lies outside of {dataset}"
            )
        if member.isfile():
            files[inside.relative_to(dataset).as_posix()] = member
    return files


def _extract(tar, files, folder, title):
    with _bar(f"unpack {title}", sum(member.size for member in files.values())) as bar:
        for name, member in files.items():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with tar.extractfile(member) as source, open(target, "xb") as file:
                while chunk := source.read(CHUNK):
                    file.write(chunk)
                    bar.update(len(chunk))
            if target.stat().st_size != member.size:
                raise tarfile.ReadError(f"{name} ends early")


@contextmanager
def _staging(directory, dataset):
    """A hidden folder inside `directory`, gone afterwards; clears what a killed run left."""
    folder = directory / f".{dataset}.unfinished"
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def _move_files(source, target):
    for path in sorted(p for p in source.rglob("*") if p.is_file()):
        goal = target / path.relative_to(source)
        goal.parent.mkdir(parents=True, exist_ok=True)
        os.replace(path, goal)


def _write_text(path, text):
    part = _part(path)
    part.write_text(text)
    os.replace(part, path)


def convert(dataset, sources, directory):
    """Convert an original release into the parquet schema of `jetzoo.schema`.

    Quark/gluon jets come as `QG_jets*.npz` (Zenodo 3164691) with `X` (jets, particles, 4) of pt in
    GeV, rapidity, phi, PDG id, and `y`, 1 for a quark. The last tenth of the files, in the order of
    their numbers, becomes the test files, as in the published conversion; of a single file, the
    last tenth of its jets. Particles are massless.

    Top jets come as `train.h5`, `val.h5`, `test.h5` (Zenodo 2603256), key `table`, with columns
    `E_i`, `PX_i`, `PY_i`, `PZ_i` in GeV and `is_signal_new`, 1 for a top.

    Parameters
    ----------
    dataset : {'QuarkGluon', 'TopLandscape'}
    sources : sequence of path-like
        The files of the release.
    directory : path-like
        Where the data set's folder goes.

    Returns
    -------
    Path
        The data set's folder.

    Raises
    ------
    UserError
        A file is missing, is not of the release, or the folder already holds jets.
    """
    plans = {"QuarkGluon": _plan_quarkgluon, "TopLandscape": _plan_toplandscape}
    if dataset not in plans:
        raise UserError(f"{dataset} is published as weaver reads it: there is nothing to convert")
    directory = Path(directory)
    folder = directory / dataset
    sources = [Path(source) for source in sources]
    for source in sources:
        if not source.is_file():
            raise UserError(f"there is no file {source}")
    _refuse_foreign(folder)

    from jetzoo.schema import write_parquet

    with _staging(directory, dataset) as staging:
        for name, source, tables in plans[dataset](sources):
            try:
                with closing(tables):
                    write_parquet(tables, staging / f"{name}.parquet")
            except UNREADABLE as error:
                reason = str(error).splitlines()[-1]
                raise UserError(f"cannot convert {source} ({reason})") from error
        _move_files(staging, folder)
    return folder


def _plan_quarkgluon(sources):
    """(name, source, tables) of each parquet file."""
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


def _natural(path):
    """QG_jets.npz, QG_jets_2.npz, QG_jets_10.npz in this order."""
    return [int(word) if word.isdigit() else word for word in re.split(r"(\d+)", path.stem)]


def _quarkgluon_tables(path, start, stop, num_jets=20_000):
    import awkward as ak
    import numpy as np

    from jetzoo.schema import jets_table, massless_p4

    with np.load(path) as file:
        x, y = file["X"], file["y"]
    if x.ndim != 3 or x.shape[2] != 4 or len(x) != len(y):
        raise ValueError(f"X has shape {x.shape} and y {y.shape}")
    start, stop = round(start * len(x)), round(stop * len(x))
    with _bar(f"convert {path.name}", stop - start, unit=" jets") as bar:
        for i in range(start, stop, num_jets):
            block = x[i : min(i + num_jets, stop)]  # (jets, particles, 4)
            real = block[:, :, 0] > 0
            pt, rapidity, phi, pid = (
                ak.unflatten(column, real.sum(axis=1)) for column in block[real].T
            )
            label = y[i : i + len(block)]
            yield jets_table(*massless_p4(pt, rapidity, phi), label, ak.values_astype(pid, int))
            bar.update(len(block))


def _plan_toplandscape(sources):
    names = [source.name for source in sources]
    if not {f"{split}.h5" for split in SPLITS}.issuperset(names) or len(set(names)) < len(names):
        raise UserError(f"expected train.h5, val.h5 and test.h5, not {', '.join(names)}")
    return [(f"{source.stem}_file", source, _toplandscape_tables(source)) for source in sources]


def _toplandscape_tables(path, num_jets=20_000):
    import awkward as ak
    import pandas as pd

    from jetzoo.schema import jets_table

    with pd.HDFStore(path, "r") as store:
        num_rows = store.get_storer("table").nrows
        with _bar(f"convert {path.name}", num_rows, unit=" jets") as bar:
            for frame in store.select("table", chunksize=num_jets):
                num_particles = sum(name.startswith("E_") for name in frame.columns)
                px, py, pz, energy = (
                    frame[[f"{name}_{i}" for i in range(num_particles)]].to_numpy()
                    for name in ("PX", "PY", "PZ", "E")
                )  # (jets, particles)
                real = energy > 0
                p4 = (ak.unflatten(x[real], real.sum(axis=1)) for x in (px, py, pz, energy))
                yield jets_table(*p4, frame["is_signal_new"].to_numpy())
                bar.update(len(frame))


def set_datadir(dataset, folder, root=ROOT):
    """Write the path of a data set to `env.local.sh`, which `env.sh` sources.

    Parameters
    ----------
    dataset : str
    folder : path-like
    root : path-like
        The folder of `env.sh`. Other lines of `env.local.sh` stay.
    """
    path = Path(root) / "env.local.sh"
    variable = f"DATADIR_{dataset}"
    lines = path.read_text().splitlines() if path.exists() else []
    kept = [line for line in lines if not re.match(rf"\s*(export\s+)?{variable}=", line)]
    value = shlex.quote(str(Path(folder).resolve()))
    _write_text(path, "\n".join([*kept, f"export {variable}={value}", ""]))
    print(f"{variable}={value} in {path}")


DESCRIPTION = """\
Get a data set and tell the train scripts where it is (env.local.sh, which env.sh reads; a
DATADIR_* variable of your environment wins over it). Without --simulate, --sample or --convert the
published archives are downloaded: resumable, checked by md5, and never half unpacked. Running the
same command again continues, or finds everything in place and downloads nothing."""

EXAMPLES = """\
examples:
  ./get_datasets.py QuarkGluon                       published jets into ./datasets/QuarkGluon
  ./get_datasets.py JetClass -d /data --splits test  only the 20M test jets
  ./get_datasets.py TopLandscape --mirror https://example.org/tars
                                                     look for TopLandscape.tar there first
  ./get_datasets.py QuarkGluon --sample              the small sample of this repository
  ./get_datasets.py QuarkGluon --simulate 100000 --seed 7 -j 8 -d sim
                                                     new jets with Pythia 8 and FastJet; for
                                                     the other two sets with a detector, too
  ./get_datasets.py QuarkGluon --convert QG_jets*.npz
  ./get_datasets.py TopLandscape --convert train.h5 val.h5 test.h5
                                                     from the original releases on Zenodo,
                                                     records 3164691 and 2603256

An archive that you downloaded yourself is used when it lies in DIR under its published name.

files:
  DIR/JetClass/Pythia/{train_100M,val_5M,test_20M}/*.root
  DIR/QuarkGluon/{train,test}_file_*.parquet
  DIR/TopLandscape/{train,val,test}_file.parquet"""


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        raise UserError(f"{message} (-h explains)")


def _parser():
    parser = _Parser(
        prog="get_datasets.py",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("dataset", choices=CATALOGUE, metavar="DATASET", help=", ".join(CATALOGUE))
    add("-d", "--dir", default="datasets", type=Path, help="base folder (default: ./datasets)")
    add("--splits", nargs="+", choices=SPLITS, help="JetClass: download only these")
    add("--mirror", action="append", metavar="URL", help="another server's folder; repeatable")
    way = parser.add_mutually_exclusive_group()
    way.add_argument("--sample", action="store_true", help="use the sample of this repository")
    way.add_argument("--simulate", type=_count, metavar="N", help="simulate N jets")
    way.add_argument("--convert", nargs="+", metavar="SRC", help="convert the original release")
    add("--seed", type=int, help="seed of --simulate (default: 1)")
    add("-j", "--jobs", type=_count, help="processes of --simulate (default: 1)")
    return parser


def _count(text):
    if not (text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return int(text)


def _run(args, root):
    if args.simulate is None and not (args.seed is None and args.jobs is None):
        raise UserError("--seed and --jobs belong to --simulate")
    local = args.simulate is not None or args.sample or args.convert
    if local and (args.splits or args.mirror):
        raise UserError("--splits and --mirror belong to a download")
    if args.splits and args.dataset != "JetClass":
        raise UserError(f"--splits is for JetClass: {args.dataset} is published in one archive")
    if "\n" in str(args.dir):
        raise UserError("a folder with a line break in its name cannot go into env.local.sh")

    if args.sample:
        folder = root / "data" / "samples" / args.dataset
        if not folder.is_dir():
            raise UserError(f"there is no sample of {args.dataset} in {folder.parent}")
    elif args.simulate is not None:
        from jetzoo.simulate import generate

        folder = args.dir / args.dataset
        seed = 1 if args.seed is None else args.seed
        generate(args.dataset, args.simulate, folder, seed=seed, jobs=args.jobs or 1)
    elif args.convert:
        folder = convert(args.dataset, args.convert, args.dir)
    else:
        folder = download(args.dataset, args.dir, args.splits or SPLITS, args.mirror or ())
    set_datadir(args.dataset, folder, root)


def main(argv=None, root=ROOT):
    """Run `get_datasets.py`.

    Parameters
    ----------
    argv : list of str, optional
        The arguments; those of the process by default.
    root : Path
        The repository, which holds `env.sh` and `data/samples`.

    Returns
    -------
    int
        The exit code: 0, or 2 after one sentence on stderr.
    """
    try:
        _run(_parser().parse_args(argv), Path(root))
    except UserError as error:
        message = str(error)
    except OSError as error:
        message = f"{error.strerror}: {error.filename}" if error.filename else str(error)
    except KeyboardInterrupt:
        message = "interrupted: nothing is half-written, run the same command again"
    else:
        return 0
    print(f"get_datasets.py: {message}", file=sys.stderr)
    return 2
