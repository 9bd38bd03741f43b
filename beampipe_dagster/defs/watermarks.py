"""New rows found for all sources of a survey at once: the job that sweeps, and the sensor that asks for it."""

import dagster as dg
from pydantic import Field

from beampipe_dagster.config.project import ProjectConfig
from beampipe_dagster.defs import metadata, names
from beampipe_dagster.defs.jobs import fail
from beampipe_dagster.defs.resources import PlatformResource
from beampipe_dagster.errors import BeampipeError


class WatermarkSweepConfig(dg.Config):
    """Which survey's archives are asked what is new."""

    project: str = Field(description="The survey's id.")


@dg.op(tags={names.TAG_KIND: "discovery"}, out=dg.Out(dg.Nothing))
def sweep_survey(
    context: dg.OpExecutionContext, config: WatermarkSweepConfig, platform: PlatformResource
) -> None:
    """Ask what is new, and ask for looks at the sources that it belongs to."""
    try:
        found = platform.get().watermarks.sweep(config.project)
    except BeampipeError as error:
        raise fail(error) from error
    columns = ["query", "new_rows", "unknown_rows", "marked", "waiting", "position"]
    rows = [{name: str(one.as_dict()[name]) for name in columns} for one in found.sweeps]
    context.add_output_metadata(
        {"sweeps": metadata.table(rows, columns), "skipped": metadata.text(found.skip_reason or "no")}
    )
    if found.errors:
        raise fail(found.errors[0])


@dg.job(
    executor_def=dg.in_process_executor,
    description="Asks the archives what is new for all sources of a survey at once; changes no signature.",
)
def watermark_sweep() -> None:
    """A sweep of one survey."""
    sweep_survey()


def sweep_sensors(config: ProjectConfig, interval_seconds: int) -> list[dg.SensorDefinition]:
    """A survey's clock of sweeps; none where no query has a watermark."""
    project_id = config.metadata.id
    every = [query.watermark.every_minutes * 60 for query in config.discovery.queries if query.watermark]
    if not every:
        return []
    rules = config.automation.discovery
    running = rules is not None and rules.enabled

    @dg.sensor(
        name=f"{project_id}_watermark_tick",
        job=watermark_sweep,
        minimum_interval_seconds=interval_seconds,
        default_status=dg.DefaultSensorStatus.RUNNING if running else dg.DefaultSensorStatus.STOPPED,
        description=f"Asks the archives what is new for all sources of {project_id}, as often as its queries say.",
    )
    def tick(platform: PlatformResource) -> dg.SensorResult | dg.SkipReason:
        services = platform.get()
        due = services.watermarks.due(project_id)
        if not due:
            return dg.SkipReason("no sweep is due")
        # One run at most in each span of time, whatever becomes of it: a sweep that fails is tried in the next.
        span = int(services.clock.now().timestamp() // min(every))
        request = dg.RunRequest(
            run_key=f"{project_id}:watermark:{span}",
            run_config={"ops": {"sweep_survey": {"config": {"project": project_id}}}},
            tags={names.TAG_PROJECT: project_id, names.TAG_KIND: "discovery"},
        )
        return dg.SensorResult(run_requests=[request])

    return [tick]
