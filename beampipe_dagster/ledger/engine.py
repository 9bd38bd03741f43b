"""Engines for SQLite and PostgreSQL, and the two kinds of transaction.

SQLite runs in WAL mode with foreign keys, a busy timeout and full synchronisation: an intent must survive a
power cut. A writing transaction begins with ``BEGIN IMMEDIATE``, so that two writers queue instead of failing
when a reader wants to become a writer.

What may be lost in a power cut is written by :meth:`Ledger.relaxed`: at once visible to everybody, whole or not at
all, and on the disk with the next transaction that waits for it.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine, make_url
from sqlalchemy.exc import DBAPIError, IntegrityError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from beampipe_dagster.errors import BeampipeError, LedgerError, Retry

BUSY_TIMEOUT_MS: Final = 30_000


class Ledger:
    """A database that holds the ledger's tables.

    Parameters
    ----------
    url
        SQLAlchemy URL; ``sqlite:///path`` or ``postgresql+psycopg2://…``.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.engine = _make_engine(url)

    @property
    def dialect(self) -> str:
        """``sqlite`` or ``postgresql``."""
        return self.engine.dialect.name

    @contextmanager
    def begin(self) -> Iterator[Connection]:
        """A writing transaction: commits at the end, rolls back on any exception."""
        with _translated(), self.engine.connect() as conn:
            conn = conn.execution_options(beampipe_write=True)  # noqa: PLW2901  # same connection, writing
            with conn.begin():
                yield conn

    @contextmanager
    def relaxed(self) -> Iterator[Connection]:
        """A writing transaction that does not wait for the disk.

        For what a power cut may take back, and for nothing else: the last of such transactions, though never a part
        of one, nor anything that :meth:`begin` wrote. A process that dies takes nothing with it. (SQLite:
        ``synchronous = NORMAL`` in WAL mode; PostgreSQL: ``synchronous_commit = off``.)
        """
        with _translated(), self.engine.connect() as conn:
            conn = conn.execution_options(  # noqa: PLW2901  # same connection, writing
                beampipe_write=True, beampipe_relaxed=True
            )
            with conn.begin():
                if self.dialect == "postgresql":
                    conn.exec_driver_sql("SET LOCAL synchronous_commit = off")
                yield conn

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A reading transaction: one consistent view of all its statements on SQLite."""
        with _translated(), self.engine.connect() as conn:
            yield conn

    def dispose(self) -> None:
        """Close all connections."""
        self.engine.dispose()

    def display_url(self) -> str:
        """The URL without its password."""
        return make_url(self.url).render_as_string(hide_password=True)


def queue(conn: Connection, name: str) -> None:
    """Let one transaction at a time go on from here, among all processes that give the same ``name``.

    It lasts until the transaction ends. For decisions that count rows: a cap is not kept by two transactions
    that both count before either of them adds. On SQLite writing transactions queue anyhow.
    """
    if conn.dialect.name == "postgresql":
        conn.execute(sa.text("SELECT pg_advisory_xact_lock(hashtextextended(:name, 0))"), {"name": name})


def sqlite_path(url: str) -> Path | None:
    """The file of a SQLite URL, ``None`` for another database or one in memory."""
    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite" or not parsed.database or parsed.database == ":memory:":
        return None
    return Path(parsed.database)


@contextmanager
def exclusive(url: str) -> Iterator[None]:
    """Hold a lock file beside a SQLite ledger; migrations of several processes queue here."""
    path = sqlite_path(url)
    if path is None:
        yield
        return
    _make_directory(path.parent)
    with path.with_suffix(path.suffix + ".lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _make_directory(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LedgerError(
            f"the ledger's directory {path} cannot be made: {error.strerror}",
            code="ledger_directory",
            hint="set BEAMPIPE_HOME to a directory that can be written to",
            retry=Retry.NEVER,
        ) from error


def _make_engine(url: str) -> Engine:
    try:
        parsed = make_url(url)
    except SQLAlchemyError as error:
        raise LedgerError(
            "the ledger's URL cannot be read",
            code="invalid_database_url",
            hint="set BEAMPIPE_DATABASE_URL to sqlite:///FILE or postgresql://USER@HOST/DATABASE",
            retry=Retry.NEVER,
        ) from error
    if parsed.get_backend_name() == "sqlite":
        path = sqlite_path(url)
        if path is not None:
            _make_directory(path.parent)
        engine = sa.create_engine(url, connect_args={"timeout": BUSY_TIMEOUT_MS / 1000})
        sa.event.listen(engine, "connect", _configure_sqlite)
        sa.event.listen(engine, "begin", _begin_sqlite)
        return engine
    if parsed.get_backend_name() == "postgresql":
        if parsed.drivername == "postgresql":
            parsed = parsed.set(drivername="postgresql+psycopg2")
        return sa.create_engine(parsed, pool_pre_ping=True, pool_size=5, connect_args={"connect_timeout": 10})
    raise LedgerError(
        f"the ledger cannot live in {parsed.get_backend_name()}",
        code="invalid_database_url",
        hint="use SQLite or PostgreSQL",
        retry=Retry.NEVER,
    )


def _configure_sqlite(connection: Any, record: object) -> None:  # noqa: ANN401  # the driver's
    del record
    connection.isolation_level = None  # transactions are begun by _begin_sqlite, not by the driver
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
    cursor.execute("PRAGMA journal_mode = WAL")
    cursor.execute("PRAGMA synchronous = FULL")
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.close()


def _begin_sqlite(conn: Connection) -> None:
    options = conn.get_execution_options()
    writing = options.get("beampipe_write", False)
    if writing:
        # Said each time: a connection of the pool must not keep what another transaction wanted. It has to be
        # outside of a transaction.
        level = "NORMAL" if options.get("beampipe_relaxed", False) else "FULL"
        conn.exec_driver_sql(f"PRAGMA synchronous = {level}")
    conn.exec_driver_sql("BEGIN IMMEDIATE" if writing else "BEGIN")


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except BeampipeError:
        raise
    except IntegrityError:
        raise  # the stores decide what a broken rule means
    except (DBAPIError, PoolTimeoutError) as error:
        raise LedgerError(
            f"the ledger answered: {str(getattr(error, 'orig', None) or error).strip()}",
            hint="is the database up, reachable and migrated (beampipe ledger migrate)?",
        ) from error
