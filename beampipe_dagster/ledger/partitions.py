"""Which signatures have a key among Dagster's partitions, and which of them have had their time.

A signature's key is there from the change on; its row says when it was taken out (``partition_retired_at``). A
signature that comes back is a new row, and has its key again. What is counted is the newest row of a key.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from beampipe_dagster.ledger.sources import names_among
from beampipe_dagster.ledger.states import ACTIVE, Status
from beampipe_dagster.ledger.tables import (
    batch_execution_record,
    discovery_signatures,
    execution_sources,
    source_registry,
)


@dataclass(frozen=True, slots=True)
class SettledKey:
    """A key that nobody needs any more for what is going on.

    Attributes
    ----------
    change_id
        The newest change that has it.
    superseded
        Whether its source has another signature now, or is gone; otherwise its execution was completed.
    settled_at
        Since when nothing goes on that is about it or its successor.
    """

    change_id: str
    partition_key: str
    source_identifier: str
    superseded: bool
    settled_at: datetime


def live_count(conn: Connection, project_module: str) -> int:
    """Keys of signatures with datasets that have not been retired."""
    newest = _newest(project_module)
    statement = sa.select(sa.func.count()).select_from(newest).where(*_live(newest))
    return int(conn.execute(statement).scalar_one())


def settled(conn: Connection, project_module: str) -> list[SettledKey]:
    """Live keys that could be retired, those that have been settled longest first, superseded ones before others.

    Superseded is a key whose source has another signature. It is settled when no execution is about it, and its
    successor neither waits for one nor is in one. The current signature's key is settled when an execution of it
    was completed and none is wanted.
    """
    newest, own, following = _newest(project_module), _runs(project_module), _runs(project_module)
    registry = source_registry.c
    current = sa.and_(
        registry.discovery_signature.is_not(None), registry.discovery_signature == newest.c.signature
    )
    pending = sa.and_(registry.workflow_run_pending.is_not(None), registry.workflow_run_pending)
    follower_waits = sa.and_(pending, registry.discovery_signature == newest.c.next_signature)
    free = sa.func.coalesce(own.c.active, 0) == 0
    is_current = sa.case((current, 1), else_=0)
    rows = conn.execute(
        sa.select(
            newest.c.id,
            newest.c.partition_key,
            newest.c.source_identifier,
            newest.c.discovered_at,
            newest.c.next_at,
            is_current.label("is_current"),
            own.c.completed_at.label("own_end"),
            following.c.completed_at.label("next_end"),
        )
        .select_from(newest)
        .outerjoin(
            source_registry,
            (registry.project_module == project_module)
            & (registry.source_identifier == newest.c.source_identifier),
        )
        .outerjoin(own, _is_run_of(own, newest.c.source_identifier, newest.c.signature))
        .outerjoin(following, _is_run_of(following, newest.c.source_identifier, newest.c.next_signature))
        .where(
            *_live(newest),
            free,
            sa.or_(
                sa.and_(is_current == 1, sa.not_(pending), own.c.completed == 1),
                sa.and_(
                    is_current == 0,
                    sa.func.coalesce(following.c.active, 0) == 0,
                    sa.case((follower_waits, 1), else_=0) == 0,
                ),
            ),
        )
    )
    found = [
        SettledKey(
            change_id=row.id,
            partition_key=row.partition_key,
            source_identifier=row.source_identifier,
            superseded=not row.is_current,
            settled_at=max(
                moment
                for moment in (row.discovered_at, row.next_at, row.own_end, row.next_end)
                if moment is not None
            ),
        )
        for row in rows
    ]
    return sorted(found, key=lambda key: (not key.superseded, key.settled_at, key.partition_key))


def retire(conn: Connection, change_ids: Sequence[str], *, now: datetime) -> int:
    """Say of these changes that their keys are no longer partitions; how many that was news of.

    A change that came after the decision has a row of its own, and keeps its key.
    """
    columns = discovery_signatures.c
    return conn.execute(
        sa.update(discovery_signatures)
        .where(names_among(conn, columns.id, change_ids), columns.partition_retired_at.is_(None))
        .values(partition_retired_at=now)
    ).rowcount


def removable(conn: Connection, project_module: str, keys: Sequence[str], *, before: datetime) -> list[str]:
    """Those of Dagster's keys that are to go: retired ones, and those of executions over several sources.

    An execution over several sources has a key of its own; it goes when all executions of it ended before
    ``before``. A key that is about something that goes on stays, and so does one that the ledger knows nothing of.
    """
    return list(
        dict.fromkeys([*_retired(conn, project_module, keys), *_ended(conn, project_module, keys, before)])
    )


def _retired(conn: Connection, project_module: str, keys: Sequence[str]) -> Iterator[str]:
    newest, own, registry = _newest(project_module), _runs(project_module), source_registry.c
    wanted_again = sa.exists().where(
        registry.project_module == project_module,
        registry.source_identifier == newest.c.source_identifier,
        registry.discovery_signature == newest.c.signature,
        registry.workflow_run_pending,
    )
    rows = conn.execute(
        sa.select(newest.c.partition_key)
        .select_from(newest)
        .outerjoin(own, _is_run_of(own, newest.c.source_identifier, newest.c.signature))
        .where(
            newest.c.place == 1,
            newest.c.partition_retired_at.is_not(None),
            names_among(conn, newest.c.partition_key, keys),
            sa.func.coalesce(own.c.active, 0) == 0,
            sa.not_(wanted_again),
        )
    )
    return (row.partition_key for row in rows)


def _ended(conn: Connection, project_module: str, keys: Sequence[str], before: datetime) -> Iterator[str]:
    record, changes = batch_execution_record.c, discovery_signatures.c
    active = sa.case((record.status.in_([status.value for status in ACTIVE]), 1), else_=0)
    a_signature = sa.exists().where(
        changes.project_module == project_module, changes.partition_key == record.partition_key
    )
    rows = conn.execute(
        sa.select(record.partition_key)
        .where(
            record.project_module == project_module,
            names_among(conn, record.partition_key, keys),
            sa.not_(a_signature),
        )
        .group_by(record.partition_key)
        .having(sa.func.max(active) == 0, sa.func.max(record.completed_at) <= before)
    )
    return (row.partition_key for row in rows)


def _newest(project_module: str) -> sa.Subquery:
    """Every change with its successor; ``place`` 1 is the newest change of a key."""
    columns = discovery_signatures.c
    mine, in_order = columns.source_identifier, (columns.discovered_at, columns.id)
    return (
        sa.select(
            columns.id,
            columns.source_identifier,
            columns.signature,
            columns.partition_key,
            columns.dataset_count,
            columns.discovered_at,
            columns.partition_retired_at,
            sa.func.lead(columns.signature)
            .over(partition_by=mine, order_by=in_order)
            .label("next_signature"),
            sa.func.lead(columns.discovered_at, type_=columns.discovered_at.type)
            .over(partition_by=mine, order_by=in_order)
            .label("next_at"),
            sa.func.row_number()
            .over(
                partition_by=columns.partition_key,
                order_by=(columns.discovered_at.desc(), columns.id.desc()),
            )
            .label("place"),
        )
        .where(columns.project_module == project_module)
        .subquery()
    )


def _live(newest: sa.Subquery) -> tuple[sa.ColumnElement[bool], ...]:
    return newest.c.place == 1, newest.c.partition_retired_at.is_(None), newest.c.dataset_count > 0


def _runs(project_module: str) -> sa.Subquery:
    """Of each source and signature: is an execution going on, was one completed, when did the last one end."""
    locks, record = execution_sources.c, batch_execution_record.c
    return (
        sa.select(
            locks.source_identifier,
            locks.discovery_signature,
            sa.func.max(sa.case((locks.active, 1), else_=0)).label("active"),
            sa.func.max(sa.case((record.status == Status.COMPLETED.value, 1), else_=0)).label("completed"),
            sa.func.max(record.completed_at, type_=record.completed_at.type).label("completed_at"),
        )
        .join_from(execution_sources, batch_execution_record, record.id == locks.execution_id)
        .where(locks.project_module == project_module)
        .group_by(locks.source_identifier, locks.discovery_signature)
        .subquery()
    )


def _is_run_of(
    runs: sa.Subquery, source: sa.ColumnElement[str], signature: sa.ColumnElement[str]
) -> sa.ColumnElement[bool]:
    return (runs.c.source_identifier == source) & (runs.c.discovery_signature == signature)
