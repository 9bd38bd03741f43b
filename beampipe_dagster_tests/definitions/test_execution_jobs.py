"""Looking ahead and launching from the launchpad."""

from __future__ import annotations

from typing import Any

import dagster as dg

from beampipe_dagster.defs import execution_jobs
from beampipe_dagster_tests.definitions.world import SURVEY, World, failure


def run(world: World, job: dg.JobDefinition, op: str, **config: Any) -> dg.ExecuteInProcessResult:
    return job.execute_in_process(
        run_config={"ops": {op: {"config": {"project": SURVEY, **config}}}},
        resources={"platform": world.resource},
        instance=world.instance,
        raise_on_error=False,
    )


def facts(result: dg.ExecuteInProcessResult) -> dict[str, Any]:
    """What the run's one op shows."""
    (event,) = (event for event in result.all_events if event.is_successful_output)
    return {name: value.value for name, value in event.step_output_data.metadata.items()}


def test_a_look_ahead_shows_what_would_run_and_launches_nothing(here: World) -> None:
    (key,) = here.with_sources("A1")
    shown = facts(run(here, execution_jobs.prepare_execution, "look_ahead"))
    assert shown["totals"]["executions"] == 1
    assert [one["partition_key"] for one in shown["executions"]] == [key]
    assert len(here.admit()) == 1


def test_a_launch_creates_the_execution_that_the_clock_then_starts(here: World) -> None:
    (key,) = here.with_sources("A1")
    result = run(here, execution_jobs.launch_execution, "launch_by_hand", sources=["A1"], idempotency_key="k")
    assert facts(result)["partition"] == key
    assert here.execution(key).created_by == "launchpad"
    again = run(here, execution_jobs.launch_execution, "launch_by_hand", sources=["A1"], idempotency_key="k")
    assert facts(again)["replayed"] == "True"
    refused = run(here, execution_jobs.launch_execution, "launch_by_hand", sources=["A1"])
    assert failure(refused)["code"] == "source_already_executing"
