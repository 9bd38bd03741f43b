"""Whether a survey's archives answer: asked now, and as the last looks found them."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from beampipe_dagster.clock import Clock
from beampipe_dagster.config.project import ProjectConfig
from beampipe_dagster.discovery.archives import ArchiveProvider
from beampipe_dagster.errors import BeampipeError, Retry
from beampipe_dagster.ledger import circuits, gates, projects
from beampipe_dagster.ledger.circuits import CircuitState
from beampipe_dagster.ledger.gates import ArchiveRow
from beampipe_dagster.ledger.tables import discovery_signatures, source_registry

WINDOW: Final = timedelta(hours=1)
"""Age up to which the outcome of a look says something about an archive now."""

LOOKED_THROUGH: Final = 200
"""Changes of signatures in which the last good answer is looked for."""

_PROBES: Final = 8
_FAILED: Final = ("error", "timeout")


@dataclass(frozen=True, slots=True)
class ArchiveHealth:
    """One archive, probed.

    Attributes
    ----------
    adapter
        Its name in the survey.
    available
        Whether it takes queries now.
    message
        A sentence about it.
    latency_seconds
        How long its answer took; None when it was not asked.
    last_good_at
        When a look last had a complete answer from it, as far as the ledger knows.
    circuit
        Why it is not asked, when it is left alone.
    """

    adapter: str
    available: bool
    message: str
    latency_seconds: float | None
    last_good_at: datetime | None
    circuit: str | None = None


def adapters_of(config: ProjectConfig) -> list[str]:
    """The archives that a survey asks or requires, by name."""
    queries = (*config.discovery.queries, *config.discovery.enrichments)
    return sorted({*(query.adapter for query in queries), *config.adapters.required})


def probe(
    config: ProjectConfig,
    archives: ArchiveProvider,
    *,
    clock: Clock,
    last_good: Mapping[str, datetime] | None = None,
    kept: Mapping[str, ArchiveRow] | None = None,
) -> list[ArchiveHealth]:
    """Ask all archives of a survey at once whether they take queries (IVOA VOSI availability).

    Parameters
    ----------
    last_good
        What :func:`last_good_answers` found.
    kept
        What the ledger knows of the archives, by the survey's names for them.
    """
    good = last_good or {}

    def words(adapter: str) -> str | None:
        row = (kept or {}).get(adapter)
        if row is None or not row.circuit.shut_off(clock.now()):
            return None
        return circuits.in_words(row.circuit, now=clock.now())

    def ask(adapter: str) -> ArchiveHealth:
        try:
            archive = archives.get(config, adapter)
        except BeampipeError as error:
            return ArchiveHealth(
                adapter, False, error.message, None, good.get(adapter), words(adapter)
            )  # a field
        began = clock.monotonic()
        available, message = archive.availability()
        return ArchiveHealth(
            adapter, available, message, clock.monotonic() - began, good.get(adapter), words(adapter)
        )

    with ThreadPoolExecutor(max_workers=_PROBES) as pool:
        return list(pool.map(ask, adapters_of(config)))


def last_good_answers(conn: Connection, project_id: str, config: ProjectConfig) -> dict[str, datetime]:
    """When each archive last gave a complete answer about a source of the survey.

    The evidence of the newest changes names every archive; each complete look also had an answer of the archive
    of the first query.
    """
    columns = discovery_signatures.c
    rows = conn.execute(
        sa.select(columns.evidence, columns.discovered_at)
        .where(columns.project_module == project_id)
        .order_by(columns.id.desc())
        .limit(LOOKED_THROUGH)
    )
    found: dict[str, datetime] = {}
    for evidence, moment in rows:
        for item in evidence if isinstance(evidence, list) else []:
            adapter = item.get("adapter") if isinstance(item, dict) else None
            if isinstance(adapter, str):
                found[adapter] = max(moment, found.get(adapter, moment))
    looked = conn.execute(
        sa.select(sa.func.max(source_registry.c.last_checked_at)).where(
            source_registry.c.project_module == project_id
        )
    ).scalar_one()
    if looked is not None and config.discovery.queries:
        first = config.discovery.queries[0].adapter
        found[first] = max(looked, found.get(first, looked))
    for adapter, row in gates.of_project(conn, project_id).items():
        if row.last_good_at is not None:
            found[adapter] = max(row.last_good_at, found.get(adapter, row.last_good_at))
    return found


def kept_health(conn: Connection, *, now: datetime) -> dict[str, bool]:
    """Which archives are up by their requests of the last hour, by the surveys' names for them.

    An archive is up when it answered last, and its circuit is closed. Where surveys mean different archives by one
    name, all of them must be up.
    """
    rows = {row.key: row for row in gates.everything(conn)}
    up: dict[str, bool] = {}
    for user in gates.users(conn):
        row = rows.get(user.archive_key)
        if row is None:
            continue
        moments = [moment for moment in (row.last_good_at, row.last_failure_at) if moment is not None]
        closed = row.circuit.state is CircuitState.CLOSED
        if closed and (not moments or max(moments) < now - WINDOW):
            continue
        up[user.adapter] = up.get(user.adapter, True) and bool(row.answers)
    return up


def dependencies_up(conn: Connection, *, now: datetime) -> dict[str, bool]:
    """Which archives were up in the last looks, over all surveys; nobody is asked.

    What the gates keep of the requests themselves counts; an archive that has no gate is down when all looks of the
    newest batch that say something about it failed by it. Archives about which nothing of the last hour says
    anything are left out.
    """
    kept = kept_health(conn, now=now)
    known = {user.adapter for user in gates.users(conn)}
    found = {} if known and _gated(conn, known) else _by_looks(conn, now=now)
    return dict(sorted(({name: up for name, up in found.items() if name not in known} | kept).items()))


def _gated(conn: Connection, known: set[str]) -> bool:
    """Whether every archive that a survey asks has a gate: then nobody needs the looks."""
    surveys = (ProjectConfig.from_json(revision.spec) for revision in projects.all_active(conn))
    return all(set(adapters_of(config)) <= known for config in surveys)


def _by_looks(conn: Connection, *, now: datetime) -> dict[str, bool]:
    columns = source_registry.c
    failed = columns.last_outcome.in_(_FAILED)
    adapter = sa.case((failed, columns.last_error["details"]["adapter"].as_string()))
    retry = sa.case((failed, columns.last_error["retry"].as_string()))
    newest = sa.func.max(columns.last_attempted_at)
    rows = conn.execute(
        sa.select(columns.project_module, adapter, retry, newest)
        .where(columns.last_attempted_at >= now - WINDOW, columns.last_outcome.is_not(None))
        .group_by(columns.project_module, adapter, retry)
    ).all()
    asked = {
        revision.project_id: [
            query.adapter for query in ProjectConfig.from_json(revision.spec).discovery.queries
        ]
        for revision in (projects.all_active(conn) if rows else [])
    }
    good: dict[str, Any] = {}
    bad: dict[str, Any] = {}
    for project, failing, again, moment in rows:
        if failing is not None and again == Retry.LATER.value:
            bad[failing] = max(moment, bad.get(failing, moment))
        elif again is None:
            for name in asked.get(project, []):
                good[name] = max(moment, good.get(name, moment))
    return {
        name: name not in bad or (name in good and good[name] >= bad[name]) for name in sorted({*good, *bad})
    }
