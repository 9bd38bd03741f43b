"""Immutable documents of executions: manifest, graphs, inventory."""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from beampipe_dagster.config.canonical import JsonValue, canonical_json, sha256_hex
from beampipe_dagster.errors import NotFoundError
from beampipe_dagster.ids import Ids
from beampipe_dagster.ledger.rows import to_value
from beampipe_dagster.ledger.states import ArtifactKind, ControlPhase
from beampipe_dagster.ledger.tables import execution_artifacts


@dataclass(frozen=True, slots=True)
class Artifact:
    """What is known about a document without reading it."""

    id: str
    execution_id: str
    kind: str
    storage_kind: str
    media_type: str
    sha256: str
    size_bytes: int
    producer_phase: str
    metadata: dict[str, JsonValue]
    created_at: datetime


_COLUMNS = [execution_artifacts.c[name] for name in Artifact.__slots__]


def put(
    conn: Connection,
    execution_id: str,
    kind: ArtifactKind,
    document: JsonValue,
    *,
    phase: ControlPhase,
    facts: dict[str, JsonValue] | None = None,
    ids: Ids,
    now: datetime,
) -> Artifact:
    """Keep a document; the same document of the same execution is kept once."""
    content = canonical_json(document).encode()
    digest = sha256_hex(content)
    known = _find(conn, execution_id, kind, digest)
    if known is not None:
        return known
    conn.execute(
        sa.insert(execution_artifacts).values(
            id=ids.new(),
            execution_id=execution_id,
            kind=kind.value,
            storage_kind="database",
            media_type="application/json",
            sha256=digest,
            size_bytes=len(content),
            content=zlib.compress(content),
            producer_phase=phase.value,
            metadata=facts or {},
            created_at=now,
        )
    )
    return describe(conn, execution_id, kind)


def put_published(
    conn: Connection,
    execution_id: str,
    report: JsonValue,
    *,
    uri: str,
    media_type: str,
    phase: str,
    facts: dict[str, JsonValue],
    ids: Ids,
    now: datetime,
) -> Artifact:
    """Keep the report about products that are at ``uri``; the caller made sure that it is the first."""
    content = canonical_json(report).encode()
    conn.execute(
        sa.insert(execution_artifacts).values(
            id=ids.new(),
            execution_id=execution_id,
            kind=ArtifactKind.OUTPUT_INVENTORY.value,
            storage_kind="remote",
            media_type=media_type,
            sha256=sha256_hex(content),
            size_bytes=len(content),
            content=zlib.compress(content),
            uri=uri,
            producer_phase=phase,
            metadata=facts,
            created_at=now,
        )
    )
    return describe(conn, execution_id, ArtifactKind.OUTPUT_INVENTORY)


def _find(conn: Connection, execution_id: str, kind: ArtifactKind, digest: str) -> Artifact | None:
    columns = execution_artifacts.c
    row = conn.execute(
        sa.select(*_COLUMNS).where(
            columns.execution_id == execution_id,
            columns.kind == kind.value,
            columns.sha256 == digest,
        )
    ).first()
    return to_value(Artifact, row) if row else None


def listing(conn: Connection, execution_id: str) -> list[Artifact]:
    """The execution's documents in the order of their making."""
    rows = conn.execute(
        sa.select(*_COLUMNS)
        .where(execution_artifacts.c.execution_id == execution_id)
        .order_by(execution_artifacts.c.created_at, execution_artifacts.c.id)
    )
    return [to_value(Artifact, row) for row in rows]


def find(conn: Connection, execution_id: str, kind: ArtifactKind) -> Artifact | None:
    """The newest document of this kind, if there is one."""
    columns = execution_artifacts.c
    row = conn.execute(
        sa.select(*_COLUMNS)
        .where(columns.execution_id == execution_id, columns.kind == kind.value)
        .order_by(columns.created_at.desc(), columns.id.desc())
        .limit(1)
    ).first()
    return to_value(Artifact, row) if row else None


def describe(conn: Connection, execution_id: str, kind: ArtifactKind) -> Artifact:
    """The newest document of this kind.

    Raises
    ------
    NotFoundError
        ``artifact_not_found``.
    """
    found = find(conn, execution_id, kind)
    if found is None:
        raise NotFoundError(f"execution {execution_id} has no {kind.value}", code="artifact_not_found")
    return found


def load(conn: Connection, artifact_id: str) -> JsonValue:
    """The document itself, checked against its digest.

    Raises
    ------
    NotFoundError
        ``artifact_not_found``, or ``artifact_damaged`` when the bytes are not those that were stored.
    """
    row = conn.execute(
        sa.select(execution_artifacts.c.content, execution_artifacts.c.sha256).where(
            execution_artifacts.c.id == artifact_id
        )
    ).first()
    if row is None or row.content is None:
        raise NotFoundError(f"there is no artifact {artifact_id}", code="artifact_not_found")
    try:
        content = zlib.decompress(row.content)
    except zlib.error:
        content = b""
    if sha256_hex(content) != row.sha256:
        raise NotFoundError(
            f"artifact {artifact_id} is not what was stored",
            code="artifact_damaged",
            hint="restore the ledger from a backup",
        )
    document: JsonValue = json.loads(content)
    return document
