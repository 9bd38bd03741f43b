"""Whether a VOTable's binary stream is whole.

astropy stops without a word at the end of a BINARY or BINARY2 stream, also in the middle of a row:
a stream that was cut off inside a document that is otherwise well-formed gives fewer rows, or none.
So the stream is walked here by the widths of its fields (VOTable 1.4 sections 6 and 5.4) and must
end where a row ends.
"""

from __future__ import annotations

import base64
import binascii
import gzip
import io
import re
import struct
import zlib
from dataclasses import dataclass
from typing import Final

# XML has no < inside a tag. With it excluded, no pattern here goes over the same bytes again and again.
_STREAM = re.compile(
    rb"<(?:\w+:)?(BINARY2?)\b[^<>]*>\s*<(?:\w+:)?STREAM\b([^<>]*)>([^<]*)</(?:\w+:)?STREAM\s*>",
    re.IGNORECASE,
)
_BINARY = re.compile(rb"<(?:\w+:)?BINARY2?\b", re.IGNORECASE)
_ENCODING = re.compile(rb"\sencoding\s*=\s*[\"'](\w+)[\"']", re.IGNORECASE)
_TABLE = re.compile(rb"<(?:\w+:)?TABLE\b[^<>]*>")
_FIELD = re.compile(rb"<(?:\w+:)?FIELD\b(?:[^<>\"']|\"[^<\"]*\"|'[^<']*')*>", re.IGNORECASE)
_DATATYPE = re.compile(rb"\sdatatype\s*=\s*[\"']\s*(\w+)")
_ARRAYSIZE = re.compile(rb"\sarraysize\s*=\s*[\"']([^\"']*)[\"']")

MAX_COLUMNS: Final = 5_000
"""Columns of a table. The widest tables of archives have about a thousand."""
MAX_ROW_BYTES: Final = 4 * 1024 * 1024
"""What one row's cells of fixed size may take; a reader makes room for them whether they are filled or not."""
MAX_PROMISED_ROWS: Final = 5_000_000
"""Rows that a table may announce; a reader makes room for them before one has come."""
MAX_STREAM_BYTES: Final = 512 * 1024 * 1024
"""Length of a binary stream when it is no longer compressed."""
_NROWS = re.compile(rb"\snrows\s*=\s*[\"']\s*([0-9]{1,18})\s*[\"']")
_WIDTHS: Final = {
    "boolean": 1,
    "unsignedByte": 1,
    "short": 2,
    "int": 4,
    "long": 8,
    "char": 1,
    "unicodeChar": 2,
    "float": 4,
    "double": 8,
    "floatComplex": 8,
    "doubleComplex": 16,
}


class BrokenStreamError(Exception):
    """A stream that does not end where a row ends; translated by the module that reads VOTables."""


@dataclass(frozen=True, slots=True)
class Column:
    """What a FIELD says about its cells' width.

    Parameters
    ----------
    datatype
        VOTable's name of the type, e.g. ``int``.
    arraysize
        ``None`` for a single value, else e.g. ``10``, ``*``, ``10*`` or ``2x3``.
    """

    datatype: str
    arraysize: str | None


def check_extent(body: bytes) -> None:
    """Refuse a document that announces more than can be held, before a parser makes room for it.

    Raises
    ------
    BrokenStreamError
        Too many columns, too wide cells, too many rows announced, or a compressed stream that is too
        long when it is unpacked.
    """
    fields = _FIELD.findall(body)
    if len(fields) > MAX_COLUMNS:
        raise BrokenStreamError(f"the table has {len(fields)} columns, and {MAX_COLUMNS} is the most")
    width = sum(_fixed_bytes(field) for field in fields)
    rows = max((int(found[1]) for found in map(_NROWS.search, _TABLE.findall(body)) if found), default=0)
    if width > MAX_ROW_BYTES:
        raise BrokenStreamError(f"a row would take {width} bytes, and {MAX_ROW_BYTES} is the most")
    if rows > MAX_PROMISED_ROWS:
        raise BrokenStreamError(
            f"the table announces {rows} rows, and {MAX_PROMISED_ROWS} can be held at most"
        )
    for _kind, attributes, content in _STREAM.findall(body):
        _decoded(attributes, content)


def _fixed_bytes(field: bytes) -> int:
    kind, size = _DATATYPE.search(field), _ARRAYSIZE.search(field)
    # A parser keeps a character in four bytes.
    width = 4 if kind and kind[1] in {b"char", b"unicodeChar"} else 16
    for part in (size[1] if size else b"1").lower().split(b"x"):
        number = part.strip().rstrip(b"*").strip()
        # What a variable length may grow to is not allocated before it does.
        width *= int(number) if number.isdigit() and not part.strip().endswith(b"*") else 1
    return width


def promised_rows(body: bytes) -> int | None:
    """The ``nrows`` of a document's only TABLE, if it gives one."""
    tables = _TABLE.findall(body)
    found = _NROWS.search(tables[0]) if len(tables) == 1 else None
    return int(found[1]) if found else None


def stream_rows(body: bytes, columns: list[Column]) -> int | None:
    """Rows of a document's binary stream.

    Parameters
    ----------
    body
        The whole document.
    columns
        Its fields, in order.

    Returns
    -------
    int or None
        ``None`` for a document without a binary stream, or with fields whose width in it VOTable
        leaves open (arrays of several dimensions of which one is variable).

    Raises
    ------
    BrokenStreamError
        The stream cannot be decoded, or ends in the middle of a row.
    """
    if not _BINARY.search(body):
        return None
    streams = _STREAM.findall(body)
    if len(streams) != 1:
        raise BrokenStreamError(f"the document has {len(streams)} binary streams, not one")
    kind, attributes, content = streams[0]
    layout = _layout(columns, null_flags=kind.upper() == b"BINARY2")
    return None if layout is None else _walk(_decoded(attributes, content), layout)


def _decoded(attributes: bytes, content: bytes) -> bytes:
    encoding = _ENCODING.search(attributes)
    name = encoding[1].lower() if encoding else b""
    try:
        data = base64.b64decode(content)
        return _unpacked(data) if name == b"gzip" else data
    except (binascii.Error, OSError, EOFError, zlib.error) as error:
        raise BrokenStreamError(f"the binary stream cannot be decoded: {error}") from error


def _unpacked(data: bytes) -> bytes:
    """What gzip packed, up to the most that can be held."""
    with gzip.GzipFile(fileobj=io.BytesIO(data)) as packed:
        found = packed.read(MAX_STREAM_BYTES + 1)
    if len(found) > MAX_STREAM_BYTES:
        raise BrokenStreamError(f"the binary stream is longer than {MAX_STREAM_BYTES} bytes when unpacked")
    return found


def _layout(columns: list[Column], *, null_flags: bool) -> list[tuple[int, int]] | None:
    """A row as ``(bytes to step over, bits of each item of the array that follows)``.

    Fields of fixed width are taken together; 0 bits for what follows the last array.
    """
    layout: list[tuple[int, int]] = []
    fixed = (len(columns) + 7) // 8 if null_flags else 0
    for column in columns:
        bits = 1 if column.datatype == "bit" else 8 * _WIDTHS.get(column.datatype, 0)
        size = (column.arraysize or "1").strip()
        variable = size.endswith("*")
        if not bits or (variable and "x" in size):
            return None
        if variable:
            layout.append((fixed, bits))
            fixed = 0
            continue
        count = 1
        for part in size.split("x"):
            if not part.strip().isdecimal():
                return None
            count *= int(part)
        fixed += (count * bits + 7) // 8
    layout.append((fixed, 0))
    # A row without any byte could be there any number of times.
    return layout if fixed or len(layout) > 1 else None


def _walk(stream: bytes, layout: list[tuple[int, int]]) -> int:
    position, rows, end = 0, 0, len(stream)
    while position < end:
        for fixed, bits in layout:
            position += fixed
            if bits:
                if position + 4 > end:
                    position = end + 1
                    break
                (count,) = struct.unpack_from(">i", stream, position)
                if count < 0:
                    raise BrokenStreamError(f"row {rows} of the binary stream has a negative length")
                position += 4 + (count * bits + 7) // 8
        if position > end:
            raise BrokenStreamError(f"the binary stream ends in the middle of row {rows}")
        rows += 1
    return rows
