"""A query that cannot be made smaller, asked so that its answer is whole: at once, then as a job with more rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from beampipe_dagster.discovery.archive import DEFAULT_MAXREC, AnswerClass
from beampipe_dagster.errors import ArchiveError

if TYPE_CHECKING:
    from beampipe_dagster.discovery.archive import Answer, Archive, TapCapabilities, Upload

MOST_ROWS: Final = 200_000
"""Rows of an answer that a process reads at most: about 150 MB of ObsCore, and 600 MB while it is parsed."""

_OVERFLOW: Final = f"archive_{AnswerClass.OVERFLOW.value}"


def complete_answer(
    archive: Archive,
    adql: str,
    *,
    maxrec: int = DEFAULT_MAXREC,
    upload: Upload | None = None,
    most_rows: int = MOST_ROWS,
) -> Answer:
    """Ask a query for the whole of its answer.

    It is asked at once with ``maxrec`` rows. Where that overflows it is run as a job, with as many
    rows as the archive gives out, and no more than ``most_rows``.

    Parameters
    ----------
    archive
        Whom it is put to.
    adql, maxrec, upload
        As for :meth:`~beampipe_dagster.discovery.archive.Archive.query`.
    most_rows
        Rows that are read at most.

    Raises
    ------
    ArchiveError
        As :meth:`~beampipe_dagster.discovery.archive.Archive.query`; ``archive_overflow`` when the
        archive does not give out the whole answer in any way.
    """
    try:
        return archive.query(adql, maxrec=maxrec, upload=upload)
    except ArchiveError as error:
        if error.code != _OVERFLOW:
            raise
        overflow = error
    said = archive.capabilities()
    limit = min(most_rows, said.hard_maxrec or most_rows)
    if not said.async_ or limit <= maxrec:
        raise _too_many(overflow, said, limit, most_rows) from overflow
    try:
        return archive.query_async(adql, maxrec=limit, upload=upload)
    except ArchiveError as error:
        if error.code != _OVERFLOW:
            raise
        raise _too_many(error, said, limit, most_rows) from error


def _too_many(error: ArchiveError, said: TapCapabilities, limit: int, most_rows: int) -> ArchiveError:
    if not said.documented:
        hint = "The archive does not say that it runs jobs, which could have more rows."
    elif said.hard_maxrec is not None and limit == said.hard_maxrec and limit < most_rows:
        hint = f"The archive gives out {limit} rows at most."
    else:
        hint = f"More than {most_rows} rows are not read at once."
    return ArchiveError(
        error.message,
        code=error.code,
        hint=f"{hint} Narrow the query: fewer columns do not help, fewer rows do.",
        retry=error.retry,
        details=error.details,
    )
