"""The clocks: what a tick asks Dagster for, what it says when it asks for nothing, and what a crash repeats."""

from __future__ import annotations

import json
from typing import Any

import dagster as dg
import pytest
import sqlalchemy as sa
from dagster._core.remote_origin import (
    RegisteredCodeLocationOrigin,
    RemoteJobOrigin,
    RemoteRepositoryOrigin,
)

from beampipe_dagster.config.project import ProjectConfig
from beampipe_dagster.defs import names, sensors
from beampipe_dagster.execution.launch import Launch
from beampipe_dagster.ledger import outbox, projects
from beampipe_dagster.ledger.outbox import Message
from beampipe_dagster.ledger.states import Status
from beampipe_dagster.ledger.tables import daliuge_deployment_profile
from beampipe_dagster_tests.definitions.world import SURVEY, World, keys_of
from beampipe_dagster_tests.support.fake_daliuge import FINISHED, RUNNING

START_TAG, END_TAG = "dagster/asset_partition_range_start", "dagster/asset_partition_range_end"


def tick(world: World, sensor: dg.SensorDefinition, cursor: str | None = None) -> Any:
    """One evaluation: what the sensor's function returns."""
    with dg.build_sensor_context(
        instance=world.instance, cursor=cursor, resources={"platform": world.resource}
    ) as context:
        return sensor(context)


def config(world: World, survey: str = SURVEY) -> ProjectConfig:
    with world.platform.ledger.read() as conn:
        return ProjectConfig.from_json(projects.active(conn, survey).spec)


def admission(world: World, survey: str = SURVEY) -> Any:
    return tick(world, sensors.execution_tick(config(world, survey), 5))


def poll(world: World, cursor: str | None = None) -> dg.SensorResult:
    result = tick(world, sensors.poll_executions(5), cursor)
    assert isinstance(result, dg.SensorResult)
    return result


def delivered(result: dg.SensorResult) -> list[int]:
    numbers: list[int] = json.loads(result.cursor or "null")
    return numbers


def put(world: World, count: int) -> None:
    """So many messages for Dagster."""
    facts: dict[str, Any] = {"registered": 1}
    new = [Message("observation", SURVEY, "source_registry", facts) for _ in range(count)]
    now = world.clock.now()
    with world.platform.ledger.begin() as conn:
        outbox.put(conn, new, now=now, available_at=now)


# -- discovery


def test_a_claim_gets_one_run_whose_key_is_the_claims_token(here: World) -> None:
    here.add_survey()
    here.register("A1", "A2")
    clock = sensors.scheduler_tick(config(here), 5)
    first = tick(here, clock)
    assert isinstance(first, dg.SensorResult)
    (request,) = first.run_requests or []
    assert request.run_key == request.tags[names.TAG_CLAIM]
    assert request.run_config == {
        "ops": {"discover_sources_of_claim": {"config": {"claim": request.run_key}}}
    }
    again = tick(here, clock)
    assert [known.run_key for known in again.run_requests] == [request.run_key], "asked for until it begins"
    here.platform.discovery.run_batch(request.run_key or "")
    skipped = tick(here, clock)
    assert isinstance(skipped, dg.SkipReason)
    assert skipped.skip_message == "no batch: nothing_due"


# -- admission


def test_a_pending_source_gets_a_run_for_its_partition_under_a_key_of_its_own(here: World) -> None:
    (key,) = here.with_sources("A1")
    result = admission(here)
    (request,) = result.run_requests
    execution = here.execution(key)
    assert (request.partition_key, request.run_key) == (key, f"{execution.id}:1")
    assert request.tags[names.TAG_EXECUTION] == execution.id
    assert request.tags[names.TAG_SOURCE] == "A1"
    assert request.tags[names.TAG_KIND] == "execution"
    assert result.dynamic_partitions_requests == []


def test_the_same_execution_is_asked_for_again_only_when_its_launch_was_lost(here: World) -> None:
    (key,) = here.with_sources("A1")
    admission(here)
    assert isinstance(admission(here), dg.SkipReason)
    here.clock.advance(121)
    (request,) = admission(here).run_requests
    assert request.run_key == f"{here.execution(key).id}:2"


@pytest.mark.parametrize(
    ("status", "asked"), [(dg.DagsterRunStatus.QUEUED, False), (dg.DagsterRunStatus.STARTED, True)]
)
def test_a_launch_that_is_late_in_the_queue_is_not_lost(
    here: World, status: dg.DagsterRunStatus, *, asked: bool
) -> None:
    here.with_sources("A1")
    (request,) = admission(here).run_requests
    job = here.definitions.resolve_job_def(names.execution_job(SURVEY))
    place = RemoteRepositoryOrigin(RegisteredCodeLocationOrigin("here"), "__repository__")
    origin = RemoteJobOrigin(place, job.name)
    here.instance.create_run_for_job(job, tags=request.tags, status=status, remote_job_origin=origin)
    here.clock.advance(121)
    again = admission(here)
    assert isinstance(again, dg.SensorResult) is asked


def test_a_partition_that_dagster_does_not_know_is_added_with_the_run(here: World) -> None:
    (key,) = here.with_sources("A1")
    here.instance.delete_dynamic_partition(names.partitions_name(SURVEY), key)
    result = admission(here)
    (added,) = result.dynamic_partitions_requests
    assert list(added.partition_keys) == [key]
    assert [request.partition_key for request in result.run_requests] == [key]


def test_a_tick_without_anything_to_launch_says_why(here: World) -> None:
    here.add_survey()
    skipped = admission(here)
    assert skipped.skip_message == "nothing launched: no_pending_sources"


def test_a_tick_names_the_sources_that_are_held_and_the_reason(here: World) -> None:
    (key,) = here.with_sources("A1")
    admission(here)
    here.submit(key)
    here.archive.deposit("A1", sbid=200)
    here.discover()
    skipped = admission(here)
    assert skipped.skip_message == (
        "nothing launched: sources_skipped_not_ready; held: A1 (source_already_executing)"
    )


def test_a_tick_without_a_usable_profile_says_which_one_is_missing(here: World) -> None:
    here.with_sources("A1")
    with here.platform.ledger.begin() as conn:
        conn.execute(sa.update(daliuge_deployment_profile).values(name="another"))
    skipped = admission(here)
    assert "nothing launched" in skipped.skip_message
    assert "fake-daliuge" in skipped.skip_message


def test_few_launches_get_a_run_each(here: World) -> None:
    keys = here.with_sources(*(f"A{number}" for number in range(sensors.SINGLE_RUNS)))
    requests = admission(here).run_requests
    assert sorted(request.partition_key for request in requests) == sorted(keys)


def test_many_launches_over_neighbouring_keys_are_one_run_over_their_range(here: World) -> None:
    keys = here.with_sources(*(f"A{number:02}" for number in range(12)))
    (request,) = admission(here).run_requests
    assert request.partition_key is None
    known = list(here.instance.get_dynamic_partitions(names.partitions_name(SURVEY)))
    assert (request.tags[START_TAG], request.tags[END_TAG]) == (known[0], known[-1])
    assert set(known) == set(keys)
    result = here.materialize(known[0], known[-1])
    assert result.success
    assert len(here.daliuge.ever_started) == 12


def launches(world: World, count: int) -> tuple[list[str], list[Launch]]:
    """Admitted launches in the order of the partitions that Dagster knows."""
    world.with_sources(*(f"A{number:02}" for number in range(count)))
    world.admit()
    known = list(world.instance.get_dynamic_partitions(names.partitions_name(SURVEY)))
    due = {launch.execution.partition_key: launch for launch in world.platform.launcher.due(SURVEY)}
    return known, [due[key] for key in known]


def places(here: World) -> dict[str, int]:
    """Where Dagster has each key among its partitions."""
    known = here.instance.get_dynamic_partitions(names.partitions_name(SURVEY))
    return {key: place for place, key in enumerate(known)}


def spans(requests: list[dg.RunRequest]) -> list[tuple[str, str]]:
    return [
        (request.partition_key, request.partition_key)
        if request.partition_key
        else (request.tags[START_TAG], request.tags[END_TAG])
        for request in requests
    ]


def test_a_range_never_spans_a_partition_that_is_not_launched(here: World) -> None:
    keys, due = launches(here, 13)
    without = [launch for launch in due if launch.execution.partition_key not in {keys[5], keys[11]}]
    requests = sensors.run_requests(places(here), SURVEY, without)
    assert spans(requests) == [(keys[0], keys[4]), (keys[6], keys[10]), (keys[12], keys[12])]
    assert len({request.run_key for request in requests}) == 3


def test_a_launch_whose_partition_dagster_does_not_know_gets_a_run_of_its_own(here: World) -> None:
    keys, due = launches(here, 10)
    here.instance.delete_dynamic_partition(names.partitions_name(SURVEY), keys[4])
    requests = sensors.run_requests(places(here), SURVEY, due)
    assert spans(requests) == [(keys[0], keys[9]), (keys[4], keys[4])], "the others are neighbours now"
    assert requests[-1].run_key == due[4].run_key


def test_a_range_that_is_launched_again_has_another_run_key(here: World) -> None:
    here.with_sources(*(f"A{number:02}" for number in range(10)))
    (first,) = admission(here).run_requests
    here.clock.advance(121)
    (second,) = admission(here).run_requests
    assert first.tags[START_TAG] == second.tags[START_TAG]
    assert first.run_key != second.run_key


# -- poll


def test_the_poll_follows_a_session_to_its_end_and_tells_it_once(here: World) -> None:
    (key,) = here.with_sources("A1")
    cursor = poll(here).cursor
    here.admit()
    session = here.submit(key)
    here.daliuge.go(session, RUNNING)
    quiet = poll(here, cursor)
    assert quiet.asset_events == []
    assert quiet.skip_reason is not None
    assert quiet.skip_reason.skip_message == "nothing new: looked at 1"
    here.daliuge.go(session, FINISHED)
    here.clock.advance(10)
    ended = poll(here, quiet.cursor)
    assert keys_of(ended.asset_events) == [("execution_outcome", key), ("execution_outcome", None)]
    outcome, check = ended.asset_events
    assert isinstance(outcome, dg.AssetMaterialization)
    assert outcome.metadata["status"].value == "completed"
    assert isinstance(check, dg.AssetCheckEvaluation)
    assert (check.partition, check.passed) == (None, True)
    assert here.execution(key).status is Status.COMPLETED
    after = poll(here, ended.cursor)
    assert after.asset_events == []
    assert here.undelivered() == [message for message in here.undelivered() if message.correlation_id]


def test_the_poll_adds_the_partitions_of_what_it_tells(here: World) -> None:
    here.add_survey("one")
    here.add_survey("two")
    for survey in ("one", "two"):
        here.register("A1", survey=survey)
    here.archive.deposit("A1")
    key = here.discover("one")["A1"]
    assert here.discover("two")["A1"] == key
    here.clock.advance(200)
    result = poll(here)
    added = {
        request.partitions_def_name: list(request.partition_keys)
        for request in result.dynamic_partitions_requests or []
    }
    assert added == {"one_signatures": [key], "two_signatures": [key]}


def test_what_was_told_before_the_daemon_died_is_told_again(here: World) -> None:
    put(here, 3)
    first = poll(here, cursor := "[]")
    assert len(first.asset_events) == 3
    again = poll(here, cursor)  # the cursor of the first tick was never stored
    assert delivered(again) == delivered(first)
    assert len(again.asset_events) == 3
    assert poll(here, again.cursor).asset_events == []


def test_only_what_a_tick_told_counts_as_delivered_whatever_the_numbers(here: World) -> None:
    put(here, 3)
    numbers = [message.id for message in here.undelivered()]
    sensors.acknowledge(here.platform, json.dumps([numbers[0], numbers[2]]))
    assert [message.id for message in here.undelivered()] == [numbers[1]]
    late = poll(here)
    assert delivered(late) == [numbers[1]]


@pytest.mark.parametrize("cursor", [None, "", "[]"])
def test_a_cursor_without_numbers_delivers_nothing(here: World, cursor: str | None) -> None:
    put(here, 1)
    sensors.acknowledge(here.platform, cursor)
    assert len(here.undelivered()) == 1


def test_a_tick_tells_a_bounded_number_of_events_and_the_next_one_the_rest(here: World) -> None:
    put(here, sensors.EVENTS_PER_TICK + 10)
    first = poll(here)
    second = poll(here, first.cursor)
    assert (len(first.asset_events), len(second.asset_events)) == (sensors.EVENTS_PER_TICK, 10)
    assert max(delivered(first)) < min(delivered(second))


def test_a_batch_that_died_before_it_told_anything_is_told_by_the_poll(here: World) -> None:
    (key,) = here.with_sources("A1")
    told_before = keys_of(poll(here).asset_events)
    assert ("archive_metadata", key) not in told_before
    here.clock.advance(200)
    assert ("archive_metadata", key) in keys_of(poll(here).asset_events)


def test_a_manager_that_is_away_is_said_in_the_skip_message(here: World) -> None:
    (key,) = here.with_sources("A1")
    cursor = poll(here).cursor
    here.admit()
    here.submit(key)
    here.daliuge.manager.stop()
    result = poll(here, cursor)
    assert result.skip_reason is not None
    assert "1 could not be reached" in str(result.skip_reason.skip_message)
    assert here.execution(key).status is Status.RUNNING
