"""The revisions of a survey: their history, what two differ in, what one would change, and going back.

A revision is never changed. Going back makes an older one active again, in one transaction and with an
event; executions that are on their way keep the revision that they were admitted with.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from sqlalchemy.engine import Connection

from beampipe_dagster.clock import Clock, rfc3339
from beampipe_dagster.config.canonical import JsonValue
from beampipe_dagster.config.diagnostics import Diagnostic, Severity
from beampipe_dagster.config.profile import DeploymentProfile
from beampipe_dagster.config.project import ProjectConfig
from beampipe_dagster.config.validation import load_project
from beampipe_dagster.discovery.quarantine import release_failing
from beampipe_dagster.errors import BeampipeError, ConfigError, ConflictError, GraphError, NotFoundError
from beampipe_dagster.execution.explain import EXAMPLE_SOURCE, Expected, Explanation
from beampipe_dagster.execution.explain import explain as explain_config
from beampipe_dagster.execution.graph import diff_graphs, parse_graph
from beampipe_dagster.execution.impact import Impact, impact_of
from beampipe_dagster.execution.plugins import Plugins
from beampipe_dagster.execution.profile_check import check_profile, named_profile
from beampipe_dagster.execution.projects import checked_graph, in_flight_pins, read_text
from beampipe_dagster.execution.revision_diff import Change, ConfigDiff, Effect, diff_configs
from beampipe_dagster.ids import Ids
from beampipe_dagster.ledger import archive, executions, profiles, projects, provenance, sources
from beampipe_dagster.ledger.engine import Ledger, queue
from beampipe_dagster.ledger.projects import ProjectRevision

ACTIVATED = "config.activated"

JsonObject = dict[str, JsonValue]


@dataclass(frozen=True, slots=True)
class Activation:
    """When a revision became active, and who did it."""

    at: datetime
    actor: str

    def as_dict(self) -> JsonObject:
        """The activation as JSON."""
        return {"at": rfc3339(self.at), "actor": self.actor}


@dataclass(frozen=True, slots=True)
class RevisionEntry:
    """A revision in a survey's history.

    Parameters
    ----------
    revision
        The revision.
    activations
        When it became active, oldest first; more than once when somebody went back to it.
    executions, in_flight
        How many executions were admitted with it, and how many of them are on their way.
    """

    revision: ProjectRevision
    activations: tuple[Activation, ...]
    executions: int
    in_flight: int

    def as_dict(self) -> JsonObject:
        """The entry as JSON, without the document itself."""
        return {
            **revision_dict(self.revision),
            "activations": [activation.as_dict() for activation in self.activations],
            "executions": self.executions,
            "in_flight": self.in_flight,
        }


@dataclass(frozen=True, slots=True)
class Activated:
    """The active revision, the one that was active before, and what is worth knowing about the change."""

    revision: ProjectRevision
    previous: ProjectRevision
    changed: bool
    warnings: tuple[Diagnostic, ...] = ()

    def as_dict(self) -> JsonObject:
        """The result as JSON."""
        return {
            **revision_dict(self.revision),
            "previous_version": self.previous.version,
            "changed": self.changed,
            "warnings": [warning.as_dict() for warning in self.warnings],
        }


@dataclass(frozen=True, slots=True)
class RevisionDiff:
    """What two revisions of a survey differ in.

    Parameters
    ----------
    project_id
        The survey.
    old, new
        What is compared: ``revision 3``, or a file's name.
    diff
        The changes, and the text diff.
    graph
        What their graphs differ in, where they do and both are kept.
    """

    project_id: str
    old: str
    new: str
    diff: ConfigDiff
    graph: JsonObject | None = None

    def as_dict(self) -> JsonObject:
        """The diff as JSON."""
        return {
            "project_id": self.project_id,
            "old": self.old,
            "new": self.new,
            **self.diff.as_dict(),
            "graph": self.graph,
        }


class RevisionService:
    """Use cases around the revisions of surveys."""

    def __init__(self, *, ledger: Ledger, clock: Clock, ids: Ids) -> None:
        self._ledger = ledger
        self._clock = clock
        self._ids = ids

    def activate(self, project_id: str, version: int, *, actor: str) -> Activated:
        """Make a stored revision the active one. The one that is active already changes nothing.

        Raises
        ------
        NotFoundError
            ``project_not_found``, ``revision_not_found``, ``graph_not_found``, ``graph_damaged``.
        ConfigError
            ``revision_unusable``: this release cannot read its document. ``plugin_missing`` and
            ``plugin_version``: it was made with code that is not there.
        GraphError
            Its patches do not fit its graph.
        """
        now = self._clock.now()
        with self._ledger.begin() as conn:
            queue(conn, "project_configs")
            previous = projects.active(conn, project_id)
            chosen = projects.by_version(conn, project_id, version)
            if chosen.id == previous.id:
                return Activated(chosen, previous, changed=False)
            config = _config(chosen)
            Plugins().of(config)
            raw = projects.graph(conn, chosen.graph_sha256) if chosen.graph_sha256 else None
            checked_graph(config, raw)
            revision = projects.make_active(conn, chosen)
            warnings = _signature_warnings(previous, config) + in_flight_pins(conn, project_id, revision.id)
            # The way back stays open: executions wait for a profile that is not there, and say so.
            warnings += tuple(
                replace(item, severity=Severity.WARNING) for item in check_profile(conn, config)
            )
            event = provenance.Event(
                event_type=ACTIVATED,
                project_module=project_id,
                actor=actor,
                payload={
                    "spec_sha256": revision.spec_sha256,
                    "version": revision.version,
                    "previous_version": previous.version,
                },
            )
            provenance.record(conn, [event], ids=self._ids, now=now)
            release_failing(conn, revision, actor=actor, ids=self._ids, now=now)
        return Activated(revision, previous, changed=True, warnings=warnings)

    def history(self, project_id: str) -> tuple[RevisionEntry, ...]:
        """Every revision of a survey, newest first.

        Raises
        ------
        NotFoundError
            ``project_not_found``.
        """
        with self._ledger.read() as conn:
            projects.active(conn, project_id)
            found = projects.revisions(conn, project_id)
            events = provenance.of_type(conn, project_id, ACTIVATED)
            counts = executions.counts_by_revision(conn, project_id)
        activations: dict[int, list[Activation]] = {}
        for event in events:
            version = event.payload.get("version")
            if isinstance(version, int):
                activations.setdefault(version, []).append(Activation(event.occurred_at, event.actor))
        return tuple(
            RevisionEntry(
                revision, tuple(activations.get(revision.version, ())), *counts.get(revision.id, (0, 0))
            )
            for revision in found
        )

    def diff(self, project_id: str, old: int, new: int | None = None) -> RevisionDiff:
        """What two revisions differ in; without a second one, the active one.

        Raises
        ------
        NotFoundError
            ``project_not_found``, ``revision_not_found``.
        ConfigError
            ``revision_unusable``.
        """
        with self._ledger.read() as conn:
            before = projects.by_version(conn, project_id, old)
            after = (
                projects.active(conn, project_id)
                if new is None
                else projects.by_version(conn, project_id, new)
            )
            names = (f"revision {before.version}", f"revision {after.version}")
            graph = _graph_diff(conn, before.graph_sha256, after.graph_sha256)
        diff = diff_configs(
            _config(before),
            _config(after),
            old_text=before.source_text,
            new_text=after.source_text,
            names=names,
        )
        return RevisionDiff(project_id, *names, _with_graph(diff, graph), graph)

    def diff_file(self, path: Path) -> RevisionDiff:
        """What a file would change against the active revision of its survey.

        Raises
        ------
        ConfigError
            The file is not valid.
        NotFoundError
            ``project_not_found``.
        """
        text = read_text(path, what="project")
        config = load_project(text, name=str(path))
        with self._ledger.read() as conn:
            before = projects.active(conn, config.metadata.id)
            pin = (config.graph.sha256 or "").lower() if config.graph else None
            graph = _graph_diff(conn, before.graph_sha256, pin)
        names = (f"revision {before.version}", str(path))
        diff = diff_configs(_config(before), config, old_text=before.source_text, new_text=text, names=names)
        return RevisionDiff(config.metadata.id, *names, _with_graph(diff, graph), graph)

    def impact(self, project_id: str, config: ProjectConfig) -> Impact:
        """What a configuration would change for the survey's sources, from the ledger's rows alone.

        Raises
        ------
        NotFoundError
            ``project_not_found``.
        ConflictError
            ``another_project``: the configuration is of another survey.
        """
        if config.metadata.id != project_id:
            raise ConflictError(
                f"the configuration is of project {config.metadata.id!r}, not of {project_id!r}",
                code="another_project",
                hint="compare a survey with its own revisions",
            )
        with self._ledger.read() as conn:
            active = projects.active(conn, project_id)
            turns = provenance.of_type(conn, project_id, ACTIVATED)
            since = turns[-1].occurred_at if turns else active.created_at
            return impact_of(conn, config, old=_config(active), since=since)

    def impact_of_version(self, project_id: str, version: int) -> Impact:
        """What going to a stored revision would change; as :meth:`impact`."""
        with self._ledger.read() as conn:
            revision = projects.by_version(conn, project_id, version)
        return self.impact(project_id, _config(revision))

    def impact_of_file(self, path: Path) -> Impact:
        """What adding a file would change; as :meth:`impact`."""
        config = load_project(read_text(path, what="project"), name=str(path))
        return self.impact(config.metadata.id, config)

    def explain(
        self, project_id: str, *, version: int | None = None, source_identifier: str | None = None
    ) -> Explanation:
        """A stored revision in plain words, with its profile and one of its sources filled in.

        Raises
        ------
        NotFoundError
            ``project_not_found``, ``revision_not_found``.
        """
        with self._ledger.read() as conn:
            revision = (
                projects.active(conn, project_id)
                if version is None
                else projects.by_version(conn, project_id, version)
            )
            config = _config(revision)
            profile = _profile(conn, config)
            registered = sources.listing(conn, project_id, limit=1)
            expected = Expected.of(archive.dataset_counts(conn, project_id))
        example = source_identifier or (registered[0].source_identifier if registered else EXAMPLE_SOURCE)
        return explain_config(config, profile, source_identifier=example, expected=expected)

    def explain_file(self, path: Path, *, source_identifier: str | None = None) -> Explanation:
        """A project file in plain words; it need not be added."""
        config = load_project(read_text(path, what="project"), name=str(path))
        with self._ledger.read() as conn:
            profile = _profile(conn, config)
            expected = Expected.of(archive.dataset_counts(conn, config.metadata.id))
        example = source_identifier or EXAMPLE_SOURCE
        return explain_config(config, profile, source_identifier=example, expected=expected)


def revision_dict(revision: ProjectRevision) -> JsonObject:
    """A revision as JSON, without its document."""
    return {
        "project_id": revision.project_id,
        "revision_id": revision.id,
        "version": revision.version,
        "active": revision.active,
        "spec_sha256": revision.spec_sha256,
        "graph_sha256": revision.graph_sha256,
        "created_at": rfc3339(revision.created_at),
    }


def _config(revision: ProjectRevision) -> ProjectConfig:
    try:
        return ProjectConfig.from_json(revision.spec)
    except ConfigError as error:
        raise ConfigError(
            f"revision {revision.version} of {revision.project_id!r} cannot be read: {error.message}",
            code="revision_unusable",
            hint="it was stored by another release; add its file again",
        ) from error


def _profile(conn: Connection, config: ProjectConfig) -> DeploymentProfile | None:
    try:
        stored = profiles.resolve(conn, name=named_profile(config), project_module=config.metadata.id)
        return DeploymentProfile.from_snapshot(stored.spec)
    except BeampipeError:  # an explanation does without
        return None


def _signature_warnings(previous: ProjectRevision, config: ProjectConfig) -> tuple[Diagnostic, ...]:
    """The changes that may make sources run again, as they are warned of when a file is added."""
    try:
        diff = diff_configs(_config(previous), config, names=("", ""))
    except ConfigError:  # the way back from a revision that cannot be read must stay open
        return ()
    return tuple(
        Diagnostic(
            path=change.path,
            severity=Severity.WARNING,
            code=change.code,
            message=f"{change.message}: sources may get new signatures and run again",
            hint="`beampipe project impact` says how many.",
        )
        for change in diff.changes
        if Effect.SIGNATURES in change.effects
    )


def _graph_diff(conn: Connection, old: str | None, new: str | None) -> JsonObject | None:
    if not old or not new or old == new or not projects.has_graph(conn, new):
        return None
    try:
        graphs = [parse_graph(projects.graph(conn, one), sha256=None, name=one[:12]) for one in (old, new)]
    except (GraphError, NotFoundError):
        return None
    return diff_graphs(graphs[0], graphs[1])


def _with_graph(diff: ConfigDiff, graph: JsonObject | None) -> ConfigDiff:
    """The diff with a word on which nodes of the graph changed."""
    if graph is None:
        return diff
    counts = f"{graph['before_node_count']} → {graph['after_node_count']} nodes"
    words = f" ({counts}, {graph['changed_node_count']} added, removed or modified)"
    changes = tuple(
        Change(change.path, change.code, change.message + words, change.effects)
        if change.code == "graph_changed"
        else change
        for change in diff.changes
    )
    return ConfigDiff(changes, diff.text)
