"""Evidence: what was seen outside about an execution. Appended, never changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from beampipe_dagster.config.canonical import JsonValue
from beampipe_dagster.ids import Ids
from beampipe_dagster.ledger.tables import execution_observations


@dataclass(frozen=True, slots=True)
class Observation:
    """Something seen outside."""

    execution_id: str
    kind: str
    normalized_state: str
    raw_state: str | None = None
    reason: str | None = None
    payload: JsonValue = None


def record(conn: Connection, observations: Sequence[Observation], *, ids: Ids, now: datetime) -> None:
    """Keep evidence."""
    if not observations:
        return
    conn.execute(
        sa.insert(execution_observations),
        [
            {
                "id": ids.new(),
                "observed_at": now,
                **{field: getattr(seen, field) for field in Observation.__slots__},
            }
            for seen in observations
        ],
    )


def of(conn: Connection, execution_id: str) -> list[dict[str, Any]]:
    """All evidence about an execution, oldest first."""
    rows = conn.execute(
        sa.select(execution_observations)
        .where(execution_observations.c.execution_id == execution_id)
        .order_by(execution_observations.c.observed_at, execution_observations.c.id)
    )
    return [dict(row._mapping) for row in rows]  # noqa: SLF001  # SQLAlchemy's public name
