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
from beampipe_dagster.cli.execution_control import SOURCE_COMMANDS
from beampipe_dagster.cli.render import cell, emit, facts, number, table, when
from beampipe_dagster.cli.source_file import STDIN, read_sources
from beampipe_dagster.cli.source_priority import prioritize
from beampipe_dagster.cli.source_staleness import set_staleness
from beampipe_dagster.cli.source_sweep import sweep
from beampipe_dagster.cli.source_view import load, show_source
from beampipe_dagster.ledger import projects, sources
from beampipe_dagster.ledger.execution_values import Execution
from beampipe_dagster.ledger.sources import NewSource, Source
from beampipe_dagster.sandbox.terminal import shortened
from beampipe_dagster.sandbox.watch import drops_text, word_text
from beampipe_dagster.sources.explain import explain
from beampipe_dagster.sources.registry import Registered
from beampipe_dagster.sources.status import SourceState, Word, describe, latest_executions

PAGE: Final = 500
LIMIT: Final = 500
_NAMES_SHOWN: Final = 10
_CODED: Final = frozenset({Word.HELD, Word.DISCOVERY_FAILED, Word.QUARANTINED})
"""States whose reason begins with its code."""

SOURCE_FILE: Final = click.Path(path_type=Path, dir_okay=False, allow_dash=True)
PROJECT = click.option("-p", "--project", "project_id", required=True, metavar="NAME", help="The survey.")


@click.group(cls=Group)
def source() -> None:
    """Sources: who is to be processed, and what each of them is doing."""


source.add_command(sweep)
source.add_command(prioritize)
for command in SOURCE_COMMANDS:
    source.add_command(command)
source.add_command(set_staleness)


@source.command("register")
@PROJECT
@click.argument("names", nargs=-1)
@click.option(
    "--file",
    type=SOURCE_FILE,
    help="One name a line, CSV with the header source_identifier,ra_deg,dec_deg (degrees, ICRS), or a JSON list of "
    "objects with these; - reads standard input.",
)
@click.option("--disabled", is_flag=True, help="Known, but neither looked at nor executed.")
@click.option(
    "--discover/--no-discover",
    default=True,
    show_default=True,
    help="Look at all of them at the next tick, also at those that were looked at not long ago.",
)
@click.option("--priority", type=int, metavar="N", help="Higher ones are executed first; 0 unless given.")
@click.option("--skip-refused", "skip", is_flag=True, help="Register the others when a source is refused.")
@pass_context
def register(
    context: Context,
    project_id: str,
    names: tuple[str, ...],
    *,
    file: Path | None,
    disabled: bool,
    discover: bool,
    skip: bool,
    priority: int | None,
) -> None:
    """Register sources with a survey, all of them or none.

    Registering a source again changes its position and whether it is enabled, nothing else; what is as it was
    before is only counted.
    """
    if not names and file is None:
        raise click.UsageError("give names, or a --file", ctx=click.get_current_context())
    new = [NewSource(name, enabled=not disabled) for name in names]
    if file is not None:
        new += read_sources(file, enabled=not disabled)
    registry = context.platform.registry
    done = registry.register(project_id, new, actor=context.actor, skip_refused=skip)
    if priority is not None:
        registered = [*done.added, *done.updated, *done.known]
        context.platform.admission.prioritize(project_id, registered, priority, actor=context.actor)
    marked = 0
    if discover and not disabled:
        # New ones were never looked at, which makes them due by itself.
        on = {item.source_identifier for item in new if item.enabled}
        marked = len(on.intersection(done.added))
        before = [name for name in (*done.updated, *done.known) if name in on]
        marked += registry.mark_for_discovery(project_id, before, actor=context.actor) if before else 0
    data = {
        "project_id": project_id,
        "added": done.added,
        "updated": done.updated,
        "known": done.known,
        "refused": done.refused,
        "enabled": not disabled,
        "marked_for_discovery": marked,
    }

    emit(context, data, lambda out: _show_registered(out, project_id, done, marked, off=disabled))


def _show_registered(out: Console, project_id: str, done: Registered, marked: int, *, off: bool) -> None:
    words = " (disabled)" if off else ""
    if done.added:
        out.print(f"Added {number(len(done.added), 'source')} to {project_id}{words}: {_few(done.added)}")
    if done.updated:
        out.print(f"Changed {number(len(done.updated), 'known source')}{words}: {_few(done.updated)}")
    if done.known:
        out.print(f"{number(len(done.known), 'source')} known before: {_few(done.known)}")
    for reason in list(done.refused.values())[:_NAMES_SHOWN]:
        out.print(cell(f"Refused: {reason}", "yellow"))
    if len(done.refused) > _NAMES_SHOWN:
        out.print(cell(f"Refused {len(done.refused):,} sources in all; --json lists them.", "yellow"))
    if marked:
        out.print("They are looked at at the next discovery tick.")


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
        "failed": frozenset({Word.FAILED, Word.DISCOVERY_FAILED, Word.QUARANTINED}),
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
    code = f"{state.code}: " if state.word in _CODED and state.code else ""
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


@source.command("explain")
@PROJECT
@click.argument("name")
@pass_context
def why(context: Context, project_id: str, name: str) -> None:
    """Why a source is not running, what happens next, and what you can do."""
    limit = context.settings.execution_max_in_flight
    with context.ledger.read() as conn:
        found = explain(conn, project_id, name, now=context.clock.now(), max_in_flight=limit)

    def people(out: Console) -> None:
        out.print(cell(f"{name}: {found.answer.sentence}. [{found.answer.code}]", "bold"), soft_wrap=True)
        out.print(facts([("next", found.answer.next), ("you can", found.answer.operator)]))
        for reason in found.also:
            out.print(cell(f"Also: {reason.sentence}. [{reason.code}]", "dim"), soft_wrap=True)

    emit(context, found, people)


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


@source.command("enable")
@PROJECT
@click.argument("names", nargs=-1)
@click.option("--file", type=SOURCE_FILE, help="Names as for register; - reads standard input.")
@pass_context
def enable(context: Context, project_id: str, names: tuple[str, ...], *, file: Path | None) -> None:
    """Let discovery and execution touch sources; ends their quarantine."""
    wanted = _wanted(names, file)
    changed = context.platform.registry.enable(project_id, wanted, actor=context.actor)
    _show_changed(context, project_id, wanted, changed, "enabled")


@source.command("disable")
@PROJECT
@click.argument("names", nargs=-1)
@click.option("--file", type=SOURCE_FILE, help="Names as for register; - reads standard input.")
@pass_context
def disable(context: Context, project_id: str, names: tuple[str, ...], *, file: Path | None) -> None:
    """Keep discovery and execution from sources; what has begun goes on."""
    wanted = _wanted(names, file)
    changed = context.platform.registry.disable(project_id, wanted, actor=context.actor)
    _show_changed(context, project_id, wanted, changed, "disabled")


@source.command("delete")
@PROJECT
@click.argument("names", nargs=-1)
@click.option("--file", type=SOURCE_FILE, help="Names as for register; - reads standard input.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@pass_context
def delete(
    context: Context, project_id: str, names: tuple[str, ...], *, file: Path | None, yes: bool
) -> None:
    """Take sources out of the registry; their metadata, executions and story are kept.

    A source that an execution or a discovery holds is not deleted. One that is registered again begins afresh.
    """
    wanted = _wanted(names, file)
    if not yes:
        if context.json or (file is not None and str(file) == STDIN):
            raise click.UsageError("give --yes: nobody can be asked", ctx=click.get_current_context())
        click.confirm(
            f"Delete {number(len(wanted), 'source')} of {project_id} ({_few(wanted)})?", abort=True, err=True
        )
    gone = context.platform.registry.delete(project_id, wanted, actor=context.actor)
    _show_changed(context, project_id, wanted, gone, "deleted")


def _wanted(names: tuple[str, ...], file: Path | None) -> list[str]:
    if not names and file is None:
        raise click.UsageError("give names, or a --file", ctx=click.get_current_context())
    listed = [] if file is None else [item.source_identifier for item in read_sources(file, enabled=True)]
    return list(dict.fromkeys([*names, *listed]))


def _show_changed(
    context: Context, project_id: str, wanted: Sequence[str], changed: Sequence[str], word: str
) -> None:
    fresh = set(changed)
    same = [name for name in wanted if name not in fresh]

    def people(out: Console) -> None:
        if changed:
            out.print(
                f"{word.capitalize()} {number(len(changed), 'source')} of {project_id}: {_few(changed)}"
            )
        if same:
            out.print(cell(f"{number(len(same), 'source')} {word} before: {_few(same)}", "dim"))

    emit(context, {"project_id": project_id, word: list(changed), "unchanged": same}, people)
