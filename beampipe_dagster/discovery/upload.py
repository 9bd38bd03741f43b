"""Tables that go with a query: checked, and written as VOTables (TAP 1.1 section 2.7.5).

All columns are text, and an empty text is NULL to the service, since VOTable tells no difference.
Nothing is escaped by hand: lxml writes the document, and what XML cannot hold is refused before
anything is sent.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from beampipe_dagster.config.canonical import sha256_hex
from beampipe_dagster.errors import InputError

if TYPE_CHECKING:
    from beampipe_dagster.discovery.archive import Upload

MAX_COLUMNS: Final = 100
"""Columns of an upload."""
MAX_BYTES: Final = 64 * 1024 * 1024
"""Length of an upload's document; services take far less (DaCHS: 500 kB in a synchronous query)."""

_NAMESPACE: Final = "http://www.ivoa.net/xml/VOTable/v1.3"
# What every dialect takes without quotes. TAP_UPLOAD.<name> is compared without regard to case.
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,59}")
_NOT_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")


def upload_document(upload: Upload) -> bytes:
    """An upload as a VOTable 1.3 document with TABLEDATA.

    Raises
    ------
    InputError
        ``invalid_upload``: a name that ADQL does not take, columns that are none or not different, a
        row of another width, text that XML cannot hold or with blanks at an end, or a document that
        is too long.
    """
    from lxml import etree  # noqa: PLC0415  # only for uploads

    _check(upload)
    root = etree.Element("VOTABLE", {"version": "1.3", "xmlns": _NAMESPACE})
    table = etree.SubElement(etree.SubElement(root, "RESOURCE"), "TABLE", {"name": upload.name})
    for index, name in enumerate(upload.columns):
        wide = not all(row[index].isascii() for row in upload.rows)
        kind = "unicodeChar" if wide else "char"
        etree.SubElement(table, "FIELD", {"name": name, "datatype": kind, "arraysize": "*"})
    data = etree.SubElement(etree.SubElement(table, "DATA"), "TABLEDATA")
    for row in upload.rows:
        line = etree.SubElement(data, "TR")
        for cell in row:
            etree.SubElement(line, "TD").text = cell
    document: bytes = etree.tostring(root, xml_declaration=True, encoding="UTF-8")
    if len(document) > MAX_BYTES:
        raise _refused(upload, f"it is {len(document)} bytes long, and {MAX_BYTES} is the most")
    return document


def upload_digest(upload: Upload | None) -> str:
    """SHA-256 of an upload's contents; ``""`` for none."""
    if upload is None:
        return ""
    parts = [upload.name.lower(), str(len(upload.columns)), *upload.columns]
    parts += [cell for row in upload.rows for cell in row]
    # Lengths keep ("ab", "c") apart from ("a", "bc").
    return sha256_hex("".join(f"{len(part)}:{part}" for part in parts))


def _check(upload: Upload) -> None:
    if not _NAME.fullmatch(upload.name):
        raise _refused(upload, "its name must be a letter and then letters, digits and _")
    if not 0 < len(upload.columns) <= MAX_COLUMNS:
        raise _refused(upload, f"it has {len(upload.columns)} columns, and 1 to {MAX_COLUMNS} are allowed")
    for name in upload.columns:
        if not _NAME.fullmatch(name):
            raise _refused(upload, f"{name[:60]!r} is no name of a column")
    if len({name.lower() for name in upload.columns}) < len(upload.columns):
        raise _refused(upload, "two of its columns have the same name")
    for number, row in enumerate(upload.rows):
        if len(row) != len(upload.columns):
            raise _refused(upload, f"row {number} has {len(row)} cells and not {len(upload.columns)}")
        for cell in row:
            _check_cell(upload, number, cell)


def _check_cell(upload: Upload, number: int, cell: str) -> None:
    if _NOT_XML.search(cell):
        raise _refused(upload, f"row {number} has a character that XML cannot hold")
    if cell != cell.strip():
        # Some readers of VOTables take them off, and a comparison would quietly miss the row.
        raise _refused(upload, f"row {number} has a text with blanks at an end")


def _refused(upload: Upload, why: str) -> InputError:
    return InputError(
        f"the table {upload.name[:60]!r} cannot go with a query: {why}",
        code="invalid_upload",
        hint="Upload plain text, in columns with simple names of their own.",
    )
