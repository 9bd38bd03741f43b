"""Executions: creation with their locks, moves through the law of :mod:`~beampipe_dagster.ledger.fsm`, leases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.exc import IntegrityError

from beampipe_dagster.clock import rfc3339
from beampipe_dagster.errors import ConflictError, LedgerError, NotFoundError, Retry
from beampipe_dagster.ledger import fsm
from beampipe_dagster.ledger.execution_values import Execution, NewExecution, to_execution
from beampipe_dagster.ledger.sources import chunks
from beampipe_dagster.ledger.states import (
    ACTIVE,
    TERMINAL,
    ControlPhase,
    DaliugeState,
    OutputState,
    SchedulerState,
    Status,
    SubmissionState,
)
from beampipe_dagster.ledger.tables import (
    batch_execution_record,
    execution_sources,
)


def create(conn: Connection, new: NewExecution, *, now: datetime) -> Execution:
    """Create an execution and lock its sources, in the caller's transaction.

    Raises
    ------
    ConflictError
        ``source_already_executing``: an active execution holds one of the sources.
    """
    return create_many(conn, [new], now=now)[0]


def create_many(conn: Connection, news: Sequence[NewExecution], *, now: datetime) -> list[Execution]:
    """Create executions and lock their sources, in the caller's transaction; three statements for all of them.

    Raises
    ------
    ConflictError
        ``source_already_executing``: an active execution holds one of the sources.
    """
    if not news:
        return []
    conn.execute(sa.insert(batch_execution_record), [_columns(new, now) for new in news])
    locks = [
        {
            "execution_id": new.id,
            "source_identifier": source["source_identifier"],
            "project_module": new.project_module,
            "discovery_signature": new.signatures[source["source_identifier"]],
            "active": True,
        }
        for new in news
        for source in new.sources
    ]
    try:
        with conn.begin_nested():
            conn.execute(sa.insert(execution_sources), locks)
    except IntegrityError as error:
        raise _already_executing([lock["source_identifier"] for lock in locks]) from error
    made: dict[str, Execution] = {}
    for piece in chunks([new.id for new in news]):
        rows = conn.execute(sa.select(batch_execution_record).where(batch_execution_record.c.id.in_(piece)))
        made |= {row.id: to_execution(row) for row in rows}
    return [made[new.id] for new in news]


def _columns(new: NewExecution, now: datetime) -> dict[str, Any]:
    """The row of an execution that has just been admitted."""
    outputs = OutputState.PENDING if new.output_verification_required else OutputState.NOT_STARTED
    given = {field.name: getattr(new, field.name) for field in fields(new) if field.name != "signatures"}
    return {
        **given,
        "status": Status.PENDING.value,
        "control_phase": ControlPhase.ADMITTED.value,
        "submission_state": SubmissionState.NOT_STARTED.value,
        "scheduler_name": "workflow_auto",
        "scheduler_state": SchedulerState.NOT_SUBMITTED.value,
        "daliuge_state": DaliugeState.NOT_CREATED.value,
        "output_state": outputs.value,
        "phase_timestamps": {ControlPhase.ADMITTED.value: rfc3339(now)},
        "next_launch_at": now,
        "created_at": now,
        "updated_at": now,
    }


_LIGHT: Final = [
    *(column for column in batch_execution_record.c if column.name != "workflow_manifest"),
    sa.null().label("workflow_manifest"),
]
"""All columns but the one document that may be megabytes."""


def get(conn: Connection, execution_id: str, *, lock: bool = False, light: bool = False) -> Execution:
    """One execution.

    ``lock`` holds its row until the transaction ends (PostgreSQL), ``light`` leaves out its manifest.

    Raises
    ------
    NotFoundError
        ``execution_not_found``.
    """
    columns = _LIGHT if light else [batch_execution_record]
    statement = sa.select(*columns).where(batch_execution_record.c.id == execution_id)
    row = conn.execute(statement.with_for_update() if lock else statement).first()
    if row is None:
        raise NotFoundError(
            f"there is no execution {execution_id}",
            code="execution_not_found",
            hint="list them: beampipe execution list",
        )
    return to_execution(row, light=light)


def select(
    conn: Connection,
    *conditions: sa.ColumnElement[bool],
    limit: int = 500,
    newest_first: bool = False,
    lock: bool = False,
    light: bool = False,
) -> list[Execution]:
    """Executions that meet all conditions, in the order of their creation.

    ``lock`` holds their rows until the transaction ends, and leaves out those that somebody else holds
    (PostgreSQL). ``light`` leaves out their manifests: for lists, and for whoever reads a row again before
    writing to its run record.
    """
    order = [batch_execution_record.c.created_at, batch_execution_record.c.id]
    statement = (
        sa.select(*(_LIGHT if light else [batch_execution_record]))
        .where(*conditions)
        .order_by(*(column.desc() if newest_first else column for column in order))
        .limit(limit)
    )
    if lock:
        statement = statement.with_for_update(skip_locked=True)
    return [to_execution(row, light=light) for row in conn.execute(statement)]


def by_partition(conn: Connection, project_module: str, partition_key: str) -> Execution | None:
    """The newest execution of a partition key, without its manifest; earlier ones were tried and failed."""
    found = select(
        conn,
        batch_execution_record.c.project_module == project_module,
        batch_execution_record.c.partition_key == partition_key,
        limit=1,
        newest_first=True,
        light=True,
    )
    return found[0] if found else None


def by_request(conn: Connection, created_by: str, key: str) -> tuple[Execution, str] | None:
    """The execution that this person's request of this key created, and the digest of that request."""
    columns = batch_execution_record.c
    row = conn.execute(
        sa.select(*_LIGHT).where(columns.created_by == created_by, columns.create_idempotency_key == key)
    ).first()
    if row is None:
        return None
    return to_execution(row, light=True), str(row.create_request_sha256)


def active_counts(conn: Connection) -> tuple[int, dict[str, int], dict[str, int]]:
    """Active executions: in all, by project, by profile id.

    One that only waits for its outputs to be verified uses no backend any more and takes no room.
    """
    columns = batch_execution_record.c
    rows = conn.execute(
        sa.select(columns.project_module, columns.deployment_profile_id, sa.func.count())
        .where(
            columns.status.in_([status.value for status in ACTIVE]),
            columns.control_phase != ControlPhase.OUTPUT_VERIFICATION.value,
        )
        .group_by(columns.project_module, columns.deployment_profile_id)
    )
    total, projects, profiles = 0, dict[str, int](), dict[str, int]()
    for project, profile, number in rows:
        total += number
        projects[project] = projects.get(project, 0) + number
        profiles[profile] = profiles.get(profile, 0) + number
    return total, projects, profiles


def in_flight_of_other_revisions(conn: Connection, project_module: str, revision_id: str) -> list[str]:
    """Ids of active executions that keep another revision of their survey, oldest first."""
    columns = batch_execution_record.c
    rows = conn.execute(
        sa.select(columns.id)
        .where(
            columns.project_module == project_module,
            columns.project_config_id != revision_id,
            columns.status.in_([status.value for status in ACTIVE]),
        )
        .order_by(columns.created_at, columns.id)
    )
    return [row.id for row in rows]


def counts_by_revision(conn: Connection, project_module: str) -> dict[str, tuple[int, int]]:
    """By revision: how many executions were admitted with it, and how many of them are active."""
    columns = batch_execution_record.c
    active = sa.case((columns.status.in_([status.value for status in ACTIVE]), 1))
    rows = conn.execute(
        sa.select(columns.project_config_id, sa.func.count(), sa.func.count(active))
        .where(columns.project_module == project_module)
        .group_by(columns.project_config_id)
    )
    return {revision: (total, running) for revision, total, running in rows}


def active_sources(conn: Connection, project_module: str) -> set[str]:
    """Sources that an active execution holds."""
    rows = conn.execute(
        sa.select(execution_sources.c.source_identifier).where(
            execution_sources.c.project_module == project_module, execution_sources.c.active
        )
    )
    return {row.source_identifier for row in rows}


def move(
    conn: Connection,
    execution: Execution,
    *,
    now: datetime,
    patch: fsm.StatusPatch | None = None,
    values: Mapping[str, Any] | None = None,
) -> Execution:
    """Change an execution: its status by the law, other columns as given.

    A move to a terminal status frees the sources, a move away from one takes them again.

    The update carries the status that the caller saw; a row that moved meanwhile is not touched.

    Raises
    ------
    ConflictError
        ``invalid_transition``, ``execution_moved`` when somebody else moved it first, or
        ``source_already_executing`` when it goes on but another one has its sources by now.
    """
    before = fsm.StatusFields(
        status=execution.status,
        execution_phase=execution.execution_phase,
        retry_count=execution.retry_count,
        last_error=execution.last_error,
        started_at=execution.started_at,
        completed_at=execution.completed_at,
    )
    after = fsm.apply(before, patch or fsm.StatusPatch(), now=now)
    columns: dict[str, Any] = {
        name: value.value if isinstance(value, StrEnum) else value for name, value in (values or {}).items()
    }
    if patch is not None and patch.clear_error:
        columns.setdefault("last_error_code", None)
    if execution.light and "workflow_manifest" in columns:
        raise LedgerError(
            f"execution {execution.id} was read without its manifest, which would be lost",
            code="manifest_not_read",
            hint="this is a defect; please report it",
            retry=Retry.NEVER,
        )
    phase = columns.get("control_phase")
    if after.status in TERMINAL and execution.status not in TERMINAL:
        columns["control_phase"] = phase = ControlPhase.TERMINAL.value
        columns.update(lease_token=None, lease_expires_at=None, next_launch_at=None, next_poll_at=None)
    if phase is not None and phase != execution.control_phase:
        columns["phase_timestamps"] = {
            **execution.phase_timestamps,
            phase: rfc3339(now),
        }
    written = conn.execute(
        sa.update(batch_execution_record)
        .where(
            batch_execution_record.c.id == execution.id,
            batch_execution_record.c.status == execution.status.value,
        )
        .values(
            status=after.status.value,
            execution_phase=after.execution_phase.value if after.execution_phase else None,
            retry_count=after.retry_count,
            last_error=after.last_error,
            started_at=after.started_at,
            completed_at=after.completed_at,
            updated_at=now,
            **columns,
        )
    )
    if not written.rowcount:
        raise ConflictError(
            f"execution {execution.id} is no longer {execution.status}",
            code="execution_moved",
            hint="look at it again: beampipe execution show " + execution.id,
        )
    if (after.status in TERMINAL) != (execution.status in TERMINAL):
        _hold_sources(conn, execution, held=after.status not in TERMINAL)
    return get(conn, execution.id, light=execution.light)


def _hold_sources(conn: Connection, execution: Execution, *, held: bool) -> None:
    try:
        with conn.begin_nested():
            conn.execute(
                sa.update(execution_sources)
                .where(execution_sources.c.execution_id == execution.id)
                .values(active=held)
            )
    except IntegrityError as error:
        raise _already_executing(execution.source_identifiers) from error


def _already_executing(names: Sequence[str]) -> ConflictError:
    return ConflictError(
        f"an active execution already holds {', '.join(names)}",
        code="source_already_executing",
        hint="wait until it is terminal: beampipe execution list",
    )


def cancel_requested(conn: Connection, execution_id: str) -> bool:
    """Whether somebody asked for its cancellation."""
    column = batch_execution_record.c.cancel_requested_at
    return (
        conn.execute(sa.select(column).where(batch_execution_record.c.id == execution_id)).scalar()
        is not None
    )


def acquire_lease(conn: Connection, execution_id: str, token: str, *, now: datetime, seconds: float) -> bool:
    """Become (or stay) the one process that works on this execution."""
    columns = batch_execution_record.c
    taken = conn.execute(
        sa.update(batch_execution_record)
        .where(
            columns.id == execution_id,
            sa.or_(
                columns.lease_token.is_(None),
                columns.lease_token == token,
                columns.lease_expires_at <= now,
            ),
        )
        .values(lease_token=token, lease_expires_at=now + timedelta(seconds=seconds))
    )
    return bool(taken.rowcount)


def renew_lease(conn: Connection, execution_id: str, token: str, *, now: datetime, seconds: float) -> bool:
    """Stay the holder; ``False`` when the lease went to somebody else."""
    columns = batch_execution_record.c
    kept = conn.execute(
        sa.update(batch_execution_record)
        .where(columns.id == execution_id, columns.lease_token == token)
        .values(lease_expires_at=now + timedelta(seconds=seconds))
    )
    return bool(kept.rowcount)


def release_lease(conn: Connection, execution_id: str, token: str) -> None:
    """Let somebody else work on it."""
    columns = batch_execution_record.c
    conn.execute(
        sa.update(batch_execution_record)
        .where(columns.id == execution_id, columns.lease_token == token)
        .values(lease_token=None, lease_expires_at=None)
    )
