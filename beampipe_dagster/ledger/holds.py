"""What operators hold: sources, executions that have not been submitted, surveys, profiles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from enum import StrEnum

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from beampipe_dagster.ledger.rows import to_value
from beampipe_dagster.ledger.tables import batch_execution_record as record
from beampipe_dagster.ledger.tables_control import control_holds


class Scope(StrEnum):
    """What a hold is about."""

    SOURCE = "source"
    EXECUTION = "execution"
    PROJECT = "project"
    PROFILE = "profile"


@dataclass(frozen=True, slots=True)
class Hold:
    """A hold.

    Attributes
    ----------
    project_module
        The survey; empty for a profile.
    subject
        A source's name, or the id of an execution, a survey or a profile.
    expires_at
        When it is over by itself; ``None`` for never.
    """

    scope: str
    project_module: str
    subject: str
    code: str
    reason: str
    actor: str
    created_at: datetime
    expires_at: datetime | None = None


def live(now: datetime) -> sa.ColumnElement[bool]:
    """A hold that is not over."""
    return sa.or_(control_holds.c.expires_at.is_(None), control_holds.c.expires_at > now)


def put(conn: Connection, hold: Hold) -> bool:
    """Keep a hold; ``False`` when there is a live one of the same subject, which stays as it is."""
    if find(conn, hold.scope, hold.project_module, hold.subject, now=hold.created_at) is not None:
        return False
    remove(conn, hold.scope, hold.project_module, hold.subject)
    conn.execute(sa.insert(control_holds).values(**asdict(hold)))
    return True


def find(conn: Connection, scope: str, project_module: str, subject: str, *, now: datetime) -> Hold | None:
    """The live hold of a subject."""
    row = conn.execute(sa.select(control_holds).where(_is(scope, project_module, subject), live(now))).first()
    return to_value(Hold, row) if row is not None else None


def remove(conn: Connection, scope: str, project_module: str, subject: str) -> bool:
    """Take a hold away; whether there was one."""
    return bool(conn.execute(sa.delete(control_holds).where(_is(scope, project_module, subject))).rowcount)


def of_sources(conn: Connection, project_module: str, *, now: datetime) -> dict[str, Hold]:
    """The live holds of a survey's sources, by name."""
    rows = conn.execute(
        sa.select(control_holds).where(
            control_holds.c.scope == Scope.SOURCE.value,
            control_holds.c.project_module == project_module,
            live(now),
        )
    )
    return {row.subject: to_value(Hold, row) for row in rows}


def against(conn: Connection, project_module: str, profile_id: str | None, *, now: datetime) -> list[Hold]:
    """The live holds of a survey and of a profile."""
    wanted = _is(Scope.PROJECT, project_module, project_module)
    if profile_id is not None:
        wanted = sa.or_(wanted, _is(Scope.PROFILE, "", profile_id))
    rows = conn.execute(sa.select(control_holds).where(wanted, live(now)).order_by(control_holds.c.scope))
    return [to_value(Hold, row) for row in rows]


def everything(conn: Connection, *, now: datetime, scopes: Sequence[Scope] = tuple(Scope)) -> list[Hold]:
    """All live holds of these scopes, oldest first."""
    rows = conn.execute(
        sa.select(control_holds)
        .where(control_holds.c.scope.in_([scope.value for scope in scopes]), live(now))
        .order_by(control_holds.c.created_at, control_holds.c.subject)
    )
    return [to_value(Hold, row) for row in rows]


def may_launch(now: datetime) -> sa.ColumnElement[bool]:
    """An execution that neither is held, nor belongs to a survey or a profile that is."""
    held = control_holds.c
    return ~sa.exists().where(
        live(now),
        sa.or_(
            sa.and_(held.scope == Scope.EXECUTION.value, held.subject == record.c.id),
            sa.and_(held.scope == Scope.PROJECT.value, held.subject == record.c.project_module),
            sa.and_(held.scope == Scope.PROFILE.value, held.subject == record.c.deployment_profile_id),
        ),
    )


def _is(scope: str, project_module: str, subject: str) -> sa.ColumnElement[bool]:
    held = control_holds.c
    return sa.and_(held.scope == str(scope), held.project_module == project_module, held.subject == subject)
