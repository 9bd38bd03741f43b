"""How far the archives' new rows have been seen, and whose looks are still to come."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.exc import IntegrityError

from beampipe_dagster.config.canonical import JsonValue
from beampipe_dagster.ledger.rows import to_value
from beampipe_dagster.ledger.sources import chunks
from beampipe_dagster.ledger.tables import source_registry
from beampipe_dagster.ledger.tables_watermarks import discovery_watermarks


@dataclass(frozen=True, slots=True)
class Watermark:
    """How far a survey's query has been swept.

    Parameters
    ----------
    project_module, query_name
        The survey, and its query.
    query_sha256
        SHA-256 of what is swept; another one begins afresh.
    position
        Up to here, all sources that new rows belong to were looked at; ``None`` before there was any row.
    candidate, candidate_at
        The position that comes when all looks that were asked for until ``candidate_at`` are committed.
    seen
        Digests of the rows from the position's overlap on.
    swept_at
        When the archive last gave a complete answer.
    sweeps
        How often it did.
    """

    project_module: str
    query_name: str
    query_sha256: str
    position: str | None
    candidate: str | None
    candidate_at: datetime | None
    seen: list[JsonValue]
    swept_at: datetime
    sweeps: int = 0


def get(conn: Connection, project_module: str, query_name: str) -> Watermark | None:
    """How far a query has been swept; ``None`` before its first sweep."""
    columns = discovery_watermarks.c
    row = conn.execute(
        sa.select(discovery_watermarks).where(
            columns.project_module == project_module, columns.query_name == query_name
        )
    ).first()
    return None if row is None else to_value(Watermark, row)


def put(conn: Connection, mark: Watermark, *, expected_sweeps: int | None) -> bool:
    """Write a watermark, if nobody wrote it since it was read.

    Parameters
    ----------
    conn
        A writing transaction.
    mark
        The new values.
    expected_sweeps
        ``sweeps`` as it was read; ``None`` where there was no watermark.
    """
    columns = discovery_watermarks.c
    if expected_sweeps is None:
        try:
            with conn.begin_nested():
                conn.execute(sa.insert(discovery_watermarks).values(**asdict(mark)))
        except IntegrityError:
            return False
        return True
    written = conn.execute(
        sa.update(discovery_watermarks)
        .where(
            columns.project_module == mark.project_module,
            columns.query_name == mark.query_name,
            columns.sweeps == expected_sweeps,
        )
        .values(**asdict(mark))
    )
    return bool(written.rowcount)


def request_looks(
    conn: Connection, project_module: str, identifiers: Sequence[str] | None, *, now: datetime
) -> int:
    """Ask for a look at sources that new rows belong to, or at all; their number.

    Unlike a request of an operator's it neither ends a quarantine nor cuts a backoff short, and it reaches
    disabled sources too: they are looked at when they are enabled.
    """
    columns = source_registry.c
    total = 0
    pieces: list[Sequence[str] | None] = [None] if identifiers is None else list(chunks(identifiers))
    for piece in pieces:
        wanted = sa.select(columns.id).where(columns.project_module == project_module)
        if piece is not None:
            wanted = wanted.where(columns.source_identifier.in_(piece))
        # In the order in which everybody locks sources, or two transactions could wait for each other.
        wanted = wanted.order_by(columns.source_identifier).with_for_update()
        total += conn.execute(
            sa.update(source_registry)
            .where(columns.id.in_(wanted))
            .values(discovery_requested_at=now, updated_at=now)
        ).rowcount
    return total


def waiting(conn: Connection, project_module: str, since: datetime) -> int:
    """Sources that were asked for and have had no complete look since.

    Disabled and quarantined sources do not count: their request stays with them.
    """
    columns = source_registry.c
    return conn.execute(
        sa.select(sa.func.count())
        .select_from(source_registry)
        .where(
            columns.project_module == project_module,
            columns.enabled,
            columns.quarantined_at.is_(None),
            columns.discovery_requested_at.is_not(None),
            sa.or_(
                sa.and_(columns.last_checked_at.is_(None), columns.created_at <= since),
                sa.and_(
                    columns.last_checked_at < since, columns.discovery_requested_at > columns.last_checked_at
                ),
            ),
        )
    ).scalar_one()


def identifiers(conn: Connection, project_module: str) -> list[str]:
    """All sources of a survey, by name."""
    columns = source_registry.c
    return list(
        conn.execute(
            sa.select(columns.source_identifier)
            .where(columns.project_module == project_module)
            .order_by(columns.source_identifier)
        ).scalars()
    )
