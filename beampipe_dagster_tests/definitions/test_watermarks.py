"""Sweeps in Dagster: a clock for surveys with a watermark, and a job that says what was found."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import dagster as dg
import pytest

from beampipe_dagster.config.project import ProjectConfig
from beampipe_dagster.defs.watermarks import sweep_sensors, watermark_sweep
from beampipe_dagster.discovery.archive import AnswerClass
from beampipe_dagster.ledger import projects
from beampipe_dagster_tests.definitions.world import SURVEY, World, failure
from beampipe_dagster_tests.support.engine_archive import EngineArchives

TEMPLATE = "SELECT * FROM ivoa.obscore WHERE filename = '{source_identifier}'"


@pytest.fixture
def swept(here: World) -> tuple[World, EngineArchives]:
    """The survey with a watermark, and an archive that answers sweeps."""
    here.add_survey()
    archive = EngineArchives(here.folder / "archive", here.clock)
    here.platform = replace(here.platform, archives=archive)
    path = here.folder / f"{SURVEY}.yaml"
    text = path.read_text("utf-8").splitlines()
    (line,) = [number for number, one in enumerate(text) if one.lstrip(" -").startswith("template:")]
    indent = text[line][: len(text[line]) - len(text[line].lstrip())]
    text[line : line + 1] = [
        f'{indent}template: "{TEMPLATE}"',
        f"{indent}watermark: {{column: obs_release_date}}",
    ]
    path.write_text("\n".join(text), "utf-8")
    here.platform.projects.add_project(path, actor="test")
    here.register("A", "B")
    return here, archive


def config(world: World) -> ProjectConfig:
    with world.platform.ledger.read() as conn:
        return ProjectConfig.from_json(projects.active(conn, SURVEY).spec)


def tick(world: World) -> Any:
    (sensor,) = sweep_sensors(config(world), 5)
    with dg.build_sensor_context(instance=world.instance, resources={"platform": world.resource}) as context:
        return sensor(context)


def run(world: World) -> dg.ExecuteInProcessResult:
    return watermark_sweep.execute_in_process(
        run_config={"ops": {"sweep_survey": {"config": {"project": SURVEY}}}},
        resources={"platform": world.resource},
        instance=world.instance,
        raise_on_error=False,
    )


def test_a_survey_without_a_watermark_has_no_clock_of_sweeps(here: World) -> None:
    here.add_survey()
    assert sweep_sensors(config(here), 5) == []


def test_the_clock_asks_for_one_sweep_in_each_span_of_time(swept: tuple[World, EngineArchives]) -> None:
    world, archive = swept
    asked = [tick(world) for _ in range(2)]
    assert len({result.run_requests[0].run_key for result in asked}) == 1
    assert archive.asked == []
    assert run(world).success
    assert isinstance(tick(world), dg.SkipReason)
    world.clock.advance(15 * 60)
    later = tick(world).run_requests[0]
    assert later.run_key != asked[0].run_requests[0].run_key
    assert later.run_config["ops"]["sweep_survey"]["config"] == {"project": SURVEY}


def test_a_sweep_says_what_it_found(swept: tuple[World, EngineArchives]) -> None:
    world, archive = swept
    archive.add("A", "2025-12-01T00:00:00")
    result = run(world)
    assert result.success
    (event,) = [one for one in result.all_node_events if one.is_successful_output]
    records = event.step_output_data.metadata["sweeps"].value.records  # type: ignore[union-attr]  # a table's
    assert [record.data["marked"] for record in records] == ["2"]


def test_a_sweep_that_fails_is_a_short_failure(swept: tuple[World, EngineArchives]) -> None:
    world, archive = swept
    archive.fault = AnswerClass.TIMEOUT
    result = run(world)
    assert not result.success
    assert failure(result)["code"] == "archive_timeout"


def test_a_code_location_with_a_watermark_can_be_loaded(swept: tuple[World, EngineArchives]) -> None:
    world, _ = swept
    definitions = world.load()
    dg.Definitions.validate_loadable(definitions)
    sensors = {sensor.name for sensor in definitions.get_repository_def().sensor_defs}
    assert f"{SURVEY}_watermark_tick" in sensors
