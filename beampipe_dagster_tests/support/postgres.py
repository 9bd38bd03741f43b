"""A real PostgreSQL for tests: one server a test process, a database of its own for each test.

The server listens on a socket in a directory of its own and on no port, keeps nothing, and ends with the test
process, also when that is killed.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import OperationalError

from beampipe_dagster.ledger.engine import Ledger
from beampipe_dagster.ledger.migrate import migrate

START_SECONDS = 60.0
TEMPLATE = "migrated"
ROOM_BYTES = 4 * 1024**3
COPYING_SINCE = 15
"""The first version that has to be told to copy a template's files, which takes a sixth of the time."""
_FAST = (
    ("fsync", "off"),
    ("full_page_writes", "off"),
    ("synchronous_commit", "off"),
    ("autovacuum", "off"),
    ("shared_buffers", "32MB"),
    ("max_connections", "200"),
    ("deadlock_timeout", "200ms"),
)


def find_binaries() -> Path | None:
    """The directory of the newest installed server, by Debian's layout or by the path."""
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=_version, reverse=True)
    if debian:
        return debian[0].parent
    found = shutil.which("postgres")
    initdb = Path(found).resolve().parent / "initdb" if found else None
    return initdb.parent if initdb is not None and initdb.exists() else None


def _version(binary: Path) -> float:
    try:
        return float(binary.parent.parent.name)
    except ValueError:
        return 0.0


@dataclass(frozen=True)
class PostgresServer:
    """A running server."""

    directory: Path
    version: float
    numbers: count[int]

    def url(self, database: str) -> str:
        """SQLAlchemy URL of a database."""
        return f"postgresql+psycopg2://postgres@/{database}?host={self.directory}"

    def execute(self, statement: str) -> None:
        """Run a statement outside of any transaction, in the maintenance database."""
        engine = sa.create_engine(self.url("postgres"), isolation_level="AUTOCOMMIT")
        try:
            with engine.connect() as conn:
                conn.exec_driver_sql(statement)
        finally:
            engine.dispose()

    @contextmanager
    def database(self, *, template: str | None = TEMPLATE) -> Iterator[str]:
        """URL of a new database that nobody else uses; empty without a template."""
        name = f"test_{next(self.numbers)}"
        strategy = "STRATEGY FILE_COPY" if self.version >= COPYING_SINCE else ""
        self.execute(f"CREATE DATABASE {name} TEMPLATE {template or 'template0'} {strategy}")
        try:
            yield self.url(name)
        finally:
            self.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


def _as_postgres() -> list[str]:
    """What to put before a command: the server refuses to run as root, and must not outlive the tests."""
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        return []
    prefix = [setpriv, "--pdeathsig", "INT"]
    if os.geteuid() == 0:
        prefix += ["--reuid=postgres", "--regid=postgres", "--clear-groups"]
    return prefix


def _fast_place() -> str:
    """Where files cost least: in memory, when there is plenty of it."""
    memory = Path("/dev/shm")  # noqa: S108  # a directory of its own is made in it
    if os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > ROOM_BYTES:
        return str(memory)
    return "/tmp"  # noqa: S108  # a directory of its own is made in it


def unavailable() -> str | None:
    """Why there can be no server here; ``None`` when there can."""
    if find_binaries() is None:
        return "PostgreSQL is not installed (no /usr/lib/postgresql/*/bin, no postgres in PATH)"
    if os.geteuid() == 0 and not _as_postgres():
        return "PostgreSQL refuses to run as root, and there is no setpriv"
    return None


@contextmanager
def running_server() -> Iterator[PostgresServer]:
    """A server with a migrated template database."""
    binaries = find_binaries()
    assert binaries is not None
    # A socket's path must be short, so that it does not live below pytest's own directory.
    directory = Path(tempfile.mkdtemp(prefix="bp-pg-", dir=_fast_place()))
    if os.geteuid() == 0:
        shutil.chown(directory, "postgres", "postgres")
    data, log = directory / "data", directory / "log"
    initdb = ["--auth=trust", "--username=postgres", "--encoding=UTF8", "--locale=C.UTF-8", "--no-sync"]
    subprocess.run(
        [*_as_postgres(), str(binaries / "initdb"), "-D", str(data), *initdb],
        check=True,
        capture_output=True,
        cwd=directory,
    )
    options = [text for name, value in _FAST for text in ("-c", f"{name}={value}")]
    with log.open("wb") as out:
        process = subprocess.Popen(
            [
                *_as_postgres(),
                str(binaries / "postgres"),
                "-D",
                str(data),
                *("-c", "listen_addresses=", "-k", str(directory)),
                *options,
            ],
            stdout=out,
            stderr=subprocess.STDOUT,
            cwd=directory,
            start_new_session=True,
        )
    try:
        server = PostgresServer(directory, _version(binaries / "postgres"), count(1))
        _wait(server, process, log)
        server.execute(f"CREATE DATABASE {TEMPLATE}")
        ledger = Ledger(server.url(TEMPLATE))
        migrate(ledger)
        ledger.dispose()
        yield server
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(timeout=30)
        shutil.rmtree(directory, ignore_errors=True)


def _wait(server: PostgresServer, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while True:
        try:
            server.execute("SELECT 1")
        except OperationalError as error:
            if process.poll() is not None or time.monotonic() > end:
                raise AssertionError(f"PostgreSQL does not start: {log.read_text()}") from error
            time.sleep(0.05)
        else:
            return


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """The test process's server; tests that want it are skipped where it is not installed, but not in CI."""
    reason = unavailable()
    if reason is not None:
        if os.environ.get("CI", "").lower() in {"1", "true", "yes"}:
            pytest.fail(reason)
        pytest.skip(reason)
    with running_server() as server:
        yield server
