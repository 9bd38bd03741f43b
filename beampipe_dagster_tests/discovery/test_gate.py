"""The gate of an archive: over processes, over a real socket, and as the services see it."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import Any

import pytest

from beampipe_dagster.assembly import polite_archives
from beampipe_dagster.clock import ManualClock, SystemClock
from beampipe_dagster.config.project import ProjectConfig
from beampipe_dagster.config.settings import ArchiveLimits, Settings
from beampipe_dagster.discovery.archive import AnswerClass
from beampipe_dagster.discovery.gate import (
    CIRCUIT_OPEN,
    GATE_TIMEOUT,
    LONGEST_PAUSE_SECONDS,
    ArchiveGate,
    Use,
    archive_key,
    circuit_open,
    close_circuit,
    open_circuit,
)
from beampipe_dagster.discovery.polite import PoliteArchive, PoliteArchives
from beampipe_dagster.errors import ArchiveError, Retry
from beampipe_dagster.ids import SequenceIds, UuidIds
from beampipe_dagster.ledger import circuits, gates
from beampipe_dagster.ledger.circuits import CircuitState, Rules
from beampipe_dagster.ledger.engine import Ledger
from beampipe_dagster.ledger.gates import ArchiveRow, User
from beampipe_dagster_tests.support.fake_tap import FakeTap, Reply, html, rows, too_many
from beampipe_dagster_tests.support.ledgers import SURVEY, opened
from beampipe_dagster_tests.support.platforms import Stage

GOOD = rows([{"name": "A"}])


def config(url: str) -> ProjectConfig:
    return ProjectConfig.from_json(
        {
            "apiVersion": "beampipe.dev/v2",
            "kind": "ProjectConfig",
            "metadata": {"id": SURVEY},
            "adapters": {
                "required": ["eso"],
                "tap": {"timeout_seconds": 10, "retries": 0},
                "definitions": {"eso": {"tap_url": url}},
            },
        }
    )


def archives_on(ledger: Ledger, **settings: Any) -> PoliteArchives:
    made = Settings(home=Path("/nowhere"), database_url=ledger.url, **settings)
    return polite_archives(made, ledger=ledger, clock=SystemClock(), ids=UuidIds(), environ={})


def archive_on(ledger: Ledger, url: str, **settings: Any) -> PoliteArchive:
    return archives_on(ledger, **settings).get(config(url), "eso")


def row_of(ledger: Ledger, url: str) -> ArchiveRow:
    with ledger.read() as conn:
        return gates.get(conn, archive_key(url))


@pytest.mark.parametrize(
    ("url", "key"),
    [
        ("https://CASDA.csiro.au/casda_vo_tools/tap/", "casda.csiro.au/casda_vo_tools/tap"),
        ("http://casda.csiro.au:80/casda_vo_tools/tap/sync", "casda.csiro.au/casda_vo_tools/tap"),
        ("https://casda.csiro.au:8443/tap", "casda.csiro.au:8443/tap"),
        ("https://casda.csiro.au/TAP", "casda.csiro.au/TAP"),
    ],
)
def test_an_archive_is_known_by_its_host_and_path(url: str, key: str) -> None:
    assert archive_key(url) == key


class Counting:
    """Answers after a moment, and knows how many waited at a time."""

    def __init__(self, seconds: float = 0.03) -> None:
        self.seconds = seconds
        self.now = self.most = 0
        self.lock = threading.Lock()

    def reply(self) -> Reply:
        body = GOOD.body
        assert not isinstance(body, bytes)

        def answer(parameters: Mapping[str, str]) -> bytes:
            with self.lock:
                self.now += 1
                self.most = max(self.most, self.now)
            time.sleep(self.seconds)
            with self.lock:
                self.now -= 1
            return body(parameters)

        return dataclasses.replace(GOOD, body=answer)


def ask_many(ledger_url: str, tap_url: str, threads: int, queries: int, limit: int) -> int:
    with opened(ledger_url) as ledger, ThreadPoolExecutor(threads) as pool:
        archives = archives_on(ledger, archive_limits=ArchiveLimits(max_concurrency=limit))
        asked = [pool.submit(archives.get(config(tap_url), "eso").query, "SELECT 1") for _ in range(queries)]
        return sum(len(one.result(timeout=60).rows) for one in asked)


def test_two_processes_together_never_ask_more_at_a_time_than_allowed(ledger: Ledger) -> None:
    counting = Counting()
    with FakeTap(counting.reply()) as tap:
        arguments = (ledger.url, tap.url, 4, 20, 3)
        with multiprocessing.get_context("spawn").Pool(2) as pool:
            assert pool.starmap(ask_many, [arguments, arguments]) == [20, 20]
        url = tap.url
    assert 2 <= counting.most <= 3
    found = row_of(ledger, url)
    assert (found.good_count, found.failure_count) == (40, 0)
    with ledger.read() as conn:
        assert gates.permits_in_use(conn, now=SystemClock().now()) == {}


def hold(ledger_url: str, tap_url: str, pipe: Pipe) -> None:
    """Take a permit, say so, and never give it back."""
    with opened(ledger_url) as ledger:
        archive = archive_on(
            ledger, tap_url, archive_limits=ArchiveLimits(max_concurrency=1), lease_seconds=4.0
        )
        with archive.gate.permit(archive.use) as permit:
            pipe.send(permit.probe)
            time.sleep(60)


@contextmanager
def killed_holder(ledger: Ledger, url: str) -> Iterator[bool]:
    """A process that was killed while it held a permit; whether that was a probe."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=hold, args=(ledger.url, url, there))
    process.start()
    try:
        assert here.poll(30)
        probe: bool = here.recv()
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join(10)
        yield probe
    finally:
        process.kill()
        process.join(10)


def test_the_permit_of_a_killed_process_runs_out(ledger: Ledger) -> None:
    with FakeTap(GOOD) as tap, killed_holder(ledger, tap.url) as probe:
        assert not probe
        impatient = archive_on(
            ledger,
            tap.url,
            archive_limits=ArchiveLimits(max_concurrency=1),
            archive_gate_timeout_seconds=0.2,
        )
        with pytest.raises(ArchiveError) as caught:
            impatient.query("SELECT 1")
        assert (caught.value.code, caught.value.retry) == (GATE_TIMEOUT, Retry.LATER)
        assert "1 requests are on their way" in caught.value.message
        assert tap.queries == []
        patient = archive_on(ledger, tap.url, archive_limits=ArchiveLimits(max_concurrency=1))
        assert len(patient.query("SELECT 1").rows) == 1


def test_a_prober_that_is_killed_before_its_answer_leaves_the_probe_to_another(ledger: Ledger) -> None:
    with FakeTap(*[html(status=503)] * 3, GOOD) as tap:
        brief = {"archive_open_seconds": 0.1, "lease_seconds": 4.0}
        archive = archive_on(ledger, tap.url, **brief)
        for _ in range(3):
            with pytest.raises(ArchiveError):
                archive.query("SELECT 1")
        time.sleep(0.2)
        with killed_holder(ledger, tap.url) as probe:
            assert probe
            with pytest.raises(ArchiveError) as caught:
                archive.query("SELECT 1")
            assert "a probe is on its way" in caught.value.message
            deadline = time.monotonic() + 20
            while row_of(ledger, tap.url).circuit.shut_off(SystemClock().now()):
                assert time.monotonic() < deadline
                time.sleep(0.05)
            archive.query("SELECT 1")
        assert row_of(ledger, tap.url).circuit.state is CircuitState.CLOSED


def test_a_permit_is_kept_for_as_long_as_its_request_takes(ledger: Ledger) -> None:
    with FakeTap(Counting(2.5).reply()) as tap:
        archive = archive_on(ledger, tap.url, lease_seconds=1.5)
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(archive.query, "SELECT 1")
            time.sleep(2.0)
            with ledger.read() as conn:
                in_use = gates.permits_in_use(conn, now=SystemClock().now())
            assert in_use == {archive_key(tap.url): 1}
            assert len(answer.result(timeout=20).rows) == 1


def test_an_archive_that_asks_for_quiet_gets_it_from_everybody(ledger: Ledger) -> None:
    with FakeTap(too_many("2"), GOOD) as tap, opened(ledger.url) as other:
        mine, others = archive_on(ledger, tap.url), archive_on(other, tap.url)
        with pytest.raises(ArchiveError):
            mine.query("SELECT 1")
        began = time.monotonic()
        with ThreadPoolExecutor(2) as pool:
            answers = [pool.submit(one.query, "SELECT 1") for one in (mine, others)]
            time.sleep(0.5)
            assert len(tap.queries) == 1
            assert [len(one.result(timeout=20).rows) for one in answers] == [1, 1]
        assert time.monotonic() - began > 1.8


def test_a_query_that_is_repeated_waits_for_a_pause_that_others_were_asked_for(ledger: Ledger) -> None:
    with FakeTap(html(status=503), GOOD) as tap:
        made = config(tap.url)
        retrying = made.model_copy(
            update={
                "adapters": made.adapters.model_copy(
                    update={"tap": made.adapters.tap.model_copy(update={"retries": 1})}
                )
            }
        )
        archive = archives_on(ledger).get(retrying, "eso")
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(archive.query, "SELECT 1")
            while not tap.queries:
                time.sleep(0.01)
            archive.gate.pause(archive.use, 3600)
            with pytest.raises(ArchiveError) as caught:
                answer.result(timeout=20)
        assert caught.value.code == GATE_TIMEOUT
        assert len(tap.queries) == 1
        assert row_of(ledger, tap.url).circuit.failures == 0


def test_a_pause_without_reason_has_an_end(ledger: Ledger) -> None:
    archive = archive_on(ledger, "http://127.0.0.1:1/tap")
    archive.gate.make_known(archive.use)
    archive.gate.pause(archive.use, 1e9)
    until = row_of(ledger, "http://127.0.0.1:1/tap").pause_until
    assert until is not None
    assert (until - SystemClock().now()).total_seconds() <= LONGEST_PAUSE_SECONDS


def test_requests_keep_the_interval(ledger: Ledger) -> None:
    with FakeTap(GOOD) as tap:
        limits = {"eso": ArchiveLimits(max_concurrency=4, min_interval_ms=100)}
        archive = archive_on(ledger, tap.url, limits_by_archive=limits)
        began = time.monotonic()
        with ThreadPoolExecutor(4) as pool:
            for one in [pool.submit(archive.query, "SELECT 1") for _ in range(6)]:
                one.result(timeout=20)
        assert time.monotonic() - began >= 0.49


def test_an_open_circuit_costs_no_request_and_closes_by_one_probe(ledger: Ledger) -> None:
    with FakeTap(*[html(status=503)] * 3, GOOD) as tap:
        archive = archive_on(ledger, tap.url, archive_open_seconds=2.0)
        for _ in range(3):
            with pytest.raises(ArchiveError) as caught:
                archive.query("SELECT 1")
            assert caught.value.code == "archive_unavailable"
        with pytest.raises(ArchiveError) as caught:
            archive.query("SELECT 1")
        error = caught.value
        assert (error.code, error.retry) == (CIRCUIT_OPEN, Retry.LATER)
        assert "after 3 failures in a row" in error.message
        assert "HTTP 503" in error.message
        assert "beampipe archive close eso" in error.hint
        assert len(tap.queries) == 3
        time.sleep(2.1)
        archive.query("SELECT 1")
        found = row_of(ledger, tap.url)
        assert (found.circuit.state, found.good_count, found.failure_count) == (CircuitState.CLOSED, 1, 3)


def test_an_adql_error_and_credentials_that_are_wrong_open_nothing(ledger: Ledger) -> None:
    replies = [html(status=400)] * 4 + [html(status=401)] * 4
    with FakeTap(*replies, GOOD) as tap:
        archive = archive_on(ledger, tap.url)
        for _ in replies:
            with pytest.raises(ArchiveError):
                archive.query("SELECT 1")
        found = row_of(ledger, tap.url)
        assert (found.circuit.state, found.circuit.failures) == (CircuitState.CLOSED, 0)


def test_an_operators_probe_closes_an_open_circuit_at_once(ledger: Ledger) -> None:
    with FakeTap(*[html(status=503)] * 4, GOOD) as tap:
        archive = archive_on(ledger, tap.url, archive_open_seconds=3600)
        for _ in range(3):
            with pytest.raises(ArchiveError):
                archive.query("SELECT 1")
        with pytest.raises(ArchiveError) as caught:
            archive.probe()
        assert caught.value.code == "archive_unavailable"
        assert row_of(ledger, tap.url).circuit.openings == 2
        archive.probe()
        assert row_of(ledger, tap.url).circuit.state is CircuitState.CLOSED
        assert "TAP_SCHEMA" in tap.queries[-1].parameters["QUERY"]


def test_a_circuit_that_was_opened_by_hand_says_so_and_stays_open_until_it_is_closed(ledger: Ledger) -> None:
    clock = ManualClock()
    gate = ArchiveGate(ledger=ledger, clock=clock, ids=SequenceIds())
    use = Use(User(SURVEY, "casda", "casda.example/tap"), "https://casda.example/tap", ArchiveLimits())
    gate.make_known(use)
    ids, now = SequenceIds(), clock.now()
    with ledger.begin() as conn:
        open_circuit(conn, use.key, actor="anna", reason="maintenance", until=None, ids=ids, now=now)
    with pytest.raises(ArchiveError) as caught, gate.permit(use):
        pass
    assert "opened by hand: maintenance" in caught.value.message
    assert "until it is closed by hand" in caught.value.message
    with ledger.begin() as conn:
        assert close_circuit(conn, use.key, actor="anna", ids=UuidIds(), now=now)
        assert not close_circuit(conn, use.key, actor="anna", ids=UuidIds(), now=now)
    with gate.permit(use) as permit:
        assert not permit.probe


class Sleeper(ManualClock):
    """Counts how often somebody waits."""

    sleeps = 0

    def sleep(self, seconds: float) -> None:
        self.sleeps += seconds > 0
        super().sleep(seconds)


def test_waiting_for_a_turn_is_no_hot_loop_and_has_an_end(ledger: Ledger) -> None:
    clock = Sleeper()
    gate = ArchiveGate(
        ledger=ledger, clock=clock, ids=UuidIds(), ttl_seconds=9999, timeout_seconds=300, jitter=lambda: 0.5
    )
    mine = ArchiveLimits(max_concurrency=2)
    first = Use(User(SURVEY, "casda", "k"), "https://k", mine)
    other = ArchiveGate(ledger=ledger, clock=clock, ids=UuidIds(), timeout_seconds=300)
    with gate.permit(first), gate.permit(first), pytest.raises(ArchiveError) as caught, other.permit(first):
        pass
    assert caught.value.code == GATE_TIMEOUT
    assert 150 < clock.sleeps < 650
    assert 290 < clock.monotonic() <= 300


def polite(stage: Stage, **settings: Any) -> PoliteArchives:
    """Put the stage's archives behind gates."""
    gate = ArchiveGate(ledger=stage.ledger, clock=stage.clock, ids=UuidIds(), rules=Rules(**settings))
    made = PoliteArchives(
        archives=stage.archives,
        url_of=lambda _, adapter: f"https://{adapter}.example/tap",
        gate=gate,
        clock=stage.clock,
    )
    stage.platform = dataclasses.replace(stage.platform, archives=made)
    return made


NAMES = [f"S{number:02}" for number in range(5)]


def test_an_archive_that_is_away_costs_no_source_a_failure(stage: Stage) -> None:
    polite(stage)
    for name in NAMES:
        stage.archives.deposit(name, 100)
        stage.archives.fail(name, *[AnswerClass.UNAVAILABLE] * 9)
    stage.register(*NAMES)
    (report,) = stage.discover()
    assert sorted(report.postponed) == NAMES
    assert report.failed == {}
    until = stage.clock.now() + timedelta(seconds=30)
    for source in map(stage.source, NAMES):
        assert (source.failure_count, source.own_failure_count, source.quarantined_at) == (0, 0, None)
        assert (source.next_attempt_at, source.last_outcome) == (until, "error")
        assert source.discovery_claim_token is None
    asked = stage.archives.queries.total() + stage.archives.batches.total()
    assert asked == 3
    tick = stage.platform.discovery.tick(SURVEY)
    assert (tick.claims, tick.skip_reason) == ([], "tap_unreachable")
    assert tick.message is not None
    assert tick.message.startswith("casda: circuit open since 2026-01-01T00:00:00.000Z until ")
    stage.clock.advance(31)
    for name in NAMES:
        stage.archives._faults["casda", name].clear()
    stage.discover()
    stage.clock.advance(31)  # those that were not let through while the probe was on its way
    stage.discover()
    assert all(stage.source(name).last_outcome == "changed" for name in NAMES)
    opened_at, closed_at = stage.events("archive.circuit_opened", "archive.circuit_closed")
    assert (opened_at.event_type, closed_at.event_type) == (
        "archive.circuit_opened",
        "archive.circuit_closed",
    )
    assert opened_at.actor == "system"
    assert opened_at.payload["adapter"] == "casda"
    assert opened_at.payload["failures"] == 3


def test_sources_that_were_not_asked_about_keep_what_was_known_of_them(stage: Stage) -> None:
    polite(stage)
    stage.ready("A")
    before = stage.source("A")
    stage.clock.advance(1)
    stage.platform.registry.mark_for_discovery(SURVEY, ["A"], actor="test")
    (claim,) = stage.platform.discovery.tick(SURVEY).claims
    with stage.ledger.begin() as conn:
        open_circuit(
            conn, "casda.example/tap", actor="x", reason="r", until=None, ids=UuidIds(), now=stage.clock.now()
        )
    report = stage.platform.discovery.run_batch(claim.token)
    assert CIRCUIT_OPEN in report.postponed["A"]
    after = stage.source("A")
    assert (after.last_outcome, after.last_error, after.last_checked_at) == (
        before.last_outcome,
        before.last_error,
        before.last_checked_at,
    )
    assert after.failure_count == 0


def test_a_required_archive_that_is_left_alone_stops_the_tick_and_another_does_not(stage: Stage) -> None:
    polite(stage)
    stage.ready("A")
    with stage.ledger.begin() as conn:
        open_circuit(
            conn,
            "vizier.example/tap",
            actor="x",
            reason="r",
            until=None,
            ids=UuidIds(),
            now=stage.clock.now(),
        )
    assert stage.platform.discovery.tick(SURVEY).skip_reason == "tap_unreachable"
    stage.add_survey(adapters={"required": ["casda"]})
    assert stage.platform.discovery.tick(SURVEY).skip_reason == "nothing_due"


def test_failures_while_the_circuit_is_closed_are_the_looks_failures(stage: Stage) -> None:
    polite(stage, failures_to_open=100)
    stage.archives.deposit("A", 1)
    stage.archives.fail("A", *[AnswerClass.UNAVAILABLE] * 3)
    stage.register("A")
    stage.discover()
    assert stage.source("A").failure_count == 1


def test_the_error_of_an_open_circuit_says_until_when() -> None:
    clock = ManualClock()
    row = ArchiveRow(
        key="k",
        name="casda",
        url="https://k",
        max_concurrency=1,
        min_interval_ms=0,
        next_allowed_at=None,
        pause_until=None,
        circuit=circuits.opened_by_hand(
            circuits.CLOSED, now=clock.now(), until=clock.now() + timedelta(hours=1), reason="r"
        ),
        last_good_at=None,
        last_failure_at=None,
        last_error=None,
        latency_seconds=None,
        good_count=0,
        failure_count=0,
    )
    error = circuit_open("casda", row, now=clock.now())
    assert error.details["until"] == "2026-01-01T01:00:00.000Z"
    assert "until 2026-01-01T01:00:00.000Z" in error.message
