from __future__ import annotations

from datetime import timedelta

import pytest
import sqlalchemy as sa

from beampipe_dagster.errors import BeampipeError
from beampipe_dagster.ids import UuidIds
from beampipe_dagster.ledger import observations
from beampipe_dagster.ledger.execution_values import Execution
from beampipe_dagster.ledger.states import ControlPhase, DaliugeState, Status
from beampipe_dagster.ledger.tables import batch_execution_record as record
from beampipe_dagster.ledger.tables import execution_artifacts
from beampipe_dagster.poll.service import LOST_LOOKS, PollReport
from beampipe_dagster_tests.support.fake_daliuge import CANCELLED, FINISHED, Fault
from beampipe_dagster_tests.support.ledgers import at_once
from beampipe_dagster_tests.support.platforms import STEPS, Stage, code_of, make_platform


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
    assert waits[0] < waits[1] < waits[2] == 60


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


def test_sessions_are_removed_only_where_the_settings_say_so(stage: Stage) -> None:
    first = stage.submitted("A")
    stage.daliuge.go(stage.session(first), FINISHED)
    tick(stage)
    assert stage.session(first) in stage.daliuge.sessions
    cleaning = make_platform(
        stage.ledger,
        home=stage.home,
        clock=stage.clock,
        archives=stage.archives,
        ids=UuidIds(),
        delete_sessions=True,
    )
    stage.ready("B")
    second = stage.submit(stage.admit()[0])
    stage.daliuge.go(stage.session(second), FINISHED)
    stage.clock.advance(60)
    stage.daliuge.plan.on("delete", Fault("html"))
    cleaning.poll.tick()
    assert stage.execution(second).status is Status.COMPLETED
    assert [one.execution_id for one in stage.events("execution.session_left_behind")] == [second.id]


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


def test_an_execution_that_cannot_be_looked_at_never_stops_the_others(stage: Stage) -> None:
    stage.ready("A", "B", "C")
    bad, worse, good = (stage.submit(one) for one in stage.admit())
    with stage.ledger.begin() as conn:
        damaged = execution_artifacts.c.execution_id == bad.id
        conn.execute(sa.update(execution_artifacts).where(damaged).values(content=b"rust"))
        snapshot = {"name": "nonsense"}
        conn.execute(
            sa.update(record).where(record.c.id == worse.id).values(deployment_profile_snapshot=snapshot)
        )
    fresh = make_platform(
        stage.ledger, home=stage.home, clock=stage.clock, archives=stage.archives, ids=UuidIds()
    )
    stage.daliuge.go(stage.session(good), FINISHED)
    stage.clock.advance(60)
    fresh.poll.tick()
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

    def die(*_: object) -> None:
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
