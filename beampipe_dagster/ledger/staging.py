"""Staging jobs of executions, and refused logins: statements, no decisions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.exc import IntegrityError

from beampipe_dagster.errors import ConflictError
from beampipe_dagster.ledger.rows import to_value
from beampipe_dagster.ledger.tables_staging import LIVE, StagingState, staging_jobs, staging_logins


@dataclass(frozen=True, slots=True)
class StagingJob:
    """A row of ``staging_jobs``.

    Attributes
    ----------
    group_key, attempt
        Which files, in words, and the how-manieth job for this group.
    items
        What its files are called: ``visibility/<sbid>/<scan>``, ``evaluation/<sbid>/<file>``.
    request_sha256
        Digest of the identifiers that the service was given, by which the job is known again.
    phase
        As the archive said it last.
    """

    id: str
    execution_id: str
    group_key: str
    kind: str
    sbids: list[str]
    items: list[str]
    attempt: int
    state: StagingState
    service_url: str
    request_sha256: str
    job_url: str | None
    phase: str | None
    error: str | None
    intended_at: datetime
    run_at: datetime | None
    looked_at: datetime | None
    ended_at: datetime | None
    expires_at: datetime | None

    @property
    def live(self) -> bool:
        """Whether no other job may be made for its files."""
        return self.state in LIVE

    def as_dict(self) -> dict[str, Any]:
        """What people and events are told about it."""
        return {
            "group": self.group_key,
            "sbids": self.sbids,
            "attempt": self.attempt,
            "state": self.state.value,
            "phase": self.phase,
            "job_url": self.job_url,
            "files": len(self.items),
            "error": self.error,
        }


def of(conn: Connection, execution_id: str, *, live: bool = False) -> list[StagingJob]:
    """An execution's jobs, oldest first; with ``live`` only those that count now."""
    statement = (
        sa.select(staging_jobs)
        .where(staging_jobs.c.execution_id == execution_id)
        .order_by(staging_jobs.c.intended_at, staging_jobs.c.id)
    )
    if live:
        statement = statement.where(staging_jobs.c.live)
    return [_to_job(row) for row in conn.execute(statement)]


def add(conn: Connection, job: StagingJob) -> None:
    """Write an intent.

    Raises
    ------
    ConflictError
        ``staging_job_exists``: another live job has these files.
    """
    values = {name: _plain(getattr(job, name)) for name in StagingJob.__slots__}
    try:
        with conn.begin_nested():
            conn.execute(sa.insert(staging_jobs).values(live=job.live, **values))
    except IntegrityError as error:
        raise ConflictError(
            f"there is a staging job for {job.group_key} of execution {job.execution_id} already",
            code="staging_job_exists",
            hint="another process stages the same files; it goes on by itself",
        ) from error


def move(conn: Connection, job: StagingJob, values: Mapping[str, Any]) -> StagingJob:
    """Change a job; the update carries the state that the caller saw.

    Raises
    ------
    ConflictError
        ``staging_job_moved``: somebody else changed it first.
    """
    after = replace(job, **values)
    written = conn.execute(
        sa.update(staging_jobs)
        .where(staging_jobs.c.id == job.id, staging_jobs.c.state == job.state.value)
        .values(live=after.live, **{name: _plain(value) for name, value in values.items()})
    )
    if not written.rowcount:
        raise ConflictError(
            f"the staging job {job.group_key} of execution {job.execution_id} is no longer {job.state.value}",
            code="staging_job_moved",
            hint="another process goes on with it",
        )
    return after


def refused_until(conn: Connection, name: str, *, now: datetime) -> tuple[datetime, str] | None:
    """Until when a login is not to be tried again, and what the archive said; ``None`` for one that may be."""
    row = conn.execute(
        sa.select(staging_logins).where(staging_logins.c.name == name, staging_logins.c.not_before > now)
    ).first()
    return (row.not_before, row.message) if row else None


def refuse_login(conn: Connection, name: str, message: str, *, now: datetime, not_before: datetime) -> None:
    """Remember a refusal."""
    conn.execute(sa.delete(staging_logins).where(staging_logins.c.name == name))
    conn.execute(
        sa.insert(staging_logins).values(name=name, refused_at=now, not_before=not_before, message=message)
    )


def forget_refusal(conn: Connection, name: str) -> None:
    """The login works."""
    conn.execute(sa.delete(staging_logins).where(staging_logins.c.name == name))


def _plain(value: Any) -> Any:  # noqa: ANN401  # a column's value
    return value.value if isinstance(value, StrEnum) else value


def _to_job(row: sa.Row[Any]) -> StagingJob:
    job = to_value(StagingJob, row)
    return replace(job, state=StagingState(job.state))
