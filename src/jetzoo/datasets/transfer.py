"""Download one file of a known checksum from several servers, resuming what was cut."""

import hashlib
import os
import urllib.error
import urllib.request
from http.client import HTTPException

from tqdm import tqdm

from jetzoo import UserError
from jetzoo.datasets.folder import at_work, reason

CHUNK = 1 << 20
TIMEOUT = 60


class _Unavailable(Exception):
    """A server did not give what it was asked for; another one, or a later time, may."""


def md5(path):
    """Checksum of a file, in hex, with a progress bar."""
    digest = hashlib.md5(usedforsecurity=False)
    with open(path, "rb") as file, bar(f"check {path.name}", path.stat().st_size) as progress:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            progress.update(len(chunk))
    return digest.hexdigest()


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
        No server has it, its checksum is wrong (it is removed then), the disk is full, another
        run downloads it, or another file of its name is there.
    """
    with at_work(path.parent, f".{path.name}.lock"):
        if not path.exists():
            _fetch_missing(path, addresses, checksum, digest)
        elif digest(path) != checksum:
            raise UserError(
                f"{path} is not the published file ({digest.__name__}): remove it and run again"
            )


def _fetch_missing(path, addresses, checksum, digest):
    part = part_path(path)
    failures = []
    for url in addresses:
        try:
            _download(url, part)
        except _Unavailable as error:
            failures.append(f"{url}: {error}")
            continue
        except OSError as error:
            raise UserError(
                f"cannot write {part} ({reason(error)}): what has arrived is kept, and the same "
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


def part_path(path):
    """Where an incomplete file grows."""
    return path.with_name(path.name + ".part")


def published_size(addresses):
    """Size in bytes of a file, as the first server that knows it says; `UserError` if none does."""
    failures = []
    for url in addresses:
        try:
            with _request(url, method="HEAD") as response:
                return _length(response)
        except _Unavailable as error:
            failures.append(f"{url}: {error}")
    raise UserError(f"no server has the archive ({'; '.join(failures)})")


def bar(title, total, unit="B", initial=0):
    """Progress bar."""
    return tqdm(
        desc=title, total=total, initial=initial, unit=unit, unit_scale=True, dynamic_ncols=True
    )


def _request(url, **options):
    try:
        return urllib.request.urlopen(urllib.request.Request(url, **options), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416:
            return error
        raise _Unavailable(f"HTTP {error.code} {error.reason}") from error
    except (OSError, HTTPException, ValueError) as error:
        # What a server sent may be of several lines.
        said = " ".join(str(getattr(error, "reason", error)).split())
        raise _Unavailable(said or type(error).__name__) from error


def _length(response):
    length = response.headers["Content-Length"]
    if length is None:
        raise _Unavailable("the server does not tell the size of the file")
    # An exabyte has 19 digits.
    if not (length.isascii() and length.isdecimal() and len(length) < 20):
        raise _Unavailable(f"the server tells a nonsensical size of the file, {length[:40]!r}")
    return int(length)


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
            bar(part.stem, total, initial=offset) as progress,
        ):
            while chunk := _read(response):
                file.write(chunk)
                progress.update(len(chunk))
    if part.stat().st_size != total:
        raise _Unavailable("the connection was cut")


def _read(response):
    try:
        return response.read1(CHUNK)
    except (OSError, HTTPException, ValueError) as error:
        raise _Unavailable(f"the connection was cut ({error})") from error
