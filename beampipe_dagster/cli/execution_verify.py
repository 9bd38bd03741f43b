"""``beampipe execution verify``: the products of an execution, proven or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from rich.console import Console

from beampipe_dagster.cli.core import Command, Context, pass_context
from beampipe_dagster.cli.render import cell, emit, facts
from beampipe_dagster.config.canonical import JsonValue, parse_json
from beampipe_dagster.errors import InputError

REPORT_BYTES = 64 * 1024 * 1024
"""Longest report that is read; 100,000 products are about 15 MB."""


@click.command("verify", cls=Command)
@click.argument("identifier", metavar="ID")
@click.option(
    "--report",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The publisher's report, a JSON file.",
)
@click.option("--failed", is_flag=True, help="Refuse the products: the execution ends as failed.")
@click.option("--reason", metavar="TEXT", help="With --failed: what is wrong with them.")
@click.option("--dry-run", is_flag=True, help="With --report: check it, and write nothing.")
@pass_context
def verify(
    context: Context, identifier: str, report: Path | None, *, failed: bool, reason: str | None, dry_run: bool
) -> None:
    """End an execution that waits for its products, by its publisher's report or by your decision.

    The same report may be given again; it changes nothing then. A different one is refused.
    """
    if (report is None) is not failed or (failed and not reason):
        raise InputError(
            "give --report FILE, or --failed with a --reason",
            code="report_or_reason",
            hint="the report is what the publisher wrote when the products were safe",
        )
    from beampipe_dagster.cli.execution import resolve  # noqa: PLC0415  # it registers this command itself

    with context.ledger.read() as conn:
        execution_id = resolve(conn, identifier).id
    service = context.platform.verification
    data: dict[str, Any] = {"id": execution_id}
    if report is None:
        done = service.fail(execution_id, reason=reason or "", actor=context.actor)
        data |= {"status": done.status, "error": done.last_error}
    elif dry_run:
        read = service.read(execution_id, _document(report))
        data |= {"valid": True, "products": len(read.products), "bytes": read.total_bytes}
    else:
        taken = service.accept(execution_id, _document(report), actor=context.actor)
        data |= {
            "status": taken.execution.status,
            "artifact": taken.artifact.id,
            "inventory_sha256": taken.artifact.metadata.get("inventory_sha256"),
            "replayed": taken.replayed,
        }
    emit(context, data, lambda out: _show(out, data))


def _document(path: Path) -> JsonValue:
    if path.stat().st_size > REPORT_BYTES:
        raise InputError(
            f"the report {path} is longer than {REPORT_BYTES} bytes",
            code="output_report_too_long",
            hint="a report lists at most 100,000 products",
        )
    return parse_json(path.read_bytes(), name=str(path))


def _show(out: Console, data: dict[str, Any]) -> None:
    if data.get("valid"):
        out.print(cell(f"The report is valid: {data['products']:,} products, {data['bytes']:,} bytes."))
        return
    if data.get("replayed"):
        out.print("This report was taken before; nothing has changed.")
    out.print(facts([(name, value) for name, value in data.items() if name != "replayed"]))
