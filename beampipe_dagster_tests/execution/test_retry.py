from __future__ import annotations

import pytest

from beampipe_dagster.errors import BeampipeError
from beampipe_dagster.ledger import executions
from beampipe_dagster.ledger.audit import audit
from beampipe_dagster.ledger.execution_values import Execution
from beampipe_dagster.ledger.states import Status
from beampipe_dagster_tests.support.fake_daliuge import FINISHED
from beampipe_dagster_tests.support.ledgers import SURVEY, at_once
from beampipe_dagster_tests.support.platforms import Stage, code_of


def retry(stage: Stage, execution: Execution, reason: str = "mended") -> Execution:
    return stage.platform.retry_in_place.retry(execution.id, reason=reason, actor="ada")


def refused(stage: Stage, execution: Execution, reason: str = "mended") -> str:
    with pytest.raises(BeampipeError) as caught:
        retry(stage, execution, reason)
    return caught.value.code


def failed(stage: Stage) -> Execution:
    execution = stage.submitted("A")
    name = stage.session(execution)
    stage.daliuge.fail(name, {next(iter(stage.daliuge.sessions[name].drops)): "ERROR: no"})
    stage.poll()
    done = stage.execution(execution)
    assert done.status is Status.FAILED
    return done


def test_what_failed_in_its_session_goes_on_in_a_new_one(stage: Stage) -> None:
    before = failed(stage)
    again = retry(stage, before)
    assert (again.status, again.retry_count, again.completed_at) == (Status.RETRYING, 1, None)
    assert [one["session_id"] for one in again.run_record["attempts"]] == [before.daliuge_session_id]
    assert stage.admit() == []
    (launch,) = stage.platform.launcher.due(SURVEY)
    done = stage.submit(launch.execution, holder="h2")
    assert done.attempt == 2
    assert done.daliuge_session_id != before.daliuge_session_id
    stage.daliuge.go(stage.session(done), FINISHED)
    stage.poll()
    assert stage.execution(before).status is Status.COMPLETED
    with stage.ledger.read() as conn:
        assert not list(audit(conn))


def test_nothing_is_tried_again_while_nobody_says_that_its_session_ended(stage: Stage) -> None:
    before = failed(stage)
    stage.daliuge.manager.stop()
    assert refused(stage, before) == "submission_may_exist"
    stage.daliuge.manager.start()


def test_a_retry_in_place_gives_way_to_a_newer_signature_and_a_newer_execution(stage: Stage) -> None:
    before = failed(stage)
    stage.archives.deposit("A", 900)
    stage.request("A")
    assert refused(stage, before) == "signature_superseded"
    stage.admit()
    assert refused(stage, before) == "source_admission_claimed"


def test_a_retry_in_place_gives_way_to_the_retry_that_is_a_new_execution(stage: Stage) -> None:
    before = failed(stage)
    stage.clock.advance(3600)
    (newer,) = stage.admit()
    assert newer.retry_of == before.id
    assert refused(stage, before) == "execution_superseded"


def test_of_two_retries_at_once_one_is_done(stage: Stage) -> None:
    before = failed(stage)
    outcomes = at_once(lambda: retry(stage, before), lambda: retry(stage, before))
    codes = sorted(code_of(one) for one in outcomes)
    assert codes == ["Execution", "execution_not_failed"]
    assert stage.execution(before).retry_count == 1


def test_a_retry_needs_a_failed_execution_and_a_reason(stage: Stage) -> None:
    execution = stage.admitted("A")
    assert refused(stage, execution) == "execution_not_failed"
    assert refused(stage, execution, " ") == "retry_reason_required"
    assert refused(stage, execution, "x" * 1001) == "retry_reason_too_long"
    with stage.ledger.read() as conn:
        assert executions.get(conn, execution.id).retry_count == 0
