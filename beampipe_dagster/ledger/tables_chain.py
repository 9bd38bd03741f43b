"""Tables that keep the story honest: the end of each execution's chain of events, and permits to purge."""

from __future__ import annotations

import sqlalchemy as sa

from beampipe_dagster.ledger.schema import metadata
from beampipe_dagster.ledger.types import UtcDateTime

provenance_heads = sa.Table(
    "provenance_heads",
    metadata,
    sa.Column("execution_id", sa.String(36), primary_key=True),
    sa.Column("seq", sa.Integer, nullable=False),
    sa.Column("sha256", sa.String(64), nullable=False),
)
"""The newest link of each execution's chain. Its row is the lock under which the next link is made."""

provenance_purges = sa.Table(
    "provenance_purges",
    metadata,
    sa.Column("id", sa.String(36), primary_key=True),
    sa.Column("before", UtcDateTime, nullable=False),
    sa.Column("actor", sa.String(100), nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("begun_at", UtcDateTime, nullable=False),
    sa.Column("done_at", UtcDateTime),
    sa.Column("events", sa.Integer),
)
"""Purges of old events, written before the first event goes. Without an open one the database refuses deletion."""
