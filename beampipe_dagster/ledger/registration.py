"""Rows of the registry that come, change and go, many at a time: one statement for a chunk of them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection

from beampipe_dagster.ids import Ids
from beampipe_dagster.ledger.engine import queue
from beampipe_dagster.ledger.rows import to_value
from beampipe_dagster.ledger.sources import RELEASED, NewSource, Source, chunks
from beampipe_dagster.ledger.tables import execution_sources, source_registry

_GIVEN: Final = ("ra_deg", "dec_deg", "stale_after_hours")
"""What a registration changes only where it says something."""


@dataclass(frozen=True, slots=True)
class Upserted:
    """What became of sources that were registered, by name.

    Attributes
    ----------
    added
        They were not registered before.
    changed
        They were, and something about them is new.
    known
        They were, exactly so; nothing was written.
    """

    added: list[str]
    changed: list[str]
    known: list[str]


def upsert(
    conn: Connection, project_module: str, new: Sequence[NewSource], *, ids: Ids, now: datetime
) -> Upserted:
    """Register sources; known ones get the new flags and positions. Processes queue here."""
    queue(conn, f"source_registry:{project_module}")
    new = sorted(new, key=lambda source: source.source_identifier)  # one order of locks for everybody
    before = _present(conn, project_module, [source.source_identifier for source in new])
    added, changed, known = [], [], []
    for source in new:
        row = before.get(source.source_identifier)
        if row is None:
            added.append(source)
        elif _differs(source, row):
            changed.append(source)
        else:
            known.append(source.source_identifier)
    if added or changed:
        insert = postgresql.insert if conn.dialect.name == "postgresql" else sqlite.insert
        statement = insert(source_registry)
        columns, excluded = source_registry.c, statement.excluded
        given = {name: sa.func.coalesce(excluded[name], columns[name]) for name in _GIVEN}
        conn.execute(
            statement.on_conflict_do_update(
                index_elements=[columns.project_module, columns.source_identifier],
                set_={"enabled": excluded.enabled, "updated_at": excluded.updated_at, **given},
            ),
            [_values(project_module, source, ids, now) for source in (*added, *changed)],
        )
    return Upserted(
        [source.source_identifier for source in added],
        [source.source_identifier for source in changed],
        known,
    )


def _present(conn: Connection, project_module: str, names: Sequence[str]) -> dict[str, Any]:
    columns = source_registry.c
    found: dict[str, Any] = {}
    for piece in chunks(names):
        statement = sa.select(columns.source_identifier, columns.enabled, *(columns[name] for name in _GIVEN))
        rows = conn.execute(
            statement.where(columns.project_module == project_module, columns.source_identifier.in_(piece))
        )
        found |= {row.source_identifier: row for row in rows}
    return found


def _differs(new: NewSource, row: Any) -> bool:  # noqa: ANN401  # a result row
    if new.enabled != row.enabled:
        return True
    return any(getattr(new, name) not in {None, getattr(row, name)} for name in _GIVEN)


def _values(project_module: str, source: NewSource, ids: Ids, now: datetime) -> dict[str, Any]:
    return {
        "id": ids.new(),
        "project_module": project_module,
        "source_identifier": source.source_identifier,
        "enabled": source.enabled,
        "ra_deg": source.ra_deg,
        "dec_deg": source.dec_deg,
        "stale_after_hours": source.stale_after_hours,
        "created_at": now,
        "updated_at": now,
    }


def locked(conn: Connection, project_module: str, identifiers: Sequence[str]) -> list[Source]:
    """The registered ones of these sources, by name, held until the transaction ends (PostgreSQL)."""
    columns = source_registry.c
    found: list[Source] = []
    for piece in chunks(sorted(identifiers)):  # one order of locks for everybody
        rows = conn.execute(
            sa.select(source_registry)
            .where(columns.project_module == project_module, columns.source_identifier.in_(piece))
            .order_by(columns.source_identifier)
            .with_for_update()
        )
        found.extend(to_value(Source, row) for row in rows)
    return found


def set_enabled(conn: Connection, source_ids: Sequence[str], *, enabled: bool, now: datetime) -> None:
    """Enable or disable sources; what is enabled is let go of its quarantine and its back-off."""
    values: dict[str, Any] = {"enabled": enabled, "updated_at": now, **(RELEASED if enabled else {})}
    for piece in chunks(source_ids):
        conn.execute(sa.update(source_registry).where(source_registry.c.id.in_(piece)).values(**values))


def set_staleness(conn: Connection, source_ids: Sequence[str], *, hours: int | None, now: datetime) -> None:
    """After how long a look at these sources is stale; ``None`` for what the survey says."""
    for piece in chunks(source_ids):
        conn.execute(
            sa.update(source_registry)
            .where(source_registry.c.id.in_(piece))
            .values(stale_after_hours=hours, updated_at=now)
        )


def in_executions(conn: Connection, project_module: str, identifiers: Collection[str]) -> dict[str, str]:
    """Which of these sources an active execution holds, and which one."""
    columns = execution_sources.c
    found: dict[str, str] = {}
    for piece in chunks(sorted(identifiers)):
        rows = conn.execute(
            sa.select(columns.source_identifier, columns.execution_id).where(
                columns.project_module == project_module,
                columns.source_identifier.in_(piece),
                columns.active,
            )
        )
        found |= {row.source_identifier: row.execution_id for row in rows}
    return found


def delete(conn: Connection, source_ids: Sequence[str]) -> None:
    """Remove rows of the registry; metadata, signatures, executions and the story stay."""
    for piece in chunks(source_ids):
        conn.execute(sa.delete(source_registry).where(source_registry.c.id.in_(piece)))
