"""Adding a survey or a profile: validated, its graph read and pinned, stored as a revision; or refused whole."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sqlalchemy.engine import Connection

from beampipe_dagster.clock import Clock
from beampipe_dagster.config.diagnostics import Diagnostic, Severity
from beampipe_dagster.config.profile import DeploymentProfile, load_profile
from beampipe_dagster.config.project import ProjectConfig
from beampipe_dagster.config.validation import load_project, project_advice, validate_project
from beampipe_dagster.config.yaml_loader import load_yaml
from beampipe_dagster.discovery.quarantine import release_failing
from beampipe_dagster.errors import ConfigError, InputError
from beampipe_dagster.execution.graph import MAX_GRAPH_BYTES, parse_graph
from beampipe_dagster.execution.graph_fetch import GraphFetcher
from beampipe_dagster.execution.graph_lint import Finding
from beampipe_dagster.execution.patch_check import check_patches, refuse_errors
from beampipe_dagster.execution.plugins import Plugins
from beampipe_dagster.execution.profile_check import check_profile, refuse_unknown
from beampipe_dagster.ids import Ids
from beampipe_dagster.ledger import executions, profiles, projects, provenance
from beampipe_dagster.ledger.engine import Ledger, queue
from beampipe_dagster.ledger.profiles import StoredProfile
from beampipe_dagster.ledger.projects import ProjectRevision

FILE_LIMIT: Final = 1024 * 1024
GRAPH_LIMIT: Final = MAX_GRAPH_BYTES
IN_FLIGHT_LISTED: Final = 5


@dataclass(frozen=True, slots=True)
class AddedProject:
    """The active revision, and whether it is a new one.

    Parameters
    ----------
    revision
        The active revision.
    changed
        Whether it is a new one.
    warnings
        What is worth knowing about the file, also against the revision that was active before.
    findings
        What is worth knowing about its patches, with the graph at hand.
    """

    revision: ProjectRevision
    changed: bool
    warnings: tuple[Diagnostic, ...] = ()
    findings: tuple[Finding, ...] = ()


class ProjectService:
    """Use cases around surveys and profiles.

    Parameters
    ----------
    home
        Where graphs are looked for beside the project file's own directory.
    fetcher
        Fetches graphs that are given by URL; by default from public addresses only.
    """

    def __init__(
        self, *, ledger: Ledger, clock: Clock, ids: Ids, home: Path, fetcher: GraphFetcher | None = None
    ) -> None:
        self._ledger = ledger
        self._clock = clock
        self._ids = ids
        self._home = home
        self._fetcher = fetcher or GraphFetcher()

    def add_project(self, path: Path, *, actor: str) -> AddedProject:
        """Validate a survey's YAML, read its graph, and make it the active revision.

        The same document again makes no new revision.

        Raises
        ------
        ConfigError
            ``invalid_project`` with every diagnostic, ``profile_not_found``, ``graph_unreadable``,
            ``plugin_missing`` …; nothing is stored.
        GraphError
            The graph cannot be had, is not the pinned one, or the patches do not fit it; nothing is stored.
        """
        text = read_text(path, what="project")
        config = load_project(text, name=str(path))
        Plugins().of(config)  # a plug-in that is not there would keep every source from being looked at
        with self._ledger.read() as conn:
            about_profile = check_profile(conn, config, load_yaml(text, name=str(path)))
        refuse_unknown(about_profile, name=str(path))
        raw = self.graph_bytes(config, path)
        findings = checked_graph(config, raw)
        now = self._clock.now()
        with self._ledger.begin() as conn:
            queue(conn, "project_configs")
            known = projects.find_active(conn, config.metadata.id)
            if known is not None and known.spec_sha256 == config.spec_sha256:
                advice = project_advice(text, name=str(path)) + about_profile
                return AddedProject(known, changed=False, warnings=advice, findings=findings)
            graph_sha256 = (
                projects.put_graph(conn, raw, name=_graph_name(config), now=now) if raw is not None else None
            )
            revision = projects.add_revision(
                conn,
                revision_id=self._ids.new(),
                project_id=config.metadata.id,
                spec=config.as_json(),
                spec_sha256=config.spec_sha256,
                source_text=text,
                graph_sha256=graph_sha256,
                now=now,
            )
            warnings = against_active(text, name=str(path), known=known) + about_profile
            warnings += in_flight_pins(conn, revision.project_id, revision.id)
            event = provenance.Event(
                event_type="config.activated",
                project_module=revision.project_id,
                actor=actor,
                payload={"spec_sha256": revision.spec_sha256, "version": revision.version},
            )
            provenance.record(conn, [event], ids=self._ids, now=now)
            release_failing(conn, revision, actor=actor, ids=self._ids, now=now)
        return AddedProject(revision, changed=True, warnings=warnings, findings=findings)

    def add_profile(self, path: Path) -> tuple[StoredProfile, bool]:
        """Validate a deployment profile's JSON and store it under its name.

        Raises
        ------
        ConfigError
            ``invalid_profile`` with every diagnostic; nothing is stored.
        """
        return self.put_profile(load_profile(read_text(path, what="profile"), name=str(path)))

    def put_profile(self, profile: DeploymentProfile) -> tuple[StoredProfile, bool]:
        """Store a profile; the same content changes nothing."""
        with self._ledger.begin() as conn:
            return profiles.put(
                conn,
                profile_id=self._ids.new(),
                name=profile.name,
                project_module=profile.project_module,
                is_default=profile.is_default,
                max_concurrent_executions=profile.max_concurrent_executions,
                spec=profile.as_json(),
                spec_sha256=profile.spec_sha256,
                now=self._clock.now(),
            )

    def graph_bytes(self, config: ProjectConfig, project_file: Path) -> bytes | None:
        """The raw bytes of a survey's graph; ``None`` for a survey without one.

        A path is looked up beside the project file, else below the home, else below the working directory.
        A URL is fetched when the ledger has no graph of that digest yet.

        Raises
        ------
        ConfigError
            ``graph_unreadable``.
        GraphError
            As :meth:`~beampipe_dagster.execution.graph_fetch.GraphFetcher.fetch`.
        """
        if config.graph is None:
            return None
        if config.graph.url and not config.graph.path:
            return self._fetched(config.graph.url, (config.graph.sha256 or "").strip().lower())
        wanted = Path(config.graph.path or "")
        places = [
            base / wanted for base in dict.fromkeys((project_file.resolve().parent, self._home, Path.cwd()))
        ]
        for place in places:
            if place.is_file():
                return _bounded_bytes(place, GRAPH_LIMIT, what="graph")
        raise ConfigError(
            f"the graph {config.graph.path!r} of project {config.metadata.id!r} is not there",
            code="graph_unreadable",
            hint="looked for it at " + ", ".join(str(place) for place in places),
        )

    def _fetched(self, url: str, pin: str) -> bytes:
        """What the digest names is the same for ever: a graph that is in the ledger is not fetched again."""
        with self._ledger.read() as conn:
            if pin and projects.has_graph(conn, pin):
                return projects.graph(conn, pin)
        raw = self._fetcher.fetch(url, sha256=pin)
        # Kept at once, so that a project that is then refused for another reason does not fetch it again.
        with self._ledger.begin() as conn:
            projects.put_graph(conn, raw, name=url, now=self._clock.now())
        return raw


def checked_graph(config: ProjectConfig, raw: bytes | None) -> tuple[Finding, ...]:
    """Read a survey's graph and look at its patches; what is only worth knowing is the result.

    Raises
    ------
    GraphError
        ``graph_pin_mismatch``, ``invalid_graph`` …, or the first thing that is wrong with the patches.
    """
    if raw is None or config.graph is None:
        return ()
    graph = parse_graph(raw, sha256=config.graph.sha256, name=_graph_name(config))
    findings = check_patches(graph, config.graph_patches)
    refuse_errors(findings, name=config.metadata.id)
    return tuple(findings)


def against_active(text: str, *, name: str, known: ProjectRevision | None) -> tuple[Diagnostic, ...]:
    """The warnings about a file: on its own, and against the revision that it replaces."""
    advice = project_advice(text, name=name)
    try:
        active = ProjectConfig.from_json(known.spec) if known is not None else None
    except ConfigError:  # written by another release: there is nothing to compare with
        active = None
    return validate_project(text, name=name, active=active).warnings + advice


def in_flight_pins(conn: Connection, project_id: str, revision_id: str) -> tuple[Diagnostic, ...]:
    """A warning when executions of other revisions are on their way: they go on with their own."""
    pinned = executions.in_flight_of_other_revisions(conn, project_id, revision_id)
    if not pinned:
        return ()
    named = ", ".join(execution_id[:13] for execution_id in pinned[:IN_FLIGHT_LISTED])
    more = f" and {len(pinned) - IN_FLIGHT_LISTED} more" if len(pinned) > IN_FLIGHT_LISTED else ""
    return (
        Diagnostic(
            path="spec_sha256",
            severity=Severity.WARNING,
            code="in_flight_config_pins",
            message=f"executions on their way keep the revision that they were admitted with: {named}{more}",
            hint="They are not changed by this; cancel them if they must not go on.",
        ),
    )


def read_text(path: Path, *, what: str, limit: int = FILE_LIMIT) -> str:
    """A configuration file's text, of at most ``limit`` bytes.

    Raises
    ------
    InputError
        ``file_unreadable``, ``file_too_large``, ``file_not_text``.
    """
    raw = _bounded_bytes(path, limit, what=what)
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise InputError(
            f"the {what} file {path} is not UTF-8 text: byte {error.start}",
            code="file_not_text",
            hint="save it as UTF-8",
        ) from error


def _bounded_bytes(path: Path, limit: int, *, what: str) -> bytes:
    try:
        size = os.stat(path).st_size  # noqa: PTH116  # one call, also for what is no regular file
        if size > limit:
            raise InputError(
                f"the {what} file {path} has {size:,} bytes",
                code="file_too_large",
                hint=f"at most {limit:,} bytes are read",
            )
        return path.read_bytes()
    except OSError as error:
        raise InputError(
            f"the {what} file {path} cannot be read: {error.strerror}",
            code="file_unreadable",
            hint="check the path and its permissions",
        ) from error


def _graph_name(config: ProjectConfig) -> str:
    return (config.graph.path or config.graph.url or "graph") if config.graph else "graph"
