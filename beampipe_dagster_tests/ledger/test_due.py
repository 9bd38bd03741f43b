"""Which sources a claim takes, and that it finds them by an index, whatever their number."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from beampipe_dagster.ids import SequenceIds
from beampipe_dagster.ledger.due import Due, mark
from beampipe_dagster.ledger.engine import Ledger
from beampipe_dagster.ledger.tables import DUE_NEW, DUE_SETTLED, DUE_UNSETTLED, source_registry
from beampipe_dagster_tests.bench.bench_tick import SURVEY as BENCH_SURVEY
from beampipe_dagster_tests.bench.bench_tick import seed
from beampipe_dagster_tests.support.ledgers import START, SURVEY

STALE_HOURS = 24
SOURCES = 300
TIMES = (None, *(START - timedelta(hours=hours) for hours in (-1, 0, 1, 5, 23, 24, 25, 48, 100)))


def some_rows(chance: random.Random) -> list[dict[str, Any]]:
    ids = SequenceIds()
    return [
        {
            "id": ids.new(),
            "project_module": SURVEY if chance.random() < 0.9 else "another",
            "source_identifier": f"S{number:04}",
            "enabled": chance.random() < 0.9,
            "created_at": START - timedelta(days=9),
            "updated_at": START,
            "stale_after_hours": chance.choice((None, None, None, 1, 30)),
            "last_checked_at": chance.choice(TIMES),
            "last_attempted_at": chance.choice(TIMES),
            "discovery_requested_at": chance.choice((None, None, *TIMES)),
            "next_attempt_at": chance.choice((None, None, None, *TIMES)),
            "quarantined_at": START if chance.random() < 0.1 else None,
            "vanish_signature": "a" * 64 if chance.random() < 0.1 else None,
            "workflow_run_pending": False,
            **chance.choice(
                (
                    {"discovery_claim_token": None, "discovery_claim_expires_at": None},
                    {"discovery_claim_token": None, "discovery_claim_expires_at": None},
                    {"discovery_claim_token": "t", "discovery_claim_expires_at": START + timedelta(hours=1)},
                    {"discovery_claim_token": "t", "discovery_claim_expires_at": START - timedelta(hours=1)},
                )
            ),
        }
        for number in range(SOURCES)
    ]


def is_due(row: dict[str, Any]) -> bool:
    """The rule as it is said."""
    claimed = row["discovery_claim_token"] is not None and row["discovery_claim_expires_at"] > START
    waits = row["next_attempt_at"] is not None and row["next_attempt_at"] > START
    if not row["enabled"] or row["quarantined_at"] or row["project_module"] != SURVEY or claimed or waits:
        return False
    checked, asked = row["last_checked_at"], row["discovery_requested_at"]
    hours = STALE_HOURS if row["stale_after_hours"] is None else row["stale_after_hours"]
    return (
        checked is None
        or row["vanish_signature"] is not None
        or (asked is not None and asked > checked)
        or checked <= START - timedelta(hours=hours)
    )


def turn(row: dict[str, Any]) -> tuple[bool, datetime, bool, datetime, str]:
    attempted = row["last_attempted_at"]
    asked = None if attempted is not None else row["discovery_requested_at"]
    return (attempted is not None, attempted or START, asked is None, asked or START, row["id"])


def marked_ids(conn: Connection, token: str) -> set[str]:
    columns = source_registry.c
    return {
        row.id for row in conn.execute(sa.select(columns.id).where(columns.discovery_claim_token == token))
    }


@pytest.mark.parametrize("number", range(4))
def test_a_claim_takes_the_due_sources_whose_turn_it_is(ledger: Ledger, number: int) -> None:
    rows = some_rows(random.Random(number))
    expected = [row["id"] for row in sorted(filter(is_due, rows), key=turn)]
    assert len(expected) > 40
    with ledger.begin() as conn:
        conn.execute(sa.insert(source_registry), rows)
        taken = 0
        for limit in (1, 7, 30, SOURCES):
            due = Due(SURVEY, limit=limit, stale_after_hours=STALE_HOURS, now=START)
            token = f"claim-{limit}"
            count = mark(conn, due, token=token, expires_at=START + timedelta(hours=1))
            assert marked_ids(conn, token) == set(expected[taken : taken + limit])
            assert count == len(expected[taken : taken + limit])
            taken += count
    assert taken == len(expected)


def test_each_source_that_may_be_claimed_is_in_exactly_one_index(ledger: Ledger) -> None:
    rows = some_rows(random.Random(17))
    with ledger.begin() as conn:
        conn.execute(sa.insert(source_registry), rows)
        found = [
            row.id
            for where in (DUE_NEW, DUE_UNSETTLED, DUE_SETTLED)
            for row in conn.execute(sa.select(source_registry.c.id).where(sa.text(where)))
        ]
    assert sorted(found) == sorted(row["id"] for row in rows if row["enabled"] and not row["quarantined_at"])


@contextmanager
def plans(conn: Connection) -> Iterator[list[str]]:
    """How the database finds the rows of the updates that are made meanwhile, in its own words."""
    seen: list[tuple[str, Any]] = []

    def keep(_conn: object, _cursor: object, statement: str, parameters: Any, *_: object) -> None:
        seen.append((statement, parameters))

    found: list[str] = []
    sa.event.listen(conn.engine, "before_cursor_execute", keep)
    try:
        yield found
    finally:
        sa.event.remove(conn.engine, "before_cursor_execute", keep)
    explain = "EXPLAIN QUERY PLAN " if conn.dialect.name == "sqlite" else "EXPLAIN "
    for statement, parameters in seen:
        if "UPDATE source_registry" in statement:
            plan = conn.exec_driver_sql(explain + statement, parameters)
            found.append("\n".join(str(row[-1]) for row in plan))


@pytest.mark.parametrize("state", ["all_new", "all_stale", "none_due"])
def test_a_claim_never_reads_the_whole_registry(ledger: Ledger, state: str) -> None:
    with ledger.begin() as conn:
        conn.execute(sa.text("DELETE FROM source_registry"))
    seed(ledger, 20_000)
    times: dict[str, dict[str, Any]] = {
        "all_new": {"last_attempted_at": None, "last_checked_at": None},
        "none_due": {"last_attempted_at": START, "last_checked_at": START},
    }
    if state in times:
        with ledger.begin() as conn:
            conn.execute(sa.update(source_registry).values(times[state]))
            if ledger.dialect == "postgresql":
                conn.exec_driver_sql("ANALYZE source_registry")
    with ledger.begin() as conn:
        due = Due(BENCH_SURVEY, limit=500, stale_after_hours=STALE_HOURS, now=START)
        with plans(conn) as found:
            count = mark(conn, due, token=state, expires_at=START + timedelta(hours=1))
    assert count == (0 if state == "none_due" else 500)
    assert len(found) == (2 if state == "all_new" else 3)
    for plan in found:
        assert "Seq Scan" not in plan, plan
        assert "SCAN source_registry" not in plan, plan
        indexes = ("ix_source_registry_new", "ix_source_registry_unsettled", "ix_source_registry_settled")
        assert any(index in plan for index in indexes), plan
        # Sorting would mean to read all that are due.
        assert "Sort Key: source_registry" not in plan, plan
