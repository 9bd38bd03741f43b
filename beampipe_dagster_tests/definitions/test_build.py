"""The code location: what is in it, that it loads, and that one broken survey hides no other."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import dagster as dg

from beampipe_dagster.config.validation import load_project
from beampipe_dagster.defs import names
from beampipe_dagster.defs.build import build_definitions, survey_definitions
from beampipe_dagster.defs.jobs import OPERATOR_JOBS, discover_batch
from beampipe_dagster.defs.resources import FixedPlatform
from beampipe_dagster.defs.sensors import poll_executions
from beampipe_dagster.ledger import projects
from beampipe_dagster_tests.definitions.world import SURVEY, World

SNAPSHOT = Path(__file__).with_name("demo_survey.snapshot.json")
DEMO = Path(__file__).resolve().parents[2] / "projects" / "wallaby_demo" / "wallaby_demo.yaml"
SHARED_JOBS = {
    "prune_partitions",
    "watermark_sweep",
    "discover_batch",
    "register_sources",
    "discover_sources",
    "set_sources_enabled",
    "prepare_execution",
    "launch_execution",
    "cancel_execution",
    "retry_execution",
    "hold",
    "release",
    "release_sources",
}
CHAIN = [
    "source_registry",
    "archive_metadata",
    "workflow_manifest",
    "prepared_graph",
    "physical_graph",
    "backend_run",
    "execution_outcome",
]


def demo_definitions(here: World) -> dg.Definitions:
    config = load_project(DEMO.read_text(encoding="utf-8"))
    shared = dg.Definitions(
        jobs=[discover_batch, *OPERATOR_JOBS],
        sensors=[poll_executions(2)],
        resources={"platform": here.resource},
    )
    return dg.Definitions.merge(survey_definitions(config, 5), shared)


def spec_of_asset(spec: dg.AssetSpec) -> dict[str, Any]:
    return {
        "deps": sorted(dep.asset_key.to_user_string() for dep in spec.deps),
        "group": spec.group_name,
        "kinds": sorted(spec.kinds),
        "owners": list(spec.owners),
        "partitions": getattr(spec.partitions_def, "name", None),
        "description": spec.description,
        "metadata": sorted(key for key in spec.metadata if key != "dagster/code_references"),
    }


def described(definitions: dg.Definitions) -> dict[str, Any]:
    """Everything that an operator sees by name, as JSON."""
    repository = definitions.get_repository_def()
    graph = definitions.resolve_asset_graph()
    return {
        "assets": {
            spec.key.to_user_string(): {
                **spec_of_asset(spec),
                "materializable": spec.key in graph.materializable_asset_keys,
            }
            for spec in definitions.resolve_all_asset_specs()
        },
        "checks": {
            key.to_user_string(): {
                "description": graph.get_check_spec(key).description,
                "blocking": graph.get_check_spec(key).blocking,
            }
            for key in graph.asset_check_keys
        },
        "jobs": {
            job.name: {"description": job.description, "tags": dict(sorted(job.tags.items()))}
            for job in repository.get_all_jobs()
            if not job.name.startswith("__")
        },
        "sensors": {
            sensor.name: {
                "description": sensor.description,
                "seconds": sensor.minimum_interval_seconds,
                "status": sensor.default_status.value,
                "job": sensor.job_name if sensor.targets else None,
            }
            for sensor in repository.sensor_defs
        },
    }


def paths(keys: Iterable[dg.AssetKey]) -> set[tuple[str, ...]]:
    return {tuple(key.path) for key in keys}


def test_the_demo_surveys_definitions_are_those_of_the_snapshot(here: World) -> None:
    found = json.loads(json.dumps(described(demo_definitions(here)), sort_keys=True))
    if os.environ.get("BEAMPIPE_RENEW_SNAPSHOT") == "1":
        SNAPSHOT.write_text(json.dumps(found, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    kept = json.loads(SNAPSHOT.read_text(encoding="utf-8"))
    assert found == kept, (
        "What operators see of the demo survey has changed. When that is meant, renew the snapshot and look at "
        "its diff: BEAMPIPE_RENEW_SNAPSHOT=1 pytest beampipe_dagster_tests/definitions/test_build.py"
    )


def test_a_code_location_with_two_surveys_can_be_loaded(here: World) -> None:
    here.add_survey("one")
    here.add_survey("two")
    dg.Definitions.validate_loadable(here.load())


def test_a_code_location_without_a_survey_can_be_loaded_and_has_the_operators_jobs(here: World) -> None:
    definitions = here.load()
    dg.Definitions.validate_loadable(definitions)
    repository = definitions.get_repository_def()
    assert {job.name for job in repository.get_all_jobs()} == SHARED_JOBS
    assert [sensor.name for sensor in repository.sensor_defs] == ["poll_executions", "survey_overviews"]


def test_two_surveys_share_neither_assets_nor_partitions_nor_clocks(here: World) -> None:
    here.add_survey("one")
    here.add_survey("two")
    definitions = here.load()
    specs = definitions.resolve_all_asset_specs()
    assert paths(spec.key for spec in specs) == {
        (survey, name) for survey in ("one", "two") for name in CHAIN
    }
    for spec in specs:
        survey = spec.key.path[0]
        assert spec.group_name == survey
        assert all(dep.asset_key.path[0] == survey for dep in spec.deps)
        expected = None if spec.key.path[-1] == "source_registry" else f"{survey}_signatures"
        assert getattr(spec.partitions_def, "name", None) == expected
    repository = definitions.get_repository_def()
    jobs = {job.name for job in repository.get_all_jobs() if not job.name.startswith("__")}
    assert jobs == SHARED_JOBS | {"one_execute", "two_execute"}
    assert {sensor.name for sensor in repository.sensor_defs} == {
        "poll_executions",
        "survey_overviews",
        "one_scheduler_tick",
        "one_execution_tick",
        "two_scheduler_tick",
        "two_execution_tick",
    }


def test_the_assets_of_a_survey_follow_each_other_in_one_line(here: World) -> None:
    here.add_survey()
    deps = {
        spec.key.path[-1]: [dep.asset_key.path[-1] for dep in spec.deps]
        for spec in here.load().resolve_all_asset_specs()
    }
    assert deps == {name: [before] for before, name in pairwise(CHAIN)} | {CHAIN[0]: []}


def test_every_run_does_its_steps_in_one_process_also_one_that_the_ui_makes_of_assets(here: World) -> None:
    here.add_survey()
    repository = here.load().get_repository_def()
    executors = {job.name: job.executor_def.name for job in repository.get_all_jobs()}
    assert "__ASSET_JOB" in executors
    assert set(executors.values()) == {"in_process"}


def test_no_check_has_partitions(here: World) -> None:
    here.add_survey()
    graph = here.load().resolve_asset_graph()
    assert len(graph.asset_check_keys) == 3
    assert [graph.get_check_spec(key).partitions_def for key in graph.asset_check_keys] == [None] * 3


def test_a_revision_that_cannot_be_read_says_so_and_hides_no_other_survey(here: World) -> None:
    here.add_survey("good")
    with here.platform.ledger.begin() as conn:
        projects.add_revision(
            conn,
            revision_id=here.platform.ids.new(),
            project_id="bad",
            spec={"metadata": {"id": "bad"}, "discovery": "none"},
            spec_sha256="0" * 64,
            source_text="",
            graph_sha256=None,
            now=here.clock.now(),
        )
    definitions = here.load()
    dg.Definitions.validate_loadable(definitions)
    specs = {tuple(spec.key.path): spec for spec in definitions.resolve_all_asset_specs()}
    assert {key for key in specs if key[0] == "good"} == {("good", name) for name in CHAIN}
    broken = specs["bad", "broken_survey"]
    assert [key for key in specs if key[0] == "bad"] == [("bad", "broken_survey")]
    assert broken.description is not None
    assert "Revision 1 of bad cannot be loaded" in broken.description
    assert "beampipe project add" in broken.description
    assert [
        sensor.name for sensor in definitions.get_repository_def().sensor_defs if "bad" in sensor.name
    ] == []


def test_a_survey_that_is_switched_off_looks_for_nothing_and_launches_only_what_operators_ask_for() -> None:
    text = DEMO.read_text(encoding="utf-8").replace("enabled: true", "enabled: false")
    sensors = survey_definitions(load_project(text), 5).sensors or []
    assert {sensor.name: sensor.default_status for sensor in sensors} == {
        "wallaby_demo_scheduler_tick": dg.DefaultSensorStatus.STOPPED,
        "wallaby_demo_execution_tick": dg.DefaultSensorStatus.RUNNING,
    }


def test_a_survey_that_was_added_appears_when_the_code_location_is_loaded_again(here: World) -> None:
    here.add_survey("one")
    assert names.asset_key("two", "backend_run") not in here.load().resolve_asset_graph().get_all_asset_keys()
    here.add_survey("two")
    assert names.asset_key("two", "backend_run") in here.load().resolve_asset_graph().get_all_asset_keys()


def test_a_platform_that_was_made_elsewhere_is_the_same_in_every_run(here: World) -> None:
    found: list[object] = []

    @dg.op
    def look(platform: FixedPlatform) -> None:
        found.append(platform.get())

    @dg.job(resource_defs={"platform": here.resource})
    def job() -> None:
        look()

    assert job.execute_in_process().success
    assert found == [here.platform]
    build_definitions(here.resource)
    assert names.execution_job(SURVEY) == "toy_execute"
