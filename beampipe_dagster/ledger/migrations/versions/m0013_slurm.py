"""Login nodes of clusters: a budget of connections and commands over all processes, and how they answered."""

import sqlalchemy as sa
from alembic import op

from beampipe_dagster.ledger.types import Json, UtcDateTime

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "ssh_targets",
        sa.Column("key", sa.String(64), nullable=False),
        sa.Column("label", sa.String(255), nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("state", sa.String(20), server_default=sa.text("'ok'"), nullable=False),
        sa.Column("failures", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("not_before", UtcDateTime(), nullable=True),
        sa.Column("commands_until", UtcDateTime(), nullable=True),
        sa.Column("last_good_at", UtcDateTime(), nullable=True),
        sa.Column("last_failure_at", UtcDateTime(), nullable=True),
        sa.Column("last_error", Json, nullable=True),
        sa.CheckConstraint(
            "state IS NULL OR state IN ('ok', 'needs_login', 'untrusted', 'unreachable')",
            name=op.f("ck_ssh_targets_state"),
        ),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_ssh_targets")),
    )
    op.create_table(
        "ssh_permits",
        sa.Column("token", sa.String(36), nullable=False),
        sa.Column("target_key", sa.String(64), nullable=False),
        sa.Column("holder", sa.String(100), nullable=False),
        sa.Column("taken_at", UtcDateTime(), nullable=False),
        sa.Column("expires_at", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("token", name=op.f("pk_ssh_permits")),
    )
    op.create_index("ix_ssh_permits_target", "ssh_permits", ["target_key"])


def downgrade() -> None:
    op.drop_index("ix_ssh_permits_target", table_name="ssh_permits")
    op.drop_table("ssh_permits")
    op.drop_table("ssh_targets")
