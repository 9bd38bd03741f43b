"""The four steps of an execution: manifest, prepared graph, physical graph, submission.

Each step does what the ledger says is next and nothing else: a step whose artifact is there is told again, a
submission that may exist is never repeated. A dependency that is away makes the execution wait, with the reason
in the ledger and a time for the next try; anything else ends it as failed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final

from sqlalchemy.engine import Connection

from beampipe_dagster.backends.daliuge.physical import map_to_nodes, summary
from beampipe_dagster.backends.provider import BackendProvider
from beampipe_dagster.clock import Clock
from beampipe_dagster.config.canonical import JsonValue
from beampipe_dagster.config.profile import DeploymentProfile
from beampipe_dagster.config.project import ProjectConfig
from beampipe_dagster.errors import (
    BackendUnavailableError,
    BeampipeError,
    ConfigError,
    ConflictError,
    GraphError,
    Retry,
)
from beampipe_dagster.execution import run_record
from beampipe_dagster.execution.graph import (
    PreparedGraph,
    find_ingest,
    parse_graph,
    prepare_graph,
    verify_injection,
)
from beampipe_dagster.execution.graph_lint import Finding, Severity, lint
from beampipe_dagster.execution.holder import CANCEL_REQUESTED, Holder, holding, to_be_cancelled
from beampipe_dagster.execution.manifest import OVERRIDES, build_manifest, embedded_text
from beampipe_dagster.execution.outcome import finish
from beampipe_dagster.execution.patch_check import check_overrides, refuse_errors
from beampipe_dagster.execution.plugins import Plugins, through_plugins
from beampipe_dagster.execution.records import signed_records
from beampipe_dagster.execution.scope import check_manifest, datasets_of, tells_datasets_apart
from beampipe_dagster.execution.staged import staged_records
from beampipe_dagster.ids import Ids
from beampipe_dagster.ledger import artifacts, executions, fsm, projects, provenance
from beampipe_dagster.ledger.artifacts import Artifact
from beampipe_dagster.ledger.engine import Ledger
from beampipe_dagster.ledger.execution_values import Execution
from beampipe_dagster.ledger.states import (
    ArtifactKind,
    ControlPhase,
    ExecutionPhase,
    FailureClass,
    Status,
    SubmissionState,
    TerminalOutcome,
)

FIRST_WAIT_SECONDS: Final = 5.0
LONGEST_WAIT_SECONDS: Final = 300.0
NOT_READY: Final = "step_not_ready"
_CLASS_OF_CODE: Final = {
    "internal": FailureClass.INTERNAL,
    "staging_no_access": FailureClass.AUTHORIZATION,
    "staging_failed": FailureClass.DEPENDENCY_UNAVAILABLE,
}
"""Classes of failures that are no mistake of the survey's; the tapes of an archive may be back another day."""
MAY_EXIST: Final = frozenset(
    {SubmissionState.IN_FLIGHT, SubmissionState.UNCERTAIN, SubmissionState.SUBMITTED}
)
"""States of a submission whose session may run: no step may end such an execution."""


@dataclass(frozen=True, slots=True)
class StepReport:
    """What a step did or found."""

    execution: Execution
    artifact: Artifact | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    done_before: bool = False


class ExecutionSteps:
    """Takes an admitted execution to a submitted session."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        clock: Clock,
        ids: Ids,
        backends: BackendProvider,
        lease_seconds: float,
    ) -> None:
        self.ledger = ledger
        self.clock = clock
        self.ids = ids
        self.backends = backends
        self._lease_seconds = lease_seconds

    # -- manifest -----------------------------------------------------------------------------------------

    def workflow_manifest(self, execution_id: str, *, holder: str) -> StepReport:
        """Build the manifest from the metadata behind the execution's signatures."""
        with self.working(execution_id, holder) as (execution, _):
            with self.ledger.read() as conn:
                known = artifacts.find(conn, execution_id, ArtifactKind.MANIFEST)
                if known is not None:
                    return StepReport(execution, known, _manifest_facts(execution), done_before=True)
                config = self._config(conn, execution)
                signed = signed_records(conn, execution.project_module, execution.sources)
                records = staged_records(conn, execution, config, signed)
            manifest = build_manifest(config, records)
            manifest = through_plugins(config, records, manifest, Plugins().of(config))
            if tells_datasets_apart(config):
                check_manifest(manifest, datasets_of(records))
            with self.ledger.begin() as conn:
                artifact = artifacts.put(
                    conn,
                    execution_id,
                    ArtifactKind.MANIFEST,
                    manifest,
                    phase=ControlPhase.MANIFEST_GENERATED,
                    facts={"datasets": len(records)},
                    ids=self.ids,
                    now=self.clock.now(),
                )
                record = run_record.with_requested(execution.run_record, execution.sources)
                execution = executions.move(  # noqa: PLW2901  # the same execution, moved
                    conn,
                    execution,
                    now=self.clock.now(),
                    patch=fsm.StatusPatch(
                        status=Status.RUNNING,
                        execution_phase=ExecutionPhase.STAGE_AND_MANIFEST,
                        clear_error=True,
                    ),
                    values={
                        "workflow_manifest": run_record.put(manifest, record),
                        "manifest_sha256": artifact.sha256,
                        "dataset_count": len(records),
                        "control_phase": ControlPhase.MANIFEST_GENERATED,
                    },
                )
                self.tell(conn, execution, "execution.manifest_generated", {"sha256": artifact.sha256})
            return StepReport(execution, artifact, _manifest_facts(execution))

    # -- graph --------------------------------------------------------------------------------------------

    def prepared_graph(self, execution_id: str, *, holder: str) -> StepReport:
        """Put the manifest into the survey's logical graph and patch it."""
        with self.working(execution_id, holder) as (execution, _):
            with self.ledger.read() as conn:
                known = artifacts.find(conn, execution_id, ArtifactKind.PATCHED_GRAPH)
                if known is not None:
                    return StepReport(execution, known, dict(known.metadata), done_before=True)
                manifest = self._document(conn, execution_id, ArtifactKind.MANIFEST)
                revision = projects.revision(conn, execution.project_config_id)
                if revision.graph_sha256 is None:
                    raise ConfigError(
                        f"project {execution.project_module!r} has no graph",
                        code="graph_missing",
                        hint="give graph.path (or graph.url) and graph.sha256 in its YAML, then add it again",
                    )
                raw = projects.graph(conn, revision.graph_sha256)
            source = parse_graph(raw, sha256=revision.graph_sha256, name=execution.project_module)
            checked = check_overrides(source, manifest.get(OVERRIDES))
            refuse_errors(checked, name=execution.project_module)
            prepared = prepare_graph(
                source, manifest, execution_id=execution_id, modified_at=execution.created_at
            )
            return self._keep_graph(execution, source, prepared, checked)

    def _keep_graph(
        self, execution: Execution, graph: dict[str, Any], prepared: PreparedGraph, checked: list[Finding]
    ) -> StepReport:
        findings = _findings([*checked, *lint(prepared.graph, source=graph)])
        facts: dict[str, JsonValue] = {
            "nodes": prepared.node_count,
            "diff": prepared.diff,
            "findings": findings,
        }
        with self.ledger.begin() as conn:
            now = self.clock.now()
            source = artifacts.put(
                conn,
                execution.id,
                ArtifactKind.SOURCE_GRAPH,
                graph,
                phase=ControlPhase.GRAPH_PATCHED,
                ids=self.ids,
                now=now,
            )
            patched = artifacts.put(
                conn,
                execution.id,
                ArtifactKind.PATCHED_GRAPH,
                prepared.graph,
                phase=ControlPhase.GRAPH_PATCHED,
                facts=facts,
                ids=self.ids,
                now=now,
            )
            execution = executions.move(
                conn,
                execution,
                now=now,
                patch=fsm.StatusPatch(clear_error=True),
                values={
                    "source_graph_sha256": source.sha256,
                    "patched_graph_sha256": patched.sha256,
                    "control_phase": ControlPhase.GRAPH_PATCHED,
                },
            )
            self.tell(conn, execution, "execution.graph_patched", {"sha256": patched.sha256})
        return StepReport(execution, patched, dict(facts))

    # -- translation --------------------------------------------------------------------------------------

    def physical_graph(self, execution_id: str, *, holder: str) -> StepReport:
        """Translate the patched graph and place it on a node of the island manager."""
        with self.working(execution_id, holder) as (execution, _):
            with self.ledger.read() as conn:
                known = artifacts.find(conn, execution_id, ArtifactKind.PHYSICAL_GRAPH)
                if known is not None:
                    return StepReport(execution, known, dict(known.metadata), done_before=True)
                graph = self._document(conn, execution_id, ArtifactKind.PATCHED_GRAPH)
                manifest = self._document(conn, execution_id, ArtifactKind.MANIFEST)
            profile = profile_of(execution)
            translator = self.backends.translator(profile)
            template = translator.translate(
                graph,
                algorithm=profile.translation.algo,
                num_partitions=profile.translation.num_par,
                num_islands=max(1, profile.translation.num_islands),
                oid_prefix=execution.id,
            )
            if find_ingest(graph) is not None:
                verify_injection(template, embedded_text(manifest))
            backend = self.backends.backend(profile)
            nodes = backend.nodes()
            if not nodes:
                raise BackendUnavailableError(
                    f"the island manager at {backend.url} has no node manager now",
                    code="no_nodes",
                    hint="it goes on by itself when a node manager is there",
                )
            drops: Any = map_to_nodes(template, nodes=nodes, island=backend.island)
            facts: dict[str, JsonValue] = summary(drops).as_dict()
            with self.ledger.begin() as conn:
                now = self.clock.now()
                artifact = artifacts.put(
                    conn,
                    execution_id,
                    ArtifactKind.PHYSICAL_GRAPH,
                    drops,
                    phase=ControlPhase.TRANSLATED,
                    facts=facts,
                    ids=self.ids,
                    now=now,
                )
                execution = executions.move(  # noqa: PLW2901  # the same execution, moved
                    conn,
                    execution,
                    now=now,
                    patch=fsm.StatusPatch(clear_error=True),
                    values={
                        "physical_graph_sha256": artifact.sha256,
                        "control_phase": ControlPhase.TRANSLATED,
                        "drop_counts": {"total": len(drops)},
                    },
                )
                self.tell(
                    conn, execution, "execution.translated", {"sha256": artifact.sha256, "drops": len(drops)}
                )
            return StepReport(execution, artifact, dict(facts))

    # -- shared -------------------------------------------------------------------------------------------

    @contextmanager
    def working(self, execution_id: str, holder: str) -> Iterator[tuple[Execution, Holder]]:
        """Hold the execution while a step works on it, and write down why it could not be done.

        Raises
        ------
        ConflictError
            ``execution_busy``, ``execution_terminal``.
        BeampipeError
            Whatever the step raised, after it was recorded.
        """
        with holding(
            ledger=self.ledger,
            clock=self.clock,
            execution_id=execution_id,
            token=holder,
            seconds=self._lease_seconds,
        ) as held:
            with self.ledger.read() as conn:
                execution = executions.get(conn, execution_id)
            if execution.terminal:
                raise ConflictError(
                    f"execution {execution_id} is {execution.status}",
                    code="execution_terminal",
                    hint="a terminal execution is never run again; a new signature makes a new one",
                )
            if execution.cancel_requested_at is not None and execution.submission_state not in MAY_EXIST:
                self._let_go(execution_id, holder)
                raise to_be_cancelled(execution_id)
            if execution.status is Status.RETRYING:
                execution = self._again(execution)
            try:
                yield execution, held
            except ConflictError as error:
                if error.code in {NOT_READY, CANCEL_REQUESTED}:
                    self._let_go(execution_id, holder)
                raise
            except BeampipeError as error:
                self._record_failure(execution_id, holder, error)
                raise
            except Exception as error:
                failure = BeampipeError(
                    f"{type(error).__name__}: {error}", hint="this is a defect; please report it"
                )
                self._record_failure(execution_id, holder, failure)
                raise failure from error

    def _again(self, execution: Execution) -> Execution:
        """A retry begins: from here on it is an execution that runs, like any other."""
        with self.ledger.begin() as conn:
            patch = fsm.StatusPatch(status=Status.RUNNING)
            return executions.move(conn, execution, now=self.clock.now(), patch=patch)

    def _let_go(self, execution_id: str, holder: str) -> None:
        with self.ledger.begin() as conn:
            executions.release_lease(conn, execution_id, holder)

    def _record_failure(self, execution_id: str, holder: str, error: BeampipeError) -> None:
        with self.ledger.begin() as conn:
            execution = executions.get(conn, execution_id, lock=True)
            if execution.terminal or execution.submission_state in MAY_EXIST:
                return  # what becomes of a session is for the poll to say, whatever went wrong here
            if error.retry is Retry.LATER:
                self._wait(conn, execution, error)
                executions.release_lease(conn, execution_id, holder)
            else:
                finish(
                    conn,
                    execution,
                    Status.FAILED,
                    outcome=TerminalOutcome.FAILED,
                    clock=self.clock,
                    ids=self.ids,
                    error=str(error),
                    error_code=error.code,
                    failure_class=_failure_class(error).value,
                )

    def _wait(self, conn: Connection, execution: Execution, error: BeampipeError) -> None:
        now = self.clock.now()
        seconds = min(LONGEST_WAIT_SECONDS, FIRST_WAIT_SECONDS * 2 ** min(execution.wait_count, 10))
        executions.move(
            conn,
            execution,
            now=now,
            patch=fsm.StatusPatch(error=str(error)),
            values={
                "last_error_code": error.code,
                "wait_count": execution.wait_count + 1,
                "next_launch_at": now + timedelta(seconds=seconds),
            },
        )
        if execution.last_error_code != error.code or execution.wait_count == 0:
            payload = {**error.as_dict(), "control_phase": execution.control_phase.value}
            self.tell(conn, execution, "execution.waiting", payload)

    def tell(self, conn: Connection, execution: Execution, event_type: str, payload: dict[str, Any]) -> None:
        """Tell the same event about every source of the execution."""
        provenance.record(
            conn,
            [
                provenance.Event(
                    event_type=event_type,
                    project_module=execution.project_module,
                    source_identifier=name,
                    execution_id=execution.id,
                    correlation_id=execution.claim_token,
                    payload=payload,
                )
                for name in execution.source_identifiers
            ],
            ids=self.ids,
            now=self.clock.now(),
        )

    def _config(self, conn: Connection, execution: Execution) -> ProjectConfig:
        return ProjectConfig.from_json(projects.revision(conn, execution.project_config_id).spec)

    @staticmethod
    def _document(conn: Connection, execution_id: str, kind: ArtifactKind) -> Any:  # noqa: ANN401  # JSON of a known shape
        return artifacts.load(conn, needed(conn, execution_id, kind).id)


def needed(conn: Connection, execution_id: str, kind: ArtifactKind) -> Artifact:
    """The document that a step works on.

    Raises
    ------
    ConflictError
        ``step_not_ready``: the step that makes it waits itself, which is no failure of this one.
    """
    found = artifacts.find(conn, execution_id, kind)
    if found is None:
        raise ConflictError(
            f"execution {execution_id} has no {kind.value} yet",
            code=NOT_READY,
            hint="the steps before have to be done first; the execution goes on by itself",
            retry=Retry.LATER,
        )
    return found


def profile_of(execution: Execution) -> DeploymentProfile:
    """The deployment profile as it was when the execution was admitted."""
    return DeploymentProfile.from_snapshot(execution.deployment_profile_snapshot)


def _findings(found: list[Finding]) -> list[JsonValue]:
    """Lint findings as JSON; a serious one stops the execution before it costs anything.

    Raises
    ------
    GraphError
        ``graph_lint_failed``.
    """
    listed: list[JsonValue] = [finding.as_dict() for finding in found]
    serious = [finding for finding in found if finding.severity is Severity.ERROR]
    if serious:
        raise GraphError(
            f"the patched graph cannot run: {serious[0].message}",
            code="graph_lint_failed",
            hint="correct the logical graph or the patches, then add the project again",
            details={"findings": listed},
        )
    return listed


def _manifest_facts(execution: Execution) -> dict[str, Any]:
    manifest = {k: v for k, v in (execution.workflow_manifest or {}).items() if k != run_record.KEY}
    return {"manifest": manifest, "datasets": execution.dataset_count}


def _failure_class(error: BeampipeError) -> FailureClass:
    if isinstance(error, GraphError):
        return FailureClass.GRAPH
    if isinstance(error, ConfigError):
        return FailureClass.CONFIGURATION
    return _CLASS_OF_CODE.get(error.code, FailureClass.VALIDATION)
