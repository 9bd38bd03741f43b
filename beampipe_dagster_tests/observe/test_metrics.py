"""The exporter says what the ledger says, on both databases, and nothing when it cannot read it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import httpx
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from beampipe_dagster.clock import ManualClock
from beampipe_dagster.ledger import gates, sources
from beampipe_dagster.ledger.circuits import Outcome, Rules
from beampipe_dagster.ledger.engine import Ledger
from beampipe_dagster.observe.metrics import CACHE_SECONDS, LedgerCollector
from beampipe_dagster.sandbox.ports import free_port
from beampipe_dagster_tests.support.fake_daliuge import FINISHED
from beampipe_dagster_tests.support.ledgers import SURVEY
from beampipe_dagster_tests.support.platforms import Stage

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def scrape(collector: LedgerCollector) -> Samples:
    registry = CollectorRegistry()
    registry.register(collector)
    return parsed(generate_latest(registry).decode())


def parsed(text: str) -> Samples:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def one(samples: Samples, name: str, **labels: str) -> float:
    return samples[name, tuple(sorted(labels.items()))]


def collector_of(stage: Stage) -> LedgerCollector:
    return LedgerCollector(ledger=stage.ledger, clock=stage.clock)


def test_an_empty_ledger_has_no_sources_and_is_up(stage: Stage) -> None:
    samples = scrape(collector_of(stage))
    assert one(samples, "beampipe_up") == 1.0
    assert one(samples, "beampipe_executions_active", status="running") == 0.0
    assert not [name for name, _ in samples if name.startswith("beampipe_sources")]


def test_archives_are_told_with_state_latency_and_permits(stage: Stage) -> None:
    key, now = "tap.example/tap", stage.clock.now()
    user = gates.User(SURVEY, "casda", key)
    labels = {"archive": "casda", "key": key}
    with stage.ledger.begin() as conn:
        gates.ensure(conn, user, url=f"https://{key}", max_concurrency=4, min_interval_ms=0, now=now)
    samples = scrape(collector_of(stage))
    assert one(samples, "beampipe_archive_circuit_open", **labels) == 0.0
    assert "beampipe_archive_up" not in {name for name, _ in samples}
    with stage.ledger.begin() as conn:
        for token in ("a", "b"):
            limits = {"max_concurrency": 4, "min_interval": timedelta(0), "ttl": timedelta(seconds=60)}
            gates.take(conn, key, token, holder="h", now=now, **limits)  # type: ignore[arg-type]  # as named
        gates.settle(conn, key, "a", Outcome.ANSWERED, rules=Rules(), now=now, seconds=0.25)
    samples = scrape(collector_of(stage))
    assert one(samples, "beampipe_archive_up", **labels) == 1.0
    assert one(samples, "beampipe_archive_latency_seconds", **labels) == 0.25
    assert one(samples, "beampipe_archive_permits_in_use", **labels) == 1.0
    with stage.ledger.begin() as conn:
        gates.open_by_hand(conn, key, now=now, until=None, reason="")
    samples = scrape(collector_of(stage))
    assert one(samples, "beampipe_archive_up", **labels) == 0.0
    assert one(samples, "beampipe_archive_circuit_open", **labels) == 1.0


def test_pending_sources_are_counted_with_the_age_of_the_oldest(stage: Stage) -> None:
    stage.ready("A", "B")
    stage.clock.advance(90)
    samples = scrape(collector_of(stage))
    assert one(samples, "beampipe_workflow_pending_sources", project_module="survey") == 2.0
    assert one(samples, "beampipe_workflow_pending_age_seconds", project_module="survey") >= 90.0
    looks = one(samples, "beampipe_discovery_sources_total", project_module="survey", outcome="changed")
    assert looks == 2.0


def test_an_execution_is_active_until_it_ends_and_then_counted_with_its_duration(stage: Stage) -> None:
    execution = stage.submitted("A")
    during = scrape(collector_of(stage))
    assert one(during, "beampipe_executions_active", status="running") == 1.0
    assert one(during, "beampipe_executions_by_external_state", axis="submission", state="submitted") == 1.0
    stage.daliuge.go(stage.session(execution), FINISHED)
    stage.poll()
    ended = stage.execution(execution)
    assert ended.terminal
    after = scrape(collector_of(stage))
    assert one(after, "beampipe_executions_active", status="running") == 0.0
    ends = one(after, "beampipe_execute_terminal_total", project_module="survey", status=ended.status.value)
    assert ends == 1.0
    count = one(after, "beampipe_execution_duration_seconds_count", project_module="survey")
    assert count == 1.0
    total = one(after, "beampipe_execution_duration_seconds_sum", project_module="survey")
    assert ended.completed_at is not None
    assert total == pytest.approx((ended.completed_at - ended.created_at).total_seconds(), abs=0.01)


def test_quarantined_sources_are_counted_by_survey(stage: Stage) -> None:
    stage.register("A", "B", "C")
    before = scrape(collector_of(stage))
    assert one(before, "beampipe_sources_quarantined", project_module="survey") == 0.0
    with stage.ledger.begin() as conn:
        set_aside: dict[str, object] = {"quarantined_at": stage.clock.now()}
        sources.update(conn, [stage.source(name).id for name in "AB"], set_aside, now=stage.clock.now())
    after = scrape(collector_of(stage))
    assert one(after, "beampipe_sources_quarantined", project_module="survey") == 2.0


def test_undelivered_events_are_counted(stage: Stage) -> None:
    stage.ready("A")
    told = len(stage.told())
    assert told > 0
    assert one(scrape(collector_of(stage)), "beampipe_outbox_undelivered") == float(told)


def test_no_metric_has_an_identifier_in_its_labels(stage: Stage) -> None:
    execution = stage.submitted("A")
    values = {value for _, labels in scrape(collector_of(stage)) for _, value in labels}
    assert not values & {execution.id, "A", execution.partition_key, execution.claim_token}


def test_answers_are_kept_for_some_seconds_only(stage: Stage) -> None:
    collector = collector_of(stage)
    scrape(collector)
    stage.ready("A")
    clock = stage.clock
    fresh = LedgerCollector(ledger=stage.ledger, clock=clock)
    assert one(scrape(fresh), "beampipe_sources_registered", project_module="survey") == 1.0
    clock.advance(CACHE_SECONDS)
    assert one(scrape(collector), "beampipe_sources_registered", project_module="survey") == 1.0


def test_a_ledger_that_cannot_be_read_is_down_and_shows_no_old_numbers(tmp_path: Path) -> None:
    samples = scrape(
        LedgerCollector(ledger=Ledger(f"sqlite:///{tmp_path / 'nothing.db'}"), clock=ManualClock())
    )
    assert {name for name, _ in samples} == {"beampipe_up", "beampipe_build_info"}
    assert one(samples, "beampipe_up") == 0.0


@pytest.fixture
def exporter(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    port = free_port()
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "beampipe_dagster.observe.metrics",
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
        ],
        env={**os.environ, "BEAMPIPE_HOME": str(tmp_path), "BEAMPIPE_DATABASE_URL": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process, port
    finally:
        process.kill()
        process.communicate()


def test_the_process_serves_what_prometheus_scrapes_and_stops_when_told(
    exporter: tuple[subprocess.Popen[str], int],
) -> None:
    process, port = exporter
    assert process.stdout is not None
    assert process.stdout.readline() == f"beampipe metrics on http://127.0.0.1:{port}/metrics\n"
    deadline = time.monotonic() + 10
    while True:
        try:
            answer = httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False)
            break
        except httpx.ConnectError:
            assert time.monotonic() < deadline
            time.sleep(0.1)
    assert one(parsed(answer.text), "beampipe_up") == 1.0
    process.terminate()
    assert process.wait(timeout=10) == 0


def test_a_taken_port_is_one_clear_line(exporter: tuple[subprocess.Popen[str], int], tmp_path: Path) -> None:
    process, port = exporter
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(0.5)
    second = subprocess.run(
        [
            sys.executable,
            "-m",
            "beampipe_dagster.observe.metrics",
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
        ],
        env={**os.environ, "BEAMPIPE_HOME": str(tmp_path), "BEAMPIPE_DATABASE_URL": ""},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert second.returncode == 2
    assert second.stderr.startswith("error[port_taken]")
    assert str(port) in second.stderr
    assert "Traceback" not in second.stderr
