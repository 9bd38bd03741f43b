"""Does the ledger keep its word? Everything that can be computed again is computed again.

The audit reads row by row and keeps nothing, so that a ledger of any size is checked in the same memory. It changes
nothing and may run beside everything else; what is on its way while it looks is looked at as one transaction saw it.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from beampipe_dagster.config.canonical import sha256_hex
from beampipe_dagster.ledger import chain
from beampipe_dagster.ledger.states import TERMINAL, ArtifactKind
from beampipe_dagster.ledger.tables import batch_execution_record as record
from beampipe_dagster.ledger.tables import execution_artifacts as artifacts
from beampipe_dagster.ledger.tables import execution_sources, provenance_events
from beampipe_dagster.ledger.tables_chain import provenance_heads as heads
from beampipe_dagster.ledger.tables_chain import provenance_purges as purges

_BUFFER: Final = 500
_DIGESTS: Final = {
    "manifest_sha256": ArtifactKind.MANIFEST,
    "source_graph_sha256": ArtifactKind.SOURCE_GRAPH,
    "patched_graph_sha256": ArtifactKind.PATCHED_GRAPH,
    "physical_graph_sha256": ArtifactKind.PHYSICAL_GRAPH,
}
"""Columns that name a document by its digest."""


class Fault(StrEnum):
    """What an audit finds."""

    CHANGED = "event_changed"
    MISSING = "event_missing"
    FOREIGN = "event_foreign"
    TAIL = "chain_cut"
    ARTIFACT = "artifact_damaged"
    UNKNOWN_DOCUMENT = "document_missing"
    LOCK_LEFT = "lock_left"
    LOCK_LOST = "lock_lost"
    UNTOLD = "ending_untold"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is not as it was written.

    Attributes
    ----------
    code
        Which kind.
    execution_id
        Whose.
    message
        What, with its place.
    """

    code: Fault
    execution_id: str
    message: str


@dataclass(slots=True)
class Audited:
    """How much was looked at."""

    events: int = 0
    unchained: int = 0
    executions: int = 0
    artifacts: int = 0


def audit(
    conn: Connection,
    *,
    execution_id: str | None = None,
    counts: Audited | None = None,
    progress: Callable[[str, int], None] | None = None,
) -> Iterator[Finding]:
    """Look at everything, or at one execution.

    Parameters
    ----------
    conn
        A reading transaction.
    execution_id
        The one execution; by default all of them.
    counts
        Counted into while the findings are taken.
    progress
        Told what is looked at, and how many of it were.

    Yields
    ------
    Finding
        In the order: chains, documents, locks and endings.
    """
    seen = counts if counts is not None else Audited()
    told = progress or (lambda _what, _number: None)
    yield from _chains(conn, execution_id, seen, told)
    yield from _documents(conn, execution_id, seen, told)
    yield from _executions(conn, execution_id, seen, told)


def _streamed(conn: Connection, statement: sa.Select[Any]) -> Iterator[Row[Any]]:
    yield from conn.execution_options(stream_results=True, yield_per=_BUFFER).execute(statement)


def _chains(
    conn: Connection, execution_id: str | None, seen: Audited, told: Callable[[str, int], None]
) -> Iterator[Finding]:
    columns = provenance_events.c
    statement = (
        sa.select(provenance_events)
        .where(
            columns.execution_id.is_not(None)
            if execution_id is None
            else columns.execution_id == execution_id
        )
        .order_by(columns.execution_id, columns.seq)
    )
    purged = conn.execute(sa.select(sa.func.max(purges.c.before))).scalar_one()
    current: str | None = None
    number, before = 0, chain.GENESIS
    for row in _streamed(conn, statement):
        seen.events += 1
        if not seen.events % _BUFFER:
            told("events", seen.events)
        if row.seq is None:
            seen.unchained += 1
            continue
        if row.execution_id != current:
            if current is not None:
                yield from _end(conn, current, number, before)
            current, number, before = row.execution_id, 0, chain.GENESIS
            if row.seq > 1 and purged is not None:
                number, before = row.seq - 1, row.prev_sha256
        yield from _link(row, number, before)
        number, before = row.seq, row.sha256
    if current is not None:
        yield from _end(conn, current, number, before)
    yield from _lost(conn, execution_id, purged)


def _link(row: Row[Any], number: int, before: str) -> Iterator[Finding]:
    name = f"event {row.seq} ({row.event_type})"
    if row.seq != number + 1:
        yield Finding(
            Fault.MISSING, row.execution_id, f"{row.seq - number - 1} events before {name} are missing"
        )
    elif row.prev_sha256 != before:
        yield Finding(Fault.FOREIGN, row.execution_id, f"{name} does not follow the event before it")
    values = row._asdict()
    if chain.digest(values, seq=row.seq, before=row.prev_sha256) != row.sha256:
        yield Finding(Fault.CHANGED, row.execution_id, f"{name} of {row.occurred_at} is not what was written")


def _end(conn: Connection, execution_id: str, number: int, before: str) -> Iterator[Finding]:
    head = conn.execute(sa.select(heads).where(heads.c.execution_id == execution_id)).first()
    if head is None or (head.seq, head.sha256) != (number, before):
        wanted = "has no recorded end" if head is None else f"should end with event {head.seq}"
        yield Finding(Fault.TAIL, execution_id, f"the chain ends with event {number} and {wanted}")


def _lost(conn: Connection, execution_id: str | None, purged: datetime | None) -> Iterator[Finding]:
    """Chains of which nothing is left, though no purge can have taken them."""
    there = sa.exists().where(
        provenance_events.c.execution_id == heads.c.execution_id, provenance_events.c.seq.is_not(None)
    )
    statement = sa.select(heads.c.execution_id, heads.c.seq).where(heads.c.seq > 0, ~there)
    if execution_id is not None:
        statement = statement.where(heads.c.execution_id == execution_id)
    if purged is None:
        for row in conn.execute(statement):
            yield Finding(Fault.TAIL, row.execution_id, f"all {row.seq} events of the chain are gone")


def _documents(
    conn: Connection, execution_id: str | None, seen: Audited, told: Callable[[str, int], None]
) -> Iterator[Finding]:
    columns = artifacts.c
    statement = sa.select(columns.execution_id, columns.kind, columns.sha256, columns.content).where(
        columns.content.is_not(None)
    )
    if execution_id is not None:
        statement = statement.where(columns.execution_id == execution_id)
    for row in _streamed(conn, statement):
        seen.artifacts += 1
        if not seen.artifacts % _BUFFER:
            told("documents", seen.artifacts)
        try:
            content = zlib.decompress(row.content)
        except zlib.error:
            content = b""
        if sha256_hex(content) != row.sha256:
            yield Finding(
                Fault.ARTIFACT, row.execution_id, f"the {row.kind} {row.sha256[:12]} is not what was stored"
            )


def _executions(
    conn: Connection, execution_id: str | None, seen: Audited, told: Callable[[str, int], None]
) -> Iterator[Finding]:
    told("executions", 0)
    mine = record.c.id == execution_id if execution_id is not None else sa.true()
    seen.executions = conn.execute(sa.select(sa.func.count()).select_from(record).where(mine)).scalar_one()
    for column, kind in _DIGESTS.items():
        named = record.c[column]
        kept = sa.exists().where(
            artifacts.c.execution_id == record.c.id,
            artifacts.c.kind == kind.value,
            artifacts.c.sha256 == named,
        )
        for row in conn.execute(sa.select(record.c.id, named).where(mine, named.is_not(None), ~kept)):
            yield Finding(
                Fault.UNKNOWN_DOCUMENT, row.id, f"the {kind.value} {row[1][:12]} that it names is not kept"
            )
    yield from _locks(conn, mine)
    yield from _endings(conn, mine)


def _locks(conn: Connection, mine: sa.ColumnElement[bool]) -> Iterator[Finding]:
    ended = record.c.status.in_([status.value for status in TERMINAL])
    joined = (
        sa.select(record.c.id, record.c.status, execution_sources.c.source_identifier)
        .join(execution_sources, execution_sources.c.execution_id == record.c.id)
        .where(mine)
        .order_by(record.c.id, execution_sources.c.source_identifier)
    )
    for row in conn.execute(joined.where(ended, execution_sources.c.active)):
        yield Finding(Fault.LOCK_LEFT, row.id, f"it is {row.status} and still holds {row.source_identifier}")
    for row in conn.execute(joined.where(~ended, ~execution_sources.c.active)):
        yield Finding(
            Fault.LOCK_LOST, row.id, f"it is {row.status} and does not hold {row.source_identifier}"
        )


def _endings(conn: Connection, mine: sa.ColumnElement[bool]) -> Iterator[Finding]:
    """Executions that ended without an event that says so."""
    told = sa.exists().where(
        provenance_events.c.execution_id == record.c.id,
        provenance_events.c.event_type == sa.literal("execution.") + record.c.status,
    )
    chained = sa.exists().where(heads.c.execution_id == record.c.id, heads.c.seq > 0)
    statement = sa.select(record.c.id, record.c.status).where(
        mine, record.c.status.in_([status.value for status in TERMINAL]), chained, ~told
    )
    for row in conn.execute(statement):
        yield Finding(Fault.UNTOLD, row.id, f"it is {row.status}, and no event says when or why")
