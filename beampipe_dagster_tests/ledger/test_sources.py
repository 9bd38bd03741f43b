from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from beampipe_dagster.errors import NotFoundError
from beampipe_dagster.ids import SequenceIds, UuidIds
from beampipe_dagster.ledger import pending, registration, sources
from beampipe_dagster.ledger.engine import Ledger
from beampipe_dagster.ledger.sources import DiscoveryClaim, NewSource
from beampipe_dagster_tests.support.ledgers import START, SURVEY, at_once, register

HOUR = timedelta(hours=1)
TTL = timedelta(minutes=30)


def claim(
    ledger: Ledger, token: str, *, now: datetime = START, limit: int = 10, stale_after_hours: int = 24
) -> DiscoveryClaim | None:
    with ledger.begin() as conn:
        return sources.claim_due(
            conn,
            SURVEY,
            token=token,
            limit=limit,
            stale_after_hours=stale_after_hours,
            ttl=TTL,
            now=now,
        )


def held(ledger: Ledger, token: str) -> list[str]:
    with ledger.read() as conn:
        return [source.source_identifier for source in sources.claimed_sources(conn, token)]


def put(ledger: Ledger, *names: str, **values: Any) -> None:
    with ledger.begin() as conn:
        register(conn, names, ids=SequenceIds() if not values else UuidIdsAsSequence(), **values)


class UuidIdsAsSequence(SequenceIds):
    """Unique over several calls of :func:`put` in one test."""

    def new(self) -> str:
        return UuidIds().new()


def test_times_come_back_aware_and_in_utc(ledger: Ledger) -> None:
    local = START.astimezone(timezone(timedelta(hours=8)))
    put(ledger, "A", last_checked_at=local)
    with ledger.read() as conn:
        seen = sources.get(conn, SURVEY, "A").last_checked_at
    assert seen == START
    assert seen is not None
    assert seen.utcoffset() == timedelta(0)


def test_an_unknown_source_says_how_to_register_it(ledger: Ledger) -> None:
    with ledger.read() as conn, pytest.raises(NotFoundError, match="nobody") as caught:
        sources.get(conn, SURVEY, "nobody")
    assert caught.value.code == "source_not_registered"
    assert "register" in caught.value.hint


def test_a_claim_takes_due_sources_up_to_its_limit(ledger: Ledger) -> None:
    put(ledger, "A", "B", "C")
    made = claim(ledger, "t1", limit=2)
    assert made is not None
    assert (made.source_count, made.state, made.expires_at) == (2, "claimed", START + TTL)
    assert held(ledger, "t1") == ["A", "B"]
    claim(ledger, "t2")
    assert held(ledger, "t2") == ["C"]
    assert claim(ledger, "t3") is None


def test_a_disabled_source_is_never_due(ledger: Ledger) -> None:
    put(ledger, "A", enabled=False)
    assert claim(ledger, "t1") is None


def test_a_checked_source_is_due_again_when_it_is_stale_to_the_hour(ledger: Ledger) -> None:
    checked = START + timedelta(milliseconds=123)
    put(ledger, "A", last_checked_at=checked)
    assert claim(ledger, "t1", now=checked + 24 * HOUR - timedelta(milliseconds=1)) is None
    assert claim(ledger, "t2", now=checked + 24 * HOUR) is not None


def test_a_sources_own_stale_hours_win_over_the_surveys(ledger: Ledger) -> None:
    put(ledger, "often", last_checked_at=START, stale_after_hours=1)
    put(ledger, "seldom", last_checked_at=START, stale_after_hours=48)
    put(ledger, "usual", last_checked_at=START)
    for hours, due in ((2, ["often"]), (25, ["often", "usual"]), (49, ["often", "seldom", "usual"])):
        claim(ledger, f"t{hours}", now=START + hours * HOUR)
        assert held(ledger, f"t{hours}") == due


def test_a_failing_source_waits_for_its_next_attempt(ledger: Ledger) -> None:
    put(ledger, "A", next_attempt_at=START + HOUR, failure_count=3)
    assert claim(ledger, "t1", now=START + HOUR - timedelta(seconds=1)) is None
    assert claim(ledger, "t2", now=START + HOUR) is not None


def test_the_longest_untouched_come_first_so_that_failing_sources_starve_nobody(ledger: Ledger) -> None:
    put(ledger, "failing", last_attempted_at=START - HOUR)
    put(ledger, "longer_ago", last_attempted_at=START - 2 * HOUR)
    put(ledger, "new")
    assert claim(ledger, "t1", limit=1) is not None
    assert claim(ledger, "t2", limit=1) is not None
    assert claim(ledger, "t3", limit=1) is not None
    assert [held(ledger, token) for token in ("t1", "t2", "t3")] == [["new"], ["longer_ago"], ["failing"]]


def test_a_request_makes_a_fresh_source_due_at_once(ledger: Ledger) -> None:
    put(ledger, "A", "B", last_checked_at=START, failure_count=2, next_attempt_at=START + 9 * HOUR)
    with ledger.begin() as conn:
        assert sources.mark_for_discovery(conn, SURVEY, ["A", "nobody"], now=START + HOUR) == 1
    claim(ledger, "t1", now=START + HOUR)
    assert held(ledger, "t1") == ["A"]


def test_a_request_for_all_leaves_out_the_disabled(ledger: Ledger) -> None:
    put(ledger, "A", "B")
    put(ledger, "off", enabled=False)
    with ledger.begin() as conn:
        assert sources.mark_for_discovery(conn, SURVEY, None, now=START) == 2


def test_a_request_that_came_after_the_query_began_stays_due(ledger: Ledger) -> None:
    put(ledger, "A")
    claim(ledger, "t1")
    began, asked = START + timedelta(seconds=1), START + timedelta(seconds=2)
    with ledger.begin() as conn:
        sources.mark_for_discovery(conn, SURVEY, ["A"], now=asked)
        source = sources.get(conn, SURVEY, "A")
        assert sources.settle(conn, source.id, "t1", {"last_checked_at": began}, now=asked)
    assert claim(ledger, "t2", now=asked) is not None


def test_a_request_that_came_before_the_query_is_answered_by_it(ledger: Ledger) -> None:
    put(ledger, "A")
    with ledger.begin() as conn:
        sources.mark_for_discovery(conn, SURVEY, ["A"], now=START)
    claim(ledger, "t1")
    with ledger.begin() as conn:
        source = sources.get(conn, SURVEY, "A")
        values: dict[str, object] = {"last_checked_at": START + timedelta(seconds=1)}
        sources.settle(conn, source.id, "t1", values, now=START)
    assert claim(ledger, "t2", now=START + timedelta(seconds=2)) is None


def test_only_the_owner_settles_a_source(ledger: Ledger) -> None:
    put(ledger, "A")
    claim(ledger, "t1")
    with ledger.begin() as conn:
        source = sources.get(conn, SURVEY, "A")
        assert not sources.settle(conn, source.id, "other", {"last_outcome": "changed"}, now=START)
        assert sources.get(conn, SURVEY, "A").last_outcome is None
        assert sources.settle(conn, source.id, "t1", {"last_outcome": "unchanged"}, now=START)
        assert not sources.settle(conn, source.id, "t1", {"last_outcome": "changed"}, now=START)
        after = sources.get(conn, SURVEY, "A")
    assert (after.last_outcome, after.discovery_claim_token) == ("unchanged", None)


def test_an_expired_claim_lets_its_sources_go_to_the_next(ledger: Ledger) -> None:
    put(ledger, "A")
    claim(ledger, "t1")
    late = START + TTL
    with ledger.begin() as conn:
        assert sources.expire_claims(conn, now=late - timedelta(seconds=1)) == []
        assert sources.expire_claims(conn, now=late) == ["t1"]
        assert sources.expire_claims(conn, now=late) == []
        assert sources.claim(conn, "t1").state == "expired"
        assert sources.open_claims(conn) == []
    assert claim(ledger, "t2", now=late) is not None
    with ledger.begin() as conn:
        assert not sources.start_claim(conn, "t1", now=late, expires_at=late + TTL)
    assert held(ledger, "t2") == ["A"]


def test_a_claim_is_begun_once(ledger: Ledger) -> None:
    put(ledger, "A")
    claim(ledger, "t1")

    def start() -> bool:
        with ledger.begin() as conn:
            return sources.start_claim(conn, "t1", now=START, expires_at=START + HOUR)

    assert sorted(str(one) for one in at_once(start, start, start)) == ["False", "False", "True"]


def test_a_running_claim_is_extended_with_its_sources_and_a_done_one_is_not(ledger: Ledger) -> None:
    put(ledger, "A", "B")
    claim(ledger, "t1")
    with ledger.begin() as conn:
        sources.start_claim(conn, "t1", now=START, expires_at=START + TTL)
        assert sources.extend_claim(conn, "t1", expires_at=START + 5 * HOUR)
        assert sources.get(conn, SURVEY, "A").discovery_claim_expires_at == START + 5 * HOUR
        sources.finish_claim(conn, "t1", stats={"total": 2}, now=START)
        assert not sources.extend_claim(conn, "t1", expires_at=START + 9 * HOUR)
        assert sources.claim(conn, "t1").stats == {"total": 2}
    assert held(ledger, "t1") == []


def test_two_claimers_never_share_a_source(ledger: Ledger) -> None:
    put(ledger, *(f"S{number:02}" for number in range(30)))
    done = at_once(*(lambda token=f"t{number}": claim(ledger, token, limit=7) for number in range(6)))
    assert not [one for one in done if isinstance(one, BaseException)]
    taken = [name for number in range(6) for name in held(ledger, f"t{number}")]
    assert len(taken) == len(set(taken))
    while claim(ledger, UuidIds().new(), limit=7) is not None:
        pass
    with ledger.read() as conn:
        assert all(source.discovery_claim_token for source in sources.listing(conn, SURVEY))


def test_an_unknown_claim_is_said_so(ledger: Ledger) -> None:
    with ledger.read() as conn, pytest.raises(NotFoundError) as caught:
        sources.claim(conn, "never")
    assert caught.value.code == "claim_not_found"


def test_pending_sources_come_the_longest_waiting_first_and_those_on_hold_last(ledger: Ledger) -> None:
    put(ledger, "late", workflow_run_pending=True, workflow_run_pending_at=START + HOUR)
    put(ledger, "early", workflow_run_pending=True, workflow_run_pending_at=START)
    put(ledger, "held", workflow_run_pending=True, workflow_run_pending_at=START - HOUR, hold={"code": "x"})
    put(ledger, "off", workflow_run_pending=True, workflow_run_pending_at=START, enabled=False)
    put(ledger, "idle")
    with ledger.begin() as conn:
        names = [source.source_identifier for source in pending.take(conn, SURVEY, limit=10, now=START)]
        first = [source.source_identifier for source in pending.take(conn, SURVEY, limit=1, now=START)]
    assert names == ["early", "late", "held"]
    assert first == ["early"]


def test_counts_say_how_many_are_in_which_condition(ledger: Ledger) -> None:
    put(ledger, "A", last_outcome="changed", last_checked_at=START, workflow_run_pending=True)
    put(ledger, "B", last_outcome="error", hold={"code": "x"})
    put(ledger, "C", enabled=False)
    claim(ledger, "t1", limit=1)
    with ledger.read() as conn:
        assert sources.counts(conn, SURVEY) == {
            "registered": 3,
            "enabled": 2,
            "checked": 1,
            "pending": 1,
            "held": 1,
            "in_discovery": 1,
            "quarantined": 0,
            "last_changed": 1,
            "last_error": 1,
        }
        assert sources.counts(conn, "other")["registered"] == 0


def test_more_sources_than_fit_into_one_statement_are_found(ledger: Ledger) -> None:
    names = [f"S{number:04}" for number in range(sources.IN_CHUNK * 2 + 1)]
    with ledger.begin() as conn:
        registration.upsert(conn, SURVEY, [NewSource(name) for name in names], ids=UuidIds(), now=START)
        assert len(sources.by_identifiers(conn, SURVEY, names)) == len(names)
        assert sources.mark_for_discovery(conn, SURVEY, names, now=START) == len(names)


def test_a_request_for_all_and_a_batch_never_wait_for_each_other(ledger: Ledger) -> None:
    names = ["A", "B", "C", "D"]
    put(ledger, *names[::-1])  # a scan of the table meets them in this order
    claim(ledger, "t1")
    with ledger.read() as conn:
        rows = {name: sources.get(conn, SURVEY, name).id for name in names}

    def mark_all() -> int:
        with ledger.begin() as conn:
            return sources.mark_for_discovery(conn, SURVEY, None, now=START)

    with ThreadPoolExecutor() as pool:
        with ledger.begin() as conn:
            assert sources.settle(conn, rows["A"], "t1", {}, now=START)
            marked = pool.submit(mark_all)
            with suppress(TimeoutError):
                marked.result(timeout=0.3)
            for name in names[1:]:
                assert sources.settle(conn, rows[name], "t1", {}, now=START)
        assert marked.result(timeout=20) == len(names)
