"""The words of an execution's state: its status and the axes from which the status is derived."""

from __future__ import annotations

from enum import StrEnum


class Status(StrEnum):
    """What an operator sees; moves only along the table in :mod:`beampipe_dagster.ledger.fsm`."""

    PENDING = "pending"
    RUNNING = "running"
    AWAITING_SCHEDULER = "awaiting_scheduler"
    NOT_SUBMITTED = "not_submitted"
    COMPLETED = "completed"
    FAILED = "failed"
    RETRYING = "retrying"
    CANCELLED = "cancelled"


TERMINAL = frozenset({Status.COMPLETED, Status.FAILED, Status.CANCELLED, Status.NOT_SUBMITTED})
"""Statuses in which nothing is going on."""

LOCKED = frozenset({Status.COMPLETED, Status.CANCELLED})
"""Terminal statuses that no later evidence can change."""

ACTIVE = frozenset({Status.PENDING, Status.RUNNING, Status.AWAITING_SCHEDULER, Status.RETRYING})
"""Statuses that hold the locks of their sources and count against the caps."""


class ExecutionPhase(StrEnum):
    """Which half of the preparation a non-terminal execution is in."""

    STAGE_AND_MANIFEST = "stage_and_manifest"
    SUBMIT = "submit"


class ControlPhase(StrEnum):
    """How far the control plane has come with an execution."""

    DISCOVERED = "discovered"
    ADMISSION_PENDING = "admission_pending"
    ADMITTED = "admitted"
    MANIFEST_GENERATED = "manifest_generated"
    GRAPH_PATCHED = "graph_patched"
    TRANSLATED = "translated"
    SUBMISSION_PENDING = "submission_pending"
    SUBMITTED = "submitted"
    MONITORING = "monitoring"
    OUTPUT_VERIFICATION = "output_verification"
    TERMINAL = "terminal"


class SubmissionState(StrEnum):
    """What is known about the one external effect that costs an allocation."""

    NOT_STARTED = "not_started"
    PREPARING = "preparing"
    IN_FLIGHT = "in_flight"
    SUBMITTED = "submitted"
    UNCERTAIN = "uncertain"
    FAILED = "failed"


class SchedulerState(StrEnum):
    """The batch scheduler's view."""

    NOT_SUBMITTED = "not_submitted"
    PENDING = "pending"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    TIMED_OUT = "timed_out"
    UNKNOWN = "unknown"


class DaliugeState(StrEnum):
    """The DALiuGE session's view (``dlg.manager.session.SessionStates``, and what can be said without one)."""

    NOT_CREATED = "not_created"
    PRISTINE = "pristine"
    BUILDING = "building"
    DEPLOYING = "deploying"
    RUNNING = "running"
    FINISHED = "finished"
    CANCELLED = "cancelled"
    FAILED = "failed"
    UNKNOWN = "unknown"
    UNREACHABLE = "unreachable"


DALIUGE_ACTIVE = frozenset(
    {DaliugeState.PRISTINE, DaliugeState.BUILDING, DaliugeState.DEPLOYING, DaliugeState.RUNNING}
)
SCHEDULER_ACTIVE = frozenset({SchedulerState.PENDING, SchedulerState.RUNNING})


class OutputState(StrEnum):
    """Whether the outputs were verified."""

    NOT_STARTED = "not_started"
    PENDING = "pending"
    VERIFYING = "verifying"
    VERIFIED = "verified"
    FAILED = "failed"
    UNKNOWN = "unknown"


class TerminalOutcome(StrEnum):
    """How a terminal execution ended."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    INCONSISTENT = "inconsistent"


class FailureClass(StrEnum):
    """Why an execution failed, in the terms in which an operator acts."""

    VALIDATION = "validation"
    CONFIGURATION = "configuration"
    AUTHENTICATION = "authentication"
    AUTHORIZATION = "authorization"
    NOT_FOUND = "not_found"
    CONFLICT = "conflict"
    DEPENDENCY_UNAVAILABLE = "dependency_unavailable"
    CONNECTIVITY = "connectivity"
    TIMEOUT = "timeout"
    RATE_LIMITED = "rate_limited"
    UNSUPPORTED = "unsupported"
    CANCELLED = "cancelled"
    INCONSISTENT_STATE = "inconsistent_state"
    INTERNAL = "internal"
    GRAPH = "graph"


class ArtifactKind(StrEnum):
    """The immutable documents of an execution."""

    MANIFEST = "manifest"
    SOURCE_GRAPH = "source_graph"
    PATCHED_GRAPH = "patched_graph"
    PHYSICAL_GRAPH = "physical_graph"
    OUTPUT_INVENTORY = "output_inventory"
