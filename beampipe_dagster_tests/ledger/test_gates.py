"""Permits, circuits and health of archives in the ledger."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest

from beampipe_dagster.config.canonical import JsonValue
from beampipe_dagster.errors import NotFoundError
from beampipe_dagster.ledger import gates
from beampipe_dagster.ledger.circuits import CircuitState, Outcome, Rules
from beampipe_dagster.ledger.engine import Ledger
from beampipe_dagster.ledger.gates import ArchiveRow, Granted, Settled, ShutOff, User, Wait
from beampipe_dagster_tests.support.ledgers import START, at_once

KEY = "casda.example/tap"
TTL = timedelta(seconds=60)
RULES = Rules(failures_to_open=2, open_seconds=10)
SECOND = timedelta(seconds=1)


@pytest.fixture(autouse=True)
def _known(ledger: Ledger) -> None:
    ensure(ledger)


def ensure(ledger: Ledger, user: User | None = None, *, most: int = 3) -> None:
    with ledger.begin() as conn:
        gates.ensure(
            conn,
            user or User("survey", "casda", KEY),
            url=f"https://{KEY}",
            max_concurrency=most,
            min_interval_ms=0,
            now=START,
        )


def take(
    ledger: Ledger,
    token: str,
    *,
    most: int = 3,
    interval: timedelta = timedelta(0),
    now: datetime = START,
    force_probe: bool = False,
) -> Granted | Wait | ShutOff:
    with ledger.begin() as conn:
        return gates.take(
            conn,
            KEY,
            token,
            holder="host:1",
            max_concurrency=most,
            min_interval=interval,
            ttl=TTL,
            now=now,
            force_probe=force_probe,
        )


def settle(
    ledger: Ledger, token: str, outcome: Outcome, *, now: datetime = START, seconds: float | None = None
) -> Settled | None:
    told: dict[str, JsonValue] = {"code": "archive_timeout", "message": "too late"}
    error = None if outcome is Outcome.ANSWERED else told
    with ledger.begin() as conn:
        return gates.settle(
            conn,
            KEY,
            token,
            outcome,
            rules=RULES,
            now=now,
            seconds=seconds,
            error=error,
        )


def row(ledger: Ledger) -> ArchiveRow:
    with ledger.read() as conn:
        return gates.get(conn, KEY)


def in_use(ledger: Ledger, now: datetime = START) -> int:
    with ledger.read() as conn:
        return gates.permits_in_use(conn, now=now).get(KEY, 0)


def test_there_are_never_more_permits_than_allowed_also_when_all_ask_at_once(ledger: Ledger) -> None:
    got = at_once(*[lambda n=n: take(ledger, f"t{n}") for n in range(8)])
    assert sorted(type(one).__name__ for one in got) == ["Granted"] * 3 + ["Wait"] * 5
    assert in_use(ledger) == 3
    settle(ledger, next(f"t{n}" for n, one in enumerate(got) if isinstance(one, Granted)), Outcome.ANSWERED)
    assert isinstance(take(ledger, "next"), Granted)
    assert isinstance(take(ledger, "one too many"), Wait)


def test_a_permit_runs_out_unless_it_is_renewed(ledger: Ledger) -> None:
    take(ledger, "dead", most=2)
    take(ledger, "alive", most=2)
    with ledger.begin() as conn:
        gates.renew(conn, ["alive"], expires_at=START + 2 * TTL)
    assert isinstance(take(ledger, "early", most=2, now=START + TTL - SECOND), Wait)
    assert isinstance(take(ledger, "next", most=2, now=START + TTL), Granted)
    assert isinstance(take(ledger, "late", most=2, now=START + TTL), Wait)
    with ledger.read() as conn:
        assert gates.holders(conn, KEY, now=START + TTL) == [("host:1", START), ("host:1", START + TTL)]


def test_what_dead_processes_left_is_swept(ledger: Ledger) -> None:
    take(ledger, "dead")
    take(ledger, "failed", now=START + TTL)
    settle(ledger, "failed", Outcome.AWAY, now=START + TTL)
    assert in_use(ledger, START) == 0


def test_requests_are_spaced_out_and_near_turns_are_given_ahead(ledger: Ledger) -> None:
    interval = timedelta(milliseconds=900)
    got = [take(ledger, f"t{n}", most=9, interval=interval) for n in range(5)]
    assert [one.not_before - START for one in got[:3] if isinstance(one, Granted)] == [
        timedelta(0),
        interval,
        2 * interval,
    ]
    assert got[3] == Wait("requests are spaced out", START + 3 * interval - gates.SOON)
    assert got[4] == got[3]
    later = START + 10 * SECOND
    assert take(ledger, "later", most=9, interval=interval, now=later) == Granted(later)


def test_a_pause_is_everybodys_and_never_made_shorter(ledger: Ledger) -> None:
    with ledger.begin() as conn:
        gates.pause(conn, KEY, until=START + 30 * SECOND)
        gates.pause(conn, KEY, until=START + 5 * SECOND)
    wait = take(ledger, "t")
    assert wait == Wait("the archive asked for a pause", START + 30 * SECOND)
    with ledger.read() as conn:
        assert gates.obstacle(conn, KEY, max_concurrency=3, now=START) == wait
        assert gates.obstacle(conn, KEY, max_concurrency=3, now=START + 30 * SECOND) is None
    assert isinstance(take(ledger, "t", now=START + 30 * SECOND), Granted)


def test_health_is_what_requests_found(ledger: Ledger) -> None:
    for number, seconds in enumerate((1.0, 2.0)):
        take(ledger, f"t{number}")
        settle(ledger, f"t{number}", Outcome.ANSWERED, seconds=seconds, now=START + number * SECOND)
    take(ledger, "bad")
    settle(ledger, "bad", Outcome.AWAY, now=START + 5 * SECOND)
    found = row(ledger)
    assert found.latency_seconds == pytest.approx(1.2)
    assert (found.good_count, found.failure_count) == (2, 1)
    assert (found.last_good_at, found.last_failure_at) == (START + SECOND, START + 5 * SECOND)
    assert found.last_error == {"code": "archive_timeout", "message": "too late"}
    assert found.circuit.failures == 1


def test_an_opened_circuit_lets_one_probe_through_whose_answer_closes_it(ledger: Ledger) -> None:
    for token in ("a", "b"):
        take(ledger, token)
        changed = settle(ledger, token, Outcome.AWAY)
    assert changed is not None
    assert changed.opened
    assert isinstance(take(ledger, "early"), ShutOff)
    then = START + 10 * SECOND
    assert take(ledger, "probe", now=then) == Granted(then, probe=True)
    assert isinstance(take(ledger, "second", now=then), ShutOff)
    changed = settle(ledger, "probe", Outcome.ANSWERED, now=then, seconds=3.0)
    assert changed is not None
    assert changed.closed
    found = row(ledger)
    assert (found.circuit.state, found.last_good_at, found.latency_seconds) == (
        CircuitState.CLOSED,
        then,
        3.0,
    )
    assert isinstance(take(ledger, "after", now=then), Granted)


def test_a_prober_that_is_killed_makes_room_for_another_and_is_not_believed_later(ledger: Ledger) -> None:
    for token in ("a", "b"):
        take(ledger, token)
        settle(ledger, token, Outcome.AWAY)
    then = START + 10 * SECOND
    take(ledger, "killed", now=then)
    assert isinstance(take(ledger, "early", now=then + TTL - SECOND), ShutOff)
    assert take(ledger, "other", now=then + TTL) == Granted(then + TTL, probe=True)
    settle(ledger, "killed", Outcome.ANSWERED, now=then + TTL)
    assert row(ledger).circuit.probe_token == "other"  # noqa: S105  # no password
    with ledger.begin() as conn:
        gates.renew(conn, ["other"], expires_at=then + 3 * TTL)
    assert isinstance(take(ledger, "third", now=then + 2 * TTL), ShutOff)


def test_a_circuit_that_is_opened_by_hand_stays_open_until_it_is_closed(ledger: Ledger) -> None:
    with ledger.begin() as conn:
        gates.open_by_hand(conn, KEY, now=START, until=None, reason="maintenance")
    assert isinstance(take(ledger, "t", now=START + timedelta(days=365)), ShutOff)
    with ledger.begin() as conn:
        gates.pause(conn, KEY, until=START + timedelta(days=999))
        gates.close_by_hand(conn, KEY)
    assert isinstance(take(ledger, "t"), Granted)


def test_an_operator_may_probe_before_the_time(ledger: Ledger) -> None:
    with ledger.begin() as conn:
        gates.open_by_hand(conn, KEY, now=START, until=None, reason="maintenance")
    assert take(ledger, "probe", force_probe=True) == Granted(START, probe=True)
    assert isinstance(take(ledger, "second", force_probe=True), ShutOff)
    settle(ledger, "probe", Outcome.ANSWERED)
    assert row(ledger).circuit.state is CircuitState.CLOSED


def test_surveys_may_call_one_archive_by_different_names_and_move_to_another(ledger: Ledger) -> None:
    ensure(ledger, User("other", "askap", KEY), most=7)
    with ledger.read() as conn:
        (only,) = gates.everything(conn)
        assert (only.name, only.max_concurrency) == ("askap", 7)
        assert list(gates.of_project(conn, "survey")) == ["casda"]
        assert gates.of_project(conn, "other")["askap"] == only
    with ledger.begin() as conn:
        gates.ensure(
            conn, User("other", "askap", "new/tap"), url="u", max_concurrency=1, min_interval_ms=5, now=START
        )
    with ledger.read() as conn:
        assert gates.users(conn, "other") == [User("other", "askap", "new/tap")]
        assert [one.key for one in gates.everything(conn)] == [KEY, "new/tap"]


def test_an_archive_that_nobody_knows_is_told_with_what_to_do(ledger: Ledger) -> None:
    with ledger.read() as conn, pytest.raises(NotFoundError) as caught:
        gates.get(conn, "nowhere")
    assert caught.value.code == "archive_not_known"
    assert "beampipe archive list" in caught.value.hint
