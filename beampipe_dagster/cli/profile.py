"""``beampipe profile``: deployment profiles, which say where executions run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from rich.console import Console

from beampipe_dagster.cli.core import Context, Group, pass_context
from beampipe_dagster.cli.render import DIGITS, cell, console, emit, facts, table, when
from beampipe_dagster.config.canonical import parse_json
from beampipe_dagster.config.profile import DeploymentProfile, RestRemote, load_profile, profile_warnings
from beampipe_dagster.execution.projects import read_text
from beampipe_dagster.ledger import profiles
from beampipe_dagster.ledger.profiles import StoredProfile


@click.group(cls=Group)
def profile() -> None:
    """Deployment profiles: where graphs are translated and run."""


@profile.command("add")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@pass_context
def add(context: Context, file: Path) -> None:
    """Store a profile's JSON under its name; a changed one gets the next revision."""
    text = read_text(file, what="profile")
    loaded = load_profile(text, name=str(file))
    warnings = profile_warnings(parse_json(text, name=str(file)))
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
