from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from beampipe_dagster.ids import SequenceIds
from beampipe_dagster.ledger.engine import Ledger
from beampipe_dagster.poll.cadence import LONGEST_SECONDS, Cadence, Cadences
from beampipe_dagster_tests.support.ledgers import add_survey

intervals = st.floats(1, 3600)
ages = st.floats(0, 1e7)


def with_execution(**values: object) -> dict[str, object]:
    return {"automation": {"execution": values}}


@given(intervals, ages, st.integers(0, 10_000), st.text())
def test_a_wait_is_between_the_interval_and_a_tenth_above_the_longest(
    interval: float, age: float, failures: int, key: str
) -> None:
    wait = Cadence(interval).wait(age=age, failures=failures, key=key)
    assert interval <= wait <= 1.1 * max(interval, LONGEST_SECONDS)


@given(intervals, ages, ages)
def test_an_older_session_is_never_looked_at_more_often(interval: float, one: float, other: float) -> None:
    younger, older = sorted([one, other])
    cadence = Cadence(interval)
    assert cadence.wait(age=younger, key="k") <= cadence.wait(age=older, key="k")


@given(intervals, st.integers(0, 50), ages)
def test_another_failure_never_makes_the_next_look_sooner(interval: float, failures: int, age: float) -> None:
    cadence = Cadence(interval)
    assert cadence.wait(age=age, failures=failures + 1, key="k") <= cadence.wait(
        age=age, failures=failures + 2, key="k"
    )


def test_a_young_session_is_looked_at_at_the_interval_exactly() -> None:
    assert [Cadence(5.0).wait(age=age, key="k") for age in (0, 5, 99)] == [5.0] * 3


def test_waits_of_many_old_sessions_are_spread() -> None:
    waits = {round(Cadence(5.0).wait(age=1e6, key=f"execution-{number}"), 3) for number in range(100)}
    assert len(waits) > 50


def test_failures_double_the_wait() -> None:
    waits = [Cadence(2.0).wait(age=1e6, failures=number) for number in (1, 2, 3)]
    assert [round(wait) for wait in waits] == [4, 8, 16]


def test_a_survey_says_how_often_and_how_long_it_is_looked_at(ledger: Ledger) -> None:
    ids = SequenceIds()
    specs: dict[str, object] = {
        "own": with_execution(
            execution_rest_remote_poll_interval_seconds=20, execution_rest_remote_poll_max_rounds=40
        ),
        "hasty": with_execution(execution_rest_remote_poll_interval_seconds=0.01),
        "silent": with_execution(execution_rest_remote_poll_interval_seconds=None),
        "empty": {},
        "nonsense": {"automation": [1]},
    }
    cadences = Cadences(interval=5.0)
    with ledger.begin() as conn:
        found = {
            name: cadences.of(conn, add_survey(conn, ids=ids, spec=spec, survey=name))
            for name, spec in specs.items()
        }
        assert cadences.of(conn, "nobody") == Cadence(5.0)
    assert found == {
        "own": Cadence(20.0, 40),
        "hasty": Cadence(1.0),
        "silent": Cadence(5.0),
        "empty": Cadence(5.0),
        "nonsense": Cadence(5.0),
    }
