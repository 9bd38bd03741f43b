"""The scheduler's tick and the admission's over very many registered sources, beside bare statements.

The baseline is the least that SQL can do for the same: per claim (or execution) the statement that selects the rows
by the index that is there for it and marks them, and the inserts of what was decided, prepared by hand and without
any rule. Both do it on the same ledger, in turns, each time for the next rows. Times are wall times, since the
database is a process of its own; the quickest of several ticks counts.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from beampipe_dagster.clock import ManualClock
from beampipe_dagster.config.profile import load_profile
from beampipe_dagster.config.validation import load_project
from beampipe_dagster.discovery.archives import TapArchives
from beampipe_dagster.discovery.service import DiscoveryService
from beampipe_dagster.execution.admission import AdmissionService
from beampipe_dagster.execution.projects import ProjectService
from beampipe_dagster.ids import UuidIds
from beampipe_dagster.ledger.engine import Ledger
from beampipe_dagster.ledger.migrate import migrate
from beampipe_dagster.ledger.tables import (
    DUE_NEW,
    DUE_SETTLED,
    WAITING,
    batch_execution_record,
    execution_sources,
    provenance_events,
)
from beampipe_dagster.ledger.tables_chain import provenance_heads
from beampipe_dagster_tests.bench.bench_config import DEMO
from beampipe_dagster_tests.bench.measure import Figures, goal
from beampipe_dagster_tests.support.ledgers import START, add_survey
from beampipe_dagster_tests.support.postgres import running_server, unavailable

SIZES: Final = (100_000, 1_000_000)
QUICK: Final = 20_000
SURVEY: Final = "wallaby_demo"
BATCH: Final = 500
"""Sources of one claim."""
BATCHES: Final = 4
"""Claims of one tick."""
EXECUTIONS: Final = 20
"""Executions of one admission tick, of one source each."""
EVENTS: Final = 2
"""Events by which the admission of an execution is told."""
TIMES: Final = 5
PENDING_SHARE: Final = 50
"""Every so many-th source waits for an execution."""
AT_MOST: Final = 3

_AGE: Final = {
    "sqlite": "strftime('%Y-%m-%d %H:%M:%f000', '2025-12-01', '+' || ((i / 500) * 7) || ' seconds')",
    "postgresql": "timestamptz '2025-12-01 00:00:00+00' + ((i / 500) * 7) * interval '1 second'",
}
_IDENTIFIER: Final = {
    "sqlite": "printf('01900000-0000-7000-8000-%012x', i)",
    "postgresql": "'01900000-0000-7000-8000-' || lpad(to_hex(i), 12, '0')",
}
_NUMBERS: Final = {
    "sqlite": "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < :sources)",
    "postgresql": "WITH n(i) AS (SELECT generate_series(1, :sources))",
}
_NAME: Final = {
    "sqlite": "printf('BENCH%07d', i)",
    "postgresql": "'BENCH' || lpad(i::text, 7, '0')",
}


@dataclass(frozen=True)
class _Bench:
    """A ledger with sources, and the services over it."""

    ledger: Ledger
    sources: int
    discovery: DiscoveryService
    admission: AdmissionService
    clock: ManualClock
    turns: list[int] = field(default_factory=lambda: list(range(1, 1_000)))

    def copies(self, conn: Connection, mark: str) -> list[sa.TextClause]:
        """Statements that copy executions, their locks, events and chains; ``mark`` makes them other ones."""
        del self, conn
        statements: list[sa.TextClause] = []
        for table, rows in (
            (batch_execution_record, EXECUTIONS),
            (execution_sources, EXECUTIONS),
            (provenance_events, EXECUTIONS * EVENTS),
            (provenance_heads, EXECUTIONS),
        ):
            values = {column.name: column.name for column in table.columns}
            for name in ("id", "execution_id"):
                if name in values:
                    values[name] = f"'{mark}' || substr({name}, 5)"
            if table is execution_sources:
                values["source_identifier"] = f"'{mark}' || source_identifier"
            key = "id" if "id" in values else "execution_id"
            statements.append(
                sa.text(
                    f"INSERT INTO {table.name} ({', '.join(values)})"  # noqa: S608  # names of columns
                    f" SELECT {', '.join(values.values())} FROM {table.name} ORDER BY {key} DESC LIMIT {rows}"
                )
            )
        return statements


def run(*, sources: int | None = None, quick: bool = False) -> Figures:
    """Ratio and milliseconds of each case; ``ratio`` is the worst of the scheduler tick."""
    sizes = (sources,) if sources is not None else (QUICK,) if quick else SIZES
    figures: Figures = {
        "sources": list(sizes),
        "baseline": "the bare statements that select, mark and copy as many rows, all inside the database",
    }
    for name, open_ledger in _ledgers().items():
        for size in sizes:
            with open_ledger() as ledger:
                bench = _prepared(ledger, size)
                for case, found in _cases(bench).items():
                    key = f"{name}_{size}_{case}"
                    figures[f"{key}_ms"], figures[f"{key}_baseline_ms"] = found
                    figures[f"{key}_ratio"] = round(found[0] / found[1], 3)
                figures[f"{name}_{size}_idle_ms"] = _idle(bench)
    figures["ratio"] = _worst(figures, "_discovery_")
    figures["admission_ratio"] = _worst(figures, "_admission_")
    figures["goals"] = {"ratio": goal(figures["ratio"], AT_MOST)}
    return figures


def _worst(figures: Figures, case: str) -> float:
    return max(float(value) for key, value in figures.items() if case in key and key.endswith("_ratio"))


def _ledgers() -> dict[str, Callable[[], Any]]:
    """How to open a new ledger, by the name of its database; without those that are not installed here."""
    found: dict[str, Callable[[], Any]] = {"sqlite": _sqlite}
    if unavailable() is None:
        found["postgresql"] = _postgres
    return found


@contextmanager
def _sqlite() -> Iterator[Ledger]:
    with tempfile.TemporaryDirectory() as directory:
        ledger = Ledger(f"sqlite:///{Path(directory) / 'ledger.db'}")
        migrate(ledger)
        try:
            yield ledger
        finally:
            ledger.dispose()


@contextmanager
def _postgres() -> Iterator[Ledger]:
    with running_server() as server, server.database() as url:
        ledger = Ledger(url)
        try:
            yield ledger
        finally:
            ledger.dispose()


def _prepared(ledger: Ledger, sources: int) -> _Bench:
    value: Any = load_project(DEMO.joinpath("wallaby_demo.yaml").read_bytes()).as_json()
    value["automation"]["discovery"] |= {
        "batch_size": BATCH,
        "tick_discovery_source_limit": BATCH * BATCHES,
        "tick_discovery_batch_limit": BATCHES,
    }
    value["automation"]["execution"] |= {
        "tick_execution_run_limit": EXECUTIONS,
        "tick_execution_source_limit": EXECUTIONS,
        "concurrent_execution_run_limit": 1_000,
        "deployment_profile_name": "bench",
    }
    clock, ids = ManualClock(START), UuidIds()
    with ledger.begin() as conn:
        add_survey(conn, ids=ids, spec=value, survey=SURVEY)  # type: ignore[arg-type]  # identifiers of any kind
    projects = ProjectService(ledger=ledger, clock=clock, ids=ids, home=Path.cwd())
    projects.put_profile(load_profile(_PROFILE))
    seed(ledger, sources)
    return _Bench(
        ledger=ledger,
        sources=sources,
        clock=clock,
        discovery=DiscoveryService(
            ledger=ledger,
            clock=clock,
            ids=ids,
            archives=TapArchives(urls={}, clock=clock),
            max_in_flight=10_000,
            queue_max_depth=1_000_000,
        ),
        admission=AdmissionService(ledger=ledger, clock=clock, ids=ids, max_in_flight=10_000),
    )


_PROFILE: Final[dict[str, Any]] = {
    "name": "bench",
    "translation": {"algo": "metis", "num_par": 1, "num_islands": 1, "tm_url": "http://127.0.0.1:1"},
    "deployment": {"kind": "rest_remote", "deploy_host": "127.0.0.1", "deploy_port": 1},
}


def seed(ledger: Ledger, sources: int) -> None:
    """Register sources, all looked at long ago, in the database's own words: a million takes seconds."""
    dialect = ledger.dialect
    age, name = _AGE[dialect], _NAME[dialect]
    pending = f"(i % {PENDING_SHARE}) = 0"
    insert = f"""INSERT INTO source_registry (id, project_module, source_identifier, enabled, created_at, updated_at,
        last_checked_at, last_attempted_at, last_outcome, discovery_signature, workflow_run_pending,
        workflow_run_pending_at, failure_count)
        {_NUMBERS[dialect]}
        SELECT {_IDENTIFIER[dialect]}, :survey, {name}, true, {age}, {age}, {age}, {age}, 'changed', :digest,
        {pending}, CASE WHEN {pending} THEN {age} END, 0 FROM n"""  # noqa: S608  # constants of this module
    metadata = f"""INSERT INTO archive_metadata (id, project_module, source_identifier, sbid, metadata_json,
        created_at, updated_at) {_NUMBERS[dialect]}
        SELECT {_IDENTIFIER[dialect]}, :survey, {name}, '1', :metadata, {age}, {age}
        FROM n WHERE {pending}"""  # noqa: S608  # constants of this module
    given = {"survey": SURVEY, "sources": sources, "digest": "a" * 64}
    row = '{"datasets": [{"sbid": "1", "dataset_id": "a.ms", "visibility_filename": "a.ms"}]}'
    if dialect == "sqlite":
        insert = insert.replace("\n        WITH", " WITH")
    else:
        metadata = metadata.replace(":metadata", "CAST(:metadata AS json)")
    with ledger.begin() as conn:
        conn.execute(sa.text(insert), given)
        conn.execute(sa.text(metadata), {**given, "metadata": row})
    with ledger.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
        if dialect == "postgresql":
            conn.exec_driver_sql("VACUUM ANALYZE")
        else:
            conn.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")


def _cases(bench: _Bench) -> dict[str, tuple[float, float]]:
    """Milliseconds of the product and of the bare statements, by case."""
    admission = _in_turns(lambda: _admission(bench), lambda: _bare_admission(bench), lambda: None)
    stale = _in_turns(
        lambda: _discovery(bench), lambda: _bare_discovery(bench, DUE_SETTLED), lambda: _let_go(bench)
    )
    with bench.ledger.begin() as conn:
        conn.execute(
            sa.text(
                "UPDATE source_registry SET last_attempted_at = NULL, last_checked_at = NULL,"
                " discovery_claim_token = NULL"
            )
        )
    with bench.ledger.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
        conn.exec_driver_sql("VACUUM ANALYZE" if bench.ledger.dialect == "postgresql" else "PRAGMA optimize")
    new = _in_turns(
        lambda: _discovery(bench), lambda: _bare_discovery(bench, DUE_NEW), lambda: _let_go(bench)
    )
    return {"discovery_stale": stale, "discovery_new": new, "admission": admission}


def _in_turns(
    product: Callable[[], None], bare: Callable[[], None], between: Callable[[], None]
) -> tuple[float, float]:
    best = [float("inf"), float("inf")]
    for _ in range(TIMES):
        for number, action in enumerate((product, bare)):
            begin = time.perf_counter()
            action()
            best[number] = min(best[number], time.perf_counter() - begin)
            between()
    return round(best[0] * 1000, 3), round(best[1] * 1000, 3)


def _discovery(bench: _Bench) -> None:
    tick = bench.discovery.tick(SURVEY)
    claimed = [claim.source_count for claim in tick.claims]
    if claimed != [BATCH] * BATCHES:
        raise AssertionError(f"the tick claimed {claimed} sources ({tick.skip_reason})")


def _let_go(bench: _Bench) -> None:
    """What was claimed has been looked at by now, with a complete answer."""
    with bench.ledger.begin() as conn:
        conn.execute(sa.text("UPDATE discovery_claims SET state = 'done' WHERE state = 'claimed'"))
        conn.execute(
            sa.text(
                "UPDATE source_registry SET discovery_claim_token = NULL, discovery_claim_expires_at = NULL,"
                " last_checked_at = last_attempted_at WHERE discovery_claim_token IS NOT NULL"
            )
        )


def _bare_discovery(bench: _Bench, where: str) -> None:
    order = "last_attempted_at, id" if where is DUE_SETTLED else "discovery_requested_at, id"
    now = bench.clock.now()
    claim = sa.text(
        "UPDATE source_registry SET discovery_claim_token = :token,"  # noqa: S608  # constants of this module
        " discovery_claim_expires_at = :until,"
        f" last_attempted_at = :now WHERE id IN (SELECT id FROM source_registry WHERE project_module = :survey"
        f" AND {where} ORDER BY {order} LIMIT {BATCH})"
    )
    add = sa.text(
        "INSERT INTO discovery_claims (token, project_module, source_count,"  # noqa: S608  # a constant
        f" state, created_at, expires_at) VALUES (:token, :survey, {BATCH}, 'done', :now, :until)"
    )
    with bench.ledger.begin() as conn:
        for _ in range(BATCHES):
            given = {"token": UuidIds().new(), "survey": SURVEY, **_times(bench.ledger, now)}
            if conn.execute(claim, given).rowcount != BATCH:
                raise AssertionError("the bare statement claimed another number of sources")
            conn.execute(add, given)


def _times(ledger: Ledger, now: datetime) -> dict[str, Any]:
    until = now + timedelta(hours=3)
    if ledger.dialect == "postgresql":
        return {"now": now, "until": until}
    return {"now": f"{now:%Y-%m-%d %H:%M:%S.%f}", "until": f"{until:%Y-%m-%d %H:%M:%S.%f}"}


def _admission(bench: _Bench) -> None:
    report = bench.admission.tick(SURVEY)
    if len(report.admitted) != EXECUTIONS:
        raise AssertionError(
            f"the tick admitted {len(report.admitted)} ({report.skip_reason}: {report.message})"
        )


def _bare_admission(bench: _Bench) -> None:
    """Select and clear the sources, and copy the rows of the executions that the product added before.

    That is what stays on the disk: executions, locks on their sources, events and the heads of their chains. Left
    out is what decides and makes them: the survey and its profile, caps, metadata, digests, values from a client.
    """
    choose = sa.text(
        "SELECT id FROM source_registry WHERE project_module = :survey"  # noqa: S608  # constants
        f" AND {WAITING} AND priority = 0 AND workflow_run_pending_at IS NOT NULL"
        f" ORDER BY workflow_run_pending_at, created_at, source_identifier LIMIT {EXECUTIONS}"
    )
    clear = sa.text("UPDATE source_registry SET workflow_run_pending = false WHERE id IN :ids").bindparams(
        sa.bindparam("ids", expanding=True)
    )
    mark = f"{bench.turns.pop():04}"
    with bench.ledger.begin() as conn:
        chosen = [row.id for row in conn.execute(choose, {"survey": SURVEY})]
        for statement in bench.copies(conn, mark):
            if conn.execute(statement).rowcount < EXECUTIONS:
                raise AssertionError("the bare statements added another number of rows")
        if conn.execute(clear, {"ids": chosen}).rowcount != EXECUTIONS:
            raise AssertionError("the bare statements cleared another number of sources")


def _idle(bench: _Bench) -> float:
    """Milliseconds of a tick that finds nothing due among as many sources."""
    now = bench.clock.now()
    with bench.ledger.begin() as conn:
        conn.execute(
            sa.text(
                "UPDATE source_registry SET last_attempted_at = :now, last_checked_at = :now,"
                " discovery_claim_token = NULL"
            ),
            _times(bench.ledger, now),
        )
    best = float("inf")
    for _ in range(TIMES):
        begin = time.perf_counter()
        tick = bench.discovery.tick(SURVEY)
        best = min(best, time.perf_counter() - begin)
        if tick.skip_reason != "nothing_due":
            raise AssertionError(f"something is due: {tick}")
    return round(best * 1000, 3)
