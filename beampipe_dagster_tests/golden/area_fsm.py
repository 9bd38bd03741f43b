"""Replays the transition table and sequences of patches."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from beampipe_dagster.errors import ConflictError
from beampipe_dagster.ledger import fsm
from beampipe_dagster.ledger.states import ExecutionPhase, Status

_NOW = datetime(2026, 1, 1, tzinfo=UTC)


def _allows(case: Any) -> bool:
    return fsm.allows(Status(case["from"]), Status(case["to"]))


def _ledger(case: Any) -> list[dict[str, Any]]:
    state = case["state"]
    fields = fsm.StatusFields(
        status=Status(state["status"]),
        execution_phase=ExecutionPhase(state["execution_phase"]) if state["execution_phase"] else None,
        retry_count=state["retry_count"],
        last_error=state["last_error"],
        started_at=_NOW if state["started_at"] else None,
        completed_at=_NOW if state["completed_at"] else None,
    )
    job_id = state["scheduler_job_id"]
    steps: list[dict[str, Any]] = []
    for patch in case["patches"]:
        job_id = patch.get("scheduler_job_id", job_id)
        try:
            fields = fsm.apply(
                fields,
                fsm.StatusPatch(
                    status=Status(patch["status"]) if "status" in patch else None,
                    execution_phase=(
                        ExecutionPhase(patch["execution_phase"]) if "execution_phase" in patch else None
                    ),
                    error=patch.get("error"),
                    clear_error=patch.get("clear_error", False),
                ),
                now=_NOW,
            )
        except ConflictError as error:
            steps.append({"error_code": error.code})
            break
        steps.append(
            {
                "ok": True,
                "status": fields.status.value,
                "execution_phase": fields.execution_phase.value if fields.execution_phase else None,
                "retry_count": fields.retry_count,
                "last_error": fields.last_error,
                "scheduler_job_id": job_id,
                "started_at_set": fields.started_at is not None,
                "completed_at_set": fields.completed_at is not None,
            }
        )
    return steps


FUNCTIONS = {"allows": _allows, "ledger": _ledger}
