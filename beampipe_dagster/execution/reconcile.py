"""From what is known about each layer to what the operator sees: one pure function over the axes."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from beampipe_dagster.ledger.states import (
    DALIUGE_ACTIVE,
    SCHEDULER_ACTIVE,
    DaliugeState,
    OutputState,
    SchedulerState,
    Status,
    SubmissionState,
    TerminalOutcome,
)


class NextAction(StrEnum):
    """Who has to do something next."""

    WAIT = "wait"
    POLL_SCHEDULER = "poll_scheduler"
    POLL_DALIUGE = "poll_daliuge"
    VERIFY_OUTPUTS = "verify_outputs"
    OPERATOR_REVIEW = "operator_review"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Axes:
    """What is known about an execution, one word a layer."""

    submission: SubmissionState
    scheduler: SchedulerState
    daliuge: DaliugeState
    outputs: OutputState
    output_verification_required: bool = False


@dataclass(frozen=True, slots=True)
class Decision:
    """What follows from the axes.

    ``mismatch`` names two layers that contradict each other; ``requires_operator`` says that only a person can
    resolve it.
    """

    status: Status
    next_action: NextAction
    outcome: TerminalOutcome | None = None
    mismatch: str | None = None
    requires_operator: bool | None = None


def reconcile(axes: Axes) -> Decision:
    """The first rule that fits, in this order: failures, contradictions, cancellation, success, then waiting."""
    return _failed(axes) or _cancelled(axes) or _succeeded(axes) or _waiting(axes)


def _failed(axes: Axes) -> Decision | None:
    daliuge_active = axes.daliuge in DALIUGE_ACTIVE
    scheduler_active = axes.scheduler in SCHEDULER_ACTIVE
    if axes.outputs is OutputState.FAILED or axes.submission is SubmissionState.FAILED:
        return Decision(Status.FAILED, NextAction.NONE, TerminalOutcome.FAILED)
    if axes.daliuge is DaliugeState.FAILED:
        return _failure(
            NextAction.POLL_SCHEDULER, "daliuge_failed_scheduler_active" if scheduler_active else None
        )
    if axes.scheduler in {SchedulerState.FAILED, SchedulerState.TIMED_OUT}:
        return _failure(
            NextAction.POLL_DALIUGE, "scheduler_failed_daliuge_active" if daliuge_active else None
        )
    if axes.scheduler is SchedulerState.SUCCEEDED and daliuge_active:
        return Decision(
            Status.FAILED,
            NextAction.OPERATOR_REVIEW,
            TerminalOutcome.INCONSISTENT,
            "scheduler_finished_daliuge_active",
            requires_operator=True,
        )
    return None


def _failure(action: NextAction, mismatch: str | None) -> Decision:
    return Decision(
        Status.FAILED,
        action if mismatch else NextAction.NONE,
        TerminalOutcome.FAILED,
        mismatch,
        requires_operator=False if mismatch else None,
    )


def _cancelled(axes: Axes) -> Decision | None:
    if axes.scheduler is not SchedulerState.CANCELLED and axes.daliuge is not DaliugeState.CANCELLED:
        return None
    if axes.scheduler in SCHEDULER_ACTIVE or axes.daliuge in DALIUGE_ACTIVE:
        return Decision(
            Status.CANCELLED,
            NextAction.OPERATOR_REVIEW,
            TerminalOutcome.INCONSISTENT,
            "partial_cancellation",
            requires_operator=True,
        )
    return Decision(Status.CANCELLED, NextAction.NONE, TerminalOutcome.CANCELLED)


def _succeeded(axes: Axes) -> Decision | None:
    if axes.daliuge is not DaliugeState.FINISHED or axes.scheduler not in {
        SchedulerState.SUCCEEDED,
        SchedulerState.NOT_SUBMITTED,
    }:
        return None
    if axes.output_verification_required and axes.outputs is not OutputState.VERIFIED:
        return Decision(Status.RUNNING, NextAction.VERIFY_OUTPUTS)
    return Decision(Status.COMPLETED, NextAction.NONE, TerminalOutcome.SUCCEEDED)


def _waiting(axes: Axes) -> Decision:
    if axes.submission is SubmissionState.UNCERTAIN:
        return Decision(
            Status.AWAITING_SCHEDULER,
            NextAction.POLL_SCHEDULER,
            mismatch="submission_outcome_uncertain",
            requires_operator=False,
        )
    if axes.scheduler is SchedulerState.PENDING:
        return Decision(Status.AWAITING_SCHEDULER, NextAction.POLL_SCHEDULER)
    if axes.scheduler is SchedulerState.RUNNING or axes.daliuge in DALIUGE_ACTIVE:
        return Decision(Status.RUNNING, NextAction.POLL_DALIUGE)
    if axes.scheduler is SchedulerState.SUCCEEDED and axes.daliuge in {
        DaliugeState.UNKNOWN,
        DaliugeState.UNREACHABLE,
        DaliugeState.NOT_CREATED,
    }:
        return Decision(
            Status.AWAITING_SCHEDULER,
            NextAction.POLL_DALIUGE,
            mismatch="scheduler_finished_daliuge_unconfirmed",
            requires_operator=False,
        )
    if axes.scheduler is SchedulerState.UNKNOWN:
        return Decision(Status.AWAITING_SCHEDULER, NextAction.POLL_SCHEDULER)
    return Decision(Status.PENDING, NextAction.WAIT)
