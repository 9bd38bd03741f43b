"""Op jobs about executions, for the launchpad: look ahead, and launch by hand."""

import dagster as dg
from pydantic import Field

from beampipe_dagster.defs import metadata
from beampipe_dagster.defs.jobs import fail
from beampipe_dagster.defs.resources import PlatformResource
from beampipe_dagster.errors import BeampipeError
from beampipe_dagster.execution.options import LaunchOptions
from beampipe_dagster.execution.request import LaunchRequest

ACTOR = "launchpad"


class PrepareExecutionConfig(dg.Config):
    """What to look ahead at."""

    project: str = Field(description="The survey's id.")
    sources: list[str] = Field(
        default=[], description="Source identifiers; empty means all that are pending."
    )
    profile: str | None = Field(default=None, description="A deployment profile; by default the survey's.")


class LaunchExecutionConfig(dg.Config):
    """One execution over these sources."""

    project: str = Field(description="The survey's id.")
    sources: list[str] = Field(description="Source identifiers, e.g. HIPASSJ1318-21.")
    profile: str | None = Field(default=None, description="A deployment profile; by default the survey's.")
    idempotency_key: str | None = Field(
        default=None, description="The same key and request give the same execution; visible ASCII."
    )
    submit: bool = Field(default=True, description="False ends with the physical graph: nothing is run.")
    stage: bool | None = Field(
        default=None, description="Whether the data are staged; without it as the survey says."
    )
    force: bool = Field(default=False, description="Overrule the caps of the survey and of the platform.")


@dg.op(out=dg.Out(dg.Nothing))
def look_ahead(
    context: dg.OpExecutionContext, config: PrepareExecutionConfig, platform: PlatformResource
) -> None:
    """Say what would run and what speaks against it; nothing is changed."""
    try:
        found = platform.get().preparation.prepare(
            config.project, config.sources or None, profile=config.profile
        )
    except BeampipeError as error:
        raise fail(error) from error
    shown = found.as_dict()
    problems = [
        *shown["problems"],
        *(problem for one in (*shown["sources"], *shown["executions"]) for problem in one["problems"]),
    ]
    context.add_output_metadata(
        {
            "ready": metadata.text(found.ready),
            "totals": dg.MetadataValue.json(shown["totals"]),
            "caps": dg.MetadataValue.json(shown["caps"]),
            "profile": metadata.text(found.profile),
            "problems": metadata.table(
                [{"code": one["code"], "message": one["message"], "hint": one["hint"]} for one in problems],
                ["code", "message", "hint"],
            ),
            "executions": dg.MetadataValue.json(shown["executions"]),
        }
    )


@dg.job(
    executor_def=dg.in_process_executor,
    description="What would run now: manifests, graphs, caps and everything that speaks against it. Changes nothing.",
)
def prepare_execution() -> None:
    """A look ahead from the launchpad."""
    look_ahead()


@dg.op(out=dg.Out(dg.Nothing))
def launch_by_hand(
    context: dg.OpExecutionContext, config: LaunchExecutionConfig, platform: PlatformResource
) -> None:
    """Create one execution over the sources; the survey's execution tick starts its run."""
    request = LaunchRequest(
        config.project,
        tuple(config.sources),
        ACTOR,
        profile=config.profile,
        options=LaunchOptions(do_stage=config.stage, do_submit=config.submit),
        key=config.idempotency_key,
        force=config.force,
    )
    try:
        done = platform.get().admission.launch(request)
    except BeampipeError as error:
        raise fail(error) from error
    context.add_output_metadata(
        {
            "execution": metadata.text(done.execution.id),
            "partition": metadata.text(done.execution.partition_key),
            "replayed": metadata.text(done.replayed),
        }
    )


@dg.job(
    executor_def=dg.in_process_executor,
    description="Launch one execution over sources of a survey, beside what the clock admits.",
)
def launch_execution() -> None:
    """A launch from the launchpad."""
    launch_by_hand()


EXECUTION_JOBS = [prepare_execution, launch_execution]
