"""``beampipe source set``: how long a look at a source is believed."""

from __future__ import annotations

import click
from rich.console import Console

from beampipe_dagster.cli.core import Command, Context, pass_context
from beampipe_dagster.cli.render import cell, emit, number
from beampipe_dagster.sources.registry import LONGEST_HOURS

NONE = "none"


class _Hours(click.ParamType[int | str]):
    """A number of hours, or ``none``."""

    name = "hours"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        """The number, or the word.

        Raises
        ------
        click.BadParameter
            It is neither.
        """
        text = str(value).strip().lower()
        if text == NONE:
            return NONE
        if not text.isascii() or not text.isdigit():
            self.fail(f"{value!r} is neither a whole number of hours nor {NONE!r}", param, ctx)
        return int(text)


@click.command("set", cls=Command)
@click.option("-p", "--project", "project_id", required=True, metavar="NAME", help="The survey.")
@click.argument("names", nargs=-1, required=True)
@click.option(
    "--stale-after-hours",
    "stale",
    type=_Hours(),
    required=True,
    metavar="N|none",
    help=f"Hours after which a source is looked at again, 1 to {LONGEST_HOURS}; none: what the survey says.",
)
@pass_context
def set_staleness(context: Context, project_id: str, names: tuple[str, ...], *, stale: int | str) -> None:
    """Look at sources more often, or less often, than the survey does."""
    wanted = list(dict.fromkeys(names))
    hours = stale if isinstance(stale, int) else None
    changed = context.platform.registry.set_staleness(project_id, wanted, hours, actor=context.actor)
    same = [name for name in wanted if name not in set(changed)]

    def people(out: Console) -> None:
        if changed:
            when = "when the survey says" if hours is None else f"after {hours} h"
            out.print(f"{number(len(changed), 'source')} of {project_id} looked at again {when}.")
        if same:
            out.print(cell(f"{number(len(same), 'source')} had it so before.", "dim"))

    emit(
        context,
        {"project_id": project_id, "stale_after_hours": hours, "set": changed, "unchanged": same},
        people,
    )
