"""``beampipe timeline``: the story from the ledger."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final

import click
from rich.console import Console

from beampipe_dagster.cli.core import Context, Group, pass_context
from beampipe_dagster.cli.execution import resolve
from beampipe_dagster.cli.render import cell, emit, number, table
from beampipe_dagster.cli.story import about, tell, without_repeats
from beampipe_dagster.ledger import projects, provenance, sources
from beampipe_dagster.ledger.provenance import RecordedEvent

LIMIT: Final = 200

_limit = click.option(
    "--limit", type=click.IntRange(min=1), default=LIMIT, show_default=True, help="Newest events at most."
)


@click.group(cls=Group)
def timeline() -> None:
    """What happened, when, and who did it."""


@timeline.command("source")
@click.option("-p", "--project", "project_id", required=True, metavar="NAME", help="The survey.")
@click.argument("name")
@_limit
@pass_context
def source(context: Context, project_id: str, name: str, limit: int) -> None:
    """The story of a source."""
    with context.ledger.read() as conn:
        projects.active(conn, project_id)
        sources.get(conn, project_id, name)
        events = provenance.timeline(conn, project_module=project_id, source_identifier=name, limit=limit + 1)
    _emit(context, "source", name, events, limit)


@timeline.command("execution")
@click.argument("identifier", metavar="ID")
@_limit
@pass_context
def execution(context: Context, identifier: str, limit: int) -> None:
    """The story of an execution. ID is any unique beginning of its identifier."""
    with context.ledger.read() as conn:
        run = resolve(conn, identifier)
        events = provenance.timeline(conn, execution_id=run.id, limit=limit + 1)
    _emit(context, "execution", run.id, events, limit)


@timeline.command("project")
@click.argument("name")
@_limit
@pass_context
def project(context: Context, name: str, limit: int) -> None:
    """The story of a survey: of all its sources and executions."""
    with context.ledger.read() as conn:
        projects.active(conn, name)
        events = provenance.timeline(conn, project_module=name, limit=limit + 1)
    _emit(context, "project", name, events, limit)


def _emit(context: Context, subject: str, name: str, found: list[RecordedEvent], limit: int) -> None:
    more, events = len(found) > limit, found[-limit:]
    data: dict[str, Any] = {
        subject: name,
        "events": [
            {
                "id": event.id,
                "occurred_at": event.occurred_at,
                "event_type": event.event_type,
                "text": tell(event).text,
                "actor": event.actor,
                "project_id": event.project_module,
                "source_identifier": event.source_identifier,
                "execution_id": event.execution_id,
                "correlation_id": event.correlation_id,
                "payload": event.payload,
            }
            for event in events
        ],
        "truncated": more,
    }
    emit(context, data, lambda out: _show(out, subject, events, limit if more else None))


def _show(out: Console, subject: str, events: Sequence[RecordedEvent], limit: int | None) -> None:
    if not events:
        out.print("Nothing has happened yet.")
        return
    if limit is not None:
        out.print(cell(f"Only the newest {limit:,} events are shown; see --limit.", "dim"))
    told = without_repeats(events)
    several = subject != "execution" or any(count > 1 for _, count in told)
    fixed = {"no_wrap": True}
    rows = table(
        ("time (UTC)", fixed),
        *([("about", fixed)] if several else []),
        ("what happened", {"ratio": 1}),
        ("who", {"max_width": 20}),
    )
    rows.expand = True
    day: str | None = None
    for event, count in told:
        today = event.occurred_at.astimezone(UTC).strftime("%Y-%m-%d")
        if today != day:
            rows.add_row(cell(today, "bold"), *([cell(" ")] if several else []), cell(" "), cell(" "))
            day = today
        sentence = tell(event)
        what = number(count, "source") if count > 1 else about(event, subject=subject)
        rows.add_row(
            f"  {_clock(event.occurred_at)}",
            *([cell(what or " ", "dim")] if several else []),
            cell(sentence.text, sentence.style),
            cell(event.actor, "dim"),
        )
    out.print(rows)


def _clock(moment: datetime) -> str:
    """A time of day in UTC, to the millisecond: what a machine does takes not much longer."""
    moment = moment.astimezone(UTC)
    return f"{moment:%H:%M:%S}.{moment.microsecond // 1000:03d}"
