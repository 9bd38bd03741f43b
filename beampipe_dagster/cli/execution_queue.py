"""``beampipe execution queue``, ``prepare`` and ``launch``: what waits, what would happen, and asking for it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Final

import click
from rich.console import Console

from beampipe_dagster.cli.core import Command, Context, pass_context
from beampipe_dagster.cli.render import DIGITS, cell, emit, facts, number, section, table, when
from beampipe_dagster.config.canonical import JsonValue
from beampipe_dagster.execution.options import LaunchOptions
from beampipe_dagster.execution.prepare import Prepared, PreparedExecution
from beampipe_dagster.execution.request import LaunchRequest, Problem
from beampipe_dagster.ledger import projects
from beampipe_dagster.sandbox.terminal import age_text, shortened
from beampipe_dagster.sources.queue import Queue, Waiting, caps_words, queue_of

LIMIT: Final = 50


@click.command("queue", cls=Command)
@click.argument("project_id", metavar="[PROJECT]", required=False)
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    default=LIMIT,
    show_default=True,
    help="Sources of a survey at most.",
)
@pass_context
def queue(context: Context, project_id: str | None, limit: int) -> None:
    """What waits for an execution: in which order, why not yet, when it may run."""
    now = context.clock.now()
    with context.ledger.read() as conn:
        wanted = (
            [project_id]
            if project_id is not None
            else [revision.project_id for revision in projects.all_active(conn)]
        )
        found = [queue_of(conn, name, now=now, limit=limit) for name in wanted]
    data = {
        "total": sum(one.total for one in found),
        "surveys": [one.as_dict() for one in found],
    }

    def people(out: Console) -> None:
        if not found:
            out.print("There is no survey yet.")
        for one in found:
            _show_queue(out, one, now)

    emit(context, data, people)


def _show_queue(out: Console, found: Queue, now: datetime) -> None:
    automatic = "" if found.automatic else ", which executes nothing by itself"
    head = f"{number(found.total, 'source')} of {found.project_id}{automatic}"
    out.print(cell(f"{head} {'waits' if found.total == 1 else 'wait'} for an execution.", "bold"))
    if found.tick is not None:
        tick = found.tick
        ago = age_text((now - tick.last_seen_at).total_seconds())
        times = f", {tick.seen_count:,} times in a row" if tick.seen_count > 1 else ""
        what = f"admitted {tick.admitted}" if tick.admitted else "admitted nothing"
        why = f": {tick.message or tick.reason.replace('_', ' ')} [{tick.reason}]" if tick.reason else ""
        out.print(
            facts(
                [
                    ("last tick", f"{ago} ago, {what}{why}{times}"),
                    ("caps", caps_words(tick.caps) or None),
                    ("profile", tick.profile),
                ]
            )
        )
    else:
        out.print(cell("No tick has decided anything yet: does the survey's execution tick run?", "yellow"))
    if not found.waiting:
        return
    out.print(_rows(found.waiting, now))
    if found.total > len(found.waiting):
        out.print(cell(f"Only the first {len(found.waiting):,} are shown; see --limit.", "dim"))


def _rows(waiting: Sequence[Waiting], now: datetime) -> object:
    fixed = {"no_wrap": True}
    right = {"justify": "right"}
    priorities = any(one.priority for one in waiting)
    rows = table(
        ("turn", right),
        ("source", fixed),
        *([("priority", right)] if priorities else []),
        ("waits for", right),
        ("may run (UTC)", fixed),
        ("why not yet", {"ratio": 1}),
    )
    rows.expand = True
    for one in waiting:
        waits = age_text((now - one.since).total_seconds()) if one.since else " "
        rows.add_row(
            str(one.position) if one.position else "-",
            cell(one.source_identifier, "bold"),
            *([str(one.priority)] if priorities else []),
            waits,
            when(one.may_run_at, now=now) if one.may_run_at else " ",
            cell(shortened(f"{one.code}: {one.reason}"), "" if one.position else "yellow"),
        )
    return rows


@click.command("prepare", cls=Command)
@click.argument("project_id", metavar="PROJECT")
@click.argument("names", metavar="[SOURCE]...", nargs=-1)
@click.option("--profile", metavar="NAME", help="A deployment profile; by default the survey's.")
@pass_context
def prepare(context: Context, project_id: str, names: tuple[str, ...], *, profile: str | None) -> None:
    """What would run now, and what speaks against it; nothing is changed.

    Without sources, all that are pending. The exit code is 0 whatever is found: see "ready" in --json.
    """
    from beampipe_dagster.execution.prepare import Preparation  # noqa: PLC0415  # start-up time

    look = Preparation(
        ledger=context.ledger,
        clock=context.clock,
        max_in_flight=context.settings.execution_max_in_flight,
    )
    found = look.prepare(project_id, list(names) or None, profile=profile)
    emit(context, found.as_dict(), lambda out: _show_prepared(out, found))


def _show_prepared(out: Console, found: Prepared) -> None:
    if not found.sources:
        out.print(f"No source of {found.project_id} is pending.")
    else:
        runs = number(len(found.executions), "execution")
        word = "can run now" if found.ready else "cannot all run now"
        out.print(
            cell(
                f"{number(len(found.sources), 'source')}, {runs}, {number(found.datasets, 'dataset')}: {word}.",
                "bold",
            )
        )
    out.print(
        facts(
            [
                ("survey", f"{found.project_id} r{found.version}"),
                ("profile", found.profile),
                ("caps", caps_words(found.caps) or None),
            ]
        )
    )
    _show_problems(out, found.problems)
    for one in found.sources:
        _show_problems(out, one.problems)
    for run in found.executions:
        section(out, run.partition_key, facts(_facts(run)))
        _show_problems(out, run.problems)


def _facts(run: PreparedExecution) -> list[tuple[str, object]]:
    many = len(run.sources) > 1
    pairs: list[tuple[str, object]] = [
        ("sources", shortened(", ".join(run.sources)) if many else None),
        ("datasets", run.datasets),
        ("manifest", run.manifest_sha256[:DIGITS] if run.manifest_sha256 else None),
        ("graph", f"{run.graph_sha256[:DIGITS]}, {run.nodes} nodes" if run.graph_sha256 else None),
    ]
    return [*pairs, *((one.severity.value, f"{one.message} [{one.code}]") for one in run.findings)]


def _show_problems(out: Console, problems: Sequence[Problem]) -> None:
    for problem in problems:
        out.print(cell(f"  {problem.message} [{problem.code}]", "yellow"), soft_wrap=True)
        if problem.hint:
            out.print(cell(f"    {problem.hint}", "dim"), soft_wrap=True)


@click.command("launch", cls=Command)
@click.argument("project_id", metavar="PROJECT")
@click.argument("names", metavar="SOURCE...", nargs=-1, required=True)
@click.option("--profile", metavar="NAME", help="A deployment profile; by default the survey's.")
@click.option(
    "--idempotency-key",
    "key",
    metavar="KEY",
    help="1 to 128 visible ASCII characters: the same key and request give the same execution.",
)
@click.option("--no-submit", is_flag=True, help="End with the physical graph; nothing is run.")
@click.option(
    "--stage/--no-stage", default=None, help="Stage the data, or not; by default as the survey says."
)
@click.option("--force", is_flag=True, help="Overrule the caps of the survey and of the platform.")
@pass_context
def launch(
    context: Context,
    project_id: str,
    names: tuple[str, ...],
    *,
    profile: str | None,
    key: str | None,
    no_submit: bool,
    stage: bool | None,
    force: bool,
) -> None:
    """Launch one execution over the current signatures of sources, all or none.

    It counts in every cap. The survey's execution tick starts its run.
    """
    options = LaunchOptions(do_stage=stage, do_submit=not no_submit)
    request = LaunchRequest(
        project_id, names, context.actor, profile=profile, options=options, key=key, force=force
    )
    done = context.platform.admission.launch(request)
    run = done.execution
    data: dict[str, JsonValue] = {
        "execution_id": run.id,
        "project_id": run.project_module,
        "partition_key": run.partition_key,
        "sources": [*run.source_identifiers],
        "status": run.status.value,
        "options": options.as_json(),
        "replayed": done.replayed,
    }

    def people(out: Console) -> None:
        if done.replayed:
            out.print(f"The same request launched execution {run.id} before; it is {run.status.value}.")
        else:
            out.print(f"Launched execution {run.id} of {run.partition_key}.")
        out.print(cell(f"Follow it: beampipe execution show {run.id}", "dim"))

    emit(context, data, people)
