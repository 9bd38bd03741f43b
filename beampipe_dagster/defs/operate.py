"""The operator's hand on what runs, from the launchpad: the same services as the command line's."""

from typing import Any, Literal

import dagster as dg
from pydantic import Field

from beampipe_dagster.defs import metadata
from beampipe_dagster.defs.jobs import fail
from beampipe_dagster.defs.resources import PlatformResource
from beampipe_dagster.errors import BeampipeError
from beampipe_dagster.ledger.holds import Scope

ACTOR = "launchpad"


class ExecutionConfig(dg.Config):
    """An execution, and why something is done to it."""

    execution: str = Field(description="The execution's id, as in the tag beampipe/execution of its run.")
    reason: str = Field(description="Why; it is kept in the execution's story.")


class HoldConfig(dg.Config):
    """Something that nothing is to be started of."""

    scope: Literal["source", "execution", "project", "profile"] = Field(description="What it is.")
    subject: str = Field(description="The name of a source, project or profile, or the id of an execution.")
    project: str = Field(default="", description="For a source: its survey's id.")
    reason: str = Field(description="Why; it is shown wherever something waits for it.")
    hours: float | None = Field(default=None, description="How long; without it until it is released.")


class ReleaseConfig(dg.Config):
    """A hold that is to be taken away."""

    scope: Literal["source", "execution", "project", "profile"] = Field(description="What is held.")
    subject: str = Field(description="The name of a source, project or profile, or the id of an execution.")
    project: str = Field(default="", description="For a source: its survey's id.")
    reason: str = Field(description="Why it may go on.")


class ReleaseSourcesConfig(dg.Config):
    """Sources that may run again although their execution failed or was cancelled."""

    project: str = Field(description="The survey's id.")
    sources: list[str] = Field(description="Source identifiers; all of them must be registered.")


@dg.op(out=dg.Out(dg.Nothing))
def cancel(context: dg.OpExecutionContext, config: ExecutionConfig, platform: PlatformResource) -> None:
    """Cancel it; a session that runs counts as cancelled when its manager confirms it."""
    try:
        done = platform.get().cancelling.cancel(config.execution, reason=config.reason, actor=ACTOR)
    except BeampipeError as error:
        raise fail(error) from error
    context.add_output_metadata({"state": done.state, "status": done.execution.status.value})


@dg.job(
    executor_def=dg.in_process_executor,
    description="Cancel an execution, and its session if it has one. Give `execution` and `reason`.",
)
def cancel_execution() -> None:
    """A cancellation from the launchpad."""
    cancel()


@dg.op(out=dg.Out(dg.Nothing))
def retry(context: dg.OpExecutionContext, config: ExecutionConfig, platform: PlatformResource) -> None:
    """Let it go on in place, at the step that failed."""
    try:
        done = platform.get().retry_in_place.retry(config.execution, reason=config.reason, actor=ACTOR)
    except BeampipeError as error:
        raise fail(error) from error
    context.add_output_metadata({"status": done.status.value, "retry": done.retry_count})


@dg.job(
    executor_def=dg.in_process_executor,
    description="Let a failed execution go on at the step that failed. Give `execution` and `reason`.",
)
def retry_execution() -> None:
    """A retry from the launchpad."""
    retry()


@dg.op(out=dg.Out(dg.Nothing))
def put_hold(context: dg.OpExecutionContext, config: HoldConfig, platform: PlatformResource) -> None:
    """Start nothing of it."""
    try:
        held = platform.get().holds.hold(
            Scope(config.scope),
            config.subject,
            reason=config.reason,
            actor=ACTOR,
            project_id=config.project,
            hours=config.hours,
        )
    except BeampipeError as error:
        raise fail(error) from error
    until = metadata.text(str(held.expires_at or "until it is released"))
    context.add_output_metadata({"held": f"{held.scope} {config.subject}", "until": until})


@dg.job(
    executor_def=dg.in_process_executor,
    description="Admit and launch nothing of a source, execution, project or profile for a while.",
)
def hold() -> None:
    """A hold from the launchpad."""
    put_hold()


@dg.op(out=dg.Out(dg.Nothing))
def take_hold(context: dg.OpExecutionContext, config: ReleaseConfig, platform: PlatformResource) -> None:
    """Let it go on."""
    try:
        before = platform.get().holds.release(
            Scope(config.scope), config.subject, reason=config.reason, actor=ACTOR, project_id=config.project
        )
    except BeampipeError as error:
        raise fail(error) from error
    context.add_output_metadata({"released": f"{before.scope} {config.subject}", "was": before.reason})


@dg.job(
    executor_def=dg.in_process_executor,
    description="Take the hold of a source, execution, project or profile away.",
)
def release() -> None:
    """A release from the launchpad."""
    take_hold()


@dg.op(out=dg.Out(dg.Nothing))
def forgive(context: dg.OpExecutionContext, config: ReleaseSourcesConfig, platform: PlatformResource) -> None:
    """Let them run again, with a new budget of retries."""
    try:
        released = platform.get().admission.release(config.project, config.sources, actor=ACTOR)
    except BeampipeError as error:
        raise fail(error) from error
    shown: dict[str, Any] = {"released": metadata.text(", ".join(released) or "none: nothing had failed")}
    context.add_output_metadata(shown)


@dg.job(
    executor_def=dg.in_process_executor,
    description="Let sources run again whose execution failed or was cancelled. Give `project` and `sources`.",
)
def release_sources() -> None:
    """A second chance from the launchpad."""
    forgive()


CONTROL_JOBS = [cancel_execution, retry_execution, hold, release, release_sources]
