"""Tables of the archives: what keeps all processes polite to one, and what is known of its health."""

from __future__ import annotations

import sqlalchemy as sa

from beampipe_dagster.ledger.circuits import CircuitState
from beampipe_dagster.ledger.schema import metadata, one_of
from beampipe_dagster.ledger.types import Json, UtcDateTime

archives = sa.Table(
    "archives",
    metadata,
    sa.Column("key", sa.String(255), primary_key=True),
    sa.Column("name", sa.String(50), nullable=False),
    sa.Column("url", sa.Text, nullable=False),
    sa.Column("created_at", UtcDateTime, nullable=False),
    # How fast it is asked
    sa.Column("max_concurrency", sa.Integer, nullable=False),
    sa.Column("min_interval_ms", sa.Integer, nullable=False),
    sa.Column("next_allowed_at", UtcDateTime),
    sa.Column("pause_until", UtcDateTime),
    # Its circuit
    sa.Column("state", sa.String(10), nullable=False, server_default=sa.text("'closed'")),
    sa.Column("failures", sa.Integer, nullable=False, server_default=sa.text("0")),
    sa.Column("openings", sa.Integer, nullable=False, server_default=sa.text("0")),
    sa.Column("by_hand", sa.Boolean, nullable=False, server_default=sa.text("false")),
    sa.Column("opened_at", UtcDateTime),
    sa.Column("open_until", UtcDateTime),
    sa.Column("open_reason", sa.Text),
    sa.Column("probe_token", sa.String(36)),
    sa.Column("probe_expires_at", UtcDateTime),
    # Its health
    sa.Column("last_good_at", UtcDateTime),
    sa.Column("last_failure_at", UtcDateTime),
    sa.Column("last_error", Json),
    sa.Column("latency_seconds", sa.Float),
    sa.Column("good_count", sa.BigInteger, nullable=False, server_default=sa.text("0")),
    sa.Column("failure_count", sa.BigInteger, nullable=False, server_default=sa.text("0")),
    one_of("state", CircuitState),
)
"""One row a TAP service, whatever surveys call it: limits, circuit, and health as requests found it."""

archive_users = sa.Table(
    "archive_users",
    metadata,
    sa.Column("project_module", sa.String(50), primary_key=True),
    sa.Column("adapter", sa.String(50), primary_key=True),
    sa.Column("archive_key", sa.String(255), nullable=False),
    sa.Index("ix_archive_users_archive", "archive_key"),
)
"""Which archive a survey means by an adapter's name."""

archive_permits = sa.Table(
    "archive_permits",
    metadata,
    sa.Column("token", sa.String(36), primary_key=True),
    sa.Column("archive_key", sa.String(255), nullable=False),
    sa.Column("holder", sa.String(100), nullable=False),
    sa.Column("taken_at", UtcDateTime, nullable=False),
    sa.Column("expires_at", UtcDateTime, nullable=False),
    sa.Index("ix_archive_permits_archive", "archive_key"),
)
"""Requests on their way. A permit that a dead process holds runs out."""
