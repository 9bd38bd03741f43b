"""What a survey looks like as a whole, told as observations of its registry when it has changed."""

import json
from datetime import timedelta
from typing import Any

import dagster as dg

from beampipe_dagster.assembly import Platform
from beampipe_dagster.config.project import ProjectConfig
from beampipe_dagster.defs import metadata, names
from beampipe_dagster.defs.resources import PlatformResource
from beampipe_dagster.ledger import gates, projects
from beampipe_dagster.ledger.projects import ProjectRevision
from beampipe_dagster.observe.survey_overview import survey_overview

TICKS_BETWEEN = 10
"""Ticks of a survey's clock between two overviews of it: ten minutes as long as nothing else is set."""

Told = dict[str, dict[str, Any]]
"""By survey: the fingerprint of the last overview that was told, and its time in seconds."""


def survey_overviews(interval_seconds: int) -> dg.SensorDefinition:
    """The clock of all surveys' overviews: at most one event a survey in ten ticks' time, none without news."""
    every = timedelta(seconds=max(1, interval_seconds) * TICKS_BETWEEN)

    @dg.sensor(
        name="survey_overviews",
        minimum_interval_seconds=interval_seconds,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Shows each survey as a whole at its source_registry: states, sky, freshness, archives.",
    )
    def tick(
        context: dg.SensorEvaluationContext, platform: PlatformResource
    ) -> dg.SensorResult | dg.SkipReason:
        found, told = overviews(platform.get(), json.loads(context.cursor or "{}"), every=every)
        if not found:
            return dg.SkipReason("no survey has changed since its last overview, or that is too new")
        return dg.SensorResult(asset_events=found, cursor=json.dumps(told))

    return tick


def overviews(platform: Platform, told: Told, *, every: timedelta) -> tuple[list[dg.AssetObservation], Told]:
    """Overviews that are due and news, and what has been told with them.

    A survey without sources has nothing to show. One whose revision cannot be read says so with an asset of its own.
    """
    now = platform.clock.now()
    found: list[dg.AssetObservation] = []
    with platform.ledger.read() as conn:
        surveys = [survey for survey in map(_config, projects.all_active(conn)) if survey is not None]
        kept = {
            config.metadata.id: told[config.metadata.id] for config in surveys if config.metadata.id in told
        }
        for config in surveys:
            project_id = config.metadata.id
            last = kept.get(project_id)
            if last is not None and now.timestamp() < last["at"] + every.total_seconds():
                continue
            rules = config.automation.discovery
            seen = survey_overview(
                conn,
                project_id=project_id,
                stale_after_hours=rules.stale_after_hours if rules else None,
                now=now,
            )
            if not seen.total or (last is not None and last["seen"] == seen.fingerprint):
                continue
            archives = [row for row in gates.everything(conn) if row.name in config.adapters.required]
            key = names.asset_key(project_id, names.SOURCE_REGISTRY)
            found.append(dg.AssetObservation(asset_key=key, metadata=metadata.of_overview(seen, archives)))
            kept[project_id] = {"seen": seen.fingerprint, "at": now.timestamp()}
    return found, kept


def _config(revision: ProjectRevision) -> ProjectConfig | None:
    try:
        return ProjectConfig.from_json(revision.spec)
    except Exception:  # noqa: BLE001  # whatever is wrong with one survey must not hide the others
        return None
