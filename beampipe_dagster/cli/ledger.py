"""``beampipe ledger``: the database itself."""

from __future__ import annotations

from typing import Any

import click
import sqlalchemy as sa
from rich.console import Console

from beampipe_dagster.cli.core import EXIT_FAILED, Context, Group, pass_context
from beampipe_dagster.cli.ledger_verify import verify
from beampipe_dagster.cli.render import cell, emit, facts, number, when
from beampipe_dagster.ledger import executions, outbox, projects
from beampipe_dagster.ledger.engine import Ledger, sqlite_path
from beampipe_dagster.ledger.migrate import current, head, migrate
from beampipe_dagster.ledger.tables import batch_execution_record, source_registry


@click.group(cls=Group)
def ledger() -> None:
    """The ledger's database."""


ledger.add_command(verify)


@ledger.command("migrate")
@pass_context
def migrate_command(context: Context) -> None:
    """Make the ledger, or bring it to this version."""
    database = Ledger(context.settings.database_url)
    try:
        before, after = migrate(database)
        data = {"url": database.display_url(), "before": before, "after": after, "changed": before != after}
    finally:
        database.dispose()

    def people(out: Console) -> None:
        if before == after:
            out.print(f"The ledger is at revision {after} already.")
        else:
            out.print(f"The ledger went from revision {before or 'none'} to {after}.")
        out.print(cell(data["url"], "dim"), soft_wrap=True)

    emit(context, data, people)


@ledger.command("status")
@pass_context
def status(context: Context) -> int:
    """Where the ledger is, its version, and what is in it.

    Exit code 1 when it is missing or of another version.
    """
    url = context.settings.database_url
    path = sqlite_path(url)
    missing = path is not None and not path.is_file()
    data: dict[str, Any] = {"revision": None, "needed": head()}
    if missing:
        # A look must not make a database.
        data |= {"url": f"sqlite:///{path}", "dialect": "sqlite", "state": "missing"}
    else:
        database = Ledger(url)
        try:
            data |= _look(database)
        finally:
            database.dispose()
        if path is not None:
            data["size_bytes"] = path.stat().st_size
    emit(context, data, lambda out: _show(out, data))
    return 0 if data["state"] == "current" else EXIT_FAILED


def _look(database: Ledger) -> dict[str, Any]:
    found, needed = current(database), head()
    state = "current" if found == needed else "empty" if found is None else "other_version"
    data: dict[str, Any] = {
        "url": database.display_url(),
        "dialect": database.dialect,
        "revision": found,
        "state": state,
    }
    if state != "current":
        return data
    with database.read() as conn:
        waiting, since = outbox.undelivered(conn)
        total = conn.execute(sa.select(sa.func.count()).select_from(batch_execution_record)).scalar_one()
        data |= {
            "projects": len(projects.all_active(conn)),
            "sources": conn.execute(sa.select(sa.func.count()).select_from(source_registry)).scalar_one(),
            "executions": total,
            "executions_active": executions.active_counts(conn)[0],
            "outbox_undelivered": waiting,
            "outbox_oldest_at": since,
        }
    return data


_STATES = {
    "current": ("current", "green"),
    "empty": ("empty; make its tables with: beampipe ledger migrate", "yellow"),
    "missing": ("missing; make it with: beampipe ledger migrate", "yellow"),
    "other_version": ("of another version; bring it to this one with: beampipe ledger migrate", "red"),
}


def _show(out: Console, data: dict[str, Any]) -> None:
    words, style = _STATES[data["state"]]
    size = data.get("size_bytes")
    runs = None
    if "executions" in data:
        runs = f"{data['executions']:,}, {data['executions_active']:,} of them active"
    told = None
    if "outbox_undelivered" in data:
        left = data["outbox_undelivered"]
        told = (
            "all" if not left else f"{number(left, 'event')} waiting since {when(data['outbox_oldest_at'])}"
        )
    out.print(
        facts(
            [
                ("ledger", data["url"]),
                ("state", cell(words, style)),
                ("revision", data["revision"]),
                ("needed", data["needed"] if data["needed"] != data["revision"] else None),
                ("size", None if size is None else f"{size / 1e6:.1f} MB"),
                ("projects", data.get("projects")),
                ("sources", f"{data['sources']:,}" if "sources" in data else None),
                ("executions", runs),
                ("told to Dagster", told),
            ]
        )
    )
