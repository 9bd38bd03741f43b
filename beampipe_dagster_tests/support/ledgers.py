"""Migrated ledgers for tests, on every database that the project supports, and rows to put into them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from threading import Barrier
from typing import Any, TypeVar

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from beampipe_dagster.clock import ManualClock
from beampipe_dagster.ids import SequenceIds
from beampipe_dagster.ledger import executions, guards, projects, registration
from beampipe_dagster.ledger import sources as registry
from beampipe_dagster.ledger.engine import Ledger
from beampipe_dagster.ledger.execution_values import Execution, NewExecution
from beampipe_dagster.ledger.migrate import migrate
from beampipe_dagster.ledger.sources import NewSource, Source
from beampipe_dagster_tests.support.postgres import PostgresServer

T = TypeVar("T")

DIALECTS = ("sqlite", "postgresql")
START = datetime(2026, 1, 1, tzinfo=UTC)
SURVEY = "survey"


@pytest.fixture(scope="session")
def migrated_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated SQLite file to be copied."""
    path = tmp_path_factory.mktemp("ledger") / "template.db"
    ledger = Ledger(f"sqlite:///{path}")
    migrate(ledger)
    ledger.dispose()
    return path


@contextmanager
def opened(url: str) -> Iterator[Ledger]:
    """A ledger whose connections are closed at the end."""
    ledger = Ledger(url)
    try:
        yield ledger
    finally:
        ledger.dispose()


@contextmanager
def new_ledger(request: pytest.FixtureRequest, dialect: str, directory: Path) -> Iterator[Ledger]:
    """A migrated, empty ledger of this dialect."""
    if dialect == "sqlite":
        template: Path = request.getfixturevalue("migrated_sqlite")
        path = directory / "ledger.db"
        shutil.copy(template, path)
        with opened(f"sqlite:///{path}") as ledger:
            # No test cuts the power: waiting for the disk would be most of the time.
            sa.event.listen(ledger.engine, "connect", lambda raw, _: raw.execute("PRAGMA synchronous = OFF"))
            yield ledger
        return
    server: PostgresServer = request.getfixturevalue("postgres_server")
    with server.database() as url, opened(url) as ledger:
        yield ledger


@contextmanager
def empty_database(request: pytest.FixtureRequest, dialect: str, directory: Path) -> Iterator[str]:
    """URL of a database without tables."""
    if dialect == "sqlite":
        yield f"sqlite:///{directory / 'empty.db'}"
        return
    server: PostgresServer = request.getfixturevalue("postgres_server")
    with server.database(template=None) as url:
        yield url


@pytest.fixture(params=DIALECTS)
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ledger]:
    """A migrated, empty ledger; the test runs once on each dialect."""
    with new_ledger(request, request.param, tmp_path) as made:
        yield made


@pytest.fixture
def clock() -> ManualClock:
    """A clock that the test moves."""
    return ManualClock(START)


@pytest.fixture
def ids() -> SequenceIds:
    """Identifiers that count up."""
    return SequenceIds()


def at_once(*actions: Callable[[], T]) -> list[T | BaseException]:
    """Do all actions at the same moment, in a thread each; what each of them gave or raised."""
    start = Barrier(len(actions))

    def run(action: Callable[[], T]) -> T | BaseException:
        start.wait(timeout=30)
        try:
            return action()
        except Exception as error:  # noqa: BLE001  # an outcome like any other
            return error

    with ThreadPoolExecutor(max_workers=len(actions)) as pool:
        return list(pool.map(run, actions))


@contextmanager
def unguarded(ledger: Ledger) -> Iterator[Connection]:
    """A writing transaction in which the database refuses nothing, as its owner could have it."""
    with ledger.begin() as conn:
        if ledger.dialect == "postgresql":
            conn.execute(sa.text("SET LOCAL session_replication_role = replica"))
            yield conn
            return
        for name in conn.scalars(sa.text("SELECT name FROM sqlite_master WHERE type = 'trigger'")).all():
            conn.execute(sa.text(f"DROP TRIGGER {name}"))
        yield conn
        guards.install(conn)


def register(conn: Connection, names: Sequence[str], *, ids: SequenceIds, **values: Any) -> list[Source]:
    """Register sources of the survey, and set columns that no store function sets."""
    for name in names:
        registration.upsert(conn, SURVEY, [NewSource(name)], ids=ids, now=START)
    rows = registry.by_identifiers(conn, SURVEY, names)
    if values:
        registry.update(conn, [row.id for row in rows], values, now=START)
    return [registry.get(conn, SURVEY, name) for name in names]


def add_survey(conn: Connection, *, ids: SequenceIds, spec: Any = None, survey: str = SURVEY) -> str:
    """A revision to which executions can refer; its id."""
    revision_id = ids.new()
    projects.add_revision(
        conn,
        revision_id=revision_id,
        project_id=survey,
        spec=spec or {},
        spec_sha256="0" * 64,
        source_text="",
        graph_sha256=None,
        now=START,
    )
    return revision_id


def new_execution(
    revision_id: str, names: Sequence[str], *, ids: SequenceIds, signature: str = "a" * 64, **values: Any
) -> NewExecution:
    """What admission would decide about these sources."""
    fields: dict[str, Any] = {
        "id": ids.new(),
        "project_module": SURVEY,
        "partition_key": f"{names[0]}@{signature[:12]}",
        "claim_token": ids.new(),
        "sources": [{"source_identifier": name, "discovery_signature": signature} for name in names],
        "signatures": dict.fromkeys(names, signature),
        "archive_name": "casda",
        "discovery_signature": signature,
        "project_config_id": revision_id,
        "deployment_profile_id": "profile",
        "deployment_profile_revision": 1,
        "deployment_profile_snapshot": {"name": "local"},
        "output_verification_required": False,
        "output_verification_policy": {},
        "created_by": "test",
    }
    return NewExecution(**{**fields, **values})


def add_execution(ledger: Ledger, names: Sequence[str] = ("A",), **values: Any) -> Execution:
    """An admitted execution over these sources, in a ledger of its own survey revision."""
    ids = values.pop("ids", None) or SequenceIds()
    with ledger.begin() as conn:
        revision_id = add_survey(conn, ids=ids)
        return executions.create(conn, new_execution(revision_id, names, ids=ids, **values), now=START)
