"""VOTables read strictly: a document is complete, or it says why not.

pyvo and astropy do the parsing, :mod:`~beampipe_dagster.discovery.tabledata` that of the common
case; this module decides what a parsed document means (IVOA DALI 1.1 section 4.4, VOTable 1.4). An
error, an overflow or half a document arrives with HTTP 200 as often as not, and must never look
like "no rows". A table without rows is believed only when the service says ``QUERY_STATUS`` ``OK``.

Cells become text, the same for every serialisation (TABLEDATA, BINARY, BINARY2), since signatures
are made of it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from io import BytesIO
from typing import TYPE_CHECKING, Any

from beampipe_dagster.discovery.archive import AnswerClass, AnswerColumn
from beampipe_dagster.discovery.cells import cell_text
from beampipe_dagster.discovery.streams import (
    BrokenStreamError,
    Column,
    check_extent,
    promised_rows,
    stream_rows,
)
from beampipe_dagster.discovery.tabledata import read_plain
from beampipe_dagster.discovery.xml import XmlError, refuse_tricks

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from beampipe_dagster.config.canonical import JsonValue

SHOWN = 300
"""Characters of a service's own message that are kept."""

# A service must not make us fetch further URLs, or files of this machine.
_REMOTE_STREAM = re.compile(rb"<(?:\w+:)?STREAM\b[^<>]*\shref\s*=", re.IGNORECASE)
_INFO = re.compile(rb"<(?:\w+:)?INFO\b(?:[^<>\"']|\"[^<\"]*\"|'[^<']*')*>", re.IGNORECASE)
_ATTRIBUTE = re.compile(rb"([\w:.-]+)\s*=\s*(?:\"([^\"]*)\"|'([^']*)')")
_TAG = re.compile(r"<[^>]*>")
_LIMITS = {"short": (-(2**15), 2**15 - 1), "int": (-(2**31), 2**31 - 1), "long": (-(2**63), 2**63 - 1)}


class UnreadableError(Exception):
    """A document that is no complete answer; translated by the adapter.

    Parameters
    ----------
    answer
        What kind of answer it is instead.
    message
        What is wrong with it, or what the service says.
    query_status
        The document's QUERY_STATUS, if it has one.
    rows
        Rows that it holds all the same.
    """

    def __init__(
        self,
        answer: AnswerClass,
        message: str,
        *,
        query_status: str | None = None,
        rows: int = 0,
    ) -> None:
        super().__init__(message)
        self.answer = answer
        self.message = message
        self.query_status = query_status
        self.rows = rows
        self.statuses: tuple[str | None, str | None] = (None, None)


@dataclass(frozen=True, slots=True)
class ResultTable:
    """A complete result.

    Parameters
    ----------
    rows
        Column name to cell text, see :func:`cell_text`.
    query_status
        ``OK``, or ``None`` when the document does not say.
    columns
        What the document says about its columns.
    statuses
        QUERY_STATUS before and after the table, where the document has them.
    """

    rows: list[dict[str, JsonValue]]
    query_status: str | None
    columns: tuple[AnswerColumn, ...] = ()
    statuses: tuple[str | None, str | None] = (None, None)


def read_result(body: bytes, *, maxrec: int) -> ResultTable:
    """Read a TAP service's answer.

    Parameters
    ----------
    body
        The whole body of the answer, decoded of any transfer or content encoding.
    maxrec
        The MAXREC that was asked for: as many rows as that are an overflow, said or not.

    Raises
    ------
    UnreadableError
        The document is no complete answer.
    """
    statuses = query_statuses(body)
    try:
        _check_size(body, maxrec, statuses)
        result = _read(body, maxrec)
    except UnreadableError as error:
        error.statuses = statuses
        raise
    return replace(result, statuses=statuses)


def query_statuses(body: bytes) -> tuple[str | None, str | None]:
    """The last QUERY_STATUS before the rows of a document, and the last one after them."""
    begin, end = body.find(b"<DATA"), body.rfind(b"</DATA")
    if begin < 0 <= body.find(b":DATA>"):
        begin, end = body.find(b":DATA>"), body.rfind(b":DATA>")
    if begin < 0:
        return _last_status(body), None
    return _last_status(body[:begin]), _last_status(body[end:]) if end >= 0 else None


def _last_status(part: bytes) -> str | None:
    found = None
    for info in _INFO.findall(part):
        attributes = {name.lower(): a or b for name, a, b in _ATTRIBUTE.findall(info)}
        if attributes.get(b"name", b"").strip().upper() == b"QUERY_STATUS":
            found = attributes.get(b"value", b"")[:40].decode(errors="replace").strip().upper()
    return found


def _read(body: bytes, maxrec: int) -> ResultTable:
    _check_readable(body)
    plain = read_plain(body)
    if plain is not None:
        said = [(value, text) for name, value, text in plain.infos if name.strip().upper() == "QUERY_STATUS"]
        status = _accepted(_worst(said), held=plain.rows)
        _check_promise(promised_rows(body), plain.rows, status)
        _check_full(plain.rows, maxrec, status)
        names = [column.name for column in plain.columns]
        return ResultTable(_rows_of(names, plain.cells), status, _told_once(plain.columns))
    votable = _parsed(body)
    status = _accepted_status(votable)
    table = _result_table(votable, status)
    _check_whole(body, table, status)
    _check_range(body, table, status)
    _check_full(len(table.array), maxrec, status)
    return ResultTable(_rows(table), status, _told_once(_columns(table)))


def _check_size(body: bytes, maxrec: int, statuses: tuple[str | None, str | None]) -> None:
    """Refuse more rows than were asked for before a parser makes room for them; an error goes first."""
    held = body.count(b"<TR>")
    if held > maxrec and set(statuses) <= {None, "OK", "OVERFLOW"}:
        raise UnreadableError(
            AnswerClass.OVERFLOW,
            f"the answer holds {held} rows, more than MAXREC={maxrec} lets through",
            query_status=next((status for status in statuses[::-1] if status), None),
            rows=held,
        )


def _check_full(held: int, maxrec: int, status: str | None) -> None:
    """Refuse as many rows as were asked for at most, and none of which nobody says that this is all."""
    if held >= maxrec:
        raise UnreadableError(
            AnswerClass.OVERFLOW,
            f"the answer holds {held} rows, as many as MAXREC={maxrec} lets through",
            query_status=status,
            rows=held,
        )
    if held == 0 and status is None:
        raise UnreadableError(
            AnswerClass.MALFORMED,
            "the table has no rows and the document has no QUERY_STATUS to say that this is all",
        )


def _columns(table: Any) -> Iterator[AnswerColumn]:  # noqa: ANN401  # astropy has no types
    for field in table.fields:
        name = str(field.name or field.ID)
        size = None if field.arraysize is None else str(field.arraysize)
        yield AnswerColumn(name, str(field.datatype), size, str(field.unit or ""), str(field.ucd or ""))


def _told_once(columns: Iterable[AnswerColumn]) -> tuple[AnswerColumn, ...]:
    found: dict[str, AnswerColumn] = {}
    for column in columns:
        found.setdefault(column.name, column)
    return tuple(found.values())


def error_message(body: bytes) -> str:
    """What an error's body says, in one short line: a VOTable's message, or the text of a page."""
    try:
        status, message = _query_status(_parse(body))
    except UnreadableError:
        status, message = None, ""
    return message if status else excerpt(body)


def excerpt(body: bytes) -> str:
    """The beginning of a body as one line of text, tags taken out."""
    return _one_line(_TAG.sub(" ", body[:8_000].decode(errors="replace")))


def _parse(body: bytes) -> Any:  # noqa: ANN401  # astropy has no types
    _check_readable(body)
    return _parsed(body)


def _check_readable(body: bytes) -> None:
    """Refuse what no reader should be given."""
    if not body.strip():
        raise UnreadableError(AnswerClass.MALFORMED, "the body is empty")
    if _REMOTE_STREAM.search(body):
        raise UnreadableError(
            AnswerClass.MALFORMED, "the table's data are elsewhere (STREAM href), not in the answer"
        )
    try:
        refuse_tricks(body)
        check_extent(body)
    except (XmlError, BrokenStreamError) as error:
        raise UnreadableError(AnswerClass.MALFORMED, str(error)) from error


def _parsed(body: bytes) -> Any:  # noqa: ANN401  # astropy has no types
    from astropy.io.votable import parse  # noqa: PLC0415  # takes 0.6 s to import

    try:
        return parse(BytesIO(body), verify="ignore")
    except Exception as error:  # astropy raises what it likes on bad documents
        reason = _one_line(str(error)) or type(error).__name__
        raise UnreadableError(
            AnswerClass.MALFORMED,
            f"the body is no whole VOTable: {reason}{_instead(body)}",
        ) from error


def _instead(body: bytes) -> str:
    if b"VOTABLE" in body[:2_000].upper():
        return ""
    return f"; it begins with {excerpt(body)[:80]!r}"


def _query_status(votable: Any) -> tuple[str | None, str]:  # noqa: ANN401  # astropy has no types
    """The worst QUERY_STATUS anywhere in the document, and its message.

    A service that fails while it sends rows says so after the table, when an ``OK`` is long gone.
    """
    return _worst(
        [
            (str(info.value or ""), str(info.content or ""))
            for info in _infos(votable)
            if str(info.name or "").strip().upper() == "QUERY_STATUS"
        ]
    )


def _worst(said: Sequence[tuple[str, str]]) -> tuple[str | None, str]:
    found = [(value.strip().upper(), _one_line(text)) for value, text in said]
    for status, message in found:
        if status not in {"OK", "OVERFLOW"}:
            return status or "ERROR", message or "the service gives no reason"
    for status, message in found:
        if status == "OVERFLOW":
            return status, message
    return found[0] if found else (None, "")


def _infos(holder: Any) -> Iterator[Any]:  # noqa: ANN401  # astropy has no types
    yield from getattr(holder, "infos", ())
    for name in ("resources", "tables", "groups"):
        for inner in getattr(holder, name, ()):
            yield from _infos(inner)


def _accepted_status(votable: Any) -> str | None:  # noqa: ANN401  # astropy has no types
    held = sum(len(table.array) for table in votable.iter_tables())
    return _accepted(_query_status(votable), held=held)


def _accepted(said: tuple[str | None, str], *, held: int) -> str | None:
    """The status of a complete answer."""
    status, message = said
    if status in {None, "OK"}:
        return status
    if status == "OVERFLOW":
        # pyvo would only warn.
        answer, message = AnswerClass.OVERFLOW, f"the service has more rows than the {held} it sent"
    else:
        answer = AnswerClass.ERROR
    raise UnreadableError(answer, message, query_status=status, rows=held)


def _result_table(votable: Any, status: str | None) -> Any:  # noqa: ANN401  # astropy has no types
    from pyvo.dal.exceptions import DALAccessError  # noqa: PLC0415  # takes 0.9 s to import
    from pyvo.dal.tap import TAPResults  # noqa: PLC0415  # the same

    resources = [item for item in votable.resources if item.type == "results"]
    if len([table for item in resources for table in item.tables]) > 1:
        raise UnreadableError(
            AnswerClass.MALFORMED, "the answer has several result tables", query_status=status
        )
    if not resources:
        raise UnreadableError(
            AnswerClass.MALFORMED, "the VOTable has no RESOURCE of type results", query_status=status
        )
    try:
        return TAPResults(votable).resultstable
    except DALAccessError as error:
        raise UnreadableError(AnswerClass.MALFORMED, _one_line(str(error)), query_status=status) from error


def _check_whole(body: bytes, table: Any, status: str | None) -> None:  # noqa: ANN401  # no types
    """Refuse a table from which rows are missing although the document is well-formed."""
    held = len(table.array)
    columns = [
        Column(str(field.datatype), None if field.arraysize is None else str(field.arraysize))
        for field in table.fields
    ]
    promised = promised_rows(body)
    try:
        streamed = stream_rows(body, columns)
    except BrokenStreamError as error:
        raise UnreadableError(AnswerClass.MALFORMED, str(error), query_status=status, rows=held) from error
    for expected in (promised, streamed):
        _check_promise(expected, held, status)


def _check_promise(expected: int | None, held: int, status: str | None) -> None:
    if expected is not None and expected > held:
        raise UnreadableError(
            AnswerClass.MALFORMED,
            f"the table should have {expected} rows, and {held} could be read",
            query_status=status,
            rows=held,
        )


def _check_range(body: bytes, table: Any, status: str | None) -> None:  # noqa: ANN401  # no types
    """Refuse whole numbers that do not fit their column's type: the parser silently gives the type's limit."""
    if b"TABLEDATA" not in body:
        return
    for field, key in zip(table.fields, table.array.dtype.names, strict=True):
        limits = _LIMITS.get(str(field.datatype), ())
        if field.arraysize not in {None, "1"} or not limits:
            continue
        held = set(table.array[key].ravel().tolist())  # an array of one is an array
        for limit in held.intersection(limits):
            if not re.search(rb">\s*\+?%d\s*<" % limit, body):
                raise UnreadableError(
                    AnswerClass.MALFORMED,
                    f"the column {field.name or field.ID!r} holds a number that is no {field.datatype}",
                    query_status=status,
                    rows=len(table.array),
                )


def _rows(table: Any) -> list[dict[str, JsonValue]]:  # noqa: ANN401  # astropy has no types
    names = [str(field.name or field.ID) for field in table.fields]
    return _rows_of(names, [_cells(table.array[key]) for key in table.array.dtype.names])


def _rows_of(names: Sequence[str], cells: Sequence[list[str]]) -> list[dict[str, JsonValue]]:
    columns: dict[str, list[str]] = {}
    for name, column in zip(names, cells, strict=True):
        # `SELECT a.*, b.*` repeats the column of the join; another value would be lost.
        if columns.setdefault(name, column) != column:
            raise UnreadableError(
                AnswerClass.MALFORMED,
                f"two columns are called {name!r} and differ; the query must rename one (AS)",
            )
    known = list(columns)
    return [dict(zip(known, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _cells(column: Any) -> list[str]:  # noqa: ANN401  # numpy arrays of any type
    import numpy as np  # noqa: PLC0415  # comes with astropy

    hidden = np.ma.getmaskarray(column)
    if hidden.ndim > 1:
        return [cell_text(cell) for cell in column]
    return [
        "" if masked else cell_text(value)
        for value, masked in zip(np.ma.getdata(column), hidden.tolist(), strict=True)
    ]


def _one_line(message: str) -> str:
    line = " ".join(message.split())
    return line if len(line) <= SHOWN else f"{line[: SHOWN - 1]}…"
