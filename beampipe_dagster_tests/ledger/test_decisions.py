"""Decisions of admission, kept once."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

import sqlalchemy as sa

from beampipe_dagster.ids import SequenceIds
from beampipe_dagster.ledger import decisions
from beampipe_dagster.ledger.decisions import Held, TickDecision
from beampipe_dagster.ledger.engine import Ledger
from beampipe_dagster.ledger.tables_admission import admission_decisions, admission_sources
from beampipe_dagster_tests.support.ledgers import START, SURVEY, register

FULL = TickDecision(
    project_module=SURVEY,
    reason="in_flight_cap",
    message="in_flight_cap: 2 of 2 are active",
    admitted=0,
    waiting=3,
    held=0,
    caps={"in_flight_cap": [2, 2], "project_in_flight_cap": [1, None]},
    profile="local r1",
    project_config_id="revision",
)


def at(minutes: int) -> datetime:
    return START + timedelta(minutes=minutes)


def rows(ledger: Ledger) -> int:
    with ledger.read() as conn:
        return conn.execute(sa.select(sa.func.count()).select_from(admission_decisions)).scalar_one()


def test_equal_decisions_in_a_row_are_one_row_that_counts_them(ledger: Ledger, ids: SequenceIds) -> None:
    with ledger.begin() as conn:
        for minute in range(5):
            decisions.record_tick(conn, FULL, ids=ids, now=at(minute))
        found = decisions.newest(conn, SURVEY)
    assert rows(ledger) == 1
    assert found is not None
    assert (found.decided_at, found.last_seen_at, found.seen_count) == (at(0), at(4), 5)
    assert (found.reason, found.caps) == (FULL.reason, FULL.caps)


def test_another_reason_begins_a_row_and_so_does_a_tick_that_admits(ledger: Ledger, ids: SequenceIds) -> None:
    admitting = replace(FULL, reason=None, message=None, admitted=1)
    with ledger.begin() as conn:
        for number, one in enumerate([FULL, admitting, admitting, FULL, FULL]):
            decisions.record_tick(conn, one, ids=ids, now=at(number))
        found = decisions.history(conn, SURVEY)
    assert [(one.admitted, one.seen_count) for one in found] == [(0, 2), (1, 1), (1, 1), (0, 1)]


def test_a_survey_keeps_a_bounded_number_and_never_loses_the_newest(ledger: Ledger, ids: SequenceIds) -> None:
    with ledger.begin() as conn:
        other = replace(FULL, project_module="other")
        decisions.record_tick(conn, other, ids=ids, now=at(0))
        for number in range(decisions.KEPT + 7):
            decisions.record_tick(conn, replace(FULL, waiting=number), ids=ids, now=at(number))
        found = decisions.newest(conn, SURVEY)
        assert decisions.newest(conn, "other") is not None
    assert found is not None
    assert found.waiting == decisions.KEPT + 6
    assert rows(ledger) == decisions.KEPT + 1


def test_a_sources_reason_is_kept_once_and_forgotten_when_it_no_longer_waits(
    ledger: Ledger, ids: SequenceIds
) -> None:
    flags = Held("discovery_flags_failed", "flags do not pass")
    later = Held("retry_waiting", "it is tried again", at(90))
    with ledger.begin() as conn:
        register(conn, ["A", "B"], ids=ids, workflow_run_pending=True)
        decisions.record_sources(conn, SURVEY, {"A": flags, "B": later}, now=at(0))
        decisions.record_sources(conn, SURVEY, {"A": flags, "B": flags}, now=at(1))
        found = decisions.of_sources(conn, SURVEY, ["A", "B", "C"])
        assert (found["A"].decided_at, found["A"].last_seen_at, found["A"].seen_count) == (at(0), at(1), 2)
        assert (found["B"].code, found["B"].not_before, found["B"].seen_count) == (flags.code, None, 1)
        assert found["B"].decided_at == at(1)
        register(conn, ["A"], ids=ids, workflow_run_pending=False)
        decisions.record_sources(conn, SURVEY, {}, now=at(2))
        left = [row.source_identifier for row in conn.execute(sa.select(admission_sources))]
    assert left == ["B"]


def test_turns_are_kept_by_survey(ledger: Ledger) -> None:
    with ledger.begin() as conn:
        decisions.serve(conn, "a", 1.5, now=at(0))
        decisions.serve(conn, "b", 2.0, now=at(0))
        decisions.serve(conn, "a", 2.5, now=at(1))
        assert decisions.served(conn) == {"a": 2.5, "b": 2.0}


def test_the_last_tick_of_each_survey_is_known(ledger: Ledger, ids: SequenceIds) -> None:
    with ledger.begin() as conn:
        decisions.record_tick(conn, FULL, ids=ids, now=at(0))
        decisions.record_tick(conn, FULL, ids=ids, now=at(3))
        assert decisions.last_ticks(conn) == {SURVEY: at(3)}
