"""Jobs by which an archive brings files online, and logins that it refused."""

import sqlalchemy as sa
from alembic import op

from beampipe_dagster.ledger.types import Json, UtcDateTime

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

STATES = (
    "planned",
    "intended",
    "uncertain",
    "created",
    "running",
    "completed",
    "failed",
    "abandoned",
    "expired",
)


def upgrade() -> None:
    listed = ", ".join(f"'{state}'" for state in STATES)
    op.create_table(
        "staging_jobs",
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("execution_id", sa.String(36), nullable=False),
        sa.Column("group_key", sa.String(140), nullable=False),
        sa.Column("kind", sa.String(20), nullable=False),
        sa.Column("sbids", Json, nullable=False),
        sa.Column("items", Json, nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("state", sa.String(20), nullable=False),
        sa.Column("live", sa.Boolean(), nullable=False),
        sa.Column("service_url", sa.Text(), nullable=False),
        sa.Column("request_sha256", sa.String(64), nullable=False),
        sa.Column("job_url", sa.Text(), nullable=True),
        sa.Column("phase", sa.String(30), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("intended_at", UtcDateTime(), nullable=False),
        sa.Column("run_at", UtcDateTime(), nullable=True),
        sa.Column("looked_at", UtcDateTime(), nullable=True),
        sa.Column("ended_at", UtcDateTime(), nullable=True),
        sa.Column("expires_at", UtcDateTime(), nullable=True),
        sa.CheckConstraint(f"state IS NULL OR state IN ({listed})", name=op.f("ck_staging_jobs_state")),
        sa.ForeignKeyConstraint(
            ["execution_id"],
            ["batch_execution_record.id"],
            name=op.f("fk_staging_jobs_execution_id"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_staging_jobs")),
        sa.UniqueConstraint(
            "execution_id",
            "group_key",
            "attempt",
            name=op.f("uq_staging_jobs_execution_id_group_key_attempt"),
        ),
    )
    op.create_index(
        "ux_staging_jobs_live",
        "staging_jobs",
        ["execution_id", "group_key"],
        unique=True,
        sqlite_where=sa.text("live"),
        postgresql_where=sa.text("live"),
    )
    op.create_table(
        "staging_logins",
        sa.Column("name", sa.String(300), nullable=False),
        sa.Column("refused_at", UtcDateTime(), nullable=False),
        sa.Column("not_before", UtcDateTime(), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_staging_logins")),
    )


def downgrade() -> None:
    op.drop_table("staging_logins")
    op.drop_table("staging_jobs")
