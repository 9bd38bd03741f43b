"""Op jobs: a discovery batch, and what an operator asks for in the launchpad."""

from collections.abc import Iterator
from typing import Any

import dagster as dg
from pydantic import Field

from beampipe_dagster.assembly import Platform
from beampipe_dagster.defs import events, metadata, names
from beampipe_dagster.defs.resources import PlatformResource
from beampipe_dagster.errors import BeampipeError
from beampipe_dagster.ledger import outbox
from beampipe_dagster.ledger.sources import NewSource

OUTBOX_BATCH = 1000


class DiscoverBatchConfig(dg.Config):
    """Which claim to work on; the scheduler's sensor gives it."""

    claim: str = Field(description="Token of a discovery claim in the ledger.")


class RegisterSourcesConfig(dg.Config):
    """Sources to be registered with a survey."""

    project: str = Field(description="The survey's id, as in metadata.id of its YAML.")
    sources: list[str] = Field(description="Source identifiers, e.g. HIPASSJ1318-21.")
    enabled: bool = Field(default=True, description="Whether discovery and execution may touch them.")
    discover_now: bool = Field(default=True, description="Look at the archives at the next tick.")


class DiscoverSourcesConfig(dg.Config):
    """Sources to be looked at at the next tick, whatever their age."""

    project: str = Field(description="The survey's id.")
    sources: list[str] = Field(default=[], description="Source identifiers; empty means all enabled ones.")


def fail(error: BeampipeError) -> dg.Failure:
    """A short failure with code, message and hint, instead of a traceback."""
    return dg.Failure(
        description=str(error), metadata=metadata.of_error(error.as_dict()), allow_retries=False
    )


def tell(
    context: dg.OpExecutionContext, platform: Platform, correlation_id: str
) -> Iterator[events.AssetEvent]:
    """The outbox messages of one piece of work, with their partitions added first; then they are delivered."""
    with platform.ledger.read() as conn:
        messages = outbox.due(
            conn, now=platform.clock.now(), limit=OUTBOX_BATCH, correlation_id=correlation_id
        )
    for project, keys in events.partition_keys(messages).items():
        context.instance.add_dynamic_partitions(names.partitions_name(project), keys)
    for message in messages:
        yield events.to_event(message)
    with platform.ledger.begin() as conn:
        outbox.mark_delivered(conn, [message.id for message in messages], now=platform.clock.now())


@dg.op(tags={names.TAG_KIND: "discovery"}, out=dg.Out(dg.Nothing))
def discover_sources_of_claim(
    context: dg.OpExecutionContext, config: DiscoverBatchConfig, platform: PlatformResource
) -> Iterator[Any]:
    """Ask the archives about the claim's sources, commit what is new, and tell Dagster what changed."""
    services = platform.get()
    try:
        report = services.discovery.run_batch(
            config.claim,
            progress=lambda done, total, source: context.log.info(f"{done}/{total} {source}"),
        )
    except BeampipeError as error:
        raise fail(error) from error
    yield from tell(context, services, config.claim)
    context.add_output_metadata(
        {
            "changed": metadata.table(
                [{"source": name, "partition": key} for name, key in report.changed.items()],
                ["source", "partition"],
            ),
            "failed": metadata.table(
                [{"source": name, "error": text} for name, text in report.failed.items()],
                ["source", "error"],
            ),
            "postponed": metadata.table(
                [{"source": name, "error": text} for name, text in report.postponed.items()],
                ["source", "error"],
            ),
            "unchanged": len(report.unchanged),
            "no_datasets": metadata.text(", ".join(report.no_datasets)),
            "vanishing": metadata.text(", ".join(report.vanishing)),
            "datasets": report.datasets,
        }
    )
    yield dg.Output(None)


@dg.job(
    executor_def=dg.in_process_executor,
    description="One discovery batch: the claim's sources, looked at in the archives.",
)
def discover_batch() -> None:
    """A claim's way through discovery."""
    discover_sources_of_claim()


@dg.op(out=dg.Out(dg.Nothing))
def register(
    context: dg.OpExecutionContext, config: RegisterSourcesConfig, platform: PlatformResource
) -> None:
    """Register the sources; all of them or none."""
    services = platform.get()
    new = [NewSource(name.strip(), enabled=config.enabled) for name in config.sources]
    try:
        done = services.registry.register(config.project, new, actor="launchpad")
        if config.discover_now:
            names_given = [source.source_identifier for source in new]
            services.registry.mark_for_discovery(config.project, names_given, actor="launchpad")
    except BeampipeError as error:
        raise fail(error) from error
    context.add_output_metadata(
        {
            "added": metadata.text(", ".join(done.added) or "none"),
            "known before": metadata.text(", ".join(done.updated) or "none"),
        }
    )


@dg.job(
    executor_def=dg.in_process_executor,
    description="Register sources with a survey. Give `project` and a list of `sources`.",
)
def register_sources() -> None:
    """Registration from the launchpad."""
    register()


@dg.op(out=dg.Out(dg.Nothing))
def mark(context: dg.OpExecutionContext, config: DiscoverSourcesConfig, platform: PlatformResource) -> None:
    """Make sources due at once."""
    try:
        marked = platform.get().registry.mark_for_discovery(
            config.project, config.sources or None, actor="launchpad"
        )
    except BeampipeError as error:
        raise fail(error) from error
    context.add_output_metadata({"marked": marked})


@dg.job(
    executor_def=dg.in_process_executor,
    description="Look at sources at the next tick, whatever the age of their last look.",
)
def discover_sources() -> None:
    """A look on request."""
    mark()


class SetSourcesEnabledConfig(dg.Config):
    """Sources that discovery and execution may touch, or may not."""

    project: str = Field(description="The survey's id.")
    sources: list[str] = Field(description="Source identifiers; all of them must be registered.")
    enabled: bool = Field(description="True lets discovery and execution touch them; false keeps both away.")


@dg.op(out=dg.Out(dg.Nothing))
def set_enabled(
    context: dg.OpExecutionContext, config: SetSourcesEnabledConfig, platform: PlatformResource
) -> None:
    """Enable or disable the sources; all of them or none."""
    registry = platform.get().registry
    action = registry.enable if config.enabled else registry.disable
    try:
        changed = action(config.project, [name.strip() for name in config.sources], actor="launchpad")
    except BeampipeError as error:
        raise fail(error) from error
    context.add_output_metadata({"changed": metadata.text(", ".join(changed) or "none")})


@dg.job(
    executor_def=dg.in_process_executor,
    description="Enable or disable sources of a survey. Give `project`, `sources` and `enabled`.",
)
def set_sources_enabled() -> None:
    """Enabling and disabling from the launchpad."""
    set_enabled()


OPERATOR_JOBS = [register_sources, discover_sources, set_sources_enabled]
