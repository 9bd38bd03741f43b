"""Tables of the clusters' login nodes: what keeps all processes polite to one, and how it answered."""

from __future__ import annotations

from enum import StrEnum

import sqlalchemy as sa

from beampipe_dagster.ledger.schema import metadata, one_of
from beampipe_dagster.ledger.types import Json, UtcDateTime


class SshState(StrEnum):
    """How a target answered last."""

    OK = "ok"
    NEEDS_LOGIN = "needs_login"
    """It did not let us in: an expired key, a second factor, a closed account. Somebody has to do something."""
    UNTRUSTED = "untrusted"
    """It showed a host key that is not believed."""
    UNREACHABLE = "unreachable"


ssh_targets = sa.Table(
    "ssh_targets",
    metadata,
    sa.Column("key", sa.String(64), primary_key=True),
    sa.Column("label", sa.String(255), nullable=False),
    sa.Column("created_at", UtcDateTime, nullable=False),
    sa.Column("state", sa.String(20), nullable=False, server_default=sa.text("'ok'")),
    sa.Column("failures", sa.Integer, nullable=False, server_default=sa.text("0")),
    sa.Column("not_before", UtcDateTime),
    sa.Column("commands_until", UtcDateTime),
    sa.Column("last_good_at", UtcDateTime),
    sa.Column("last_failure_at", UtcDateTime),
    sa.Column("last_error", Json),
    one_of("state", SshState),
)
"""One row for login nodes, user and credential slot: whether it is tried, and when the next command may begin."""

ssh_permits = sa.Table(
    "ssh_permits",
    metadata,
    sa.Column("token", sa.String(36), primary_key=True),
    sa.Column("target_key", sa.String(64), nullable=False),
    sa.Column("holder", sa.String(100), nullable=False),
    sa.Column("taken_at", UtcDateTime, nullable=False),
    sa.Column("expires_at", UtcDateTime, nullable=False),
    sa.Index("ix_ssh_permits_target", "target_key"),
)
"""Open connections. A permit that a dead process holds runs out."""
