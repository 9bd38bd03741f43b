"""``beampipe project``: surveys."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from sqlalchemy.engine import Connection

from beampipe_dagster.cli.core import EXIT_FAILED, Context, Group, pass_context
from beampipe_dagster.cli.diagnostics import show_report
from beampipe_dagster.cli.execution_control import PROJECT_COMMANDS
from beampipe_dagster.cli.project_health import health
from beampipe_dagster.cli.project_prune import prune
from beampipe_dagster.cli.project_revisions import register, show_notes
from beampipe_dagster.cli.render import DIGITS, cell, console, emit, facts, number, table, when
from beampipe_dagster.config.diagnostics import Diagnostic, Severity, ValidationReport
from beampipe_dagster.config.project import Automation, ProjectConfig
from beampipe_dagster.config.validation import load_project, project_advice, validate_project
from beampipe_dagster.config.yaml_loader import load_yaml
from beampipe_dagster.errors import BeampipeError, ConfigError
from beampipe_dagster.execution.profile_check import check_profile, named_profile
from beampipe_dagster.execution.projects import read_text
from beampipe_dagster.ledger import projects, sources
from beampipe_dagster.ledger.projects import ProjectRevision

FILE = click.Path(path_type=Path, dir_okay=False)


@click.group(cls=Group)
def project() -> None:
    """Surveys: what is looked for, and what is done with it."""


register(project)
project.add_command(health)
project.add_command(prune)
for command in PROJECT_COMMANDS:
    project.add_command(command)


@project.command("validate")
@click.argument("file", type=FILE)
@pass_context
def validate(context: Context, file: Path) -> int:
    """Check a survey's YAML and show every problem with its line.

    Where there is a ledger, the deployment profile that the survey names must be in it, and changes against the
    active revision that make sources run again are warned of. Exit code 1 when the file cannot be used.
    """
    text = read_text(file, what="project")
    report = validate_project(text, name=str(file))
    note: str | None = None
    if report.valid:
        report, note = _against_ledger(context, text, name=str(file))

    def people(out: Console) -> None:
        show_report(out, report, name=str(file), text=text)
        if note is not None:
            console(stderr=True).print(cell(f"note: {note}", "dim"))

    emit(context, report.as_dict(), people)
    return 0 if report.valid else EXIT_FAILED


def _against_ledger(context: Context, text: str, *, name: str) -> tuple[ValidationReport, str | None]:
    """The report about a valid file with what the ledger adds; a note where there is no ledger to ask."""
    config = load_project(text, name=name)
    advice = project_advice(text, name=name)
    found: tuple[Diagnostic, ...] = ()
    active, note = None, None
    try:
        with context.ledger.read() as conn:
            found = check_profile(conn, config, load_yaml(text, name=name))
            active = _active_config(conn, config.metadata.id)
    except BeampipeError as error:
        if (profile := named_profile(config)) is not None:
            note = f"the profile {profile!r} was not looked for: {error.message}"
    report = validate_project(text, name=name, active=active)
    errors = tuple(item for item in found if item.severity is Severity.ERROR)
    warnings = tuple(item for item in found if item.severity is Severity.WARNING)
    return replace(report, errors=errors, warnings=report.warnings + advice + warnings), note


def _active_config(conn: Connection, project_id: str) -> ProjectConfig | None:
    """The revision in use; one of another release cannot be compared with."""
    try:
        return ProjectConfig.from_json(projects.active(conn, project_id).spec)
    except BeampipeError:
        return None


@project.command("add")
@click.argument("file", type=FILE)
@pass_context
def add(context: Context, file: Path) -> int:
    """Store a survey's YAML and its graph as a new revision, and make it the active one.

    The same content again changes nothing.
    """
    try:
        added = context.platform.projects.add_project(file, actor=context.actor)
    except ConfigError as error:
        if error.code != "invalid_project" or context.json:
            raise
        text = read_text(file, what="project")
        show_report(console(stderr=True), validate_project(text, name=str(file)), name=str(file), text=text)
        return EXIT_FAILED
    revision = added.revision
    data = {
        **_summary(revision),
        "changed": added.changed,
        "warnings": [warning.as_dict() for warning in added.warnings],
        "findings": [finding.as_dict() for finding in added.findings],
    }

    def people(out: Console) -> None:
        show_notes(out, added.warnings, added.findings)
        words = f"is at revision {revision.version} now" if added.changed else "has not changed"
        out.print(f"{revision.project_id} {words} ({revision.spec_sha256[:DIGITS]}).")
        if added.changed and revision.version == 1:
            out.print(
                "A running Dagster shows a new survey after its code location was reloaded. Next:\n"
                f"  beampipe source register -p {revision.project_id} NAME...",
                soft_wrap=True,
            )

    emit(context, data, people)
    return 0


@project.command("list")
@pass_context
def listing(context: Context) -> None:
    """The surveys and their active revisions."""
    with context.ledger.read() as conn:
        found = projects.all_active(conn)
        counts = {item.project_id: sources.counts(conn, item.project_id) for item in found}
    data = [{**_summary(item), "sources": counts[item.project_id]} for item in found]

    def people(out: Console) -> None:
        if not found:
            out.print("No survey yet. Add one with: beampipe project add FILE")
            return
        right = {"justify": "right"}
        rows = table(
            "project",
            ("revision", right),
            "added (UTC)",
            ("sources", right),
            ("pending", right),
            ("on hold", right),
            "automation",
        )
        for item in found:
            count = counts[item.project_id]
            rows.add_row(
                cell(item.project_id, "bold"),
                str(item.version),
                when(item.created_at),
                f"{count['registered']:,}",
                f"{count['pending']:,}",
                cell(f"{count['held']:,}", "yellow" if count["held"] else ""),
                cell(_automation(ProjectConfig.from_json(item.spec).automation)),
            )
        out.print(rows)

    emit(context, {"projects": data}, people)


@project.command("show")
@click.argument("name")
@click.option("--yaml", "as_yaml", is_flag=True, help="The file as it was added.")
@pass_context
def show(context: Context, name: str, *, as_yaml: bool) -> None:
    """A survey's active revision: what it asks, runs and automates."""
    with context.ledger.read() as conn:
        revision = projects.active(conn, name)
        counts = sources.counts(conn, name)
    data: dict[str, Any] = {**_summary(revision), "sources": counts, "spec": revision.spec}
    if as_yaml:
        data["yaml"] = revision.source_text
        # As it is, so that it can be redirected into a file.
        emit(context, data, lambda _: click.echo(revision.source_text, nl=False))
        return
    config = ProjectConfig.from_json(revision.spec)
    emit(context, data, lambda out: out.print(facts(_facts(revision, config, counts))))


def _facts(
    revision: ProjectRevision, config: ProjectConfig, counts: dict[str, int]
) -> list[tuple[str, object]]:
    queries = [*config.discovery.queries, *config.discovery.enrichments]
    prepare = config.discovery.prepare_metadata
    graph = config.graph
    pin = f" ({(graph.sha256 or '')[:DIGITS]})" if graph else ""
    execution = config.automation.execution
    states = ", ".join(
        f"{counts[key]:,} {words}"
        for key, words in (("pending", "pending"), ("held", "on hold"))
        if counts[key]
    )
    return [
        ("project", revision.project_id),
        ("description", config.metadata.description),
        ("revision", f"{revision.version}, added {when(revision.created_at)} UTC"),
        ("digest", revision.spec_sha256),
        ("sources", f"{counts['registered']:,}" + (f" ({states})" if states else "")),
        ("archives", ", ".join(config.adapters.required)),
        ("queries", "\n".join(f"{query.name} ({query.adapter})" for query in queries) or None),
        ("flags", ", ".join(prepare.discovery_flags) if prepare and prepare.discovery_flags else None),
        ("graph", f"{graph.path or graph.url}{pin}" if graph else None),
        ("patches", number(len(config.graph_patches), "patch", "patches") if config.graph_patches else None),
        ("automation", _automation(config.automation)),
        ("profile", (execution.deployment_profile_name or "the default one") if execution else None),
    ]


def _automation(automation: Automation) -> str:
    discovery, execution = automation.discovery, automation.execution
    parts = []
    if discovery is not None and discovery.enabled:
        parts.append(f"discovery every {discovery.stale_after_hours} h")
    if execution is not None and execution.enabled:
        size = number(execution.max_sources_per_execution, "source")
        cap = execution.concurrent_execution_run_limit
        parts.append(f"execution of {size}" + (f", {cap} at a time" if cap is not None else ""))
    return "; ".join(parts) or "off"


def _summary(revision: ProjectRevision) -> dict[str, Any]:
    return {
        "project_id": revision.project_id,
        "revision_id": revision.id,
        "version": revision.version,
        "spec_sha256": revision.spec_sha256,
        "graph_sha256": revision.graph_sha256,
        "created_at": revision.created_at,
    }
