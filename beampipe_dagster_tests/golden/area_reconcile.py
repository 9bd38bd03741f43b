"""Replays the table from axes to status."""

from __future__ import annotations

from typing import Any

from beampipe_dagster.execution.reconcile import Axes, reconcile
from beampipe_dagster.ledger.states import DaliugeState, OutputState, SchedulerState, SubmissionState


def _reconcile(case: Any) -> dict[str, Any]:
    decision = reconcile(
        Axes(
            submission=SubmissionState(case["submission"]),
            scheduler=SchedulerState(case["scheduler"]),
            daliuge=DaliugeState(case["daliuge"]),
            outputs=OutputState(case["outputs"]),
            output_verification_required=case["output_verification_required"],
        )
    )
    return {
        "status": decision.status.value,
        "terminal_outcome": decision.outcome.value if decision.outcome else None,
        "next_action": decision.next_action.value,
        "mismatch": decision.mismatch,
        "requires_operator": decision.requires_operator,
    }


FUNCTIONS = {"reconcile": _reconcile}
