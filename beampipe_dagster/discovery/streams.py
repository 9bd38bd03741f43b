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
import re
import struct
import zlib
from dataclasses import dataclass
from typing import Final

_STREAM = re.compile(
    rb"<(?:\w+:)?(BINARY2?)\b[^>]*>\s*<(?:\w+:)?STREAM\b([^>]*)>([^<]*)</(?:\w+:)?STREAM\s*>",
    re.IGNORECASE,
)
_BINARY = re.compile(rb"<(?:\w+:)?BINARY2?\b", re.IGNORECASE)
_ENCODING = re.compile(rb"\sencoding\s*=\s*[\"'](\w+)[\"']", re.IGNORECASE)
_TABLE = re.compile(rb"<(?:\w+:)?TABLE\b[^>]*>")
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
        return gzip.decompress(data) if name == b"gzip" else data
    except (binascii.Error, OSError, EOFError, zlib.error) as error:
        raise BrokenStreamError(f"the binary stream cannot be decoded: {error}") from error


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
