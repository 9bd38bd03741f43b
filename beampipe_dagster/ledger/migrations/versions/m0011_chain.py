"""Events of an execution are chained by their digests."""

import sqlalchemy as sa
from alembic import op

from beampipe_dagster.ledger.types import UtcDateTime

revision = "0011"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("provenance_events", schema=None) as batch_op:
        batch_op.add_column(sa.Column("seq", sa.Integer(), nullable=True))
        batch_op.add_column(sa.Column("prev_sha256", sa.String(length=64), nullable=True))
        batch_op.add_column(sa.Column("sha256", sa.String(length=64), nullable=True))
        batch_op.create_index("ux_provenance_events_chain", ["execution_id", "seq"], unique=True)
    op.create_table(
        "provenance_heads",
        sa.Column("execution_id", sa.String(length=36), nullable=False),
        sa.Column("seq", sa.Integer(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("execution_id", name=op.f("pk_provenance_heads")),
    )
    op.create_table(
        "provenance_purges",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("before", UtcDateTime(), nullable=False),
        sa.Column("actor", sa.String(length=100), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("begun_at", UtcDateTime(), nullable=False),
        sa.Column("done_at", UtcDateTime(), nullable=True),
        sa.Column("events", sa.Integer(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_provenance_purges")),
    )


def downgrade() -> None:
    op.drop_table("provenance_purges")
    op.drop_table("provenance_heads")
    with op.batch_alter_table("provenance_events", schema=None) as batch_op:
        batch_op.drop_index("ux_provenance_events_chain")
        batch_op.drop_column("sha256")
        batch_op.drop_column("prev_sha256")
        batch_op.drop_column("seq")
