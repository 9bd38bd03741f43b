"""Assembles the code location from the surveys that are active in the ledger."""

from __future__ import annotations

import warnings
from collections.abc import Iterable

import dagster as dg

from beampipe_dagster.assembly import Platform
from beampipe_dagster.config.project import ProjectConfig
from beampipe_dagster.defs import names
from beampipe_dagster.defs.assets import steps_of, survey_assets
from beampipe_dagster.defs.checks import survey_checks
from beampipe_dagster.defs.execution_jobs import EXECUTION_JOBS
from beampipe_dagster.defs.jobs import OPERATOR_JOBS, discover_batch
from beampipe_dagster.defs.operate import CONTROL_JOBS
from beampipe_dagster.defs.overview import survey_overviews
from beampipe_dagster.defs.resources import PlatformResource
from beampipe_dagster.defs.retention import prune_partitions, prune_partitions_daily
from beampipe_dagster.defs.sensors import execution_tick, poll_executions, scheduler_tick
from beampipe_dagster.defs.watermarks import sweep_sensors, watermark_sweep
from beampipe_dagster.ledger import projects
from beampipe_dagster.ledger.projects import ProjectRevision

# Backfill policies are "beta" in Dagster; the pinned version is the one that the tests run.
warnings.filterwarnings("ignore", category=dg.BetaWarning)


def build_definitions(platform: PlatformResource | None = None) -> dg.Definitions:
    """The code location.

    A survey whose stored revision cannot be read shows as an asset that says so, and never takes the others
    down. A survey that is added later appears when the code location is reloaded.

    Parameters
    ----------
    platform
        Where the services come from; the environment by default.
    """
    resource = platform or PlatformResource()
    services = resource.get()
    parts = [_shared(services)]
    parts.extend(_survey(services, revision) for revision in _revisions(services))
    # The UI's own runs of assets take the location's executor; a process for each step would cost seconds.
    common = dg.Definitions(resources={"platform": resource}, executor=dg.in_process_executor)
    return dg.Definitions.merge(*parts, common)


def _revisions(services: Platform) -> Iterable[ProjectRevision]:
    with services.ledger.read() as conn:
        return projects.all_active(conn)


def _shared(services: Platform) -> dg.Definitions:
    interval = max(1, round(services.settings.poll_interval_seconds))
    return dg.Definitions(
        jobs=[
            discover_batch,
            prune_partitions,
            watermark_sweep,
            *OPERATOR_JOBS,
            *EXECUTION_JOBS,
            *CONTROL_JOBS,
        ],
        schedules=[prune_partitions_daily],
        sensors=[poll_executions(interval), survey_overviews(services.settings.tick_interval_seconds)],
    )


def _survey(services: Platform, revision: ProjectRevision) -> dg.Definitions:
    try:
        config = ProjectConfig.from_json(revision.spec)
        return survey_definitions(config, services.settings.tick_interval_seconds)
    except Exception as error:  # noqa: BLE001  # whatever is wrong with one survey must not hide the others
        return dg.Definitions(
            assets=[
                dg.AssetSpec(
                    key=names.asset_key(revision.project_id, "broken_survey"),
                    group_name=revision.project_id,
                    owners=names.OWNERS,
                    description=f"Revision {revision.version} of {revision.project_id} cannot be loaded: {error}. "
                    "Correct its YAML and add it again: `beampipe project add FILE`.",
                )
            ]
        )


def survey_definitions(config: ProjectConfig, interval_seconds: int) -> dg.Definitions:
    """Assets, checks, the execution job and the two sensors of one survey."""
    project_id = config.metadata.id
    job = dg.define_asset_job(
        names.execution_job(project_id),
        selection=dg.AssetSelection.assets(
            *(names.asset_key(project_id, spec.name) for spec in steps_of(config))
        ),
        executor_def=dg.in_process_executor,
        description="Takes an admitted execution from its manifest to a running session.",
        tags={names.TAG_PROJECT: project_id, names.TAG_KIND: "execution"},
    )
    return dg.Definitions(
        assets=survey_assets(config),
        asset_checks=survey_checks(config),
        jobs=[job],
        sensors=[
            scheduler_tick(config, interval_seconds),
            execution_tick(config, interval_seconds),
            *sweep_sensors(config, interval_seconds),
        ],
    )
