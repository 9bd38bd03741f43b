"""Whether archives answer: asked now, and from the last looks."""

from __future__ import annotations

from datetime import datetime

import pytest

from beampipe_dagster.clock import ManualClock
from beampipe_dagster.config.project import ProjectConfig
from beampipe_dagster.discovery.archive import AnswerClass
from beampipe_dagster.discovery.archives import TapArchives
from beampipe_dagster.discovery.health import WINDOW, adapters_of, dependencies_up, last_good_answers, probe
from beampipe_dagster.errors import DataError
from beampipe_dagster.ledger import gates, projects
from beampipe_dagster.ledger.circuits import Outcome, Rules
from beampipe_dagster.sandbox.ports import free_port
from beampipe_dagster_tests.support.ledgers import SURVEY
from beampipe_dagster_tests.support.platforms import Stage


def config_of(stage: Stage) -> ProjectConfig:
    with stage.ledger.read() as conn:
        return ProjectConfig.from_json(projects.active(conn, SURVEY).spec)


def up(stage: Stage) -> dict[str, bool]:
    with stage.ledger.read() as conn:
        return dependencies_up(conn, now=stage.clock.now())


def good(stage: Stage) -> dict[str, datetime]:
    with stage.ledger.read() as conn:
        return last_good_answers(conn, SURVEY, config_of(stage))


def test_every_archive_that_is_asked_or_required_is_probed(stage: Stage) -> None:
    config = config_of(stage)
    assert adapters_of(config) == ["casda", "vizier"]
    found = probe(config, stage.archives, clock=stage.clock)
    assert [(item.adapter, item.available) for item in found] == [("casda", True), ("vizier", True)]
    assert all(item.latency_seconds is not None for item in found)


def test_an_archive_that_is_not_configured_or_does_not_answer_is_down(stage: Stage) -> None:
    clock = ManualClock()
    archives = TapArchives(urls={"casda": f"http://127.0.0.1:{free_port()}/tap"}, clock=clock, environ={})
    casda, vizier = probe(config_of(stage), archives, clock=clock)
    assert (casda.available, vizier.available) == (False, False)
    assert "cannot be reached" in casda.message
    assert vizier.latency_seconds is None
    assert "no TAP service is configured" in vizier.message


def test_the_last_good_answer_of_each_archive_is_in_the_ledger(stage: Stage) -> None:
    assert good(stage) == {}
    stage.ready("A")
    first = stage.clock.now()
    assert good(stage) == {"casda": first, "vizier": first}
    stage.request("A")
    assert good(stage) == {"casda": stage.clock.now(), "vizier": first}


def test_nothing_is_said_of_archives_that_nobody_asked_lately(stage: Stage) -> None:
    assert up(stage) == {}
    stage.ready("A")
    assert up(stage) == {"casda": True, "vizier": True}
    stage.clock.advance(WINDOW.total_seconds() + 1)
    assert up(stage) == {}


@pytest.mark.parametrize("answer", [AnswerClass.UNAVAILABLE, AnswerClass.TIMEOUT, AnswerClass.REFUSED])
def test_an_archive_by_which_all_looks_of_a_batch_fail_is_down_until_one_succeeds(
    stage: Stage, answer: AnswerClass
) -> None:
    stage.ready("A", "B")
    stage.clock.advance(60)
    for name in "AB":
        stage.archives.fail(name, answer, answer, answer, adapter="vizier")
    stage.request("A", "B")
    assert stage.source("A").last_error is not None
    assert up(stage) == {"vizier": False}
    stage.archives.fail("B", answer, answer, adapter="vizier")
    for _ in range(8):  # what a batch asks once more is asked of the same faults
        stage.request("A", "B")
        if stage.source("A").last_error is None:
            break
    assert up(stage) == {"casda": True, "vizier": True}


def test_rows_that_cannot_be_used_say_nothing_against_the_archive(stage: Stage) -> None:
    stage.register("A")
    stage.archives.fail("A", *[DataError("no SBID")] * 3)
    stage.discover()
    assert stage.source("A").last_error is not None
    assert up(stage) == {}


def known(stage: Stage, survey: str, adapter: str, key: str = "tap.example/tap") -> None:
    with stage.ledger.begin() as conn:
        gates.ensure(
            conn,
            gates.User(survey, adapter, key),
            url=f"https://{key}",
            max_concurrency=4,
            min_interval_ms=0,
            now=stage.clock.now(),
        )


def found_out(stage: Stage, outcome: Outcome, key: str = "tap.example/tap") -> None:
    with stage.ledger.begin() as conn:
        gates.settle(conn, key, "token", outcome, rules=Rules(failures_to_open=2), now=stage.clock.now())


def test_what_requests_found_counts_before_what_looks_found(stage: Stage) -> None:
    stage.ready("A")
    known(stage, SURVEY, "casda")
    assert up(stage) == {"vizier": True}
    found_out(stage, Outcome.ANSWERED)
    assert up(stage) == {"casda": True, "vizier": True}
    stage.clock.advance(1)
    found_out(stage, Outcome.AWAY)
    assert up(stage) == {"casda": False, "vizier": True}
    found_out(stage, Outcome.AWAY)
    stage.clock.advance(WINDOW.total_seconds() + 1)
    assert up(stage) == {"casda": False}, "an open circuit is down, however long nobody asked"


def test_archives_that_all_have_gates_are_told_without_the_looks(stage: Stage) -> None:
    known(stage, SURVEY, "casda")
    known(stage, SURVEY, "vizier", "other.example/tap")
    found_out(stage, Outcome.ANSWERED)
    assert up(stage) == {"casda": True}


def test_one_name_for_two_archives_is_up_when_both_are(stage: Stage) -> None:
    known(stage, SURVEY, "casda")
    known(stage, "another", "casda", "other.example/tap")
    found_out(stage, Outcome.ANSWERED)
    assert up(stage)["casda"]
    found_out(stage, Outcome.AWAY, "other.example/tap")
    assert not up(stage)["casda"]


def test_the_last_good_answer_to_any_request_counts_and_an_open_circuit_is_told(stage: Stage) -> None:
    known(stage, SURVEY, "casda")
    found_out(stage, Outcome.ANSWERED)
    assert good(stage) == {"casda": stage.clock.now()}
    for _ in range(2):
        found_out(stage, Outcome.AWAY)
    with stage.ledger.read() as conn:
        kept = gates.of_project(conn, SURVEY)
    casda, vizier = probe(config_of(stage), stage.archives, clock=stage.clock, kept=kept)
    assert casda.circuit is not None
    assert "after 2 failures in a row" in casda.circuit
    assert vizier.circuit is None
