"""What a query declares about its rows: which of them are a source's, and which of these are kept.

A LIKE takes ``_`` for any character, and ADQL has no way to write it otherwise that all archives take
(``ESCAPE`` is not in ADQL 2.0). So rows are compared with what was declared once more, literally. The same is done
whether a source was asked about alone or together with others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from typing import TypeAlias

from beampipe_dagster.config.canonical import JsonValue
from beampipe_dagster.config.queries import Query, QueryMatch
from beampipe_dagster.discovery.templates import render
from beampipe_dagster.errors import DataError

Row: TypeAlias = dict[str, JsonValue]


def kept(query: Query, context: Mapping[str, JsonValue], rows: Sequence[Row]) -> list[Row]:
    """The rows of one source that its query keeps, in their order.

    Parameters
    ----------
    query
        The query with its ``match`` and ``keep``.
    context
        What its placeholders mean for the source.
    rows
        The complete answer for the source.

    Raises
    ------
    DataError
        ``keep_column_missing``: a column that is needed is not in the answer.
        ``keep_not_comparable``: the latest is wanted of values that are neither numbers nor times.
    """
    found = list(rows)
    for match in query.match:
        if found and match.how != "equals":
            found = _matching(query, match, context, found)
    if query.keep is None:
        return found
    for name, values in query.keep.where.items():
        if found:
            column = _column(query, found[0], name)
            found = [row for row in found if text_of(row.get(column)) in values]
    if query.keep.latest is None or not found:
        return found
    latest = _column(query, found[0], query.keep.latest)
    per = [_column(query, found[0], name) for name in query.keep.per]
    return _latest(query, found, latest, per)


def literal_of(template: str, context: Mapping[str, JsonValue]) -> str:
    """A text with its placeholders filled in, as a query compares it."""
    quoted = template.replace("'", "''")
    return render(f"'{quoted}'", context)[1:-1].replace("''", "'")


def comparable(value: str) -> Decimal | datetime | None:
    """A cell as a number or as a time (ISO 8601; UTC unless it says otherwise); ``None`` for anything else."""
    cell = value.strip()
    try:
        number = Decimal(cell)
    except InvalidOperation:
        number = None
    if number is not None:
        return number if number.is_finite() else None
    try:
        moment = datetime.fromisoformat(cell)
    except ValueError:
        return None
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment


def text_of(cell: JsonValue) -> str:
    """A cell's text; nothing for NULL."""
    return cell if isinstance(cell, str) else "" if cell is None else str(cell)


def _matching(
    query: Query, match: QueryMatch, context: Mapping[str, JsonValue], rows: list[Row]
) -> list[Row]:
    wanted = literal_of(match.value, context)
    name = match.column.rpartition(".")[2] if not match.column.endswith('"') else match.column.split('"')[-2]
    column = _column(query, rows[0], name)
    if match.how == "prefix":
        return [row for row in rows if text_of(row.get(column)).startswith(wanted)]
    return [row for row in rows if wanted in text_of(row.get(column))]


def _latest(query: Query, rows: list[Row], latest: str, per: Sequence[str]) -> list[Row]:
    """The rows with the greatest value among those that have the same values of ``per``; NULL is never it."""
    values = [_value(query, row, latest) for row in rows]
    if len({type(value) for value in values if value is not None}) > 1:
        raise _not_comparable(query, latest, "numbers and times")
    groups = [tuple(text_of(row.get(name)) for name in per) for row in rows]
    greatest: dict[tuple[str, ...], Decimal | datetime] = {}
    for group, value in zip(groups, values, strict=True):
        if value is not None and (group not in greatest or greatest[group] < value):  # type: ignore[operator]  # of one type
            greatest[group] = value
    return [
        row
        for row, group, value in zip(rows, groups, values, strict=True)
        if value is not None and value == greatest[group]
    ]


def _value(query: Query, row: Row, column: str) -> Decimal | datetime | None:
    cell = text_of(row.get(column))
    if not cell.strip():
        return None
    value = comparable(cell)
    if value is None:
        raise _not_comparable(query, column, repr(cell[:80]))
    return value


def _column(query: Query, row: Row, name: str) -> str:
    """How the archive spells a column; ADQL does not care about case."""
    if name in row:
        return name
    found = [key for key in row if key.lower() == name.lower()]
    if len(found) == 1:
        return found[0]
    raise DataError(
        f"the query {query.name!r} needs the column {name!r} to say which rows are kept, and the answer has "
        f"{len(found) or 'none'} of that name",
        code="keep_column_missing",
        hint="select it in the template, once",
    )


def _not_comparable(query: Query, column: str, what: str) -> DataError:
    return DataError(
        f"the query {query.name!r} keeps the latest by {column!r}, which holds {what}",
        code="keep_not_comparable",
        hint="keep.latest is for a column of numbers, or one of ISO 8601 times",
    )
