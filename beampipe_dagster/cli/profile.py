"""``beampipe profile``: deployment profiles, which say where executions run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from rich.console import Console

from beampipe_dagster.backends.slurm.session_files import IMAGE_VARIABLE
from beampipe_dagster.cli.core import EXIT_FAILED, Context, Group, pass_context
from beampipe_dagster.cli.diagnostics import show_report
from beampipe_dagster.cli.execution import resolve
from beampipe_dagster.cli.execution_control import PROFILE_COMMANDS
from beampipe_dagster.cli.render import DIGITS, cell, console, emit, facts, section, table, when
from beampipe_dagster.config.canonical import canonical_json, parse_json
from beampipe_dagster.config.profile import DeploymentProfile, RestRemote, load_profile, profile_warnings
from beampipe_dagster.config.profile_report import validate_profile
from beampipe_dagster.execution.profile_preview import Call, Preview, preview
from beampipe_dagster.execution.projects import read_text
from beampipe_dagster.ledger import profiles
from beampipe_dagster.ledger.profiles import StoredProfile

FILE = click.Path(path_type=Path, dir_okay=False)


@click.group(cls=Group)
def profile() -> None:
    """Deployment profiles: where graphs are translated and run."""


for command in PROFILE_COMMANDS:
    profile.add_command(command)


@profile.command("validate")
@click.argument("file", type=FILE)
@pass_context
def validate(context: Context, file: Path) -> int:
    """Check a profile's JSON and show every problem with its line.

    Exit code 1 when the file cannot be used.
    """
    text = read_text(file, what="profile")
    report = validate_profile(text, name=str(file))
    told = report.as_dict()
    data = {"name": told.pop("project_id"), **told}
    emit(context, data, lambda out: show_report(out, report, name=str(file), text=text))
    return 0 if report.valid else EXIT_FAILED


@profile.command("add")
@click.argument("file", type=FILE)
@pass_context
def add(context: Context, file: Path) -> None:
    """Store a profile's JSON under its name; a changed one gets the next revision."""
    text = read_text(file, what="profile")
    loaded = load_profile(text, name=str(file))
    warnings = profile_warnings(parse_json(text, name=str(file)), text=text)
    stored, changed = context.platform.projects.put_profile(loaded)
    data = {**_summary(stored), "changed": changed, "warnings": [item.as_dict() for item in warnings]}

    def people(out: Console) -> None:
        words = f"is at revision {stored.revision} now" if changed else "has not changed"
        out.print(f"{stored.name} {words} ({stored.spec_sha256[:DIGITS]}).")
        for warning in warnings:
            line = warning.text(str(file))
            console(stderr=True).print(cell(line, "yellow"), soft_wrap=True)

    emit(context, data, people)


@profile.command("list")
@pass_context
def listing(context: Context) -> None:
    """All profiles."""
    with context.ledger.read() as conn:
        found = profiles.everything(conn)

    def people(out: Console) -> None:
        if not found:
            out.print("No deployment profile yet. Add one with: beampipe profile add FILE")
            return
        rows = table(
            "profile", ("revision", {"justify": "right"}), "default of", "kind", "runs at", "at a time"
        )
        for item in found:
            loaded = _loaded(item)
            default = (item.project_module or "all projects") if item.is_default else None
            rows.add_row(
                cell(item.name, "bold"),
                str(item.revision),
                cell(default),
                cell(loaded.deployment.kind),
                cell(_place(loaded)),
                cell(item.max_concurrent_executions or "no limit"),
            )
        out.print(rows)

    emit(context, {"profiles": [_summary(item) for item in found]}, people)


@profile.command("show")
@click.argument("name")
@pass_context
def show(context: Context, name: str) -> None:
    """A profile, with every default spelled out."""
    with context.ledger.read() as conn:
        item = profiles.by_name(conn, name)
    loaded = _loaded(item)
    pairs: list[tuple[str, object]] = [
        ("profile", item.name),
        ("description", loaded.description),
        ("revision", f"{item.revision}, changed {when(item.updated_at)} UTC"),
        ("digest", item.spec_sha256),
        ("project", item.project_module or "all"),
        ("default", "yes" if item.is_default else "no"),
        ("at a time", item.max_concurrent_executions or "no limit"),
    ]
    for part, values in (
        ("translation", loaded.translation.model_dump(exclude_none=True)),
        ("deployment", loaded.deployment.model_dump(exclude_none=True)),
    ):
        pairs.append((part, facts([(key, _plain(value)) for key, value in values.items()])))
    emit(context, _summary(item), lambda out: out.print(facts(pairs)))


@profile.command("render")
@click.argument("name")
@click.option("--execution", "execution_id", metavar="ID", help="An execution whose names are filled in.")
@pass_context
def render(context: Context, name: str, execution_id: str | None) -> None:
    """What an execution with a profile calls, and with what. Nothing is called.

    NAME may be a profile's file that is not added yet. What is only known later is in angle brackets.
    """
    if "/" in name or name.endswith(".json"):
        loaded = load_profile(read_text(Path(name), what="profile"), name=name)
    else:
        with context.ledger.read() as conn:
            loaded = _loaded(profiles.by_name(conn, name))
    execution = None
    if execution_id is not None:
        with context.ledger.read() as conn:
            execution = resolve(conn, execution_id)
    environ = context.environ
    found = preview(
        loaded,
        execution,
        tm_url=context.settings.tm_url,
        user=environ.get("SLURM_REMOTE_USER") or environ.get("USER"),
        image=environ.get(IMAGE_VARIABLE),
    )
    emit(context, found.as_dict(), lambda out: _show_preview(out, found))


def _show_preview(out: Console, found: Preview) -> None:
    for note in found.notes:
        out.print(cell(note, "yellow"))
    out.print(facts([("profile", found.profile), ("kind", found.kind), ("session", found.session)]))
    for number, call in enumerate(found.calls, 1):
        out.print()
        out.print(cell(f"{number}. {call.purpose}", "bold"))
        out.print(cell(f"   {call.method} {call.url}", "cyan"), soft_wrap=True)
        for line in _parameters(call):
            out.print(cell(f"     {line}"), soft_wrap=True)
    slurm = found.slurm
    if slurm is None:
        return
    files = [("graph", slurm.files.graph), ("INI", slurm.files.ini), ("template", slurm.files.template)]
    section(out, f"Files, on {slurm.where}", facts(files))
    for title, text in (
        (f"{slurm.files.ini}", slurm.ini),
        ("The script that makes the job script", slurm.script),
        ("The line that submits it", slurm.sbatch),
    ):
        out.print()
        out.print(cell(title, "bold"), soft_wrap=True)
        for line in text.splitlines():
            out.print(cell(f"  {line}" if line else " "), soft_wrap=True)


def _parameters(call: Call) -> list[str]:
    """The body of a request, a field a line."""
    if isinstance(call.parameters, dict):
        return [f"{name} = {_plain(value)}" for name, value in call.parameters.items()]
    return [] if call.parameters is None else [canonical_json(call.parameters)]


def _loaded(item: StoredProfile) -> DeploymentProfile:
    return load_profile(item.spec, name=f"profile {item.name}")


def _place(loaded: DeploymentProfile) -> str:
    where = loaded.deployment
    if isinstance(where, RestRemote):
        return f"{'https' if where.use_https else 'http'}://{where.deploy_host}:{where.deploy_port}"
    return f"{where.login_node}, account {where.account}"


def _plain(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(item)}" for key, item in value.items()) or "-"
    return str(value)


def _summary(item: StoredProfile) -> dict[str, Any]:
    return {
        "name": item.name,
        "id": item.id,
        "revision": item.revision,
        "project_module": item.project_module,
        "is_default": item.is_default,
        "max_concurrent_executions": item.max_concurrent_executions,
        "spec_sha256": item.spec_sha256,
        "spec": item.spec,
        "created_at": item.created_at,
        "updated_at": item.updated_at,
    }
