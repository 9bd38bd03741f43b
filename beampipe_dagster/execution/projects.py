"""Adding a survey or a profile: validated, its graph read and pinned, stored as a revision; or refused whole."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from beampipe_dagster.clock import Clock
from beampipe_dagster.config.profile import DeploymentProfile, load_profile
from beampipe_dagster.config.project import ProjectConfig
from beampipe_dagster.config.validation import load_project
from beampipe_dagster.errors import ConfigError, InputError
from beampipe_dagster.execution.graph import parse_graph
from beampipe_dagster.ids import Ids
from beampipe_dagster.ledger import profiles, projects, provenance
from beampipe_dagster.ledger.engine import Ledger, queue
from beampipe_dagster.ledger.profiles import StoredProfile
from beampipe_dagster.ledger.projects import ProjectRevision

FILE_LIMIT: Final = 1024 * 1024
GRAPH_LIMIT: Final = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class AddedProject:
    """The active revision, and whether it is a new one."""

    revision: ProjectRevision
    changed: bool


class ProjectService:
    """Use cases around surveys and profiles."""

    def __init__(self, *, ledger: Ledger, clock: Clock, ids: Ids, home: Path) -> None:
        self._ledger = ledger
        self._clock = clock
        self._ids = ids
        self._home = home

    def add_project(self, path: Path, *, actor: str) -> AddedProject:
        """Validate a survey's YAML, read its graph, and make it the active revision.

        The same document again makes no new revision.

        Raises
        ------
        ConfigError
            ``invalid_project`` with every diagnostic, ``graph_unreadable``, ``graph_pin_mismatch`` …; nothing is
            stored.
        """
        text = read_text(path, what="project")
        config = load_project(text, name=str(path))
        raw = self._graph_bytes(config, path)
        if raw is not None and config.graph is not None:
            parse_graph(raw, sha256=config.graph.sha256, name=config.graph.path or "graph")
        now = self._clock.now()
        with self._ledger.begin() as conn:
            queue(conn, "project_configs")
            known = {item.project_id: item for item in projects.all_active(conn)}.get(config.metadata.id)
            if known is not None and known.spec_sha256 == config.spec_sha256:
                return AddedProject(known, changed=False)
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
            event = provenance.Event(
                event_type="config.activated",
                project_module=revision.project_id,
                actor=actor,
                payload={"spec_sha256": revision.spec_sha256, "version": revision.version},
            )
            provenance.record(conn, [event], ids=self._ids, now=now)
        return AddedProject(revision, changed=True)

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

    def _graph_bytes(self, config: ProjectConfig, project_file: Path) -> bytes | None:
        """The graph beside the project file, else below the home, else below the working directory."""
        if config.graph is None:
            return None
        if not config.graph.path:
            raise ConfigError(
                f"project {config.metadata.id!r} gives its graph by URL",
                code="graph_url_unsupported",
                hint="download the graph and give graph.path; the pin stays the same",
            )
        wanted = Path(config.graph.path)
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


def read_text(path: Path, *, what: str) -> str:
    """A configuration file's text.

    Raises
    ------
    InputError
        ``file_unreadable``, ``file_too_large``, ``file_not_text``.
    """
    raw = _bounded_bytes(path, FILE_LIMIT, what=what)
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
