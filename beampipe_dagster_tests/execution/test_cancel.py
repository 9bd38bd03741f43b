from __future__ import annotations

from collections.abc import Callable

import pytest

from beampipe_dagster.backends.daliuge.rest import RestBackend
from beampipe_dagster.errors import BeampipeError, SubmissionUncertainError
from beampipe_dagster.execution.cancel import Cancellation
from beampipe_dagster.ledger.audit import audit
from beampipe_dagster.ledger.execution_values import Execution
from beampipe_dagster.ledger.states import Status, SubmissionState
from beampipe_dagster_tests.support.fake_daliuge import FINISHED, Fault
from beampipe_dagster_tests.support.ledgers import SURVEY, at_once
from beampipe_dagster_tests.support.platforms import Stage, code_of


def cancel(stage: Stage, execution: Execution) -> Cancellation:
    return stage.platform.cancelling.cancel(execution.id, reason="not wanted", actor="ada")


def refused(action: Callable[[], object]) -> str:
    with pytest.raises(BeampipeError) as caught:
        action()
    return caught.value.code


def clean(stage: Stage) -> bool:
    with stage.ledger.read() as conn:
        return not list(audit(conn))


def ended(stage: Stage, execution: Execution) -> None:
    done = stage.execution(execution)
    assert (done.status, done.terminal_outcome) == (Status.CANCELLED, "cancelled")
    source = stage.source("A")
    assert not source.workflow_run_pending
    assert source.hold is not None
    assert source.hold["code"] == "cancelled_by_operator"
    assert len(stage.events("execution.cancelled")) == 1
    assert stage.admit() == []
    assert clean(stage)


@pytest.mark.parametrize("until", ["workflow_manifest", "physical_graph"])
def test_what_has_no_session_is_cancelled_at_once(stage: Stage, until: str) -> None:
    execution = stage.submit(stage.admitted("A"), until=until)
    assert cancel(stage, execution).state == "cancelled"
    assert refused(lambda: stage.do("backend_run", execution)) == "execution_terminal"
    assert stage.platform.launcher.due(SURVEY) == []
    assert stage.daliuge.ever_started == set()
    ended(stage, execution)


def test_a_session_is_cancelled_and_confirmed(stage: Stage) -> None:
    execution = stage.submitted("A")
    assert cancel(stage, execution).state == "cancelled"
    ended(stage, execution)


def test_nothing_is_cancelled_without_confirmation_and_the_poll_goes_on(stage: Stage) -> None:
    execution = stage.submitted("A")
    stage.daliuge.manager.stop()
    done = cancel(stage, execution)
    assert (done.state, done.execution.status) == ("cancelling", Status.RUNNING)
    stage.poll()
    assert stage.execution(execution).status is Status.RUNNING
    stage.daliuge.manager.start()
    stage.poll(after=3600)
    ended(stage, execution)


def test_a_session_that_finished_before_stays_completed(stage: Stage) -> None:
    execution = stage.submitted("A")
    stage.daliuge.go(stage.session(execution), FINISHED)
    stage.daliuge.status(stage.session(execution), b"")  # it has finished, and nobody has seen it
    assert cancel(stage, execution).state == "cancelling"
    stage.poll()
    assert stage.execution(execution).status is Status.COMPLETED
    (event,) = stage.events("execution.completed")
    assert event.payload["cancel_requested_by"] == "ada"
    assert clean(stage)


def test_an_uncertain_submission_is_adopted_and_then_cancelled(stage: Stage) -> None:
    execution = stage.submit(stage.admitted("A"), until="physical_graph")
    stage.daliuge.plan.on("deploy", Fault("done_html"))
    with pytest.raises(SubmissionUncertainError):
        stage.do("backend_run", execution)
    assert cancel(stage, execution).state == "waiting"
    assert stage.execution(execution).submission_state is SubmissionState.UNCERTAIN
    stage.poll()
    stage.poll()
    ended(stage, execution)
    assert stage.daliuge.deploys() == 1


def test_an_uncertain_submission_that_did_not_happen_is_never_submitted_again(stage: Stage) -> None:
    execution = stage.submit(stage.admitted("A"), until="physical_graph")
    stage.daliuge.plan.on("deploy", Fault("html"))
    with pytest.raises(SubmissionUncertainError):
        stage.do("backend_run", execution)
    cancel(stage, execution)
    for _ in range(3):
        stage.poll()
        assert stage.platform.launcher.due(SURVEY) == []
    ended(stage, execution)
    assert stage.daliuge.ever_started == set()


def test_a_request_before_the_deployment_stops_it(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    execution = stage.submit(stage.admitted("A"), until="physical_graph")
    size = stage.daliuge.size

    def ask(session_id: str, body: bytes) -> object:
        stage.daliuge.lock.release()
        try:
            assert cancel(stage, execution).state == "waiting"
        finally:
            stage.daliuge.lock.acquire()
        return size(session_id, body)

    monkeypatch.setattr(stage.daliuge, "size", ask)
    assert refused(lambda: stage.do("backend_run", execution)) == "cancel_requested"
    assert (stage.daliuge.ever_started, stage.daliuge.sessions) == (set(), {})
    ended(stage, execution)


def test_a_request_during_the_deployment_is_kept_and_done_after_it(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    execution = stage.submit(stage.admitted("A"), until="physical_graph")
    deploy = RestBackend._deploy  # the moment between the fence and the call

    def ask(backend: RestBackend, *args: object) -> None:
        cancel(stage, execution)
        deploy(backend, *args)  # type: ignore[arg-type]  # as they came

    monkeypatch.setattr(RestBackend, "_deploy", ask)
    stage.do("backend_run", execution)
    assert stage.execution(execution).submission_state is SubmissionState.SUBMITTED
    stage.poll()
    ended(stage, execution)


def test_two_cancellations_at_once_end_it_once(stage: Stage) -> None:
    execution = stage.submitted("A")
    outcomes = at_once(lambda: cancel(stage, execution), lambda: cancel(stage, execution))
    words = {one.state if isinstance(one, Cancellation) else code_of(one) for one in outcomes}
    assert words <= {"cancelled", "execution_terminal"}
    assert "cancelled" in words
    assert len(stage.events("execution.cancel_requested")) == 1
    ended(stage, execution)


@pytest.mark.parametrize(
    ("reason", "code"), [(" \t", "cancel_reason_required"), ("x" * 1001, "cancel_reason_too_long")]
)
def test_a_cancellation_needs_a_reason(stage: Stage, reason: str, code: str) -> None:
    execution = stage.admitted("A")
    action = lambda: stage.platform.cancelling.cancel(execution.id, reason=reason, actor="ada")  # noqa: E731  # short
    assert refused(action) == code


def test_a_cancelled_source_runs_again_when_it_is_released_or_has_news(stage: Stage) -> None:
    execution = stage.submitted("A")
    cancel(stage, execution)
    assert stage.platform.admission.release(SURVEY, ["A"], actor="ada") == ["A"]
    (again,) = stage.admit()
    cancel(stage, again)
    stage.archives.deposit("A", 900)
    stage.request("A")
    assert len(stage.admit()) == 1
