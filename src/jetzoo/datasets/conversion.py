"""Convert an original release into the parquet schema of `jetzoo.schema`."""

from contextlib import closing
from pathlib import Path

from jetzoo import UserError
from jetzoo.datasets.catalogue import CATALOGUE
from jetzoo.datasets.folder import at_work, finish, publish, refuse_jets, staging, staging_path


def convert(dataset, sources, directory):
    """Convert an original release into the parquet schema of `jetzoo.schema`.

    What the releases look like stands in `jetzoo.datasets.releases`. Jets with a momentum or an id
    that cannot be one (NaN, infinite, a negative energy) are left out, and their number is printed.

    Parameters
    ----------
    dataset : str
        A name of `CATALOGUE`.
    sources : sequence of path-like
        The files of the release, or patterns of them, see :func:`jetzoo.sources.expand`.
    directory : path-like
        Where the data set's folder goes.

    Returns
    -------
    Path
        The data set's folder.

    Raises
    ------
    UserError
        A file is missing, is not of the release or holds a label of no class; the folder already
        holds jets, or another run works there; the disk is full. No file appears then.
    """
    plan = CATALOGUE[dataset].plan
    if plan is None:
        raise UserError(f"{dataset} is published as weaver reads it: there is nothing to convert")
    from jetzoo.sources import listed  # takes half a second to import

    folder = Path(directory) / dataset
    sources = [Path(source) for source in listed(sources)]
    for source in sources:
        if not source.is_file():
            raise UserError(f"there is no file {source}")
    order = [str(source.resolve()) for source in sources]
    with at_work(folder):
        done = finish(staging_path(folder), folder)
        if done is None or done["order"] != order:
            refuse_jets(folder)
            _convert(plan(sources), folder, order)
    return folder


def _convert(plan, folder, order):
    from jetzoo.schema import write_parquet  # takes a second to import

    with staging(folder) as hidden:
        for name, source, tables in plan:
            try:
                with closing(tables):
                    write_parquet(tables, hidden / f"{name}.parquet")
            except ValueError as error:
                raise UserError(f"cannot convert {source} ({error})") from error
        publish(hidden, folder, [f"{name}.parquet" for name, _, _ in plan], order)
