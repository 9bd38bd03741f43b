"""What an execution is, as a row of the ledger says it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

from sqlalchemy.engine import Row

from beampipe_dagster.errors import LedgerError, Retry
from beampipe_dagster.ledger.rows import to_value
from beampipe_dagster.ledger.states import (
    TERMINAL,
    ControlPhase,
    DaliugeState,
    ExecutionPhase,
    OutputState,
    SchedulerState,
    Status,
    SubmissionState,
)

_WORDS: Final[dict[str, type[StrEnum]]] = {
    "status": Status,
    "execution_phase": ExecutionPhase,
    "control_phase": ControlPhase,
    "submission_state": SubmissionState,
    "scheduler_state": SchedulerState,
    "daliuge_state": DaliugeState,
    "output_state": OutputState,
}
_NOT_COLUMNS: Final = frozenset({"light"})


@dataclass(frozen=True, slots=True)
class Execution:
    """A row of the execution ledger.

    Attributes
    ----------
    options
        What its launch asked for, as :class:`~beampipe_dagster.execution.options.LaunchOptions` writes it.
    retry_policy
        The budget that it was admitted with; ``None`` means that it is not tried again.
    retry_of, retry_number
        The failed execution that it tries again, and how many retries of the budget were used by then.
    cancel_requested_at, cancel_requested_by, cancel_reason
        A cancellation that somebody asked for; it stays, whatever comes of it.
    cancel_attempts, cancel_next_at
        How often its session was told to stop, and when it is told again.
    light
        Whether it was read without its manifest; then it has no run record and cannot write one.
    """

    id: str
    project_module: str
    partition_key: str
    claim_token: str
    sources: list[dict[str, Any]]
    archive_name: str
    discovery_signature: str
    project_config_id: str
    deployment_profile_id: str | None
    deployment_profile_revision: int | None
    deployment_profile_snapshot: dict[str, Any]
    workflow_manifest: dict[str, Any] | None
    manifest_sha256: str | None
    source_graph_sha256: str | None
    patched_graph_sha256: str | None
    physical_graph_sha256: str | None
    dataset_count: int
    status: Status
    execution_phase: ExecutionPhase | None
    control_phase: ControlPhase
    submission_state: SubmissionState
    submission_deadline_at: datetime | None
    scheduler_name: str | None
    scheduler_job_id: str | None
    scheduler_state: SchedulerState
    daliuge_session_id: str | None
    daliuge_manager_url: str | None
    daliuge_state: DaliugeState
    drop_counts: dict[str, int] | None
    output_state: OutputState
    output_verification_required: bool
    terminal_outcome: str | None
    failure_class: str | None
    last_error: str | None
    last_error_code: str | None
    phase_timestamps: dict[str, str]
    launch_count: int
    next_launch_at: datetime | None
    wait_count: int
    lease_token: str | None
    lease_expires_at: datetime | None
    attempt: int
    absent_count: int
    poll_count: int
    next_poll_at: datetime | None
    escalations: dict[str, dict[str, Any]] | None
    created_by: str
    retry_count: int
    created_at: datetime
    updated_at: datetime
    started_at: datetime | None
    completed_at: datetime | None
    options: dict[str, Any] | None
    retry_policy: dict[str, Any] | None
    retry_of: str | None
    retry_number: int
    cancel_requested_at: datetime | None
    cancel_requested_by: str | None
    cancel_reason: str | None
    cancel_attempts: int
    cancel_next_at: datetime | None
    submission_abandoned_at: datetime | None
    light: bool = False

    @property
    def terminal(self) -> bool:
        """Whether nothing is going on any more."""
        return self.status in TERMINAL

    @property
    def run_record(self) -> dict[str, Any]:
        """``workflow_manifest.beampipe_run_record``, empty before anything was submitted."""
        if self.light:
            raise LedgerError(
                f"execution {self.id} was read without its manifest, which holds its run record",
                code="manifest_not_read",
                hint="this is a defect; please report it",
                retry=Retry.NEVER,
            )
        found = (self.workflow_manifest or {}).get("beampipe_run_record")
        return dict(found) if isinstance(found, dict) else {}

    @property
    def source_identifiers(self) -> list[str]:
        """The sources in the order of admission."""
        return [source["source_identifier"] for source in self.sources]


@dataclass(frozen=True, slots=True)
class NewExecution:
    """What admission decides about an execution before it exists."""

    id: str
    project_module: str
    partition_key: str
    claim_token: str
    sources: list[dict[str, Any]]
    signatures: dict[str, str]
    archive_name: str
    discovery_signature: str
    project_config_id: str
    deployment_profile_id: str
    deployment_profile_revision: int
    deployment_profile_snapshot: dict[str, Any]
    output_verification_required: bool
    output_verification_policy: dict[str, Any]
    created_by: str
    options: dict[str, Any] | None = None
    retry_policy: dict[str, Any] | None = None
    retry_of: str | None = None
    retry_number: int = 0
    create_idempotency_key: str | None = None
    create_request_sha256: str | None = None


def to_execution(row: Row[Any], *, light: bool = False) -> Execution:
    """The value of a row; ``light`` says that its manifest was not read."""
    value = to_value(Execution, row, absent=_NOT_COLUMNS)
    words = {
        name: kind(getattr(value, name)) for name, kind in _WORDS.items() if getattr(value, name) is not None
    }
    return replace(value, light=light, **words)  # type: ignore[arg-type]  # each word has its column's type
