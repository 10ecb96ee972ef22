"""The hidden folder where finished parts of a prediction are kept until all of it is written."""

import os

import awkward as ak
import pyarrow as pa
import pyarrow.parquet as pq

from jetzoo import UserError, tables
from jetzoo.datasets.folder import LOCK

NUM_BAD = b"num_bad"


def folder_of(output):
    """The folder of the parts of an output, beside it."""
    start = os.fsdecode(os.fsencode(output.name)[: tables.LONGEST_PARTIAL])
    return output.with_name(f".{start}.parts")


def clean(folder, jobs):
    """Remove what is in a folder of parts but not wanted by jobs: stale, or half-written."""
    wanted = {part.name for job in jobs for part in job.parts}
    for path in folder.iterdir():
        if path.name not in wanted and path.name != LOCK:
            path.unlink(missing_ok=True)


def missing(folder, job):
    """The parts of a job that are not there, or not whole, as after a crash of the machine."""
    return [part for part in job.parts if not _is_whole(folder / part.name, len(part))]


def _is_whole(path, num_jets):
    try:
        return pq.read_table(path, page_checksum_verification=True).num_rows == num_jets
    except (OSError, ValueError, pa.ArrowException):
        return False


def keep(path, table, num_bad):
    """Write a part.

    Parameters
    ----------
    path : Path
    table : ak.Array of records, (num_jets,)
    num_bad : int
        Jets whose scores are NaN.

    Raises
    ------
    UserError
        If the disk is full.
    """
    table = tables.to_arrow(table).replace_schema_metadata({NUM_BAD: str(num_bad)})
    with tables.atomic(path) as partial:
        pq.write_table(table, partial, compression="LZ4", write_page_checksum=True)


def join(folder, job):
    """Write the output of a job from its parts.

    Returns
    -------
    int
        Number of jets whose scores are NaN.

    Raises
    ------
    UserError
        If branches of the files do not go into one column, or the disk is full.
    """
    paths = [folder / part.name for part in job.parts]
    schemas = [pq.read_schema(path) for path in paths]
    plain = [schema.remove_metadata() for schema in schemas]
    try:
        # Of files with single and double precision, say.
        common = pa.unify_schemas(plain, promote_options="permissive")
    except pa.ArrowException as error:
        raise UserError(
            f"{job.output} cannot hold observers of different types: {error}"
        ) from error
    tables.write(
        job.output,
        (ak.from_arrow(pq.read_table(path).cast(common)) for path in paths),
    )
    return sum(int(schema.metadata[NUM_BAD]) for schema in schemas)
