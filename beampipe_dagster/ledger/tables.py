"""The ledger's tables.

Identifiers are time-ordered UUIDs as text; times are aware and in UTC; documents are JSON. A rule that keeps a
source from running twice, or a revision from being active twice, is a unique index here and not only a check in
a service.
"""

from __future__ import annotations

import sqlalchemy as sa

from beampipe_dagster.ledger import (
    tables_admission,  # noqa: F401  # its tables belong to the metadata
    tables_archive_jobs,  # noqa: F401  # its tables belong to the metadata
    tables_archives,  # noqa: F401  # its tables belong to the metadata
    tables_chain,  # noqa: F401  # its tables belong to the metadata
    tables_control,  # noqa: F401  # its tables belong to the metadata
    tables_slurm,  # noqa: F401  # its tables belong to the metadata
    tables_staging,  # noqa: F401  # its tables belong to the metadata
    tables_watermarks,  # noqa: F401  # its tables belong to the metadata
)
from beampipe_dagster.ledger.schema import VERSION_TABLE, metadata, one_of
from beampipe_dagster.ledger.states import (
    ArtifactKind,
    ControlPhase,
    DaliugeState,
    ExecutionPhase,
    OutputState,
    SchedulerState,
    Status,
    SubmissionState,
    TerminalOutcome,
)
from beampipe_dagster.ledger.types import Json, UtcDateTime

__all__ = ["VERSION_TABLE", "metadata"]

project_configs = sa.Table(
    "project_configs",
    metadata,
    sa.Column("id", sa.String(36), primary_key=True),
    sa.Column("project_id", sa.String(50), nullable=False),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("spec", Json, nullable=False),
    sa.Column("spec_sha256", sa.String(64), nullable=False),
    sa.Column("source_text", sa.Text, nullable=False),
    sa.Column("graph_sha256", sa.String(64)),
    sa.Column("active", sa.Boolean, nullable=False),
    sa.Column("created_at", UtcDateTime, nullable=False),
    sa.UniqueConstraint("project_id", "version"),
    sa.Index(
        "ux_project_configs_active",
        "project_id",
        unique=True,
        sqlite_where=sa.text("active"),
        postgresql_where=sa.text("active"),
    ),
)
"""Immutable revisions of a survey's YAML; at most one is active."""

graph_documents = sa.Table(
    "graph_documents",
    metadata,
    sa.Column("sha256", sa.String(64), primary_key=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("size_bytes", sa.Integer, nullable=False),
    sa.Column("content", sa.LargeBinary, nullable=False),
    sa.Column("created_at", UtcDateTime, nullable=False),
)
"""Logical graphs as they were read when a revision was added (zlib), by the SHA-256 of their raw bytes."""

daliuge_deployment_profile = sa.Table(
    "daliuge_deployment_profile",
    metadata,
    sa.Column("id", sa.String(36), primary_key=True),
    sa.Column("name", sa.String(50), nullable=False, unique=True),
    sa.Column("project_module", sa.String(50)),
    sa.Column("is_default", sa.Boolean, nullable=False),
    sa.Column("max_concurrent_executions", sa.Integer),
    sa.Column("revision", sa.Integer, nullable=False),
    sa.Column("spec", Json, nullable=False),
    sa.Column("spec_sha256", sa.String(64), nullable=False),
    sa.Column("created_at", UtcDateTime, nullable=False),
    sa.Column("updated_at", UtcDateTime, nullable=False),
    sa.CheckConstraint("revision >= 1", name="revision"),
)

_CLAIMABLE = "enabled AND quarantined_at IS NULL"
DUE_NEW = f"{_CLAIMABLE} AND last_attempted_at IS NULL"
"""Sources without an attempt that counts: what :mod:`beampipe_dagster.ledger.due` claims first."""
DUE_UNSETTLED = (
    f"{_CLAIMABLE} AND last_attempted_at IS NOT NULL AND (last_checked_at IS NULL"
    " OR last_attempted_at > last_checked_at OR stale_after_hours IS NOT NULL"
    " OR vanish_signature IS NOT NULL OR discovery_requested_at > last_checked_at)"
)
"""Attempted sources about which the survey's staleness alone does not decide."""
DUE_SETTLED = (
    f"{_CLAIMABLE} AND last_attempted_at <= last_checked_at AND stale_after_hours IS NULL"
    " AND vanish_signature IS NULL"
    " AND (discovery_requested_at IS NULL OR discovery_requested_at <= last_checked_at)"
)
"""All other attempted sources. Each source that may be claimed is in exactly one of the three."""

WAITING = "enabled AND workflow_run_pending AND hold IS NULL"
"""Sources that may get their turn, as far as their row says."""
PENDING = "enabled AND workflow_run_pending"
FAILED = "failed_signature IS NOT NULL"

source_registry = sa.Table(
    "source_registry",
    metadata,
    sa.Column("id", sa.String(36), primary_key=True),
    sa.Column("project_module", sa.String(50), nullable=False),
    sa.Column("source_identifier", sa.String(100), nullable=False),
    sa.Column("enabled", sa.Boolean, nullable=False),
    sa.Column("ra_deg", sa.Float),
    sa.Column("dec_deg", sa.Float),
    sa.Column("created_at", UtcDateTime, nullable=False),
    sa.Column("updated_at", UtcDateTime, nullable=False),
    sa.Column("stale_after_hours", sa.Integer),
    sa.Column("last_checked_at", UtcDateTime),
    sa.Column("last_attempted_at", UtcDateTime),
    sa.Column("discovery_requested_at", UtcDateTime),
    sa.Column("last_outcome", sa.String(20)),
    sa.Column("last_error", Json),
    sa.Column("failure_count", sa.Integer, nullable=False, server_default=sa.text("0")),
    sa.Column("next_attempt_at", UtcDateTime),
    sa.Column("discovery_signature", sa.String(64)),
    sa.Column("last_executed_discovery_signature", sa.String(64)),
    sa.Column("discovery_claim_token", sa.String(36)),
    sa.Column("discovery_claim_expires_at", UtcDateTime),
    sa.Column("workflow_run_pending", sa.Boolean, nullable=False, server_default=sa.text("false")),
    sa.Column("workflow_run_pending_at", UtcDateTime),
    sa.Column("hold", Json),
    sa.Column("own_failure_count", sa.Integer, nullable=False, server_default=sa.text("0")),
    sa.Column("quarantined_at", UtcDateTime),
    # Admission: who goes first, and what is tried again
    sa.Column("priority", sa.Integer, nullable=False, server_default=sa.text("0")),
    sa.Column("failed_signature", sa.String(64)),
    sa.Column("failed_execution_id", sa.String(36)),
    sa.Column("failed_config_id", sa.String(36)),
    sa.Column("retry_at", UtcDateTime),
    # Fewer datasets than are stored, seen once: what the source would be, if a second look says the same.
    sa.Column("vanish_signature", sa.String(64)),
    sa.Column("vanish_first_at", UtcDateTime),
    sa.Column("vanish_count", sa.Integer, nullable=False, server_default=sa.text("0")),
    sa.UniqueConstraint("project_module", "source_identifier"),
    sa.Index(
        "ix_source_registry_new",
        "project_module",
        "discovery_requested_at",
        "id",
        sqlite_where=sa.text(DUE_NEW),
        postgresql_where=sa.text(DUE_NEW),
    ),
    sa.Index(
        "ix_source_registry_unsettled",
        "project_module",
        "last_attempted_at",
        "id",
        sqlite_where=sa.text(DUE_UNSETTLED),
        postgresql_where=sa.text(DUE_UNSETTLED),
    ),
    sa.Index(
        "ix_source_registry_settled",
        "project_module",
        "last_attempted_at",
        "id",
        sqlite_where=sa.text(DUE_SETTLED),
        postgresql_where=sa.text(DUE_SETTLED),
    ),
    sa.Index("ix_source_registry_claim", "discovery_claim_token"),
    sa.Index(
        "ix_source_registry_pending",
        "project_module",
        sqlite_where=sa.text(PENDING),
        postgresql_where=sa.text(PENDING),
    ),
    sa.Index(
        "ix_source_registry_waiting",
        "project_module",
        "priority",
        "workflow_run_pending_at",
        "created_at",
        "source_identifier",
        sqlite_where=sa.text(WAITING),
        postgresql_where=sa.text(WAITING),
    ),
    sa.Index(
        "ix_source_registry_failed",
        "project_module",
        "source_identifier",
        sqlite_where=sa.text(FAILED),
        postgresql_where=sa.text(FAILED),
    ),
)
"""Who is to be processed, and what the last look at the archives said."""

archive_metadata = sa.Table(
    "archive_metadata",
    metadata,
    sa.Column("id", sa.String(36), primary_key=True),
    sa.Column("project_module", sa.String(50), nullable=False),
    sa.Column("source_identifier", sa.String(100), nullable=False),
    sa.Column("sbid", sa.String(100), nullable=False),
    sa.Column("metadata_json", Json, nullable=False),
    sa.Column("created_at", UtcDateTime, nullable=False),
    sa.Column("updated_at", UtcDateTime, nullable=False),
    sa.UniqueConstraint("project_module", "source_identifier", "sbid"),
)
"""The current metadata of a source: one row a scheduling block, every field kept."""

discovery_signatures = sa.Table(
    "discovery_signatures",
    metadata,
    sa.Column("id", sa.String(36), primary_key=True),
    sa.Column("project_module", sa.String(50), nullable=False),
    sa.Column("source_identifier", sa.String(100), nullable=False),
    sa.Column("signature", sa.String(64), nullable=False),
    sa.Column("previous_signature", sa.String(64)),
    sa.Column("partition_key", sa.String(160), nullable=False),
    sa.Column("project_config_id", sa.String(36), nullable=False),
    sa.Column("sbid_count", sa.Integer, nullable=False),
    sa.Column("dataset_count", sa.Integer, nullable=False),
    sa.Column("diff", Json, nullable=False),
    sa.Column("evidence", Json, nullable=False),
    sa.Column("metadata_json", Json, nullable=False),
    sa.Column("discovered_at", UtcDateTime, nullable=False),
    sa.Column("partition_retired_at", UtcDateTime),
    sa.Index("ix_discovery_signatures_source", "project_module", "source_identifier"),
    sa.Index("ix_discovery_signatures_key", "project_module", "partition_key"),
)
"""Every change of a signature, with what changed and the answers that it rests on.

Append-only, but for the time at which the key was taken out of Dagster's partitions.
"""

discovery_claims = sa.Table(
    "discovery_claims",
    metadata,
    sa.Column("token", sa.String(36), primary_key=True),
    sa.Column("project_module", sa.String(50), nullable=False),
    sa.Column("source_count", sa.Integer, nullable=False),
    sa.Column("state", sa.String(10), nullable=False),
    sa.Column("created_at", UtcDateTime, nullable=False),
    sa.Column("expires_at", UtcDateTime, nullable=False),
    sa.Column("started_at", UtcDateTime),
    sa.Column("finished_at", UtcDateTime),
    sa.Column("stats", Json),
    sa.CheckConstraint("state IN ('claimed', 'running', 'done', 'expired')", name="state"),
    sa.Index("ix_discovery_claims_open", "project_module", "state"),
)
"""One batch of sources on its way through discovery. The token is the run key of its run."""

batch_execution_record = sa.Table(
    "batch_execution_record",
    metadata,
    sa.Column("id", sa.String(36), primary_key=True),
    sa.Column("project_module", sa.String(50), nullable=False),
    sa.Column("partition_key", sa.String(160), nullable=False),
    sa.Column("claim_token", sa.String(36), nullable=False),
    sa.Column("sources", Json, nullable=False),
    sa.Column("archive_name", sa.String(50), nullable=False),
    sa.Column("discovery_signature", sa.String(64), nullable=False),
    sa.Column("project_config_id", sa.String(36), sa.ForeignKey("project_configs.id"), nullable=False),
    sa.Column("deployment_profile_id", sa.String(36)),
    sa.Column("deployment_profile_revision", sa.Integer),
    sa.Column("deployment_profile_snapshot", Json, nullable=False),
    # What was built
    sa.Column("workflow_manifest", Json),
    sa.Column("manifest_sha256", sa.String(64)),
    sa.Column("source_graph_sha256", sa.String(64)),
    sa.Column("patched_graph_sha256", sa.String(64)),
    sa.Column("physical_graph_sha256", sa.String(64)),
    sa.Column("dataset_count", sa.Integer, nullable=False, server_default=sa.text("0")),
    # Status and axes
    sa.Column("status", sa.String(20), nullable=False),
    sa.Column("execution_phase", sa.String(30)),
    sa.Column("control_phase", sa.String(30), nullable=False),
    sa.Column("submission_state", sa.String(20), nullable=False),
    sa.Column("submission_deadline_at", UtcDateTime),
    sa.Column("submission_abandoned_at", UtcDateTime),
    sa.Column("scheduler_name", sa.String(30)),
    sa.Column("scheduler_job_id", sa.String(100)),
    sa.Column("scheduler_state", sa.String(20), nullable=False),
    sa.Column("scheduler_raw_state", sa.String(100)),
    sa.Column("scheduler_reason", sa.Text),
    sa.Column("daliuge_session_id", sa.String(200)),
    sa.Column("daliuge_manager_url", sa.Text),
    sa.Column("daliuge_state", sa.String(20), nullable=False),
    sa.Column("daliuge_raw_status", Json),
    sa.Column("drop_counts", Json),
    sa.Column("output_state", sa.String(20), nullable=False),
    sa.Column("output_verification_required", sa.Boolean, nullable=False),
    sa.Column("output_verification_policy", Json),
    sa.Column("remote_session_dir", sa.Text),
    sa.Column("terminal_outcome", sa.String(20)),
    sa.Column("failure_class", sa.String(30)),
    sa.Column("last_error", sa.Text),
    sa.Column("last_error_code", sa.String(100)),
    sa.Column("phase_timestamps", Json, nullable=False),
    # Who does the next step, and when
    sa.Column("launch_count", sa.Integer, nullable=False, server_default=sa.text("0")),
    sa.Column("next_launch_at", UtcDateTime),
    sa.Column("wait_count", sa.Integer, nullable=False, server_default=sa.text("0")),
    sa.Column("lease_token", sa.String(36)),
    sa.Column("lease_expires_at", UtcDateTime),
    sa.Column("attempt", sa.Integer, nullable=False, server_default=sa.text("0")),
    sa.Column("absent_count", sa.Integer, nullable=False, server_default=sa.text("0")),
    sa.Column("poll_count", sa.Integer, nullable=False, server_default=sa.text("0")),
    sa.Column("next_poll_at", UtcDateTime),
    sa.Column("last_reconciled_at", UtcDateTime),
    sa.Column("poll_failure_count", sa.Integer, nullable=False, server_default=sa.text("0")),
    sa.Column("counted_at", UtcDateTime),
    sa.Column("progress_at", UtcDateTime),
    sa.Column("escalations", Json),
    sa.Column("session_removed", sa.String(200)),
    # A cancellation that was asked for
    sa.Column("cancel_requested_at", UtcDateTime),
    sa.Column("cancel_requested_by", sa.String(100)),
    sa.Column("cancel_reason", sa.Text),
    sa.Column("cancel_attempts", sa.Integer, nullable=False, server_default=sa.text("0")),
    sa.Column("cancel_next_at", UtcDateTime),
    # Who asked
    sa.Column("created_by", sa.String(100), nullable=False),
    sa.Column("retry_count", sa.Integer, nullable=False, server_default=sa.text("0")),
    sa.Column("options", Json),
    sa.Column("retry_policy", Json),
    sa.Column("retry_of", sa.String(36)),
    sa.Column("retry_number", sa.Integer, nullable=False, server_default=sa.text("0")),
    sa.Column("create_idempotency_key", sa.String(128)),
    sa.Column("create_request_sha256", sa.String(64)),
    sa.Column("created_at", UtcDateTime, nullable=False),
    sa.Column("updated_at", UtcDateTime, nullable=False),
    sa.Column("started_at", UtcDateTime),
    sa.Column("completed_at", UtcDateTime),
    one_of("status", Status),
    one_of("execution_phase", ExecutionPhase),
    one_of("control_phase", ControlPhase),
    one_of("submission_state", SubmissionState),
    one_of("scheduler_state", SchedulerState),
    one_of("daliuge_state", DaliugeState),
    one_of("output_state", OutputState),
    one_of("terminal_outcome", TerminalOutcome),
    sa.CheckConstraint(
        "status <> 'completed' OR NOT output_verification_required OR output_state = 'verified'",
        name="completed_is_verified",
    ),
    sa.Index("ix_batch_execution_record_status", "project_module", "status"),
    sa.Index("ix_batch_execution_record_key", "project_module", "partition_key"),
    sa.Index("ix_batch_execution_record_claim", "claim_token"),
    sa.Index("ix_batch_execution_record_due", "status", "next_poll_at"),
    sa.Index(
        "ux_batch_execution_record_request",
        "created_by",
        "create_idempotency_key",
        unique=True,
        sqlite_where=sa.text("create_idempotency_key IS NOT NULL"),
        postgresql_where=sa.text("create_idempotency_key IS NOT NULL"),
    ),
    sa.Index(
        "ux_batch_execution_record_session",
        "daliuge_session_id",
        unique=True,
        sqlite_where=sa.text("daliuge_session_id IS NOT NULL"),
        postgresql_where=sa.text("daliuge_session_id IS NOT NULL"),
    ),
)
"""One execution: what is run for which signature, and how far it is."""

execution_sources = sa.Table(
    "execution_sources",
    metadata,
    sa.Column(
        "execution_id",
        sa.String(36),
        sa.ForeignKey("batch_execution_record.id"),
        primary_key=True,
    ),
    sa.Column("source_identifier", sa.String(100), primary_key=True),
    sa.Column("project_module", sa.String(50), nullable=False),
    sa.Column("discovery_signature", sa.String(64), nullable=False),
    sa.Column("active", sa.Boolean, nullable=False),
    sa.Index("ix_execution_sources_source", "project_module", "source_identifier"),
    sa.Index(
        "ux_execution_sources_active",
        "project_module",
        "source_identifier",
        unique=True,
        sqlite_where=sa.text("active"),
        postgresql_where=sa.text("active"),
    ),
)
"""The lock: while an execution is active, no other one may hold any of its sources."""

execution_artifacts = sa.Table(
    "execution_artifacts",
    metadata,
    sa.Column("id", sa.String(36), primary_key=True),
    sa.Column("execution_id", sa.String(36), sa.ForeignKey("batch_execution_record.id"), nullable=False),
    sa.Column("kind", sa.String(20), nullable=False),
    sa.Column("storage_kind", sa.String(10), nullable=False),
    sa.Column("media_type", sa.String(100), nullable=False),
    sa.Column("sha256", sa.String(64), nullable=False),
    sa.Column("size_bytes", sa.BigInteger, nullable=False),
    sa.Column("content", sa.LargeBinary),
    sa.Column("uri", sa.Text),
    sa.Column("producer_phase", sa.String(30), nullable=False),
    sa.Column("metadata", Json, nullable=False),
    sa.Column("created_at", UtcDateTime, nullable=False),
    one_of("kind", ArtifactKind),
    sa.UniqueConstraint("execution_id", "kind", "sha256"),
)
"""Immutable documents; the content is the canonical JSON text, zlib-compressed."""

execution_observations = sa.Table(
    "execution_observations",
    metadata,
    sa.Column("id", sa.String(36), primary_key=True),
    sa.Column("execution_id", sa.String(36), sa.ForeignKey("batch_execution_record.id"), nullable=False),
    sa.Column("kind", sa.String(20), nullable=False),
    sa.Column("normalized_state", sa.String(30), nullable=False),
    sa.Column("raw_state", sa.Text),
    sa.Column("reason", sa.Text),
    sa.Column("payload", Json),
    sa.Column("observed_at", UtcDateTime, nullable=False),
    sa.Index("ix_execution_observations_execution", "execution_id", "observed_at"),
)
"""What was seen outside, kept when it changed. Evidence: never updated."""

provenance_events = sa.Table(
    "provenance_events",
    metadata,
    sa.Column("id", sa.String(36), primary_key=True),
    sa.Column("occurred_at", UtcDateTime, nullable=False),
    sa.Column("event_type", sa.String(60), nullable=False),
    sa.Column("project_module", sa.String(50), nullable=False),
    sa.Column("source_identifier", sa.String(100)),
    sa.Column("execution_id", sa.String(36)),
    sa.Column("actor", sa.String(100), nullable=False),
    sa.Column("correlation_id", sa.String(100)),
    sa.Column("payload", Json, nullable=False),
    # Its place in the chain of its execution
    sa.Column("seq", sa.Integer),
    sa.Column("prev_sha256", sa.String(64)),
    sa.Column("sha256", sa.String(64)),
    sa.Index("ux_provenance_events_chain", "execution_id", "seq", unique=True),
    sa.Index("ix_provenance_events_source", "project_module", "source_identifier", "occurred_at"),
    sa.Index("ix_provenance_events_execution", "execution_id", "occurred_at"),
    sa.Index("ix_provenance_events_time", "occurred_at"),
)
"""The story: written in the transaction of the change that it tells."""

outbox = sa.Table(
    "outbox",
    metadata,
    sa.Column(
        "id",
        sa.BigInteger().with_variant(sa.Integer, "sqlite"),
        primary_key=True,
        autoincrement=True,
    ),
    sa.Column("kind", sa.String(20), nullable=False),
    sa.Column("project_module", sa.String(50), nullable=False),
    sa.Column("asset", sa.String(50), nullable=False),
    sa.Column("partition_key", sa.String(160)),
    sa.Column("payload", Json, nullable=False),
    sa.Column("correlation_id", sa.String(100)),
    sa.Column("created_at", UtcDateTime, nullable=False),
    sa.Column("available_at", UtcDateTime, nullable=False),
    sa.Column("delivered_at", UtcDateTime),
    sa.CheckConstraint("kind IN ('materialization', 'observation', 'check')", name="kind"),
    sa.Index("ix_outbox_due", "delivered_at", "available_at", "id"),
    sqlite_autoincrement=True,
)
"""What Dagster is to be told, committed with the change itself; delivered at least once."""

leases = sa.Table(
    "leases",
    metadata,
    sa.Column("name", sa.String(100), primary_key=True),
    sa.Column("token", sa.String(36), nullable=False),
    sa.Column("expires_at", UtcDateTime, nullable=False),
)
"""Who may do a tick: a tick whose sensor timed out still runs, and must not overlap the next one."""
