"""When each session is looked at, what came of it, and what an operator was told."""

import sqlalchemy as sa
from alembic import op

from beampipe_dagster.ledger.types import Json, UtcDateTime

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

TABLE = "batch_execution_record"
INDEX = "ix_batch_execution_record_due"


def upgrade() -> None:
    with op.batch_alter_table(TABLE, schema=None) as batch_op:
        batch_op.add_column(
            sa.Column("poll_failure_count", sa.Integer(), server_default=sa.text("0"), nullable=False)
        )
        batch_op.add_column(sa.Column("counted_at", UtcDateTime(), nullable=True))
        batch_op.add_column(sa.Column("progress_at", UtcDateTime(), nullable=True))
        batch_op.add_column(sa.Column("escalations", Json, nullable=True))
        batch_op.add_column(sa.Column("session_removed", sa.String(length=200), nullable=True))
        batch_op.create_index(INDEX, ["status", "next_poll_at"], unique=False)


def downgrade() -> None:
    with op.batch_alter_table(TABLE, schema=None) as batch_op:
        batch_op.drop_index(INDEX)
        batch_op.drop_column("session_removed")
        batch_op.drop_column("escalations")
        batch_op.drop_column("progress_at")
        batch_op.drop_column("counted_at")
        batch_op.drop_column("poll_failure_count")
