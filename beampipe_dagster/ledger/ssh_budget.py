"""Login nodes in the ledger: permits for connections, room for commands, and how a target answered. Statements only.

Whoever takes a permit locks the target's row first, so that counting and adding are one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import datetime, timedelta

import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.exc import IntegrityError

from beampipe_dagster.config.canonical import JsonValue
from beampipe_dagster.errors import NotFoundError
from beampipe_dagster.ledger.tables_slurm import SshState, ssh_permits, ssh_targets


@dataclass(frozen=True, slots=True, kw_only=True)
class SshTargetRow:
    """What the ledger knows of a target.

    Attributes
    ----------
    key, label
        Its fingerprint, and what people call it.
    failures
        Attempts in a row that failed.
    not_before
        Until when no process tries to connect.
    commands_until
        Up to when the room for commands is used.
    last_error
        ``code``, ``message``, ``class`` of the last failure.
    """

    key: str
    label: str
    state: SshState
    failures: int
    not_before: datetime | None
    commands_until: datetime | None
    last_good_at: datetime | None
    last_failure_at: datetime | None
    last_error: dict[str, JsonValue] | None


@dataclass(frozen=True, slots=True)
class Refused:
    """No connection now; ``shut`` when the target is left alone until then, else all permits are taken."""

    row: SshTargetRow
    shut: bool


def ensure(conn: Connection, key: str, *, label: str, now: datetime) -> None:
    """Make the target's row where there is none."""
    if conn.execute(sa.select(ssh_targets.c.key).where(ssh_targets.c.key == key)).first() is not None:
        return
    try:
        with conn.begin_nested():
            conn.execute(sa.insert(ssh_targets).values(key=key, label=label, created_at=now))
    except IntegrityError:
        return  # another process was first


def get(conn: Connection, key: str, *, lock: bool = False) -> SshTargetRow:
    """One target; ``lock`` holds its row until the transaction ends (PostgreSQL).

    Raises
    ------
    NotFoundError
        ``ssh_target_not_known``.
    """
    statement = sa.select(ssh_targets).where(ssh_targets.c.key == key)
    row = conn.execute(statement.with_for_update() if lock else statement).first()
    if row is None:
        raise NotFoundError(
            f"the ledger knows no SSH target {key[:12]!r}",
            code="ssh_target_not_known",
            hint="it is known after the first attempt: beampipe slurm ping PROFILE",
        )
    return _value(row)


def everything(conn: Connection) -> list[SshTargetRow]:
    """All targets, by label and key."""
    return [
        _value(row)
        for row in conn.execute(sa.select(ssh_targets).order_by(ssh_targets.c.label, ssh_targets.c.key))
    ]


def take_connection(
    conn: Connection,
    key: str,
    token: str,
    *,
    holder: str,
    max_connections: int,
    attempt: timedelta,
    ttl: timedelta,
    now: datetime,
    force: bool = False,
) -> Refused | None:
    """Take a permit to connect; ``None`` when it was given.

    Parameters
    ----------
    attempt
        A target that failed last is tried by one process at a time: the others wait for so long.
    force
        Try one that is left alone now, since an operator asks for it.
    """
    row = get(conn, key, lock=True)
    if row.not_before is not None and row.not_before > now and not force:
        return Refused(row, shut=True)
    columns = ssh_permits.c
    conn.execute(sa.delete(ssh_permits).where(columns.target_key == key, columns.expires_at <= now))
    held = conn.scalar(sa.select(sa.func.count()).where(columns.target_key == key)) or 0
    if held >= max_connections:
        return Refused(row, shut=False)
    if row.state is not SshState.OK:
        conn.execute(sa.update(ssh_targets).where(ssh_targets.c.key == key).values(not_before=now + attempt))
    conn.execute(
        sa.insert(ssh_permits).values(
            token=token, target_key=key, holder=holder, taken_at=now, expires_at=now + ttl
        )
    )
    return None


def take_command(conn: Connection, key: str, *, spacing: timedelta, burst: int, now: datetime) -> datetime:
    """When the next command may begin: ``burst`` at once, after that one each ``spacing``."""
    row = get(conn, key, lock=True)
    used_until = max(now, row.commands_until or now) + spacing
    conn.execute(sa.update(ssh_targets).where(ssh_targets.c.key == key).values(commands_until=used_until))
    return max(now, used_until - spacing * burst)


def connected(conn: Connection, key: str, *, now: datetime) -> None:
    """The target let us in."""
    conn.execute(
        sa.update(ssh_targets)
        .where(ssh_targets.c.key == key)
        .values(state=SshState.OK.value, failures=0, not_before=None, last_good_at=now)
    )


def failed(
    conn: Connection,
    key: str,
    state: SshState,
    *,
    first: timedelta,
    longest: timedelta,
    error: dict[str, JsonValue],
    now: datetime,
) -> SshTargetRow:
    """The target did not; the next attempt is after ``first``, twice as long each time up to ``longest``."""
    row = get(conn, key, lock=True)
    delay = min(first * 2 ** min(row.failures, 20), longest)
    conn.execute(
        sa.update(ssh_targets)
        .where(ssh_targets.c.key == key)
        .values(
            state=state.value,
            failures=row.failures + 1,
            not_before=now + delay,
            last_failure_at=now,
            last_error=error,
        )
    )
    return get(conn, key)


def release(conn: Connection, token: str) -> None:
    """Give a connection's permit back."""
    conn.execute(sa.delete(ssh_permits).where(ssh_permits.c.token == token))


def renew(conn: Connection, tokens: Sequence[str], *, expires_at: datetime) -> None:
    """Keep permits alive."""
    conn.execute(sa.update(ssh_permits).where(ssh_permits.c.token.in_(tokens)).values(expires_at=expires_at))


def permits(conn: Connection, key: str, *, now: datetime) -> int:
    """Connections that are open, over all processes."""
    columns = ssh_permits.c
    return (
        conn.scalar(sa.select(sa.func.count()).where(columns.target_key == key, columns.expires_at > now))
        or 0
    )


def _value(row: sa.Row[tuple[object, ...]]) -> SshTargetRow:
    found = row._asdict()
    values = {field.name: found[field.name] for field in fields(SshTargetRow)}
    return SshTargetRow(**values | {"state": SshState(found["state"])})
