from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
import sqlalchemy as sa

from beampipe_dagster.clock import ManualClock
from beampipe_dagster.ids import SequenceIds
from beampipe_dagster.ledger import registration, sources, watermarks
from beampipe_dagster.ledger.engine import Ledger
from beampipe_dagster.ledger.sources import NewSource
from beampipe_dagster.ledger.tables import source_registry
from beampipe_dagster.ledger.watermarks import Watermark
from beampipe_dagster_tests.support.ledgers import START, SURVEY, at_once

MARK = Watermark(SURVEY, "q", "0" * 64, "1", "2", START, ["a", "b"], START, 1)


def test_a_watermark_is_written_once_by_whoever_read_it(ledger: Ledger) -> None:
    def put(mark: Watermark, expected: int | None) -> bool:
        with ledger.begin() as conn:
            return watermarks.put(conn, mark, expected_sweeps=expected)

    assert put(MARK, None)
    assert not put(MARK, None)
    assert put(replace(MARK, position="2", candidate=None, candidate_at=None, sweeps=2), 1)
    assert not put(replace(MARK, position="9", sweeps=2), 1)
    with ledger.read() as conn:
        found = watermarks.get(conn, SURVEY, "q")
        assert watermarks.get(conn, SURVEY, "other") is None
    assert found == replace(MARK, position="2", candidate=None, candidate_at=None, sweeps=2)


def test_the_first_of_several_that_write_at_once_wins(ledger: Ledger) -> None:
    def put() -> bool:
        with ledger.begin() as conn:
            return watermarks.put(conn, MARK, expected_sweeps=None)

    assert sorted(map(str, at_once(*[put] * 4))) == ["False", "False", "False", "True"]


@pytest.fixture
def registered(ledger: Ledger, ids: SequenceIds) -> Ledger:
    with ledger.begin() as conn:
        new = [NewSource(f"S{number:04}") for number in range(1200)]
        registration.upsert(conn, SURVEY, new, ids=ids, now=START)
        registration.upsert(conn, "other", [NewSource("S0000")], ids=ids, now=START)
    return ledger


def requested(ledger: Ledger) -> list[tuple[str, str]]:
    columns = source_registry.c
    with ledger.read() as conn:
        rows = conn.execute(
            sa.select(columns.project_module, columns.source_identifier)
            .where(columns.discovery_requested_at.is_not(None))
            .order_by(columns.project_module, columns.source_identifier)
        )
        return [(row[0], row[1]) for row in rows]


def test_looks_are_asked_for_at_those_that_are_named_or_at_all(registered: Ledger) -> None:
    names = [f"S{number:04}" for number in range(700)]
    with registered.begin() as conn:
        assert watermarks.request_looks(conn, SURVEY, names, now=START) == 700
    assert requested(registered) == [(SURVEY, name) for name in names]
    with registered.begin() as conn:
        assert watermarks.request_looks(conn, SURVEY, None, now=START) == 1200
        assert watermarks.request_looks(conn, SURVEY, [], now=START) == 0


def test_those_wait_that_were_asked_for_and_not_looked_at_since(
    registered: Ledger, clock: ManualClock
) -> None:
    def waiting() -> int:
        with registered.read() as conn:
            return watermarks.waiting(conn, SURVEY, clock.now())

    def change(name: str, **values: object) -> None:
        with registered.begin() as conn:
            found = sources.get(conn, SURVEY, name)
            sources.update(conn, [found.id], values, now=clock.now())

    clock.advance(60)
    assert waiting() == 0
    with registered.begin() as conn:
        watermarks.request_looks(conn, SURVEY, ["S0001", "S0002", "S0003", "S0004"], now=clock.now())
    assert waiting() == 4
    change("S0001", last_checked_at=clock.now() + timedelta(seconds=1))
    change("S0002", last_checked_at=clock.now() - timedelta(seconds=1))
    assert waiting() == 3
    change("S0003", enabled=False)
    change("S0004", quarantined_at=clock.now())
    assert waiting() == 1


def test_names_come_in_order_and_of_one_survey(registered: Ledger) -> None:
    with registered.read() as conn:
        found = watermarks.identifiers(conn, SURVEY)
    assert found == sorted(found)
    assert len(found) == 1200
