"""What Dagster is to be told: committed with the change, delivered at least once, in order.

A message is first offered to the process that made the change (it may deliver at once and say so with
:func:`mark_delivered`); from ``available_at`` on the poll sensor takes it over. The events are narrative: a
repeated one changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from beampipe_dagster.config.canonical import JsonValue
from beampipe_dagster.ledger.rows import to_value
from beampipe_dagster.ledger.tables import outbox

Kind = Literal["materialization", "observation", "check"]


@dataclass(frozen=True, slots=True)
class Message:
    """One asset event to be."""

    kind: Kind
    project_module: str
    asset: str
    payload: dict[str, JsonValue]
    partition_key: str | None = None
    correlation_id: str | None = None


@dataclass(frozen=True, slots=True)
class StoredMessage:
    """A message in the ledger, waiting for its delivery."""

    id: int
    kind: Kind
    project_module: str
    asset: str
    partition_key: str | None
    payload: dict[str, JsonValue]
    correlation_id: str | None
    created_at: datetime


def put(conn: Connection, messages: Sequence[Message], *, now: datetime, available_at: datetime) -> None:
    """Store messages with the change that they tell."""
    if not messages:
        return
    conn.execute(
        sa.insert(outbox),
        [
            {
                "kind": message.kind,
                "project_module": message.project_module,
                "asset": message.asset,
                "partition_key": message.partition_key,
                "payload": message.payload,
                "correlation_id": message.correlation_id,
                "created_at": now,
                "available_at": available_at,
            }
            for message in messages
        ],
    )


def due(
    conn: Connection,
    *,
    now: datetime,
    limit: int,
    correlation_id: str | None = None,
) -> list[StoredMessage]:
    """Undelivered messages, oldest first: those that are due, or all of one correlation id."""
    statement = sa.select(outbox).where(outbox.c.delivered_at.is_(None))
    if correlation_id is None:
        statement = statement.where(outbox.c.available_at <= now)
    else:
        statement = statement.where(outbox.c.correlation_id == correlation_id)
    rows = conn.execute(statement.order_by(outbox.c.id).limit(limit))
    return [to_value(StoredMessage, row) for row in rows]


def mark_delivered(conn: Connection, ids: Iterable[int], *, now: datetime) -> int:
    """Remember that these were told; the number that was news."""
    wanted = list(ids)
    if not wanted:
        return 0
    result = conn.execute(
        sa.update(outbox)
        .where(outbox.c.id.in_(wanted), outbox.c.delivered_at.is_(None))
        .values(delivered_at=now)
    )
    return result.rowcount


def undelivered(conn: Connection) -> tuple[int, datetime | None]:
    """How many messages wait, and since when the oldest does."""
    row = conn.execute(
        sa.select(sa.func.count(), sa.func.min(outbox.c.created_at)).where(outbox.c.delivered_at.is_(None))
    ).one()
    return int(row[0]), row[1]
