from __future__ import annotations

import sqlite3
from datetime import datetime
from pathlib import Path
from threading import Event, Thread

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import StatementError

from beampipe_dagster.errors import LedgerError, Retry
from beampipe_dagster.ledger.engine import Ledger, queue, sqlite_path
from beampipe_dagster.ledger.tables import leases
from beampipe_dagster_tests.support.ledgers import START, at_once


def row(name: str, expires_at: datetime = START) -> sa.Insert:
    return sa.insert(leases).values({"name": name, "token": "me", "expires_at": expires_at})


def count(ledger: Ledger) -> int:
    with ledger.read() as conn:
        return conn.execute(sa.select(sa.func.count()).select_from(leases)).scalar_one()


def add(ledger: Ledger, name: str) -> None:
    with ledger.begin() as conn:
        conn.execute(row(name))


def test_an_exception_rolls_everything_back(ledger: Ledger) -> None:
    def add_and_fail() -> None:
        with ledger.begin() as conn:
            conn.execute(row("a"))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        add_and_fail()
    assert count(ledger) == 0


def test_many_writers_at_once_all_get_their_turn(ledger: Ledger) -> None:
    at_once(*(lambda name=f"n{number}": add(ledger, name) for number in range(12)))
    assert count(ledger) == 12


def test_a_transaction_that_reads_and_then_writes_is_not_overtaken(ledger: Ledger) -> None:
    def one_more() -> None:
        with ledger.begin() as conn:
            queue(conn, "count")
            number = conn.execute(sa.select(sa.func.count()).select_from(leases)).scalar_one()
            if number < 3:
                conn.execute(row(f"n{number}"))

    done = at_once(*(one_more for _ in range(8)))
    assert done == [None] * 8
    assert count(ledger) == 3


def test_a_reader_does_not_wait_for_a_writer(ledger: Ledger) -> None:
    inside, seen = Event(), Event()

    def write() -> None:
        with ledger.begin() as conn:
            conn.execute(row("a"))
            inside.set()
            assert seen.wait(timeout=20)

    writer = Thread(target=write)
    writer.start()
    assert inside.wait(timeout=20)
    assert count(ledger) == 0
    seen.set()
    writer.join()
    assert count(ledger) == 1


def test_a_time_without_a_zone_is_refused(ledger: Ledger) -> None:
    naive = datetime(2026, 1, 1)  # noqa: DTZ001  # what is refused
    with pytest.raises(StatementError, match="aware"), ledger.begin() as conn:
        conn.execute(row("a", naive))


def test_a_failing_statement_is_an_error_of_the_ledger(ledger: Ledger) -> None:
    with pytest.raises(LedgerError) as caught, ledger.read() as conn:
        conn.execute(sa.text("SELECT * FROM nothing"))
    assert caught.value.retry is Retry.LATER
    assert "nothing" in caught.value.message


@pytest.mark.parametrize("url", ["nonsense", "mysql://somewhere/db", ""])
def test_an_unusable_url_is_refused_with_what_to_set(url: str) -> None:
    with pytest.raises(LedgerError) as caught:
        Ledger(url)
    assert caught.value.code == "invalid_database_url"
    assert caught.value.retry is Retry.NEVER


def test_a_database_that_is_away_is_waited_for() -> None:
    ledger = Ledger("postgresql://nobody:secret@127.0.0.1:1/none")
    with pytest.raises(LedgerError) as caught, ledger.read():
        pass
    assert caught.value.retry is Retry.LATER
    assert "secret" not in str(caught.value)
    assert "secret" not in ledger.display_url()


def test_sqlite_is_durable_and_checks_references(tmp_path: Path) -> None:
    ledger = Ledger(f"sqlite:///{tmp_path}/deep/ledger.db")
    with ledger.read() as conn:
        pragmas = {
            name: conn.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        }
    ledger.dispose()
    assert pragmas == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 30_000}


def test_a_file_that_is_no_database_is_an_error_of_the_ledger(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    path.write_text("not a database at all, but long enough to be looked at" * 100)
    with pytest.raises(LedgerError), Ledger(f"sqlite:///{path}").read() as conn:
        conn.execute(sa.text("SELECT 1"))
    with pytest.raises(sqlite3.DatabaseError):
        sqlite3.connect(path).execute("SELECT * FROM sqlite_master")


def test_only_a_sqlite_file_has_a_path() -> None:
    assert sqlite_path("sqlite:////a/b.db") == Path("/a/b.db")
    assert sqlite_path("sqlite://") is None
    assert sqlite_path("postgresql://h/db") is None


def test_what_is_written_without_waiting_for_the_disk_is_seen_by_everybody_at_once(ledger: Ledger) -> None:
    with ledger.relaxed() as conn:
        conn.execute(row("a"))
    other = Ledger(ledger.url)
    try:
        assert count(other) == 1
    finally:
        other.dispose()


def test_only_a_relaxed_transaction_does_not_wait_for_the_disk(ledger: Ledger) -> None:
    sqlite = ledger.dialect == "sqlite"
    setting, does_not = ("PRAGMA synchronous", 1) if sqlite else ("SHOW synchronous_commit", "off")

    def said(*, relaxed: bool) -> object:
        with ledger.relaxed() if relaxed else ledger.begin() as conn:
            return conn.exec_driver_sql(setting).scalar_one()

    with ledger.begin() as conn:
        usual = conn.exec_driver_sql(setting).scalar_one()
    assert [said(relaxed=relaxed) for relaxed in (True, False, True, False)] == [
        does_not,
        usual,
        does_not,
        usual,
    ]
    if sqlite:  # a server may have been told not to wait
        assert usual == 2


def test_a_relaxed_transaction_that_fails_leaves_nothing(ledger: Ledger) -> None:
    def add_and_fail() -> None:
        with ledger.relaxed() as conn:
            conn.execute(row("a"))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        add_and_fail()
    assert count(ledger) == 0
