"""Revisions of surveys, and the logical graphs that they pin."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from beampipe_dagster.config.canonical import JsonValue, sha256_hex
from beampipe_dagster.errors import NotFoundError
from beampipe_dagster.ledger.rows import to_value
from beampipe_dagster.ledger.tables import graph_documents, project_configs


@dataclass(frozen=True, slots=True)
class ProjectRevision:
    """An immutable revision of a survey's configuration."""

    id: str
    project_id: str
    version: int
    spec: dict[str, JsonValue]
    spec_sha256: str
    source_text: str
    graph_sha256: str | None
    active: bool
    created_at: datetime


def add_revision(
    conn: Connection,
    *,
    revision_id: str,
    project_id: str,
    spec: JsonValue,
    spec_sha256: str,
    source_text: str,
    graph_sha256: str | None,
    now: datetime,
) -> ProjectRevision:
    """Store a revision and make it the active one."""
    newest = conn.execute(
        sa.select(sa.func.max(project_configs.c.version)).where(project_configs.c.project_id == project_id)
    ).scalar()
    conn.execute(
        sa.update(project_configs)
        .where(project_configs.c.project_id == project_id, project_configs.c.active)
        .values(active=False)
    )
    conn.execute(
        sa.insert(project_configs).values(
            id=revision_id,
            project_id=project_id,
            version=(newest or 0) + 1,
            spec=spec,
            spec_sha256=spec_sha256,
            source_text=source_text,
            graph_sha256=graph_sha256,
            active=True,
            created_at=now,
        )
    )
    return revision(conn, revision_id)


def revision(conn: Connection, revision_id: str) -> ProjectRevision:
    """The revision with this id.

    Raises
    ------
    NotFoundError
        ``revision_not_found``.
    """
    row = conn.execute(sa.select(project_configs).where(project_configs.c.id == revision_id)).first()
    if row is None:
        raise NotFoundError(f"the ledger has no project revision {revision_id}", code="revision_not_found")
    return to_value(ProjectRevision, row)


def active(conn: Connection, project_id: str) -> ProjectRevision:
    """The active revision of a survey.

    Raises
    ------
    NotFoundError
        ``project_not_found``.
    """
    row = conn.execute(
        sa.select(project_configs).where(project_configs.c.project_id == project_id, project_configs.c.active)
    ).first()
    if row is None:
        known = [item.project_id for item in all_active(conn)]
        raise NotFoundError(
            f"there is no project {project_id!r}",
            code="project_not_found",
            hint=f"known projects: {', '.join(known) or 'none'}; add one with: beampipe project add FILE",
        )
    return to_value(ProjectRevision, row)


def find_active(conn: Connection, project_id: str) -> ProjectRevision | None:
    """The active revision of a survey, ``None`` when there is no such survey."""
    row = conn.execute(
        sa.select(project_configs).where(project_configs.c.project_id == project_id, project_configs.c.active)
    ).first()
    return to_value(ProjectRevision, row) if row else None


def revisions(conn: Connection, project_id: str) -> list[ProjectRevision]:
    """Every revision of a survey, newest first; none for a survey that is not there."""
    rows = conn.execute(
        sa.select(project_configs)
        .where(project_configs.c.project_id == project_id)
        .order_by(project_configs.c.version.desc())
    )
    return [to_value(ProjectRevision, row) for row in rows]


def by_version(conn: Connection, project_id: str, version: int) -> ProjectRevision:
    """A revision by its number.

    Raises
    ------
    NotFoundError
        ``project_not_found``, or ``revision_not_found`` with the numbers that there are.
    """
    row = conn.execute(
        sa.select(project_configs).where(
            project_configs.c.project_id == project_id, project_configs.c.version == version
        )
    ).first()
    if row is not None:
        return to_value(ProjectRevision, row)
    newest = active(conn, project_id)  # says so when there is no such project at all
    known = [str(item.version) for item in revisions(conn, project_id)]
    shown = ", ".join(known[:20]) + (", …" if len(known) > 20 else "")
    raise NotFoundError(
        f"project {project_id!r} has no revision {version}",
        code="revision_not_found",
        hint=f"it has {shown}; {newest.version} is the active one",
    )


def make_active(conn: Connection, chosen: ProjectRevision) -> ProjectRevision:
    """Make a stored revision the active one of its survey."""
    mine = project_configs.c.project_id == chosen.project_id
    conn.execute(sa.update(project_configs).where(mine, project_configs.c.active).values(active=False))
    conn.execute(sa.update(project_configs).where(project_configs.c.id == chosen.id).values(active=True))
    return revision(conn, chosen.id)


def all_active(conn: Connection) -> list[ProjectRevision]:
    """The active revision of every survey, by name."""
    rows = conn.execute(
        sa.select(project_configs).where(project_configs.c.active).order_by(project_configs.c.project_id)
    )
    return [to_value(ProjectRevision, row) for row in rows]


def put_graph(conn: Connection, raw: bytes, *, name: str, now: datetime) -> str:
    """Keep a logical graph's raw bytes; the same bytes are kept once. Gives their SHA-256."""
    digest = sha256_hex(raw)
    known = conn.execute(
        sa.select(graph_documents.c.sha256).where(graph_documents.c.sha256 == digest)
    ).first()
    if known is None:
        conn.execute(
            sa.insert(graph_documents).values(
                sha256=digest,
                name=name,
                size_bytes=len(raw),
                content=zlib.compress(raw),
                created_at=now,
            )
        )
    return digest


def has_graph(conn: Connection, sha256: str) -> bool:
    """Whether a logical graph of this SHA-256 (lower case) is kept."""
    found = conn.execute(sa.select(graph_documents.c.sha256).where(graph_documents.c.sha256 == sha256))
    return found.first() is not None


def graph(conn: Connection, sha256: str) -> bytes:
    """The raw bytes of a logical graph.

    Raises
    ------
    NotFoundError
        ``graph_not_found``, or ``graph_damaged`` when the bytes are not those that were stored.
    """
    content = conn.execute(
        sa.select(graph_documents.c.content).where(graph_documents.c.sha256 == sha256)
    ).scalar()
    if content is None:
        raise NotFoundError(
            f"the ledger has no graph {sha256[:12]}",
            code="graph_not_found",
            hint="add the project again: beampipe project add FILE",
        )
    try:
        raw = zlib.decompress(content)
    except zlib.error:
        raw = b""
    if sha256_hex(raw) != sha256:
        raise NotFoundError(
            f"the ledger's graph {sha256[:12]} is not what was stored",
            code="graph_damaged",
            hint="restore the ledger from a backup",
        )
    return raw
