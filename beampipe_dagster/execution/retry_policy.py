"""Whether a failed execution is tried again by itself, and when.

Only what may be different the next time is tried again: a service that was away, a connection that broke, a
time limit, a session or a node that was lost. A drop that failed, or a defect of our own, is tried once more at
most: it may have been the machine. What is wrong with the input or the configuration stays wrong, and waits for
a new revision of the survey, a new signature, or the operator.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from beampipe_dagster.config.canonical import JsonValue
from beampipe_dagster.config.project import RetryRules
from beampipe_dagster.ledger.states import FailureClass

LONGEST_DELAY: Final = timedelta(days=7)
"""No factor makes a retry wait longer."""

PASSING: Final = frozenset(
    {
        FailureClass.DEPENDENCY_UNAVAILABLE,
        FailureClass.CONNECTIVITY,
        FailureClass.TIMEOUT,
        FailureClass.RATE_LIMITED,
    }
)
"""Classes of what passes by itself: as many retries as the budget has."""

PASSING_CODES: Final = frozenset({"session_lost", "node_failed", "job_preempted", "job_lost"})
"""Codes of what was lost on the way, whatever their class."""

ONCE_CODES: Final = frozenset({"session_failed"})
"""Codes of what may have been the machine: one retry."""

ONCE: Final = frozenset({FailureClass.INTERNAL})


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """The budget of retries of one signature under one revision of a survey.

    Attributes
    ----------
    max_attempts
        Retries at most; 0 means that nothing is tried again.
    first_delay_minutes
        Time before the first one.
    factor
        How much longer each following one waits.
    """

    max_attempts: int = 2
    first_delay_minutes: float = 15.0
    factor: float = 4.0

    def with_rules(self, rules: RetryRules | None) -> RetryPolicy:
        """The policy with what a survey says otherwise."""
        if rules is None:
            return self
        given = (rules.max_attempts, rules.first_delay_minutes, rules.factor)
        own = (self.max_attempts, self.first_delay_minutes, self.factor)
        attempts, delay, factor = (
            mine if theirs is None else theirs for theirs, mine in zip(given, own, strict=True)
        )
        return RetryPolicy(int(attempts), float(delay), float(factor))

    def as_json(self) -> dict[str, JsonValue]:
        """The policy as an execution keeps it."""
        return {
            "max_attempts": self.max_attempts,
            "first_delay_minutes": self.first_delay_minutes,
            "factor": self.factor,
        }

    @classmethod
    def of(cls, stored: Mapping[str, Any] | None) -> RetryPolicy:
        """The policy that an execution was admitted with; one without any is not tried again."""
        if not stored:
            return cls(max_attempts=0)
        return cls(int(stored["max_attempts"]), float(stored["first_delay_minutes"]), float(stored["factor"]))

    def delay(self, number: int) -> timedelta:
        """How long the retry of this number (from 1) waits after the failure."""
        minutes = self.first_delay_minutes
        for _ in range(number - 1):
            minutes *= self.factor
            if minutes >= LONGEST_DELAY.total_seconds() / 60:
                return LONGEST_DELAY
        return min(LONGEST_DELAY, timedelta(minutes=minutes))

    def budget(self, failure_class: str | None, code: str | None) -> int:
        """How often what failed in this way is tried again."""
        if code in PASSING_CODES or failure_class in PASSING:
            return self.max_attempts
        if code in ONCE_CODES or failure_class in ONCE:
            return min(1, self.max_attempts)
        return 0


@dataclass(frozen=True, slots=True)
class Retry:
    """What follows from a failure.

    Attributes
    ----------
    at
        When it is tried again; ``None`` when it is not.
    number, budget
        Which retry that is, and how many there are for failures of this kind; ``number`` is beyond ``budget``
        when they are used up.
    """

    at: datetime | None
    number: int
    budget: int

    @property
    def used_up(self) -> bool:
        """Whether there were retries, and none is left."""
        return self.budget > 0 and self.at is None


def after_failure(
    policy: RetryPolicy, *, used: int, failure_class: str | None, code: str | None, now: datetime
) -> Retry:
    """What follows when an execution that had ``used`` retries before it fails.

    Parameters
    ----------
    failure_class, code
        The execution's ``failure_class`` and ``last_error_code``.
    """
    budget = policy.budget(failure_class, code)
    number = used + 1
    if number > budget:
        return Retry(None, number, budget)
    return Retry(now + policy.delay(number), number, budget)
