"""The source registry: who is to be processed, claims on them, and what the last look said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from beampipe_dagster.config.canonical import JsonValue
from beampipe_dagster.errors import NotFoundError
from beampipe_dagster.ledger.rows import to_value
from beampipe_dagster.ledger.tables import discovery_claims, source_registry

IN_CHUNK = 500
"""Identifiers a statement; SQLite's limit on bound values is 32,766, PostgreSQL plans long lists slowly."""

RELEASED: Final = {
    "next_attempt_at": None,
    "failure_count": 0,
    "own_failure_count": 0,
    "quarantined_at": None,
}
"""Columns of a source whose failures are forgotten."""


@dataclass(frozen=True, slots=True)
class Source:
    """A row of the registry."""

    id: str
    project_module: str
    source_identifier: str
    enabled: bool
    ra_deg: float | None
    dec_deg: float | None
    created_at: datetime
    updated_at: datetime
    stale_after_hours: int | None
    last_checked_at: datetime | None
    last_attempted_at: datetime | None
    discovery_requested_at: datetime | None
    last_outcome: str | None
    last_error: dict[str, JsonValue] | None
    failure_count: int
    next_attempt_at: datetime | None
    discovery_signature: str | None
    last_executed_discovery_signature: str | None
    discovery_claim_token: str | None
    discovery_claim_expires_at: datetime | None
    workflow_run_pending: bool
    workflow_run_pending_at: datetime | None
    hold: dict[str, JsonValue] | None
    own_failure_count: int = 0
    quarantined_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class NewSource:
    """A source to be registered; position in degrees (ICRS), where it is known."""

    source_identifier: str
    enabled: bool = True
    ra_deg: float | None = None
    dec_deg: float | None = None
    stale_after_hours: int | None = None


@dataclass(frozen=True, slots=True)
class DiscoveryClaim:
    """A batch of sources on its way through discovery."""

    token: str
    project_module: str
    source_count: int
    state: str
    created_at: datetime
    expires_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    stats: dict[str, JsonValue] | None


def chunks(items: Sequence[str], size: int = IN_CHUNK) -> list[Sequence[str]]:
    """``items`` in pieces that fit into one statement."""
    return [items[start : start + size] for start in range(0, len(items), size)]


def by_identifiers(conn: Connection, project_module: str, identifiers: Sequence[str]) -> list[Source]:
    """The registered ones of these sources, in no promised order."""
    found: list[Source] = []
    for piece in chunks(identifiers):
        rows = conn.execute(
            sa.select(source_registry).where(
                source_registry.c.project_module == project_module,
                source_registry.c.source_identifier.in_(piece),
            )
        )
        found.extend(to_value(Source, row) for row in rows)
    return found


def get(conn: Connection, project_module: str, source_identifier: str, *, lock: bool = False) -> Source:
    """One source; ``lock`` holds its row until the transaction ends (PostgreSQL).

    Raises
    ------
    NotFoundError
        ``source_not_registered``.
    """
    statement = sa.select(source_registry).where(
        source_registry.c.project_module == project_module,
        source_registry.c.source_identifier == source_identifier,
    )
    row = conn.execute(statement.with_for_update() if lock else statement).first()
    if row is None:
        raise NotFoundError(
            f"source {source_identifier!r} is not registered in project {project_module!r}",
            code="source_not_registered",
            hint="register it: beampipe source register -p PROJECT SOURCE",
        )
    return to_value(Source, row)


def listing(
    conn: Connection, project_module: str | None = None, *, limit: int = 500, offset: int = 0
) -> list[Source]:
    """Sources by project and name."""
    statement = sa.select(source_registry).order_by(
        source_registry.c.project_module, source_registry.c.source_identifier
    )
    if project_module is not None:
        statement = statement.where(source_registry.c.project_module == project_module)
    return [to_value(Source, row) for row in conn.execute(statement.limit(limit).offset(offset))]


def counts(conn: Connection, project_module: str) -> dict[str, int]:
    """How many sources are registered, enabled, checked, pending, held, claimed, quarantined, by last outcome."""
    columns = source_registry.c
    row = conn.execute(
        sa.select(
            sa.func.count().label("registered"),
            sa.func.count(sa.case((columns.enabled, 1))).label("enabled"),
            sa.func.count(columns.last_checked_at).label("checked"),
            sa.func.count(sa.case((columns.workflow_run_pending, 1))).label("pending"),
            sa.func.count(sa.case((columns.hold.is_not(None), 1))).label("held"),
            sa.func.count(columns.discovery_claim_token).label("in_discovery"),
            sa.func.count(columns.quarantined_at).label("quarantined"),
        ).where(columns.project_module == project_module)
    ).one()
    outcomes = conn.execute(
        sa.select(columns.last_outcome, sa.func.count())
        .where(columns.project_module == project_module, columns.last_outcome.is_not(None))
        .group_by(columns.last_outcome)
    )
    return {**dict(row._mapping), **{f"last_{word}": number for word, number in outcomes}}  # noqa: SLF001  # SQLAlchemy's public name


def mark_for_discovery(
    conn: Connection, project_module: str, identifiers: Sequence[str] | None, *, now: datetime
) -> int:
    """Make enabled sources due at once, also quarantined ones; their number.

    The request has a time of its own: a batch whose query began before it does not answer it.
    """
    columns = source_registry.c
    total = 0
    pieces: list[Sequence[str] | None] = [None] if identifiers is None else list(chunks(identifiers))
    for piece in pieces:
        wanted = sa.select(columns.id).where(columns.project_module == project_module, columns.enabled)
        if piece is not None:
            wanted = wanted.where(columns.source_identifier.in_(piece))
        # Batches lock sources by name when they commit; in any other order the two could wait for each other.
        wanted = wanted.order_by(columns.source_identifier).with_for_update()
        total += conn.execute(
            sa.update(source_registry)
            .where(columns.id.in_(wanted))
            .values(discovery_requested_at=now, updated_at=now, **RELEASED)
        ).rowcount
    return total


def claim_due(
    conn: Connection,
    project_module: str,
    *,
    token: str,
    limit: int,
    stale_after_hours: int,
    ttl: timedelta,
    now: datetime,
) -> DiscoveryClaim | None:
    """Claim up to ``limit`` due sources for one batch, the longest untouched first.

    Due is an enabled source without a live claim, whose last complete answer is older than its own (else the
    survey's) ``stale_after_hours``, and which is neither quarantined nor backing off after a failure. The
    oldest attempt comes first, so that sources that fail never starve the rest.
    """
    columns = source_registry.c
    stale_hours = sa.func.coalesce(columns.stale_after_hours, stale_after_hours)
    due = (
        sa.select(columns.id)
        .where(
            columns.project_module == project_module,
            columns.enabled,
            columns.quarantined_at.is_(None),
            sa.or_(columns.discovery_claim_token.is_(None), columns.discovery_claim_expires_at <= now),
            sa.or_(columns.next_attempt_at.is_(None), columns.next_attempt_at <= now),
            sa.or_(
                columns.last_checked_at.is_(None),
                columns.discovery_requested_at > columns.last_checked_at,
                _hours_before(conn, now, stale_hours) >= columns.last_checked_at,
            ),
        )
        .order_by(columns.last_attempted_at.asc().nulls_first(), columns.created_at, columns.id)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    chosen = [row.id for row in conn.execute(due)]
    if not chosen:
        return None
    expires_at = now + ttl
    for piece in chunks(chosen):
        conn.execute(
            sa.update(source_registry)
            .where(columns.id.in_(piece))
            .values(
                discovery_claim_token=token,
                discovery_claim_expires_at=expires_at,
                last_attempted_at=now,
            )
        )
    conn.execute(
        sa.insert(discovery_claims).values(
            token=token,
            project_module=project_module,
            source_count=len(chosen),
            state="claimed",
            created_at=now,
            expires_at=expires_at,
        )
    )
    return claim(conn, token)


def _hours_before(
    conn: Connection, now: datetime, hours: sa.ColumnElement[int]
) -> sa.ColumnElement[datetime]:
    """``now`` minus a number of hours that is a column, in the database's own arithmetic."""
    if conn.dialect.name == "sqlite":
        # Milliseconds are all that SQLite computes with; stored times are text with six digits.
        return sa.func.strftime(
            "%Y-%m-%d %H:%M:%f000",
            now.strftime("%Y-%m-%d %H:%M:%S.%f"),
            sa.literal("-").concat(sa.cast(hours, sa.String)).concat(" hours"),
        )
    return sa.literal(now, sa.DateTime(timezone=True)) - sa.func.make_interval(0, 0, 0, 0, hours)


def claim(conn: Connection, token: str) -> DiscoveryClaim:
    """The claim with this token.

    Raises
    ------
    NotFoundError
        ``claim_not_found``.
    """
    row = conn.execute(sa.select(discovery_claims).where(discovery_claims.c.token == token)).first()
    if row is None:
        raise NotFoundError(f"there is no discovery claim {token}", code="claim_not_found")
    return to_value(DiscoveryClaim, row)


def open_claims(conn: Connection, project_module: str | None = None) -> list[DiscoveryClaim]:
    """Claims that are not done, oldest first."""
    statement = sa.select(discovery_claims).where(discovery_claims.c.state.in_(("claimed", "running")))
    if project_module is not None:
        statement = statement.where(discovery_claims.c.project_module == project_module)
    rows = conn.execute(statement.order_by(discovery_claims.c.created_at))
    return [to_value(DiscoveryClaim, row) for row in rows]


def claimed_sources(conn: Connection, token: str) -> list[Source]:
    """The sources that the claim still holds, by name."""
    rows = conn.execute(
        sa.select(source_registry)
        .where(source_registry.c.discovery_claim_token == token)
        .order_by(source_registry.c.source_identifier)
    )
    return [to_value(Source, row) for row in rows]


def start_claim(conn: Connection, token: str, *, now: datetime, expires_at: datetime) -> bool:
    """Begin the batch's work; ``False`` when another process has begun or ended it."""
    started = conn.execute(
        sa.update(discovery_claims)
        .where(
            discovery_claims.c.token == token,
            discovery_claims.c.state == "claimed",
            discovery_claims.c.expires_at > now,
        )
        .values(state="running", started_at=now, expires_at=expires_at)
    )
    if started.rowcount:
        conn.execute(
            sa.update(source_registry)
            .where(source_registry.c.discovery_claim_token == token)
            .values(discovery_claim_expires_at=expires_at)
        )
    return bool(started.rowcount)


def extend_claim(conn: Connection, token: str, *, expires_at: datetime) -> bool:
    """Keep a running batch's claim alive; ``False`` when it is no longer running."""
    kept = conn.execute(
        sa.update(discovery_claims)
        .where(discovery_claims.c.token == token, discovery_claims.c.state == "running")
        .values(expires_at=expires_at)
    )
    conn.execute(
        sa.update(source_registry)
        .where(source_registry.c.discovery_claim_token == token)
        .values(discovery_claim_expires_at=expires_at)
    )
    return bool(kept.rowcount)


def finish_claim(conn: Connection, token: str, *, stats: dict[str, JsonValue], now: datetime) -> None:
    """End the batch and let go of whatever sources it still holds."""
    conn.execute(
        sa.update(discovery_claims)
        .where(discovery_claims.c.token == token)
        .values(state="done", finished_at=now, stats=stats)
    )
    _release(conn, [token])


def expire_claims(conn: Connection, *, now: datetime) -> list[str]:
    """End claims whose time is over (their process died) and release their sources; the tokens."""
    ended = conn.execute(
        sa.update(discovery_claims)
        .where(
            discovery_claims.c.state.in_(("claimed", "running")),
            discovery_claims.c.expires_at <= now,
        )
        .values(state="expired", finished_at=now)
        .returning(discovery_claims.c.token)
    )
    tokens = [row.token for row in ended]
    if tokens:
        _release(conn, tokens)
    return tokens


def _release(conn: Connection, tokens: Sequence[str]) -> None:
    conn.execute(
        sa.update(source_registry)
        .where(source_registry.c.discovery_claim_token.in_(tokens))
        .values(discovery_claim_token=None, discovery_claim_expires_at=None)
    )


def settle(conn: Connection, source_id: str, token: str, values: dict[str, object], *, now: datetime) -> bool:
    """Write the outcome of a look and let go of the source, if the claim still owns it."""
    written = conn.execute(
        sa.update(source_registry)
        .where(source_registry.c.id == source_id, source_registry.c.discovery_claim_token == token)
        .values(discovery_claim_token=None, discovery_claim_expires_at=None, updated_at=now, **values)
    )
    return bool(written.rowcount)


def pending(conn: Connection, project_module: str, *, limit: int) -> list[Source]:
    """Enabled sources that wait for an execution: those without a hold first, then the longest waiting.

    Sources that cannot run must not fill the limit for ever before those that can.
    """
    columns = source_registry.c
    rows = conn.execute(
        sa.select(source_registry)
        .where(columns.project_module == project_module, columns.enabled, columns.workflow_run_pending)
        .order_by(
            columns.hold.is_not(None), columns.workflow_run_pending_at.asc().nulls_last(), columns.created_at
        )
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    return [to_value(Source, row) for row in rows]


def update(conn: Connection, source_ids: Sequence[str], values: dict[str, object], *, now: datetime) -> None:
    """Set the same values on several sources."""
    for piece in chunks(source_ids):
        conn.execute(
            sa.update(source_registry).where(source_registry.c.id.in_(piece)).values(updated_at=now, **values)
        )
