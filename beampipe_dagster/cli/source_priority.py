"""``beampipe source prioritize``: who gets a turn first."""

from __future__ import annotations

import click
from rich.console import Console

from beampipe_dagster.cli.core import Command, Context, pass_context
from beampipe_dagster.cli.render import cell, emit, number


@click.command("prioritize", cls=Command)
@click.option("-p", "--project", "project_id", required=True, metavar="NAME", help="The survey.")
@click.argument("names", nargs=-1, required=True)
@click.option(
    "--priority",
    type=int,
    required=True,
    metavar="N",
    help="Higher ones go first; 0 is what a source begins with.",
)
@pass_context
def prioritize(context: Context, project_id: str, names: tuple[str, ...], *, priority: int) -> None:
    """Give sources a priority: among those that wait, the higher ones get their turn first."""
    wanted = list(dict.fromkeys(names))
    changed = context.platform.admission.prioritize(project_id, wanted, priority, actor=context.actor)
    same = [name for name in wanted if name not in set(changed)]

    def people(out: Console) -> None:
        if changed:
            out.print(f"{number(len(changed), 'source')} of {project_id} now with priority {priority}.")
        if same:
            out.print(cell(f"{number(len(same), 'source')} had it before.", "dim"))

    emit(
        context,
        {"project_id": project_id, "priority": priority, "prioritized": changed, "unchanged": same},
        people,
    )
