"""What waits for an execution: in which order, why not yet, and when it may run; as the last ticks decided it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from beampipe_dagster.clock import rfc3339
from beampipe_dagster.config.canonical import JsonValue
from beampipe_dagster.config.project import ProjectConfig
from beampipe_dagster.ledger import decisions, pending, projects
from beampipe_dagster.ledger.decisions import SourceDecision, StoredTick
from beampipe_dagster.ledger.rows import to_value
from beampipe_dagster.ledger.sources import Source
from beampipe_dagster.ledger.tables import source_registry

NOT_YET: Final = "not_decided_yet"
"""No tick has looked at it since it waits."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """A source that waits.

    Attributes
    ----------
    position
        Its turn among those that may run, from 1; ``None`` for one that is held.
    code, reason
        Why it does not run yet.
    may_run_at
        When it may run at the earliest, where that is a matter of time.
    decided_at
        When the tick that said so looked at it first; ``None`` when that was the survey's reason.
    """

    source_identifier: str
    position: int | None
    priority: int
    since: datetime | None
    code: str
    reason: str
    may_run_at: datetime | None
    decided_at: datetime | None


@dataclass(frozen=True, slots=True)
class Queue:
    """A survey's queue.

    Attributes
    ----------
    automatic
        Whether the survey executes by itself.
    total
        How many wait, of which ``waiting`` shows the first.
    by_code
        How many of those shown wait for which reason.
    tick
        What the survey's last tick decided.
    """

    project_id: str
    automatic: bool
    total: int
    waiting: tuple[Waiting, ...]
    tick: StoredTick | None

    @property
    def by_code(self) -> dict[str, int]:
        """How many of those shown wait for which reason."""
        found: dict[str, int] = {}
        for one in self.waiting:
            found[one.code] = found.get(one.code, 0) + 1
        return dict(sorted(found.items()))

    def as_dict(self) -> dict[str, Any]:
        """The queue as JSON; times are those of the ledger."""
        return {
            "project_id": self.project_id,
            "automatic": self.automatic,
            "total": self.total,
            "shown": len(self.waiting),
            "by_code": self.by_code,
            "last_tick": None if self.tick is None else tick_facts(self.tick),
            "waiting": [
                {
                    "source_identifier": one.source_identifier,
                    "position": one.position,
                    "priority": one.priority,
                    "since": one.since,
                    "code": one.code,
                    "reason": one.reason,
                    "may_run_at": one.may_run_at,
                    "decided_at": one.decided_at,
                }
                for one in self.waiting
            ],
        }


def tick_facts(tick: StoredTick) -> dict[str, Any]:
    """A tick's decision as facts."""
    return {
        "reason": tick.reason,
        "message": tick.message,
        "admitted": tick.admitted,
        "waiting": tick.waiting,
        "held": tick.held,
        "caps": tick.caps,
        "profile": tick.profile,
        "decided_at": tick.decided_at,
        "last_seen_at": tick.last_seen_at,
        "seen_count": tick.seen_count,
    }


def decision_facts(conn: Connection, project_id: str, name: str) -> dict[str, JsonValue]:
    """What the ticks said about a pending source and about its survey, as they stored it."""
    found: dict[str, JsonValue] = {}
    mine = decisions.of_sources(conn, project_id, [name]).get(name)
    if mine is not None:
        found["decision"] = {
            "code": mine.code,
            "message": mine.message,
            "since": rfc3339(mine.decided_at),
            "last_seen_at": rfc3339(mine.last_seen_at),
            "times": mine.seen_count,
        }
    tick = decisions.newest(conn, project_id)
    if tick is not None:
        found["last_tick"] = {
            "reason": tick.reason,
            "message": tick.message,
            "admitted": tick.admitted,
            "since": rfc3339(tick.decided_at),
            "last_seen_at": rfc3339(tick.last_seen_at),
            "times": tick.seen_count,
        }
    return found


def caps_words(caps: dict[str, JsonValue]) -> str:
    """Caps in words: ``in_flight_cap 2 of 2``; caps without a limit are left out."""
    shown = []
    for code, value in caps.items():
        if isinstance(value, list) and len(value) == 2 and value[1] is not None:
            shown.append(f"{code} {value[0]} of {value[1]}")
    return ", ".join(shown)


def queue_of(conn: Connection, project_id: str, *, now: datetime, limit: int) -> Queue:
    """The survey's queue, the next one first; those that are held, or wait for a retry, at the end.

    Raises
    ------
    NotFoundError
        ``project_not_found``.
    """
    config = ProjectConfig.from_json(projects.active(conn, project_id).spec)
    rules = config.automation.execution
    columns = source_registry.c
    held = pending.is_held(now)
    rows = conn.execute(
        sa.select(source_registry, held.label("held"), pending.waits_for_retry(now).label("delayed"))
        .where(columns.project_module == project_id, columns.enabled, columns.workflow_run_pending)
        .order_by(pending.waits_for_retry(now), *pending.turn(now))
        .limit(limit)
    ).all()
    tick = decisions.newest(conn, project_id)
    reasons = decisions.of_sources(conn, project_id, [row.source_identifier for row in rows])
    waiting: list[Waiting] = []
    for number, row in enumerate(rows, start=1):
        source = to_value(Source, row)
        turn = None if row.held or row.delayed else number
        waiting.append(_waiting(source, turn, reasons.get(source.source_identifier), tick))
    return Queue(
        project_id,
        bool(rules and rules.enabled),
        pending.count(conn, project_id),
        tuple(waiting),
        tick,
    )


def _waiting(
    source: Source, position: int | None, decision: SourceDecision | None, tick: StoredTick | None
) -> Waiting:
    since, later = source.workflow_run_pending_at, source.retry_at
    retried = source.failed_now
    code, reason, at = NOT_YET, "no tick has decided about it yet", None
    # What a tick said before the source began to wait was about an earlier signature of it.
    fresh = decision is not None and (since is None or decision.last_seen_at >= since)
    if decision is not None and fresh:
        code, reason, at = decision.code, decision.message, decision.decided_at
    elif tick is not None and tick.reason and (since is None or tick.last_seen_at >= since):
        code, reason = tick.reason, tick.message or tick.reason.replace("_", " ")
    if retried and later is not None and position is None:
        code, reason = "retry_waiting", "its last execution failed; it is tried again"
    return Waiting(
        source.source_identifier,
        position,
        source.priority,
        since,
        code,
        reason,
        later if retried and position is None else (decision.not_before if decision and fresh else None),
        at,
    )
