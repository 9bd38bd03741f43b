from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beampipe_dagster.execution.reconcile import Axes, Decision, NextAction, reconcile
from beampipe_dagster.ledger.states import (
    DALIUGE_ACTIVE,
    SCHEDULER_ACTIVE,
    TERMINAL,
    DaliugeState,
    OutputState,
    SchedulerState,
    Status,
    SubmissionState,
    TerminalOutcome,
)

AXES = st.builds(
    Axes,
    submission=st.sampled_from(SubmissionState),
    scheduler=st.sampled_from(SchedulerState),
    daliuge=st.sampled_from(DaliugeState),
    outputs=st.sampled_from(OutputState),
    output_verification_required=st.booleans(),
)


def decide(
    *,
    submission: str = "submitted",
    scheduler: str = "not_submitted",
    daliuge: str = "running",
    outputs: str = "not_started",
    required: bool = False,
) -> Decision:
    return reconcile(
        Axes(
            SubmissionState(submission),
            SchedulerState(scheduler),
            DaliugeState(daliuge),
            OutputState(outputs),
            required,
        )
    )


@pytest.mark.parametrize(
    ("axes", "status", "outcome", "action", "mismatch"),
    [
        ({"outputs": "failed"}, "failed", "failed", "none", None),
        ({"submission": "failed"}, "failed", "failed", "none", None),
        ({"daliuge": "failed"}, "failed", "failed", "none", None),
        (
            {"daliuge": "failed", "scheduler": "running"},
            "failed",
            "failed",
            "poll_scheduler",
            "daliuge_failed_scheduler_active",
        ),
        ({"scheduler": "timed_out", "daliuge": "unknown"}, "failed", "failed", "none", None),
        ({"scheduler": "failed"}, "failed", "failed", "poll_daliuge", "scheduler_failed_daliuge_active"),
        (
            {"scheduler": "succeeded"},
            "failed",
            "inconsistent",
            "operator_review",
            "scheduler_finished_daliuge_active",
        ),
        ({"daliuge": "cancelled"}, "cancelled", "cancelled", "none", None),
        (
            {"daliuge": "cancelled", "scheduler": "running"},
            "cancelled",
            "inconsistent",
            "operator_review",
            "partial_cancellation",
        ),
        ({"daliuge": "finished"}, "completed", "succeeded", "none", None),
        ({"daliuge": "finished", "required": True}, "running", None, "verify_outputs", None),
        (
            {"daliuge": "finished", "required": True, "outputs": "verified"},
            "completed",
            "succeeded",
            "none",
            None,
        ),
        (
            {"submission": "uncertain"},
            "awaiting_scheduler",
            None,
            "poll_scheduler",
            "submission_outcome_uncertain",
        ),
        ({"scheduler": "pending"}, "awaiting_scheduler", None, "poll_scheduler", None),
        ({}, "running", None, "poll_daliuge", None),
        ({"scheduler": "unknown", "daliuge": "unknown"}, "awaiting_scheduler", None, "poll_scheduler", None),
        (
            {"scheduler": "succeeded", "daliuge": "unreachable"},
            "awaiting_scheduler",
            None,
            "poll_daliuge",
            "scheduler_finished_daliuge_unconfirmed",
        ),
        ({"daliuge": "unreachable"}, "pending", None, "wait", None),
    ],
)
def test_the_first_rule_that_fits_decides(
    axes: dict[str, str], status: str, outcome: str | None, action: str, mismatch: str | None
) -> None:
    found = decide(**axes)  # type: ignore[arg-type]  # words, and one flag
    assert (found.status, found.outcome, found.next_action, found.mismatch) == (
        status,
        outcome,
        action,
        mismatch,
    )


@given(AXES)
def test_an_outcome_is_there_exactly_when_it_is_over(axes: Axes) -> None:
    found = reconcile(axes)
    assert (found.outcome is not None) == (found.status in TERMINAL)
    assert (found.requires_operator is not None) == (found.mismatch is not None)
    if found.requires_operator:
        assert found.next_action is NextAction.OPERATOR_REVIEW


@given(AXES)
def test_success_needs_a_finished_session_and_what_was_asked_for(axes: Axes) -> None:
    found = reconcile(axes)
    if found.status is Status.COMPLETED:
        assert axes.daliuge is DaliugeState.FINISHED
        assert axes.scheduler not in SCHEDULER_ACTIVE
        assert axes.outputs is OutputState.VERIFIED or not axes.output_verification_required


@given(AXES)
def test_what_is_unreachable_alone_ends_nothing(axes: Axes) -> None:
    quiet = Axes(
        SubmissionState.SUBMITTED, SchedulerState.NOT_SUBMITTED, DaliugeState.UNREACHABLE, OutputState.PENDING
    )
    assert reconcile(quiet).status not in TERMINAL
    found = reconcile(axes)
    if found.outcome is TerminalOutcome.INCONSISTENT:
        assert axes.daliuge in DALIUGE_ACTIVE or axes.scheduler in SCHEDULER_ACTIVE
