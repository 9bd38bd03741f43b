"""A survey that stages has one asset more, and Dagster never sees the URL of a file."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from beampipe_dagster.config.validation import load_project
from beampipe_dagster.defs import names
from beampipe_dagster.defs.assets import steps_of
from beampipe_dagster.defs.build import build_definitions
from beampipe_dagster.defs.resources import FixedPlatform
from beampipe_dagster_tests.definitions.world import materialized
from beampipe_dagster_tests.support.ledgers import SURVEY, opened
from beampipe_dagster_tests.support.staging import PASSWORD, StagingStage, new_staging_stage

DEMO = Path(__file__).resolve().parents[2] / "projects" / "wallaby_demo" / "wallaby_demo.yaml"


@pytest.fixture
def staging(migrated_sqlite: Path, tmp_path: Path) -> Iterator[StagingStage]:
    copy = tmp_path / "ledger.db"
    copy.write_bytes(migrated_sqlite.read_bytes())
    with opened(f"sqlite:///{copy}") as ledger, new_staging_stage(ledger, tmp_path) as made:
        yield made


def run(staging: StagingStage, key: str) -> tuple[dg.ExecuteInProcessResult, str]:
    """A run of the survey's steps, and everything that Dagster keeps of it."""
    definitions = build_definitions(FixedPlatform.of(staging.stage.platform))
    job = definitions.resolve_job_def(names.execution_job(SURVEY))
    with dg.DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions(names.partitions_name(SURVEY), [key])
        result = job.execute_in_process(instance=instance, raise_on_error=False, partition_key=key)
        kept = "\n".join(str(record) for record in instance.all_logs(result.run_id))
    return result, kept


def test_the_data_are_staged_between_the_metadata_and_the_manifest(staging: StagingStage) -> None:
    execution = staging.admitted()
    result, kept = run(staging, execution.partition_key)
    assert result.success
    told = [event.asset_key for event in result.get_asset_materialization_events()]
    steps = ["staged_data", "workflow_manifest", "prepared_graph", "physical_graph", "backend_run"]
    assert told == [names.asset_key(SURVEY, step) for step in steps]
    shown = materialized(result, "staged_data")[execution.partition_key]
    assert "visibility/72962" in str(shown)
    assert "visibility/72962" in kept
    assert [secret for secret in (PASSWORD, "X-Amz-Signature") if secret in kept] == []


def test_a_run_that_has_to_wait_ends_and_says_when_it_goes_on(
    staging: StagingStage, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    staging.script(delay_seconds=7200.0)
    execution = staging.admitted()
    result, kept = run(staging, execution.partition_key)
    assert not result.success
    assert "the archive is still staging" in kept
    assert staging.stage.execution(execution).next_launch_at is not None


def test_a_survey_that_stages_nothing_has_no_such_asset() -> None:
    config = load_project(DEMO.read_text(encoding="utf-8"))
    assert [step.name for step in steps_of(config)] == [
        "workflow_manifest",
        "prepared_graph",
        "physical_graph",
        "backend_run",
    ]
