"""Why a source is not running, from stored facts, on both databases."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from beampipe_dagster.clock import rfc3339
from beampipe_dagster.discovery.archive import AnswerClass
from beampipe_dagster.errors import DataError, NotFoundError
from beampipe_dagster.ledger import gates, sources
from beampipe_dagster.sources.explain import Explanation, explain
from beampipe_dagster_tests.support.fake_daliuge import FINISHED
from beampipe_dagster_tests.support.ledgers import SURVEY
from beampipe_dagster_tests.support.platforms import Stage


def why(stage: Stage, name: str = "A", *, room: int = 20) -> Explanation:
    with stage.ledger.read() as conn:
        found = explain(conn, SURVEY, name, now=stage.clock.now(), max_in_flight=room)
    for reason in (found.answer, *found.also):
        assert reason.sentence
        assert reason.next
        assert reason.operator
        assert "{" not in reason.operator
    return found


def codes(found: Explanation) -> list[str]:
    return [found.answer.code, *(reason.code for reason in found.also)]


def put(stage: Stage, name: str = "A", **values: Any) -> None:
    with stage.ledger.begin() as conn:
        sources.update(conn, [stage.source(name).id], values, now=stage.clock.now())


def test_a_source_that_is_not_there_is_to_be_registered(stage: Stage) -> None:
    found = why(stage, "nobody")
    assert codes(found) == ["source_not_registered"]
    assert "source register -p survey nobody" in found.answer.operator


def test_a_survey_that_is_not_there_is_an_error(stage: Stage) -> None:
    with stage.ledger.read() as conn, pytest.raises(NotFoundError):
        explain(conn, "nope", "A", now=stage.clock.now(), max_in_flight=1)


def test_a_new_source_was_never_looked_at(stage: Stage) -> None:
    stage.register("A")
    found = why(stage)
    assert codes(found) == ["discovery_never_ran"]
    assert found.answer.next == "it is looked at at the next discovery tick with room"


def test_an_archive_that_is_left_alone_is_the_answer_until_its_time_is_over(stage: Stage) -> None:
    stage.register("A")
    now, key = stage.clock.now(), "tap.example/tap"
    user = gates.User(SURVEY, "casda", key)
    with stage.ledger.begin() as conn:
        gates.ensure(conn, user, url=f"https://{key}", max_concurrency=4, min_interval_ms=0, now=now)
        until = now + timedelta(minutes=5)
        gates.open_by_hand(conn, key, now=now, until=until, reason="maintenance")
    found = why(stage)
    assert found.answer.code == "archive_circuit_open"
    assert "archive casda: circuit open since 2026-01-01T00:00:00.000Z until" in found.answer.sentence
    assert found.answer.operator == "ask the archive now: beampipe archive probe casda"
    assert [one.code for one in found.also] == ["discovery_never_ran"]
    stage.clock.advance(301)
    assert why(stage).answer.code == "discovery_never_ran"


def test_a_survey_without_automatic_discovery_says_so(stage: Stage) -> None:
    stage.add_survey(discovery={"enabled": False})
    stage.register("A")
    assert "discovery is off" in why(stage).answer.next


def test_a_disabled_source_says_so_first_whatever_else_is_true(stage: Stage) -> None:
    stage.register("A", enabled=False)
    found = why(stage)
    assert codes(found) == ["source_disabled", "discovery_never_ran"]
    assert "source enable -p survey A" in found.answer.operator


def test_a_claimed_source_names_since_and_until(stage: Stage) -> None:
    stage.register("A")
    stage.platform.discovery.tick(SURVEY)
    found = why(stage)
    assert found.answer.code == "discovery_in_progress"
    assert found.answer.facts["since"] == rfc3339(stage.clock.now())
    assert found.answer.facts["until"] == rfc3339(stage.clock.now() + timedelta(minutes=180))


def test_a_failed_look_gives_its_error_and_its_next_attempt(stage: Stage) -> None:
    stage.register("A")
    stage.archives.fail("A", AnswerClass.UNAVAILABLE)
    stage.discover()
    found = why(stage)
    again = stage.source("A").next_attempt_at
    assert codes(found) == ["discovery_failed"]
    assert again is not None
    assert rfc3339(again) in found.answer.next
    assert "in a row" in found.answer.sentence


def test_a_quarantined_source_waits_for_an_operator(stage: Stage) -> None:
    stage.register("A")
    stage.archives.fail("A", DataError("no SBID"))
    stage.discover()
    put(stage, quarantined_at=stage.clock.now(), own_failure_count=8)
    found = why(stage)
    assert codes(found) == ["quarantined"]
    assert "8 failed looks in a row: no SBID" in found.answer.sentence
    assert "source discover -p survey A" in found.answer.operator


def test_an_empty_archive_is_told_with_the_next_look(stage: Stage) -> None:
    stage.register("A")
    stage.discover()
    found = why(stage)
    assert codes(found) == ["no_datasets"]
    assert rfc3339(stage.clock.now() + timedelta(hours=24)) in found.answer.next


def test_flags_that_do_not_pass_are_named(stage: Stage) -> None:
    stage.archives.catalogue("A", known=False)
    stage.ready("A")
    stage.archives.catalogue("A", known=False)
    stage.request("A")
    stage.admit()
    found = why(stage)
    assert found.answer.code == "discovery_flags_failed"
    assert found.answer.facts["failed_flags"] == ["catalogued"]
    assert "catalogued" in found.answer.sentence


def test_a_pending_source_has_a_position_in_the_queue(stage: Stage) -> None:
    for name in "ABC":
        stage.ready(name)
        stage.clock.advance(5)
    assert [why(stage, name).answer.facts["position"] for name in "ABC"] == [1, 2, 3]
    found = why(stage, "B")
    assert codes(found) == ["pending"]
    assert found.answer.facts["caps"] == {
        "project_in_flight_cap": [0, None],
        "in_flight_cap": [0, 20],
        "profile_in_flight_cap": [0, None],
    }


def test_a_full_cap_is_named_with_its_numbers(stage: Stage) -> None:
    stage.add_survey(execution={"tick_execution_run_limit": 1, "concurrent_execution_run_limit": 1})
    stage.ready("A")
    stage.clock.advance(5)
    stage.ready("B")
    assert len(stage.admit()) == 1
    found = why(stage, "B", room=1)
    assert found.answer.code == "project_in_flight_cap"
    assert "project_in_flight_cap: 1 of 1 are active" in found.answer.sentence
    assert "in_flight_cap: 1 of 1 are active" in found.answer.sentence


def test_a_threshold_and_a_switched_off_automation_are_told(stage: Stage) -> None:
    stage.ready("A")
    stage.add_survey(execution={"min_sources_to_trigger": 3, "max_wait_minutes": 60})
    found = why(stage)
    assert found.answer.code == "threshold_not_met"
    assert "3 waiting sources (1 wait)" in found.answer.sentence
    stage.clock.advance(3600)
    assert why(stage).answer.code == "pending"
    stage.add_survey(execution={"enabled": False})
    assert why(stage).answer.code == "automation_off"


def test_a_profile_that_is_not_there_is_named(stage: Stage) -> None:
    stage.ready("A")
    with stage.ledger.begin() as conn:
        from beampipe_dagster.ledger.tables import daliuge_deployment_profile  # noqa: PLC0415  # its one use

        conn.execute(daliuge_deployment_profile.delete())
    assert why(stage).answer.code == "no_default_profile"


def test_a_running_source_names_its_execution_and_phase(stage: Stage) -> None:
    execution = stage.submitted("A")
    found = why(stage)
    assert found.answer.code == "executing"
    assert found.answer.facts["execution_id"] == execution.id
    assert found.answer.facts["phase"] == "submitted"
    assert found.answer.facts["session"] == stage.session(execution)


def test_a_source_whose_signature_was_executed_has_nothing_to_run(stage: Stage) -> None:
    execution = stage.submitted("A")
    stage.daliuge.go(stage.session(execution), FINISHED)
    stage.poll()
    put(stage, last_executed_discovery_signature=stage.source("A").discovery_signature)
    assert codes(why(stage)) == ["signature_already_executed"]


def test_a_failed_execution_is_told_with_its_error(stage: Stage) -> None:
    execution = stage.submitted("A")
    name = stage.session(execution)
    oid = next(iter(stage.daliuge.sessions[name].drops))
    stage.daliuge.fail(name, {oid: "ERROR: no"})
    stage.poll()
    assert stage.execution(execution).status.value == "failed"
    found = why(stage)
    assert codes(found) == ["retry_waiting"]
    assert rfc3339(stage.clock.now() + timedelta(minutes=15)) in found.answer.sentence
    assert "ERROR: no" in found.answer.sentence
    stage.clock.advance(3600)
    (again,) = stage.admit()
    again = stage.submit(again)
    stage.daliuge.fail(stage.session(again), {oid: "ERROR: no"})
    stage.poll()
    found = why(stage)
    assert codes(found) == ["retry_budget_exhausted"]
    assert "source release -p survey A" in found.answer.operator
    assert found.answer.facts["execution_id"] == again.id
    assert "new one" in found.answer.next


def test_missing_datasets_are_told_with_what_happens_next(stage: Stage) -> None:
    stage.ready("A")
    stage.archives.withdraw("A")
    stage.request("A")
    since = rfc3339(stage.clock.now())
    again = rfc3339(stage.clock.now() + timedelta(hours=1))
    found = why(stage)
    assert codes(found) == ["datasets_vanishing", "datasets_vanishing"], "it is held, and why"
    reason = found.also[-1]
    assert since in reason.sentence
    assert "(seen once)" in reason.sentence
    assert again in reason.next
    assert (reason.facts["since"], reason.facts["next"], reason.facts["looks"]) == (since, again, 1)
    assert reason.facts["candidate_signature"] == stage.source("A").vanish_signature
