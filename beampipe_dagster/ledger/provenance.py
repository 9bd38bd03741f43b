"""The story of sources and executions: append-only events, written with the change that they tell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from beampipe_dagster.config.canonical import JsonValue
from beampipe_dagster.ids import Ids
from beampipe_dagster.ledger import chain
from beampipe_dagster.ledger.rows import to_value
from beampipe_dagster.ledger.tables import provenance_events


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened, before it has a place in the ledger."""

    event_type: str
    project_module: str
    source_identifier: str | None = None
    execution_id: str | None = None
    payload: dict[str, JsonValue] = field(default_factory=dict)
    actor: str = "system"
    correlation_id: str | None = None


@dataclass(frozen=True, slots=True)
class RecordedEvent:
    """An event in the ledger."""

    id: str
    occurred_at: datetime
    event_type: str
    project_module: str
    source_identifier: str | None
    execution_id: str | None
    actor: str
    correlation_id: str | None
    payload: dict[str, JsonValue]


def record(conn: Connection, events: Sequence[Event], *, ids: Ids, now: datetime) -> None:
    """Append events, those of an execution to its chain; a few statements, whatever their number."""
    if not events:
        return
    rows: list[dict[str, Any]] = [
        {
            "id": ids.new(),
            "occurred_at": now,
            "event_type": event.event_type,
            "project_module": event.project_module,
            "source_identifier": event.source_identifier,
            "execution_id": event.execution_id,
            "actor": event.actor,
            "correlation_id": event.correlation_id,
            "payload": event.payload,
        }
        for event in events
    ]
    chain.link(conn, rows)
    conn.execute(sa.insert(provenance_events), rows)


def timeline(
    conn: Connection,
    *,
    project_module: str | None = None,
    source_identifier: str | None = None,
    execution_id: str | None = None,
    limit: int = 500,
) -> list[RecordedEvent]:
    """The newest ``limit`` events that match, oldest first."""
    statement = sa.select(provenance_events)
    for column, value in (
        (provenance_events.c.project_module, project_module),
        (provenance_events.c.source_identifier, source_identifier),
        (provenance_events.c.execution_id, execution_id),
    ):
        if value is not None:
            statement = statement.where(column == value)
    statement = statement.order_by(
        provenance_events.c.occurred_at.desc(), provenance_events.c.id.desc()
    ).limit(limit)
    return [to_value(RecordedEvent, row) for row in conn.execute(statement)][::-1]


def of_type(conn: Connection, project_module: str, event_type: str) -> list[RecordedEvent]:
    """Every event of one type that is about a survey as a whole, oldest first."""
    columns = provenance_events.c
    statement = (
        sa.select(provenance_events)
        .where(
            columns.project_module == project_module,
            columns.source_identifier.is_(None),
            columns.event_type == event_type,
        )
        .order_by(columns.occurred_at, columns.id)
    )
    return [to_value(RecordedEvent, row) for row in conn.execute(statement)]
