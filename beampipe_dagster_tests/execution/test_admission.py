from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from beampipe_dagster.errors import ConflictError, NotFoundError
from beampipe_dagster.execution.admission import AdmissionReport
from beampipe_dagster.ids import UuidIds
from beampipe_dagster.ledger import archive, executions, sources
from beampipe_dagster.ledger.execution_values import Execution
from beampipe_dagster.ledger.tables import daliuge_deployment_profile
from beampipe_dagster.signature.payload import combined_signature
from beampipe_dagster_tests.support.ledgers import SURVEY, at_once
from beampipe_dagster_tests.support.platforms import Stage, code_of, make_platform

NAMES = [f"S{number}" for number in range(6)]


def tick(stage: Stage) -> AdmissionReport:
    return stage.platform.admission.tick(SURVEY)


def test_a_pending_source_becomes_an_execution_of_its_signature(stage: Stage) -> None:
    execution = stage.admitted("A")
    source = stage.source("A")
    assert execution.sources == [
        {"source_identifier": "A", "discovery_signature": source.discovery_signature}
    ]
    assert execution.partition_key == f"A@{(source.discovery_signature or '')[:12]}"
    assert execution.deployment_profile_id == stage.profile_id("local")
    assert execution.deployment_profile_snapshot["revision"] == 1
    assert execution.created_by == "automation"
    assert not source.workflow_run_pending
    events = stage.events("execution.created", "execution.automated_admitted")
    assert [(one.source_identifier, one.execution_id) for one in events] == [("A", execution.id)] * 2


def test_a_second_tick_finds_nothing(stage: Stage) -> None:
    stage.admitted("A")
    assert tick(stage).skip_reason == "no_pending_sources"


def test_a_skipped_tick_says_why(stage: Stage) -> None:
    assert tick(stage).skip_reason == "no_pending_sources"
    stage.add_survey(execution={"enabled": False})
    assert tick(stage).skip_reason == "disabled"


@pytest.mark.parametrize(
    ("survey", "profile", "settings", "reason", "room"),
    [
        ({"concurrent_execution_run_limit": 2}, {}, 20, "project_in_flight_cap", 2),
        ({}, {}, 3, "in_flight_cap", 3),
        ({}, {"max_concurrent_executions": 1}, 20, "profile_in_flight_cap", 1),
    ],
)
def test_a_cap_is_filled_and_then_named(
    stage: Stage, survey: dict[str, Any], profile: dict[str, Any], settings: int, reason: str, room: int
) -> None:
    stage.platform.admission._max_in_flight = settings
    stage.add_survey(execution=survey)
    stage.add_profile(**profile)
    stage.ready(*NAMES[:5])
    first = tick(stage)
    assert len(first.admitted) == room
    assert first.waiting == 5 - room
    assert tick(stage).skip_reason == reason


def test_a_tick_admits_up_to_its_own_limit(stage: Stage) -> None:
    stage.add_survey(execution={"tick_execution_run_limit": 2})
    stage.ready(*NAMES[:5])
    assert [len(tick(stage).admitted) for _ in range(3)] == [2, 2, 1]


def test_a_terminal_execution_makes_room(stage: Stage) -> None:
    stage.add_survey(execution={"concurrent_execution_run_limit": 1})
    stage.ready("A", "B")
    first = stage.submit(tick(stage).admitted[0])
    assert tick(stage).admitted == []
    stage.daliuge.go(stage.session(first), 4)
    stage.poll()
    assert [one.source_identifiers for one in tick(stage).admitted] == [["B"]]


def test_sources_are_grouped_in_the_order_of_their_waiting(stage: Stage) -> None:
    stage.add_survey(execution={"max_sources_per_execution": 2})
    for name in ("C", "A", "B"):
        stage.ready(name)
        stage.clock.advance(1)
    first, second = tick(stage).admitted
    assert (first.source_identifiers, second.source_identifiers) == (["C", "A"], ["B"])
    signatures = {name: stage.source(name).discovery_signature or "" for name in ("C", "A")}
    assert first.discovery_signature == combined_signature(signatures)
    assert first.partition_key == f"2-sources@{first.discovery_signature[:12]}"


def test_few_sources_wait_for_more_until_the_oldest_has_waited_long_enough(stage: Stage) -> None:
    stage.add_survey(
        execution={"max_sources_per_execution": 9, "min_sources_to_trigger": 3, "max_wait_minutes": 10}
    )
    stage.ready("A")
    stage.clock.advance(300)
    stage.ready("B")
    report = tick(stage)
    assert (report.skip_reason, report.waiting) == ("threshold_not_met", 2)
    stage.clock.advance(300)
    (execution,) = tick(stage).admitted
    assert execution.source_identifiers == ["A", "B"]


def test_enough_sources_do_not_wait(stage: Stage) -> None:
    stage.add_survey(execution={"max_sources_per_execution": 9, "min_sources_to_trigger": 2})
    stage.ready("A", "B")
    assert len(tick(stage).admitted) == 1


def test_a_source_that_is_not_ready_is_held_with_its_reason_told_once(stage: Stage) -> None:
    stage.archives.deposit("A", 7)
    stage.archives.catalogue("A", known=False)
    stage.register("A")
    stage.discover()
    for _ in range(3):
        report = tick(stage)
        assert (report.skip_reason, report.held) == (
            "sources_skipped_not_ready",
            {"A": "discovery_flags_failed"},
        )
    assert stage.source("A").hold == {
        "code": "discovery_flags_failed",
        "message": "readiness flags do not pass: catalogued",
        "hint": "the archives must answer what the flags ask for; it goes on when they do",
    }
    assert len(stage.events("execution.held")) == 1
    assert stage.source("A").workflow_run_pending


def test_a_held_source_goes_on_when_the_archive_has_what_was_missing(stage: Stage) -> None:
    for signed in (True, False):
        name = f"signed-{signed}"
        stage.add_survey(sign_flags=signed)
        stage.archives.deposit(name, 7)
        stage.archives.catalogue(name, known=False)
        stage.register(name)
        stage.discover()
        assert tick(stage).held[name] == "discovery_flags_failed"
        stage.archives.catalogue(name)
        stage.request(name)
        assert name in [one.source_identifiers[0] for one in tick(stage).admitted]
        assert stage.source(name).hold is None


def test_held_sources_never_keep_ready_ones_from_running(stage: Stage) -> None:
    stage.add_survey(execution={"tick_execution_source_limit": 3})
    for name in NAMES[:3]:
        stage.archives.deposit(name, 7)
        stage.archives.catalogue(name, known=False)
    stage.register(*NAMES[:3])
    stage.discover()
    assert len(tick(stage).held) == 3
    stage.clock.advance(60)
    stage.ready("ready")
    assert [one.source_identifiers for one in tick(stage).admitted] == [["ready"]]


def test_a_source_that_is_being_looked_at_waits_and_nothing_is_told(stage: Stage) -> None:
    stage.ready("A")
    stage.clock.advance(1)
    stage.platform.registry.mark_for_discovery(SURVEY, ["A"], actor="test")
    (claim,) = stage.platform.discovery.tick(SURVEY).claims
    assert tick(stage).held == {"A": "discovery_in_progress"}
    assert stage.source("A").hold is None
    assert stage.events("execution.held") == []
    stage.platform.discovery.run_batch(claim.token)
    assert len(tick(stage).admitted) == 1


def test_a_source_that_runs_waits_with_its_next_signature(stage: Stage) -> None:
    first = stage.submitted("A")
    stage.archives.deposit("A", 999)
    stage.request("A")
    assert tick(stage).held == {"A": "source_already_executing"}
    stage.daliuge.go(stage.session(first), 4)
    stage.poll()
    (second,) = tick(stage).admitted
    assert second.discovery_signature != first.discovery_signature


def test_a_signature_that_was_executed_is_not_executed_again(stage: Stage) -> None:
    first = stage.submitted("A")
    stage.daliuge.go(stage.session(first), 4)
    stage.poll()
    stage.archives.deposit("A", 999)
    stage.request("A")
    stage.archives.withdraw("A", 999)
    stage.vanished("A")
    assert stage.source("A").workflow_run_pending
    assert tick(stage).admitted == []
    assert not stage.source("A").workflow_run_pending
    assert tick(stage).skip_reason == "no_pending_sources"


def test_a_source_that_was_disabled_meanwhile_does_not_run(stage: Stage) -> None:
    stage.ready("A")
    stage.register("A", enabled=False)
    assert tick(stage).skip_reason == "no_pending_sources"


def test_an_unknown_profile_admits_nothing_and_never_takes_the_default(stage: Stage) -> None:
    stage.add_profile("lokal", is_default=False)
    stage.add_survey(execution={"deployment_profile_name": "lokal"})
    with stage.ledger.begin() as conn:
        conn.execute(
            sa.delete(daliuge_deployment_profile).where(daliuge_deployment_profile.c.name == "lokal")
        )
    stage.ready("A")
    report = tick(stage)
    assert (report.admitted, report.skip_reason) == ([], "profile_not_found")
    assert report.message is not None
    assert "lokal" in report.message
    assert stage.source("A").workflow_run_pending


def test_without_any_profile_nothing_is_admitted(stage: Stage) -> None:
    with stage.ledger.begin() as conn:
        conn.execute(sa.delete(daliuge_deployment_profile))
    stage.ready("A")
    assert tick(stage).skip_reason == "no_default_profile"


def test_an_execution_keeps_the_profile_that_it_was_admitted_with(stage: Stage) -> None:
    execution = stage.admitted("A")
    stage.add_profile(description="changed")
    kept = stage.execution(execution)
    assert kept.deployment_profile_revision == 1
    assert kept.deployment_profile_snapshot["description"] is None


def test_an_unknown_survey_is_said_so(stage: Stage) -> None:
    with pytest.raises(NotFoundError):
        stage.platform.admission.tick("survy")


def admissions(stage: Stage, number: int) -> list[Any]:
    platforms = [
        make_platform(
            stage.ledger, home=stage.home, clock=stage.clock, archives=stage.archives, ids=UuidIds()
        )
        for _ in range(number)
    ]
    ticks = [lambda one=platform: one.admission.tick(SURVEY) for platform in platforms]
    return at_once(*ticks)


def test_two_admissions_at_once_never_run_a_source_twice(stage: Stage) -> None:
    stage.ready(*NAMES)
    stage.discover()
    done = admissions(stage, 4)
    assert [code_of(one) for one in done] == ["AdmissionReport"] * 4
    held = [name for execution in stage.executions() for name in execution.source_identifiers]
    assert sorted(held) == NAMES
    with stage.ledger.read() as conn:
        assert executions.active_sources(conn, SURVEY) == set(NAMES)


def test_admissions_at_once_keep_every_cap(stage: Stage) -> None:
    stage.add_profile(max_concurrent_executions=2)
    stage.add_survey(execution={"tick_execution_source_limit": 1})
    stage.ready(*NAMES)
    stage.discover()
    admissions(stage, 5)
    assert len(stage.executions()) == 2


def by_hand(stage: Stage, key: str) -> Execution:
    return stage.platform.admission.admit_one(SURVEY, key, actor="anna")


def key_of(stage: Stage, name: str) -> str:
    return f"{name}@{(stage.source(name).discovery_signature or '')[:12]}"


def test_an_operator_may_ask_for_a_source_by_its_key(stage: Stage) -> None:
    stage.add_survey(execution={"enabled": False})
    stage.ready("A")
    execution = by_hand(stage, key_of(stage, "A"))
    assert execution.created_by == "anna"
    assert not stage.source("A").workflow_run_pending
    assert [one.event_type for one in stage.events("execution.created", "execution.automated_admitted")] == [
        "execution.created"
    ]
    with pytest.raises(ConflictError) as caught:
        by_hand(stage, key_of(stage, "A"))
    assert caught.value.code == "source_already_executing"


def test_what_an_operator_asks_for_is_refused_with_its_reason(stage: Stage) -> None:
    stage.ready("A")
    old = key_of(stage, "A")
    stage.archives.deposit("A", 8)
    stage.request("A")
    stage.archives.deposit("held", 7)
    stage.archives.catalogue("held", known=False)
    stage.register("held", "empty")
    stage.discover()
    codes = {}
    for name, key in {
        "typed": "A@000000000000",
        "old": old,
        "held": key_of(stage, "held"),
        "empty": key_of(stage, "empty"),
    }.items():
        with pytest.raises(ConflictError) as caught:
            by_hand(stage, key)
        codes[name] = caught.value.code
        assert caught.value.hint
    assert codes == {
        "typed": "partition_unknown",
        "old": "signature_superseded",
        "held": "discovery_flags_failed",
        "empty": "no_datasets",
    }
    assert stage.executions() == []


def test_a_deposit_during_an_operators_request_is_never_lost(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Discovery commits a new signature after the request has looked at the source."""
    stage.ready("A")
    key = key_of(stage, "A")
    stage.archives.deposit("A", 8)
    stage.clock.advance(1)
    stage.platform.registry.mark_for_discovery(SURVEY, ["A"], actor="test")
    (claim,) = stage.platform.discovery.tick(SURVEY).claims
    with stage.ledger.begin() as conn:
        source = sources.get(conn, SURVEY, "A")
        sources.update(conn, [source.id], {"discovery_claim_token": None}, now=stage.clock.now())
    look = archive.metadata_of

    def discover() -> None:
        with stage.ledger.begin() as conn:
            values = {"discovery_signature": "b" * 64, "workflow_run_pending": True}
            sources.update(conn, [source.id], values, now=stage.clock.now())

    with ThreadPoolExecutor() as pool:

        def look_slowly(conn: Connection, survey: str, names: list[str]) -> object:
            deposits.append(pool.submit(discover))
            with suppress(TimeoutError):
                deposits[0].result(timeout=0.3)
            return look(conn, survey, names)

        deposits: list[Future[None]] = []
        monkeypatch.setattr(archive, "metadata_of", look_slowly)
        execution = by_hand(stage, key)
        deposits[0].result(timeout=20)
    assert claim.source_count == 1
    assert execution.partition_key == key
    assert stage.source("A").workflow_run_pending
