"""What is fastest on this machine: measured once for a kind of work, and kept in the user's cache.

Which of several ways to compute the same is the fastest depends on the processor, and no table
of this project could know all of them. A kind of work is named by a string, such as a matrix
product of one class of shapes on two threads; its ways are timed when it is first met.
"""

import functools
import json
import logging
import os
import platform
import tempfile
import threading
import time
from pathlib import Path

import torch

from . import repository

logger = logging.getLogger("jetzoo")

ROUNDS = 8  # the best counts: on a busy machine most calls are interrupted
MARGIN = 0.95  # of the time of the first way, which a better one has to stay below

_lock = threading.Lock()
_known = {}  # of each device, what was found: {kind of work: {way: milliseconds}}


def fastest(work, ways, device="cpu"):
    """Name of the fastest way to do a kind of work.

    Parameters
    ----------
    work : str
        Kind of work, which stands for all work that the same way is the best for.
    ways : dict
        Functions without arguments that do the same, by name. The first is the usual one: another
        has to be 5% faster. One that raises an error is left out.
    device : str or torch.device

    Returns
    -------
    str
    """
    device = str(torch.device(device).type)
    times = _known.get(device, {}).get(work, {})
    if not times.keys() >= ways.keys():
        with _lock:
            times = _times(work, ways, device)
    return winner({name: times[name] for name in ways})


def winner(times):
    """Way that is chosen by times of ways, of which the first is the usual one."""
    usual, best = next(iter(times)), min(times, key=times.get)
    return best if times[best] < MARGIN * times[usual] else usual


def known(device="cpu"):
    """What was measured on this machine so far.

    Returns
    -------
    dict
        ``{kind of work: {way: milliseconds}}``
    """
    with _lock:
        return dict(_of_device(torch.device(device).type))


def forget(kept=True):
    """Let the next call look into the cache anew, or, without what is kept there, measure anew."""
    with _lock:
        _known.clear()
        if not kept:
            _known.update(cpu={}, cuda={})


def _times(work, ways, device):
    """Times of the ways: from the cache if it has all of them, measured otherwise."""
    found = _of_device(device)
    if work not in found or not found[work].keys() >= ways.keys():
        found[work] = _measure(ways, device)
        logger.debug("%s: %s", work, found[work])
        _keep(device, work, found[work])
    return found[work]


def _of_device(device):
    if device not in _known:
        _known[device] = _read(_file(device))
    return _known[device]


def _measure(ways, device):
    """Milliseconds of each way: the best of some calls in turn, infinite if it does not work."""
    best = {}
    for turn in range(1 + ROUNDS):  # the first call warms up
        for name, way in ways.items():
            if best.get(name) == float("inf") and turn:
                continue
            try:
                seconds = _seconds(way, device)
            except Exception as error:  # of whatever kind: compilers and drivers have their own
                logger.info("%s is left out: %s", name, error)
                best[name] = float("inf")
                continue
            best[name] = min(best.get(name, seconds), seconds) if turn > 1 else seconds
    return {name: round(1e3 * seconds, 4) for name, seconds in best.items()}


def _seconds(way, device):
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    way()
    wait()
    return time.perf_counter() - start


@functools.cache
def _file(device):
    """Where the times of a device stand: a home folder may be shared by different machines."""
    name = torch.cuda.get_device_name() if device == "cuda" else _processor()
    name = "".join(c if c.isalnum() else "-" for c in f"{name}-torch-{torch.__version__}")
    return f"fastest-{name}.json"


def _processor():
    try:
        with open("/proc/cpuinfo") as info:
            names = [
                x for x in info if x.startswith(("model name", "model\t", "cpu family", "CPU"))
            ]
    except OSError:
        names = [platform.processor()]
    values = [x.partition(":")[2].strip() or x for x in dict.fromkeys(names)]
    return "-".join((platform.machine(), *values))


def _read(name):
    try:
        found = json.loads((repository.cache() / name).read_text())
        good = isinstance(found, dict) and all(
            isinstance(times, dict) and times and all(isinstance(x, float) for x in times.values())
            for times in found.values()
        )
        return found if good else {}
    except (OSError, ValueError, RuntimeError):
        return {}


def _keep(device, work, times):
    """Add to the file what was measured; where nothing can be written, it lasts for the process."""
    name = _file(device)
    try:
        folder = repository.cache()
        folder.mkdir(parents=True, exist_ok=True)
        whole = _read(name) | {work: times}  # another process may have written meanwhile
        handle, path = tempfile.mkstemp(prefix=".fastest-", dir=folder)
        try:
            with os.fdopen(handle, "w") as file:
                json.dump(whole, file, indent=1)
            Path(path).replace(folder / name)
        except OSError:
            Path(path).unlink(missing_ok=True)
            raise
    except (OSError, RuntimeError) as error:
        logger.debug("times cannot be kept: %s", error)
