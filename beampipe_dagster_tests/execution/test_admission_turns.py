"""Priorities, turns between surveys, and the decisions that ticks keep."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from beampipe_dagster.errors import InputError
from beampipe_dagster.execution.outcome import finish
from beampipe_dagster.ledger import decisions, executions, pending
from beampipe_dagster.ledger.decisions import StoredTick
from beampipe_dagster.ledger.execution_values import Execution
from beampipe_dagster.ledger.sources import NewSource
from beampipe_dagster.ledger.states import Status, TerminalOutcome
from beampipe_dagster.ledger.tables_admission import admission_decisions, admission_sources
from beampipe_dagster.sources.queue import queue_of
from beampipe_dagster_tests.support.ledgers import SURVEY
from beampipe_dagster_tests.support.platforms import Stage

OTHER = "other"


def another_survey(stage: Stage, name: str, *sources: str, **execution: object) -> None:
    """A second survey with ready sources."""
    stage.add_survey(metadata={"id": name}, execution=execution)
    for number, source in enumerate(sources):
        stage.archives.deposit(source, 500 + number)
    if not sources:
        return
    stage.platform.registry.register(name, [NewSource(source) for source in sources], actor="test")
    while claims := stage.platform.discovery.tick(name).claims:
        for claim in claims:
            stage.platform.discovery.run_batch(claim.token)


def end(stage: Stage, execution: Execution) -> None:
    with stage.ledger.begin() as conn:
        finish(
            conn,
            executions.get(conn, execution.id),
            Status.CANCELLED,
            outcome=TerminalOutcome.CANCELLED,
            clock=stage.clock,
            ids=stage.platform.ids,
        )


def decision(stage: Stage, survey: str = SURVEY) -> StoredTick:
    with stage.ledger.read() as conn:
        found = decisions.newest(conn, survey)
    assert found is not None
    return found


def test_the_highest_priority_is_admitted_first(stage: Stage) -> None:
    stage.add_survey(execution={"tick_execution_run_limit": 1})
    stage.ready("A", "B", "C")
    assert stage.platform.admission.prioritize(SURVEY, ["C", "B"], 3, actor="anna") == ["B", "C"]
    assert stage.platform.admission.prioritize(SURVEY, ["C"], 7, actor="anna") == ["C"]
    assert stage.platform.admission.prioritize(SURVEY, ["C"], 7, actor="anna") == []
    order = []
    for _ in range(3):
        order += stage.admit()
    assert [one.source_identifiers for one in order] == [["C"], ["B"], ["A"]]
    assert len(stage.events("source.prioritized")) == 3
    with pytest.raises(InputError) as caught:
        stage.platform.admission.prioritize(SURVEY, ["A"], 10**9, actor="anna")
    assert caught.value.code == "invalid_priority"


def test_a_tick_keeps_what_it_decided_with_caps_and_profile(stage: Stage) -> None:
    stage.platform.admission._max_in_flight = 2
    stage.add_survey(execution={"concurrent_execution_run_limit": 5})
    stage.ready("A", "B", "C")
    stage.admit()
    first = decision(stage)
    assert (first.admitted, first.reason, first.waiting) == (2, "in_flight_cap", 1)
    for _ in range(3):
        stage.clock.advance(60)
        stage.admit()
    last = decision(stage)
    assert (last.admitted, last.reason, last.seen_count, last.waiting) == (0, "in_flight_cap", 3, 1)
    assert last.caps == {
        "project_in_flight_cap": [2, 5],
        "in_flight_cap": [2, 2],
        "profile_in_flight_cap": [2, None],
    }
    assert last.profile == "local r1"
    assert last.message == "in_flight_cap: 2 of 2 are active"
    assert last.last_seen_at == stage.clock.now()


def test_many_equal_ticks_keep_one_row(stage: Stage) -> None:
    for _ in range(20):
        stage.admit()
    with stage.ledger.read() as conn:
        rows = conn.execute(sa.select(admission_decisions)).all()
    assert [(row.reason, row.seen_count) for row in rows] == [("no_pending_sources", 20)]


def test_a_left_out_sources_reason_is_kept_until_it_runs(stage: Stage) -> None:
    stage.archives.deposit("held", 7)
    stage.archives.catalogue("held", known=False)
    stage.register("held")
    stage.discover()
    for _ in range(2):
        stage.admit()
    with stage.ledger.read() as conn:
        kept = decisions.of_sources(conn, SURVEY, ["held"])["held"]
    assert (kept.code, kept.seen_count) == ("discovery_flags_failed", 2)
    stage.archives.catalogue("held")
    stage.request("held")
    stage.admit()
    with stage.ledger.read() as conn:
        assert conn.execute(sa.select(admission_sources)).all() == []


def test_two_surveys_share_a_full_platform_in_turns(stage: Stage) -> None:
    stage.platform.admission._max_in_flight = 1
    stage.ready("A1", "A2", "A3", "A4")
    another_survey(stage, OTHER, "B1", "B2", "B3", "B4")
    order = []
    for _ in range(6):
        for survey in (SURVEY, OTHER):  # the first one always asks first
            for execution in stage.platform.admission.tick(survey).admitted:
                order.append(survey)
                running = execution
        stage.clock.advance(60)
        end(stage, running)
    assert order[:6].count(SURVEY) == 3
    assert all(len(set(order[start : start + 3])) > 1 for start in range(4)), (
        "nobody has three turns in a row"
    )


def test_a_survey_that_waits_for_its_turn_says_so(stage: Stage) -> None:
    stage.platform.admission._max_in_flight = 1
    stage.ready("A1", "A2")
    another_survey(stage, OTHER, "B1")
    (first,) = stage.admit()
    stage.platform.admission.tick(OTHER)
    end(stage, first)
    report = stage.platform.admission.tick(SURVEY)
    assert (report.skip_reason, report.admitted) == ("fair_share", [])
    with stage.ledger.read() as conn:
        (waiting,) = queue_of(conn, SURVEY, now=stage.clock.now(), limit=9).waiting
    assert (waiting.code, waiting.source_identifier, waiting.position) == ("fair_share", "A2", 1)
    assert len(stage.platform.admission.tick(OTHER).admitted) == 1


def test_nothing_is_kept_for_a_survey_whose_clock_stands_still(stage: Stage) -> None:
    stage.platform.admission._max_in_flight = 1
    stage.ready("A1", "A2")
    another_survey(stage, OTHER, "B1")
    (first,) = stage.admit()
    stage.platform.admission.tick(OTHER)
    end(stage, first)
    stage.clock.advance(3600)
    assert len(stage.admit()) == 1


def test_surveys_that_share_a_profile_take_turns_in_it(stage: Stage) -> None:
    stage.add_profile(max_concurrent_executions=1)
    stage.ready("A1", "A2")
    another_survey(stage, OTHER, "B1")
    (first,) = stage.admit()
    assert stage.platform.admission.tick(OTHER).skip_reason == "profile_in_flight_cap"
    end(stage, first)
    assert stage.platform.admission.tick(SURVEY).skip_reason == "fair_share"
    assert len(stage.platform.admission.tick(OTHER).admitted) == 1


def test_a_survey_takes_all_the_room_that_nobody_else_wants(stage: Stage) -> None:
    stage.platform.admission._max_in_flight = 4
    another_survey(stage, OTHER)
    stage.platform.admission.tick(OTHER)
    stage.ready("A1", "A2", "A3", "A4", "A5")
    stage.discover()
    assert len(stage.admit()) == 4


def test_the_queue_shows_order_reasons_and_times(stage: Stage) -> None:
    stage.platform.admission._max_in_flight = 1
    stage.ready("A", "B", "C")
    stage.platform.admission.prioritize(SURVEY, ["C"], 1, actor="anna")
    stage.archives.deposit("held", 7)
    stage.archives.catalogue("held", known=False)
    stage.register("held")
    stage.discover()
    with stage.ledger.read() as conn:
        before = queue_of(conn, SURVEY, now=stage.clock.now(), limit=9)
    assert {one.code for one in before.waiting} == {"not_decided_yet"}
    assert before.tick is None
    stage.admit()
    with stage.ledger.read() as conn:
        found = queue_of(conn, SURVEY, now=stage.clock.now(), limit=9)
        assert pending.count(conn, SURVEY) == found.total == 3
    assert [(one.source_identifier, one.position, one.code) for one in found.waiting] == [
        ("A", 1, "in_flight_cap"),
        ("B", 2, "in_flight_cap"),
        ("held", None, "discovery_flags_failed"),
    ]
    assert found.by_code == {"discovery_flags_failed": 1, "in_flight_cap": 2}
