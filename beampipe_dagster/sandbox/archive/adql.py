"""Running ADQL safely on the archive's SQLite files.

Three fences, each enough by itself: the parser lets one SELECT over published tables through, an authorizer
lets SQLite do nothing but select, read and call listed functions, and the files are attached read-only.
"""

from __future__ import annotations

import math
import queue
import re
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import quote

from beampipe_dagster.errors import ArchiveError
from beampipe_dagster.sandbox.archive.columns import (
    Archive,
    Cell,
    Column,
    Datatype,
    Row,
    Table,
    tables_of,
)
from beampipe_dagster.sandbox.archive.dialect import invalid_adql, position_of, translate

_PROGRESS_STEPS = 5_000
_POOL_SIZE = 8
_MAX_VALUE_BYTES = 10_000_000
_FUNCTION_NAMES = """
abs acos asin atan atan2 avg ceil ceiling circle coalesce contains cos count degrees distance exp floor
ifnull iif instr length like ln log log10 lower ltrim max min mod nullif pi point pow power radians random
replace round rtrim sign sin sqrt substr substring sum tan total trim trunc upper
"""
_FUNCTIONS = frozenset(_FUNCTION_NAMES.split())
_ALLOWED = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ}


@dataclass(frozen=True, slots=True)
class Answer:
    """A query's rows, in the order of its columns; ``overflow`` when there were more than MAXREC."""

    columns: tuple[Column, ...]
    rows: list[Row]
    overflow: bool = False


@dataclass(frozen=True, slots=True)
class Upload:
    """A table that came with a query, to be read as ``tap_upload.<name>``."""

    name: str
    columns: tuple[Column, ...]
    rows: list[Row]

    def table(self) -> Table:
        """The upload as a table of the schema ``tap_upload``."""
        return Table(
            "tap_upload",
            self.name,
            f"tap_upload.{self.name}",
            None,
            "Uploaded table",
            self.columns,
        )


@dataclass(slots=True)
class Deadline:
    """When a query has to stop, and the switch that stops it before."""

    seconds: float
    cancelled: threading.Event = field(default_factory=threading.Event)
    _end: float = field(init=False)

    def __post_init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Count from now."""
        self._end = time.monotonic() + self.seconds

    @property
    def over(self) -> bool:
        """Whether the query must stop."""
        return self.cancelled.is_set() or time.monotonic() > self._end


class QueryEngine:
    """Answers ADQL over the tables of one archive; safe to use from several threads.

    Parameters
    ----------
    archive
        Whose tables.
    attachments
        Schema to SQLite file.
    """

    def __init__(self, *, archive: Archive, attachments: Mapping[str, Path]) -> None:
        self.archive: Archive = archive
        self._attachments = dict(attachments)
        self._tables = tables_of(archive)
        self._pool: queue.LifoQueue[sqlite3.Connection] = queue.LifoQueue(_POOL_SIZE)
        self._closing = threading.Event()

    def run(
        self,
        adql: str,
        *,
        maxrec: int,
        deadline: Deadline,
        uploads: Sequence[Upload] = (),
    ) -> Answer:
        """Answer a query.

        Parameters
        ----------
        adql
            One SELECT.
        maxrec
            Rows to return at most.
        deadline
            Stops the query.
        uploads
            Tables that came with it.

        Raises
        ------
        InputError
            ``invalid_adql``: it cannot be read, or names what is not there; the position is in ``details``.
        ArchiveError
            ``query_timeout`` or ``query_aborted``.
        """
        translation = translate(adql, [*self._tables, *(each.table() for each in uploads)])
        with self._connection(uploads) as db:
            db.set_progress_handler(lambda: int(deadline.over or self._closing.is_set()), _PROGRESS_STEPS)
            try:
                cursor = db.execute(translation.sql)
                rows = cursor.fetchmany(maxrec + 1)
                names = [column[0] for column in cursor.description]
                cursor.close()
            except (sqlite3.Error, OverflowError) as error:
                raise self._translated(error, adql, deadline) from error
            finally:
                db.set_progress_handler(None, 0)
        overflow = len(rows) > maxrec
        del rows[maxrec:]
        known = translation.columns
        if known is None or len(known) != len(names):
            known = (None,) * len(names)
        columns = tuple(
            replace(column, name=name) if column else _inferred(name, rows, i)
            for i, (name, column) in enumerate(zip(names, known, strict=True))
        )
        return Answer(columns, rows, overflow)

    def close(self) -> None:
        """Stop what runs and let the files go."""
        self._closing.set()
        while True:
            try:
                self._pool.get_nowait().close()
            except queue.Empty:
                return

    @contextmanager
    def _connection(self, uploads: Sequence[Upload]) -> Iterator[sqlite3.Connection]:
        if uploads:
            db = self._open(uploads)
            try:
                yield db
            finally:
                db.close()
            return
        try:
            db = self._pool.get_nowait()
        except queue.Empty:
            db = self._open(())
        try:
            yield db
        finally:
            try:
                self._pool.put_nowait(db)
            except queue.Full:
                db.close()

    def _open(self, uploads: Sequence[Upload]) -> sqlite3.Connection:
        db = sqlite3.connect(
            "file::memory:", uri=True, check_same_thread=False, isolation_level=None, timeout=5.0
        )
        try:
            for schema, path in self._attachments.items():
                # immutable would not see deposits; the journal's locks order readers and writers.
                db.execute(f'ATTACH ? AS "{schema}"', (f"file:{quote(str(path))}?mode=ro",))
            if uploads:
                db.execute("ATTACH ':memory:' AS tap_upload")
                for upload in uploads:
                    _load(db, upload)
            # ADQL's LIKE is case sensitive, and only such a LIKE uses the index on filename.
            db.execute("PRAGMA case_sensitive_like = ON")
            db.execute("PRAGMA query_only = ON")
        except sqlite3.Error as error:
            db.close()
            raise ArchiveError(
                f"The files of the sandbox archive {self.archive} cannot be opened: {error}",
                code="archive_data_unavailable",
                hint="Restart the sandbox archive; it makes missing files anew.",
            ) from error
        db.create_function("point", -1, _point, deterministic=True)
        db.create_function("circle", -1, _circle, deterministic=True)
        db.create_function("contains", 2, _contains, deterministic=True)
        db.create_function("distance", 2, _distance_of, deterministic=True)
        db.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _MAX_VALUE_BYTES)
        db.set_authorizer(_authorize)
        return db

    def _translated(self, error: Exception, adql: str, deadline: Deadline) -> Exception:
        text = str(error)
        if "interrupted" in text:
            if deadline.cancelled.is_set() or self._closing.is_set():
                return ArchiveError(
                    f"The query on {self.archive} was stopped.", code="query_aborted", hint=""
                )
            return ArchiveError(
                f"The query on {self.archive} took more than {deadline.seconds:g} s.",
                code="query_timeout",
                hint="Ask for less at a time, or use /tap/async with a longer EXECUTIONDURATION.",
            )
        if "locked" in text or "unable to open" in text or "disk I/O" in text:
            return ArchiveError(
                f"The files of the sandbox archive {self.archive} cannot be read: {text}.",
                code="archive_data_unavailable",
                hint="Try again; a writer holds them, or the data directory is gone.",
            )
        missing = re.search(r"(?:no such (?:column|function|table)|ambiguous column name): (\S+)", text)
        refused = re.search(r"not authorized to use function: (\S+)", text)
        if found := missing or refused:
            bare = found[1].rsplit(".", 1)[-1].strip("`")
            return invalid_adql(text.replace("`", ""), *position_of(adql, bare))
        return invalid_adql(text)


def _authorize(
    action: int, first: str | None, second: str | None, _db: str | None, _trigger: str | None
) -> int:
    """SQLite's own fence: nothing but selecting, reading published tables and calling listed functions."""
    if action == sqlite3.SQLITE_FUNCTION:
        return sqlite3.SQLITE_OK if (second or "").lower() in _FUNCTIONS else sqlite3.SQLITE_DENY
    if action not in _ALLOWED or (first or "").lower().startswith(("sqlite_", "pragma_")):
        return sqlite3.SQLITE_DENY
    return sqlite3.SQLITE_OK


def _load(db: sqlite3.Connection, upload: Upload) -> None:
    table = upload.table()
    for statement in table.ddl():
        db.execute(statement)
    marks = ", ".join("?" for _ in upload.columns)
    db.executemany(f"INSERT INTO {table.sql_name} VALUES ({marks})", upload.rows)  # noqa: S608  # a checked name


def _inferred(name: str, rows: Sequence[Row], index: int) -> Column:
    """A column of which only the values are known; text when there are none."""
    kinds = {type(row[index]) for row in rows} - {type(None)}
    datatype: Datatype = "char"
    if kinds and kinds <= {int, float}:
        datatype = "double" if float in kinds else "long"
    return Column(name, datatype)


def _point(*args: Cell) -> str | None:
    """``POINT([frame,] ra, dec)``, degrees."""
    return _shape("P", args, 2)


def _circle(*args: Cell) -> str | None:
    """``CIRCLE([frame,] ra, dec, radius)`` or ``CIRCLE(POINT(...), radius)``, degrees."""
    if len(args) == 2 and isinstance(args[0], str):
        return _shape("C", (*args[0].split()[1:], args[1]), 3)
    return _shape("C", args, 3)


def _shape(kind: str, args: Sequence[Cell], size: int) -> str | None:
    numbers = [float(value) for value in args[-size:] if value is not None]
    if len(numbers) < size:
        return None
    return " ".join([kind, *map(repr, numbers)])


def _contains(point: str | None, region: str | None) -> int | None:
    """``CONTAINS(point, circle)``: 1, 0, or NULL."""
    if point is None or region is None:
        return None
    ra, dec, radius = (float(part) for part in region.split()[1:4])
    return int((_distance(*_numbers(point), ra, dec)) <= radius)


def _distance_of(first: str | None, second: str | None) -> float | None:
    """``DISTANCE(point, point)`` in degrees."""
    if first is None or second is None:
        return None
    return _distance(*_numbers(first), *_numbers(second))


def _numbers(shape: str) -> tuple[float, float]:
    ra, dec = (float(part) for part in shape.split()[1:3])
    return ra, dec


def _distance(ra1: float, dec1: float, ra2: float, dec2: float) -> float:
    """Great-circle distance by the haversine formula, which is exact for small angles; degrees."""
    a1, d1, a2, d2 = map(math.radians, (ra1, dec1, ra2, dec2))
    h = math.sin((d2 - d1) / 2) ** 2 + math.cos(d1) * math.cos(d2) * math.sin((a2 - a1) / 2) ** 2
    return math.degrees(2 * math.asin(min(1.0, math.sqrt(h))))
