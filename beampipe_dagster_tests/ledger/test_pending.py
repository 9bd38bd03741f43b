"""The order of pending sources, and those that wait for a retry."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from beampipe_dagster.ids import SequenceIds
from beampipe_dagster.ledger import pending, sources
from beampipe_dagster.ledger.engine import Ledger
from beampipe_dagster.ledger.tables import source_registry
from beampipe_dagster_tests.support.ledgers import START, SURVEY, add_execution, register

HOUR = timedelta(hours=1)
NOW = START + 10 * HOUR


def put(ledger: Ledger, name: str, **values: Any) -> None:
    with ledger.begin() as conn:
        found = {"workflow_run_pending": True, "workflow_run_pending_at": START, "discovery_signature": "s"}
        register(conn, [name], ids=IDS, **{**found, **values})


IDS = SequenceIds()


def taken(ledger: Ledger, now: datetime = NOW) -> list[str]:
    with ledger.begin() as conn:
        return [row.source_identifier for row in pending.take(conn, SURVEY, limit=50, now=now)]


def test_the_highest_priority_goes_first_then_the_longest_waiting(ledger: Ledger) -> None:
    put(ledger, "old")
    put(ledger, "new", workflow_run_pending_at=START + HOUR)
    put(ledger, "urgent", workflow_run_pending_at=START + 2 * HOUR, priority=5)
    put(ledger, "last", priority=-1)
    put(ledger, "held", priority=9, hold={"code": "x"})
    assert taken(ledger) == ["urgent", "old", "new", "last", "held"]


def test_a_retry_waits_for_its_time_and_is_no_hold_then(ledger: Ledger) -> None:
    failed = {"failed_signature": "s", "hold": {"code": "execution_failed"}}
    put(ledger, "later", retry_at=NOW + HOUR, **failed)
    put(ledger, "due", retry_at=NOW, **failed)
    put(ledger, "held", hold={"code": "x"}, workflow_run_pending_at=START - HOUR)
    assert taken(ledger) == ["due", "held"]
    assert taken(ledger, NOW + HOUR) == ["due", "later", "held"]
    with ledger.begin() as conn:
        waiting = pending.delayed(conn, SURVEY, limit=9, now=NOW)
        assert [row.source_identifier for row in waiting] == ["later"]


def test_the_failure_of_an_earlier_signature_makes_nothing_wait(ledger: Ledger) -> None:
    put(ledger, "A", retry_at=NOW + HOUR, failed_signature="earlier")
    assert taken(ledger) == ["A"]


def test_demand_counts_what_could_run_now(ledger: Ledger) -> None:
    add_execution(ledger, ["busy"])
    put(ledger, "ready", workflow_run_pending_at=START + HOUR)
    put(ledger, "older")
    put(ledger, "busy")
    put(ledger, "claimed", discovery_claim_token="t")  # noqa: S106  # names a claim
    put(ledger, "held", hold={"code": "x"})
    put(ledger, "later", failed_signature="s", retry_at=NOW + HOUR)
    put(ledger, "done", last_executed_discovery_signature="s")
    put(ledger, "off", enabled=False)
    with ledger.begin() as conn:
        assert pending.demand(conn, [SURVEY], now=NOW) == {SURVEY: pending.Demand(2, START)}
        assert pending.count(conn, SURVEY) == 7


orders = st.lists(
    st.tuples(st.integers(-1, 1), st.sampled_from([None, 0, 1]), st.booleans()), min_size=1, max_size=8
)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(orders)
def test_a_sources_position_is_its_place_in_the_order(
    ledger: Ledger, rows: list[tuple[int, int | None, bool]]
) -> None:
    with ledger.begin() as conn:
        conn.execute(source_registry.delete())
    for number, (priority, hours, held) in enumerate(rows):
        since = None if hours is None else START + hours * HOUR
        hold = {"code": "x"} if held else None
        put(ledger, f"S{number}", priority=priority, workflow_run_pending_at=since, hold=hold)
    with ledger.begin() as conn:
        order = [row for row in pending.take(conn, SURVEY, limit=50, now=NOW) if row.hold is None]
        assert [pending.ahead(conn, row, now=NOW) for row in order] == list(range(len(order)))


def test_what_failed_under_another_revision_is_found_and_released(ledger: Ledger) -> None:
    failed = {"failed_signature": "s", "workflow_run_pending": False, "hold": {"code": "execution_failed"}}
    put(ledger, "B", failed_config_id="old", **failed)
    put(ledger, "A", failed_config_id="old", **failed)
    put(ledger, "same", failed_config_id="new", **failed)
    put(ledger, "retried", failed_config_id="old", retry_at=NOW + HOUR, **failed)
    put(ledger, "moved", failed_config_id="old", **{**failed, "failed_signature": "earlier"})
    with ledger.begin() as conn:
        found = pending.failed_under_another(conn, SURVEY, "new")
        assert [row.source_identifier for row in found] == ["A", "B"]
        pending.release(conn, [row.id for row in found], now=NOW)
        assert pending.failed_under_another(conn, SURVEY, "new") == []
        row = sources.get(conn, SURVEY, "A")
    assert (row.workflow_run_pending, row.workflow_run_pending_at, row.hold) == (True, NOW, None)
    assert not row.failed_now
