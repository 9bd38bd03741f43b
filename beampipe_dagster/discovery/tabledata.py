"""The common case of an answer, read fast: one table of single values in TABLEDATA (VOTable 1.3 and later).

A general VOTable parser builds an array of every column and checks what a table may be in thirty years of clients.
A survey's answers are thousands of small tables of texts and numbers, and reading them is most of what discovery
costs. What is read here comes to the same text, cell for cell, as the general way; whatever is out of the ordinary
(arrays, streams, several tables, odd cells, older versions) is left to that way.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from beampipe_dagster.discovery.archive import AnswerColumn
from beampipe_dagster.discovery.cells import cell_text

if TYPE_CHECKING:
    from lxml.etree import _Element

_VERSIONS: Final = {"1.3": "cds", "1.4": "vounit", "1.5": "vounit"}
"""Versions that are read here, with the syntax of their units."""

_WHOLE: Final = {"short": 2**15, "int": 2**31, "long": 2**63}
_NUMBER: Final = re.compile(r"[+-]?[0-9]{1,19}")
_REAL: Final = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?")
_SIZE: Final = re.compile(r"([0-9]{1,6})\*?")
_TRUTH: Final = {
    "TRUE": "true", "T": "true", "1": "true", "FALSE": "false", "F": "false", "0": "false", "?": "", "": "",
}  # fmt: skip  # one line a meaning
_DOUBLE_PLAIN: Final = (1e-4, 1e15)
"""Between these the shortest digits of a double have no exponent in any form."""


class _OddError(Exception):
    """Something that is left to the general way."""


@dataclass(frozen=True, slots=True)
class PlainTable:
    """A table, and what its document says about it.

    Attributes
    ----------
    infos
        All INFO elements as (name, value, text), in their order.
    columns
        What the document says about the columns.
    cells
        The texts of each column.
    rows
        How many rows there are.
    """

    infos: tuple[tuple[str, str, str], ...]
    columns: tuple[AnswerColumn, ...]
    cells: tuple[list[str], ...]
    rows: int


def read_plain(body: bytes) -> PlainTable | None:
    """The table of a document; None where the general way has to look at it.

    The document has passed :func:`~beampipe_dagster.discovery.xml.refuse_tricks`.
    """
    if b"TABLEDATA" not in body or b"<!DOCTYPE" in body:
        return None
    from lxml import etree  # noqa: PLC0415  # only where archives are asked

    parser = etree.XMLParser(
        resolve_entities=False, no_network=True, load_dtd=False, remove_comments=True, huge_tree=True
    )
    try:
        root = etree.fromstring(body, parser)
        return _table(root)
    except (etree.XMLSyntaxError, ValueError, _OddError):
        return None


def _table(root: _Element) -> PlainTable:
    version = root.get("version") or ""
    resources = _children(root, "RESOURCE")
    if _name(root) != "VOTABLE" or version not in _VERSIONS or len(resources) != 1:
        raise _OddError
    resource = resources[0]
    tables = _children(resource, "TABLE")
    if resource.get("type") != "results" or _children(resource, "RESOURCE") or len(tables) != 1:
        raise _OddError
    table = tables[0]
    data = [part for holder in _children(table, "DATA") for part in holder if _name(part) != "INFO"]
    if len(data) != 1 or _name(data[0]) != "TABLEDATA" or table.get("ref") is not None:
        raise _OddError
    fields = _children(table, "FIELD")
    readers = [_reader(field) for field in fields]
    width = len(fields)
    if not width:
        raise _OddError
    rows = [_row(row, width) for row in data[0]]
    columns = list(zip(*rows, strict=True)) if rows else [()] * width
    cells_read = tuple([read(text) for text in column] for read, column in zip(readers, columns, strict=True))
    return PlainTable(_infos(root), tuple(_column(field, version) for field in fields), cells_read, len(rows))


def _row(row: _Element, width: int) -> list[str]:
    cells: list[str] = []
    for cell in row:
        if len(cell) or cell.attrib or _name(cell) != "TD":
            raise _OddError
        cells.append(cell.text or "")
    if len(cells) != width or _name(row) != "TR":
        raise _OddError
    return cells


def _name(element: _Element) -> str:
    tag: Any = element.tag
    return tag.rpartition("}")[2] if isinstance(tag, str) else ""


def _children(element: _Element, name: str) -> list[_Element]:
    return [child for child in element if _name(child) == name]


def _infos(root: _Element) -> tuple[tuple[str, str, str], ...]:
    found = [element for element in root.iter("{*}INFO")]  # noqa: C416  # a list of what is iterated once
    return tuple((one.get("name") or "", one.get("value") or "", one.text or "") for one in found)


def _column(field: _Element, version: str) -> AnswerColumn:
    name = field.get("name")
    if not name:
        raise _OddError
    size = field.get("arraysize")
    unit = _unit(field.get("unit") or "", _VERSIONS[version])
    return AnswerColumn(name, field.get("datatype") or "", size, unit, field.get("ucd") or "")


@lru_cache(maxsize=1000)
def _unit(text: str, syntax: str) -> str:
    """A unit as the general way shows it, which knows the spellings of units."""
    if not text:
        return ""
    from astropy import units  # noqa: PLC0415  # takes 0.3 s to import

    return str(units.Unit(text, format=syntax, parse_strict="silent") or "")


def _reader(field: _Element) -> Callable[[str], str]:
    """How the cells of a column become text."""
    datatype, size = field.get("datatype"), field.get("arraysize")
    values = _children(field, "VALUES")
    null = values[0].get("null") if values else None
    if len(values) > 1 or any(one.get("ref") is not None for one in values):
        raise _OddError
    if datatype in {"char", "unicodeChar"} and null is None:
        return _text_reader(size, ascii_only=datatype == "char")
    if size not in {None, "1"}:
        raise _OddError
    if datatype in _WHOLE:
        return _whole_reader(_WHOLE[datatype], null)
    if null is None and datatype == "double":
        return _double
    if null is None and datatype == "float":
        return _single
    if null is None and datatype == "boolean":
        return _truth
    raise _OddError


def _text_reader(size: str | None, *, ascii_only: bool) -> Callable[[str], str]:
    limit: int | None = None
    if size != "*":
        match = _SIZE.fullmatch(size or "")
        if match is None:
            raise _OddError
        limit = int(match[1])

    def read(text: str) -> str:
        if (limit is not None and len(text) > limit) or (ascii_only and not text.isascii()):
            raise _OddError
        return text.strip()

    return read


def _whole_reader(bound: int, null: str | None) -> Callable[[str], str]:
    if null is not None and not _NUMBER.fullmatch(null):
        raise _OddError
    absent = None if null is None else int(null)

    def read(text: str) -> str:
        text = text.strip()
        if not text:
            return ""
        if not _NUMBER.fullmatch(text):
            raise _OddError
        number = int(text)
        if not -bound < number < bound - 1:
            raise _OddError  # at the limit it may be a number that does not fit
        return "" if number == absent else str(number)

    return read


def _double(text: str) -> str:
    text = text.strip()
    if not text or text == "NaN":
        return ""
    if not _REAL.fullmatch(text):
        raise _OddError
    value = float(text)
    if _DOUBLE_PLAIN[0] <= abs(value) < _DOUBLE_PLAIN[1] or value == 0:
        return repr(value)
    return cell_text(value)


@lru_cache(maxsize=100_000)
def _single(text: str) -> str:
    import numpy as np  # noqa: PLC0415  # comes with the general way

    text = text.strip()
    if not text or text == "NaN":
        return ""
    if not _REAL.fullmatch(text):
        raise _OddError
    return cell_text(np.float32(float(text)))


def _truth(text: str) -> str:
    found = _TRUTH.get(text.strip().upper())
    if found is None:
        raise _OddError
    return found
