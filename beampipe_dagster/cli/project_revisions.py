"""``beampipe project activate|history|diff|impact|explain|schema``: revisions of surveys, and their form."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from beampipe_dagster.cli.core import Context, Group, pass_context
from beampipe_dagster.cli.render import DIGITS, cell, emit, number, section, table, when
from beampipe_dagster.config.schema import profile_schema, project_schema
from beampipe_dagster.errors import InputError
from beampipe_dagster.execution.explain import Explanation
from beampipe_dagster.execution.impact import Impact
from beampipe_dagster.execution.revision_diff import MEANINGS
from beampipe_dagster.execution.revisions import Activated, RevisionDiff, RevisionEntry, RevisionService
from beampipe_dagster.ids import UuidIds
from beampipe_dagster.sandbox.terminal import clean

if TYPE_CHECKING:
    from beampipe_dagster.config.diagnostics import Diagnostic
    from beampipe_dagster.execution.graph_lint import Finding

NAMES_SHOWN = 10
"""Sources that the page about an impact names."""


def register(group: Group) -> None:
    """Add the commands of this module to ``beampipe project``."""
    for command in (activate, history, diff, impact, explain, schema):
        group.add_command(command)


def show_notes(out: Console, warnings: Sequence[Diagnostic], findings: Sequence[Finding] = ()) -> None:
    """Warnings about a revision, and findings about its patches, one below the other."""
    for warning in warnings:
        _note(out, f"warning[{warning.code}]", f"{warning.path}: {warning.message}", warning.hint)
    for finding in findings:
        _note(out, f"{finding.severity}[{finding.code}]", finding.message, finding.hint)


def _note(out: Console, head: str, message: str, hint: str | None) -> None:
    out.print(Text.assemble((head, "yellow"), "  ", clean(message)), soft_wrap=True)
    if hint:
        out.print(Padding(Text.assemble(("hint: ", "cyan"), clean(hint)), (0, 0, 0, 2)))


@click.command("activate", cls=Group.command_class)
@click.argument("name")
@click.argument("version", type=click.IntRange(min=1))
@pass_context
def activate(context: Context, name: str, version: int) -> None:
    """Make a stored revision the active one: the way back, or forth again.

    Executions that are on their way keep the revision that they were admitted with.
    """
    platform = context.platform
    service = RevisionService(ledger=platform.ledger, clock=platform.clock, ids=platform.ids)
    done = service.activate(name, version, actor=context.actor)
    emit(context, done.as_dict(), lambda out: _show_activated(out, done))


def _show_activated(out: Console, done: Activated) -> None:
    show_notes(out, done.warnings)
    revision = done.revision
    digest = revision.spec_sha256[:DIGITS]
    if done.changed:
        out.print(f"{revision.project_id} is at revision {revision.version} now ({digest}).")
        out.print(f"Before, it was at {done.previous.version}. The way back is:")
        out.print(
            f"  beampipe project activate {revision.project_id} {done.previous.version}", soft_wrap=True
        )
    else:
        out.print(f"{revision.project_id} is at revision {revision.version} already ({digest}).")


def _looking(context: Context) -> RevisionService:
    return RevisionService(ledger=context.ledger, clock=context.clock, ids=UuidIds())


@click.command("history", cls=Group.command_class)
@click.argument("name")
@pass_context
def history(context: Context, name: str) -> None:
    """Every revision of a survey: when it was active, and what was run with it."""
    entries = _looking(context).history(name)
    data = {"project_id": name, "revisions": [entry.as_dict() for entry in entries]}
    emit(context, data, lambda out: _show_history(out, entries))


def _show_history(out: Console, entries: Sequence[RevisionEntry]) -> None:
    right = {"justify": "right"}
    rows = table(
        ("revision", right),
        "",
        "added (UTC)",
        "digest",
        "graph",
        "activated (UTC)",
        "by",
        ("executions", right),
        ("in flight", right),
    )
    for entry in entries:
        revision = entry.revision
        last = entry.activations[-1] if entry.activations else None
        again = f" ({len(entry.activations)} times)" if len(entry.activations) > 1 else ""
        rows.add_row(
            str(revision.version),
            cell("active" if revision.active else " ", "green"),
            when(revision.created_at),
            cell(revision.spec_sha256[:DIGITS]),
            cell((revision.graph_sha256 or "")[:DIGITS]),
            cell(f"{when(last.at)}{again}" if last else None),
            cell(last.actor if last else None),
            f"{entry.executions:,}",
            f"{entry.in_flight:,}",
        )
    out.print(rows)


@click.command("diff", cls=Group.command_class)
@click.argument("name")
@click.argument("old", type=click.IntRange(min=1), required=False)
@click.argument("new", type=click.IntRange(min=1), required=False)
@click.option("--text/--no-text", "with_text", default=True, help="Show the lines that changed too.")
@pass_context
def diff(context: Context, name: str, old: int | None, new: int | None, *, with_text: bool) -> None:
    """What two revisions differ in, and what that means.

    With one revision it is compared with the active one. NAME may be a project file: then the file is compared
    with the active revision of its survey.
    """
    service = _looking(context)
    if (path := _as_file(name)) is not None:
        if old is not None:
            raise InputError(
                "a file is compared with the active revision; it takes no number",
                code="usage",
                hint="give the file alone",
            )
        found = service.diff_file(path)
    elif old is None:
        raise InputError(
            "which revision? give its number, or a project file instead of the name",
            code="usage",
            hint=f"beampipe project history {name} lists them",
        )
    else:
        found = service.diff(name, old, new)
    emit(context, found.as_dict(), lambda out: _show_diff(out, found, with_text=with_text))


def _as_file(name: str) -> Path | None:
    """The path when a project file is meant rather than a survey's name."""
    meant = "/" in name or name.endswith((".yaml", ".yml", ".json"))
    return Path(name) if meant else None


def _show_diff(out: Console, found: RevisionDiff, *, with_text: bool) -> None:
    out.print(Text(f"{clean(found.project_id)}: {clean(found.old)} → {clean(found.new)}", style="bold"))
    if not found.diff.changes:
        out.print("They mean the same.")
    for change in found.diff.changes:
        out.print(Text.assemble((change.path, "cyan"), "  ", clean(change.message)), soft_wrap=True)
        for effect in change.effects:
            out.print(Padding(Text(MEANINGS[effect], style="dim"), (0, 0, 0, 2)))
    if with_text and found.diff.text:
        out.print()
        styles = {"+": "green", "-": "red", "@": "cyan"}
        for line in found.diff.text.splitlines():
            out.print(Text(clean(line), style=styles.get(line[:1], "")), soft_wrap=True)


@click.command("impact", cls=Group.command_class)
@click.argument("name")
@click.argument("version", type=click.IntRange(min=1), required=False)
@pass_context
def impact(context: Context, name: str, version: int | None) -> None:
    """Which sources a revision would run again, from the ledger's rows alone.

    NAME is a project file that is not added yet, or a survey with the VERSION to go to. No archive is asked,
    and nothing changes.
    """
    service = _looking(context)
    path = _as_file(name)
    if path is not None and version is None:
        found = service.impact_of_file(path)
    elif path is None and version is not None:
        found = service.impact_of_version(name, version)
    else:
        raise InputError(
            "give a project file, or a survey's name and the revision to go to",
            code="usage",
            hint="for example: beampipe project impact survey.yaml",
        )
    emit(context, found.as_dict(), lambda out: _show_impact(out, found))


def _show_impact(out: Console, found: Impact) -> None:
    head = f"{found.changed:,} of {number(found.compared, 'source')} with data would get a new signature"
    out.print(Text(f"{head}; {found.would_run:,} would run.", style="yellow" if found.changed else "green"))
    if found.changed:
        when_words = (
            "at their next discovery, without being asked" if found.automatic else "when they are asked for"
        )
        out.print(f"They run {when_words}.")
    for code, count in (*found.blocked.items(), *found.failed.items()):
        out.print(f"  {count:,}: {code}")
    if found.examples:
        rows = table("source", "signature", "would be", "would run")
        for one in found.examples[:NAMES_SHOWN]:
            rows.add_row(
                cell(one.source_identifier),
                cell(one.old_signature[:DIGITS]),
                cell(one.new_signature[:DIGITS]),
                cell("yes" if one.blocker is None else f"no: {one.blocker}"),
            )
        out.print(rows)
        if found.changed > NAMES_SHOWN:
            out.print(f"… and {found.changed - NAMES_SHOWN:,} more")
    if found.unknown:
        out.print()
        out.print("What stored rows cannot say:")
        for sentence in found.unknown:
            out.print(Padding(Text(f"- {clean(sentence)}"), (0, 0, 0, 2)))


@click.command("explain", cls=Group.command_class)
@click.argument("name")
@click.option("--revision", type=click.IntRange(min=1), help="Another revision than the active one.")
@click.option("--source", help="The source that is filled into the queries.")
@pass_context
def explain(context: Context, name: str, revision: int | None, source: str | None) -> None:
    """What a survey does, in plain words. NAME may be a project file that is not added yet."""
    service = _looking(context)
    path = _as_file(name)
    if path is not None:
        found = service.explain_file(path, source_identifier=source)
    else:
        found = service.explain(name, version=revision, source_identifier=source)
    emit(context, found.as_dict(), lambda out: _show_explanation(out, found))


def _show_explanation(out: Console, found: Explanation) -> None:
    out.print(Text(clean(found.project_id), style="bold"))
    for part in found.sections:
        lines = Text()
        for index, line in enumerate(part.lines):
            query = line.startswith("    ")
            lines.append(("\n" if index else "") + clean(line), style="cyan" if query else "")
        section(out, part.title, lines)


@click.command("schema", cls=Group.command_class)
@click.option("--profile", is_flag=True, help="The form of a deployment profile instead.")
@pass_context
def schema(context: Context, profile: bool) -> None:  # noqa: FBT001  # click hands options on by name
    """Print the JSON Schema of a survey's YAML, for an editor that checks while one types."""
    document = profile_schema() if profile else project_schema()
    emit(context, document, lambda out: out.print_json(data=document))
