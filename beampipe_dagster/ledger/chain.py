"""The chain of an execution's events: each carries the digest of the one before it.

An event that was changed, left out, put in or moved in the database, by whatever means, breaks the chain of its
execution at that place. The digest is the SHA-256 of the event's canonical JSON, its number and its predecessor's
digest among it; the first event's predecessor is :data:`GENESIS`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.engine import Connection

from beampipe_dagster.config.canonical import JsonValue, canonical_json, sha256_hex
from beampipe_dagster.ledger.tables_chain import provenance_heads

GENESIS: Final = "0" * 64
"""What stands where the first event of an execution would name its predecessor."""

MEMBERS: Final = (
    "id",
    "event_type",
    "project_module",
    "source_identifier",
    "execution_id",
    "actor",
    "correlation_id",
)
"""Columns of text that the digest covers as they are; time, payload and place come in beside them."""

_EXACT: Final = 2**53
"""Below this every whole double is exact."""

_PART: Final = 500
"""Executions whose ends are read by one statement."""


def digest(event: Mapping[str, Any], *, seq: int, before: str) -> str:
    """The digest of an event at its place.

    Parameters
    ----------
    event
        Values of :data:`MEMBERS`, ``occurred_at`` (aware) and ``payload``.
    seq
        Its number in its execution, from 1.
    before
        Digest of the event before it, or :data:`GENESIS`.

    Returns
    -------
    str
        64 lower-case hex digits.
    """
    moment: datetime = event["occurred_at"]
    value: dict[str, JsonValue] = {
        **{name: event[name] for name in MEMBERS},
        "occurred_at": moment.astimezone(UTC).isoformat(timespec="microseconds"),
        "payload": _as_read_back(event["payload"]),
        "seq": seq,
        "before": before,
    }
    return sha256_hex(canonical_json(value))


def link(conn: Connection, rows: Sequence[dict[str, Any]]) -> None:
    """Give new events their places, in the caller's transaction and before they are inserted.

    Events of no execution stay outside. The end of each chain is locked until the transaction ends, always in the
    order of the executions' ids, so that two writers follow each other.

    Parameters
    ----------
    rows
        Values of ``provenance_events``; ``seq``, ``prev_sha256`` and ``sha256`` are set in place.
    """
    for row in rows:
        row.update(seq=None, prev_sha256=None, sha256=None)
    chained = [row for row in rows if row["execution_id"] is not None]
    if not chained:
        return
    heads = _locked(conn, sorted({row["execution_id"] for row in chained}))
    for row in chained:
        number, before = heads[row["execution_id"]]
        row.update(seq=number + 1, prev_sha256=before)
        row["sha256"] = digest(row, seq=number + 1, before=before)
        heads[row["execution_id"]] = (number + 1, row["sha256"])
    conn.execute(
        sa.update(provenance_heads)
        .where(provenance_heads.c.execution_id == sa.bindparam("of_execution"))
        .values(seq=sa.bindparam("new_seq"), sha256=sa.bindparam("new_sha256")),
        [
            {"of_execution": execution, "new_seq": number, "new_sha256": sha256}
            for execution, (number, sha256) in heads.items()
        ],
    )


def _locked(conn: Connection, executions: Sequence[str]) -> dict[str, tuple[int, str]]:
    """The ends of the executions' chains, made where there is none yet, and locked."""
    insert = postgresql_insert if conn.dialect.name == "postgresql" else sqlite_insert
    heads: dict[str, tuple[int, str]] = {}
    for part in _parts(executions):
        conn.execute(
            insert(provenance_heads).on_conflict_do_nothing(),
            [{"execution_id": execution, "seq": 0, "sha256": GENESIS} for execution in part],
        )
        found = conn.execute(
            sa.select(provenance_heads)
            .where(provenance_heads.c.execution_id.in_(part))
            .order_by(provenance_heads.c.execution_id)
            .with_for_update()
        )
        heads |= {row.execution_id: (row.seq, row.sha256) for row in found}
    return heads


def _parts(items: Sequence[str]) -> Iterable[Sequence[str]]:
    return (items[start : start + _PART] for start in range(0, len(items), _PART))


def _as_read_back(value: Any) -> JsonValue:  # noqa: ANN401  # any JSON value
    """The value as either database gives it back: PostgreSQL writes numbers without exponents.

    A number is therefore known by its decimal digits, and not by its kind.
    """
    if isinstance(value, Mapping):
        return {str(key): _as_read_back(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_as_read_back(one) for one in value]
    if isinstance(value, float) and value.is_integer() and abs(value) < _EXACT:
        return int(value)
    if isinstance(value, float) or (isinstance(value, int) and abs(value) >= _EXACT):
        sign, digits, exponent = Decimal(repr(value)).as_tuple()
        text = "".join(map(str, digits))
        plain = text.rstrip("0")
        # No text of the ledger begins with a NUL: PostgreSQL has none.
        return f"\0{'-' * sign}{plain}e{int(exponent) + len(text) - len(plain)}"
    kept: JsonValue = value
    return kept
