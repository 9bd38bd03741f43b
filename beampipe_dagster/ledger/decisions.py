"""What admission decided, kept so that it can be asked for later, and whose turn it is.

A decision that equals the one before only counts it and moves its time, and each survey keeps a bounded number
of them: a tick a minute for years fills nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from beampipe_dagster.config.canonical import JsonValue
from beampipe_dagster.ids import Ids
from beampipe_dagster.ledger.rows import to_value
from beampipe_dagster.ledger.sources import chunks
from beampipe_dagster.ledger.tables import source_registry
from beampipe_dagster.ledger.tables_admission import (
    admission_decisions,
    admission_sources,
    admission_turns,
)

KEPT: Final = 500
"""Decisions of a survey that are kept, the newest ones."""


@dataclass(frozen=True, slots=True)
class TickDecision:
    """What a tick decided about a survey, before it has a place in the ledger.

    Parameters
    ----------
    reason
        Code of why nothing (more) was admitted; ``None`` when nobody was left.
    caps
        By code of the cap: ``[in use, limit]``; a limit of null means none.
    """

    project_module: str
    reason: str | None
    message: str | None
    admitted: int
    waiting: int
    held: int
    caps: dict[str, JsonValue]
    profile: str | None
    project_config_id: str


@dataclass(frozen=True, slots=True)
class StoredTick:
    """A decision in the ledger; ``seen_count`` equal ones in a row, from ``decided_at`` to ``last_seen_at``."""

    id: str
    project_module: str
    reason: str | None
    message: str | None
    admitted: int
    waiting: int
    held: int
    caps: dict[str, JsonValue]
    profile: str | None
    project_config_id: str
    decided_at: datetime
    last_seen_at: datetime
    seen_count: int


@dataclass(frozen=True, slots=True)
class Held:
    """Why a pending source was not admitted; ``not_before`` where that is known."""

    code: str
    message: str
    not_before: datetime | None = None


@dataclass(frozen=True, slots=True)
class SourceDecision:
    """What the last tick that looked at a pending source said about it."""

    project_module: str
    source_identifier: str
    code: str
    message: str
    not_before: datetime | None
    decided_at: datetime
    last_seen_at: datetime
    seen_count: int


_EQUAL: Final = (
    "reason",
    "message",
    "admitted",
    "waiting",
    "held",
    "caps",
    "profile",
    "project_config_id",
)


def record_tick(conn: Connection, decision: TickDecision, *, ids: Ids, now: datetime) -> None:
    """Keep what a tick decided; one that equals the last one and admitted nothing only counts it."""
    last = newest(conn, decision.project_module)
    same = (
        last is not None
        and not decision.admitted
        and all(getattr(last, name) == getattr(decision, name) for name in _EQUAL)
    )
    columns = admission_decisions.c
    if last is not None and same:
        conn.execute(
            sa.update(admission_decisions)
            .where(columns.id == last.id)
            .values(last_seen_at=now, seen_count=columns.seen_count + 1)
        )
        return
    conn.execute(
        sa.insert(admission_decisions).values(
            id=ids.new(),
            project_module=decision.project_module,
            **{name: getattr(decision, name) for name in _EQUAL},
            decided_at=now,
            last_seen_at=now,
            seen_count=1,
        )
    )
    old = (
        sa.select(columns.id)
        .where(columns.project_module == decision.project_module)
        .order_by(columns.decided_at.desc(), columns.id.desc())
        .offset(KEPT)
        .limit(KEPT)
    )
    conn.execute(sa.delete(admission_decisions).where(columns.id.in_(old.scalar_subquery())))


def newest(conn: Connection, project_module: str) -> StoredTick | None:
    """The last decision about a survey; ``None`` before its first tick."""
    found = history(conn, project_module, limit=1)
    return found[0] if found else None


def history(conn: Connection, project_module: str, *, limit: int = 50) -> list[StoredTick]:
    """The decisions about a survey, newest first."""
    columns = admission_decisions.c
    rows = conn.execute(
        sa.select(admission_decisions)
        .where(columns.project_module == project_module)
        .order_by(columns.decided_at.desc(), columns.id.desc())
        .limit(limit)
    )
    return [to_value(StoredTick, row) for row in rows]


def record_sources(conn: Connection, project_module: str, held: Mapping[str, Held], *, now: datetime) -> None:
    """Keep why sources were not admitted; an equal reason is counted. Sources that no longer wait are forgotten."""
    before = of_sources(conn, project_module, sorted(held))
    same, changed, new = [], [], []
    for name in sorted(held):
        why, was = held[name], before.get(name)
        if was is None:
            new.append(name)
        elif (was.code, was.message, was.not_before) == (why.code, why.message, why.not_before):
            same.append(name)
        else:
            changed.append(name)
    columns = admission_sources.c
    for piece in chunks(same):
        conn.execute(
            sa.update(admission_sources)
            .where(columns.project_module == project_module, columns.source_identifier.in_(piece))
            .values(last_seen_at=now, seen_count=columns.seen_count + 1)
        )
    for piece in chunks(changed):
        conn.execute(
            sa.delete(admission_sources).where(
                columns.project_module == project_module, columns.source_identifier.in_(piece)
            )
        )
    if new or changed:
        conn.execute(
            sa.insert(admission_sources),
            [_row(project_module, name, held[name], now) for name in (*new, *changed)],
        )
    _forget(conn, project_module)


def _row(project_module: str, name: str, why: Held, now: datetime) -> dict[str, Any]:
    return {
        "project_module": project_module,
        "source_identifier": name,
        "code": why.code,
        "message": why.message,
        "not_before": why.not_before,
        "decided_at": now,
        "last_seen_at": now,
        "seen_count": 1,
    }


def _forget(conn: Connection, project_module: str) -> None:
    registry, columns = source_registry.c, admission_sources.c
    waits = sa.exists().where(
        registry.project_module == columns.project_module,
        registry.source_identifier == columns.source_identifier,
        registry.enabled,
        registry.workflow_run_pending,
    )
    conn.execute(sa.delete(admission_sources).where(columns.project_module == project_module, ~waits))


def of_sources(
    conn: Connection, project_module: str, identifiers: Sequence[str]
) -> dict[str, SourceDecision]:
    """The newest reasons of these sources, by name; those that were never left out are absent."""
    columns = admission_sources.c
    found: dict[str, SourceDecision] = {}
    for piece in chunks(identifiers):
        rows = conn.execute(
            sa.select(admission_sources).where(
                columns.project_module == project_module, columns.source_identifier.in_(piece)
            )
        )
        found |= {row.source_identifier: to_value(SourceDecision, row) for row in rows}
    return found


def served(conn: Connection) -> dict[str, float]:
    """How much each survey was given so far, in executions over weights."""
    rows = conn.execute(sa.select(admission_turns.c.project_module, admission_turns.c.served))
    return {row.project_module: row.served for row in rows}


def serve(conn: Connection, project_module: str, served_by_now: float, *, now: datetime) -> None:
    """Keep how much a survey was given by now; in a transaction that queues for admission."""
    columns = admission_turns.c
    written = conn.execute(
        sa.update(admission_turns)
        .where(columns.project_module == project_module)
        .values(served=served_by_now, updated_at=now)
    )
    if not written.rowcount:
        conn.execute(
            sa.insert(admission_turns).values(
                project_module=project_module, served=served_by_now, updated_at=now
            )
        )


def last_ticks(conn: Connection) -> dict[str, datetime]:
    """When each survey had its last tick."""
    columns = admission_decisions.c
    rows = conn.execute(
        sa.select(columns.project_module, sa.func.max(columns.last_seen_at).label("at")).group_by(
            columns.project_module
        )
    )
    return {row.project_module: row.at for row in rows}
