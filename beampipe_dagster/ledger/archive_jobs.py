"""Asynchronous queries at archives: an intent before the job, its URL after, and what became of it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from beampipe_dagster.config.canonical import JsonValue
from beampipe_dagster.ledger.rows import to_value
from beampipe_dagster.ledger.tables_archive_jobs import JobState, archive_jobs

KEPT: Final = timedelta(days=30)
"""How long a row stays after its job ended."""
CREATION: Final = timedelta(minutes=10)
"""After so long an intent without a URL is nobody's any more."""


@dataclass(frozen=True, slots=True)
class ArchiveJob:
    """A row of ``archive_jobs``."""

    id: str
    archive: str
    tap_url: str
    query_key: str
    query_sha256: str
    upload_sha256: str | None
    maxrec: int
    state: str
    job_url: str | None
    phases: list[JsonValue] | None
    message: str | None
    created_at: datetime
    submitted_at: datetime | None
    destruction_at: datetime | None
    ended_at: datetime | None
    deleted_at: datetime | None


def begin(
    conn: Connection,
    *,
    job_id: str,
    archive: str,
    tap_url: str,
    query_key: str,
    query_sha256: str,
    upload_sha256: str | None,
    maxrec: int,
    now: datetime,
) -> None:
    """Write the intent of a job, and close the rows of the same query that nothing can come of any more."""
    columns = archive_jobs.c
    conn.execute(
        sa.update(archive_jobs)
        .where(
            columns.query_key == query_key,
            columns.state == JobState.INTENT,
            columns.created_at <= now - CREATION,
        )
        .values(state=JobState.ABANDONED, ended_at=now)
    )
    conn.execute(
        sa.update(archive_jobs)
        .where(columns.query_key == query_key, columns.state == JobState.OPEN, columns.destruction_at <= now)
        .values(state=JobState.EXPIRED, ended_at=now)
    )
    conn.execute(sa.delete(archive_jobs).where(columns.ended_at < now - KEPT))
    conn.execute(
        sa.insert(archive_jobs).values(
            id=job_id,
            archive=archive,
            tap_url=tap_url,
            query_key=query_key,
            query_sha256=query_sha256,
            upload_sha256=upload_sha256,
            maxrec=maxrec,
            state=JobState.INTENT,
            created_at=now,
        )
    )


def find_open(conn: Connection, query_key: str, *, now: datetime) -> ArchiveJob | None:
    """The newest job of this query that has a URL and was not destroyed yet."""
    columns = archive_jobs.c
    row = conn.execute(
        sa.select(archive_jobs)
        .where(
            columns.query_key == query_key,
            columns.state == JobState.OPEN,
            sa.or_(columns.destruction_at.is_(None), columns.destruction_at > now),
        )
        .order_by(columns.created_at.desc(), columns.id.desc())
        .limit(1)
    ).first()
    return to_value(ArchiveJob, row) if row else None


def get(conn: Connection, job_id: str) -> ArchiveJob | None:
    """The row of this id."""
    row = conn.execute(sa.select(archive_jobs).where(archive_jobs.c.id == job_id)).first()
    return to_value(ArchiveJob, row) if row else None


def newest(conn: Connection, *, archive: str | None = None, limit: int = 50) -> list[ArchiveJob]:
    """The newest rows, of one archive or of all."""
    statement = sa.select(archive_jobs)
    if archive is not None:
        statement = statement.where(archive_jobs.c.archive == archive)
    order = (archive_jobs.c.created_at.desc(), archive_jobs.c.id.desc())
    return [to_value(ArchiveJob, row) for row in conn.execute(statement.order_by(*order).limit(limit))]


def opened(conn: Connection, job_id: str, job_url: str, *, now: datetime) -> None:
    """Keep the URL that the archive gave; only now may the job be told to run."""
    conn.execute(
        sa.update(archive_jobs)
        .where(archive_jobs.c.id == job_id)
        .values(state=JobState.OPEN, job_url=job_url, submitted_at=now)
    )


def seen(conn: Connection, job_id: str, *, phases: list[JsonValue], destruction_at: datetime | None) -> None:
    """Keep the phases that were seen, ``[phase, time]`` each, and when the archive will drop the job."""
    conn.execute(
        sa.update(archive_jobs)
        .where(archive_jobs.c.id == job_id)
        .values(phases=phases, destruction_at=destruction_at)
    )


def end(conn: Connection, job_id: str, state: JobState, message: str | None, *, now: datetime) -> None:
    """Close a row that has not been closed."""
    conn.execute(
        sa.update(archive_jobs)
        .where(archive_jobs.c.id == job_id, archive_jobs.c.ended_at.is_(None))
        .values(state=state, message=message, ended_at=now)
    )


def deleted(conn: Connection, job_id: str, *, now: datetime) -> None:
    """Note that the archive has dropped the job at our wish."""
    conn.execute(sa.update(archive_jobs).where(archive_jobs.c.id == job_id).values(deleted_at=now))
