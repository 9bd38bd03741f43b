"""Files of sources: one name a line, CSV with positions, or JSON; read whole or not at all."""

from __future__ import annotations

import csv
import io
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from beampipe_dagster.config.canonical import JsonValue, parse_json
from beampipe_dagster.errors import BeampipeError, InputError
from beampipe_dagster.execution.projects import read_text
from beampipe_dagster.ledger.sources import NewSource
from beampipe_dagster.sources.registry import IDENTIFIER

NAME: Final = "source_identifier"
RA, DEC = "ra_deg", "dec_deg"
COLUMNS: Final = (NAME, RA, DEC)
JSON_FIELDS: Final = frozenset({*COLUMNS, "enabled", "stale_after_hours"})
STDIN: Final = "-"
LARGEST: Final = 64 * 1024 * 1024
"""Bytes that are read; a line of CSV has about 30."""

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
    """The sources of a file, or of standard input for the path ``-``.

    A text that begins with ``[`` is JSON: a list of names, or of objects with ``source_identifier`` and, where
    they are wanted, ``ra_deg``, ``dec_deg``, ``enabled`` and ``stale_after_hours``. A first line with
    ``source_identifier`` as one of its comma-separated words makes it CSV, with the optional columns ``ra_deg``
    and ``dec_deg`` (ICRS, degrees). Any other file has one name a line. Blank lines and lines that begin with
    ``#`` are skipped.

    Raises
    ------
    InputError
        ``invalid_source_file`` with the number of every line that cannot be used, ``no_sources``, or the file
        cannot be read.
    """
    if str(path) == STDIN:
        path = Path("(standard input)")
        text = _standard_input()
    else:
        text = read_text(path, what="source", limit=LARGEST)
    text = text.removeprefix("\ufeff")
    if text.lstrip().startswith("["):
        return _json_sources(text, path, enabled=enabled)
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
            hint=f"one name a line, CSV with the header {','.join(COLUMNS)}, or a JSON list",
        )
    return [line.source for line in lines]


def _standard_input() -> str:
    raw = sys.stdin.buffer.read(LARGEST + 1)
    if len(raw) > LARGEST:
        raise InputError(
            f"standard input has more than {LARGEST:,} bytes",
            code="file_too_large",
            hint="register the sources in several files",
        )
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise InputError(
            f"standard input is not UTF-8 text: byte {error.start}", code="file_not_text", hint="give UTF-8"
        ) from error


def _json_sources(text: str, path: Path, *, enabled: bool) -> list[NewSource]:
    try:
        document = parse_json(text, name=str(path))
    except BeampipeError as error:
        raise InputError(
            f"{path} cannot be read as JSON: {error.message}",
            code="invalid_source_file",
            hint="nothing was registered; correct the file and register it again",
        ) from error
    problems: list[_Problem] = []
    found: dict[str, Line] = {}
    for number, item in enumerate(document if isinstance(document, list) else [], start=1):
        made = _json_item(number, item, enabled=enabled)
        if isinstance(made, Line) and (before := found.get(made.source.source_identifier)):
            made = _Problem(number, f"{made.source.source_identifier!r} is entry {before.number} already")
        if isinstance(made, _Problem):
            problems.append(made)
        else:
            found[made.source.source_identifier] = made
    if problems:
        raise _refused(path, problems, unit=("entry", "entries"))
    if not found:
        raise InputError(
            f"{path} names no source", code="no_sources", hint="give a list of names or of objects"
        )
    return [line.source for line in found.values()]


def _json_item(number: int, item: JsonValue, *, enabled: bool) -> Line | _Problem:
    given: JsonValue = {NAME: item} if isinstance(item, str) else item
    if not isinstance(given, dict):
        return _Problem(number, "is neither a name nor an object")
    problem = _json_problem(given)
    if problem is not None:
        return _Problem(number, problem)
    ra, dec = ("" if given.get(column) is None else str(given[column]) for column in (RA, DEC))
    on, stale = given.get("enabled", enabled), given.get("stale_after_hours")
    made = _line(number, str(given[NAME]), ra, dec, enabled=bool(on))
    if isinstance(made, _Problem):
        return made
    hours = stale if isinstance(stale, int) else None
    return Line(number, replace(made.source, stale_after_hours=hours))


def _json_problem(given: dict[str, JsonValue]) -> str | None:
    """What is wrong with an entry's fields, if anything is."""
    unknown = sorted(given.keys() - JSON_FIELDS)
    if unknown:
        return f"the field {unknown[0]!r} is not known; known are {', '.join(sorted(JSON_FIELDS))}"
    name, stale = given.get(NAME), given.get("stale_after_hours")
    if not isinstance(name, str):
        return "the name is missing" if name is None else f"{NAME} is not a text"
    if not isinstance(given.get("enabled", True), bool):
        return f"enabled of {name!r} is neither true nor false"
    if stale is not None and (not isinstance(stale, int) or isinstance(stale, bool)):
        return f"stale_after_hours of {name!r} is not a whole number"
    return None


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


def _refused(
    path: Path, problems: list[_Problem], *, unit: tuple[str, str] = ("line", "lines")
) -> InputError:
    listed = "\n".join(f"  {path}:{problem.number}: {problem.message}" for problem in problems[:SHOWN])
    more = f"\n  and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
    count = len(problems)
    lines = f"1 {unit[0]}" if count == 1 else f"{count} {unit[1]}"
    return InputError(
        f"{path} has {lines} that cannot be used:\n{listed}{more}",
        code="invalid_source_file",
        hint=f"nothing was registered; correct the {unit[1]} and register the file again",
        details={
            "file": str(path),
            "lines": [{"line": problem.number, "message": problem.message} for problem in problems],
        },
    )
