"""``beampipe ledger verify``: whether everything is as it was written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import click
from rich.console import Console

from beampipe_dagster.cli.core import EXIT_FAILED, Command, Context, pass_context
from beampipe_dagster.cli.render import cell, console, emit, number, table
from beampipe_dagster.ledger import executions
from beampipe_dagster.ledger.audit import Audited, Finding, audit
from beampipe_dagster.ledger.engine import Ledger
from beampipe_dagster.ledger.migrate import ensure_current

SHOWN: Final = 100
"""Findings that are kept; a ledger that is full of them is counted on, and not listed."""


@click.command("verify", cls=Command)
@click.option("--execution", "execution_id", help="Only this execution, by its full id.")
@pass_context
def verify(context: Context, execution_id: str | None) -> int:
    """Compute again what can be computed, and compare.

    Looks at the chain of every execution's events, at every stored document, at the locks and at the endings. Exit
    code 1 when anything is not as it was written.
    """
    database = Ledger(context.settings.database_url)
    try:
        ensure_current(database)
        seen, found, total = Audited(), list[Finding](), 0
        with database.read() as conn:
            if execution_id is not None:
                executions.get(conn, execution_id)
            for finding in audit(conn, execution_id=execution_id, counts=seen, progress=_progress(context)):
                total += 1
                if len(found) < SHOWN:
                    found.append(finding)
    finally:
        database.dispose()
    data: dict[str, Any] = {
        "intact": not total,
        "executions": seen.executions,
        "events": seen.events,
        "events_before_the_chain": seen.unchained,
        "documents": seen.artifacts,
        "findings": total,
        "shown": found,
    }
    emit(context, data, lambda out: _show(out, data, found))
    return EXIT_FAILED if total else 0


def _progress(context: Context) -> Callable[[str, int], None] | None:
    out = console(stderr=True)
    if context.json or not out.is_terminal:
        return None
    return lambda what, count: out.print(f"{what}: {count:,}", end="\r")


def _show(out: Console, data: dict[str, Any], found: list[Finding]) -> None:
    looked = (
        f"{number(data['executions'], 'execution')}, {number(data['events'], 'event')}, "
        f"{number(data['documents'], 'document')}"
    )
    if not data["findings"]:
        out.print(f"Everything is as it was written: {looked}.")
    else:
        lines = table("finding", "execution", "what")
        for finding in found:
            lines.add_row(cell(finding.code.value, "red"), finding.execution_id, cell(finding.message))
        out.print(lines)
        left = data["findings"] - len(found)
        more = f", {left:,} more than are listed" if left else ""
        out.print(f"{number(data['findings'], 'finding')}{more} in {looked}.")
        out.print("Keep this ledger as it is, and compare it with a backup.")
    if data["events_before_the_chain"]:
        out.print(f"{number(data['events_before_the_chain'], 'event')} of older versions have no digest.")
