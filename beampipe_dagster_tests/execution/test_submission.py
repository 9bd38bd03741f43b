from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from beampipe_dagster.backends.base import SubmissionReceipt
from beampipe_dagster.clock import rfc3339
from beampipe_dagster.errors import (
    BackendUnavailableError,
    BeampipeError,
    ConflictError,
    LedgerError,
    Retry,
    SubmissionUncertainError,
)
from beampipe_dagster.execution import submission
from beampipe_dagster.ledger import executions, observations
from beampipe_dagster.ledger.execution_values import Execution
from beampipe_dagster.ledger.states import ControlPhase, DaliugeState, ExecutionPhase, Status, SubmissionState
from beampipe_dagster_tests.support.fake_daliuge import DEPLOY_FAULTS, Fault
from beampipe_dagster_tests.support.ledgers import at_once
from beampipe_dagster_tests.support.platforms import Stage, code_of


@pytest.fixture
def translated(stage: Stage) -> Execution:
    return stage.submit(stage.admitted("A"), until="physical_graph")


def refused(stage: Stage, execution: Execution, **values: Any) -> BeampipeError:
    with pytest.raises(BeampipeError) as caught:
        stage.do("backend_run", execution, **values)
    return caught.value


def on_call(stage: Stage, monkeypatch: pytest.MonkeyPatch, name: str, action: Callable[[], object]) -> None:
    """Do something inside DALiuGE, before it does what it is asked for."""
    original = getattr(stage.daliuge, name)

    def call(argument: str, body: bytes) -> object:
        action()
        return original(argument, body)

    monkeypatch.setattr(stage.daliuge, name, call)


def test_a_receipt_says_where_the_session_runs(stage: Stage, translated: Execution) -> None:
    report = stage.do("backend_run", translated)
    done = report.execution
    assert done.daliuge_session_id == f"BeampipeExecution-{done.id}-2026-01-01T00-00-00-a1"
    assert done.daliuge_manager_url == stage.daliuge.manager_url
    assert (done.status, done.submission_state, done.daliuge_state, done.control_phase) == (
        Status.RUNNING,
        SubmissionState.SUBMITTED,
        DaliugeState.RUNNING,
        ControlPhase.SUBMITTED,
    )
    assert (done.lease_token, done.next_launch_at, done.next_poll_at) == (None, None, stage.clock.now())
    assert done.execution_phase is ExecutionPhase.SUBMIT
    assert stage.daliuge.ever_started == {done.daliuge_session_id}
    deploy = done.run_record["dim"]["deploy"]
    assert deploy["deployed_at"] == rfc3339(stage.clock.now())
    assert deploy["dim_rest_base"] == stage.daliuge.manager_url
    assert done.run_record["requested_sources"]["count"] == 1
    (event,) = stage.events("execution.submission_recorded")
    assert event.payload == {
        "session_id": done.daliuge_session_id,
        "manager_url": stage.daliuge.manager_url,
        "drops": 4,
        "adopted": False,
    }


def test_the_intent_is_in_the_ledger_before_the_first_call(
    stage: Stage, translated: Execution, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Execution] = []
    evidence: list[Any] = []

    def look() -> None:
        seen.append(stage.execution(translated))
        with stage.ledger.read() as conn:
            evidence.extend(observations.of(conn, translated.id))

    on_call(stage, monkeypatch, "create", look)
    stage.do("backend_run", translated)
    (intent,) = seen
    assert intent.submission_state is SubmissionState.IN_FLIGHT
    assert intent.control_phase is ControlPhase.SUBMISSION_PENDING
    assert [intent.daliuge_session_id] == list(stage.daliuge.sessions)
    assert intent.daliuge_manager_url == stage.daliuge.manager_url
    assert intent.submission_deadline_at is not None
    assert (intent.submission_deadline_at - stage.clock.now()).total_seconds() == 1800
    assert intent.lease_token == "me"  # noqa: S105  # no secret
    assert [one["normalized_state"] for one in evidence] == ["intent_persisted"]
    assert evidence[0]["payload"]["session_id"] == intent.daliuge_session_id


def test_what_is_submitted_is_never_submitted_again(stage: Stage, translated: Execution) -> None:
    first = stage.do("backend_run", translated)
    again = stage.do("backend_run", translated, holder="another")
    assert again.done_before
    assert again.facts["session_id"] == first.facts["session_id"]
    assert stage.daliuge.deploys() == 1


@pytest.mark.parametrize("call", ["create", "append", "size"])
@pytest.mark.parametrize("kind", ["html", "cut", "node_down"])
def test_a_failure_before_the_deployment_starts_nothing_and_waits(
    stage: Stage, translated: Execution, call: str, kind: str
) -> None:
    stage.daliuge.plan.on(call, Fault(kind))
    error = refused(stage, translated)
    assert isinstance(error, BackendUnavailableError)
    now = stage.execution(translated)
    assert (now.status, now.submission_state) == (Status.RUNNING, SubmissionState.NOT_STARTED)
    assert now.next_launch_at is not None
    assert now.next_launch_at > stage.clock.now()
    assert stage.daliuge.ever_started == set()
    done = stage.do("backend_run", translated).execution
    assert done.attempt == 2
    assert done.daliuge_session_id == submission.session_id(done, 2)
    assert stage.daliuge.ever_started == {done.daliuge_session_id}


def test_a_manager_that_is_away_is_waited_for(stage: Stage, translated: Execution) -> None:
    stage.daliuge.manager.stop()
    assert refused(stage, translated).retry is Retry.LATER
    waiting = stage.execution(translated)
    assert (waiting.status, waiting.submission_state) == (Status.RUNNING, SubmissionState.NOT_STARTED)
    assert waiting.last_error_code == "backend_unreachable"
    stage.daliuge.manager.start()
    assert stage.do("backend_run", translated).execution.submission_state is SubmissionState.SUBMITTED


@pytest.mark.parametrize("kind", DEPLOY_FAULTS)
def test_a_failure_in_the_deployment_is_uncertain_and_never_repeated(
    stage: Stage, translated: Execution, kind: str
) -> None:
    stage.daliuge.plan.on("deploy", Fault(kind))
    error = refused(stage, translated)
    assert isinstance(error, SubmissionUncertainError)
    now = stage.execution(translated)
    assert (now.status, now.submission_state) == (Status.AWAITING_SCHEDULER, SubmissionState.UNCERTAIN)
    assert (now.lease_token, now.last_error_code) == (None, error.code)
    assert now.next_poll_at == stage.clock.now()
    assert len(stage.events("execution.submission_uncertain")) == 1
    again = refused(stage, translated, holder="another")
    assert (again.code, again.retry) == ("submission_unresolved", Retry.AFTER_RECONCILE)
    assert stage.daliuge.deploys() == 1
    assert stage.platform.launcher.due("survey") == []
    assert stage.source("A").hold is None


def test_a_process_that_lost_its_lease_deploys_nothing(
    stage: Stage, translated: Execution, monkeypatch: pytest.MonkeyPatch
) -> None:
    def take_over() -> None:
        stage.clock.advance(61)
        with stage.ledger.begin() as conn:
            taken = executions.acquire_lease(conn, translated.id, "other", now=stage.clock.now(), seconds=60)
        assert taken

    on_call(stage, monkeypatch, "append", take_over)
    error = refused(stage, translated)
    assert isinstance(error, ConflictError)
    assert error.code == "lease_lost"
    assert stage.daliuge.deploys() == 0
    assert stage.daliuge.sessions == {}
    now = stage.execution(translated)
    assert now.submission_state is SubmissionState.IN_FLIGHT, "the next holder looks for the session"
    assert now.lease_token == "other"  # noqa: S105  # no secret


def test_a_receipt_that_cannot_be_written_leaves_the_session_to_the_poll(
    stage: Stage, translated: Execution, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise LedgerError("away")

    with monkeypatch.context() as patched:
        patched.setattr(submission, "record_receipt", fail)
        refused(stage, translated)
    now = stage.execution(translated)
    assert not now.terminal
    assert now.submission_state is SubmissionState.IN_FLIGHT
    stage.poll(after=61)
    adopted = stage.execution(translated)
    assert (adopted.status, adopted.submission_state) == (Status.RUNNING, SubmissionState.SUBMITTED)
    assert stage.daliuge.deploys() == 1


def test_a_defect_after_the_deployment_never_fails_the_execution(
    stage: Stage, translated: Execution, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(submission, "record_receipt", fail)
    assert refused(stage, translated).code == "internal"
    assert stage.daliuge.deploys() == 1
    now = stage.execution(translated)
    assert (now.status, now.submission_state) == (Status.RUNNING, SubmissionState.IN_FLIGHT)
    assert stage.source("A").hold is None


def test_a_step_that_is_done_again_never_fails_a_running_session(
    stage: Stage, translated: Execution, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = stage.do("backend_run", translated).execution

    def fail(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("beampipe_dagster.execution.steps._manifest_facts", fail)
    with pytest.raises(BeampipeError):
        stage.do("workflow_manifest", running)
    assert stage.execution(running).status is Status.RUNNING


def test_a_graph_that_the_manager_refuses_fails_and_leaves_no_session(
    stage: Stage, translated: Execution, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_roots(*_: object) -> list[str]:
        return []

    monkeypatch.setattr("beampipe_dagster.backends.daliuge.rest.roots", no_roots)
    assert refused(stage, translated).code == "graph_not_deployable"
    failed = stage.execution(translated)
    assert (failed.status, failed.submission_state, failed.failure_class) == (
        Status.FAILED,
        SubmissionState.FAILED,
        "graph",
    )
    assert stage.daliuge.sessions == {}


def test_of_two_processes_at_once_one_submits(stage: Stage, translated: Execution) -> None:
    stage.clock.advance(61)
    done = at_once(*(lambda name=f"h{n}": stage.do("backend_run", translated, holder=name) for n in range(4)))
    codes = [code_of(one) for one in done]
    assert stage.daliuge.deploys() == 1
    assert codes.count("StepReport") >= 1
    assert set(codes) <= {"StepReport", "execution_busy"}
    assert stage.execution(translated).attempt == 1


def test_the_same_receipt_twice_changes_nothing(stage: Stage, translated: Execution) -> None:
    done = stage.do("backend_run", translated).execution
    receipt = SubmissionReceipt(
        session_id=stage.session(done),
        manager_url=stage.daliuge.manager_url,
        drops=4,
        roots=1,
        deployed_at=stage.clock.now(),
    )
    with stage.ledger.begin() as conn:
        again = submission.record_receipt(
            conn, done, receipt, verify_ssl=True, clock=stage.clock, ids=stage.platform.ids
        )
    assert again == done
    assert stage.execution(done) == done
