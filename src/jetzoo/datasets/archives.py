"""Download, verify and unpack published archives."""

import json
import shutil
import tarfile
from pathlib import Path, PurePosixPath

from jetzoo import UserError
from jetzoo.datasets.catalogue import CATALOGUE, SPLITS
from jetzoo.datasets.folder import at_work, move_files, refuse_jets, staging, write_text
from jetzoo.datasets.transfer import CHUNK, bar, fetch, part_path, published_size

MANIFEST = ".archives.json"


def download(dataset, directory, splits=SPLITS, mirrors=()):
    """Download, verify and unpack a published data set; what is already there stays.

    Parameters
    ----------
    dataset : str
        A name of `CATALOGUE`.
    directory : path-like
        Where the data set's folder goes.
    splits : sequence of {'train', 'val', 'test'}
        Which parts to take, of a data set that is published in parts.
    mirrors : sequence of str
        Base addresses that hold files of the published names; tried before the published ones.

    Returns
    -------
    Path
        The data set's folder.

    Raises
    ------
    UserError
        No server answers, the disk is too small, a checksum is wrong, an archive is unsafe, or
        another run works in the folder. Downloaded bytes that can be resumed are kept; a file with
        a wrong checksum is removed.
    """
    directory = Path(directory)
    folder = directory / dataset
    archives = [a for a in CATALOGUE[dataset].archives if a.split is None or a.split in splits]
    if not archives:
        raise UserError(f"{dataset} is not published as weaver reads it")
    # A complete data set may stand on a disk that cannot be written to.
    if _missing(archives, folder):
        with at_work(folder):
            _download_missing(dataset, _missing(archives, folder), directory, mirrors)
    else:
        print(f"{dataset} is complete in {folder}")
    return folder


def _download_missing(dataset, archives, directory, mirrors):
    folder = directory / dataset
    manifest = _read_manifest(folder)
    refuse_jets(folder, {name for entry in manifest.values() for name in entry["files"]})
    urls = {a: [f"{m.rstrip('/')}/{a.name}" for m in mirrors] + list(a.urls) for a in archives}
    if urls:
        _require_space(dataset, directory, urls)
    for archive, addresses in urls.items():
        path = directory / archive.name
        fetch(path, addresses, archive.md5)
        _unpack(archive, path, folder)
        path.unlink()


def _missing(archives, folder):
    """The archives whose files are not all in the folder."""
    manifest = _read_manifest(folder)
    return [a for a in archives if not _is_unpacked(a, folder, manifest)]


def _read_manifest(folder):
    """For each unpacked archive, its `md5`, and the sizes of its `files`."""
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (ValueError, RecursionError):
        manifest = None
    if not isinstance(manifest, dict) or not all(map(_is_entry, manifest.values())):
        try:
            refuse_jets(folder)
        except UserError as error:
            raise UserError(
                f"{path} is damaged, and with it the list of the files that are whole: remove "
                f"{folder}, or choose another folder with -d"
            ) from error
        return {}
    return manifest


def _is_entry(entry):
    return (
        isinstance(entry, dict)
        and isinstance(entry.get("md5"), str)
        and isinstance(entry.get("files"), dict)
        and all(isinstance(size, int) for size in entry["files"].values())
    )


def _is_unpacked(archive, folder, manifest):
    entry = manifest.get(archive.name)
    if entry is None or entry["md5"] != archive.md5:
        return False
    return all(_size(folder / name) == size for name, size in entry["files"].items())


def _size(path):
    """Size of a file; None if there is none, or if there can be none of this name."""
    try:
        return path.stat().st_size
    except (OSError, ValueError):
        return None


def _require_space(dataset, directory, urls):
    """An archive is removed once it is unpacked, so only the largest counts twice."""
    sizes, present = [], 0
    for archive, addresses in urls.items():
        whole = directory / archive.name
        sizes.append(whole.stat().st_size if whole.exists() else published_size(addresses))
        present += sum(_size(path) or 0 for path in (whole, part_path(whole)))
    need, free = sum(sizes) + max(sizes) - present, shutil.disk_usage(directory).free
    if need > free:
        raise UserError(
            f"{dataset} needs {need / 1e9:.1f} GB to download and unpack, but {directory} has only "
            f"{free / 1e9:.1f} GB free: choose another disk with -d"
        )


def _unpack(archive, path, folder):
    """Unpack into a hidden folder, then move; the manifest first, as it is checked by the files."""
    with staging(folder) as hidden:
        try:
            with tarfile.open(path) as tar:
                files = _safe_files(tar, archive, folder.name)
                _extract(tar, files, hidden, archive.name)
        except (tarfile.TarError, EOFError) as error:
            path.unlink()
            raise UserError(f"{archive.name} is refused and removed: {error}") from error
        entry = {"md5": archive.md5, "files": {n: member.size for n, member in files.items()}}
        manifest = _read_manifest(folder) | {archive.name: entry}
        write_text(folder / MANIFEST, json.dumps(manifest, indent=1) + "\n")
        move_files(hidden, folder, sorted(files))


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
    with bar(f"unpack {title}", sum(member.size for member in files.values())) as progress:
        for name, member in files.items():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with tar.extractfile(member) as source, open(target, "xb") as file:
                while chunk := source.read(CHUNK):
                    file.write(chunk)
                    progress.update(len(chunk))
            if target.stat().st_size != member.size:
                raise tarfile.ReadError(f"{name} ends early")
