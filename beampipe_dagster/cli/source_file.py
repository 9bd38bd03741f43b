"""Files of sources to be registered: one name a line, or CSV with positions; read whole or not at all."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from beampipe_dagster.errors import InputError
from beampipe_dagster.execution.projects import read_text
from beampipe_dagster.ledger.sources import NewSource
from beampipe_dagster.sources.registry import IDENTIFIER

NAME: Final = "source_identifier"
RA, DEC = "ra_deg", "dec_deg"
COLUMNS: Final = (NAME, RA, DEC)
SHOWN: Final = 10
"""Problems that the message lists; all are in the details."""


@dataclass(frozen=True, slots=True)
class Line:
    """A source, and the line on which it is."""

    number: int
    source: NewSource


@dataclass(frozen=True, slots=True)
class _Problem:
    number: int
    message: str


def read_sources(path: Path, *, enabled: bool) -> list[NewSource]:
    """The sources of a file.

    A first line with ``source_identifier`` as one of its comma-separated words makes it CSV, with the optional
    columns ``ra_deg`` and ``dec_deg`` (ICRS, degrees). Any other file has one name a line. Blank lines and
    lines that begin with ``#`` are skipped.

    Raises
    ------
    InputError
        ``invalid_source_file`` with the number of every line that cannot be used, ``no_sources``, or the file
        cannot be read.
    """
    text = read_text(path, what="source").removeprefix("\ufeff")
    rows = list(_csv_rows(text, path)) if _is_csv(text) else list(_plain_rows(text))
    problems: list[_Problem] = []
    lines: list[Line] = []
    seen: dict[str, int] = {}
    for number, name, ra, dec in rows:
        found = _line(number, name, ra, dec, enabled=enabled)
        if isinstance(found, Line) and name in seen:
            found = _Problem(number, f"{name!r} is on line {seen[name]} already")
        if isinstance(found, _Problem):
            problems.append(found)
            continue
        seen[name] = number
        lines.append(found)
    if problems:
        raise _refused(path, problems)
    if not lines:
        raise InputError(
            f"{path} names no source",
            code="no_sources",
            hint=f"one name a line, or CSV with the header {','.join(COLUMNS)}",
        )
    return [line.source for line in lines]


Row = tuple[int, str, str, str]


def _is_csv(text: str) -> bool:
    first = next((line for line in text.splitlines() if line.strip() and not line.startswith("#")), "")
    return NAME in [word.strip().strip('"').lower() for word in first.split(",")]


def _plain_rows(text: str) -> Iterator[Row]:
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip() and not line.startswith("#"):
            yield number, line.strip(), "", ""


def _csv_rows(text: str, path: Path) -> Iterator[Row]:
    reader = csv.reader(io.StringIO(text), strict=True)
    columns: list[str] | None = None
    try:
        for fields in reader:
            values = [field.strip() for field in fields]
            if not any(values) or values[0].startswith("#"):
                continue
            if columns is None:
                columns = _header(values, path, reader.line_num)
                continue
            if len(values) > len(columns):
                message = f"{len(values)} values below a header of {len(columns)} columns"
                raise _refused(path, [_Problem(reader.line_num, message)])
            given = dict(zip(columns, values, strict=False))
            yield reader.line_num, given.get(NAME, ""), given.get(RA, ""), given.get(DEC, "")
    except csv.Error as error:
        raise _refused(path, [_Problem(reader.line_num, f"not CSV: {error}")]) from error


def _header(values: list[str], path: Path, number: int) -> list[str]:
    columns = [value.lower() for value in values]
    unknown = [column for column in columns if column not in COLUMNS]
    if unknown or len(set(columns)) != len(columns):
        what = f"the column {unknown[0]!r} is not known" if unknown else "a column is there twice"
        raise _refused(path, [_Problem(number, f"{what}; known are {', '.join(COLUMNS)}")])
    return columns


def _line(number: int, name: str, ra: str, dec: str, *, enabled: bool) -> Line | _Problem:
    if not IDENTIFIER.fullmatch(name):
        return _Problem(number, f"{name!r} cannot be a source identifier" if name else "the name is missing")
    if bool(ra) != bool(dec):
        return _Problem(number, f"{name!r} has only one of {RA} and {DEC}")
    position: list[float | None] = []
    for column, text, low, high in ((RA, ra, 0.0, 360.0), (DEC, dec, -90.0, 90.0)):
        value = _number(text)
        # Right ascension 360 is 0; the registry takes it only as 0.
        fits = value is not None and low <= value <= high and not (column == RA and value == high)
        if text and not fits:
            return _Problem(
                number, f"{column} of {name!r} is {text!r}, not a number from {low:g} to {high:g}"
            )
        position.append(value)
    return Line(number, NewSource(name, enabled=enabled, ra_deg=position[0], dec_deg=position[1]))


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _refused(path: Path, problems: list[_Problem]) -> InputError:
    listed = "\n".join(f"  {path}:{problem.number}: {problem.message}" for problem in problems[:SHOWN])
    more = f"\n  and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
    lines = "1 line" if len(problems) == 1 else f"{len(problems)} lines"
    return InputError(
        f"{path} has {lines} that cannot be used:\n{listed}{more}",
        code="invalid_source_file",
        hint="nothing was registered; correct the lines and register the file again",
        details={
            "file": str(path),
            "lines": [{"line": problem.number, "message": problem.message} for problem in problems],
        },
    )
