"""Asset checks: has the last execution succeeded, is nothing held, do stored rows still give their signature."""

import dagster as dg
import sqlalchemy as sa

from beampipe_dagster.config.project import ProjectConfig
from beampipe_dagster.defs import metadata, names
from beampipe_dagster.defs.resources import PlatformResource
from beampipe_dagster.execution.outcome import OUTCOME_CHECK
from beampipe_dagster.ledger import archive, executions, projects, sources
from beampipe_dagster.ledger.states import Status
from beampipe_dagster.ledger.tables import batch_execution_record as record
from beampipe_dagster.signature.payload import sign_stored

SOURCES_CHECKED = 10_000


def survey_checks(config: ProjectConfig) -> list[dg.AssetChecksDefinition]:
    """The checks of one survey. None has partitions: the key is in the metadata."""
    project_id = config.metadata.id
    return [
        _succeeded(project_id),
        _nothing_held(project_id),
        _signed_rows(project_id),
    ]


def _succeeded(project_id: str) -> dg.AssetChecksDefinition:
    @dg.asset_check(
        asset=names.asset_key(project_id, names.EXECUTION_OUTCOME),
        name=OUTCOME_CHECK,
        description="The execution that ended last was completed. Told by the poll at every ending.",
    )
    def execution_succeeded(platform: PlatformResource) -> dg.AssetCheckResult:
        mine = record.c.project_module == project_id
        newest = sa.select(sa.func.max(record.c.completed_at)).where(mine).scalar_subquery()
        with platform.get().ledger.read() as conn:
            last = executions.select(conn, mine, record.c.completed_at == newest, limit=1, newest_first=True)
        if not last:
            return dg.AssetCheckResult(passed=True, metadata={"execution": "none has ended yet"})
        return dg.AssetCheckResult(
            passed=last[0].status is Status.COMPLETED,
            metadata={
                "partition": last[0].partition_key,
                "execution": last[0].id,
                "error": last[0].last_error or "",
            },
        )

    return execution_succeeded


def _nothing_held(project_id: str) -> dg.AssetChecksDefinition:
    @dg.asset_check(
        asset=names.asset_key(project_id, names.SOURCE_REGISTRY),
        name="no_source_held",
        description="No source is held back; the table names those that are, and why.",
    )
    def no_source_held(platform: PlatformResource) -> dg.AssetCheckResult:
        with platform.get().ledger.read() as conn:
            rows = sources.listing(conn, project_id, limit=SOURCES_CHECKED)
        held = [{"source": row.source_identifier, **row.hold} for row in rows if row.hold]
        return dg.AssetCheckResult(
            passed=not held,
            severity=dg.AssetCheckSeverity.WARN,
            metadata={"held": metadata.table(held, ["source", "code", "message", "hint"])},
        )

    return no_source_held


def _signed_rows(project_id: str) -> dg.AssetChecksDefinition:
    @dg.asset_check(
        asset=names.asset_key(project_id, names.ARCHIVE_METADATA),
        name="rows_give_their_signature",
        description="Signing the stored rows again gives the signature that the registry holds.",
    )
    def rows_give_their_signature(platform: PlatformResource) -> dg.AssetCheckResult:
        with platform.get().ledger.read() as conn:
            rows = sources.listing(conn, project_id, limit=SOURCES_CHECKED)
            stored = archive.metadata_of(conn, project_id, [row.source_identifier for row in rows])
            changes = {
                row.source_identifier: archive.change_for(
                    conn, project_id, row.source_identifier, row.discovery_signature
                )
                for row in rows
                if row.discovery_signature
            }
            options = {
                revision_id: ProjectConfig.from_json(
                    projects.revision(conn, revision_id).spec
                ).signature_options
                for revision_id in {change.project_config_id for change in changes.values()}
            }
        wrong = []
        for name, change in changes.items():
            option = options[change.project_config_id]
            again = sign_stored(
                stored.get(name, {}),
                exclude_fields=option.exclude_fields,
                include_flags=option.include_discovery_flags,
            )
            if again.digest != change.signature:
                wrong.append({"source": name, "stored": again.digest, "registry": change.signature})
        return dg.AssetCheckResult(
            passed=not wrong,
            metadata={
                "checked": len(changes),
                "wrong": metadata.table(wrong, ["source", "stored", "registry"]),
            },
        )

    return rows_give_their_signature
