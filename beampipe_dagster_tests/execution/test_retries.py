"""A failed signature is tried again within its budget, then held; the operator and a new revision let it go."""

from __future__ import annotations

from datetime import timedelta

import pytest
import sqlalchemy as sa

from beampipe_dagster.errors import BeampipeError, ConflictError, InputError
from beampipe_dagster.execution.outcome import finish
from beampipe_dagster.ledger import sources
from beampipe_dagster.ledger.execution_values import Execution
from beampipe_dagster.ledger.states import FailureClass, Status, TerminalOutcome
from beampipe_dagster.ledger.tables import execution_sources
from beampipe_dagster.sources.status import describe
from beampipe_dagster_tests.support.fake_daliuge import FINISHED
from beampipe_dagster_tests.support.ledgers import SURVEY
from beampipe_dagster_tests.support.platforms import Stage


def fail(
    stage: Stage,
    execution: Execution,
    *,
    kind: FailureClass = FailureClass.CONNECTIVITY,
    code: str = "connection_lost",
) -> Execution:
    """End an execution as failed."""
    with stage.ledger.begin() as conn:
        return finish(
            conn,
            stage.execution(execution),
            Status.FAILED,
            outcome=TerminalOutcome.FAILED,
            clock=stage.clock,
            ids=stage.platform.ids,
            error="the connection broke",
            error_code=code,
            failure_class=kind.value,
        )


def wait(stage: Stage, minutes: float) -> list[Execution]:
    """Let time pass; what a tick admits then."""
    stage.clock.advance(minutes * 60)
    return stage.admit()


def test_a_retry_is_a_new_execution_of_the_same_partition_after_a_growing_delay(stage: Stage) -> None:
    first = stage.admitted("A")
    fail(stage, first)
    source = stage.source("A")
    assert source.retry_at == stage.clock.now() + timedelta(minutes=15)
    assert source.hold is not None
    assert (source.hold["code"], source.hold["execution_id"]) == ("execution_failed", first.id)
    assert wait(stage, 14) == []
    (second,) = wait(stage, 1)
    assert second.partition_key == first.partition_key
    assert (second.retry_of, second.retry_number, first.retry_number) == (first.id, 1, 0)
    assert stage.source("A").hold is None
    fail(stage, second)
    assert wait(stage, 59) == []
    (third,) = wait(stage, 1)
    assert (third.retry_of, third.retry_number) == (second.id, 2)
    found = stage.platform.launcher.for_partition(SURVEY, first.partition_key, actor="anna")
    assert found.id == third.id


def test_a_budget_that_is_used_up_holds_the_source_for_the_operator(stage: Stage) -> None:
    execution = stage.admitted("A")
    for _ in range(2):
        fail(stage, execution)
        (execution,) = wait(stage, 60)
    fail(stage, execution)
    assert wait(stage, 60 * 24 * 30) == []
    source = stage.source("A")
    assert source.hold is not None
    assert source.hold["code"] == "retry_budget_exhausted"
    assert "its 2 retries are used up" in str(source.hold["message"])
    assert not source.workflow_run_pending
    state = describe(source, stage.execution(execution))
    assert (state.word, state.code) == ("failed", "retry_budget_exhausted")
    ends = [event.payload.get("retry") for event in stage.events("execution.failed")]
    assert sorted(map(str, ends)) == ["1 of 2", "2 of 2", "2 of 2"]


@pytest.mark.parametrize("kind", [FailureClass.VALIDATION, FailureClass.CONFIGURATION, FailureClass.GRAPH])
def test_what_stays_wrong_is_never_tried_again(stage: Stage, kind: FailureClass) -> None:
    fail(stage, stage.admitted("A"), kind=kind, code="manifest_scope")
    assert wait(stage, 60 * 24 * 30) == []
    hold = stage.source("A").hold
    assert hold is not None
    assert hold["code"] == "execution_failed"
    assert "retry_at" not in hold


def test_a_failed_drop_is_tried_once_more(stage: Stage) -> None:
    execution = stage.submitted("A")
    for number in (1, 0):
        oid = next(iter(stage.daliuge.sessions[stage.session(execution)].drops))
        stage.daliuge.fail(stage.session(execution), {oid: "ERROR: no"})
        stage.poll()
        again = wait(stage, 15)
        assert len(again) == number
        if again:
            execution = stage.submit(again[0])
    assert stage.daliuge.deploys() == 2


def test_a_survey_may_try_nothing_again(stage: Stage) -> None:
    stage.add_survey(execution={"retry": {"max_attempts": 0}})
    fail(stage, stage.admitted("A"))
    assert wait(stage, 60 * 24 * 30) == []
    hold = stage.source("A").hold
    assert hold is not None
    assert hold["code"] == "execution_failed"


def test_a_retry_that_succeeds_ends_it(stage: Stage) -> None:
    fail(stage, stage.admitted("A"))
    (again,) = wait(stage, 15)
    again = stage.submit(again)
    stage.daliuge.go(stage.session(again), FINISHED)
    stage.poll()
    source = stage.source("A")
    assert (source.hold, source.retry_at, source.failed_signature) == (None, None, None)
    assert source.last_executed_discovery_signature == source.discovery_signature
    assert wait(stage, 60 * 24) == []


def test_a_new_signature_does_not_wait_for_the_retry_of_the_old_one(stage: Stage) -> None:
    first = stage.admitted("A")
    fail(stage, first)
    stage.archives.deposit("A", 999)
    stage.request("A")
    (second,) = stage.admit()
    assert second.discovery_signature != first.discovery_signature
    assert (second.retry_of, second.retry_number) == (None, 0)


def test_what_failed_together_is_tried_again_together(stage: Stage) -> None:
    stage.add_survey(execution={"max_sources_per_execution": 3})
    stage.ready("A", "B")
    (first,) = stage.admit()
    fail(stage, first)
    stage.archives.deposit("C", 300)
    stage.register("C")
    stage.discover()
    admitted = wait(stage, 15)
    assert sorted(one.source_identifiers for one in admitted) == [["A", "B"], ["C"]]
    (again,) = (one for one in admitted if one.retry_of)
    assert (again.partition_key, again.retry_of) == (first.partition_key, first.id)


def test_an_operators_retry_uses_nothing_of_the_budget(stage: Stage) -> None:
    first = stage.admitted("A")
    fail(stage, first)
    by_hand = stage.platform.launcher.for_partition(SURVEY, first.partition_key, actor="anna", again=True)
    assert (by_hand.retry_of, by_hand.retry_number, by_hand.created_by) == (first.id, 0, "anna")
    fail(stage, by_hand)
    (automatic,) = wait(stage, 15)
    assert automatic.retry_number == 1


def test_only_who_asks_for_it_tries_a_failed_partition_again(stage: Stage) -> None:
    first = stage.admitted("A")
    fail(stage, first, kind=FailureClass.VALIDATION, code="x")
    with pytest.raises(ConflictError) as caught:
        stage.platform.launcher.for_partition(SURVEY, first.partition_key, actor="dagster")
    assert caught.value.code == "execution_failed"
    assert len(stage.executions()) == 1


def test_a_completed_partition_is_not_run_again_while_its_results_stand(stage: Stage) -> None:
    execution = stage.submitted("A")
    stage.daliuge.go(stage.session(execution), FINISHED)
    stage.poll()
    with pytest.raises(ConflictError) as caught:
        stage.platform.launcher.for_partition(SURVEY, execution.partition_key, actor="anna", again=True)
    assert caught.value.code == "execution_completed"


def test_a_signature_that_came_back_may_be_run_again_by_hand(stage: Stage) -> None:
    first = stage.submitted("A")
    stage.daliuge.go(stage.session(first), FINISHED)
    stage.poll()
    stage.archives.deposit("A", 999)
    stage.request("A")
    (other,) = stage.admit()
    other = stage.submit(other)
    stage.daliuge.go(stage.session(other), FINISHED)
    stage.poll()
    signature = first.sources[0]["discovery_signature"]
    with stage.ledger.begin() as conn:  # the archives give the first datasets again
        row = sources.get(conn, SURVEY, "A")
        sources.update(conn, [row.id], {"discovery_signature": signature}, now=stage.clock.now())
    again = stage.platform.launcher.for_partition(SURVEY, first.partition_key, actor="anna", again=True)
    assert again.id != first.id
    assert again.discovery_signature == first.discovery_signature


def test_a_new_revision_lets_what_failed_run_again_with_a_budget_of_its_own(stage: Stage) -> None:
    first = stage.admitted("A")
    fail(stage, first, kind=FailureClass.CONFIGURATION, code="graph_missing")
    assert stage.admit() == []
    stage.add_survey(execution={"tick_execution_run_limit": 7})
    (again,) = stage.admit()
    assert (again.partition_key, again.retry_number) == (first.partition_key, 0)
    (event,) = stage.events("execution.released")
    assert (event.source_identifier, event.payload["why"]) == ("A", "revision 2")


def test_an_operator_releases_what_failed_and_nothing_else(stage: Stage) -> None:
    stage.ready("A", "B", "C")
    runs = {one.source_identifiers[0]: one for one in stage.admit()}
    fail(stage, runs["A"], kind=FailureClass.VALIDATION, code="x")
    fail(stage, runs["B"])
    admission = stage.platform.admission
    assert admission.release(SURVEY, ["C", "B", "A"], actor="anna") == ["A", "B"]
    admitted = {one.source_identifiers[0]: one for one in stage.admit()}
    assert sorted(admitted) == ["A", "B"]
    assert {one.retry_number for one in admitted.values()} == {0}
    assert [(one.actor, one.source_identifier) for one in stage.events("execution.released")] == [
        ("anna", "A"),
        ("anna", "B"),
    ]
    assert admission.release(SURVEY, ["A"], actor="anna") == []
    with pytest.raises(InputError) as caught:
        admission.release(SURVEY, ["A", "nobody"], actor="anna")
    assert caught.value.code == "source_not_registered"


def test_a_cancelled_execution_is_not_tried_again(stage: Stage) -> None:
    execution = stage.admitted("A")
    with stage.ledger.begin() as conn:
        finish(
            conn,
            stage.execution(execution),
            Status.CANCELLED,
            outcome=TerminalOutcome.CANCELLED,
            clock=stage.clock,
            ids=stage.platform.ids,
        )
    assert wait(stage, 60 * 24) == []
    assert stage.source("A").hold is None


def test_every_attempt_of_a_signature_stays_in_the_ledger(stage: Stage) -> None:
    fail(stage, stage.admitted("A"))
    wait(stage, 15)
    with stage.ledger.read() as conn:
        rows = conn.execute(sa.select(execution_sources)).all()
    assert [row.active for row in rows] == [False, True]
    assert len({row.execution_id for row in rows}) == 2


def test_a_defect_of_a_step_is_tried_once_more(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    execution = stage.admitted("A")

    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("beampipe_dagster.execution.steps.build_manifest", broken)
    with pytest.raises(BeampipeError):
        stage.do("workflow_manifest", execution)
    assert stage.execution(execution).failure_class == "internal"
    (again,) = wait(stage, 15)
    with pytest.raises(BeampipeError):
        stage.do("workflow_manifest", again)
    assert wait(stage, 60 * 24) == []
