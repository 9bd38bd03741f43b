"""``beampipe source``: who is to be processed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import click
from rich.console import Console
from sqlalchemy.engine import Connection

from beampipe_dagster.cli.core import Context, Group, pass_context
from beampipe_dagster.cli.render import cell, emit, number, table, when
from beampipe_dagster.cli.source_file import read_sources
from beampipe_dagster.cli.source_view import load, show_source
from beampipe_dagster.ledger import projects, sources
from beampipe_dagster.ledger.executions import Execution
from beampipe_dagster.ledger.sources import NewSource, Source
from beampipe_dagster.sandbox.terminal import shortened
from beampipe_dagster.sandbox.watch import drops_text, word_text
from beampipe_dagster.sources.status import SourceState, Word, describe, latest_executions

PAGE: Final = 500
LIMIT: Final = 500
_NAMES_SHOWN: Final = 10

PROJECT = click.option("-p", "--project", "project_id", required=True, metavar="NAME", help="The survey.")


@click.group(cls=Group)
def source() -> None:
    """Sources: who is to be processed, and what each of them is doing."""


@source.command("register")
@PROJECT
@click.argument("names", nargs=-1)
@click.option(
    "--file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="One name a line, or CSV with the header source_identifier,ra_deg,dec_deg (degrees, ICRS).",
)
@click.option("--disabled", is_flag=True, help="Known, but neither looked at nor executed.")
@click.option(
    "--discover/--no-discover",
    default=True,
    show_default=True,
    help="Look at all of them at the next tick, also at those that were looked at not long ago.",
)
@pass_context
def register(
    context: Context,
    project_id: str,
    names: tuple[str, ...],
    *,
    file: Path | None,
    disabled: bool,
    discover: bool,
) -> None:
    """Register sources with a survey, all of them or none.

    Registering a source again changes its position and whether it is enabled, nothing else.
    """
    if not names and file is None:
        raise click.UsageError("give names, or a --file", ctx=click.get_current_context())
    new = [NewSource(name, enabled=not disabled) for name in names]
    if file is not None:
        new += read_sources(file, enabled=not disabled)
    registry = context.platform.registry
    done = registry.register(project_id, new, actor=context.actor)
    marked = 0
    if discover and not disabled:
        every = [item.source_identifier for item in new]
        marked = registry.mark_for_discovery(project_id, every, actor=context.actor)
    data = {
        "project_id": project_id,
        "added": done.added,
        "updated": done.updated,
        "enabled": not disabled,
        "marked_for_discovery": marked,
    }

    def people(out: Console) -> None:
        off = " (disabled)" if disabled else ""
        if done.added:
            out.print(f"Added {number(len(done.added), 'source')} to {project_id}{off}: {_few(done.added)}")
        if done.updated:
            out.print(f"Changed {number(len(done.updated), 'known source')}{off}: {_few(done.updated)}")
        if marked:
            out.print("They are looked at at the next discovery tick.")

    emit(context, data, people)


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMES_SHOWN:,} more" if len(names) > _NAMES_SHOWN else ""
    return ", ".join(names[:_NAMES_SHOWN]) + more


@source.command("list")
@click.option("-p", "--project", "project_id", metavar="NAME", help="The survey; all without it.")
@click.option("--held", "wanted", flag_value="held", help="Only those that are not ready.")
@click.option("--pending", "wanted", flag_value="pending", help="Only those that wait for room.")
@click.option(
    "--failed",
    "wanted",
    flag_value="failed",
    help="Only those whose execution failed, or whose last look did.",
)
@click.option(
    "--limit",
    type=click.IntRange(min=0),
    default=LIMIT,
    show_default=True,
    help="Sources at most; 0 for all.",
)
@pass_context
def listing(context: Context, project_id: str | None, wanted: str | None, limit: int) -> None:
    """What each source is doing, and why."""
    words = {
        None: frozenset(Word),
        "held": frozenset({Word.HELD}),
        "pending": frozenset({Word.PENDING}),
        "failed": frozenset({Word.FAILED, Word.DISCOVERY_FAILED}),
    }[wanted]
    found: list[_Listed] = []
    more = False
    with context.ledger.read() as conn:
        if project_id is not None:
            projects.active(conn, project_id)
        for item in _states(conn, project_id):
            if item[2].word not in words:
                continue
            if limit and len(found) == limit:
                more = True
                break
            found.append(item)
    data = {"sources": [_summary(*item) for item in found], "truncated": more}
    emit(context, data, lambda out: _show_list(out, found, project_id, wanted, more, context.clock.now()))


_Listed = tuple[Source, Execution | None, SourceState]


def _states(conn: Connection, project_id: str | None) -> Iterator[_Listed]:
    """Every source with its newest execution and its state, a page at a time."""
    offset = 0
    while page := sources.listing(conn, project_id, limit=PAGE, offset=offset):
        offset += len(page)
        newest: dict[tuple[str, str], Execution] = {}
        for module in {item.project_module for item in page}:
            names = [item.source_identifier for item in page if item.project_module == module]
            for name, run in latest_executions(conn, module, names).items():
                newest[module, name] = run
        for item in page:
            execution = newest.get((item.project_module, item.source_identifier))
            yield item, execution, describe(item, execution)


def _show_list(
    out: Console,
    found: Sequence[_Listed],
    project_id: str | None,
    wanted: str | None,
    more: bool,  # noqa: FBT001  # one caller
    now: datetime,
) -> None:
    if not found:
        where = f" in {project_id}" if project_id else ""
        out.print(f"No source{where} is {wanted}." if wanted else f"No source is registered{where}.")
        return
    fixed = {"no_wrap": True}
    several = len({item.project_module for item, _, _ in found}) > 1
    rows = table(
        *([("project", fixed)] if several else []),
        ("source", fixed),
        ("state", fixed),
        ("checked (UTC)", fixed),
        ("drops", fixed),
        ("reason", {"ratio": 1}),
    )
    rows.expand = True
    for item, execution, state in found:
        current = execution if state.word in {Word.RUNNING, Word.COMPLETED, Word.FAILED} else None
        rows.add_row(
            *([cell(item.project_module)] if several else []),
            cell(item.source_identifier, "bold"),
            word_text(state.word),
            cell(when(item.last_checked_at, now=now)),
            drops_text(current.drop_counts if current else None),
            cell(_reason(state) or " "),
        )
    out.print(rows)
    if more:
        out.print(cell(f"Only the first {len(found):,} are shown; --limit 0 shows all.", "dim"))


def _reason(state: SourceState) -> str:
    code = f"{state.code}: " if state.word in {Word.HELD, Word.DISCOVERY_FAILED} and state.code else ""
    return code + shortened(state.detail or "")


def _summary(item: Source, execution: Execution | None, state: SourceState) -> dict[str, Any]:
    return {
        "project_id": item.project_module,
        "source_identifier": item.source_identifier,
        "state": state.word,
        "code": state.code,
        "detail": state.detail,
        "enabled": item.enabled,
        "ra_deg": item.ra_deg,
        "dec_deg": item.dec_deg,
        "last_checked_at": item.last_checked_at,
        "last_outcome": item.last_outcome,
        "discovery_signature": item.discovery_signature,
        "last_executed_discovery_signature": item.last_executed_discovery_signature,
        "workflow_run_pending": item.workflow_run_pending,
        "execution_id": execution.id if execution else None,
        "execution_status": execution.status if execution else None,
        "drops": execution.drop_counts if execution else None,
    }


@source.command("show")
@PROJECT
@click.argument("name")
@pass_context
def show(context: Context, project_id: str, name: str) -> None:
    """All that is known about a source: metadata, signatures, readiness, executions."""
    with context.ledger.read() as conn:
        projects.active(conn, project_id)
        page = load(conn, project_id, name)
    emit(context, page.as_dict(), lambda out: show_source(out, page, now=context.clock.now()))


@source.command("discover")
@PROJECT
@click.argument("names", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="All enabled sources of the survey.")
@pass_context
def discover(context: Context, project_id: str, names: tuple[str, ...], *, everything: bool) -> None:
    """Ask for a look at sources at the next discovery tick, however short ago the last one was."""
    if bool(names) == everything:
        raise click.UsageError("give names, or --all", ctx=click.get_current_context())
    wanted = None if everything else list(dict.fromkeys(names))
    marked = context.platform.registry.mark_for_discovery(project_id, wanted, actor=context.actor)
    data = {"project_id": project_id, "asked": wanted, "marked": marked}

    def people(out: Console) -> None:
        out.print(f"{number(marked, 'source')} will be looked at at the next discovery tick.")
        skipped = len(wanted) - marked if wanted is not None else 0
        if skipped:
            out.print(cell(f"{number(skipped, 'source')} not: disabled sources are not looked at.", "yellow"))

    emit(context, data, people)
