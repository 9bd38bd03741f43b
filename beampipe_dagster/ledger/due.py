"""Which sources a claim takes: those that are due, in the order of their turn.

A survey has up to a million sources, and a tick wants a few hundred of them. So no statement here looks at more
rows than it takes, but for rows that are due and must wait all the same. The rows that may be due are in three
partial indexes, each in the order of its turn:

* ``ix_source_registry_new``: never attempted, or asked for since;
* ``ix_source_registry_settled``: the last attempt had a complete answer. By the survey's staleness such a source
  is due when that answer is old, and the attempt is not younger than the answer: a range of the index;
* ``ix_source_registry_unsettled``: all others (the last attempt failed or never ended, the source has a staleness
  of its own, or datasets vanished): normally few.

The conditions of the indexes are constant texts, since both databases use a partial index only for a statement
that repeats its condition.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from beampipe_dagster.ledger.tables import DUE_NEW, DUE_SETTLED, DUE_UNSETTLED, source_registry
from beampipe_dagster.ledger.types import UtcDateTime


@dataclass(frozen=True, slots=True)
class Due:
    """What is asked for.

    Parameters
    ----------
    project_module
        The survey.
    limit
        Sources at most.
    stale_after_hours
        The survey's; a source may have its own.
    now
        The time that decides.
    """

    project_module: str
    limit: int
    stale_after_hours: int
    now: datetime


def mark(conn: Connection, due: Due, *, token: str, expires_at: datetime) -> int:
    """Give due sources to a claim; how many.

    Those asked for come first, then those never attempted, then the longest untouched. The sources do not leave
    the database: a statement chooses and marks them.
    """
    given = {
        "due_survey": due.project_module,
        "due_token": token,
        "due_until": expires_at,
        "due_now": due.now,
        "due_now_text": due.now.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S.%f"),
        "due_before": due.now - timedelta(hours=due.stale_after_hours),
        "due_hours": due.stale_after_hours,
    }
    marked = 0
    for statement in _statements(conn.dialect.name):
        if marked < due.limit:
            marked += conn.execute(statement, {**given, "due_limit": due.limit - marked}).rowcount
    return marked


@cache
def _statements(dialect: str) -> tuple[sa.Update, ...]:
    """The updates of a claim, in their order. They are made once: that costs more than to run them."""
    parts = _Parts(dialect)
    token, until = sa.bindparam("due_token", type_=sa.String), sa.bindparam("due_until", type_=UtcDateTime())
    return tuple(
        sa.update(source_registry)
        .where(parts.among(choice.subquery("chosen")))
        .values(discovery_claim_token=token, discovery_claim_expires_at=until, last_attempted_at=parts.now)
        for choice in (parts.asked_for(), parts.never_attempted(), parts.attempted())
    )


class _Parts:
    """Parts of the statements, in one database's words."""

    def __init__(self, dialect: str) -> None:
        self._dialect = dialect
        self._columns = source_registry.c
        self.now = sa.bindparam("due_now", type_=UtcDateTime())
        self._limit = sa.bindparam("due_limit", type_=sa.Integer)

    def asked_for(self) -> sa.Select[Any]:
        """Sources that an operator asked for, by the time of the request."""
        return self._new(self._columns.discovery_requested_at.is_not(None))

    def never_attempted(self) -> sa.Select[Any]:
        """Other sources without an attempt, in the order of their registration."""
        return self._new(self._columns.discovery_requested_at.is_(None))

    def attempted(self) -> sa.Select[Any]:
        """The others, the longest untouched first."""
        columns = self._columns
        before = sa.bindparam("due_before", type_=UtcDateTime())
        order = (columns.last_attempted_at, columns.id)
        unsettled = self._select(sa.text(DUE_UNSETTLED), self._stale(), order=order)
        settled = self._select(
            sa.text(DUE_SETTLED),
            columns.last_checked_at <= before,
            columns.last_attempted_at <= before,  # follows from the others: the range of the index
            order=order,
        )
        # Locked inside, since rows of a union cannot be.
        both = sa.union_all(*(sa.select(part.subquery()) for part in (unsettled, settled))).subquery()
        return sa.select(both.c.id).order_by(both.c.last_attempted_at, both.c.id).limit(self._limit)

    def among(self, chosen: sa.Subquery) -> sa.ColumnElement[bool]:
        """Whether a source is chosen; the choice is made once, and its sources are found by their ids."""
        ids = sa.select(chosen.c.id)
        if self._dialect == "postgresql":
            # As a list it would be a join, for which the planner may read the whole table, or choose repeatedly.
            return self._columns.id == sa.func.any(sa.func.array(ids.scalar_subquery()))
        return self._columns.id.in_(ids)

    def _new(self, which: sa.ColumnElement[bool]) -> sa.Select[Any]:
        order = (self._columns.discovery_requested_at, self._columns.id)
        return self._select(sa.text(DUE_NEW), which, self._stale(), order=order)

    def _select(
        self, *conditions: sa.ColumnElement[bool] | sa.TextClause, order: tuple[sa.ColumnElement[Any], ...]
    ) -> sa.Select[Any]:
        columns = self._columns
        return (
            sa.select(columns.id, columns.last_attempted_at)
            .where(
                columns.project_module == sa.bindparam("due_survey", type_=sa.String),
                sa.or_(
                    columns.discovery_claim_token.is_(None), columns.discovery_claim_expires_at <= self.now
                ),
                sa.or_(columns.next_attempt_at.is_(None), columns.next_attempt_at <= self.now),
                *conditions,
            )
            .order_by(*order)
            .limit(self._limit)
            .with_for_update(skip_locked=True)
        )

    def _stale(self) -> sa.ColumnElement[bool]:
        columns = self._columns
        return sa.or_(
            columns.last_checked_at.is_(None),
            columns.vanish_signature.is_not(None),
            columns.discovery_requested_at > columns.last_checked_at,
            self._hours_ago() >= columns.last_checked_at,
        )

    def _hours_ago(self) -> sa.ColumnElement[datetime]:
        """``now`` minus a number of hours that is a column, in the database's own arithmetic."""
        survey = sa.bindparam("due_hours", type_=sa.Integer)
        hours = sa.func.coalesce(self._columns.stale_after_hours, survey)
        if self._dialect == "sqlite":
            # Milliseconds are all that SQLite computes with; stored times are text with six digits.
            return sa.func.strftime(
                "%Y-%m-%d %H:%M:%f000",
                sa.bindparam("due_now_text", type_=sa.String),
                sa.literal("-").concat(sa.cast(hours, sa.String)).concat(" hours"),
            )
        moment = sa.bindparam("due_now", type_=sa.DateTime(timezone=True))
        return moment - sa.func.make_interval(0, 0, 0, 0, hours)
