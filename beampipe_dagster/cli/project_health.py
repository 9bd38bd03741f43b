"""``beampipe project health``: whether the survey's archives answer, and how its queries are asked of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import click
from rich.console import Console

from beampipe_dagster.cli.core import EXIT_FAILED, Command, Context, pass_context
from beampipe_dagster.cli.render import cell, emit, table, when
from beampipe_dagster.config.project import ProjectConfig
from beampipe_dagster.discovery.archive import TapCapabilities
from beampipe_dagster.discovery.archives import ArchiveProvider, TapArchives
from beampipe_dagster.discovery.health import ArchiveHealth, last_good_answers, probe
from beampipe_dagster.discovery.rewrite_report import QueryReport, last_costs, report
from beampipe_dagster.errors import BeampipeError
from beampipe_dagster.ledger import gates, projects

_MILLISECONDS: Final = 1000


@click.command("health", cls=Command)
@click.argument("name")
@pass_context
def health(context: Context, name: str) -> int:
    """Ask the survey's archives now whether they take queries, and show how its queries are asked for many sources.

    Exit code 1 when an archive does not take queries.
    """
    with context.ledger.read() as conn:
        config = ProjectConfig.from_json(projects.active(conn, name).spec)
        good = last_good_answers(conn, name, config)
        kept = gates.of_project(conn, name)
        costs = last_costs(conn, name)
    archives = TapArchives(urls=context.settings.archive_urls, clock=context.clock, environ=context.environ)
    found = probe(config, archives, clock=context.clock, last_good=good, kept=kept)
    up = [item.adapter for item in found if item.available]
    queries = report(config, capabilities=_capabilities(config, archives, up), costs=costs)
    healthy = all(item.available for item in found)
    data = {
        "project_id": name,
        "healthy": healthy,
        "archives": found,
        "queries": [one.as_dict() for one in queries],
    }

    def people(out: Console) -> None:
        _show(out, context, found)
        _show_queries(out, context, queries)

    emit(context, data, people)
    return 0 if healthy else EXIT_FAILED


def _capabilities(
    config: ProjectConfig, archives: ArchiveProvider, up: Sequence[str]
) -> dict[str, TapCapabilities]:
    found = {}
    for adapter in up:
        try:
            found[adapter] = archives.get(config, adapter).capabilities()
        except BeampipeError:
            continue  # what it can do is only part of the page
    return found


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
            cell(item.message if item.circuit is None else f"{item.message}; {item.circuit}"),
        )
    out.print(rows)


def _show_queries(out: Console, context: Context, queries: Sequence[QueryReport]) -> None:
    """How each query is asked for many sources, and below the table why not, or what may surprise."""
    if not queries:
        return
    right = {"justify": "right"}
    rows = table(
        "query",
        "asked",
        "exact",
        ("sources a request", right),
        ("characters", right),
        ("ms a source", right),
        "measured (UTC)",
    )
    for one in queries:
        cost = one.cost
        rows.add_row(
            cell(one.name, "bold"),
            cell(f"{one.form} or upload" if one.upload and one.form != "upload" else one.form),
            cell("yes", "green") if one.exact else cell("one by one", "yellow"),
            f"{one.batch_size:,}",
            f"{one.batch_characters:,}",
            cell(None if cost is None else f"{cost.seconds_per_source * _MILLISECONDS:,.1f} ({cost.form})"),
            cell(when(cost.at, now=context.clock.now()) if cost else None),
        )
    out.print(rows)
    for one in queries:
        if one.why is not None:
            out.print(cell(f"{one.name}: one by one, {one.reason}: {one.why}", "yellow"), soft_wrap=True)
        for surprise in one.surprises:
            out.print(cell(f"{one.name}: {surprise.code}: {surprise.message}", "dim"), soft_wrap=True)
