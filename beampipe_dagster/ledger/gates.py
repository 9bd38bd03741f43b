"""Archives in the ledger: permits to ask one, its circuit, and its health. Statements; the law is in ``circuits``.

Whoever takes a permit locks the archive's row first, so that counting and adding are one. Times come from the hosts'
clocks, as for leases: hosts on one ledger have to agree on the time to within a second or so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from datetime import datetime, timedelta
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.exc import IntegrityError

from beampipe_dagster.config.canonical import JsonValue
from beampipe_dagster.errors import NotFoundError
from beampipe_dagster.ledger import circuits
from beampipe_dagster.ledger.circuits import Circuit, CircuitState, Outcome, Rules
from beampipe_dagster.ledger.rows import to_value
from beampipe_dagster.ledger.tables_archives import archive_permits, archive_users, archives

SOON: Final = timedelta(seconds=2)
"""A turn that is no further away is given ahead: its holder waits, and nobody asks the ledger again for it."""

LATENCY_WEIGHT: Final = 0.2
"""Weight of the newest answer in the mean of how long answers take."""

_CIRCUIT: Final = tuple(field.name for field in fields(Circuit))


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchiveRow:
    """What the ledger knows of an archive.

    Attributes
    ----------
    key
        Host, port and path of its TAP base URL.
    name
        The adapter's name under which it was last used.
    max_concurrency, min_interval_ms
        The limits of the process that used it last.
    next_allowed_at
        When the next request may begin, by the interval.
    pause_until
        Until when the archive asked everybody to wait (``Retry-After``).
    circuit
        Whether it is asked.
    last_good_at, last_failure_at, last_error
        Its last answer, and its last failure to answer (``code``, ``message``, ``class``).
    latency_seconds
        How long its answers take: a mean in which newer ones weigh more.
    good_count, failure_count
        Requests that it answered, and that it did not.
    """

    key: str
    name: str
    url: str
    max_concurrency: int
    min_interval_ms: int
    next_allowed_at: datetime | None
    pause_until: datetime | None
    circuit: Circuit
    last_good_at: datetime | None
    last_failure_at: datetime | None
    last_error: dict[str, JsonValue] | None
    latency_seconds: float | None
    good_count: int
    failure_count: int

    @property
    def answers(self) -> bool | None:
        """Whether it answered last and is asked; ``None`` when it was never asked."""
        if self.circuit.state is not CircuitState.CLOSED:
            return False
        if self.last_failure_at is None:
            return None if self.last_good_at is None else True
        return self.last_good_at is not None and self.last_good_at >= self.last_failure_at


@dataclass(frozen=True, slots=True)
class User:
    """A survey that uses an archive, and its name for it."""

    project_module: str
    adapter: str
    archive_key: str


@dataclass(frozen=True, slots=True)
class Granted:
    """The request may be sent at ``not_before``; ``probe`` when it decides about the circuit."""

    not_before: datetime
    probe: bool = False


@dataclass(frozen=True, slots=True)
class Wait:
    """Not now: because of what, and, where that is known, until when."""

    why: str
    until: datetime | None = None


@dataclass(frozen=True, slots=True)
class ShutOff:
    """The circuit lets nothing through."""

    row: ArchiveRow


@dataclass(frozen=True, slots=True)
class Settled:
    """How a report changed the circuit."""

    row: ArchiveRow
    opened: bool = False
    closed: bool = False


def ensure(  # what a process knows of an archive that it is about to use
    conn: Connection,
    user: User,
    *,
    url: str,
    max_concurrency: int,
    min_interval_ms: int,
    now: datetime,
) -> None:
    """Make the archive's row, or bring it up to date, and remember that the survey uses it."""
    values = {
        "name": user.adapter,
        "url": url,
        "max_concurrency": max_concurrency,
        "min_interval_ms": min_interval_ms,
    }
    mine = archives.c.key == user.archive_key
    if not conn.execute(sa.update(archives).where(mine).values(**values)).rowcount:
        try:
            with conn.begin_nested():
                conn.execute(sa.insert(archives).values(key=user.archive_key, created_at=now, **values))
        except IntegrityError:
            conn.execute(sa.update(archives).where(mine).values(**values))
    columns = archive_users.c
    same = (columns.project_module == user.project_module, columns.adapter == user.adapter)
    moved = sa.update(archive_users).where(*same).values(archive_key=user.archive_key)
    if not conn.execute(moved).rowcount:
        try:
            with conn.begin_nested():
                conn.execute(
                    sa.insert(archive_users).values(
                        project_module=user.project_module,
                        adapter=user.adapter,
                        archive_key=user.archive_key,
                    )
                )
        except IntegrityError:
            conn.execute(moved)


def get(conn: Connection, key: str, *, lock: bool = False) -> ArchiveRow:
    """One archive; ``lock`` holds its row until the transaction ends (PostgreSQL).

    Raises
    ------
    NotFoundError
        ``archive_not_known``.
    """
    statement = sa.select(archives).where(archives.c.key == key)
    row = conn.execute(statement.with_for_update() if lock else statement).first()
    if row is None:
        raise NotFoundError(
            f"the ledger knows no archive {key!r}",
            code="archive_not_known",
            hint="see those that are known: beampipe archive list",
        )
    return _archive(row)


def everything(conn: Connection) -> list[ArchiveRow]:
    """All archives, by name and key."""
    statement = sa.select(archives).order_by(archives.c.name, archives.c.key)
    return [_archive(row) for row in conn.execute(statement)]


def users(conn: Connection, project_module: str | None = None) -> list[User]:
    """Which archive each survey means by its adapters' names."""
    columns = archive_users.c
    statement = sa.select(archive_users).order_by(columns.project_module, columns.adapter)
    if project_module is not None:
        statement = statement.where(columns.project_module == project_module)
    return [to_value(User, row) for row in conn.execute(statement)]


def of_project(conn: Connection, project_module: str) -> dict[str, ArchiveRow]:
    """The archives that a survey uses, by its own names for them."""
    statement = (
        sa.select(archive_users.c.adapter, archives)
        .join(archives, archives.c.key == archive_users.c.archive_key)
        .where(archive_users.c.project_module == project_module)
        .order_by(archive_users.c.adapter)
    )
    return {row.adapter: _archive(row) for row in conn.execute(statement)}


def permits_in_use(conn: Connection, *, now: datetime) -> dict[str, int]:
    """Requests on their way, by archive."""
    columns = archive_permits.c
    rows = conn.execute(
        sa.select(columns.archive_key, sa.func.count())
        .where(columns.expires_at > now)
        .group_by(columns.archive_key)
    )
    return {key: number for key, number in rows}  # noqa: C416  # dict() does not know rows' types


def holders(conn: Connection, key: str, *, now: datetime) -> list[tuple[str, datetime]]:
    """Who holds a permit, and since when, the oldest first."""
    columns = archive_permits.c
    rows = conn.execute(
        sa.select(columns.holder, columns.taken_at)
        .where(columns.archive_key == key, columns.expires_at > now)
        .order_by(columns.taken_at, columns.token)
    )
    return [(row.holder, row.taken_at) for row in rows]


def take(
    conn: Connection,
    key: str,
    token: str,
    *,
    holder: str,
    max_concurrency: int,
    min_interval: timedelta,
    ttl: timedelta,
    now: datetime,
    force_probe: bool = False,
) -> Granted | Wait | ShutOff:
    """Take a permit, if there is one and it is time.

    Call it in a writing transaction of its own.

    Parameters
    ----------
    force_probe
        Become the probe of an open circuit before its time; not while another probe is on its way.
    """
    row = get(conn, key, lock=True)
    expires_at = now + ttl
    circuit = circuits.passed(row.circuit, token, now=now, expires_at=expires_at)
    if circuit is None and force_probe and row.circuit.state is CircuitState.OPEN:
        circuit = circuits.probing(row.circuit, token, expires_at=expires_at)
    if circuit is None:
        return ShutOff(row)
    if (waiting := _full(conn, row, max_concurrency, now)) is not None:
        return waiting
    not_before = max(now, row.next_allowed_at or now)
    probe = circuit.probe_token == token
    changes: dict[str, Any] = {}
    if min_interval:
        changes["next_allowed_at"] = not_before + min_interval
    if probe:
        changes |= _circuit_values(circuit)
    if changes:
        conn.execute(sa.update(archives).where(archives.c.key == key).values(**changes))
    conn.execute(
        sa.insert(archive_permits).values(
            token=token, archive_key=key, holder=holder, taken_at=now, expires_at=expires_at
        )
    )
    return Granted(not_before, probe)


def obstacle(conn: Connection, key: str, *, max_concurrency: int, now: datetime) -> Wait | None:
    """What :func:`take` would wait for, found out by reading alone: those who wait must not hold up writers."""
    row = get(conn, key)
    return None if row.circuit.shut_off(now) else _full(conn, row, max_concurrency, now)


def _full(conn: Connection, row: ArchiveRow, max_concurrency: int, now: datetime) -> Wait | None:
    if row.pause_until is not None and row.pause_until > now:
        return Wait("the archive asked for a pause", row.pause_until)
    if row.next_allowed_at is not None and row.next_allowed_at > now + SOON:
        return Wait("requests are spaced out", row.next_allowed_at - SOON)
    columns = archive_permits.c
    held = conn.execute(
        sa.select(sa.func.count(), sa.func.count(sa.case((columns.expires_at > now, 1)))).where(
            columns.archive_key == row.key
        )
    ).one()
    if held[1] >= max_concurrency:
        return Wait(f"{held[1]} requests are on their way")
    return None


def settle(
    conn: Connection,
    key: str,
    token: str,
    outcome: Outcome,
    *,
    rules: Rules,
    now: datetime,
    seconds: float | None = None,
    error: dict[str, JsonValue] | None = None,
) -> Settled | None:
    """Give a permit back, with what the request said about the archive.

    Parameters
    ----------
    seconds
        How long the answer took.
    error
        What went wrong (``code``, ``message``, ``class``).

    Returns
    -------
    Settled or None
        How the circuit changed, where it may have.
    """
    conn.execute(sa.delete(archive_permits).where(archive_permits.c.token == token))
    if outcome is Outcome.ANSWERED and _answered(conn, key, seconds, now):
        return None  # nearly all requests end here
    row = get(conn, key, lock=True)
    reason = str((error or {}).get("message") or "")
    circuit = circuits.after(row.circuit, outcome, token, now=now, rules=rules, reason=reason)
    values = _circuit_values(circuit) | _health_values(row, outcome, seconds, error, now)
    conn.execute(sa.update(archives).where(archives.c.key == key).values(**values))
    _sweep(conn, key, now)
    return Settled(
        replace(row, circuit=circuit),
        opened=circuit.state is CircuitState.OPEN and row.circuit.state is CircuitState.CLOSED,
        closed=circuit.state is CircuitState.CLOSED and row.circuit.state is not CircuitState.CLOSED,
    )


def _answered(conn: Connection, key: str, seconds: float | None, now: datetime) -> bool:
    """An answer while the circuit is closed, in one statement; ``False`` when it is not closed."""
    columns = archives.c
    values: dict[str, Any] = {
        "last_good_at": now,
        "failures": 0,
        "good_count": columns.good_count + 1,
    }
    if seconds is not None:
        old = sa.func.coalesce(columns.latency_seconds, seconds)
        values["latency_seconds"] = old + (seconds - old) * LATENCY_WEIGHT
    closed = (columns.key == key, columns.state == CircuitState.CLOSED.value)
    return bool(conn.execute(sa.update(archives).where(*closed).values(**values)).rowcount)


def _health_values(
    row: ArchiveRow,
    outcome: Outcome,
    seconds: float | None,
    error: dict[str, JsonValue] | None,
    now: datetime,
) -> dict[str, Any]:
    if outcome is Outcome.ANSWERED:
        values: dict[str, Any] = {"last_good_at": now, "good_count": row.good_count + 1}
        if seconds is not None:
            old = seconds if row.latency_seconds is None else row.latency_seconds
            values["latency_seconds"] = old + (seconds - old) * LATENCY_WEIGHT
        return values
    if outcome is Outcome.NOTHING:
        return {}
    return {"last_failure_at": now, "failure_count": row.failure_count + 1, "last_error": error}


def _sweep(conn: Connection, key: str, now: datetime) -> None:
    """Remove what dead processes left."""
    columns = archive_permits.c
    conn.execute(sa.delete(archive_permits).where(columns.archive_key == key, columns.expires_at <= now))


def renew(conn: Connection, tokens: Sequence[str], *, expires_at: datetime) -> None:
    """Keep permits, and the probes among them, alive."""
    conn.execute(
        sa.update(archive_permits).where(archive_permits.c.token.in_(tokens)).values(expires_at=expires_at)
    )
    conn.execute(
        sa.update(archives).where(archives.c.probe_token.in_(tokens)).values(probe_expires_at=expires_at)
    )


def pause(conn: Connection, key: str, *, until: datetime) -> None:
    """Let everybody wait until then; a pause is never made shorter."""
    columns = archives.c
    shorter = sa.or_(columns.pause_until.is_(None), columns.pause_until < until)
    conn.execute(sa.update(archives).where(columns.key == key, shorter).values(pause_until=until))


def open_by_hand(
    conn: Connection, key: str, *, now: datetime, until: datetime | None, reason: str
) -> ArchiveRow:
    """Open the circuit until then, or until it is closed by hand; the archive as it was.

    Raises
    ------
    NotFoundError
        ``archive_not_known``.
    """
    row = get(conn, key, lock=True)
    circuit = circuits.opened_by_hand(row.circuit, now=now, until=until, reason=reason)
    conn.execute(sa.update(archives).where(archives.c.key == key).values(**_circuit_values(circuit)))
    return row


def close_by_hand(conn: Connection, key: str) -> ArchiveRow:
    """Close the circuit and end a pause that the archive asked for; the archive as it was.

    Raises
    ------
    NotFoundError
        ``archive_not_known``.
    """
    row = get(conn, key, lock=True)
    values = _circuit_values(circuits.CLOSED) | {"pause_until": None}
    conn.execute(sa.update(archives).where(archives.c.key == key).values(**values))
    return row


def _circuit_values(circuit: Circuit) -> dict[str, Any]:
    return {name: getattr(circuit, name) for name in _CIRCUIT} | {"state": circuit.state.value}


def _archive(row: sa.Row[Any]) -> ArchiveRow:
    found = row._asdict()
    circuit = {name: found[name] for name in _CIRCUIT} | {"state": CircuitState(found["state"])}
    own = {field.name: found[field.name] for field in fields(ArchiveRow) if field.name != "circuit"}
    return ArchiveRow(circuit=Circuit(**circuit), **own)
