"""What materializing means, on the services, a ledger and a DALiuGE that speaks the real protocol."""

from __future__ import annotations

import dagster as dg

from beampipe_dagster.defs import names
from beampipe_dagster.defs.assets import SENSOR_TAG
from beampipe_dagster.ledger.states import Status, SubmissionState
from beampipe_dagster_tests.definitions.world import SURVEY, World, failure, materialized
from beampipe_dagster_tests.support.fake_daliuge import Fault

STEPS = ["workflow_manifest", "prepared_graph", "physical_graph", "backend_run"]


def done(world: World, name: str = "A1") -> str:
    """A partition whose execution is completed."""
    (key,) = world.with_sources(name)
    world.admit()
    world.finish(world.submit(key))
    world.clock.advance(10)
    world.platform.poll.tick()
    assert world.execution(key).status is Status.COMPLETED
    return key


def test_an_admitted_execution_goes_from_its_manifest_to_a_running_session(here: World) -> None:
    (key,) = here.with_sources("A1")
    (admitted,) = here.admit()
    result = here.materialize(key)
    assert result.success
    told = [event.asset_key for event in result.get_asset_materialization_events()]
    assert told == [names.asset_key(SURVEY, step) for step in STEPS]
    execution = here.execution(key)
    assert (execution.id, execution.submission_state) == (admitted.id, SubmissionState.SUBMITTED)
    shown = materialized(result, "backend_run")[key]
    assert shown["session_id"] == execution.daliuge_session_id
    assert shown["daliuge_session"].startswith(f"{here.daliuge.manager_url}/session?sessionId=")
    assert here.daliuge.ever_started == {execution.daliuge_session_id}


def test_a_run_takes_an_execution_up_where_another_one_left_it(here: World) -> None:
    (key,) = here.with_sources("A1")
    (admitted,) = here.admit()
    here.platform.steps.workflow_manifest(admitted.id, holder="a run that died")
    here.clock.advance(120)
    result = here.materialize(key)
    assert result.success
    before = {asset: materialized(result, asset)[key]["done_before"] for asset in STEPS}
    assert before == {
        "workflow_manifest": "True",
        "prepared_graph": "False",
        "physical_graph": "False",
        "backend_run": "False",
    }


def test_a_second_run_submits_nothing_again(here: World) -> None:
    (key,) = here.with_sources("A1")
    here.admit()
    assert here.materialize(key).success
    again = here.materialize(key)
    assert again.success
    assert materialized(again, "backend_run")[key]["done_before"] == "True"
    assert here.daliuge.calls.count("deploy") == 1


def test_a_pending_source_is_executed_when_its_partition_is_materialized_by_hand(here: World) -> None:
    (key,) = here.with_sources("A1")
    assert here.source("A1").workflow_run_pending
    assert here.materialize(key).success
    assert here.execution(key).created_by == "dagster"
    assert not here.source("A1").workflow_run_pending
    assert here.admit() == []


def test_a_completed_partition_is_refused_and_no_session_is_made(here: World) -> None:
    key = done(here)
    sessions = set(here.daliuge.sessions)
    result = here.materialize(key)
    assert not result.success
    said = failure(result)
    assert said["code"] == "execution_completed"
    assert said["description"].startswith(f"[execution_completed] execution {here.execution(key).id}")
    assert "a new deposit gives the source a new partition" in said["hint"]
    assert set(here.daliuge.sessions) == sessions
    assert len(here.executions()) == 1


def test_an_invented_key_is_refused(here: World) -> None:
    here.with_sources("A1")
    here.instance.add_dynamic_partitions(names.partitions_name(SURVEY), ["A1@000000000000"])
    said = failure(here.materialize("A1@000000000000"))
    assert said["code"] == "partition_unknown"
    assert "cannot be invented" in said["hint"]
    assert here.executions() == []


def test_a_superseded_key_is_refused_and_the_current_one_is_named(here: World) -> None:
    (old,) = here.with_sources("A1")
    here.archive.deposit("A1", sbid=200)
    new = here.discover()["A1"]
    said = failure(here.materialize(old))
    assert said["code"] == "signature_superseded"
    assert new in said["hint"]
    assert here.executions() == []
    assert here.materialize(new).success


def test_an_execution_that_another_process_holds_is_left_alone(here: World) -> None:
    (key,) = here.with_sources("A1")
    (admitted,) = here.admit()
    here.platform.steps.workflow_manifest(admitted.id, holder="somebody else")
    said = failure(here.materialize(key))
    assert (said["code"], said["retry"]) == ("execution_busy", "later")
    assert here.execution(key).status is Status.RUNNING


def test_a_step_alone_is_refused_before_its_turn_and_harms_nothing(here: World) -> None:
    (key,) = here.with_sources("A1")
    asset = names.asset_key(SURVEY, "backend_run")
    job = here.definitions.resolve_implicit_global_asset_job_def()
    result = job.execute_in_process(
        instance=here.instance, partition_key=key, asset_selection=[asset], raise_on_error=False
    )
    assert failure(result)["code"] == "step_not_ready"
    assert here.execution(key).status is Status.PENDING
    assert here.materialize(key).success


def test_in_a_range_one_key_that_cannot_go_on_does_not_stop_the_others(here: World) -> None:
    first, second, third = here.with_sources("A1", "A2", "A3")
    here.admit()
    here.finish(here.submit(second))
    here.clock.advance(10)
    here.platform.poll.tick()
    result = here.materialize(first, second, third)
    assert result.success
    states = {key: here.execution(key).submission_state for key in (first, second, third)}
    assert set(states.values()) == {SubmissionState.SUBMITTED}
    told = materialized(result, "backend_run")
    assert "not_done" in told[second]
    assert "execution_completed" in told[second]["not_done"]
    assert "session_id" in told[first]
    assert "session_id" in told[third]
    assert len(here.daliuge.ever_started) == 3


def test_in_a_range_a_key_that_has_to_wait_waits_and_is_not_failed(here: World) -> None:
    keys = here.with_sources("A1", "A2")
    here.admit()
    here.daliuge.plan.on("translate", Fault("answer", status=503, body="busy"))
    result = here.materialize(*keys)
    assert result.success
    waiting, running = (here.execution(key) for key in keys)
    assert (waiting.status, waiting.submission_state) == (Status.RUNNING, SubmissionState.NOT_STARTED)
    assert waiting.wait_count == 1
    assert running.submission_state is SubmissionState.SUBMITTED
    here.clock.advance(60)
    assert [launch.execution.id for launch in here.platform.launcher.due(SURVEY)] == [waiting.id]
    assert here.materialize(keys[0]).success


def test_a_range_in_which_nothing_could_be_done_is_a_failed_run(here: World) -> None:
    keys = here.with_sources("A1", "A2")
    here.admit()
    here.daliuge.translator.stop()
    said = failure(here.materialize(*keys), "physical_graph")
    assert said["retry"] == "later"
    assert {here.execution(key).status for key in keys} == {Status.RUNNING}


def test_a_dependency_that_is_away_fails_the_run_and_makes_the_execution_wait(here: World) -> None:
    (key,) = here.with_sources("A1")
    here.admit()
    here.daliuge.translator.stop()
    said = failure(here.materialize(key), "physical_graph")
    assert said["retry"] == "later"
    assert here.daliuge.translator_url in said["message"]
    waiting = here.execution(key)
    assert waiting.status is Status.RUNNING
    assert waiting.last_error is not None
    assert waiting.last_error_code == said["code"]
    assert waiting.next_launch_at is not None
    assert waiting.next_launch_at > here.clock.now()
    here.daliuge.translator.start()
    here.clock.advance(60)
    (launch,) = here.platform.launcher.due(SURVEY)
    assert launch.execution.id == waiting.id
    assert here.materialize(key).success


def test_what_can_never_work_fails_the_run_and_the_execution(here: World) -> None:
    (key,) = here.with_sources("A1")
    here.admit()
    detail = '{"detail": [{"loc": ["body", "algorithm"], "msg": "Input should be metis"}]}'
    here.daliuge.plan.on("translate", Fault("answer", status=422, body=detail))
    said = failure(here.materialize(key), "physical_graph")
    assert said["retry"] == "never"
    failed = here.execution(key)
    assert failed.status is Status.FAILED
    assert failed.last_error_code == said["code"]
    hold = here.source("A1").hold
    assert hold is not None
    assert hold["code"] == "execution_failed"
    assert failure(here.materialize(key, tags={SENSOR_TAG: "tick"}))["code"] == "execution_failed"
    assert here.execution(key).id == failed.id
    assert here.materialize(key).success, "who asks for it by hand gets a new execution"
    assert here.execution(key).retry_of == failed.id


def test_a_deploy_without_an_answer_fails_the_run_and_is_adopted_by_the_poll(here: World) -> None:
    (key,) = here.with_sources("A1")
    here.admit()
    here.daliuge.plan.on("deploy", Fault("done_cut"))
    said = failure(here.materialize(key), "backend_run")
    assert said["retry"] == "after_reconcile"
    assert here.execution(key).status is Status.AWAITING_SCHEDULER
    assert failure(here.materialize(key), "backend_run")["code"] == "submission_unresolved"
    here.platform.poll.tick()
    assert here.execution(key).submission_state is SubmissionState.SUBMITTED
    assert here.daliuge.calls.count("deploy") == 1


def test_discovered_metadata_are_shown_again_when_materialized_by_hand(here: World) -> None:
    (key,) = here.with_sources("A1")
    asset = names.asset_key(SURVEY, "archive_metadata")
    job = here.definitions.resolve_implicit_global_asset_job_def()
    result = job.execute_in_process(instance=here.instance, partition_key=key, asset_selection=[asset])
    shown = materialized(result, "archive_metadata")[key]
    assert shown["source"] == "A1"
    assert shown["signature"] == here.source("A1").discovery_signature
    rows = [dict(row.data) for row in shown["datasets"].records]
    assert rows == [{"sbid": "100", "dataset_id": "A1_SB100_B00.ms", "quality": "", "scan_id": ""}]
    here.instance.add_dynamic_partitions(names.partitions_name(SURVEY), ["A1@000000000000"])
    refused = job.execute_in_process(
        instance=here.instance,
        partition_key="A1@000000000000",
        asset_selection=[asset],
        raise_on_error=False,
    )
    assert failure(refused)["code"] == "partition_unknown"


def test_a_failure_is_short_and_says_code_message_and_hint(here: World) -> None:
    key = done(here)
    said = failure(here.materialize(key))
    assert said["description"] == f"[{said['code']}] {said['message']} ({said['hint']})"
    assert "Traceback" not in said["description"]
    assert isinstance(here.definitions, dg.Definitions)


def test_a_materialization_by_hand_may_end_with_the_physical_graph(here: World) -> None:
    (key,) = here.with_sources("A1")
    asset = f"{SURVEY}__workflow_manifest"
    result = here.materialize(key, config={"ops": {asset: {"config": {"submit": False}}}})
    assert result.success
    assert here.execution(key).status is Status.NOT_SUBMITTED
    assert here.daliuge.ever_started == set()
