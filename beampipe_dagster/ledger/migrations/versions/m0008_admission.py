"""Admission keeps its decisions, failed signatures are tried again within a budget, launches have options."""

import sqlalchemy as sa
from alembic import op

from beampipe_dagster.ledger.types import Json, UtcDateTime

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

_KEY = sa.text("create_idempotency_key IS NOT NULL")
_PARTIAL = {
    "ix_source_registry_pending": (["project_module"], "enabled AND workflow_run_pending"),
    "ix_source_registry_waiting": (
        ["project_module", "priority", "workflow_run_pending_at", "created_at", "source_identifier"],
        "enabled AND workflow_run_pending AND hold IS NULL",
    ),
    "ix_source_registry_failed": (["project_module", "source_identifier"], "failed_signature IS NOT NULL"),
}


def upgrade() -> None:
    op.create_table(
        "admission_decisions",
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("project_module", sa.String(50), nullable=False),
        sa.Column("reason", sa.String(60), nullable=True),
        sa.Column("message", sa.Text(), nullable=True),
        sa.Column("admitted", sa.Integer(), nullable=False),
        sa.Column("waiting", sa.Integer(), nullable=False),
        sa.Column("held", sa.Integer(), nullable=False),
        sa.Column("caps", Json, nullable=False),
        sa.Column("profile", sa.String(100), nullable=True),
        sa.Column("project_config_id", sa.String(36), nullable=False),
        sa.Column("decided_at", UtcDateTime(), nullable=False),
        sa.Column("last_seen_at", UtcDateTime(), nullable=False),
        sa.Column("seen_count", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_admission_decisions")),
    )
    op.create_index(
        "ix_admission_decisions_project",
        "admission_decisions",
        ["project_module", "decided_at"],
        unique=False,
    )
    op.create_table(
        "admission_sources",
        sa.Column("project_module", sa.String(50), nullable=False),
        sa.Column("source_identifier", sa.String(100), nullable=False),
        sa.Column("code", sa.String(60), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("not_before", UtcDateTime(), nullable=True),
        sa.Column("decided_at", UtcDateTime(), nullable=False),
        sa.Column("last_seen_at", UtcDateTime(), nullable=False),
        sa.Column("seen_count", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("project_module", "source_identifier", name=op.f("pk_admission_sources")),
    )
    op.create_table(
        "admission_turns",
        sa.Column("project_module", sa.String(50), nullable=False),
        sa.Column("served", sa.Float(), nullable=False),
        sa.Column("updated_at", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("project_module", name=op.f("pk_admission_turns")),
    )
    with op.batch_alter_table("source_registry", schema=None) as batch_op:
        batch_op.add_column(sa.Column("priority", sa.Integer(), server_default=sa.text("0"), nullable=False))
        batch_op.add_column(sa.Column("failed_signature", sa.String(64), nullable=True))
        batch_op.add_column(sa.Column("failed_execution_id", sa.String(36), nullable=True))
        batch_op.add_column(sa.Column("failed_config_id", sa.String(36), nullable=True))
        batch_op.add_column(sa.Column("retry_at", UtcDateTime(), nullable=True))
    with op.batch_alter_table("batch_execution_record", schema=None) as batch_op:
        batch_op.add_column(sa.Column("options", Json, nullable=True))
        batch_op.add_column(sa.Column("retry_policy", Json, nullable=True))
        batch_op.add_column(sa.Column("retry_of", sa.String(36), nullable=True))
        batch_op.add_column(
            sa.Column("retry_number", sa.Integer(), server_default=sa.text("0"), nullable=False)
        )
        batch_op.add_column(sa.Column("create_idempotency_key", sa.String(128), nullable=True))
        batch_op.add_column(sa.Column("create_request_sha256", sa.String(64), nullable=True))
    op.create_index(
        "ux_batch_execution_record_request",
        "batch_execution_record",
        ["created_by", "create_idempotency_key"],
        unique=True,
        sqlite_where=_KEY,
        postgresql_where=_KEY,
    )
    op.drop_index("ix_source_registry_pending", table_name="source_registry")
    for name, (columns, condition) in _PARTIAL.items():
        where = sa.text(condition)
        op.create_index(name, "source_registry", columns, sqlite_where=where, postgresql_where=where)


def downgrade() -> None:
    for name in _PARTIAL:
        op.drop_index(name, table_name="source_registry")
    op.create_index(
        "ix_source_registry_pending", "source_registry", ["project_module", "workflow_run_pending"]
    )
    op.drop_index("ux_batch_execution_record_request", table_name="batch_execution_record")
    with op.batch_alter_table("batch_execution_record", schema=None) as batch_op:
        for column in (
            "create_request_sha256",
            "create_idempotency_key",
            "retry_number",
            "retry_of",
            "retry_policy",
            "options",
        ):
            batch_op.drop_column(column)
    with op.batch_alter_table("source_registry", schema=None) as batch_op:
        for column in ("retry_at", "failed_config_id", "failed_execution_id", "failed_signature", "priority"):
            batch_op.drop_column(column)
    op.drop_table("admission_turns")
    op.drop_table("admission_sources")
    op.drop_index("ix_admission_decisions_project", table_name="admission_decisions")
    op.drop_table("admission_decisions")
