"""Datasets that vanish are believed at the second look; partitions of old signatures are retired."""

import sqlalchemy as sa
from alembic import op

from beampipe_dagster.ledger.types import UtcDateTime

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


_CLAIMABLE = "enabled AND quarantined_at IS NULL"
_DUE = {
    "ix_source_registry_new": (
        ["project_module", "discovery_requested_at", "id"],
        f"{_CLAIMABLE} AND last_attempted_at IS NULL",
    ),
    "ix_source_registry_unsettled": (
        ["project_module", "last_attempted_at", "id"],
        (
            f"{_CLAIMABLE} AND last_attempted_at IS NOT NULL AND (last_checked_at IS NULL"
            " OR last_attempted_at > last_checked_at OR stale_after_hours IS NOT NULL"
            " OR vanish_signature IS NOT NULL OR discovery_requested_at > last_checked_at)"
        ),
    ),
    "ix_source_registry_settled": (
        ["project_module", "last_attempted_at", "id"],
        (
            f"{_CLAIMABLE} AND last_attempted_at <= last_checked_at AND stale_after_hours IS NULL"
            " AND vanish_signature IS NULL"
            " AND (discovery_requested_at IS NULL OR discovery_requested_at <= last_checked_at)"
        ),
    ),
}


def upgrade() -> None:
    with op.batch_alter_table("source_registry", schema=None) as batch_op:
        batch_op.add_column(sa.Column("vanish_signature", sa.String(64), nullable=True))
        batch_op.add_column(sa.Column("vanish_first_at", UtcDateTime(), nullable=True))
        batch_op.add_column(
            sa.Column("vanish_count", sa.Integer(), server_default=sa.text("0"), nullable=False)
        )
    with op.batch_alter_table("discovery_signatures", schema=None) as batch_op:
        batch_op.add_column(sa.Column("partition_retired_at", UtcDateTime(), nullable=True))
    op.drop_index("ix_source_registry_due", table_name="source_registry")
    for name, (columns, where) in _DUE.items():
        op.create_index(
            name, "source_registry", columns, sqlite_where=sa.text(where), postgresql_where=sa.text(where)
        )


def downgrade() -> None:
    for name in _DUE:
        op.drop_index(name, table_name="source_registry")
    op.create_index(
        "ix_source_registry_due", "source_registry", ["project_module", "enabled", "last_checked_at"]
    )
    with op.batch_alter_table("discovery_signatures", schema=None) as batch_op:
        batch_op.drop_column("partition_retired_at")
    with op.batch_alter_table("source_registry", schema=None) as batch_op:
        batch_op.drop_column("vanish_count")
        batch_op.drop_column("vanish_first_at")
        batch_op.drop_column("vanish_signature")
