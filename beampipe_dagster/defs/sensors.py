"""The unattended part: discovery and execution ticks of each survey, and the one poll over all of them.

A sensor body calls one service and turns its report into run requests and events. The ledger has committed
before Dagster hears of anything, so a tick that dies is repeated without doing its work twice.
"""

import json

import dagster as dg

from beampipe_dagster.assembly import Platform
from beampipe_dagster.config.project import ProjectConfig
from beampipe_dagster.defs import events, names
from beampipe_dagster.defs.jobs import discover_batch
from beampipe_dagster.defs.resources import PlatformResource
from beampipe_dagster.execution.launch import Launch
from beampipe_dagster.ledger import outbox

EVENTS_PER_TICK = 200
"""One event costs 10 to 100 ms of the daemon's time; the rest waits for the next tick."""

SINGLE_RUNS = 8
"""Up to so many launches get a run each, which reads best; more go in runs over contiguous keys."""


def _status(*, enabled: bool) -> dg.DefaultSensorStatus:
    return dg.DefaultSensorStatus.RUNNING if enabled else dg.DefaultSensorStatus.STOPPED


def scheduler_tick(config: ProjectConfig, interval_seconds: int) -> dg.SensorDefinition:
    """A survey's discovery clock: claims stale sources and asks for one batch run a claim."""
    project_id = config.metadata.id
    rules = config.automation.discovery

    @dg.sensor(
        name=f"{project_id}_scheduler_tick",
        job=discover_batch,
        minimum_interval_seconds=interval_seconds,
        default_status=_status(enabled=bool(rules and rules.enabled)),
        description=f"Claims sources of {project_id} that are due and starts a discovery batch for each claim.",
    )
    def tick(platform: PlatformResource) -> dg.SensorResult | dg.SkipReason:
        report = platform.get().discovery.tick(project_id)
        if not report.claims:
            why = f" ({report.message})" if report.message else ""
            return dg.SkipReason(f"no batch: {report.skip_reason}{why}")
        return dg.SensorResult(
            run_requests=[
                dg.RunRequest(
                    run_key=claim.token,
                    run_config={"ops": {"discover_sources_of_claim": {"config": {"claim": claim.token}}}},
                    tags={
                        names.TAG_PROJECT: project_id,
                        names.TAG_CLAIM: claim.token,
                        names.TAG_KIND: "discovery",
                    },
                )
                for claim in report.claims
            ]
        )

    return tick


def execution_tick(config: ProjectConfig, interval_seconds: int) -> dg.SensorDefinition:
    """A survey's admission clock: admits pending sources, and launches whatever has nobody to do its next step.

    It runs also where the survey executes nothing by itself: then it launches what operators asked for.
    """
    project_id = config.metadata.id

    @dg.sensor(
        name=f"{project_id}_execution_tick",
        job_name=names.execution_job(project_id),
        minimum_interval_seconds=interval_seconds,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=f"Admits pending sources of {project_id} and starts a run for each admitted execution.",
    )
    def tick(
        context: dg.SensorEvaluationContext, platform: PlatformResource
    ) -> dg.SensorResult | dg.SkipReason:
        services = platform.get()
        report = services.admission.tick(project_id)
        launches = [
            launch for launch in services.launcher.due(project_id) if not is_queued(context.instance, launch)
        ]
        if not launches:
            held = ", ".join(f"{name} ({code})" for name, code in report.held.items())
            words = report.message or report.skip_reason or "nothing to launch"
            return dg.SkipReason(f"nothing launched: {words}" + (f"; held: {held}" if held else ""))
        keys = [launch.execution.partition_key for launch in launches]
        order = {
            key: place
            for place, key in enumerate(
                context.instance.get_dynamic_partitions(names.partitions_name(project_id))
            )
        }
        missing = [key for key in dict.fromkeys(keys) if key not in order]
        return dg.SensorResult(
            run_requests=run_requests(order, project_id, launches),
            dynamic_partitions_requests=(
                [names.signatures(project_id).build_add_request(missing)] if missing else []
            ),
        )

    return tick


def is_queued(instance: dg.DagsterInstance, launch: Launch) -> bool:
    """Whether the run of an earlier launch still waits in Dagster's queue: it is late, not lost.

    A run that has begun is no reason to wait: its process may be dead, and the lease tells.
    """
    if launch.execution.launch_count == 1:
        return False
    tags = {names.TAG_EXECUTION: launch.execution.id}
    return instance.get_runs_count(dg.RunsFilter(tags=tags, statuses=[dg.DagsterRunStatus.QUEUED])) > 0


def run_requests(order: dict[str, int], project_id: str, launches: list[Launch]) -> list[dg.RunRequest]:
    """One run a launch while they are few; one run for each contiguous range of keys when they are many.

    ``order`` says where Dagster has each key among its partitions. A range holds keys of these launches only, so that
    it never spans a stranger's partition.
    """
    if len(launches) <= SINGLE_RUNS:
        return [_single(project_id, launch) for launch in launches]
    placed = sorted(
        (launch for launch in launches if launch.execution.partition_key in order),
        key=lambda launch: order[launch.execution.partition_key],
    )
    runs: list[list[Launch]] = []
    for launch in placed:
        place = order[launch.execution.partition_key]
        if runs and order[runs[-1][-1].execution.partition_key] == place - 1:
            runs[-1].append(launch)
        else:
            runs.append([launch])
    strangers = [launch for launch in launches if launch.execution.partition_key not in order]
    return [
        *(_single(project_id, run[0]) if len(run) == 1 else _range(project_id, run) for run in runs),
        *(_single(project_id, launch) for launch in strangers),
    ]


def _single(project_id: str, launch: Launch) -> dg.RunRequest:
    execution = launch.execution
    return dg.RunRequest(
        run_key=launch.run_key,
        partition_key=execution.partition_key,
        tags={
            names.TAG_PROJECT: project_id,
            names.TAG_EXECUTION: execution.id,
            names.TAG_SOURCE: execution.source_identifiers[0],
            names.TAG_CLAIM: execution.claim_token,
            names.TAG_KIND: "execution",
        },
    )


def _range(project_id: str, launches: list[Launch]) -> dg.RunRequest:
    return dg.RunRequest(
        run_key=f"{launches[0].run_key}..{launches[-1].run_key}",
        tags={
            "dagster/asset_partition_range_start": launches[0].execution.partition_key,
            "dagster/asset_partition_range_end": launches[-1].execution.partition_key,
            names.TAG_PROJECT: project_id,
            names.TAG_KIND: "execution",
        },
    )


def poll_executions(interval_seconds: int) -> dg.SensorDefinition:
    """Looks at everything in flight, then tells Dagster what the ledger has committed."""

    @dg.sensor(
        name="poll_executions",
        minimum_interval_seconds=interval_seconds,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Looks at every submitted session, moves executions to their end, delivers the outbox.",
    )
    def poll(context: dg.SensorEvaluationContext, platform: PlatformResource) -> dg.SensorResult:
        services = platform.get()
        acknowledge(services, context.cursor)
        report = services.poll.tick()
        with services.ledger.read() as conn:
            messages = outbox.due(conn, now=services.clock.now(), limit=EVENTS_PER_TICK)
        requests = [
            names.signatures(project).build_add_request(keys)
            for project, keys in events.partition_keys(messages).items()
        ]
        return dg.SensorResult(
            asset_events=[events.to_event(message) for message in messages],
            dynamic_partitions_requests=requests,
            cursor=json.dumps([message.id for message in messages]),
            skip_reason=None if messages else dg.SkipReason(f"nothing new: {report.summary()}"),
        )

    return poll


def acknowledge(platform: Platform, cursor: str | None) -> None:
    """What the last tick handed over is stored by now, or this tick would not have its cursor.

    The identifiers themselves are kept, not the highest one: a transaction with a lower identifier may commit
    later than one with a higher.
    """
    if not cursor:
        return
    with platform.ledger.begin() as conn:
        outbox.mark_delivered(conn, json.loads(cursor), now=platform.clock.now())
