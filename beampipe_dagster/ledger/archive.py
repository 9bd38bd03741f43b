"""The current metadata rows of sources, and the history of their signatures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from beampipe_dagster.config.canonical import JsonValue
from beampipe_dagster.errors import NotFoundError
from beampipe_dagster.ids import Ids
from beampipe_dagster.ledger.rows import to_value
from beampipe_dagster.ledger.sources import chunks
from beampipe_dagster.ledger.tables import archive_metadata, discovery_signatures, source_registry


@dataclass(frozen=True, slots=True)
class SignatureChange:
    """A change of a source's discovery signature."""

    id: str
    project_module: str
    source_identifier: str
    signature: str
    previous_signature: str | None
    partition_key: str
    project_config_id: str
    sbid_count: int
    dataset_count: int
    diff: dict[str, JsonValue]
    evidence: list[JsonValue]
    metadata_json: dict[str, JsonValue]
    discovered_at: datetime


def metadata_of(
    conn: Connection, project_module: str, identifiers: Sequence[str]
) -> dict[str, dict[str, dict[str, JsonValue]]]:
    """Metadata by source and SBID, SBIDs in text order; sources without rows are absent."""
    found: dict[str, dict[str, dict[str, JsonValue]]] = {}
    columns = archive_metadata.c
    for piece in chunks(identifiers):
        rows = conn.execute(
            sa.select(columns.source_identifier, columns.sbid, columns.metadata_json)
            .where(columns.project_module == project_module, columns.source_identifier.in_(piece))
            .order_by(columns.source_identifier, columns.sbid)
        )
        for row in rows:
            found.setdefault(row.source_identifier, {})[row.sbid] = row.metadata_json
    return found


def replace_metadata(
    conn: Connection,
    project_module: str,
    source_identifier: str,
    by_sbid: dict[str, dict[str, JsonValue]],
    *,
    ids: Ids,
    now: datetime,
) -> None:
    """Make ``by_sbid`` the source's metadata: vanished SBIDs go, the others are written."""
    columns = archive_metadata.c
    mine = (columns.project_module == project_module) & (columns.source_identifier == source_identifier)
    known = {row.sbid for row in conn.execute(sa.select(columns.sbid).where(mine))}
    gone = known - by_sbid.keys()
    if gone:
        conn.execute(sa.delete(archive_metadata).where(mine, columns.sbid.in_(gone)))
    kept = [sbid for sbid in by_sbid if sbid in known]
    if kept:
        conn.execute(
            sa.update(archive_metadata)
            .where(mine, columns.sbid == sa.bindparam("of_sbid"))
            .values(metadata_json=sa.bindparam("document"), updated_at=now),
            [{"of_sbid": sbid, "document": by_sbid[sbid]} for sbid in kept],
        )
    new = [sbid for sbid in by_sbid if sbid not in known]
    if new:
        conn.execute(
            sa.insert(archive_metadata),
            [
                {
                    "id": ids.new(),
                    "project_module": project_module,
                    "source_identifier": source_identifier,
                    "sbid": sbid,
                    "metadata_json": by_sbid[sbid],
                    "created_at": now,
                    "updated_at": now,
                }
                for sbid in new
            ],
        )


def record_change(conn: Connection, change: SignatureChange) -> None:
    """Append a change of signature."""
    conn.execute(
        sa.insert(discovery_signatures).values(
            **{field: getattr(change, field) for field in SignatureChange.__slots__}
        )
    )


def latest_change(conn: Connection, project_module: str, partition_key: str) -> SignatureChange | None:
    """The newest change that has this partition key."""
    columns = discovery_signatures.c
    row = conn.execute(
        sa.select(discovery_signatures)
        .where(columns.project_module == project_module, columns.partition_key == partition_key)
        .order_by(columns.discovered_at.desc(), columns.id.desc())
        .limit(1)
    ).first()
    return to_value(SignatureChange, row) if row else None


def changes_of(
    conn: Connection, project_module: str, source_identifier: str, *, limit: int = 50
) -> list[SignatureChange]:
    """The newest changes of one source, newest first."""
    columns = discovery_signatures.c
    rows = conn.execute(
        sa.select(discovery_signatures)
        .where(columns.project_module == project_module, columns.source_identifier == source_identifier)
        .order_by(columns.discovered_at.desc(), columns.id.desc())
        .limit(limit)
    )
    return [to_value(SignatureChange, row) for row in rows]


def change_for(
    conn: Connection, project_module: str, source_identifier: str, signature: str
) -> SignatureChange:
    """The newest change by which the source got this signature.

    Raises
    ------
    NotFoundError
        ``signature_not_found``.
    """
    columns = discovery_signatures.c
    row = conn.execute(
        sa.select(discovery_signatures)
        .where(
            columns.project_module == project_module,
            columns.source_identifier == source_identifier,
            columns.signature == signature,
        )
        .order_by(columns.discovered_at.desc(), columns.id.desc())
        .limit(1)
    ).first()
    if row is None:
        raise NotFoundError(
            f"the ledger has no signature {signature[:12]} of {source_identifier!r}",
            code="signature_not_found",
            hint="ask for a new discovery: beampipe source discover",
        )
    return to_value(SignatureChange, row)


def revision_of(conn: Connection, project_module: str, source_identifier: str, signature: str) -> str | None:
    """The survey revision by which a source last got this signature; ``None`` where the ledger has no change."""
    columns = discovery_signatures.c
    found: str | None = conn.execute(
        sa.select(columns.project_config_id)
        .where(
            columns.project_module == project_module,
            columns.source_identifier == source_identifier,
            columns.signature == signature,
        )
        .order_by(columns.discovered_at.desc(), columns.id.desc())
        .limit(1)
    ).scalar()
    return found


def dataset_counts(conn: Connection, project_module: str) -> list[int]:
    """How many datasets the current signature of each source covers; 0 for those that have none."""
    return list(datasets_by_source(conn, project_module).values())


def datasets_by_source(
    conn: Connection, project_module: str, identifiers: Sequence[str] | None = None
) -> dict[str, int]:
    """How many datasets a source's current signature covers, by source; without a signature it is absent."""
    columns, registry = discovery_signatures.c, source_registry.c
    # A signature that came back has several changes, which all say the same.
    statement = (
        sa.select(columns.source_identifier, sa.func.max(columns.dataset_count).label("datasets"))
        .join_from(
            discovery_signatures,
            source_registry,
            (registry.project_module == columns.project_module)
            & (registry.source_identifier == columns.source_identifier)
            & (registry.discovery_signature == columns.signature),
        )
        .where(columns.project_module == project_module)
        .group_by(columns.source_identifier)
    )
    pieces = [None] if identifiers is None else chunks(identifiers)
    found: dict[str, int] = {}
    for piece in pieces:
        narrowed = statement if piece is None else statement.where(columns.source_identifier.in_(piece))
        found |= {row.source_identifier: int(row.datasets) for row in conn.execute(narrowed)}
    return found
