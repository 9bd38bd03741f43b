"""VOTable 1.3 and CSV, written by hand: about ten times faster than building a document of objects.

TABLEDATA is the default; BINARY2 on request. ``QUERY_STATUS`` follows DALI 1.1, section 4.4: OK or ERROR
before the table, OVERFLOW after it.
"""

from __future__ import annotations

import base64
import csv
import io
import struct
from collections.abc import Callable, Sequence
from typing import Literal
from xml.sax.saxutils import escape, quoteattr

from beampipe_dagster.errors import InputError
from beampipe_dagster.sandbox.archive.adql import Answer
from beampipe_dagster.sandbox.archive.columns import Cell, Column, Row

Format = Literal["tabledata", "binary2", "csv"]

MIME: dict[Format, str] = {
    "tabledata": "application/x-votable+xml",
    "binary2": "application/x-votable+xml;serialization=BINARY2",
    "csv": "text/csv;header=present",
}

_ALIASES: dict[str, Format] = {
    "votable": "tabledata",
    "votable/td": "tabledata",
    "text/xml": "tabledata",
    "application/x-votable+xml": "tabledata",
    "application/x-votable+xml;serialization=tabledata": "tabledata",
    "votable/b2": "binary2",
    "binary2": "binary2",
    "application/x-votable+xml;serialization=binary2": "binary2",
    "csv": "csv",
    "text/csv": "csv",
    "text/csv;header=present": "csv",
}

_HEAD = (
    '<?xml version="1.0" encoding="UTF-8"?>\n'
    '<VOTABLE version="1.3" xmlns="http://www.ivoa.net/xml/VOTable/v1.3">'
    '<RESOURCE type="results">'
)
_TAIL = "</RESOURCE></VOTABLE>\n"
_NULL_LITERAL = {"short": -32_768, "int": -2_147_483_648, "long": -9_223_372_036_854_775_808}
_NUMBER: dict[str, tuple[str, int | float]] = {
    "short": (">h", 0),
    "int": (">i", 0),
    "long": (">q", 0),
    "float": (">f", float("nan")),
    "double": (">d", float("nan")),
}


def parse_format(text: str | None) -> Format:
    """The format that a request's RESPONSEFORMAT or FORMAT names; TABLEDATA when there is none.

    Raises
    ------
    InputError
        ``unsupported_format`` listing the known ones.
    """
    if not text:
        return "tabledata"
    found = _ALIASES.get(text.lower().replace(" ", "").replace('"', ""))
    if found is None:
        raise InputError(
            f"The format {text[:80]!r} is not supported.",
            code="unsupported_format",
            hint="Use votable, votable/b2 or csv.",
        )
    return found


def write(answer: Answer, form: Format) -> bytes:
    """An answer as a document of the given format."""
    if form == "csv":
        return _csv(answer)
    parts = [_HEAD, '<INFO name="QUERY_STATUS" value="OK"/>', "<TABLE>"]
    parts += [_field(column, number) for number, column in enumerate(answer.columns)]
    parts.append("<DATA>")
    parts.append(_tabledata(answer) if form == "tabledata" else _binary2(answer))
    parts.append("</DATA></TABLE>")
    if answer.overflow:
        parts.append(
            '<INFO name="QUERY_STATUS" value="OVERFLOW">'
            f"Only the first {len(answer.rows)} rows are here.</INFO>"
        )
    parts.append(_TAIL)
    return "".join(parts).encode()


def write_error(message: str) -> bytes:
    """The document that says why there is no answer."""
    info = f'<INFO name="QUERY_STATUS" value="ERROR">{_text(message)}</INFO>'
    return (_HEAD + info + _TAIL).encode()


def _field(column: Column, number: int) -> str:
    attributes = {
        "ID": f"c{number}",
        "name": column.name,
        "datatype": column.datatype,
        "arraysize": column.arraysize or "",
        "unit": column.unit,
        "ucd": column.ucd,
        "utype": column.utype,
        "xtype": column.xtype,
    }
    text = "".join(f" {key}={_attribute(value)}" for key, value in attributes.items() if value)
    inside = ""
    if column.datatype in _NULL_LITERAL:
        # An empty cell and BINARY2's flag both say NULL; the literal is for readers of VOTable 1.2.
        inside += f'<VALUES null="{_NULL_LITERAL[column.datatype]}"/>'
    if column.description:
        inside = f"<DESCRIPTION>{_text(column.description)}</DESCRIPTION>" + inside
    return f"<FIELD{text}>{inside}</FIELD>"


def _tabledata(answer: Answer) -> str:
    writers = [_CELLS.get(column.datatype, _text_cell) for column in answer.columns]
    rows = (
        "".join(["<TD/>" if value is None else w(value) for w, value in zip(writers, row, strict=True)])
        for row in answer.rows
    )
    return "<TABLEDATA>" + "".join(f"<TR>{row}</TR>\n" for row in rows) + "</TABLEDATA>"


def _text_cell(value: Cell) -> str:
    return f"<TD>{_text(str(value))}</TD>"


def _float_cell(value: Cell) -> str:
    number = float(value or 0.0)
    if number in {float("inf"), float("-inf")}:
        return "<TD>+Inf</TD>" if number > 0 else "<TD>-Inf</TD>"
    return f"<TD>{number!r}</TD>"


def _int_cell(value: Cell) -> str:
    return f"<TD>{int(value or 0)}</TD>"


_CELLS: dict[str, Callable[[Cell], str]] = {
    "short": _int_cell,
    "int": _int_cell,
    "long": _int_cell,
    "float": _float_cell,
    "double": _float_cell,
}


def _binary2(answer: Answer) -> str:
    encoders = [_encoder(column) for column in answer.columns]
    flag_bytes = (len(encoders) + 7) // 8
    out = bytearray()
    for row in answer.rows:
        out += _null_flags(row, flag_bytes)
        for encode, value in zip(encoders, row, strict=True):
            out += encode(value)
    data = base64.encodebytes(bytes(out)).decode()
    return f'<BINARY2><STREAM encoding="base64">{data}</STREAM></BINARY2>'


def _null_flags(row: Row, size: int) -> bytes:
    """One bit a column, the first one highest (VOTable 1.3, section 5.4)."""
    bits = 0
    for value in row:
        bits = bits << 1 | (value is None)
    return (bits << (size * 8 - len(row))).to_bytes(size, "big")


def _encoder(column: Column) -> Callable[[Cell], bytes]:
    if column.datatype == "unicodeChar":
        return lambda value: _counted("" if value is None else str(value), "utf-16-be")
    if column.datatype == "boolean":
        return lambda value: b"?" if value is None else b"T" if value else b"F"
    if column.datatype in _NUMBER:
        code, null = _NUMBER[column.datatype]
        packer = struct.Struct(code)
        if column.datatype in _NULL_LITERAL:
            return lambda value: packer.pack(null if value is None else int(value))
        return lambda value: packer.pack(null if value is None else float(value))
    return lambda value: _counted("" if value is None else str(value), "utf-8")


def _counted(text: str, encoding: str) -> bytes:
    data = text.encode(encoding)
    return struct.pack(">i", len(data) // 2 if encoding == "utf-16-be" else len(data)) + data


def _csv(answer: Answer) -> bytes:
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow([column.name for column in answer.columns])
    writer.writerows(_plain(answer.rows))
    return out.getvalue().encode()


def _plain(rows: Sequence[Row]) -> list[list[Cell]]:
    return [["" if value is None else value for value in row] for row in rows]


_CONTROLS = dict.fromkeys([*range(9), 11, 12, *range(14, 32), 0xFFFE, 0xFFFF], "\ufffd")


def _text(value: str) -> str:
    """XML text; characters that XML 1.0 cannot hold become U+FFFD."""
    # A bare carriage return would be read back as a line feed.
    return escape(value.translate(_CONTROLS), {"\r": "&#13;"})


def _attribute(value: str) -> str:
    return quoteattr(value.translate(_CONTROLS))
