"""The ledger's first tables."""

import sqlalchemy as sa
from alembic import op

from beampipe_dagster.ledger.types import Json, UtcDateTime

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "archive_metadata",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("project_module", sa.String(length=50), nullable=False),
        sa.Column("source_identifier", sa.String(length=100), nullable=False),
        sa.Column("sbid", sa.String(length=100), nullable=False),
        sa.Column("metadata_json", Json, nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("updated_at", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_archive_metadata")),
        sa.UniqueConstraint(
            "project_module",
            "source_identifier",
            "sbid",
            name=op.f("uq_archive_metadata_project_module_source_identifier_sbid"),
        ),
    )
    op.create_table(
        "daliuge_deployment_profile",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("name", sa.String(length=50), nullable=False),
        sa.Column("project_module", sa.String(length=50), nullable=True),
        sa.Column("is_default", sa.Boolean(), nullable=False),
        sa.Column("max_concurrent_executions", sa.Integer(), nullable=True),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("spec", Json, nullable=False),
        sa.Column("spec_sha256", sa.String(length=64), nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("updated_at", UtcDateTime(), nullable=False),
        sa.CheckConstraint("revision >= 1", name=op.f("ck_daliuge_deployment_profile_revision")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_daliuge_deployment_profile")),
        sa.UniqueConstraint("name", name=op.f("uq_daliuge_deployment_profile_name")),
    )
    op.create_table(
        "discovery_claims",
        sa.Column("token", sa.String(length=36), nullable=False),
        sa.Column("project_module", sa.String(length=50), nullable=False),
        sa.Column("source_count", sa.Integer(), nullable=False),
        sa.Column("state", sa.String(length=10), nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("expires_at", UtcDateTime(), nullable=False),
        sa.Column("started_at", UtcDateTime(), nullable=True),
        sa.Column("finished_at", UtcDateTime(), nullable=True),
        sa.Column("stats", Json, nullable=True),
        sa.CheckConstraint(
            "state IN ('claimed', 'running', 'done', 'expired')", name=op.f("ck_discovery_claims_state")
        ),
        sa.PrimaryKeyConstraint("token", name=op.f("pk_discovery_claims")),
    )
    with op.batch_alter_table("discovery_claims", schema=None) as batch_op:
        batch_op.create_index("ix_discovery_claims_open", ["project_module", "state"], unique=False)

    op.create_table(
        "discovery_signatures",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("project_module", sa.String(length=50), nullable=False),
        sa.Column("source_identifier", sa.String(length=100), nullable=False),
        sa.Column("signature", sa.String(length=64), nullable=False),
        sa.Column("previous_signature", sa.String(length=64), nullable=True),
        sa.Column("partition_key", sa.String(length=160), nullable=False),
        sa.Column("project_config_id", sa.String(length=36), nullable=False),
        sa.Column("sbid_count", sa.Integer(), nullable=False),
        sa.Column("dataset_count", sa.Integer(), nullable=False),
        sa.Column("diff", Json, nullable=False),
        sa.Column("evidence", Json, nullable=False),
        sa.Column("metadata_json", Json, nullable=False),
        sa.Column("discovered_at", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_discovery_signatures")),
    )
    with op.batch_alter_table("discovery_signatures", schema=None) as batch_op:
        batch_op.create_index(
            "ix_discovery_signatures_key", ["project_module", "partition_key"], unique=False
        )
        batch_op.create_index(
            "ix_discovery_signatures_source", ["project_module", "source_identifier"], unique=False
        )

    op.create_table(
        "graph_documents",
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("size_bytes", sa.Integer(), nullable=False),
        sa.Column("content", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("sha256", name=op.f("pk_graph_documents")),
    )
    op.create_table(
        "leases",
        sa.Column("name", sa.String(length=100), nullable=False),
        sa.Column("token", sa.String(length=36), nullable=False),
        sa.Column("expires_at", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_leases")),
    )
    op.create_table(
        "outbox",
        sa.Column(
            "id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False
        ),
        sa.Column("kind", sa.String(length=20), nullable=False),
        sa.Column("project_module", sa.String(length=50), nullable=False),
        sa.Column("asset", sa.String(length=50), nullable=False),
        sa.Column("partition_key", sa.String(length=160), nullable=True),
        sa.Column("payload", Json, nullable=False),
        sa.Column("correlation_id", sa.String(length=100), nullable=True),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("available_at", UtcDateTime(), nullable=False),
        sa.Column("delivered_at", UtcDateTime(), nullable=True),
        sa.CheckConstraint(
            "kind IN ('materialization', 'observation', 'check')", name=op.f("ck_outbox_kind")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_outbox")),
        sqlite_autoincrement=True,
    )
    with op.batch_alter_table("outbox", schema=None) as batch_op:
        batch_op.create_index("ix_outbox_due", ["delivered_at", "available_at", "id"], unique=False)

    op.create_table(
        "project_configs",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("project_id", sa.String(length=50), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("spec", Json, nullable=False),
        sa.Column("spec_sha256", sa.String(length=64), nullable=False),
        sa.Column("source_text", sa.Text(), nullable=False),
        sa.Column("graph_sha256", sa.String(length=64), nullable=True),
        sa.Column("active", sa.Boolean(), nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_project_configs")),
        sa.UniqueConstraint("project_id", "version", name=op.f("uq_project_configs_project_id_version")),
    )
    with op.batch_alter_table("project_configs", schema=None) as batch_op:
        batch_op.create_index(
            "ux_project_configs_active",
            ["project_id"],
            unique=True,
            sqlite_where=sa.text("active"),
            postgresql_where=sa.text("active"),
        )

    op.create_table(
        "provenance_events",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("occurred_at", UtcDateTime(), nullable=False),
        sa.Column("event_type", sa.String(length=60), nullable=False),
        sa.Column("project_module", sa.String(length=50), nullable=False),
        sa.Column("source_identifier", sa.String(length=100), nullable=True),
        sa.Column("execution_id", sa.String(length=36), nullable=True),
        sa.Column("actor", sa.String(length=100), nullable=False),
        sa.Column("correlation_id", sa.String(length=100), nullable=True),
        sa.Column("payload", Json, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_provenance_events")),
    )
    with op.batch_alter_table("provenance_events", schema=None) as batch_op:
        batch_op.create_index("ix_provenance_events_execution", ["execution_id", "occurred_at"], unique=False)
        batch_op.create_index(
            "ix_provenance_events_source",
            ["project_module", "source_identifier", "occurred_at"],
            unique=False,
        )
        batch_op.create_index("ix_provenance_events_time", ["occurred_at"], unique=False)

    op.create_table(
        "source_registry",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("project_module", sa.String(length=50), nullable=False),
        sa.Column("source_identifier", sa.String(length=100), nullable=False),
        sa.Column("enabled", sa.Boolean(), nullable=False),
        sa.Column("ra_deg", sa.Float(), nullable=True),
        sa.Column("dec_deg", sa.Float(), nullable=True),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("updated_at", UtcDateTime(), nullable=False),
        sa.Column("stale_after_hours", sa.Integer(), nullable=True),
        sa.Column("last_checked_at", UtcDateTime(), nullable=True),
        sa.Column("last_attempted_at", UtcDateTime(), nullable=True),
        sa.Column("discovery_requested_at", UtcDateTime(), nullable=True),
        sa.Column("last_outcome", sa.String(length=20), nullable=True),
        sa.Column("last_error", Json, nullable=True),
        sa.Column("failure_count", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("next_attempt_at", UtcDateTime(), nullable=True),
        sa.Column("discovery_signature", sa.String(length=64), nullable=True),
        sa.Column("last_executed_discovery_signature", sa.String(length=64), nullable=True),
        sa.Column("discovery_claim_token", sa.String(length=36), nullable=True),
        sa.Column("discovery_claim_expires_at", UtcDateTime(), nullable=True),
        sa.Column("workflow_run_pending", sa.Boolean(), server_default=sa.text("(false)"), nullable=False),
        sa.Column("workflow_run_pending_at", UtcDateTime(), nullable=True),
        sa.Column("hold", Json, nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_source_registry")),
        sa.UniqueConstraint(
            "project_module",
            "source_identifier",
            name=op.f("uq_source_registry_project_module_source_identifier"),
        ),
    )
    with op.batch_alter_table("source_registry", schema=None) as batch_op:
        batch_op.create_index("ix_source_registry_claim", ["discovery_claim_token"], unique=False)
        batch_op.create_index(
            "ix_source_registry_due", ["project_module", "enabled", "last_checked_at"], unique=False
        )
        batch_op.create_index(
            "ix_source_registry_pending", ["project_module", "workflow_run_pending"], unique=False
        )

    op.create_table(
        "batch_execution_record",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("project_module", sa.String(length=50), nullable=False),
        sa.Column("partition_key", sa.String(length=160), nullable=False),
        sa.Column("claim_token", sa.String(length=36), nullable=False),
        sa.Column("sources", Json, nullable=False),
        sa.Column("archive_name", sa.String(length=50), nullable=False),
        sa.Column("discovery_signature", sa.String(length=64), nullable=False),
        sa.Column("project_config_id", sa.String(length=36), nullable=False),
        sa.Column("deployment_profile_id", sa.String(length=36), nullable=True),
        sa.Column("deployment_profile_revision", sa.Integer(), nullable=True),
        sa.Column("deployment_profile_snapshot", Json, nullable=False),
        sa.Column("workflow_manifest", Json, nullable=True),
        sa.Column("manifest_sha256", sa.String(length=64), nullable=True),
        sa.Column("source_graph_sha256", sa.String(length=64), nullable=True),
        sa.Column("patched_graph_sha256", sa.String(length=64), nullable=True),
        sa.Column("physical_graph_sha256", sa.String(length=64), nullable=True),
        sa.Column("dataset_count", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("status", sa.String(length=20), nullable=False),
        sa.Column("execution_phase", sa.String(length=30), nullable=True),
        sa.Column("control_phase", sa.String(length=30), nullable=False),
        sa.Column("submission_state", sa.String(length=20), nullable=False),
        sa.Column("submission_deadline_at", UtcDateTime(), nullable=True),
        sa.Column("submission_abandoned_at", UtcDateTime(), nullable=True),
        sa.Column("scheduler_name", sa.String(length=30), nullable=True),
        sa.Column("scheduler_job_id", sa.String(length=100), nullable=True),
        sa.Column("scheduler_state", sa.String(length=20), nullable=False),
        sa.Column("scheduler_raw_state", sa.String(length=100), nullable=True),
        sa.Column("scheduler_reason", sa.Text(), nullable=True),
        sa.Column("daliuge_session_id", sa.String(length=200), nullable=True),
        sa.Column("daliuge_manager_url", sa.Text(), nullable=True),
        sa.Column("daliuge_state", sa.String(length=20), nullable=False),
        sa.Column("daliuge_raw_status", Json, nullable=True),
        sa.Column("drop_counts", Json, nullable=True),
        sa.Column("output_state", sa.String(length=20), nullable=False),
        sa.Column("output_verification_required", sa.Boolean(), nullable=False),
        sa.Column("output_verification_policy", Json, nullable=True),
        sa.Column("remote_session_dir", sa.Text(), nullable=True),
        sa.Column("terminal_outcome", sa.String(length=20), nullable=True),
        sa.Column("failure_class", sa.String(length=30), nullable=True),
        sa.Column("last_error", sa.Text(), nullable=True),
        sa.Column("last_error_code", sa.String(length=100), nullable=True),
        sa.Column("phase_timestamps", Json, nullable=False),
        sa.Column("launch_count", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("next_launch_at", UtcDateTime(), nullable=True),
        sa.Column("wait_count", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("lease_token", sa.String(length=36), nullable=True),
        sa.Column("lease_expires_at", UtcDateTime(), nullable=True),
        sa.Column("attempt", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("absent_count", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("poll_count", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("next_poll_at", UtcDateTime(), nullable=True),
        sa.Column("last_reconciled_at", UtcDateTime(), nullable=True),
        sa.Column("created_by", sa.String(length=100), nullable=False),
        sa.Column("retry_count", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("updated_at", UtcDateTime(), nullable=False),
        sa.Column("started_at", UtcDateTime(), nullable=True),
        sa.Column("completed_at", UtcDateTime(), nullable=True),
        sa.CheckConstraint(
            "control_phase IS NULL OR control_phase IN ('discovered', 'admission_pending', 'admitted', 'manifest_generated', 'graph_patched', 'translated', 'submission_pending', 'submitted', 'monitoring', 'output_verification', 'terminal')",
            name=op.f("ck_batch_execution_record_control_phase"),
        ),
        sa.CheckConstraint(
            "daliuge_state IS NULL OR daliuge_state IN ('not_created', 'pristine', 'building', 'deploying', 'running', 'finished', 'cancelled', 'failed', 'unknown', 'unreachable')",
            name=op.f("ck_batch_execution_record_daliuge_state"),
        ),
        sa.CheckConstraint(
            "execution_phase IS NULL OR execution_phase IN ('stage_and_manifest', 'submit')",
            name=op.f("ck_batch_execution_record_execution_phase"),
        ),
        sa.CheckConstraint(
            "output_state IS NULL OR output_state IN ('not_started', 'pending', 'verifying', 'verified', 'failed', 'unknown')",
            name=op.f("ck_batch_execution_record_output_state"),
        ),
        sa.CheckConstraint(
            "scheduler_state IS NULL OR scheduler_state IN ('not_submitted', 'pending', 'running', 'succeeded', 'failed', 'cancelled', 'timed_out', 'unknown')",
            name=op.f("ck_batch_execution_record_scheduler_state"),
        ),
        sa.CheckConstraint(
            "status <> 'completed' OR NOT output_verification_required OR output_state = 'verified'",
            name=op.f("ck_batch_execution_record_completed_is_verified"),
        ),
        sa.CheckConstraint(
            "status IS NULL OR status IN ('pending', 'running', 'awaiting_scheduler', 'not_submitted', 'completed', 'failed', 'retrying', 'cancelled')",
            name=op.f("ck_batch_execution_record_status"),
        ),
        sa.CheckConstraint(
            "submission_state IS NULL OR submission_state IN ('not_started', 'preparing', 'in_flight', 'submitted', 'uncertain', 'failed')",
            name=op.f("ck_batch_execution_record_submission_state"),
        ),
        sa.CheckConstraint(
            "terminal_outcome IS NULL OR terminal_outcome IN ('succeeded', 'failed', 'cancelled', 'inconsistent')",
            name=op.f("ck_batch_execution_record_terminal_outcome"),
        ),
        sa.ForeignKeyConstraint(
            ["project_config_id"],
            ["project_configs.id"],
            name=op.f("fk_batch_execution_record_project_config_id"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_batch_execution_record")),
    )
    with op.batch_alter_table("batch_execution_record", schema=None) as batch_op:
        batch_op.create_index("ix_batch_execution_record_claim", ["claim_token"], unique=False)
        batch_op.create_index(
            "ix_batch_execution_record_key", ["project_module", "partition_key"], unique=False
        )
        batch_op.create_index("ix_batch_execution_record_status", ["project_module", "status"], unique=False)
        batch_op.create_index(
            "ux_batch_execution_record_session",
            ["daliuge_session_id"],
            unique=True,
            sqlite_where=sa.text("daliuge_session_id IS NOT NULL"),
            postgresql_where=sa.text("daliuge_session_id IS NOT NULL"),
        )

    op.create_table(
        "execution_artifacts",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("execution_id", sa.String(length=36), nullable=False),
        sa.Column("kind", sa.String(length=20), nullable=False),
        sa.Column("storage_kind", sa.String(length=10), nullable=False),
        sa.Column("media_type", sa.String(length=100), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("content", sa.LargeBinary(), nullable=True),
        sa.Column("uri", sa.Text(), nullable=True),
        sa.Column("producer_phase", sa.String(length=30), nullable=False),
        sa.Column("metadata", Json, nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.CheckConstraint(
            "kind IS NULL OR kind IN ('manifest', 'source_graph', 'patched_graph', 'physical_graph', 'output_inventory')",
            name=op.f("ck_execution_artifacts_kind"),
        ),
        sa.ForeignKeyConstraint(
            ["execution_id"], ["batch_execution_record.id"], name=op.f("fk_execution_artifacts_execution_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_execution_artifacts")),
        sa.UniqueConstraint(
            "execution_id", "kind", "sha256", name=op.f("uq_execution_artifacts_execution_id_kind_sha256")
        ),
    )
    op.create_table(
        "execution_observations",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("execution_id", sa.String(length=36), nullable=False),
        sa.Column("kind", sa.String(length=20), nullable=False),
        sa.Column("normalized_state", sa.String(length=30), nullable=False),
        sa.Column("raw_state", sa.Text(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("payload", Json, nullable=True),
        sa.Column("observed_at", UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(
            ["execution_id"],
            ["batch_execution_record.id"],
            name=op.f("fk_execution_observations_execution_id"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_execution_observations")),
    )
    with op.batch_alter_table("execution_observations", schema=None) as batch_op:
        batch_op.create_index(
            "ix_execution_observations_execution", ["execution_id", "observed_at"], unique=False
        )

    op.create_table(
        "execution_sources",
        sa.Column("execution_id", sa.String(length=36), nullable=False),
        sa.Column("source_identifier", sa.String(length=100), nullable=False),
        sa.Column("project_module", sa.String(length=50), nullable=False),
        sa.Column("discovery_signature", sa.String(length=64), nullable=False),
        sa.Column("active", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(
            ["execution_id"], ["batch_execution_record.id"], name=op.f("fk_execution_sources_execution_id")
        ),
        sa.PrimaryKeyConstraint("execution_id", "source_identifier", name=op.f("pk_execution_sources")),
    )
    with op.batch_alter_table("execution_sources", schema=None) as batch_op:
        batch_op.create_index(
            "ix_execution_sources_source", ["project_module", "source_identifier"], unique=False
        )
        batch_op.create_index(
            "ux_execution_sources_active",
            ["project_module", "source_identifier"],
            unique=True,
            sqlite_where=sa.text("active"),
            postgresql_where=sa.text("active"),
        )


def downgrade() -> None:
    with op.batch_alter_table("execution_sources", schema=None) as batch_op:
        batch_op.drop_index(
            "ux_execution_sources_active", sqlite_where=sa.text("active"), postgresql_where=sa.text("active")
        )
        batch_op.drop_index("ix_execution_sources_source")

    op.drop_table("execution_sources")
    with op.batch_alter_table("execution_observations", schema=None) as batch_op:
        batch_op.drop_index("ix_execution_observations_execution")

    op.drop_table("execution_observations")
    op.drop_table("execution_artifacts")
    with op.batch_alter_table("batch_execution_record", schema=None) as batch_op:
        batch_op.drop_index(
            "ux_batch_execution_record_session",
            sqlite_where=sa.text("daliuge_session_id IS NOT NULL"),
            postgresql_where=sa.text("daliuge_session_id IS NOT NULL"),
        )
        batch_op.drop_index("ix_batch_execution_record_status")
        batch_op.drop_index("ix_batch_execution_record_key")
        batch_op.drop_index("ix_batch_execution_record_claim")

    op.drop_table("batch_execution_record")
    with op.batch_alter_table("source_registry", schema=None) as batch_op:
        batch_op.drop_index("ix_source_registry_pending")
        batch_op.drop_index("ix_source_registry_due")
        batch_op.drop_index("ix_source_registry_claim")

    op.drop_table("source_registry")
    with op.batch_alter_table("provenance_events", schema=None) as batch_op:
        batch_op.drop_index("ix_provenance_events_time")
        batch_op.drop_index("ix_provenance_events_source")
        batch_op.drop_index("ix_provenance_events_execution")

    op.drop_table("provenance_events")
    with op.batch_alter_table("project_configs", schema=None) as batch_op:
        batch_op.drop_index(
            "ux_project_configs_active", sqlite_where=sa.text("active"), postgresql_where=sa.text("active")
        )

    op.drop_table("project_configs")
    with op.batch_alter_table("outbox", schema=None) as batch_op:
        batch_op.drop_index("ix_outbox_due")

    op.drop_table("outbox")
    op.drop_table("leases")
    op.drop_table("graph_documents")
    with op.batch_alter_table("discovery_signatures", schema=None) as batch_op:
        batch_op.drop_index("ix_discovery_signatures_source")
        batch_op.drop_index("ix_discovery_signatures_key")

    op.drop_table("discovery_signatures")
    with op.batch_alter_table("discovery_claims", schema=None) as batch_op:
        batch_op.drop_index("ix_discovery_claims_open")

    op.drop_table("discovery_claims")
    op.drop_table("daliuge_deployment_profile")
    op.drop_table("archive_metadata")
