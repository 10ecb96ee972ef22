"""A folder that one run at a time works in, and that gets its files when all of them are whole."""

import fcntl
import json
import os
import shutil
import socket
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from jetzoo import UserError

LOCK = ".lock"
COMPLETE = ".complete"
ATTEMPTS = 1000  # to lock a folder that others remove meanwhile


@contextmanager
def at_work(folder, lock=LOCK, wait=False):
    """Work in a folder alone, and turn errors of the disk into one sentence.

    The system releases the lock when its process ends in any way, so that the lock file of a killed
    run hinders nobody. On file systems without locks, two runs are not kept apart.

    Parameters
    ----------
    folder : path-like
        Is made, and removed afterwards if nothing was put there.
    lock : str
        Name of the lock file, which is removed afterwards.
    wait : bool
        Wait for the other run, which takes an instant, instead of refusing.

    Raises
    ------
    UserError
        Another run works there, or the block raises an `OSError`, such as of a full disk.
    """
    folder = Path(folder)
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        with _locked(folder / lock, wait):
            yield
    except OSError as error:
        raise UserError(
            f"the work in {folder} stopped ({reason(error)}): what was there before is whole, and "
            "the same command continues"
        ) from error
    finally:
        for path in made:
            try:
                path.rmdir()
            except OSError:
                break


@contextmanager
def _locked(path, wait):
    with _open_locked(path, wait) as file:
        try:
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}")
            file.flush()
            yield
        finally:
            path.unlink(missing_ok=True)


def _open_locked(path, wait):
    for attempt in range(1, ATTEMPTS + 1):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = open(path, "a+", errors="replace")  # noqa: SIM115 (its lock lasts as it does)
            try:
                _lock(file, path, wait)
                if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                    return file
            except BaseException:
                file.close()
                raise
            file.close()
        except FileNotFoundError:
            # A run that has just ended may have removed the folder, or the file that this one
            # opened; in /proc nothing can ever be made.
            if attempt == ATTEMPTS:
                raise
    raise UserError(f"other runs come and go in {path.parent}: wait, and run the command again")


def _lock(file, path, wait):
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        file.seek(0)
        owner = file.read(200) or "of unknown number"
        raise UserError(
            f"another run works in {path.parent} ({owner}): wait for it, or use another folder"
        ) from None
    except OSError:
        pass  # This file system has no locks.


def reason(error):
    """What an `OSError` says, in a few words."""
    text = os.strerror(error.errno) if error.errno else str(error).partition("\n")[0]
    return f"{text}: {error.filename}" if error.filename else text


def write_text(path, text):
    """Write a file as a whole or not at all; `surrogateescape` decoded what is not UTF-8 in it.

    For files that a lock protects: the name of the partial file is always the same, so that a
    killed run leaves nothing that the next one does not take away.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_text(text, errors="surrogateescape")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def refuse_jets(folder, known=()):
    """Raise a `UserError` if a folder holds jets that are not `known`.

    Jets of two origins in one folder would be read as one data set. Hidden folders are unfinished
    work, which no one reads.
    """
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in name.parts)
        if path.suffix in (".parquet", ".root") and not hidden and name.as_posix() not in known:
            raise UserError(f"{folder} already holds other jets ({name}): choose a folder with -d")


@contextmanager
def staging(folder):
    """A hidden folder beside `folder`, gone afterwards; clears what a killed run left.

    A folder whose files are being moved by `publish` stays, for `finish` to go on.
    """
    hidden = staging_path(folder)
    if hidden.exists():
        shutil.rmtree(hidden)
    hidden.mkdir(parents=True)
    try:
        yield hidden
    finally:
        if hidden.exists() and not (hidden / COMPLETE).exists():
            shutil.rmtree(hidden)


def staging_path(folder):
    """The folder of `staging`."""
    return folder.parent / f".{folder.name}.unfinished"


def move_files(source, target, names):
    """Move files to the same names in another folder of the same disk, replacing what is there."""
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(source / name, target / name)


def publish(source, target, names, order=None):
    """Move the finished files of `source` into `target`, and remove `source`.

    A list of the files stands in `source` until all are moved, so that after an interruption
    `finish` moves the rest.

    Parameters
    ----------
    source, target : Path
        On the same disk.
    names : list of str
        Of the files, relative to both.
    order : JSON value
        What the files were made of; `finish` returns it.

    Raises
    ------
    UserError
        `target` holds other jets; nothing is moved then.
    """
    write_text(source / COMPLETE, json.dumps({"names": names, "order": order}))
    finish(source, target)


def finish(source, target):
    """Finish an interrupted `publish`.

    Returns
    -------
    dict or None
        `names` and `order` as of `publish`; None if there is nothing to finish.
    """
    try:
        record = json.loads((source / COMPLETE).read_bytes())
        names = [name for name in record["names"] if _is_inside(name)]
        record["order"]
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError, RecursionError):
        return None
    left = [name for name in names if (source / name).exists()]
    refuse_jets(target, set(names) - set(left))
    move_files(source, target, left)
    shutil.rmtree(source)
    return record


def _is_inside(name):
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts
