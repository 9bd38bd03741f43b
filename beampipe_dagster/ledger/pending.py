"""Pending sources: in which order they get their turn, and which of them wait for the time of a retry."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from beampipe_dagster.ledger import sources
from beampipe_dagster.ledger.rows import to_value
from beampipe_dagster.ledger.sources import Source
from beampipe_dagster.ledger.tables import FAILED, PENDING, WAITING, execution_sources, source_registry

_IS_WAITING: Final[sa.ColumnElement[bool]] = sa.text(WAITING)  # type: ignore[assignment]  # a condition like any
_IS_PENDING: Final[sa.ColumnElement[bool]] = sa.text(PENDING)  # type: ignore[assignment]  # a condition like any
_HAS_FAILED: Final[sa.ColumnElement[bool]] = sa.text(FAILED)  # type: ignore[assignment]  # a condition like any
# Constant texts: both databases use a partial index only for a statement that repeats its condition.

FORGIVEN: Final[dict[str, object]] = {
    "failed_signature": None,
    "failed_execution_id": None,
    "failed_config_id": None,
    "retry_at": None,
}
"""Columns of a source whose failed execution no longer counts."""


def waits_for_retry(now: datetime) -> sa.ColumnElement[bool]:
    """A source whose current signature failed, and is tried again later than ``now``; never NULL."""
    columns = source_registry.c
    later = sa.and_(columns.failed_signature == columns.discovery_signature, columns.retry_at > now)
    return sa.func.coalesce(later, sa.false())


def is_held(now: datetime) -> sa.ColumnElement[bool]:
    """A source with a hold; the hold of a failure is none any more when its retry is due. Never NULL."""
    columns = source_registry.c
    retried = sa.and_(columns.failed_signature == columns.discovery_signature, columns.retry_at <= now)
    return sa.and_(columns.hold.is_not(None), sa.not_(sa.func.coalesce(retried, sa.false())))


def turn(now: datetime) -> tuple[sa.ColumnElement[Any], ...]:
    """The order in which pending sources get their turn: highest priority first, then the longest waiting.

    Those that are held come last, so that they never fill a limit for ever before those that can run.
    """
    columns = source_registry.c
    return (
        is_held(now),
        columns.priority.desc(),
        columns.workflow_run_pending_at.asc().nulls_last(),
        columns.created_at,
        columns.source_identifier,
    )


def take(
    conn: Connection, project_module: str, *, limit: int, now: datetime, lock: bool = True
) -> list[Source]:
    """Enabled sources that wait for an execution, in the order of :func:`turn`, without those that wait for a retry.

    Those that may get their turn come from an index in its order, however many wait; those that are held are looked
    at only where they leave room.

    ``lock`` holds their rows and leaves out those that somebody else holds (PostgreSQL).
    """
    columns = source_registry.c
    mine, ready = columns.project_module == project_module, sa.not_(waits_for_retry(now))

    def some(*conditions: sa.ColumnElement[bool], most: int, order: Sequence[Any]) -> list[Source]:
        statement = sa.select(source_registry).where(mine, ready, *conditions).order_by(*order).limit(most)
        if lock:
            statement = statement.with_for_update(skip_locked=True)
        return [to_value(Source, row) for row in conn.execute(statement)]

    by_time = (columns.workflow_run_pending_at, columns.created_at, columns.source_identifier)
    first: list[Source] = []
    for priority in _priorities(conn, project_module):
        for timed in (
            columns.workflow_run_pending_at.is_not(None),
            columns.workflow_run_pending_at.is_(None),
        ):
            same = columns.priority == priority
            if len(first) < limit:
                first += some(_IS_WAITING, same, timed, most=limit - len(first), order=by_time)
        if len(first) >= limit:
            break
    # The condition of the index of pending sources is not repeated here: SQLite would take that one, and look at all.
    retried = some(
        columns.enabled,
        columns.workflow_run_pending,
        _HAS_FAILED,
        columns.hold.is_not(None),
        sa.not_(is_held(now)),
        most=limit,
        order=turn(now)[1:],
    )
    if retried:
        first = sorted([*first, *retried], key=_turn_of)[:limit]
    if len(first) == limit:
        return first
    return [*first, *some(_IS_PENDING, is_held(now), most=limit - len(first), order=turn(now))]


def _priorities(conn: Connection, project_module: str) -> Iterator[int]:
    """The priorities that waiting sources have, highest first; each is one look into the index."""
    columns = source_registry.c
    mine = sa.select(sa.func.max(columns.priority)).where(
        columns.project_module == project_module, _IS_WAITING
    )
    priority = conn.execute(mine).scalar_one()
    while priority is not None:
        yield priority
        priority = conn.execute(mine.where(columns.priority < priority)).scalar_one()


def _turn_of(source: Source) -> tuple[int, bool, str, datetime, str]:
    """The place of a source that is not held, as :func:`turn` says it to the database."""
    since = source.workflow_run_pending_at
    return (
        -source.priority,
        since is None,
        since.isoformat() if since is not None else "",
        source.created_at,
        source.source_identifier,
    )


def delayed(conn: Connection, project_module: str, *, limit: int, now: datetime) -> list[Source]:
    """Pending sources that wait for the time of their retry, the next one first."""
    columns = source_registry.c
    rows = conn.execute(
        sa.select(source_registry)
        .where(
            columns.project_module == project_module,
            columns.enabled,
            columns.workflow_run_pending,
            _HAS_FAILED,
            waits_for_retry(now),
        )
        .order_by(columns.retry_at, columns.source_identifier)
        .limit(limit)
    )
    return [to_value(Source, row) for row in rows]


def count(conn: Connection, project_module: str) -> int:
    """How many enabled sources of a survey wait for an execution, whatever keeps them."""
    columns = source_registry.c
    return int(
        conn.execute(
            sa.select(sa.func.count()).where(columns.project_module == project_module, _IS_PENDING)
        ).scalar_one()
    )


@dataclass(frozen=True, slots=True)
class Demand:
    """How many sources of a survey could run now, as far as the registry knows, and since when the oldest waits."""

    sources: int
    since: datetime | None


def demand(conn: Connection, project_modules: Sequence[str], *, now: datetime) -> dict[str, Demand]:
    """What each of these surveys could run now; a survey without such sources is absent."""
    if not project_modules:
        return {}
    columns, held = source_registry.c, execution_sources.c
    busy = sa.exists().where(
        held.project_module == columns.project_module,
        held.source_identifier == columns.source_identifier,
        held.active,
    )
    rows = conn.execute(
        sa.select(
            columns.project_module,
            sa.func.count().label("waiting"),
            sa.func.min(columns.workflow_run_pending_at).label("since"),
        )
        .where(
            columns.project_module.in_(project_modules),
            _IS_PENDING,
            columns.discovery_claim_token.is_(None),
            columns.discovery_signature.is_distinct_from(columns.last_executed_discovery_signature),
            sa.not_(waits_for_retry(now)),
            sa.not_(is_held(now)),
            ~busy,
        )
        .group_by(columns.project_module)
    )
    return {row.project_module: Demand(int(row.waiting), row.since) for row in rows}


def ahead(conn: Connection, source: Source, *, now: datetime) -> int:
    """How many pending sources of the survey get their turn before this one, which is not held itself."""
    columns = source_registry.c
    mine = source.workflow_run_pending_at
    # Those without a time come last; equal ones go by registration, then by name.
    earlier: sa.ColumnElement[bool] = columns.workflow_run_pending_at.is_not(None)
    same: sa.ColumnElement[bool] = columns.workflow_run_pending_at.is_(None)
    if mine is not None:
        earlier, same = columns.workflow_run_pending_at < mine, columns.workflow_run_pending_at == mine
    older = sa.or_(
        columns.created_at < source.created_at,
        sa.and_(
            columns.created_at == source.created_at,
            columns.source_identifier < source.source_identifier,
        ),
    )
    before = sa.or_(
        columns.priority > source.priority,
        sa.and_(columns.priority == source.priority, sa.or_(earlier, sa.and_(same, older))),
    )
    return int(
        conn.execute(
            sa.select(sa.func.count()).where(
                columns.project_module == source.project_module,
                _IS_PENDING,
                sa.not_(waits_for_retry(now)),
                sa.not_(is_held(now)),
                before,
            )
        ).scalar_one()
    )


def failed_under_another(conn: Connection, project_module: str, config_id: str) -> list[Source]:
    """Sources that wait for the operator since an execution of another revision failed, locked, by name."""
    columns = source_registry.c
    rows = conn.execute(
        sa.select(source_registry)
        .where(
            columns.project_module == project_module,
            _HAS_FAILED,
            columns.failed_signature == columns.discovery_signature,
            columns.retry_at.is_(None),
            columns.failed_config_id != config_id,
        )
        .order_by(columns.source_identifier)
        .with_for_update()
    )
    return [to_value(Source, row) for row in rows]


def release(conn: Connection, source_ids: Sequence[str], *, now: datetime) -> None:
    """Make sources pending again, whatever failed before."""
    values: dict[str, object] = {
        "workflow_run_pending": True,
        "workflow_run_pending_at": now,
        "hold": None,
        **FORGIVEN,
    }
    sources.update(conn, source_ids, values, now=now)
