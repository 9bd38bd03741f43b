"""Which failed executions are tried again in place, and where they go on."""

from __future__ import annotations

from typing import Any

from beampipe_dagster.execution.retry import Failure, begins_at, refusal
from beampipe_dagster.ledger.states import (
    DaliugeState,
    ExecutionPhase,
    SchedulerState,
    Status,
    SubmissionState,
    TerminalOutcome,
)


def _retry(case: Any) -> dict[str, Any]:
    failure = Failure(
        status=Status(case["status"]),
        phase=ExecutionPhase(case["phase"]) if case["phase"] else None,
        submission=SubmissionState(case["submission"]),
        scheduler=SchedulerState(case["scheduler"]),
        daliuge=DaliugeState(case["daliuge"]),
        outcome=TerminalOutcome(case["terminal_outcome"]) if case["terminal_outcome"] else None,
        has_manifest=case["has_manifest"],
        has_job=case["has_scheduler_job_id"],
    )
    code = refusal(failure)
    if code is not None:
        return {"error_code": code}
    stage = begins_at(failure)
    return {
        "do_stage": stage is ExecutionPhase.STAGE_AND_MANIFEST,
        "do_submit": True,
        "stage": stage.value,
    }


FUNCTIONS = {"retry": _retry}
