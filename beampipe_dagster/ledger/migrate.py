"""Bring a ledger to the schema that this version of the code knows, or say that it is not there."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from beampipe_dagster.errors import LedgerError, Retry
from beampipe_dagster.ledger import guards
from beampipe_dagster.ledger.engine import Ledger, exclusive
from beampipe_dagster.ledger.tables import VERSION_TABLE

_ADVISORY_LOCK: Final = 0x6265616D
"""PostgreSQL advisory lock under which migrations of several processes queue."""


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    return config


def head() -> str:
    """The newest revision that the code knows."""
    revision = ScriptDirectory.from_config(_config()).get_current_head()
    if revision is None:
        raise LedgerError("this installation has no migrations", code="migrations_missing", retry=Retry.NEVER)
    return revision


def current(ledger: Ledger) -> str | None:
    """The database's revision; ``None`` for an empty one."""
    with ledger.read() as conn:
        return MigrationContext.configure(conn, opts={"version_table": VERSION_TABLE}).get_current_revision()


def migrate(ledger: Ledger) -> tuple[str | None, str]:
    """Upgrade to :func:`head`; several processes may call it at once.

    Returns
    -------
    tuple
        The revision before, and the one after.
    """
    with exclusive(ledger.url):
        before = current(ledger)
        if before == head():
            return before, before
        with ledger.begin() as conn:
            if ledger.dialect == "postgresql":
                conn.execute(sa.text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ADVISORY_LOCK})
            config = _config()
            config.attributes["connection"] = conn
            command.upgrade(config, "head")
            guards.install(conn)
        after = current(ledger)
    return before, after or ""


def ensure_current(ledger: Ledger) -> None:
    """Refuse to work on a ledger of another version.

    Raises
    ------
    LedgerError
        ``ledger_not_migrated``.
    """
    found = current(ledger)
    if found != head():
        raise LedgerError(
            f"the ledger at {ledger.display_url()} is at revision {found or 'none'}, the code needs {head()}",
            code="ledger_not_migrated",
            hint="run: beampipe ledger migrate",
            retry=Retry.NEVER,
        )
