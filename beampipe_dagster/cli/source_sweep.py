"""``beampipe source sweep``: what is new in the archives, for all sources of a survey at once."""

from __future__ import annotations

import click
from rich.console import Console

from beampipe_dagster.cli.core import EXIT_FAILED, Command, Context, pass_context
from beampipe_dagster.cli.render import cell, emit, number
from beampipe_dagster.discovery.watermark import QuerySweep, SweepReport

_SKIPPED = {
    "no_watermark": "None of the survey's queries has a watermark: new rows are found by looking at each source.",
    "sweep_running": "Another process is sweeping the survey now.",
}


@click.command("sweep", cls=Command)
@click.argument("name", metavar="PROJECT")
@pass_context
def sweep(context: Context, name: str) -> int:
    """Ask the archives what is new for all sources, and look at those that it belongs to at the next tick.

    For queries with a `watermark`. Exit code 1 when one of them could not be swept; then nothing of it changed.
    """
    found = context.platform.watermarks.sweep(name)
    emit(context, found.as_dict(), lambda out: _show(out, found))
    return EXIT_FAILED if found.errors else 0


def _show(out: Console, found: SweepReport) -> None:
    if found.skip_reason is not None:
        out.print(_SKIPPED.get(found.skip_reason, found.skip_reason))
    for one in found.sweeps:
        out.print(cell(_words(one), "yellow" if one.error else ""), soft_wrap=True)


def _words(one: QuerySweep) -> str:
    if one.error is not None:
        return f"{one.query}: not swept, and nothing was changed. {one.error}"
    at = f" The watermark is at {one.position}." if one.position else ""
    wait = f" It waits for looks at {number(one.waiting, 'source')}." if one.waiting else ""
    if one.everything:
        return f"{one.query}: all sources are looked at at the next ticks ({one.marked:,}).{at}{wait}"
    strangers = f"; {one.unknown_rows:,} belong to no source of the survey" if one.unknown_rows else ""
    return (
        f"{one.query}: {number(one.new_rows, 'new row')}{strangers}. "
        f"{number(one.marked, 'source')} to be looked at.{at}{wait}"
    )
