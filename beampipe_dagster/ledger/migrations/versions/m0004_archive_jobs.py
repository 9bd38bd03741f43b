"""Asynchronous queries at archives: an intent before the job, its URL after."""

import sqlalchemy as sa
from alembic import op

from beampipe_dagster.ledger.types import Json, UtcDateTime

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "archive_jobs",
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("archive", sa.String(100), nullable=False),
        sa.Column("tap_url", sa.Text(), nullable=False),
        sa.Column("query_key", sa.String(64), nullable=False),
        sa.Column("query_sha256", sa.String(64), nullable=False),
        sa.Column("upload_sha256", sa.String(64), nullable=True),
        sa.Column("maxrec", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("job_url", sa.Text(), nullable=True),
        sa.Column("phases", Json, nullable=True),
        sa.Column("message", sa.Text(), nullable=True),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("submitted_at", UtcDateTime(), nullable=True),
        sa.Column("destruction_at", UtcDateTime(), nullable=True),
        sa.Column("ended_at", UtcDateTime(), nullable=True),
        sa.Column("deleted_at", UtcDateTime(), nullable=True),
        sa.CheckConstraint(
            "state IS NULL OR state IN ('intent', 'open', 'collected', 'failed', 'lost', 'expired', 'abandoned')",
            name=op.f("ck_archive_jobs_state"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_archive_jobs")),
    )
    op.create_index("ix_archive_jobs_query_key", "archive_jobs", ["query_key", "state"])
    op.create_index("ix_archive_jobs_ended_at", "archive_jobs", ["ended_at"])


def downgrade() -> None:
    op.drop_index("ix_archive_jobs_ended_at", table_name="archive_jobs")
    op.drop_index("ix_archive_jobs_query_key", table_name="archive_jobs")
    op.drop_table("archive_jobs")
