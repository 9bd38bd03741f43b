from __future__ import annotations

import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from beampipe_dagster.assembly import Platform
from beampipe_dagster.backends.daliuge.rest import RestBackend
from beampipe_dagster.backends.provider import BackendProvider
from beampipe_dagster.clock import ManualClock
from beampipe_dagster.errors import BeampipeError, LedgerError
from beampipe_dagster.ids import UuidIds
from beampipe_dagster.ledger import artifacts, observations
from beampipe_dagster.ledger.execution_values import Execution
from beampipe_dagster.ledger.states import ArtifactKind, ControlPhase, DaliugeState, Status
from beampipe_dagster.ledger.tables import batch_execution_record as record
from beampipe_dagster.poll.moves import LOST_LOOKS
from beampipe_dagster.poll.service import PollReport, PollService
from beampipe_dagster_tests.support.fake_daliuge import CANCELLED, FINISHED, RUNNING, FakeSession, Fault
from beampipe_dagster_tests.support.ledgers import at_once
from beampipe_dagster_tests.support.platforms import (
    STEPS,
    IngestingDaliuge,
    Stage,
    code_of,
    make_platform,
)


class KilledError(BaseException):
    """The process ends here."""


def tick(stage: Stage, *, after: float = 60) -> PollReport:
    stage.clock.advance(after)
    return stage.platform.poll.tick()


def test_a_running_session_keeps_its_execution_running(stage: Stage) -> None:
    execution = stage.submitted("A")
    report = tick(stage)
    now = stage.execution(execution)
    assert (report.looked_at, report.terminal) == (1, [])
    assert (now.status, now.daliuge_state, now.control_phase) == (
        Status.RUNNING,
        DaliugeState.RUNNING,
        ControlPhase.MONITORING,
    )
    assert now.drop_counts is not None
    assert now.drop_counts["total"] == 4
    assert now.run_record["dim"]["last_observation"]["session_state"] == "running"
    assert now.run_record["dim_poll"]["round"] == 1
    assert now.next_poll_at is not None
    assert now.next_poll_at > stage.clock.now()


def test_nothing_is_looked_at_before_its_time(stage: Stage) -> None:
    stage.submitted("A")
    assert tick(stage).looked_at == 1
    assert tick(stage, after=0).looked_at == 0


def test_a_finished_session_completes_its_execution_and_its_signature(stage: Stage) -> None:
    execution = stage.submitted("A")
    stage.daliuge.go(stage.session(execution), FINISHED)
    assert tick(stage).terminal == [execution.id]
    done = stage.execution(execution)
    source = stage.source("A")
    assert (done.status, done.terminal_outcome, done.control_phase) == (
        Status.COMPLETED,
        "succeeded",
        ControlPhase.TERMINAL,
    )
    assert done.completed_at == stage.clock.now()
    assert source.last_executed_discovery_signature == source.discovery_signature
    assert not source.workflow_run_pending
    outcome, check = stage.told("execution_outcome")
    assert (outcome.partition_key, outcome.payload["outcome"]) == (execution.partition_key, "succeeded")
    assert check.payload["passed"] is True
    assert done.run_record["dim"]["terminal"]["ledger_status"] == "completed"
    assert tick(stage).looked_at == 0
    assert len(stage.told("execution_outcome")) == 2


def test_finished_is_no_success_while_drops_are_missing(stage: Stage) -> None:
    execution = stage.submitted("A")
    session = stage.daliuge.sessions[stage.session(execution)]
    session.drops.pop(next(iter(session.drops)))
    stage.daliuge.go(stage.session(execution), FINISHED)
    tick(stage)
    assert stage.execution(execution).status is Status.FAILED


def test_a_failed_session_fails_its_execution_with_the_drops_own_words(stage: Stage) -> None:
    execution = stage.submitted("A")
    name = stage.session(execution)
    oid = next(key for key, drop in stage.daliuge.sessions[name].drops.items() if drop["name"] == "image")
    stage.daliuge.fail(name, {oid: "ERROR: no calibration table for beam 12"})
    tick(stage)
    failed = stage.execution(execution)
    assert (failed.status, failed.terminal_outcome, failed.failure_class) == (
        Status.FAILED,
        "failed",
        "graph",
    )
    assert failed.last_error_code == "session_failed"
    assert failed.last_error is not None
    assert "image" in failed.last_error
    assert "no calibration table for beam 12" in failed.last_error
    terminal = failed.run_record["dim"]["terminal"]
    assert terminal["failed_drops"][0]["name"] == "image"
    assert "no calibration table" in terminal["failed_drops"][0]["log"]
    assert terminal["error_drops_count"] == 1
    hold = stage.source("A").hold
    assert hold is not None
    assert (hold["code"], hold["execution_id"]) == ("execution_failed", execution.id)
    assert stage.told("execution_outcome")[1].payload["passed"] is False


def test_a_session_that_was_cancelled_outside_cancels_its_execution(stage: Stage) -> None:
    execution = stage.submitted("A")
    stage.daliuge.go(stage.session(execution), CANCELLED)
    tick(stage)
    done = stage.execution(execution)
    assert (done.status, done.terminal_outcome) == (Status.CANCELLED, "cancelled")
    assert stage.source("A").last_executed_discovery_signature is None
    assert stage.admit() == []


def test_an_execution_whose_outputs_must_be_verified_is_not_completed_by_its_session(stage: Stage) -> None:
    stage.add_survey(output_verification={"required": True})
    execution = stage.submitted("A")
    stage.daliuge.go(stage.session(execution), FINISHED)
    tick(stage)
    now = stage.execution(execution)
    assert (now.status, now.daliuge_state) == (Status.RUNNING, DaliugeState.FINISHED)


def test_a_manager_that_is_away_fails_nobody_however_long_it_is(stage: Stage) -> None:
    execution = stage.submitted("A")
    stage.daliuge.manager.stop()
    for _ in range(3):
        assert tick(stage, after=3600).unreachable == [execution.id]
        now = stage.execution(execution)
        assert (now.status, now.daliuge_state) == (Status.RUNNING, DaliugeState.UNREACHABLE)
        assert now.last_error_code == "backend_unavailable"
    stage.daliuge.manager.start()
    stage.daliuge.go(stage.session(execution), FINISHED)
    tick(stage)
    done = stage.execution(execution)
    assert (done.status, done.last_error) == (Status.COMPLETED, None)


def test_a_lost_session_is_looked_for_three_times_before_it_counts_as_lost(stage: Stage) -> None:
    execution = stage.submitted("A")
    stage.daliuge.restart_node()
    for look in range(1, LOST_LOOKS):
        tick(stage)
        now = stage.execution(execution)
        assert (now.status, now.absent_count) == (Status.RUNNING, look)
    tick(stage)
    lost = stage.execution(execution)
    assert (lost.status, lost.terminal_outcome, lost.last_error_code) == (
        Status.FAILED,
        "inconsistent",
        "session_lost",
    )
    assert lost.run_record["dim"]["terminal"]["session_state"] == "lost"
    assert stage.admit() == []
    assert stage.daliuge.deploys() == 1


def test_an_answer_that_says_nothing_does_not_count_as_a_lost_session(stage: Stage) -> None:
    execution = stage.submitted("A")
    for _ in range(LOST_LOOKS * 2):
        stage.daliuge.plan.on("status", Fault("html"))
        tick(stage)
    now = stage.execution(execution)
    assert (now.status, now.absent_count) == (Status.RUNNING, 0)


def test_evidence_is_kept_when_it_changes_and_not_at_every_look(stage: Stage) -> None:
    execution = stage.submitted("A")
    for _ in range(3):
        tick(stage)
    stage.daliuge.go(stage.session(execution), FINISHED)
    tick(stage)
    with stage.ledger.read() as conn:
        states = [one["normalized_state"] for one in observations.of(conn, execution.id)]
    assert states == ["intent_persisted", "finished"]


def test_looks_become_rarer_with_the_age_of_a_session(stage: Stage) -> None:
    execution = stage.submitted("A")
    waits = []
    for after in (5, 600, 36_000):
        tick(stage, after=after)
        due = stage.execution(execution).next_poll_at
        assert due is not None
        waits.append((due - stage.clock.now()).total_seconds())
    assert waits[0] == 5
    assert waits[0] < waits[1] < waits[2]
    assert 60 <= waits[2] <= 66


def test_a_deposit_during_an_execution_runs_after_it(stage: Stage) -> None:
    first = stage.submitted("A")
    stage.archives.deposit("A", 999)
    stage.request("A")
    stage.daliuge.go(stage.session(first), FINISHED)
    tick(stage)
    source = stage.source("A")
    assert source.workflow_run_pending
    assert source.last_executed_discovery_signature != source.discovery_signature
    assert len(stage.admit()) == 1


def test_a_deposit_during_an_execution_that_fails_is_not_held_back(stage: Stage) -> None:
    first = stage.submitted("A")
    stage.archives.deposit("A", 999)
    stage.request("A")
    name = stage.session(first)
    stage.daliuge.fail(name, {next(iter(stage.daliuge.sessions[name].drops)): "no"})
    tick(stage)
    assert stage.source("A").hold is None
    assert len(stage.admit()) == 1


def cleaner(stage: Stage) -> Platform:
    return make_platform(
        stage.ledger,
        home=stage.home,
        clock=stage.clock,
        archives=stage.archives,
        ids=UuidIds(),
        delete_sessions=True,
    )


def test_sessions_are_removed_only_where_the_settings_say_so(stage: Stage) -> None:
    first = stage.submitted("A")
    stage.daliuge.go(stage.session(first), FINISHED)
    tick(stage)
    assert stage.session(first) in stage.daliuge.sessions
    stage.clock.advance(60)
    report = cleaner(stage).poll.tick()
    assert report.removed == [first.id]
    assert stage.daliuge.sessions == {}
    stage.daliuge.calls.clear()
    stage.clock.advance(60)
    assert cleaner(stage).poll.tick().removed == []
    assert stage.daliuge.calls == [], "what is gone is not asked about again"


def test_a_session_that_cannot_be_removed_is_tried_again_later_and_changes_no_outcome(stage: Stage) -> None:
    execution = stage.submitted("A")
    stage.daliuge.go(stage.session(execution), FINISHED)
    stage.clock.advance(60)
    stage.daliuge.plan.on("delete", Fault("html"))
    poll = cleaner(stage).poll
    poll.tick()
    assert stage.execution(execution).status is Status.COMPLETED
    assert [one.execution_id for one in stage.events("execution.session_left_behind")] == [execution.id]
    stage.clock.advance(60)
    assert poll.tick().removed == []
    stage.clock.advance(600)
    assert poll.tick().removed == [execution.id]


def test_a_session_of_an_earlier_attempt_that_runs_after_all_is_cancelled_and_removed(stage: Stage) -> None:
    execution = stage.submitted("A")
    name = stage.session(execution)
    stray = name.removesuffix("a1") + "a2"
    with stage.ledger.begin() as conn:
        conn.execute(sa.update(record).where(record.c.id == execution.id).values(attempt=2))
    stage.daliuge.sessions[stray] = FakeSession(state=RUNNING)
    foreign = "BeampipeExecution-00000000-0000-7000-8000-0000000000ff-2026-01-01T00-00-00-a1"
    stage.daliuge.sessions[foreign] = FakeSession(state=RUNNING)
    stage.daliuge.listed += [stray, foreign]
    stage.daliuge.go(name, FINISHED)
    stage.clock.advance(60)
    cleaner(stage).poll.tick()
    assert list(stage.daliuge.sessions) == [foreign], "another ledger's session is none of ours"
    assert "cancel" in stage.daliuge.calls


def test_a_session_of_an_abandoned_submission_is_left_to_the_operator(stage: Stage) -> None:
    execution = stage.submitted("A")
    stage.daliuge.go(stage.session(execution), FINISHED)
    tick(stage)
    with stage.ledger.begin() as conn:
        given_up = {"submission_abandoned_at": stage.clock.now()}
        conn.execute(sa.update(record).where(record.c.id == execution.id).values(given_up))
    assert cleaner(stage).poll.tick().removed == []
    assert stage.session(execution) in stage.daliuge.sessions


def test_a_session_of_an_old_execution_is_left_alone(stage: Stage) -> None:
    execution = stage.submitted("A")
    stage.daliuge.go(stage.session(execution), FINISHED)
    tick(stage)
    stage.clock.advance(8 * 86_400)
    assert cleaner(stage).poll.tick().removed == []


def test_two_polls_at_once_look_once(stage: Stage) -> None:
    execution = stage.submitted("A")
    stage.daliuge.go(stage.session(execution), FINISHED)
    stage.clock.advance(60)
    other = make_platform(
        stage.ledger, home=stage.home, clock=stage.clock, archives=stage.archives, ids=UuidIds()
    )
    done = at_once(stage.platform.poll.tick, other.poll.tick, stage.platform.poll.tick)
    assert [code_of(one) for one in done] == ["PollReport"] * 3
    assert stage.execution(execution).status is Status.COMPLETED
    assert len(stage.told("execution_outcome")) == 2
    assert len(stage.events("execution.completed")) == 1


def test_an_execution_that_cannot_be_looked_at_never_stops_the_others(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.ready("A", "B", "C")
    bad, worse, good = (stage.submit(one) for one in stage.admit())
    with stage.ledger.begin() as conn:
        snapshot = {"name": "nonsense"}
        conn.execute(
            sa.update(record).where(record.c.id == worse.id).values(deployment_profile_snapshot=snapshot)
        )
        damaged = artifacts.describe(conn, bad.id, ArtifactKind.PHYSICAL_GRAPH).id
    load = artifacts.load

    def rusty(conn: sa.Connection, artifact_id: str) -> object:
        if artifact_id == damaged:
            raise LedgerError("it cannot be read", code="artifact_damaged")
        return load(conn, artifact_id)

    monkeypatch.setattr(artifacts, "load", rusty)
    for session in (bad, good):
        stage.daliuge.go(stage.session(session), FINISHED)
    tick(stage)
    assert stage.execution(good).status is Status.COMPLETED
    assert stage.execution(bad).last_error_code == "artifact_damaged"
    assert stage.execution(worse).last_error_code == "invalid_profile"
    assert not stage.execution(bad).terminal


def test_a_poll_that_runs_out_of_time_leaves_the_rest_for_the_next(stage: Stage) -> None:
    stage.ready("A", "B")
    for execution in stage.admit():
        stage.submit(execution)
    stage.platform.poll._lease_seconds = 0.0
    assert tick(stage).looked_at == 0
    stage.platform.poll._lease_seconds = 120.0
    assert tick(stage).looked_at == 2


def test_a_poll_that_died_is_replaced_when_its_lease_is_over(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    execution = stage.submitted("A")

    def die(*_: object, **__: object) -> None:
        raise KilledError

    with monkeypatch.context() as patched:
        patched.setattr("beampipe_dagster.backends.daliuge.rest.RestBackend.observe", die)
        patched.setattr("beampipe_dagster.ledger.leases.release", lambda *_: None)
        with pytest.raises(KilledError):
            tick(stage)
    assert tick(stage, after=60).skipped == "another poll is at work"
    assert tick(stage, after=61).looked_at == 1
    assert stage.execution(execution).last_error is None


def test_however_often_calls_fail_every_execution_is_started_once_and_completes(any_stage: Stage) -> None:
    stage = any_stage
    names = [f"S{number}" for number in range(6)]
    for name in names:
        stage.archives.deposit(name, 7)
    stage.register(*names)
    for _ in range(120):
        stage.discover()
        stage.admit()
        for launch in stage.platform.launcher.due("survey"):
            _run(stage, launch.execution)
        for name in stage.daliuge.ever_started & set(stage.daliuge.sessions):
            if not stage.daliuge.sessions[name].script:
                stage.daliuge.go(name, FINISHED)
        stage.poll(after=65)
        done = stage.executions()
        if len(done) == len(names) and all(one.terminal for one in done):
            break
    assert [one.status for one in stage.executions()] == [Status.COMPLETED] * len(names)
    assert len(stage.daliuge.ever_started) == len(names)
    assert {one.daliuge_session_id for one in stage.executions()} == stage.daliuge.ever_started
    for name in names:
        source = stage.source(name)
        assert source.last_executed_discovery_signature == source.discovery_signature


def _run(stage: Stage, execution: Execution) -> None:
    for step in STEPS:
        try:
            stage.do(step, execution, holder=f"{execution.launch_count}")
        except BeampipeError as error:  # the run ends here; another one goes on
            if error.code == "internal":
                raise
            return


def test_time_alone_never_ends_an_execution(stage: Stage) -> None:
    execution = stage.submitted("A")
    tick(stage, after=timedelta(days=30).total_seconds())
    assert stage.execution(execution).status is Status.RUNNING


def escalated(stage: Stage, execution: Execution) -> set[str]:
    return set(stage.execution(execution).escalations or {})


def test_a_spent_budget_of_looks_tells_an_operator_once_and_fails_nothing(stage: Stage) -> None:
    stage.add_survey(execution={"execution_rest_remote_poll_max_rounds": 3})
    execution = stage.submitted("A")
    for _ in range(6):
        tick(stage, after=120)
    now = stage.execution(execution)
    assert (now.status, now.poll_count) == (Status.RUNNING, 6)
    (event,) = stage.events("execution.poll_budget_escalation")
    assert event.payload["terminalized"] is False
    assert "the survey allows 3" in str(event.payload["reason"])
    assert now.run_record["dim_poll"]["operator_escalation"]["round"] == 3
    assert escalated(stage, execution) == {"poll_budget_escalation"}
    stage.daliuge.go(stage.session(execution), FINISHED)
    tick(stage)
    done = stage.execution(execution)
    assert (done.status, done.escalations) == (Status.COMPLETED, None)


def test_looks_that_nobody_answers_use_no_budget(stage: Stage) -> None:
    stage.add_survey(execution={"execution_rest_remote_poll_max_rounds": 3})
    execution = stage.submitted("A")
    stage.daliuge.manager.stop()
    for _ in range(6):
        tick(stage, after=120)
    stage.daliuge.manager.start()
    now = stage.execution(execution)
    assert (now.poll_count, now.escalations) == (0, None)


def test_a_session_whose_drops_do_not_move_is_told_once_and_again_only_after_it_moved(
    stage: Stage,
) -> None:
    execution = stage.submitted("A")
    session = stage.daliuge.sessions[stage.session(execution)]
    tick(stage)
    tick(stage, after=3600)
    assert escalated(stage, execution) == set()
    for _ in range(3):
        tick(stage, after=6 * 3600)
    (event,) = stage.events("execution.no_progress_escalation")
    assert "no drop has changed for" in str(event.payload["reason"])
    assert escalated(stage, execution) == {"no_progress_escalation"}
    session.statuses[next(iter(session.drops))] = {"status": 2}
    tick(stage, after=70)
    assert escalated(stage, execution) == set()
    tick(stage, after=7 * 3600)
    assert len(stage.events("execution.no_progress_escalation")) == 2
    assert stage.execution(execution).status is Status.RUNNING


def test_the_survey_says_how_often_its_sessions_are_looked_at(stage: Stage) -> None:
    stage.add_survey(execution={"execution_rest_remote_poll_interval_seconds": 90})
    execution = stage.submitted("A")
    tick(stage, after=5)
    due = stage.execution(execution).next_poll_at
    assert due is not None
    assert (due - stage.clock.now()).total_seconds() == 90


def test_a_target_that_is_away_is_asked_less_and_less_and_often_again_when_it_is_back(stage: Stage) -> None:
    execution = stage.submitted("A")
    tick(stage, after=5)
    stage.daliuge.manager.stop()
    waits = []
    for _ in range(5):
        tick(stage, after=70)
        due = stage.execution(execution).next_poll_at
        assert due is not None
        waits.append((due - stage.clock.now()).total_seconds())
    assert waits == sorted(waits)
    assert 10 <= waits[0] <= 11
    assert 60 <= waits[-1] <= 66
    stage.daliuge.manager.start()
    tick(stage, after=70)
    assert stage.execution(execution).last_error is None
    due = stage.execution(execution).next_poll_at
    assert due is not None
    assert (due - stage.clock.now()).total_seconds() < 30


def test_looks_that_see_nothing_new_write_no_story_and_no_record(stage: Stage) -> None:
    stage.ready("A", "B", "C")
    runs = [stage.submit(one) for one in stage.admit()]
    tick(stage)
    before = [stage.execution(one) for one in runs]
    story = len(stage.events())
    for _ in range(3):
        assert tick(stage).looked_at == 3
    after = [stage.execution(one) for one in runs]
    assert [one.workflow_manifest for one in after] == [one.workflow_manifest for one in before]
    assert [one.poll_count for one in after] == [4, 4, 4]
    assert len(stage.events()) == story
    assert stage.told("backend_run") == []


def test_progress_is_told_at_each_quarter(stage: Stage) -> None:
    execution = stage.submitted("A")
    session = stage.daliuge.sessions[stage.session(execution)]
    told = []
    for oid in session.drops:
        tick(stage)
        session.statuses[oid] = {"status": 2}
        tick(stage)
        tick(stage)
        told.append([one.payload["progress"] for one in stage.told("backend_run")][-1])
    assert told == [f"{number} of 4 drops completed" for number in (1, 2, 3, 4)]
    assert {one.partition_key for one in stage.told("backend_run")} == {execution.partition_key}
    assert stage.execution(execution).run_record["dim"]["last_observation"]["drops"]["completed"] == 4


def test_many_sessions_of_one_target_take_two_requests_and_those_for_drops(stage: Stage) -> None:
    names = [f"S{number}" for number in range(8)]
    stage.ready(*names)
    for execution in stage.admit():
        stage.submit(execution)
    stage.daliuge.calls.clear()
    assert tick(stage).looked_at == 8
    assert sorted(stage.daliuge.calls) == ["graph_status"] * 8 + ["node_sessions", "nodes"]


def test_a_target_that_does_not_answer_delays_no_other(stage: Stage, tmp_path: Path) -> None:
    """Its sessions are looked at when it answers; the others are looked at meanwhile."""
    with IngestingDaliuge() as other:
        far = replace(stage, daliuge=other, home=tmp_path)
        far.add_profile("far", is_default=False)
        stage.ready("A", "B")
        here, there = (stage.submit(one) for one in stage.admit())
        with stage.ledger.begin() as conn:
            snapshot = dict(there.deployment_profile_snapshot)
            snapshot["deployment"] = {**snapshot["deployment"], "deploy_port": other.manager.port}
            conn.execute(
                sa.update(record).where(record.c.id == there.id).values(deployment_profile_snapshot=snapshot)
            )
        other.sessions[stage.session(there)] = FakeSession(state=RUNNING)
        other.plan.on("status", Fault("slow", seconds=2.0))
        stage.daliuge.go(stage.session(here), FINISHED)
        clock = RunningClock(stage.clock.now() + timedelta(seconds=60))
        poll = PollService(
            ledger=stage.ledger,
            clock=clock,
            ids=UuidIds(),
            backends=BackendProvider(clock=clock),
            interval_seconds=5.0,
            patience_seconds=1.0,
        )
        report = poll.tick()
        assert (report.terminal, report.waiting_for) == ([here.id], [other.manager_url])
        assert "still waiting for" in report.summary()
        end = time.monotonic() + 20
        while poll.tick().looked_at == 0:
            assert time.monotonic() < end
        assert stage.execution(there).daliuge_state is DaliugeState.RUNNING
        assert stage.execution(there).poll_count == 1
        assert other.calls.count("status") == 1


class RunningClock(ManualClock):
    """The time of day stands still; what is waited for takes its time."""

    def monotonic(self) -> float:
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds / 10)


def test_an_evidence_of_another_attempt_is_not_written(stage: Stage) -> None:
    execution = stage.submitted("A")
    observe = RestBackend.observe

    def look(backend: RestBackend, *args: Any, **named: Any) -> Any:
        seen = observe(backend, *args, **named)
        with stage.ledger.begin() as conn:
            conn.execute(
                sa.update(record).where(record.c.id == execution.id).values(daliuge_session_id="another")
            )
        return seen

    stage.daliuge.go(stage.session(execution), FINISHED)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(RestBackend, "observe", look)
        assert tick(stage).terminal == []
    assert stage.execution(execution).status is Status.RUNNING
