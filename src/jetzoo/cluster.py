"""Tasks on a cluster of dask.distributed, on this machine or on others."""

import asyncio
import contextlib
import logging
import os
from concurrent.futures import ThreadPoolExecutor

from jetzoo import UserError
from jetzoo.repository import reason

# Times that the process of a task may end before the task is given up.
ATTEMPTS = 3


@contextlib.contextmanager
def connect(workers=None, address=None):
    """A client of a cluster.

    Parameters
    ----------
    workers : int, optional
        Processes to start on this machine; they end with the block.
    address : str, optional
        Of the scheduler of a cluster that runs already, such as ``tcp://host:8786``.

    Yields
    ------
    distributed.Client

    Raises
    ------
    UserError
        If ``distributed`` is not installed, or no scheduler answers.
    """
    try:
        import dask
        import distributed
    except ImportError as error:
        raise UserError(
            f"Workers need {error.name}, which is not installed: pip install 'jetzoo[scale]'."
        ) from error
    # What it has to say of workers and schedulers that end is said in a sentence, if it matters.
    for name in ("distributed", "distributed.client"):  # each has a level of its own
        logging.getLogger(name).setLevel(logging.CRITICAL)
    dask.config.set({"distributed.scheduler.allowed-failures": ATTEMPTS})
    with contextlib.ExitStack() as stack:
        try:
            if address is None:
                address = stack.enter_context(
                    distributed.LocalCluster(
                        n_workers=workers,
                        threads_per_worker=1,
                        memory_limit=0,
                        dashboard_address="127.0.0.1:0",  # any port, as several may run
                    )
                )
            else:
                _greet(address)
            client = stack.enter_context(distributed.Client(address))
        except (OSError, ValueError) as error:
            raise UserError(f"No cluster answers at {address}: {reason(error)}.") from error
        yield client


def _greet(address):
    """Raise a TimeoutError if a scheduler is silent, of which a client would wait for a word."""
    import dask
    from distributed import Security, comm

    patience = dask.config.get("distributed.comm.timeouts.connect")
    seconds = dask.utils.parse_timedelta(patience)

    async def greet():
        # As long again for the first word as for the connection, which has an error of its own.
        async with asyncio.timeout(2 * seconds):
            found = await comm.connect(address, **Security().get_connection_args("client"))
            await found.close()

    with ThreadPoolExecutor(1) as thread:  # a loop may run in this one, as in a notebook
        thread.submit(asyncio.run, greet()).result()


def run(client, function, tasks, names):
    """Run a function of a module on the workers of a cluster.

    A task whose worker ends before it is given to another one.

    Parameters
    ----------
    client : distributed.Client
    function : callable
    tasks : iterable of tuple
        Arguments, which travel as pickles.
    names : iterable of str
        What each task works on, for messages.

    Yields
    ------
    object
        What the function returns, in the order in which the tasks end.

    Raises
    ------
    UserError
        That a task raised; or if the workers end again and again, or the scheduler is gone.
    """
    import distributed

    address = client.scheduler.address
    futures = {
        client.submit(function, *task, pure=False): name
        for task, name in zip(tasks, names, strict=True)
    }
    try:
        for future in distributed.as_completed(list(futures)):
            yield future.result()
            future.release()
    except distributed.KilledWorker as error:
        raise UserError(
            f"{ATTEMPTS + 1} workers, of which {error.last_worker.address} was the last, ended "
            f"while they worked on {futures[future]}, perhaps for lack of memory: what is finished "
            "is kept, and the same command goes on from there."
        ) from error
    except (distributed.CancelledError, distributed.comm.CommClosedError) as error:
        raise UserError(
            f"The cluster at {address} is gone: what is finished is kept, and the same command "
            "goes on from there."
        ) from error
    finally:
        client.cancel(list(futures))


def threads(workers=None):
    """Threads of a task: its share of this machine, or one where dask itself counts threads."""
    return max(1, (os.cpu_count() or 1) // workers) if workers else 1
