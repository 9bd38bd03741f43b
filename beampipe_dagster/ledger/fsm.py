"""The law of an execution's status: which moves exist, and what each of them does to the row.

The table is read from one place only (:func:`allows`), every store update goes through :func:`apply`, and the
values are checked again by the database's constraints.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from beampipe_dagster.errors import ConflictError
from beampipe_dagster.ledger.states import LOCKED, TERMINAL, ExecutionPhase, Status

_MOVES: Final[dict[Status, frozenset[Status]]] = {
    Status.PENDING: frozenset({Status.RUNNING, Status.CANCELLED, Status.FAILED}),
    Status.RUNNING: frozenset(
        {
            Status.AWAITING_SCHEDULER,
            Status.COMPLETED,
            Status.NOT_SUBMITTED,
            Status.FAILED,
            Status.CANCELLED,
        }
    ),
    Status.AWAITING_SCHEDULER: frozenset({Status.RUNNING, Status.COMPLETED, Status.FAILED, Status.CANCELLED}),
    Status.NOT_SUBMITTED: frozenset({Status.RUNNING, Status.CANCELLED}),
    Status.FAILED: frozenset({Status.RETRYING, Status.RUNNING, Status.CANCELLED}),
    Status.RETRYING: frozenset({Status.RUNNING, Status.FAILED, Status.CANCELLED}),
    Status.COMPLETED: frozenset(),
    Status.CANCELLED: frozenset(),
}


def allows(current: Status, target: Status) -> bool:
    """Whether the table has a move from ``current`` to ``target``; staying is not a move."""
    return target in _MOVES[current]


@dataclass(frozen=True, slots=True)
class StatusFields:
    """The columns that a status move touches."""

    status: Status
    execution_phase: ExecutionPhase | None = None
    retry_count: int = 0
    last_error: str | None = None
    started_at: datetime | None = None
    completed_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class StatusPatch:
    """What a caller wants to change; ``None`` means "leave as it is"."""

    status: Status | None = None
    execution_phase: ExecutionPhase | None = None
    error: str | None = None
    clear_error: bool = False


def apply(fields: StatusFields, patch: StatusPatch, *, now: datetime) -> StatusFields:
    """The row's status columns after ``patch``.

    A completed or cancelled row keeps its status whatever evidence arrives late; the other fields still apply.
    The start is stamped by the first ``running``, the end by the first terminal status, a retry is counted by
    ``failed → retrying``, and an error that success or a new start has overtaken is cleared.

    Raises
    ------
    ConflictError
        ``invalid_transition``: the table has no such move.
    """
    target = patch.status or fields.status
    if fields.status in LOCKED:
        target = fields.status
    moved = target is not fields.status
    if moved and not allows(fields.status, target):
        raise ConflictError(
            f"an execution cannot go from {fields.status} to {target}",
            code="invalid_transition",
            hint=f"from {fields.status} it can go to: "
            + (", ".join(sorted(_MOVES[fields.status])) or "nothing, it is final"),
            details={"from": fields.status.value, "to": target.value},
        )
    after = replace(
        fields,
        status=target,
        execution_phase=patch.execution_phase or fields.execution_phase,
        last_error=None if patch.clear_error else (patch.error or fields.last_error),
    )
    if not moved:
        return after
    restarted = fields.status in {Status.FAILED, Status.RETRYING} and target in {
        Status.RUNNING,
        Status.RETRYING,
    }
    if (restarted or target is Status.COMPLETED) and patch.error is None:
        after = replace(after, last_error=None)
    if fields.status is Status.FAILED and target is Status.RETRYING:
        after = replace(after, retry_count=fields.retry_count + 1)
    if target is Status.RUNNING and fields.started_at is None:
        after = replace(after, started_at=now)
    if target in TERMINAL:
        after = replace(
            after,
            completed_at=fields.completed_at or now,
            execution_phase=patch.execution_phase,
        )
    return after
