"""Claims of hundreds of sources: in pieces, in turn, and never more than a process can be given."""

from __future__ import annotations

import threading
from datetime import timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from beampipe_dagster.discovery import service
from beampipe_dagster.discovery.archive import AnswerClass
from beampipe_dagster.discovery.service import DiscoveryService
from beampipe_dagster.ledger import sources, waiting
from beampipe_dagster_tests.support.ledgers import SURVEY
from beampipe_dagster_tests.support.platforms import Stage

HOUR = 3600.0


def names(count: int) -> list[str]:
    return [f"S{number:04}" for number in range(count)]


def claimed(stage: Stage, token: str) -> set[str]:
    with stage.ledger.read() as conn:
        return {source.source_identifier for source in sources.claimed_sources(conn, token)}


def discovery(stage: Stage, **values: int) -> DiscoveryService:
    return DiscoveryService(
        ledger=stage.ledger,
        clock=stage.clock,
        ids=stage.platform.ids,
        archives=stage.archives,
        **values,  # type: ignore[arg-type]
    )


def test_a_claim_holds_as_many_sources_as_the_survey_says(stage: Stage) -> None:
    stage.add_survey(discovery={"batch_size": 300, "tick_discovery_source_limit": 400})
    for name in names(500):
        stage.archives.deposit(name, 7)
    stage.register(*names(500))
    tick = stage.platform.discovery.tick(SURVEY)
    assert [claim.source_count for claim in tick.claims] == [300, 100]
    report = stage.platform.discovery.run_batch(tick.claims[0].token)
    assert len(report.changed) == report.total == 300
    with stage.ledger.read() as conn:
        assert sources.counts(conn, SURVEY)["pending"] == 300


def test_no_claim_is_larger_than_a_batch_that_may_be_lost(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "LARGEST_BATCH", 3)
    stage.add_survey(discovery={"batch_size": 1_000_000, "tick_discovery_batch_limit": 2})
    stage.register(*names(10))
    assert [claim.source_count for claim in stage.platform.discovery.tick(SURVEY).claims] == [3, 3]


@pytest.mark.parametrize("batching", [True, False])
def test_a_large_claim_is_asked_about_and_committed_piece_by_piece(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, *, batching: bool
) -> None:
    monkeypatch.setattr(service, "LOOKS_AT_A_TIME", 4)
    monkeypatch.setattr(service, "COMMIT_CHUNK", 2)
    stage.platform.discovery._batching = batching
    stage.add_survey(discovery={"batch_size": 20})
    stage.register(*names(12))
    open_looks: list[int] = []

    def count(adapter: str, source: str) -> None:
        del adapter, source
        with stage.ledger.read() as conn:
            done = sources.counts(conn, SURVEY)["checked"]
        open_looks.append(12 - done)

    stage.archives.on_query = count
    stage.discover()
    assert min(open_looks) <= 4, "what was asked first is committed before the last is asked"
    with stage.ledger.read() as conn:
        assert sources.counts(conn, SURVEY)["checked"] == 12


def test_a_claim_that_is_lost_midway_leaves_whole_sources_only_and_stops_asking(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "LOOKS_AT_A_TIME", 2)
    monkeypatch.setattr(service, "COMMIT_CHUNK", 2)
    stage.platform.discovery._batching = False
    stage.add_survey(discovery={"batch_size": 20})
    for name in names(10):
        stage.archives.deposit(name, 7)
    stage.register(*names(10))
    (claim,) = stage.platform.discovery.tick(SURVEY).claims
    asked: set[str] = set()

    def lose(adapter: str, source: str) -> None:
        if adapter == "casda":
            asked.add(source)
            if len(asked) == 5:
                stage.clock.advance(4 * HOUR)
                stage.platform.discovery.tick(SURVEY)

    stage.archives.on_query = lose
    report = stage.platform.discovery.run_batch(claim.token)
    assert len(report.changed) == 4
    assert len(report.lost) == 6
    assert len(asked) == 6, "nothing is asked for a claim that is another's"
    for name in names(10):
        source = stage.source(name)
        done = name in report.changed
        assert (source.discovery_signature is not None) == done
        assert source.workflow_run_pending == done
        assert (source.last_checked_at is not None) == done
    assert len(stage.events("discovery.changed")) == 4
    assert len(stage.told("archive_metadata")) == 4
    with stage.ledger.read() as conn:
        assert sources.claim(conn, claim.token).state == "expired"


def test_a_batch_that_works_for_longer_than_its_lease_keeps_its_claim(stage: Stage) -> None:
    short = discovery(stage)
    short._lease = timedelta(seconds=0.3)
    stage.register("A")
    (claim,) = short.tick(SURVEY).claims
    renewed = threading.Event()

    def wait(adapter: str, source: str) -> None:
        """Until the keeper has moved the claim's end to a time that is later than the first one."""
        del source
        if adapter != "casda":
            return
        with stage.ledger.read() as conn:
            first = sources.claim(conn, claim.token).expires_at
        stage.clock.advance(0.2)
        for _ in range(200):
            with stage.ledger.read() as conn:
                if sources.claim(conn, claim.token).expires_at > first:
                    renewed.set()
                    break
            threading.Event().wait(0.05)
        stage.clock.advance(0.25)  # past the first end
        assert stage.platform.discovery.tick(SURVEY).expired == []

    stage.archives.on_query = wait
    assert short.run_batch(claim.token).no_datasets == ["A"]
    assert renewed.is_set()


def test_what_an_operator_asks_for_comes_before_what_is_only_stale(stage: Stage) -> None:
    stage.add_survey(discovery={"batch_size": 1, "tick_discovery_batch_limit": 1})
    stage.register("A", "B", "C")
    for _ in range(3):
        stage.discover()
    stage.clock.advance(25 * HOUR)
    stage.platform.registry.mark_for_discovery(SURVEY, ["C"], actor="test")
    stage.clock.advance(1)
    stage.platform.registry.mark_for_discovery(SURVEY, ["B"], actor="test")
    stage.register("D")
    order = []
    for _ in range(4):
        (claim,) = stage.platform.discovery.tick(SURVEY).claims
        order += sorted(claimed(stage, claim.token))
        stage.platform.discovery.run_batch(claim.token)
        stage.clock.advance(1)
    assert order == ["C", "B", "D", "A"]


def test_the_staleness_of_a_source_goes_before_the_surveys(stage: Stage) -> None:
    stage.add_survey(discovery={"stale_after_hours": 10})
    stage.register("often", stale_after_hours=1)
    stage.register("seldom", stale_after_hours=100)
    stage.register("usual")
    stage.discover()

    def due() -> set[str]:
        found = {
            name
            for claim in stage.platform.discovery.tick(SURVEY).claims
            for name in claimed(stage, claim.token)
        }
        for claim in stage.platform.discovery.tick(SURVEY).claims:
            stage.platform.discovery.run_batch(claim.token)
        return found

    assert due() == set()
    stage.clock.advance(HOUR - 1)
    assert due() == set()
    stage.clock.advance(1)
    assert due() == {"often"}
    stage.clock.advance(9 * HOUR)
    assert due() == {"often", "usual"}
    stage.clock.advance(90 * HOUR)
    assert due() == {"often", "usual", "seldom"}
    stage.add_survey(discovery={"stale_after_hours": 1})
    stage.clock.advance(2 * HOUR)
    assert due() == {"often", "usual"}


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(failing=st.sets(st.integers(0, 8)), capacity=st.integers(1, 4))
def test_sources_that_fail_never_starve_the_others(stage: Stage, failing: set[int], capacity: int) -> None:
    prefix = f"P{int(stage.clock.monotonic())}x"
    mine = [f"{prefix}{number}" for number in range(9)]
    with stage.ledger.begin() as conn:  # those of earlier examples are out of the way
        known = [source.id for source in sources.listing(conn, SURVEY)]
        sources.update(conn, known, {"enabled": False}, now=stage.clock.now())
    stage.add_survey(
        discovery={"batch_size": capacity, "tick_discovery_source_limit": capacity, "stale_after_hours": 1}
    )
    stage.register(*mine)
    bad = {mine[number] for number in failing}
    rounds = 3 * -(-len(mine) // capacity)
    attempts: dict[str, list[int]] = {name: [] for name in mine}
    for turn in range(rounds):
        for name in bad:
            stage.archives._faults["casda", name] = [AnswerClass.ERROR] * 3
        tick = stage.platform.discovery.tick(SURVEY)
        for claim in tick.claims:
            for name in claimed(stage, claim.token):
                attempts[name].append(turn)
            stage.platform.discovery.run_batch(claim.token)
        stage.clock.advance(2 * HOUR)
    turn_takes = -(-len(mine) // capacity)
    for name, turns in attempts.items():
        gaps = [later - earlier for earlier, later in zip([-1, *turns], [*turns, rounds], strict=True)]
        assert max(gaps) <= turn_takes + 1, (name, turns)


def test_a_tick_claims_nothing_while_too_much_waits(stage: Stage) -> None:
    stage.add_survey(discovery={"batch_size": 1, "queue_max_depth": 2})
    stage.register("A", "B", "C")
    first = stage.platform.discovery.tick(SURVEY)
    assert len(first.claims) == 2, "each claim waits for a process, too"
    assert len(stage.platform.discovery.tick(SURVEY).claims) == 2, "those that wait are given again"
    for claim in first.claims:
        stage.platform.discovery.run_batch(claim.token)
    assert len(stage.platform.discovery.tick(SURVEY).claims) == 1


def test_executions_that_nobody_works_on_count_and_one_that_runs_does_not(stage: Stage) -> None:
    stage.add_survey(discovery={"batch_size": 1})
    stage.ready("A")
    small = discovery(stage, queue_max_depth=1)
    stage.register("B")
    (execution,) = stage.admit()
    assert small.tick(SURVEY).skip_reason == "queue_full"
    stage.submit(execution)
    with stage.ledger.read() as conn:
        assert waiting.depth(conn, now=stage.clock.now()) == 0
    assert len(small.tick(SURVEY).claims) == 1


def test_ten_thousand_sources_are_asked_for_in_one_statement(stage: Stage) -> None:
    every = [f"M{number:05}" for number in range(10_000)]
    stage.register(*every)
    with stage.ledger.begin() as conn:
        assert sources.mark_for_discovery(conn, SURVEY, every[:9_999], now=stage.clock.now()) == 9_999
    assert stage.source("M09999").discovery_requested_at is None
    assert stage.source("M09998").discovery_requested_at == stage.clock.now()
