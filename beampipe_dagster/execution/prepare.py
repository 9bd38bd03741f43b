"""What would run, without running it: sources, executions, manifests, graphs, caps, and all that speaks against it.

It only reads. The manifest is the one that an execution would have; the graph differs from that of an execution
only in what names the execution: the id of its graph configuration, and a time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy.engine import Connection

from beampipe_dagster.clock import Clock
from beampipe_dagster.config.canonical import JsonValue, digest
from beampipe_dagster.config.project import ExecutionAutomation, ProjectConfig
from beampipe_dagster.errors import BeampipeError, ConfigError
from beampipe_dagster.execution import request as asked
from beampipe_dagster.execution.creation import groups_of, key_of
from beampipe_dagster.execution.decisions import Cap, as_json
from beampipe_dagster.execution.graph import parse_graph, prepare_graph
from beampipe_dagster.execution.graph_lint import Finding, Severity, lint
from beampipe_dagster.execution.manifest import OVERRIDES, build_manifest
from beampipe_dagster.execution.patch_check import check_overrides
from beampipe_dagster.execution.plugins import Plugins, through_plugins
from beampipe_dagster.execution.records import signed_records
from beampipe_dagster.execution.request import Problem
from beampipe_dagster.execution.room import caps_of
from beampipe_dagster.execution.scope import check_manifest, datasets_of, tells_datasets_apart
from beampipe_dagster.execution.staged import plan_of, survey_stages, with_placeholders
from beampipe_dagster.ledger import archive, executions, pending, profiles, projects, sources
from beampipe_dagster.ledger.engine import Ledger
from beampipe_dagster.ledger.profiles import StoredProfile
from beampipe_dagster.ledger.projects import ProjectRevision
from beampipe_dagster.ledger.sources import Source

NOBODY: Final = "00000000-0000-0000-0000-000000000000"
"""Stands where a graph names its execution."""

MOMENT: Final = datetime(1970, 1, 1, tzinfo=UTC)
"""Stands where a graph names the time of its execution."""

GRAPHS: Final = 20
"""Executions of which manifest and graph are made; the rest is listed without them."""


@dataclass(frozen=True, slots=True)
class PreparedSource:
    """One of the sources: what its signature covers, and what keeps it from running."""

    source_identifier: str
    signature: str | None
    datasets: int
    sbids: int
    priority: int
    problems: tuple[Problem, ...] = ()


@dataclass(frozen=True, slots=True)
class PreparedExecution:
    """One of the executions that there would be.

    Attributes
    ----------
    manifest_sha256, graph_sha256
        Digests of the manifest and of the patched graph; ``None`` where they were not made, or cannot be.
    findings
        What there is to say about the graph, errors first.
    problems
        Why it could not get as far as a translated graph.
    """

    partition_key: str
    sources: tuple[str, ...]
    datasets: int
    manifest_sha256: str | None = None
    graph_sha256: str | None = None
    nodes: int | None = None
    findings: tuple[Finding, ...] = ()
    problems: tuple[Problem, ...] = ()


@dataclass(frozen=True, slots=True)
class Prepared:
    """What would happen, and what would keep it from happening.

    Attributes
    ----------
    problems
        What is about the survey, its profile or the rooms, and not about one source.
    caps
        By code of the cap: ``[in use, limit]``.
    """

    project_id: str
    version: int
    profile: str | None
    caps: dict[str, JsonValue]
    problems: tuple[Problem, ...] = ()
    sources: tuple[PreparedSource, ...] = ()
    executions: tuple[PreparedExecution, ...] = ()

    @property
    def ready(self) -> bool:
        """Whether all of it could run now."""
        if self.problems or any(one.problems for one in self.sources):
            return False
        return bool(self.executions) and not any(one.problems for one in self.executions)

    @property
    def datasets(self) -> int:
        """Datasets of all the executions."""
        return sum(one.datasets for one in self.executions)

    def as_dict(self) -> dict[str, Any]:
        """All of it as JSON."""
        blocked = Counter(problem.code for one in self.sources for problem in one.problems)
        return {
            "project_id": self.project_id,
            "project_version": self.version,
            "ready": self.ready,
            "profile": self.profile,
            "caps": self.caps,
            "totals": {
                "sources": len(self.sources),
                "ready_sources": sum(len(one.sources) for one in self.executions),
                "executions": len(self.executions),
                "datasets": self.datasets,
                "blocked": dict(sorted(blocked.items())),
            },
            "problems": [problem.as_dict() for problem in self.problems],
            "sources": [
                {
                    "source_identifier": one.source_identifier,
                    "signature": one.signature,
                    "datasets": one.datasets,
                    "sbids": one.sbids,
                    "priority": one.priority,
                    "problems": [problem.as_dict() for problem in one.problems],
                }
                for one in self.sources
            ],
            "executions": [
                {
                    "partition_key": one.partition_key,
                    "sources": [*one.sources],
                    "datasets": one.datasets,
                    "manifest_sha256": one.manifest_sha256,
                    "patched_graph_sha256": one.graph_sha256,
                    "nodes": one.nodes,
                    "findings": [finding.as_dict() for finding in one.findings],
                    "problems": [problem.as_dict() for problem in one.problems],
                }
                for one in self.executions
            ],
        }


@dataclass(slots=True)
class _Survey:
    """What is read once for all of the executions."""

    revision: ProjectRevision
    config: ProjectConfig
    graph: dict[str, Any] | None = None
    graph_problem: Problem | None = None
    names: list[str] = field(default_factory=list)


class Preparation:
    """Looks ahead.

    Parameters
    ----------
    max_in_flight
        Executions at a time, over all surveys.
    """

    def __init__(self, *, ledger: Ledger, clock: Clock, max_in_flight: int) -> None:
        self._ledger = ledger
        self._clock = clock
        self._max_in_flight = max_in_flight

    def prepare(
        self, project_id: str, names: Sequence[str] | None = None, *, profile: str | None = None
    ) -> Prepared:
        """Say what would run now: these sources as if they were launched by hand, or all that are pending.

        Raises
        ------
        NotFoundError
            ``project_not_found``.
        """
        with self._ledger.read() as conn:
            revision = projects.active(conn, project_id)
            survey = _Survey(revision, ProjectConfig.from_json(revision.spec))
            rules = survey.config.automation.execution or ExecutionAutomation()
            problems: list[Problem] = []
            caps: list[Cap] = []
            found: StoredProfile | None = None
            try:
                wanted = profile or rules.deployment_profile_name
                found = profiles.resolve(conn, name=wanted, project_module=project_id)
                counts = executions.active_counts(conn)
                caps = caps_of(project_id, rules, found, max_in_flight=self._max_in_flight, counts=counts)
            except BeampipeError as error:
                problems.append(asked.of_error(error))
            problems += asked.about_caps(caps, force=False)
            problems += asked.about_survey(survey.config, ())
            rows = self._rows(conn, survey, names, rules.tick_execution_source_limit)
            listed = _sources(conn, survey, rows)
            ready = [row for row, one in zip(rows, listed, strict=False) if not one.problems]
            self._read_graph(conn, survey)
            groups = groups_of(ready, rules.max_sources_per_execution)
            planned = [
                _execution(conn, survey, group, whole=number < GRAPHS) for number, group in enumerate(groups)
            ]
        return Prepared(
            project_id=project_id,
            version=revision.version,
            profile=f"{found.name} r{found.revision}" if found else None,
            caps=as_json(caps),
            problems=tuple(problems),
            sources=tuple(listed),
            executions=tuple(planned),
        )

    def _rows(
        self, conn: Connection, survey: _Survey, names: Sequence[str] | None, limit: int
    ) -> list[Source]:
        project_id, now = survey.revision.project_id, self._clock.now()
        if names is None:
            rows = pending.take(conn, project_id, limit=limit, now=now, lock=False)
            survey.names = [row.source_identifier for row in rows]
            return rows
        survey.names = [name.strip() for name in names]
        known = {row.source_identifier: row for row in sources.by_identifiers(conn, project_id, survey.names)}
        # Known ones first, in the order in which they were given: unknown ones have no row.
        return [known[name] for name in dict.fromkeys(survey.names) if name in known]

    def _read_graph(self, conn: Connection, survey: _Survey) -> None:
        revision = survey.revision
        try:
            if revision.graph_sha256 is None:
                raise ConfigError(
                    f"project {revision.project_id!r} has no graph",
                    code="graph_missing",
                    hint="give graph.path (or graph.url) and graph.sha256 in its YAML, then add it again",
                )
            raw = projects.graph(conn, revision.graph_sha256)
            survey.graph = parse_graph(raw, sha256=revision.graph_sha256, name=revision.project_id)
        except BeampipeError as error:
            survey.graph_problem = asked.of_error(error)


def _sources(conn: Connection, survey: _Survey, rows: Sequence[Source]) -> list[PreparedSource]:
    """The sources in the order of their turn, those that are not registered at the end."""
    project_id = survey.revision.project_id
    against: dict[str, list[Problem]] = {}
    for problem in asked.about_sources(conn, project_id, survey.names, rows):
        against.setdefault(problem.source or "", []).append(problem)
    known = [row.source_identifier for row in rows]
    datasets = archive.datasets_by_source(conn, project_id, known)
    metadata = archive.metadata_of(conn, project_id, known)
    listed = [
        PreparedSource(
            row.source_identifier,
            row.discovery_signature,
            datasets.get(row.source_identifier, 0),
            len(metadata.get(row.source_identifier, {})),
            row.priority,
            tuple(against.get(row.source_identifier, ())),
        )
        for row in rows
    ]
    absent = [name for name in dict.fromkeys(survey.names) if name not in set(known)]
    return listed + [PreparedSource(name, None, 0, 0, 0, tuple(against.get(name, ()))) for name in absent]


def _execution(
    conn: Connection, survey: _Survey, group: Sequence[Source], *, whole: bool
) -> PreparedExecution:
    signatures = {source.source_identifier: source.discovery_signature or "" for source in group}
    key, names = key_of(signatures), tuple(signatures)
    counted = archive.datasets_by_source(conn, survey.revision.project_id, names)
    datasets = sum(counted.values())
    if not whole:
        return PreparedExecution(key, names, datasets)
    made: str | None = None
    try:
        manifest = _manifest(conn, survey, signatures)
        made = digest(manifest)
        if survey.graph is None:
            against = (survey.graph_problem,) if survey.graph_problem else ()
            return PreparedExecution(key, names, datasets, made, problems=against)
        checked = check_overrides(survey.graph, manifest.get(OVERRIDES))
        prepared = prepare_graph(survey.graph, manifest, execution_id=NOBODY, modified_at=MOMENT)
    except BeampipeError as error:
        return PreparedExecution(key, names, datasets, made, problems=(asked.of_error(error),))
    findings = [*checked, *lint(prepared.graph, source=survey.graph)]
    serious = [finding for finding in findings if finding.severity is Severity.ERROR]
    return PreparedExecution(
        key,
        names,
        datasets,
        made,
        prepared.sha256,
        prepared.node_count,
        tuple(findings),
        tuple(Problem(one.code, one.message, one.hint or _MEND) for one in serious),
    )


_MEND: Final = "correct the logical graph or the patches, then add the project again"


def _manifest(conn: Connection, survey: _Survey, signatures: dict[str, str]) -> dict[str, Any]:
    wanted = [{"source_identifier": name, "discovery_signature": value} for name, value in signatures.items()]
    records = signed_records(conn, survey.revision.project_id, wanted)
    if survey_stages(survey.config):
        plan, own = plan_of(conn, survey.revision.project_id, wanted, survey.config)
        records = with_placeholders(records, plan, own)
    manifest = build_manifest(survey.config, records)
    manifest = through_plugins(survey.config, records, manifest, Plugins().of(survey.config))
    if tells_datasets_apart(survey.config):
        check_manifest(manifest, datasets_of(records))
    return manifest
