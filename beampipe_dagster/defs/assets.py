"""The assets of a survey, read from left to right: registry, metadata, manifest, graphs, run, outcome."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import dagster as dg
from pydantic import Field

from beampipe_dagster.assembly import Platform
from beampipe_dagster.config.project import ProjectConfig
from beampipe_dagster.defs import metadata, names
from beampipe_dagster.defs.resources import PlatformResource
from beampipe_dagster.discovery.facts import change_facts
from beampipe_dagster.errors import BeampipeError, ConflictError
from beampipe_dagster.execution.options import LaunchOptions
from beampipe_dagster.execution.staged import survey_stages
from beampipe_dagster.execution.steps import StepReport
from beampipe_dagster.ledger import archive

Step = Callable[..., StepReport]

SENSOR_TAG = "dagster/sensor_name"
"""Dagster's own tag of a run that a sensor asked for; what an operator begins has none."""


@dataclass(frozen=True, slots=True)
class _StepAsset:
    """What distinguishes one step's asset from the next."""

    name: str
    after: str
    kinds: frozenset[str]
    description: str
    step: Callable[[Platform], Step]


STEPS = (
    _StepAsset(
        names.WORKFLOW_MANIFEST,
        names.ARCHIVE_METADATA,
        frozenset({"json"}),
        "What the workflow is to process: the signed datasets of the execution's sources, grouped by the survey's "
        "rules.",
        lambda platform: platform.staging.workflow_manifest,
    ),
    _StepAsset(
        names.PREPARED_GRAPH,
        names.WORKFLOW_MANIFEST,
        frozenset({"daliuge"}),
        "The survey's logical graph with the manifest in its ingest node and the survey's patches applied.",
        lambda platform: platform.steps.prepared_graph,
    ),
    _StepAsset(
        names.PHYSICAL_GRAPH,
        names.PREPARED_GRAPH,
        frozenset({"daliuge"}),
        "The graph unrolled and partitioned by DALiuGE's translator, every drop placed on a node.",
        lambda platform: platform.steps.physical_graph,
    ),
    _StepAsset(
        names.BACKEND_RUN,
        names.PHYSICAL_GRAPH,
        frozenset({"daliuge"}),
        "The submission: intent, session, deployment, receipt. It ends when the session runs; the poll follows it.",
        lambda platform: platform.submission.backend_run,
    ),
)

STAGED_DATA = _StepAsset(
    names.STAGED_DATA,
    names.ARCHIVE_METADATA,
    frozenset({"casda"}),
    "The datasets brought online by the archive, by jobs that go on whatever becomes of the run. Their URLs are "
    "secrets: they are asked for anew at the submission and shown nowhere.",
    lambda platform: platform.staging.staged_data,
)


def steps_of(config: ProjectConfig) -> tuple[_StepAsset, ...]:
    """The steps of a survey's executions, in their order: data are staged only where the survey wants it."""
    if not survey_stages(config):
        return STEPS
    first, *others = STEPS
    return (STAGED_DATA, replace(first, after=names.STAGED_DATA), *others)


def survey_assets(config: ProjectConfig) -> list[dg.AssetsDefinition | dg.AssetSpec]:
    """All assets of one survey."""
    project_id = config.metadata.id
    return [
        _registry(project_id, config),
        _archive_metadata(project_id, config),
        *(_step_asset(project_id, spec) for spec in steps_of(config)),
        _outcome(project_id),
    ]


def _registry(project_id: str, config: ProjectConfig) -> dg.AssetSpec:
    return dg.AssetSpec(
        key=names.asset_key(project_id, names.SOURCE_REGISTRY),
        group_name=project_id,
        kinds={"sql"},
        owners=names.OWNERS,
        description=config.metadata.description
        or f"The sources that the survey {project_id} has registered, and what the last look at each said.",
        metadata={
            "survey": project_id,
            "archives": ", ".join(config.adapters.required),
            "spec_sha256": config.spec_sha256,
        },
    )


def _outcome(project_id: str) -> dg.AssetSpec:
    return dg.AssetSpec(
        key=names.asset_key(project_id, names.EXECUTION_OUTCOME),
        group_name=project_id,
        kinds={"daliuge", "sql"},
        owners=names.OWNERS,
        partitions_def=names.signatures(project_id),
        deps=[names.asset_key(project_id, names.BACKEND_RUN)],
        description="How each execution ended: completed, failed or cancelled, with its cause, drops and links. "
        "Told by the poll for every terminal state.",
    )


def _archive_metadata(project_id: str, config: ProjectConfig) -> dg.AssetsDefinition:
    @dg.asset(
        key=names.asset_key(project_id, names.ARCHIVE_METADATA),
        group_name=project_id,
        kinds={"tap", "sql"},
        owners=names.OWNERS,
        partitions_def=names.signatures(project_id),
        backfill_policy=dg.BackfillPolicy.single_run(),
        deps=[names.asset_key(project_id, names.SOURCE_REGISTRY)],
        description="The metadata that the archives gave for a source, one partition a discovery signature "
        "(`source@signature`). Discovery adds partitions; materializing one by hand shows the ledger's rows again.",
        metadata={
            "dagster/column_schema": metadata.DATASET_COLUMNS,
            "queries": ", ".join(query.name for query in config.discovery.queries),
        },
    )
    def archive_metadata(context: dg.AssetExecutionContext, platform: PlatformResource) -> None:
        ledger = platform.get().ledger
        for key in context.partition_keys:
            with ledger.read() as conn:
                change = archive.latest_change(conn, project_id, key)
            if change is None:
                raise _failure(
                    ConflictError(
                        f"the ledger knows no signature behind the partition {key!r}",
                        code="partition_unknown",
                        hint="partitions come from discovery; a key cannot be invented in the UI",
                    )
                )
            context.add_asset_metadata(metadata.of_signature(change_facts(change)), partition_key=key)

    return archive_metadata


class LaunchConfig(dg.Config):
    """What a materialization by hand asks for; an execution that exists already keeps what it was launched with."""

    submit: bool = Field(
        default=True, description="False ends with the physical graph, as not_submitted: nothing is run."
    )
    stage: bool | None = Field(
        default=None, description="Whether the data are staged; without it as the survey says."
    )


def _step_asset(project_id: str, spec: _StepAsset) -> dg.AssetsDefinition:
    described = dg.asset(
        key=names.asset_key(project_id, spec.name),
        group_name=project_id,
        kinds=set(spec.kinds),
        owners=names.OWNERS,
        partitions_def=names.signatures(project_id),
        backfill_policy=dg.BackfillPolicy.single_run(),
        deps=[names.asset_key(project_id, spec.after)],
        description=spec.description,
        op_tags={names.TAG_KIND: "execution"},
    )
    if spec.after != names.ARCHIVE_METADATA:

        def step_asset(context: dg.AssetExecutionContext, platform: PlatformResource) -> None:
            run_step(context, platform.get(), project_id, spec.step(platform.get()))

        return described(step_asset)

    def first_step_asset(
        context: dg.AssetExecutionContext, config: LaunchConfig, platform: PlatformResource
    ) -> None:
        services = platform.get()
        options = LaunchOptions(do_stage=config.stage, do_submit=config.submit)
        run_step(
            context,
            services,
            project_id,
            spec.step(services),
            again=SENSOR_TAG not in context.run.tags,
            options=options,
        )

    return described(first_step_asset)


def run_step(
    context: dg.AssetExecutionContext,
    platform: Platform,
    project_id: str,
    step: Step,
    *,
    again: bool = False,
    options: LaunchOptions | None = None,
) -> None:
    """Do one step for the execution behind each partition key of the run.

    One key that cannot go on never stops the others; the run fails when none of its keys could. The first step of
    a run that an operator began may try ``again`` what is over, with the ``options`` that were asked for.
    """
    failures: list[BeampipeError] = []
    keys = list(context.partition_keys)
    for key in keys:
        try:
            execution = platform.launcher.for_partition(
                project_id, key, actor="dagster", again=again, options=options
            )
            report = step(execution.id, holder=context.run.run_id)
        except BeampipeError as error:
            failures.append(error)
            context.log.error(f"{key}: {error}")  # noqa: TRY400  # our error says more than a traceback
            context.add_asset_metadata({"not_done": metadata.text(error)}, partition_key=key)
            continue
        context.log.info(f"{key}: {'found' if report.done_before else 'done'} for execution {execution.id}")
        context.add_asset_metadata(_of_report(report), partition_key=key)
    if len(failures) == len(keys):
        raise _failure(failures[0])


def _of_report(report: StepReport) -> metadata.Metadata:
    shown: dict[str, Any] = {
        "execution": metadata.text(report.execution.id),
        "status": metadata.text(report.execution.status),
        "done_before": metadata.text(report.done_before),
        **metadata.of_step(report.facts),
    }
    if report.artifact is not None:
        shown["sha256"] = metadata.text(report.artifact.sha256)
        shown["size_bytes"] = dg.MetadataValue.int(report.artifact.size_bytes)
    link = metadata.session_url(report.execution.daliuge_manager_url, report.execution.daliuge_session_id)
    if link:
        shown["daliuge_session"] = dg.MetadataValue.url(link)
    return shown


def _failure(error: BeampipeError) -> dg.Failure:
    """The short failure that the run's page shows; the ledger decides whether it is tried again."""
    return dg.Failure(
        description=str(error), metadata=metadata.of_error(error.as_dict()), allow_retries=False
    )
