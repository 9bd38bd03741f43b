"""Tables of admission: what each tick decided, why a source did not run, and whose turn it is."""

from __future__ import annotations

import sqlalchemy as sa

from beampipe_dagster.ledger.schema import metadata
from beampipe_dagster.ledger.types import Json, UtcDateTime

admission_decisions = sa.Table(
    "admission_decisions",
    metadata,
    sa.Column("id", sa.String(36), primary_key=True),
    sa.Column("project_module", sa.String(50), nullable=False),
    sa.Column("reason", sa.String(60)),
    sa.Column("message", sa.Text),
    sa.Column("admitted", sa.Integer, nullable=False),
    sa.Column("waiting", sa.Integer, nullable=False),
    sa.Column("held", sa.Integer, nullable=False),
    sa.Column("caps", Json, nullable=False),
    sa.Column("profile", sa.String(100)),
    sa.Column("project_config_id", sa.String(36), nullable=False),
    sa.Column("decided_at", UtcDateTime, nullable=False),
    sa.Column("last_seen_at", UtcDateTime, nullable=False),
    sa.Column("seen_count", sa.Integer, nullable=False),
    sa.Index("ix_admission_decisions_project", "project_module", "decided_at"),
)
"""What the ticks of a survey decided; equal ones in a row are one row, which counts them."""

admission_sources = sa.Table(
    "admission_sources",
    metadata,
    sa.Column("project_module", sa.String(50), primary_key=True),
    sa.Column("source_identifier", sa.String(100), primary_key=True),
    sa.Column("code", sa.String(60), nullable=False),
    sa.Column("message", sa.Text, nullable=False),
    sa.Column("not_before", UtcDateTime),
    sa.Column("decided_at", UtcDateTime, nullable=False),
    sa.Column("last_seen_at", UtcDateTime, nullable=False),
    sa.Column("seen_count", sa.Integer, nullable=False),
)
"""Why the last tick that looked at a pending source did not admit it; gone when it is no longer pending."""

admission_turns = sa.Table(
    "admission_turns",
    metadata,
    sa.Column("project_module", sa.String(50), primary_key=True),
    sa.Column("served", sa.Float, nullable=False),
    sa.Column("updated_at", UtcDateTime, nullable=False),
)
"""How much each survey was given of a room that several want: one over its weight for each execution."""
