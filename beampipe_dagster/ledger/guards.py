"""What the database itself refuses, whoever asks: illegal moves, changed evidence, events that are deleted.

The guards are triggers. They are made again at the end of every migration, because SQLite loses the triggers of a
table that a migration has rebuilt; a change of the law therefore needs a migration, if an empty one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from beampipe_dagster.ledger import fsm
from beampipe_dagster.ledger.states import Status

NEVER_UPDATED: Final = ("provenance_events", "execution_observations", "execution_artifacts")
"""Tables whose rows stay as they were written."""

_MOVES: Final = "an execution cannot make this move"
_PURGE: Final = "provenance_events is never deleted without a purge"
_OPEN_PURGE: Final = "SELECT 1 FROM provenance_purges WHERE done_at IS NULL AND OLD.occurred_at < before"


def install(conn: Connection) -> None:
    """Make the guards, or make them again, in the caller's transaction."""
    statements = _sqlite() if conn.dialect.name == "sqlite" else _postgresql()
    for statement in statements:
        conn.execute(sa.text(statement))


def _illegal() -> str:
    legal = " OR ".join(
        f"(OLD.status = '{source.value}' AND NEW.status = '{target.value}')"
        for source in Status
        for target in Status
        if fsm.allows(source, target)
    )
    return f"OLD.status <> NEW.status AND NOT ({legal})"


def _sqlite() -> Iterator[str]:
    guards = {
        "guard_execution_moves": (
            f"BEFORE UPDATE OF status ON batch_execution_record WHEN {_illegal()}",
            _MOVES,
        ),
        "guard_provenance_purge": (
            f"BEFORE DELETE ON provenance_events WHEN NOT EXISTS ({_OPEN_PURGE})",
            _PURGE,
        ),
        **{
            f"guard_{table}": (f"BEFORE UPDATE ON {table}", f"{table} is never changed")
            for table in NEVER_UPDATED
        },
    }
    for name, (when, message) in guards.items():
        yield f"DROP TRIGGER IF EXISTS {name}"
        yield f"CREATE TRIGGER {name} {when} BEGIN SELECT RAISE(ABORT, '{message}'); END"


def _postgresql() -> Iterator[str]:
    raising = "USING ERRCODE = 'integrity_constraint_violation'"
    yield (
        "CREATE OR REPLACE FUNCTION beampipe_refuse() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$ BEGIN RAISE EXCEPTION '%', TG_ARGV[0] {raising}; END $$"
    )
    yield (
        "CREATE OR REPLACE FUNCTION beampipe_guard_purge() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$ BEGIN IF EXISTS ({_OPEN_PURGE}) THEN RETURN OLD; END IF; "
        f"RAISE EXCEPTION '{_PURGE}' {raising}; END $$"
    )
    guards = {
        "guard_execution_moves": (
            "batch_execution_record",
            (
                f"BEFORE UPDATE OF status ON batch_execution_record FOR EACH ROW WHEN ({_illegal()}) "
                f"EXECUTE FUNCTION beampipe_refuse('{_MOVES}')"
            ),
        ),
        "guard_provenance_purge": (
            "provenance_events",
            "BEFORE DELETE ON provenance_events FOR EACH ROW EXECUTE FUNCTION beampipe_guard_purge()",
        ),
        **{
            f"guard_{table}": (
                table,
                (
                    f"BEFORE UPDATE ON {table} FOR EACH ROW "
                    f"EXECUTE FUNCTION beampipe_refuse('{table} is never changed')"
                ),
            )
            for table in NEVER_UPDATED
        },
    }
    for name, (table, what) in guards.items():
        yield f"DROP TRIGGER IF EXISTS {name} ON {table}"
        yield f"CREATE TRIGGER {name} {what}"
