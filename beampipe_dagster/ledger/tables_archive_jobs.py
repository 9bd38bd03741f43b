"""The table of asynchronous queries: what was started at an archive, and how far it is."""

from __future__ import annotations

from enum import StrEnum

import sqlalchemy as sa

from beampipe_dagster.ledger.schema import metadata, one_of
from beampipe_dagster.ledger.types import Json, UtcDateTime


class JobState(StrEnum):
    """What the ledger knows of a job."""

    INTENT = "intent"
    """About to be created; without a URL it may exist all the same, and was never told to run."""

    OPEN = "open"
    """Created: its URL is known, and its result is wanted."""

    COLLECTED = "collected"
    """Its result was read."""

    FAILED = "failed"
    """It ended without a result that can be used."""

    LOST = "lost"
    """The archive no longer knows it."""

    EXPIRED = "expired"
    """Its time of destruction passed before its result was read."""

    ABANDONED = "abandoned"
    """Its creation was never confirmed."""


archive_jobs = sa.Table(
    "archive_jobs",
    metadata,
    sa.Column("id", sa.String(36), primary_key=True),
    sa.Column("archive", sa.String(100), nullable=False),
    sa.Column("tap_url", sa.Text, nullable=False),
    sa.Column("query_key", sa.String(64), nullable=False),
    sa.Column("query_sha256", sa.String(64), nullable=False),
    sa.Column("upload_sha256", sa.String(64)),
    sa.Column("maxrec", sa.BigInteger, nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("job_url", sa.Text),
    sa.Column("phases", Json),
    sa.Column("message", sa.Text),
    sa.Column("created_at", UtcDateTime, nullable=False),
    sa.Column("submitted_at", UtcDateTime),
    sa.Column("destruction_at", UtcDateTime),
    sa.Column("ended_at", UtcDateTime),
    sa.Column("deleted_at", UtcDateTime),
    one_of("state", JobState),
    sa.Index("ix_archive_jobs_query_key", "query_key", "state"),
    sa.Index("ix_archive_jobs_ended_at", "ended_at"),
)
"""One row for each job that was, or was about to be, created at an archive; ended rows are kept for a month."""
