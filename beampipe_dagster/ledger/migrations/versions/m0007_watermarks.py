"""How far the archives' new rows have been seen, by survey and query."""

import sqlalchemy as sa
from alembic import op

from beampipe_dagster.ledger.types import Json, UtcDateTime

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "discovery_watermarks",
        sa.Column("project_module", sa.String(length=50), nullable=False),
        sa.Column("query_name", sa.Text(), nullable=False),
        sa.Column("query_sha256", sa.String(length=64), nullable=False),
        sa.Column("position", sa.String(length=100), nullable=True),
        sa.Column("candidate", sa.String(length=100), nullable=True),
        sa.Column("candidate_at", UtcDateTime(), nullable=True),
        sa.Column("seen", Json, nullable=False),
        sa.Column("swept_at", UtcDateTime(), nullable=False),
        sa.Column("sweeps", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.PrimaryKeyConstraint("project_module", "query_name", name=op.f("pk_discovery_watermarks")),
    )


def downgrade() -> None:
    op.drop_table("discovery_watermarks")
