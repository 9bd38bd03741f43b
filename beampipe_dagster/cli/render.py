"""What commands show: JSON for machines, tables for people."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from typing import Any, Final

import click
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from beampipe_dagster.cli.core import Context
from beampipe_dagster.clock import rfc3339
from beampipe_dagster.sandbox.terminal import clean

PIPED_WIDTH: Final = 120
"""Columns of a table that does not go to a terminal; ``COLUMNS`` overrules it."""

SHORT_ID: Final = 13
DIGITS: Final = 12
"""Digits of a digest that are shown; as many as a partition key has."""

NONE: Final = "-"


def console(*, stderr: bool = False) -> Console:
    """A console on stdout or stderr, as they are now."""
    stream = sys.stderr if stderr else sys.stdout
    wide = None if stream.isatty() or os.environ.get("COLUMNS") else PIPED_WIDTH
    return Console(file=stream, width=wide, highlight=False, emoji=False, markup=False)


def emit(context: Context, data: object, people: Callable[[Console], None]) -> None:
    """Give the command's result: ``data`` as JSON, or what ``people`` prints."""
    if context.json:
        click.echo(json.dumps(to_json(data), indent=2))
    else:
        people(console())


def to_json(value: object) -> Any:  # noqa: ANN401  # any JSON
    """A value as JSON: dataclasses by their fields, times as RFC 3339 with milliseconds, words as text."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [to_json(item) for item in value]
    if isinstance(value, datetime):
        return rfc3339(value)
    if isinstance(value, Enum):
        return value.value
    return str(value) if isinstance(value, Path) else value


def when(moment: datetime | None, *, now: datetime | None = None) -> str:
    """A time in UTC, to the second; the day is left out when it is today."""
    if moment is None:
        return NONE
    moment = moment.astimezone(UTC)
    today = now is not None and moment.date() == now.astimezone(UTC).date()
    return moment.strftime("%H:%M:%S" if today else "%Y-%m-%d %H:%M:%S")


def short_ids(identifiers: Iterable[str]) -> dict[str, str]:
    """The first characters of identifiers, as many as it takes to tell these apart, at least 13."""
    every = list(dict.fromkeys(identifiers))
    for length in (SHORT_ID, 18, 23):
        if len({item[:length] for item in every}) == len(every):
            return {item: item[:length] for item in every}
    return {item: item for item in every}


def table(*columns: str | tuple[str, dict[str, Any]], title: str | None = None) -> Table:
    """A table in the one style; a column is a name, or a name and what rich calls its options."""
    made = Table(
        box=None,
        padding=(0, 2, 0, 0),
        pad_edge=False,
        header_style="bold",
        title=Text(title, style="bold") if title else None,
        title_justify="left",
    )
    for column in columns:
        name, options = (column, {}) if isinstance(column, str) else column
        made.add_column(name, **{"overflow": "fold", **options})
    return made


def cell(value: object, style: str = "") -> Text:
    """Text for a table; None is a dash."""
    return Text(NONE if value is None or value == "" else clean(value), style=style)


def facts(pairs: Sequence[tuple[str, object]]) -> Table:
    """Names and values, one pair a line; pairs whose value is None are left out."""
    made = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, show_header=False)
    made.add_column(style="dim", no_wrap=True)
    made.add_column(overflow="fold")
    for name, value in pairs:
        if value is not None:
            made.add_row(name, value if isinstance(value, (Text, Table, Group)) else cell(value))
    return made


def section(out: Console, title: str, body: RenderableType | str) -> None:
    """A part of a page: its title, and its body below it."""
    out.print()
    out.print(Text(title, style="bold"))
    if isinstance(body, Text) and not body:
        return
    out.print(Padding(cell(body) if isinstance(body, str) else body, (0, 0, 0, 2)))


def number(count: int, one: str, many: str | None = None) -> str:
    """``1 source``, ``2 sources``."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"
