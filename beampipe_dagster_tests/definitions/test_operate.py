"""The operator's hand in the launchpad."""

from __future__ import annotations

from typing import Any

import dagster as dg
import pytest

from beampipe_dagster.defs import operate
from beampipe_dagster_tests.definitions.world import SURVEY, World, failure


def run(world: World, job: dg.JobDefinition, op: str, **config: Any) -> dg.ExecuteInProcessResult:
    return job.execute_in_process(
        run_config={"ops": {op: {"config": config}}},
        resources={"platform": world.resource},
        instance=world.instance,
        raise_on_error=False,
    )


def test_a_hold_keeps_a_survey_from_being_admitted_until_it_is_released(here: World) -> None:
    here.add_survey(SURVEY)
    assert run(here, operate.hold, "put_hold", scope="project", subject=SURVEY, reason="maintenance").success
    assert here.platform.admission.tick(SURVEY).skip_reason == "project_held"
    again = run(here, operate.hold, "put_hold", scope="project", subject=SURVEY, reason="maintenance")
    assert failure(again)["code"] == "already_held"
    assert run(here, operate.release, "take_hold", scope="project", subject=SURVEY, reason="done").success
    assert here.platform.admission.tick(SURVEY).skip_reason != "project_held"


@pytest.mark.parametrize(
    ("job", "op"), [(operate.cancel_execution, "cancel"), (operate.retry_execution, "retry")]
)
def test_an_unknown_execution_is_told_in_one_line(here: World, job: dg.JobDefinition, op: str) -> None:
    here.add_survey(SURVEY)
    assert failure(run(here, job, op, execution="none", reason="a try"))["code"] == "execution_not_found"


def test_a_release_of_sources_of_which_nothing_failed_changes_nothing(here: World) -> None:
    here.add_survey(SURVEY)
    refused = run(here, operate.release_sources, "forgive", project=SURVEY, sources=["A"])
    assert failure(refused)["code"] == "source_not_registered"
