"""Archives: permits over all processes, a circuit breaker, and health as requests found it."""

import sqlalchemy as sa
from alembic import op

from beampipe_dagster.ledger.types import Json, UtcDateTime

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "archives",
        sa.Column("key", sa.String(255), nullable=False),
        sa.Column("name", sa.String(50), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("max_concurrency", sa.Integer(), nullable=False),
        sa.Column("min_interval_ms", sa.Integer(), nullable=False),
        sa.Column("next_allowed_at", UtcDateTime(), nullable=True),
        sa.Column("pause_until", UtcDateTime(), nullable=True),
        sa.Column("state", sa.String(10), server_default=sa.text("'closed'"), nullable=False),
        sa.Column("failures", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("openings", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("by_hand", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("opened_at", UtcDateTime(), nullable=True),
        sa.Column("open_until", UtcDateTime(), nullable=True),
        sa.Column("open_reason", sa.Text(), nullable=True),
        sa.Column("probe_token", sa.String(36), nullable=True),
        sa.Column("probe_expires_at", UtcDateTime(), nullable=True),
        sa.Column("last_good_at", UtcDateTime(), nullable=True),
        sa.Column("last_failure_at", UtcDateTime(), nullable=True),
        sa.Column("last_error", Json, nullable=True),
        sa.Column("latency_seconds", sa.Float(), nullable=True),
        sa.Column("good_count", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("failure_count", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.CheckConstraint(
            "state IS NULL OR state IN ('closed', 'open', 'half_open')", name=op.f("ck_archives_state")
        ),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_archives")),
    )
    op.create_table(
        "archive_users",
        sa.Column("project_module", sa.String(50), nullable=False),
        sa.Column("adapter", sa.String(50), nullable=False),
        sa.Column("archive_key", sa.String(255), nullable=False),
        sa.PrimaryKeyConstraint("project_module", "adapter", name=op.f("pk_archive_users")),
    )
    op.create_index("ix_archive_users_archive", "archive_users", ["archive_key"])
    op.create_table(
        "archive_permits",
        sa.Column("token", sa.String(36), nullable=False),
        sa.Column("archive_key", sa.String(255), nullable=False),
        sa.Column("holder", sa.String(100), nullable=False),
        sa.Column("taken_at", UtcDateTime(), nullable=False),
        sa.Column("expires_at", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("token", name=op.f("pk_archive_permits")),
    )
    op.create_index("ix_archive_permits_archive", "archive_permits", ["archive_key"])


def downgrade() -> None:
    op.drop_index("ix_archive_permits_archive", table_name="archive_permits")
    op.drop_table("archive_permits")
    op.drop_index("ix_archive_users_archive", table_name="archive_users")
    op.drop_table("archive_users")
    op.drop_table("archives")
