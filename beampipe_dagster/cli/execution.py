"""``beampipe execution``: what runs and what ran."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Any, Final

import click
from rich.console import Console
from sqlalchemy.engine import Connection

from beampipe_dagster.cli.core import Context, Group, pass_context
from beampipe_dagster.cli.execution_control import EXECUTION_COMMANDS
from beampipe_dagster.cli.execution_queue import launch, prepare, queue
from beampipe_dagster.cli.execution_verify import verify
from beampipe_dagster.cli.execution_view import load, show_execution
from beampipe_dagster.cli.render import cell, emit, facts, section, short_ids, table, when
from beampipe_dagster.config.canonical import canonical_json
from beampipe_dagster.config.project import ProjectConfig
from beampipe_dagster.errors import InputError, NotFoundError
from beampipe_dagster.ledger import artifacts, executions, projects
from beampipe_dagster.ledger.execution_values import Execution
from beampipe_dagster.ledger.states import ACTIVE, ArtifactKind
from beampipe_dagster.ledger.tables import batch_execution_record as record
from beampipe_dagster.sandbox.terminal import age_text, shortened
from beampipe_dagster.sandbox.watch import drops_text, word_text
from beampipe_dagster.sources.status import stage

LIMIT: Final = 50
CANDIDATES: Final = 10
FILE_NAMES: Final = {
    ArtifactKind.MANIFEST: "manifest.json",
    ArtifactKind.SOURCE_GRAPH: "source.graph",
    ArtifactKind.PATCHED_GRAPH: "patched.graph",
    ArtifactKind.PHYSICAL_GRAPH: "physical.pg.graph",
}
"""Documents of an execution, and the files that they are written to."""
WIDE: Final = 130
"""Columns from which on the reasons fit beside the executions; below, they are under them."""


def resolve(conn: Connection, prefix: str) -> Execution:
    """The execution whose identifier begins with ``prefix``.

    Raises
    ------
    InputError
        ``invalid_execution_id``; ``execution_ambiguous`` with the candidates.
    NotFoundError
        ``execution_not_found``.
    """
    wanted = prefix.strip().lower()
    if not re.fullmatch(r"[0-9a-f-]{1,36}", wanted):
        raise InputError(
            f"{prefix[:60]!r} cannot be the beginning of an execution's identifier",
            code="invalid_execution_id",
            hint="give some of its first characters (hex digits and dashes), as in: beampipe execution list",
        )
    found = executions.select(
        conn,
        record.c.id.startswith(wanted, autoescape=True),
        limit=CANDIDATES + 1,
        newest_first=True,
        light=True,
    )
    if not found:
        raise NotFoundError(
            f"there is no execution {prefix}",
            code="execution_not_found",
            hint="list them: beampipe execution list",
        )
    if len(found) > 1:
        listed = "\n".join(
            f"  {item.id}  {item.status.value:<12} {item.partition_key}" for item in found[:CANDIDATES]
        )
        more = "\n  and more" if len(found) > CANDIDATES else ""
        raise InputError(
            f"several executions begin with {prefix}:\n{listed}{more}",
            code="execution_ambiguous",
            hint="give more characters",
            details={"candidates": [item.id for item in found[:CANDIDATES]]},
        )
    return executions.get(conn, found[0].id)


@click.group(cls=Group)
def execution() -> None:
    """Executions: one signature on its way through DALiuGE."""


for command in (queue, prepare, launch, verify, *EXECUTION_COMMANDS):
    execution.add_command(command)


@execution.command("list")
@click.option("-p", "--project", "project_id", metavar="NAME", help="The survey; all without it.")
@click.option("--active", is_flag=True, help="Only those that have not ended.")
@click.option("--limit", type=click.IntRange(min=1), default=LIMIT, show_default=True, help="Newest at most.")
@pass_context
def listing(context: Context, project_id: str | None, limit: int, *, active: bool) -> None:
    """The newest executions."""
    conditions = []
    with context.ledger.read() as conn:
        if project_id is not None:
            projects.active(conn, project_id)
            conditions.append(record.c.project_module == project_id)
        if active:
            conditions.append(record.c.status.in_([status.value for status in ACTIVE]))
        found = executions.select(conn, *conditions, limit=limit + 1, newest_first=True, light=True)
    more, found = len(found) > limit, found[:limit]
    data = {"executions": [_summary(item) for item in found], "truncated": more}

    def people(out: Console) -> None:
        if not found:
            out.print("No execution is active." if active else "There is no execution yet.")
            return
        _show_list(out, found, context.clock.now())
        if more:
            out.print(cell(f"Only the newest {limit:,} are shown; see --limit.", "dim"))

    emit(context, data, people)


def _show_list(out: Console, found: Sequence[Execution], now: datetime) -> None:
    short = short_ids(item.id for item in found)
    several = len({item.project_module for item in found}) > 1
    beside = out.width >= WIDE
    fixed = {"no_wrap": True}
    rows = table(
        ("execution", fixed),
        *([("project", fixed)] if several else []),
        ("partition", fixed),
        ("status", fixed),
        ("drops", fixed),
        ("began (UTC)", fixed),
        ("took", fixed),
        *([("reason", {"ratio": 1})] if beside else []),
    )
    rows.expand = beside
    reasons: list[tuple[str, object]] = []
    for item in found:
        reason = shortened(item.last_error or ("" if item.terminal else stage(item)))
        if reason:
            reasons.append((short[item.id], reason))
        rows.add_row(
            cell(short[item.id], "bold"),
            *([cell(item.project_module)] if several else []),
            cell(item.partition_key),
            word_text(item.status),
            drops_text(item.drop_counts),
            when(item.created_at, now=now),
            age_text(((item.completed_at or now) - item.created_at).total_seconds()),
            *([cell(reason or " ")] if beside else []),
        )
    out.print(rows)
    if reasons and not beside:
        section(out, "Reasons", facts(reasons))


def _summary(item: Execution) -> dict[str, Any]:
    return {
        "id": item.id,
        "project_id": item.project_module,
        "partition_key": item.partition_key,
        "sources": item.source_identifiers,
        "status": item.status,
        "control_phase": item.control_phase,
        "submission_state": item.submission_state,
        "daliuge_state": item.daliuge_state,
        "daliuge_session_id": item.daliuge_session_id,
        "drops": item.drop_counts,
        "terminal_outcome": item.terminal_outcome,
        "last_error": item.last_error,
        "last_error_code": item.last_error_code,
        "created_by": item.created_by,
        "created_at": item.created_at,
        "started_at": item.started_at,
        "completed_at": item.completed_at,
    }


@execution.command("show")
@click.argument("identifier", metavar="ID")
@pass_context
def show(context: Context, identifier: str) -> None:
    """An execution: status, axes, phases, artifacts, drops; with --json also its run record.

    ID is any unique beginning of its identifier.
    """
    with context.ledger.read() as conn:
        page = load(conn, resolve(conn, identifier))
    now = context.clock.now()
    emit(context, page.as_dict(now), lambda out: show_execution(out, page, now=now))


@execution.command("artifact")
@click.argument("execution_id", metavar="ID")
@click.argument("kind", type=click.Choice([kind.value for kind in FILE_NAMES]))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    help="Write it below this directory instead of printing it; a manifest goes to the survey's manifest.path.",
)
@pass_context
def artifact(context: Context, execution_id: str, kind: str, output: Path | None) -> None:
    """A document of an execution: its manifest, or its graph at any stage."""
    with context.ledger.read() as conn:
        run = resolve(conn, execution_id)
        found = artifacts.describe(conn, run.id, ArtifactKind(kind))
        document = artifacts.load(conn, found.id)
        spec = projects.revision(conn, run.project_config_id).spec
    if output is None:
        click.echo(json.dumps(document, indent=None if context.json else 2, ensure_ascii=False))
        return
    target = output / _file_name(ArtifactKind(kind), ProjectConfig.from_json(spec))
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(canonical_json(document), encoding="utf-8")
    data = {"file": str(target), "sha256": found.sha256, "size_bytes": found.size_bytes}
    emit(context, data, lambda out: out.print(f"Wrote {target} ({found.size_bytes:,} bytes)", soft_wrap=True))


def _file_name(kind: ArtifactKind, config: ProjectConfig) -> str:
    """Where a document is written to, below the directory that was asked for.

    Raises
    ------
    InputError
        ``unsafe_manifest_path``: the survey's path leads out of the directory.
    """
    if kind is not ArtifactKind.MANIFEST or config.manifest is None:
        return FILE_NAMES[kind]
    path = PurePosixPath(config.manifest.path)
    if path.is_absolute() or ".." in path.parts or not path.name:
        raise InputError(
            f"manifest.path {config.manifest.path!r} of {config.metadata.id!r} leads out of the directory",
            code="unsafe_manifest_path",
            hint="give a relative path without '..' in the survey's YAML, or print the manifest without --output",
        )
    return str(path)
