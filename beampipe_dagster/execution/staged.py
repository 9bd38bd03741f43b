"""Whether an execution's data are staged, which files that are, and what stands for them in its documents.

The URLs of staged files are secrets. The manifest, the graphs and everything else that the ledger keeps have
placeholders (``beampipe-staged://visibility/<sbid>/<scan>``) where the URLs go; the URLs are asked for anew and put
in when the physical graph is submitted, on its way to DALiuGE. So the documents of an execution do not change when
its files have to be staged again. The ledger does have the places of the archive's jobs: to whom the archive gives a
job's results is its own matter.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from sqlalchemy.engine import Connection

from beampipe_dagster.config.canonical import JsonValue, canonical_json
from beampipe_dagster.config.project import ProjectConfig
from beampipe_dagster.discovery.staging.plan import Plan, make_plan
from beampipe_dagster.errors import ConflictError, Retry
from beampipe_dagster.execution.options import LaunchOptions
from beampipe_dagster.ledger import archive, projects
from beampipe_dagster.ledger import staging as jobs
from beampipe_dagster.ledger.execution_values import Execution
from beampipe_dagster.ledger.tables_staging import StagingState
from beampipe_dagster.signature.payload import sign_stored

STAGING_ARCHIVE: Final = "casda"
"""The archive whose files are staged."""
CALIBRATION: Final = "sbid_to_eval_file"
"""The enrichment that brings the calibration archive of a scheduling block."""
STAGED_FIELDS: Final = frozenset(
    {"staged_url", "checksum_url", "evaluation_file_url", "evaluation_file_checksum_url"}
)
"""What staging adds to a record."""


def survey_stages(config: ProjectConfig) -> bool:
    """Whether the executions of a survey stage their data when nobody says otherwise.

    ``staging.enabled`` decides where the survey has it. Otherwise data of CASDA are staged when the manifest can
    hold what comes of it: a template names a staged field, or datasets are whole records and the survey looks for
    the calibration archives that go with them.
    """
    if config.staging is not None:
        return config.staging.enabled
    automation = config.automation.execution
    if automation is not None and automation.archive_name != STAGING_ARCHIVE:
        return False
    manifest = config.manifest
    templates = [] if manifest is None else [manifest.source_template, _dataset_template(config) or {}]
    if any(_names_staged(text) for template in templates for text in _texts(template)):
        return True
    return _dataset_template(config) is None and _is_calibrated(config)


def wants_staging(config: ProjectConfig, execution: Execution) -> bool:
    """Whether this execution stages its data: as its launch said, else as its survey does."""
    asked = LaunchOptions.of(execution.options).do_stage
    return survey_stages(config) if asked is None else asked


def plan_of(
    conn: Connection, project_module: str, sources: Sequence[dict[str, Any]], config: ProjectConfig
) -> tuple[Plan, list[JsonValue]]:
    """What is to be staged, and the records as they are signed; both in the same order.

    The whole records are those behind the signatures, with the fields that a signature leaves out.

    Parameters
    ----------
    sources
        ``{source_identifier, discovery_signature}`` each, as an execution keeps them.

    Raises
    ------
    DataError
        The records do not say what is to be staged.
    """
    whole: list[dict[str, JsonValue]] = []
    signed: list[JsonValue] = []
    for source in sources:
        change = archive.change_for(
            conn, project_module, source["source_identifier"], source["discovery_signature"]
        )
        options = ProjectConfig.from_json(
            projects.revision(conn, change.project_config_id).spec
        ).signature_options
        for sbid in sorted(change.metadata_json):
            for record in _datasets(change.metadata_json[sbid]):
                whole.append(record)
                signed.append(_signed(record, sbid, options.exclude_fields))
    evaluation = _is_calibrated(config) or any("evaluation_file_access_url" in record for record in whole)
    return make_plan(whole, evaluation=evaluation), signed


def staged_records(
    conn: Connection, execution: Execution, config: ProjectConfig, records: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """The records with placeholders for their staged files; as they are when nothing is staged.

    Raises
    ------
    ConflictError
        ``step_not_ready``: files are not there yet.
    """
    if not wants_staging(config, execution):
        return records
    plan, signed = plan_of(conn, execution.project_module, execution.sources, config)
    ready = {
        name
        for job in jobs.of(conn, execution.id, live=True)
        if job.state is StagingState.COMPLETED
        for name in job.items
    }
    lacking = [item for item in plan.items if item.id not in ready]
    if lacking:
        raise ConflictError(
            f"{len(lacking)} of {len(plan.items)} files of execution {execution.id} are not staged yet",
            code="step_not_ready",
            hint="the step staged_data has to be done first; the execution goes on by itself",
            retry=Retry.LATER,
        )
    return with_placeholders(records, plan, signed)


def with_placeholders(
    records: list[dict[str, Any]], plan: Plan, signed: Sequence[JsonValue]
) -> list[dict[str, Any]]:
    """Signed records in any order, each with the placeholders of its files; ``signed`` is what the plan is of."""
    fields = {canonical_json(record): added for record, added in zip(signed, plan.fields, strict=True)}
    return [{**record, **fields[canonical_json(record)]} for record in records]


def _signed(record: JsonValue, sbid: str, exclude_fields: Iterable[str]) -> JsonValue:
    """A record without the fields that the signature leaves out."""
    payload: Any = sign_stored({sbid: {"datasets": [record]}}, exclude_fields=exclude_fields).payload
    first: JsonValue = payload[sbid]["datasets"][0]
    return first


def _datasets(document: JsonValue) -> list[dict[str, JsonValue]]:
    found = document.get("datasets") if isinstance(document, dict) else None
    return [record for record in found if isinstance(record, dict)] if isinstance(found, list) else []


def _dataset_template(config: ProjectConfig) -> Mapping[str, Any] | None:
    """The template that makes a manifest's datasets; ``None`` when they are whole records."""
    manifest = config.manifest
    return manifest.dataset_template if manifest and manifest.expand_from == "metadata" else None


def _is_calibrated(config: ProjectConfig) -> bool:
    return any(query.name == CALIBRATION for query in config.discovery.enrichments)


def _names_staged(text: str) -> bool:
    return text.startswith("{staging.") or text.removeprefix("{").removesuffix("}") in STAGED_FIELDS


def _texts(value: Any) -> Iterable[str]:  # noqa: ANN401  # a template
    """All texts that are a template's values."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _texts(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(inner)
