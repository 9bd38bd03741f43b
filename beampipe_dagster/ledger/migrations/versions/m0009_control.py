"""What operators asked for: cancellations and holds."""

import sqlalchemy as sa
from alembic import op

from beampipe_dagster.ledger.types import UtcDateTime

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

TABLE = "batch_execution_record"


def upgrade() -> None:
    with op.batch_alter_table(TABLE, schema=None) as batch_op:
        batch_op.add_column(sa.Column("cancel_requested_at", UtcDateTime(), nullable=True))
        batch_op.add_column(sa.Column("cancel_requested_by", sa.String(length=100), nullable=True))
        batch_op.add_column(sa.Column("cancel_reason", sa.Text(), nullable=True))
        batch_op.add_column(
            sa.Column("cancel_attempts", sa.Integer(), server_default=sa.text("0"), nullable=False)
        )
        batch_op.add_column(sa.Column("cancel_next_at", UtcDateTime(), nullable=True))
    op.create_table(
        "control_holds",
        sa.Column("scope", sa.String(length=10), nullable=False),
        sa.Column("project_module", sa.String(length=50), nullable=False),
        sa.Column("subject", sa.String(length=160), nullable=False),
        sa.Column("code", sa.String(length=60), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("actor", sa.String(length=100), nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("expires_at", UtcDateTime(), nullable=True),
        sa.PrimaryKeyConstraint("scope", "project_module", "subject", name=op.f("pk_control_holds")),
    )


def downgrade() -> None:
    op.drop_table("control_holds")
    with op.batch_alter_table(TABLE, schema=None) as batch_op:
        batch_op.drop_column("cancel_next_at")
        batch_op.drop_column("cancel_attempts")
        batch_op.drop_column("cancel_reason")
        batch_op.drop_column("cancel_requested_by")
        batch_op.drop_column("cancel_requested_at")
