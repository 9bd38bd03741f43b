"""How far the archives' new rows have been seen, by survey and query."""

from __future__ import annotations

import sqlalchemy as sa

from beampipe_dagster.ledger.schema import metadata
from beampipe_dagster.ledger.types import Json, UtcDateTime

discovery_watermarks = sa.Table(
    "discovery_watermarks",
    metadata,
    sa.Column("project_module", sa.String(50), primary_key=True),
    sa.Column("query_name", sa.Text, primary_key=True),
    sa.Column("query_sha256", sa.String(64), nullable=False),
    sa.Column("position", sa.String(100)),
    sa.Column("candidate", sa.String(100)),
    sa.Column("candidate_at", UtcDateTime),
    sa.Column("seen", Json, nullable=False),
    sa.Column("swept_at", UtcDateTime, nullable=False),
    sa.Column("sweeps", sa.Integer, nullable=False, server_default=sa.text("0")),
)
"""Up to ``position`` all sources that new rows belong to have been looked at; up to ``candidate`` they have been
asked for. ``seen`` holds digests of the rows beyond the position, so that none of them is asked for twice."""
