from __future__ import annotations

from datetime import timedelta

import pytest
import sqlalchemy as sa

from beampipe_dagster.ledger import outbox
from beampipe_dagster.ledger.engine import Ledger
from beampipe_dagster.ledger.outbox import Message, StoredMessage
from beampipe_dagster.ledger.tables import outbox as table
from beampipe_dagster_tests.support.ledgers import START

LATER = START + timedelta(minutes=2)


def message(number: int, correlation_id: str | None = None) -> Message:
    return Message("materialization", "survey", "asset", {"n": number}, f"A@{number}", correlation_id)


def due(ledger: Ledger, *, limit: int = 10, correlation_id: str | None = None) -> list[StoredMessage]:
    with ledger.read() as conn:
        return outbox.due(conn, now=START, limit=limit, correlation_id=correlation_id)


def test_messages_come_in_the_order_in_which_they_were_put(ledger: Ledger) -> None:
    with ledger.begin() as conn:
        outbox.put(conn, [message(1), message(2)], now=START, available_at=START)
        outbox.put(conn, [message(3)], now=START, available_at=START)
        outbox.put(conn, [], now=START, available_at=START)
    found = due(ledger)
    assert [one.payload["n"] for one in found] == [1, 2, 3]
    assert [one.partition_key for one in found] == ["A@1", "A@2", "A@3"]
    assert [one.payload["n"] for one in due(ledger, limit=2)] == [1, 2]


def test_a_message_is_due_until_it_was_told_and_then_never_again(ledger: Ledger) -> None:
    with ledger.begin() as conn:
        outbox.put(conn, [message(1), message(2)], now=START, available_at=START)
    first, second = due(ledger)
    assert [one.id for one in due(ledger)] == [first.id, second.id]
    with ledger.begin() as conn:
        assert outbox.mark_delivered(conn, [first.id], now=START) == 1
        assert outbox.mark_delivered(conn, [first.id, second.id], now=START) == 1
        assert outbox.mark_delivered(conn, [], now=START) == 0
    assert due(ledger) == []


def test_a_message_waits_for_its_maker_before_others_see_it(ledger: Ledger) -> None:
    with ledger.begin() as conn:
        outbox.put(conn, [message(1, "batch")], now=START, available_at=LATER)
        outbox.put(conn, [message(2, "other")], now=START, available_at=LATER)
    assert due(ledger) == []
    assert [one.payload["n"] for one in due(ledger, correlation_id="batch")] == [1]
    with ledger.read() as conn:
        assert len(outbox.due(conn, now=LATER, limit=10)) == 2


def test_a_message_is_gone_with_the_change_that_it_tells(ledger: Ledger) -> None:
    def put_and_fail() -> None:
        with ledger.begin() as conn:
            outbox.put(conn, [message(1)], now=START, available_at=START)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        put_and_fail()
    assert due(ledger) == []


def test_what_waits_is_counted_with_the_oldest_time(ledger: Ledger) -> None:
    with ledger.begin() as conn:
        assert outbox.undelivered(conn) == (0, None)
        outbox.put(conn, [message(1)], now=START, available_at=START)
        outbox.put(conn, [message(2)], now=LATER, available_at=LATER)
        assert outbox.undelivered(conn) == (2, START)


def test_numbers_are_never_used_again(ledger: Ledger) -> None:
    with ledger.begin() as conn:
        outbox.put(conn, [message(1)], now=START, available_at=START)
    first = due(ledger)[0].id
    with ledger.begin() as conn:
        conn.execute(sa.delete(table))
        outbox.put(conn, [message(2)], now=START, available_at=START)
    assert due(ledger)[0].id > first
