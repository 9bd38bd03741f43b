"""Rows of the registry that come, change and go."""

from __future__ import annotations

from datetime import timedelta

import pytest

from beampipe_dagster.ids import SequenceIds, UuidIds
from beampipe_dagster.ledger import executions, registration, sources
from beampipe_dagster.ledger.engine import Ledger
from beampipe_dagster.ledger.sources import NewSource
from beampipe_dagster_tests.support.ledgers import (
    START,
    SURVEY,
    add_survey,
    at_once,
    new_execution,
    register,
)

HOUR = timedelta(hours=1)


def test_registering_again_updates_flags_and_keeps_what_is_not_given(
    ledger: Ledger, ids: SequenceIds
) -> None:
    with ledger.begin() as conn:
        first = NewSource("A", enabled=False, ra_deg=10.5, dec_deg=-20.0, stale_after_hours=6)
        done = registration.upsert(conn, SURVEY, [first], ids=ids, now=START)
        assert (done.added, done.changed, done.known) == (["A"], [], [])
        again = [NewSource("A"), NewSource("B")]
        done = registration.upsert(conn, SURVEY, again, ids=ids, now=START + HOUR)
        assert (done.added, done.changed, done.known) == (["B"], ["A"], [])
        known = sources.get(conn, SURVEY, "A")
    assert (known.enabled, known.ra_deg, known.dec_deg, known.stale_after_hours) == (True, 10.5, -20.0, 6)
    assert (known.created_at, known.updated_at) == (START, START + HOUR)


def test_the_same_name_in_two_surveys_is_two_sources(ledger: Ledger, ids: SequenceIds) -> None:
    with ledger.begin() as conn:
        for survey in ("one", "two"):
            registration.upsert(conn, survey, [NewSource("A")], ids=ids, now=START)
        assert [source.project_module for source in sources.listing(conn)] == ["one", "two"]
        assert len(sources.listing(conn, "one")) == 1


def test_two_processes_may_register_the_same_sources_at_once(ledger: Ledger) -> None:
    names = [f"S{number:02}" for number in range(40)]

    def add(order: list[str]) -> int:
        with ledger.begin() as conn:
            new = [NewSource(name) for name in order]
            return len(registration.upsert(conn, SURVEY, new, ids=UuidIds(), now=START).added)

    done = at_once(lambda: add(names), lambda: add(names[::-1]))
    assert sorted(str(one) for one in done) == ["0", "40"]


def test_registering_the_same_again_writes_nothing(ledger: Ledger, ids: SequenceIds) -> None:
    new = [NewSource("A", ra_deg=1.5, dec_deg=-2.5), NewSource("B")]
    with ledger.begin() as conn:
        registration.upsert(conn, SURVEY, new, ids=ids, now=START)
        done = registration.upsert(conn, SURVEY, new, ids=ids, now=START + HOUR)
        assert (done.added, done.changed, done.known) == ([], [], ["A", "B"])
        assert sources.get(conn, SURVEY, "A").updated_at == START


@pytest.mark.parametrize(
    "new", [NewSource("A", ra_deg=3.0), NewSource("A", enabled=False), NewSource("A", stale_after_hours=7)]
)
def test_anything_new_about_a_known_source_is_a_change(
    ledger: Ledger, ids: SequenceIds, new: NewSource
) -> None:
    with ledger.begin() as conn:
        (before,) = register(conn, ["A"], ids=ids)
        assert registration.upsert(conn, SURVEY, [new], ids=ids, now=START).changed == ["A"]
        assert sources.get(conn, SURVEY, "A").id == before.id


def test_enabling_forgets_failures_and_disabling_does_not(ledger: Ledger, ids: SequenceIds) -> None:
    failed = {"failure_count": 9, "own_failure_count": 8, "quarantined_at": START}
    with ledger.begin() as conn:
        (row,) = register(conn, ["A"], ids=ids, **failed)
        registration.set_enabled(conn, [row.id], enabled=False, now=START)
        off = sources.get(conn, SURVEY, "A")
        assert (off.enabled, off.failure_count, off.quarantined_at) == (False, 9, START)
        registration.set_enabled(conn, [row.id], enabled=True, now=START)
        on = sources.get(conn, SURVEY, "A")
        assert (on.enabled, on.failure_count, on.own_failure_count, on.quarantined_at) == (True, 0, 0, None)


def test_only_active_executions_hold_sources(ledger: Ledger, ids: SequenceIds) -> None:
    with ledger.begin() as conn:
        register(conn, ["A", "B"], ids=ids)
        run = executions.create(conn, new_execution(add_survey(conn, ids=ids), ["A"], ids=ids), now=START)
        assert registration.in_executions(conn, SURVEY, ["A", "B"]) == {"A": run.id}
        assert registration.in_executions(conn, "other", ["A", "B"]) == {}


def test_deleted_rows_are_gone_and_locked_rows_come_by_name(ledger: Ledger, ids: SequenceIds) -> None:
    with ledger.begin() as conn:
        register(conn, ["B", "A", "C"], ids=ids)
        rows = registration.locked(conn, SURVEY, ["C", "B", "A", "nobody"])
        assert [row.source_identifier for row in rows] == ["A", "B", "C"]
        registration.delete(conn, [row.id for row in rows[:2]])
        assert [row.source_identifier for row in sources.listing(conn, SURVEY)] == ["C"]
