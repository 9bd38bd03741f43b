"""Sources whose looks keep failing by their own fault are set aside."""

import sqlalchemy as sa
from alembic import op

from beampipe_dagster.ledger.types import UtcDateTime

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("source_registry", schema=None) as batch_op:
        batch_op.add_column(
            sa.Column("own_failure_count", sa.Integer(), server_default=sa.text("0"), nullable=False)
        )
        batch_op.add_column(sa.Column("quarantined_at", UtcDateTime(), nullable=True))


def downgrade() -> None:
    with op.batch_alter_table("source_registry", schema=None) as batch_op:
        batch_op.drop_column("quarantined_at")
        batch_op.drop_column("own_failure_count")
