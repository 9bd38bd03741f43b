"""Tables of the operator's hand: what is held."""

from __future__ import annotations

import sqlalchemy as sa

from beampipe_dagster.ledger.schema import metadata
from beampipe_dagster.ledger.types import UtcDateTime

control_holds = sa.Table(
    "control_holds",
    metadata,
    sa.Column("scope", sa.String(10), primary_key=True),
    sa.Column("project_module", sa.String(50), primary_key=True),
    sa.Column("subject", sa.String(160), primary_key=True),
    sa.Column("code", sa.String(60), nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("actor", sa.String(100), nullable=False),
    sa.Column("created_at", UtcDateTime, nullable=False),
    sa.Column("expires_at", UtcDateTime),
)
"""What must not begin now: a source, an execution, a survey or a profile. A hold that is over has no row.

The subject is a source's name, or the id of an execution, a survey or a profile; the survey is empty for a profile.
"""
