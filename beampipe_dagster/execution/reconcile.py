"""From what is known about each layer to what the operator sees: one table over the axes, read from its top."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

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


@dataclass(frozen=True, slots=True)
class Rule:
    """One line of the table.

    Attributes
    ----------
    when
        The condition, in words.
    holds
        The condition itself.
    then
        What follows.
    """

    when: str
    holds: Callable[[Axes], bool]
    then: Decision


def _daliuge_active(axes: Axes) -> bool:
    return axes.daliuge in DALIUGE_ACTIVE


def _scheduler_active(axes: Axes) -> bool:
    return axes.scheduler in SCHEDULER_ACTIVE


def _scheduler_failed(axes: Axes) -> bool:
    return axes.scheduler in {SchedulerState.FAILED, SchedulerState.TIMED_OUT}


def _cancelled(axes: Axes) -> bool:
    return axes.scheduler is SchedulerState.CANCELLED or axes.daliuge is DaliugeState.CANCELLED


def _done(axes: Axes) -> bool:
    scheduler_done = axes.scheduler in {SchedulerState.SUCCEEDED, SchedulerState.NOT_SUBMITTED}
    return axes.daliuge is DaliugeState.FINISHED and scheduler_done


def _unconfirmed(axes: Axes) -> bool:
    silent = {DaliugeState.UNKNOWN, DaliugeState.UNREACHABLE, DaliugeState.NOT_CREATED}
    return axes.scheduler is SchedulerState.SUCCEEDED and axes.daliuge in silent


def _failure(action: NextAction = NextAction.NONE, mismatch: str | None = None) -> Decision:
    return Decision(
        Status.FAILED,
        action,
        TerminalOutcome.FAILED,
        mismatch,
        requires_operator=False if mismatch else None,
    )


def _inconsistent(status: Status, mismatch: str) -> Decision:
    return Decision(
        status, NextAction.OPERATOR_REVIEW, TerminalOutcome.INCONSISTENT, mismatch, requires_operator=True
    )


def _open(status: Status, action: NextAction, mismatch: str | None = None) -> Decision:
    return Decision(
        status, action, mismatch=mismatch, requires_operator=False if mismatch is not None else None
    )


RULES: Final = (
    Rule(
        "the outputs or the submission failed",
        lambda axes: axes.outputs is OutputState.FAILED or axes.submission is SubmissionState.FAILED,
        _failure(),
    ),
    Rule(
        "DALiuGE failed while the scheduler's job goes on",
        lambda axes: axes.daliuge is DaliugeState.FAILED and _scheduler_active(axes),
        _failure(NextAction.POLL_SCHEDULER, "daliuge_failed_scheduler_active"),
    ),
    Rule("DALiuGE failed", lambda axes: axes.daliuge is DaliugeState.FAILED, _failure()),
    Rule(
        "the scheduler's job failed or ran out of time while DALiuGE goes on",
        lambda axes: _scheduler_failed(axes) and _daliuge_active(axes),
        _failure(NextAction.POLL_DALIUGE, "scheduler_failed_daliuge_active"),
    ),
    Rule("the scheduler's job failed or ran out of time", _scheduler_failed, _failure()),
    Rule(
        "the scheduler's job succeeded while DALiuGE goes on",
        lambda axes: axes.scheduler is SchedulerState.SUCCEEDED and _daliuge_active(axes),
        _inconsistent(Status.FAILED, "scheduler_finished_daliuge_active"),
    ),
    Rule(
        "one layer was cancelled while another goes on",
        lambda axes: _cancelled(axes) and (_scheduler_active(axes) or _daliuge_active(axes)),
        _inconsistent(Status.CANCELLED, "partial_cancellation"),
    ),
    Rule(
        "the scheduler's job or DALiuGE's session was cancelled",
        _cancelled,
        Decision(Status.CANCELLED, NextAction.NONE, TerminalOutcome.CANCELLED),
    ),
    Rule(
        "DALiuGE finished, no job goes on, and outputs that must be verified are not",
        lambda axes: (
            _done(axes) and axes.output_verification_required and axes.outputs is not OutputState.VERIFIED
        ),
        _open(Status.RUNNING, NextAction.VERIFY_OUTPUTS),
    ),
    Rule(
        "DALiuGE finished, and no job goes on",
        _done,
        Decision(Status.COMPLETED, NextAction.NONE, TerminalOutcome.SUCCEEDED),
    ),
    Rule(
        "nobody knows whether the submission happened",
        lambda axes: axes.submission is SubmissionState.UNCERTAIN,
        _open(Status.AWAITING_SCHEDULER, NextAction.POLL_SCHEDULER, "submission_outcome_uncertain"),
    ),
    Rule(
        "the scheduler's job waits",
        lambda axes: axes.scheduler is SchedulerState.PENDING,
        _open(Status.AWAITING_SCHEDULER, NextAction.POLL_SCHEDULER),
    ),
    Rule(
        "the scheduler's job runs, or DALiuGE goes on",
        lambda axes: axes.scheduler is SchedulerState.RUNNING or _daliuge_active(axes),
        _open(Status.RUNNING, NextAction.POLL_DALIUGE),
    ),
    Rule(
        "the scheduler's job succeeded, and DALiuGE says nothing",
        _unconfirmed,
        _open(Status.AWAITING_SCHEDULER, NextAction.POLL_DALIUGE, "scheduler_finished_daliuge_unconfirmed"),
    ),
    Rule(
        "the scheduler does not know the job",
        lambda axes: axes.scheduler is SchedulerState.UNKNOWN,
        _open(Status.AWAITING_SCHEDULER, NextAction.POLL_SCHEDULER),
    ),
    Rule("anything else", lambda axes: True, _open(Status.PENDING, NextAction.WAIT)),  # noqa: ARG005  # whatever they are
)
"""The table, in the order in which it is read; the last rule always holds."""


def reconcile(axes: Axes) -> Decision:
    """What follows from the first rule that holds."""
    return next(rule.then for rule in RULES if rule.holds(axes))
