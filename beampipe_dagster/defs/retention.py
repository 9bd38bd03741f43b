"""Keys of superseded signatures leave Dagster's partitions: a job, and its daily schedule."""

import dagster as dg
from pydantic import Field

from beampipe_dagster.assembly import Platform
from beampipe_dagster.defs import metadata, names
from beampipe_dagster.defs.jobs import fail
from beampipe_dagster.defs.resources import PlatformResource
from beampipe_dagster.errors import BeampipeError
from beampipe_dagster.ledger import projects

KEYS_SHOWN = 50
DAILY = "17 3 * * *"
"""At night, and not on the hour, when everything else begins."""


class PrunePartitionsConfig(dg.Config):
    """Surveys whose partitions are looked through."""

    projects: list[str] = Field(default=[], description="Ids of surveys; empty means all of them.")


def prune(instance: dg.DagsterInstance, platform: Platform, project_id: str) -> list[str]:
    """Retire a survey's keys in the ledger, and take retired ones out of Dagster; the keys that went.

    A signature that comes back meanwhile may have been added before its old key was taken out: it is put in again.
    """
    retention = platform.retention
    retention.retire(project_id)
    partitions = names.partitions_name(project_id)
    removed = retention.removable(project_id, instance.get_dynamic_partitions(partitions))
    for key in removed:
        instance.delete_dynamic_partition(partitions, key)
    returned = set(retention.returned(project_id, removed))
    if returned:
        instance.add_dynamic_partitions(partitions, sorted(returned))
    return [key for key in removed if key not in returned]


@dg.op(out=dg.Out(dg.Nothing))
def prune_partitions_of_surveys(
    context: dg.OpExecutionContext, config: PrunePartitionsConfig, platform: PlatformResource
) -> None:
    """Take keys out of the surveys' partitions; the ledger keeps what was about them."""
    services = platform.get()
    try:
        with services.ledger.read() as conn:
            chosen = config.projects or [item.project_id for item in projects.all_active(conn)]
        gone = {name: prune(context.instance, services, name) for name in chosen}
    except BeampipeError as error:
        raise fail(error) from error
    rows = [{"survey": name, "partition": key} for name, keys in gone.items() for key in keys[:KEYS_SHOWN]]
    context.add_output_metadata(
        {
            "removed": dg.MetadataValue.json({name: len(keys) for name, keys in gone.items()}),
            "keys": metadata.table(rows, ["survey", "partition"]),
        }
    )


@dg.job(
    executor_def=dg.in_process_executor,
    description="Take keys of superseded signatures out of the surveys' partitions. The ledger keeps everything.",
)
def prune_partitions() -> None:
    """Retention of partitions."""
    prune_partitions_of_surveys()


prune_partitions_daily = dg.ScheduleDefinition(
    name="prune_partitions_daily",
    job=prune_partitions,
    cron_schedule=DAILY,
    execution_timezone="UTC",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="Takes keys of superseded signatures out of the surveys' partitions once a day.",
)
