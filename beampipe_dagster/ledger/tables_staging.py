"""Tables of data staging: the jobs at an archive, and logins that it refused."""

from __future__ import annotations

from enum import StrEnum

import sqlalchemy as sa

from beampipe_dagster.ledger.schema import metadata, one_of
from beampipe_dagster.ledger.types import Json, UtcDateTime


class StagingState(StrEnum):
    """What is known about one staging job."""

    PLANNED = "planned"
    """Nothing was sent: the archive was away before anything could be created."""
    INTENDED = "intended"
    """It is about to be created; seen by another process, it may have been."""
    UNCERTAIN = "uncertain"
    """It may have been created, and is looked for."""
    CREATED = "created"
    """It has a URL, and is not known to run."""
    RUNNING = "running"
    """It was told to run."""
    COMPLETED = "completed"
    """Its files are there, until they expire."""
    FAILED = "failed"
    """The archive ended it without its files."""
    ABANDONED = "abandoned"
    """It was never found; another one took its place."""
    EXPIRED = "expired"
    """Its files are gone again; another one takes its place."""


LIVE = frozenset(
    {
        StagingState.PLANNED,
        StagingState.INTENDED,
        StagingState.UNCERTAIN,
        StagingState.CREATED,
        StagingState.RUNNING,
        StagingState.COMPLETED,
    }
)
"""States in which no other job may be made for the same files."""

staging_jobs = sa.Table(
    "staging_jobs",
    metadata,
    sa.Column("id", sa.String(36), primary_key=True),
    sa.Column("execution_id", sa.String(36), sa.ForeignKey("batch_execution_record.id"), nullable=False),
    sa.Column("group_key", sa.String(140), nullable=False),
    sa.Column("kind", sa.String(20), nullable=False),
    sa.Column("sbids", Json, nullable=False),
    sa.Column("items", Json, nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("state", sa.String(20), nullable=False),
    sa.Column("live", sa.Boolean, nullable=False),
    sa.Column("service_url", sa.Text, nullable=False),
    sa.Column("request_sha256", sa.String(64), nullable=False),
    sa.Column("job_url", sa.Text),
    sa.Column("phase", sa.String(30)),
    sa.Column("error", sa.Text),
    sa.Column("intended_at", UtcDateTime, nullable=False),
    sa.Column("run_at", UtcDateTime),
    sa.Column("looked_at", UtcDateTime),
    sa.Column("ended_at", UtcDateTime),
    sa.Column("expires_at", UtcDateTime),
    one_of("state", StagingState),
    sa.UniqueConstraint("execution_id", "group_key", "attempt"),
    sa.Index(
        "ux_staging_jobs_live",
        "execution_id",
        "group_key",
        unique=True,
        sqlite_where=sa.text("live"),
        postgresql_where=sa.text("live"),
    ),
)
"""One job that brings files online, from its intent on. It never holds a token or the URL of a result: those are
read from the archive when they are needed."""

staging_logins = sa.Table(
    "staging_logins",
    metadata,
    sa.Column("name", sa.String(300), primary_key=True),
    sa.Column("refused_at", UtcDateTime, nullable=False),
    sa.Column("not_before", UtcDateTime, nullable=False),
    sa.Column("message", sa.Text, nullable=False),
)
"""Logins that an archive refused, so that no process tries the same wrong password again at once."""
