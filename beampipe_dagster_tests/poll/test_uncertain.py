from __future__ import annotations

import pytest
import sqlalchemy as sa

from beampipe_dagster.backends.daliuge.rest import RestBackend
from beampipe_dagster.errors import SubmissionUncertainError
from beampipe_dagster.ledger import executions, observations
from beampipe_dagster.ledger.execution_values import Execution
from beampipe_dagster.ledger.states import Status, SubmissionState
from beampipe_dagster.ledger.tables import batch_execution_record as record
from beampipe_dagster.poll.service import PollReport
from beampipe_dagster_tests.support.fake_daliuge import FINISHED, Fault
from beampipe_dagster_tests.support.platforms import Stage, code_of


def tick(stage: Stage, *, after: float = 60) -> PollReport:
    stage.clock.advance(after)
    return stage.platform.poll.tick()


def uncertain(stage: Stage, fault: str, *names: str) -> Execution:
    execution = stage.submit(stage.admitted(*names or ("A",)), until="physical_graph")
    stage.daliuge.plan.on("deploy", Fault(fault))
    with pytest.raises(SubmissionUncertainError):
        stage.do("backend_run", execution)
    return stage.execution(execution)


class KilledError(BaseException):
    """The process ends here."""


def killed(stage: Stage, monkeypatch: pytest.MonkeyPatch, *, before: str) -> Execution:
    """A submission whose process dies before one of its calls to the manager (or before its receipt)."""
    execution = stage.submit(stage.admitted("A"), until="physical_graph")

    def die(*_: object, **__: object) -> None:
        raise KilledError

    with monkeypatch.context() as patched:
        if before == "receipt":
            patched.setattr("beampipe_dagster.execution.submission.record_receipt", die)
        else:
            patched.setattr(f"beampipe_dagster.backends.daliuge.manager.IslandManager.{before}", die)
        # A process that is killed cleans nothing up.
        patched.setattr("beampipe_dagster.backends.daliuge.rest.RestBackend.discard", die)
        with pytest.raises(KilledError):
            stage.do("backend_run", execution)
    return stage.execution(execution)


def finish(stage: Stage, execution: Execution) -> None:
    """Go on as the daemons do, until the execution is over."""
    for _ in range(20):
        for launch in stage.platform.launcher.due("survey"):
            stage.submit(launch.execution, holder=f"h{launch.execution.launch_count}")
        for name in stage.daliuge.ever_started & set(stage.daliuge.sessions):
            stage.daliuge.go(name, FINISHED)
        tick(stage, after=10)
        if stage.execution(execution).terminal:
            break
    assert stage.execution(execution).status is Status.COMPLETED


@pytest.mark.parametrize("fault", ["done_html", "done_cut", "done_555"])
def test_a_submission_that_happened_is_adopted_as_it_is(stage: Stage, fault: str) -> None:
    execution = uncertain(stage, fault)
    report = tick(stage, after=5)
    assert report.resolved == [execution.id]
    adopted = stage.execution(execution)
    assert (adopted.status, adopted.submission_state) == (Status.RUNNING, SubmissionState.SUBMITTED)
    assert (adopted.last_error, adopted.last_error_code) == (None, None)
    (event,) = stage.events("execution.submission_recorded")
    assert event.payload["adopted"] is True
    finish(stage, execution)
    assert stage.daliuge.ever_started == {execution.daliuge_session_id}
    assert stage.daliuge.deploys() == 1


@pytest.mark.parametrize("fault", ["html", "cut", "node_down"])
def test_a_submission_that_did_not_happen_is_disproved_by_two_looks_and_done_once(
    stage: Stage, fault: str
) -> None:
    execution = uncertain(stage, fault)
    assert tick(stage, after=5).resolved == []
    assert stage.execution(execution).submission_state is SubmissionState.UNCERTAIN
    assert tick(stage, after=1).resolved == [], "two looks are some time apart"
    assert tick(stage, after=5).resolved == [execution.id]
    cleared = stage.execution(execution)
    assert (cleared.status, cleared.submission_state) == (Status.RUNNING, SubmissionState.NOT_STARTED)
    assert stage.daliuge.sessions == {}
    (event,) = stage.events("execution.submission_disproved")
    assert event.payload == {"session_id": execution.daliuge_session_id, "presence": "undeployed"}
    finish(stage, execution)
    assert len(stage.daliuge.ever_started) == 1
    assert execution.daliuge_session_id not in stage.daliuge.ever_started


@pytest.mark.parametrize(
    ("before", "presence"), [("create", "absent"), ("append", "undeployed"), ("deploy", "undeployed")]
)
def test_a_process_that_died_before_its_deployment_is_replaced(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, before: str, presence: str
) -> None:
    execution = killed(stage, monkeypatch, before=before)
    assert execution.submission_state is SubmissionState.IN_FLIGHT
    assert tick(stage, after=30).resolved == [], "its lease is still running"
    assert stage.execution(execution).absent_count == 0
    tick(stage, after=31)
    tick(stage, after=6)
    (event,) = stage.events("execution.submission_disproved")
    assert event.payload["presence"] == presence
    finish(stage, execution)
    assert len(stage.daliuge.ever_started) == 1
    assert stage.execution(execution).attempt == 2


def test_a_process_that_died_after_its_deployment_is_adopted(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    execution = killed(stage, monkeypatch, before="receipt")
    assert stage.platform.launcher.due("survey") == []
    tick(stage, after=61)
    assert stage.execution(execution).submission_state is SubmissionState.SUBMITTED
    finish(stage, execution)
    assert stage.daliuge.ever_started == {execution.daliuge_session_id}
    assert stage.daliuge.deploys() == 1


def test_a_manager_that_is_away_proves_nothing(stage: Stage) -> None:
    execution = uncertain(stage, "done_html")
    stage.daliuge.manager.stop()
    for _ in range(4):
        assert tick(stage).unreachable == [execution.id]
    assert stage.execution(execution).absent_count == 0
    stage.daliuge.manager.start()
    tick(stage)
    assert stage.execution(execution).submission_state is SubmissionState.SUBMITTED


def test_a_manager_that_is_away_is_asked_once_a_tick(stage: Stage) -> None:
    stage.ready("A", "B", "C")
    waiting = [stage.submit(one, until="physical_graph") for one in stage.admit()]
    for execution in waiting:
        stage.daliuge.plan.on("deploy", Fault("cut"))
        with pytest.raises(SubmissionUncertainError):
            stage.do("backend_run", execution)
    asked = stage.daliuge.calls.count("status")
    stage.daliuge.plan.on("status", *[Fault("node_down")] * 3)
    assert sorted(tick(stage).unreachable) == sorted(one.id for one in waiting)
    assert stage.daliuge.calls.count("status") == asked + 1


def test_an_uncertain_submission_with_a_bad_profile_never_stops_the_others(stage: Stage) -> None:
    bad = uncertain(stage, "done_html", "A")
    good = uncertain(stage, "done_html", "B")
    with stage.ledger.begin() as conn:
        snapshot = {"name": "nonsense"}
        conn.execute(
            sa.update(record).where(record.c.id == bad.id).values(deployment_profile_snapshot=snapshot)
        )
    report = tick(stage)
    assert (report.resolved, report.unreachable) == ([good.id], [bad.id])


def test_a_process_that_wakes_up_after_it_was_given_up_deploys_nothing(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process sleeps between the graph and the deployment for longer than its lease."""
    execution = stage.submit(stage.admitted("A"), until="physical_graph")
    append = stage.daliuge.append
    slept: list[str] = []

    def sleep(session_id: str, body: bytes) -> object:
        done = append(session_id, body)
        if not slept:
            slept.append(session_id)
            stage.clock.advance(61)
            stage.daliuge.lock.release()  # the manager answers others meanwhile
            try:
                tick(stage, after=0)
                tick(stage, after=6)
            finally:
                stage.daliuge.lock.acquire()
        return done

    monkeypatch.setattr(stage.daliuge, "append", sleep)
    assert code_of(_outcome(stage, execution)) in {"lease_lost", "session_absent", "graph_incomplete"}
    assert stage.daliuge.ever_started == set()
    finish(stage, execution)
    assert len(stage.daliuge.ever_started) == 1


def test_a_process_that_wakes_up_in_time_keeps_its_submission(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It deploys and writes its receipt between the look of the poll and what the poll makes of it."""
    execution = killed(stage, monkeypatch, before="deploy")
    tick(stage, after=61)
    assert stage.execution(execution).absent_count == 1
    presence = RestBackend.presence

    def look(backend: RestBackend, session_id: str) -> object:
        seen = presence(backend, session_id)
        with stage.ledger.begin() as conn:
            executions.renew_lease(conn, execution.id, "me", now=stage.clock.now(), seconds=60)
        return seen

    monkeypatch.setattr(RestBackend, "presence", look)
    assert tick(stage, after=6).resolved == []
    now = stage.execution(execution)
    assert (now.submission_state, now.lease_token) == (SubmissionState.IN_FLIGHT, "me")
    assert list(stage.daliuge.sessions) == [execution.daliuge_session_id]


def test_a_session_is_removed_only_after_its_process_may_no_longer_deploy(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process wakes up while the poll is about to remove its session."""
    execution = killed(stage, monkeypatch, before="deploy")
    discard = RestBackend.discard
    woken: list[bool] = []

    def wake_up(backend: RestBackend, session_id: str) -> None:
        with stage.ledger.begin() as conn:
            now = stage.clock.now()
            woken.append(executions.renew_lease(conn, execution.id, "me", now=now, seconds=60))
        discard(backend, session_id)

    monkeypatch.setattr(RestBackend, "discard", wake_up)
    tick(stage, after=61)
    tick(stage, after=6)
    assert woken == [False]
    finish(stage, execution)
    assert len(stage.daliuge.ever_started) == 1


def test_past_its_deadline_a_submission_without_a_process_counts_as_uncertain_and_is_told_once(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    execution = killed(stage, monkeypatch, before="deploy")
    stage.daliuge.manager.stop()
    tick(stage, after=61)
    assert stage.execution(execution).submission_state is SubmissionState.IN_FLIGHT
    for _ in range(3):
        tick(stage, after=1800)
    held = stage.execution(execution)
    assert (held.status, held.submission_state, held.last_error_code) == (
        Status.AWAITING_SCHEDULER,
        SubmissionState.UNCERTAIN,
        "submission_deadline_passed",
    )
    assert len(stage.events("execution.submission_uncertain")) == 1
    (event,) = stage.events("execution.submission_unresolved")
    assert "cannot be looked for" in str(event.payload["reason"])
    assert set(held.escalations or {}) == {"submission_unresolved"}
    stage.daliuge.manager.start()
    tick(stage)
    tick(stage, after=10)
    assert stage.execution(execution).escalations is None
    finish(stage, execution)
    assert len(stage.daliuge.ever_started) == 1


def test_a_submission_whose_process_is_alive_is_left_to_it_also_past_its_deadline(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    execution = killed(stage, monkeypatch, before="deploy")
    with stage.ledger.begin() as conn:
        now = stage.clock.now()
        assert executions.renew_lease(conn, execution.id, "me", now=now, seconds=10_000)
    tick(stage, after=3600)
    now_it_is = stage.execution(execution)
    assert (now_it_is.submission_state, now_it_is.absent_count) == (SubmissionState.IN_FLIGHT, 0)


def test_an_adopted_session_is_nothing_for_an_operator_any_more(stage: Stage) -> None:
    execution = uncertain(stage, "done_html")
    stage.daliuge.manager.stop()
    tick(stage, after=3600)
    assert stage.execution(execution).escalations is not None
    stage.daliuge.manager.start()
    tick(stage, after=3600)
    tick(stage)
    now = stage.execution(execution)
    assert (now.submission_state, now.escalations) == (SubmissionState.SUBMITTED, None)


def test_a_session_that_cannot_be_removed_is_not_submitted_again(stage: Stage) -> None:
    execution = uncertain(stage, "html")
    tick(stage, after=5)
    stage.daliuge.plan.on("delete", *[Fault("html")] * 3)
    for _ in range(3):
        assert tick(stage, after=3600).resolved == []
    assert stage.execution(execution).submission_state is SubmissionState.UNCERTAIN
    assert len(stage.events("execution.submission_unresolved")) == 1
    with stage.ledger.read() as conn:
        looks = [
            one for one in observations.of(conn, execution.id) if one["normalized_state"] == "undeployed"
        ]
    assert len(looks) == 2, "what is proven is not proven again at every look"
    assert tick(stage).resolved == [execution.id]
    finish(stage, execution)


def _outcome(stage: Stage, execution: Execution) -> object:
    try:
        return stage.do("backend_run", execution)
    except Exception as error:  # noqa: BLE001  # an outcome like any other
        return error
