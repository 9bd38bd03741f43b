from __future__ import annotations

from datetime import timedelta

from sqlalchemy.engine import Connection

from beampipe_dagster.clock import ManualClock
from beampipe_dagster.ledger import archive_jobs
from beampipe_dagster.ledger.archive_jobs import CREATION, KEPT
from beampipe_dagster.ledger.engine import Ledger
from beampipe_dagster.ledger.tables_archive_jobs import JobState
from beampipe_dagster_tests.support.ledgers import START

HOUR = timedelta(hours=1)


def begin(conn: Connection, job_id: str, key: str = "k", *, later: timedelta = timedelta(0)) -> None:
    archive_jobs.begin(
        conn,
        job_id=job_id,
        archive="casda",
        tap_url="https://casda.example/tap",
        query_key=key,
        query_sha256="0" * 64,
        upload_sha256=None,
        maxrec=20_000,
        now=START + later,
    )


def states(ledger: Ledger) -> dict[str, str]:
    with ledger.read() as conn:
        return {row.id: row.state for row in archive_jobs.newest(conn)}


def test_an_intent_is_nothing_to_go_on_with_until_its_url_is_kept(ledger: Ledger) -> None:
    with ledger.begin() as conn:
        begin(conn, "1")
        assert archive_jobs.find_open(conn, "k", now=START) is None
        archive_jobs.opened(conn, "1", "https://casda.example/tap/async/1", now=START)
        found = archive_jobs.find_open(conn, "k", now=START)
        assert archive_jobs.find_open(conn, "other", now=START) is None
    assert found is not None
    assert (found.id, found.job_url, found.submitted_at) == ("1", "https://casda.example/tap/async/1", START)


def test_a_job_is_found_until_it_ends_or_is_destroyed(ledger: Ledger) -> None:
    with ledger.begin() as conn:
        begin(conn, "1")
        archive_jobs.opened(conn, "1", "u", now=START)
        archive_jobs.seen(conn, "1", phases=[["QUEUED", "t"]], destruction_at=START + HOUR)
        assert archive_jobs.find_open(conn, "k", now=START) is not None
        assert archive_jobs.find_open(conn, "k", now=START + HOUR) is None
        archive_jobs.end(conn, "1", JobState.COLLECTED, None, now=START)
        assert archive_jobs.find_open(conn, "k", now=START) is None
        archive_jobs.end(conn, "1", JobState.LOST, "too late", now=START + HOUR)
        row = archive_jobs.get(conn, "1")
    assert row is not None
    assert (row.state, row.message, row.ended_at, row.phases) == (
        "collected",
        None,
        START,
        [["QUEUED", "t"]],
    )


def test_a_new_intent_closes_what_nothing_can_come_of_any_more(ledger: Ledger) -> None:
    with ledger.begin() as conn:
        begin(conn, "old intent")
        begin(conn, "destroyed")
        archive_jobs.opened(conn, "destroyed", "u", now=START)
        archive_jobs.seen(conn, "destroyed", phases=[], destruction_at=START + CREATION)
        begin(conn, "of another query", "other")
        begin(conn, "recent", later=CREATION / 2)
        begin(conn, "new", later=CREATION)
    assert states(ledger) == {
        "old intent": "abandoned",
        "destroyed": "expired",
        "of another query": "intent",
        "recent": "intent",
        "new": "intent",
    }


def test_rows_of_jobs_that_ended_long_ago_go(ledger: Ledger, clock: ManualClock) -> None:
    with ledger.begin() as conn:
        for name in ("old", "newer", "open"):
            begin(conn, name, name)
        archive_jobs.end(conn, "old", JobState.COLLECTED, None, now=clock.now())
        archive_jobs.end(conn, "newer", JobState.COLLECTED, None, now=clock.now() + HOUR)
        begin(conn, "last", later=KEPT + HOUR / 2)
        left = {row.id for row in archive_jobs.newest(conn, archive="casda")}
        assert archive_jobs.newest(conn, archive="vizier") == []
    assert left == {"newer", "open", "last"}
