"""Partitions of superseded signatures leave Dagster, and come back with their signature."""

from __future__ import annotations

import dagster as dg
import pytest

from beampipe_dagster.defs import names, retention
from beampipe_dagster_tests.definitions.world import SURVEY, World, failure

DAY = 86_400.0
PARTITIONS = names.partitions_name(SURVEY)


def run(world: World, *projects: str) -> dg.ExecuteInProcessResult:
    return retention.prune_partitions.execute_in_process(
        run_config={"ops": {"prune_partitions_of_surveys": {"config": {"projects": list(projects)}}}},
        resources={"platform": world.resource},
        instance=world.instance,
        raise_on_error=False,
    )


def live(world: World) -> set[str]:
    return set(world.instance.get_dynamic_partitions(PARTITIONS))


def executed(world: World) -> None:
    """Run what waits, to its end."""
    for execution in world.admit():
        world.finish(world.submit(execution.partition_key))
    world.clock.advance(60)
    world.platform.poll.tick()


def superseded(world: World) -> tuple[str, str]:
    """A source whose second signature was executed: both keys."""
    (first,) = world.with_sources("A1")
    executed(world)
    world.archive.deposit("A1", sbid=200)
    second = world.discover()["A1"]
    executed(world)
    return first, second


def test_a_superseded_partition_goes_after_its_days(here: World) -> None:
    first, second = superseded(here)
    assert run(here).success
    assert live(here) == {first, second}
    here.clock.advance(31 * DAY)
    result = run(here)
    assert result.success
    assert live(here) == {second}
    (output,) = [event for event in result.all_events if event.event_type_value == "STEP_OUTPUT"]
    assert output.step_output_data.metadata["removed"].value == {SURVEY: 1}
    assert run(here).success, "once more changes nothing"
    assert live(here) == {second}


def test_a_partition_whose_signature_comes_back_is_added_again(here: World) -> None:
    first, second = superseded(here)
    here.clock.advance(31 * DAY)
    assert run(here).success
    here.archive.files["A1"] = here.archive.files["A1"][:1]
    assert here.discover() == {}, "what vanished is believed at the second look"
    here.clock.advance(3600)
    assert here.discover() == {"A1": first}
    assert run(here).success
    assert live(here) == {first, second}


def test_a_turn_that_died_between_ledger_and_dagster_is_finished_by_the_next(here: World) -> None:
    first, second = superseded(here)
    here.clock.advance(31 * DAY)
    here.platform.retention.retire(SURVEY)
    assert live(here) == {first, second}
    assert run(here).success
    assert live(here) == {second}


def test_a_key_that_comes_back_while_it_is_deleted_is_not_lost(
    here: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = superseded(here)
    here.clock.advance(31 * DAY)
    delete = here.instance.delete_dynamic_partition

    def returning(name: str, key: str) -> None:
        here.archive.files["A1"] = here.archive.files["A1"][:1]
        here.discover()
        here.clock.advance(3600)
        assert here.discover() == {"A1": first}
        delete(name, key)

    monkeypatch.setattr(here.instance, "delete_dynamic_partition", returning)
    assert run(here).success
    assert live(here) == {first, second}


def test_what_somebody_typed_into_dagster_is_left_alone(here: World) -> None:
    here.add_survey()
    here.instance.add_dynamic_partitions(PARTITIONS, ["typed@by-hand"])
    assert run(here, SURVEY).success
    assert live(here) == {"typed@by-hand"}


def test_an_unknown_survey_is_refused_in_one_sentence(here: World) -> None:
    here.add_survey()
    assert failure(run(here, "nobody"))["code"] == "project_not_found"


def test_it_runs_every_day_by_itself(here: World) -> None:
    here.add_survey()
    repository = here.load().get_repository_def()
    (schedule,) = [one for one in repository.schedule_defs if one.name == "prune_partitions_daily"]
    assert schedule.job_name == "prune_partitions"
    assert schedule.default_status is dg.DefaultScheduleStatus.RUNNING
    assert schedule.cron_schedule == retention.DAILY
