"""What is tried again, how often, and when."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beampipe_dagster.config.project import RetryRules
from beampipe_dagster.execution.retry_policy import LONGEST_DELAY, RetryPolicy, after_failure
from beampipe_dagster.ledger.states import FailureClass

NOW = datetime(2026, 1, 1, tzinfo=UTC)
POLICY = RetryPolicy(3, 15, 4)


def test_delays_grow_by_the_factor() -> None:
    assert [POLICY.delay(number) for number in (1, 2, 3)] == [
        timedelta(minutes=15),
        timedelta(minutes=60),
        timedelta(minutes=240),
    ]


@given(
    st.floats(0, 10_080, allow_nan=False),
    st.floats(1, 100, allow_nan=False),
    st.integers(1, 100),
)
def test_no_delay_is_shorter_than_the_one_before_nor_longer_than_a_week(
    first: float, factor: float, number: int
) -> None:
    policy = RetryPolicy(100, first, factor)
    assert policy.delay(number) <= policy.delay(number + 1) <= LONGEST_DELAY


@pytest.mark.parametrize(
    ("kind", "code", "budget"),
    [
        (FailureClass.CONNECTIVITY, None, 3),
        (FailureClass.DEPENDENCY_UNAVAILABLE, "x", 3),
        (FailureClass.TIMEOUT, None, 3),
        (FailureClass.RATE_LIMITED, None, 3),
        (FailureClass.INCONSISTENT_STATE, "session_lost", 3),
        (FailureClass.GRAPH, "session_failed", 1),
        (FailureClass.INTERNAL, "internal", 1),
        (FailureClass.INCONSISTENT_STATE, "scheduler_finished_daliuge_active", 0),
        (FailureClass.GRAPH, "graph_lint_failed", 0),
        (FailureClass.VALIDATION, "manifest_scope", 0),
        (FailureClass.CONFIGURATION, "graph_missing", 0),
        (FailureClass.AUTHENTICATION, None, 0),
        (FailureClass.CANCELLED, None, 0),
        (None, None, 0),
    ],
)
def test_only_what_may_be_different_next_time_is_tried_again(
    kind: FailureClass | None, code: str | None, budget: int
) -> None:
    assert POLICY.budget(kind, code) == budget
    assert RetryPolicy(0).budget(kind, code) == 0


@given(st.integers(0, 5), st.integers(0, 5))
def test_a_budget_is_never_exceeded(most: int, used: int) -> None:
    found = after_failure(
        RetryPolicy(most), used=used, failure_class=FailureClass.TIMEOUT, code=None, now=NOW
    )
    assert (found.at is not None) == (used < most)
    assert found.used_up == (most > 0 and used >= most)


def test_a_survey_overrules_what_it_names_and_nothing_else() -> None:
    assert POLICY.with_rules(None) == POLICY
    assert POLICY.with_rules(RetryRules(max_attempts=0)) == RetryPolicy(0, 15, 4)
    assert POLICY.with_rules(RetryRules(first_delay_minutes=0, factor=1.5)) == RetryPolicy(3, 0, 1.5)


@given(st.builds(RetryPolicy, st.integers(0, 100), st.floats(0, 10_080), st.floats(1, 100)))
def test_an_execution_keeps_its_policy(policy: RetryPolicy) -> None:
    assert RetryPolicy.of(policy.as_json()) == policy


def test_an_execution_without_a_policy_is_not_tried_again() -> None:
    assert RetryPolicy.of(None).budget(FailureClass.TIMEOUT, None) == 0
