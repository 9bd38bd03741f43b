"""What the poll reads and writes of executions in flight: few columns of many rows, one statement for many."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from beampipe_dagster.ledger.states import ACTIVE, TERMINAL, ControlPhase, DaliugeState, SubmissionState
from beampipe_dagster.ledger.tables import batch_execution_record

_COLUMNS = batch_execution_record.c


@dataclass(frozen=True, slots=True)
class InFlight:
    """A submitted execution, as far as a look at its session needs it.

    Attributes
    ----------
    poll_count, poll_failure_count
        Looks that were answered; looks in a row that were not.
    counted_at, progress_at
        When its drops were last counted, and when their counts last changed.
    escalations
        What an operator was told about it, by kind.
    """

    id: str
    project_config_id: str
    deployment_profile_snapshot: dict[str, Any]
    session_id: str
    daliuge_state: DaliugeState
    monitored: bool
    drop_counts: dict[str, int] | None
    poll_count: int
    poll_failure_count: int
    absent_count: int
    started_at: datetime | None
    counted_at: datetime | None
    progress_at: datetime | None
    escalations: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Unchanged:
    """Executions whose look saw nothing new, and when they are looked at next."""

    ids: Sequence[str]
    next_poll_at: datetime
    answered: bool
    counted: bool


def due(conn: Connection, *, now: datetime, limit: int) -> list[InFlight]:
    """Submitted executions whose time has come, the longest overdue first."""
    rows = conn.execute(
        sa.select(
            _COLUMNS.id,
            _COLUMNS.project_config_id,
            _COLUMNS.deployment_profile_snapshot,
            _COLUMNS.daliuge_session_id,
            _COLUMNS.daliuge_state,
            _COLUMNS.control_phase,
            _COLUMNS.drop_counts,
            _COLUMNS.poll_count,
            _COLUMNS.poll_failure_count,
            _COLUMNS.absent_count,
            _COLUMNS.started_at,
            _COLUMNS.counted_at,
            _COLUMNS.progress_at,
            _COLUMNS.escalations,
        )
        .where(
            _COLUMNS.status.in_([status.value for status in ACTIVE]),
            _COLUMNS.submission_state == SubmissionState.SUBMITTED.value,
            _COLUMNS.daliuge_session_id.is_not(None),
            # A finished session whose outputs are to be verified may be gone any time; it is not lost.
            _COLUMNS.control_phase != ControlPhase.OUTPUT_VERIFICATION.value,
            sa.or_(_COLUMNS.next_poll_at.is_(None), _COLUMNS.next_poll_at <= now),
        )
        .order_by(sa.func.coalesce(_COLUMNS.next_poll_at, _COLUMNS.created_at), _COLUMNS.id)
        .limit(limit)
    )
    return [
        InFlight(
            id=row.id,
            project_config_id=row.project_config_id,
            deployment_profile_snapshot=row.deployment_profile_snapshot,
            session_id=row.daliuge_session_id,
            daliuge_state=DaliugeState(row.daliuge_state),
            monitored=row.control_phase == ControlPhase.MONITORING.value,
            drop_counts=row.drop_counts,
            poll_count=row.poll_count,
            poll_failure_count=row.poll_failure_count,
            absent_count=row.absent_count,
            started_at=row.started_at,
            counted_at=row.counted_at,
            progress_at=row.progress_at,
            escalations=row.escalations or {},
        )
        for row in rows
    ]


def looked_at(conn: Connection, groups: Sequence[Unchanged], *, now: datetime) -> None:
    """Write that nothing changed: one statement for all that are due again at the same time."""
    for group in groups:
        values: dict[str, Any] = {"next_poll_at": group.next_poll_at}
        if group.answered:
            values |= {"poll_count": _COLUMNS.poll_count + 1, "last_reconciled_at": now}
        else:
            values["poll_failure_count"] = _COLUMNS.poll_failure_count + 1
        if group.counted:
            values["counted_at"] = now
        conn.execute(
            sa.update(batch_execution_record)
            .where(
                _COLUMNS.id.in_(group.ids),
                _COLUMNS.status.in_([status.value for status in ACTIVE]),
                _COLUMNS.submission_state == SubmissionState.SUBMITTED.value,
            )
            .values(**values)
        )


@dataclass(frozen=True, slots=True)
class LeftBehind:
    """A terminal execution whose sessions have not been removed."""

    id: str
    project_module: str
    deployment_profile_snapshot: dict[str, Any]
    session_id: str
    attempt: int
    created_at: datetime


def left_behind(conn: Connection, *, now: datetime, since: datetime, limit: int) -> list[LeftBehind]:
    """Terminal executions, ended after ``since``, that still have a session; the longest ended first."""
    rows = conn.execute(
        sa.select(
            _COLUMNS.id,
            _COLUMNS.project_module,
            _COLUMNS.deployment_profile_snapshot,
            _COLUMNS.daliuge_session_id,
            _COLUMNS.attempt,
            _COLUMNS.created_at,
        )
        .where(
            _COLUMNS.status.in_([status.value for status in TERMINAL]),
            _COLUMNS.daliuge_session_id.is_not(None),
            _COLUMNS.session_removed.is_distinct_from(_COLUMNS.daliuge_session_id),
            _COLUMNS.completed_at > since,
            # A session that turns up after its submission was given up is evidence, and a person's to end.
            _COLUMNS.submission_abandoned_at.is_(None),
            sa.or_(_COLUMNS.next_poll_at.is_(None), _COLUMNS.next_poll_at <= now),
        )
        .order_by(_COLUMNS.completed_at, _COLUMNS.id)
        .limit(limit)
    )
    return [
        LeftBehind(
            id=row.id,
            project_module=row.project_module,
            deployment_profile_snapshot=row.deployment_profile_snapshot,
            session_id=row.daliuge_session_id,
            attempt=row.attempt,
            created_at=row.created_at,
        )
        for row in rows
    ]


def removed(conn: Connection, one: LeftBehind, *, again_at: datetime | None) -> None:
    """Write that an execution's sessions are gone, or when that is tried again."""
    values: dict[str, Any] = {"next_poll_at": again_at}
    if again_at is None:
        values["session_removed"] = one.session_id
    conn.execute(
        sa.update(batch_execution_record)
        .where(
            _COLUMNS.id == one.id,
            _COLUMNS.daliuge_session_id == one.session_id,
            _COLUMNS.status.in_([status.value for status in TERMINAL]),
        )
        .values(**values)
    )
