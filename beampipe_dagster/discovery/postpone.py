"""Looks that an archive's absence keeps from being made: the sources wait, and nothing is held against them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final, Protocol

from sqlalchemy.engine import Connection

from beampipe_dagster.clock import rfc3339
from beampipe_dagster.config.project import ProjectConfig
from beampipe_dagster.discovery.archive import AnswerClass
from beampipe_dagster.discovery.gate import NOT_ASKED
from beampipe_dagster.errors import BeampipeError, Retry
from beampipe_dagster.ledger import circuits
from beampipe_dagster.ledger.circuits import CircuitState
from beampipe_dagster.ledger.gates import ArchiveRow

AGAIN_AFTER: Final = timedelta(seconds=30)
"""When a source is asked about again, where nobody knows when the archive is."""

_AWAY: Final = frozenset(
    f"archive_{answer.value}"
    for answer in (AnswerClass.TIMEOUT, AnswerClass.REFUSED, AnswerClass.UNAVAILABLE)
)


class Circuits(Protocol):
    """Who knows which archives are left alone."""

    def shut_off(
        self, conn: Connection, config: ProjectConfig, adapters: Sequence[str]
    ) -> dict[str, ArchiveRow]:
        """Those of the survey's archives that no request would reach now; nobody is asked."""
        ...


def decisive(config: ProjectConfig) -> list[str]:
    """The archives without which no look can be complete: that of the first query, and those that are required."""
    first = [query.adapter for query in config.discovery.queries[:1]]
    return sorted({*first, *config.adapters.required})


def away_in_words(
    conn: Connection, config: ProjectConfig, circuits_of: Circuits | None, *, now: datetime
) -> str | None:
    """Which decisive archives are left alone, and why; ``None`` when looks can be made."""
    away = circuits_of.shut_off(conn, config, decisive(config)) if circuits_of is not None else {}
    return "; ".join(f"{name}: {quiet_in_words(row, now=now)}" for name, row in away.items()) or None


def quiet_in_words(row: ArchiveRow, *, now: datetime) -> str:
    """Why an archive is not asked: its circuit is open, or it asked for quiet."""
    if row.circuit.shut_off(now) or row.pause_until is None:
        return circuits.in_words(row.circuit, now=now)
    return f"it asked everybody to wait until {rfc3339(row.pause_until)}"


def postponed_until(
    conn: Connection,
    error: BeampipeError,
    *,
    config: ProjectConfig,
    circuits_of: Circuits | None,
    now: datetime,
) -> datetime | None:
    """When a source is asked about again whose look says nothing against it; ``None`` when it was a failure.

    That is so when the archive was not asked, and when it was, did not answer, and has been left alone since.
    """
    if error.code in NOT_ASKED:
        until = error.details.get("until")
        return max(now + AGAIN_AFTER, datetime.fromisoformat(until)) if until else now + AGAIN_AFTER
    adapter = error.details.get("adapter")
    if circuits_of is None or error.code not in _AWAY or error.retry is not Retry.LATER or not adapter:
        return None
    row = circuits_of.shut_off(conn, config, [str(adapter)]).get(str(adapter))
    if row is None:
        return None
    probing = row.circuit.state is CircuitState.HALF_OPEN
    return (row.circuit.probe_expires_at if probing else row.circuit.open_until) or now + AGAIN_AFTER
