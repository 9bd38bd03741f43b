"""The source registry: who is to be processed, claims on them, and what the last look said."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.engine import Connection

from beampipe_dagster.config.canonical import JsonValue
from beampipe_dagster.errors import NotFoundError
from beampipe_dagster.ledger.due import Due, mark
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

REAPPEARED: Final = {"vanish_signature": None, "vanish_first_at": None, "vanish_count": 0}
"""Columns of a source that has all of its datasets."""


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
    priority: int = 0
    failed_signature: str | None = None
    failed_execution_id: str | None = None
    failed_config_id: str | None = None
    retry_at: datetime | None = None
    quarantined_at: datetime | None = None
    vanish_signature: str | None = None
    vanish_first_at: datetime | None = None
    vanish_count: int = 0

    @property
    def failed_now(self) -> bool:
        """Whether an execution of its current signature failed, and nothing came after that."""
        return self.failed_signature is not None and self.failed_signature == self.discovery_signature


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


def names_among(
    conn: Connection, column: sa.ColumnElement[str], names: Sequence[str]
) -> sa.ColumnElement[bool]:
    """Whether a column has one of any number of names: they go to the database as one value."""
    if conn.dialect.name == "postgresql":
        return column == sa.any_(sa.literal(list(names), ARRAY(sa.String)))
    each = sa.func.json_each(json.dumps(list(names))).table_valued("value")
    return column.in_(sa.select(each.c.value))


def registered_names(conn: Connection, project_module: str, identifiers: Sequence[str]) -> set[str]:
    """Which of these sources are registered."""
    columns = source_registry.c
    rows = conn.execute(
        sa.select(columns.source_identifier).where(
            columns.project_module == project_module,
            names_among(conn, columns.source_identifier, identifiers),
        )
    )
    return {row.source_identifier for row in rows}


def mark_for_discovery(
    conn: Connection, project_module: str, identifiers: Sequence[str] | None, *, now: datetime
) -> int:
    """Make enabled sources due at once, also quarantined ones, before those that only became stale; their number.

    The request has a time of its own: a batch whose query began before it does not answer it. A requested source
    counts as one that was never looked at until the look: claims take these first.
    """
    columns = source_registry.c
    wanted = sa.select(columns.id).where(columns.project_module == project_module, columns.enabled)
    if identifiers is not None:
        wanted = wanted.where(names_among(conn, columns.source_identifier, identifiers))
    # Batches lock sources by name when they commit; in any other order the two could wait for each other.
    wanted = wanted.order_by(columns.source_identifier).with_for_update()
    return conn.execute(
        sa.update(source_registry)
        .where(columns.id.in_(wanted))
        .values(discovery_requested_at=now, last_attempted_at=None, updated_at=now, **RELEASED)
    ).rowcount


def release_failing(conn: Connection, project_module: str, *, now: datetime) -> tuple[int, list[str]]:
    """Forget the failed looks of a survey's sources; how many were let go, and which of them were quarantined."""
    columns = source_registry.c
    wanted = (
        sa.select(columns.id, columns.source_identifier, columns.quarantined_at)
        .where(
            columns.project_module == project_module,
            sa.or_(columns.failure_count > 0, columns.quarantined_at.is_not(None)),
        )
        .order_by(columns.source_identifier)  # one order of locks for everybody
        .with_for_update()
    )
    rows = list(conn.execute(wanted))
    if rows:
        conn.execute(
            sa.update(source_registry)
            .where(names_among(conn, columns.id, [row.id for row in rows]))
            .values(updated_at=now, **RELEASED)
        )
    return len(rows), [row.source_identifier for row in rows if row.quarantined_at is not None]


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
    """Claim up to ``limit`` due sources for one batch: those never looked at, then the longest untouched.

    Due is an enabled source without a live claim, whose last complete answer is older than its own (else the
    survey's) ``stale_after_hours`` (or has seen datasets vanish, and waits for a second look), and which is
    neither quarantined nor told to wait by its last look. Never looked at are also those that an operator asked
    for since; they go by the time of the request. Each attempt sends a source to the end of the queue, so that
    sources that fail never starve the rest.
    """
    expires_at = now + ttl
    due = Due(project_module, limit=limit, stale_after_hours=stale_after_hours, now=now)
    taken = mark(conn, due, token=token, expires_at=expires_at)
    if not taken:
        return None
    conn.execute(
        sa.insert(discovery_claims).values(
            token=token,
            project_module=project_module,
            source_count=taken,
            state="claimed",
            created_at=now,
            expires_at=expires_at,
        )
    )
    return claim(conn, token)


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
    """End the batch and let go of whatever sources it still holds; one that has run out stays so."""
    conn.execute(
        sa.update(discovery_claims)
        .where(discovery_claims.c.token == token, discovery_claims.c.state == "running")
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


def update(conn: Connection, source_ids: Sequence[str], values: dict[str, object], *, now: datetime) -> None:
    """Set the same values on several sources."""
    for piece in chunks(source_ids):
        conn.execute(
            sa.update(source_registry).where(source_registry.c.id.in_(piece)).values(updated_at=now, **values)
        )
