"""``beampipe project health``: whether the survey's archives answer."""

from __future__ import annotations

from typing import Final

import click
from rich.console import Console

from beampipe_dagster.cli.core import EXIT_FAILED, Command, Context, pass_context
from beampipe_dagster.cli.render import cell, emit, table, when
from beampipe_dagster.config.project import ProjectConfig
from beampipe_dagster.discovery.archives import TapArchives
from beampipe_dagster.discovery.health import ArchiveHealth, last_good_answers, probe
from beampipe_dagster.ledger import projects

_MILLISECONDS: Final = 1000


@click.command("health", cls=Command)
@click.argument("name")
@pass_context
def health(context: Context, name: str) -> int:
    """Ask the survey's archives now whether they take queries. Exit code 1 when one of them does not."""
    with context.ledger.read() as conn:
        config = ProjectConfig.from_json(projects.active(conn, name).spec)
        good = last_good_answers(conn, name, config)
    archives = TapArchives(urls=context.settings.archive_urls, clock=context.clock, environ=context.environ)
    found = probe(config, archives, clock=context.clock, last_good=good)
    healthy = all(item.available for item in found)
    data = {"project_id": name, "healthy": healthy, "archives": found}
    emit(context, data, lambda out: _show(out, context, found))
    return 0 if healthy else EXIT_FAILED


def _show(out: Console, context: Context, found: list[ArchiveHealth]) -> None:
    if not found:
        out.print("The survey asks no archive.")
        return
    right = {"justify": "right"}
    rows = table("archive", "state", ("answered in", right), "last good answer (UTC)", "what it says")
    for item in found:
        took = None if item.latency_seconds is None else f"{item.latency_seconds * _MILLISECONDS:,.0f} ms"
        rows.add_row(
            cell(item.adapter, "bold"),
            cell("up", "green") if item.available else cell("down", "bold red"),
            cell(took),
            cell(when(item.last_good_at, now=context.clock.now())),
            cell(item.message),
        )
    out.print(rows)
