"""What a TAP request asks: its parameters, from a query string, a form or a multipart body, and its uploads.

Parameter names are case-insensitive (DALI 1.1, section 3). The multipart reader is the standard library's: a
parser of forms would be one dependency for one parameter.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from email.parser import BytesParser
from email.policy import HTTP
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl

from beampipe_dagster.errors import InputError
from beampipe_dagster.sandbox.archive.adql import Upload
from beampipe_dagster.sandbox.archive.columns import Cell, Column, Datatype, Row
from beampipe_dagster.sandbox.archive.votable import Format, parse_format

if TYPE_CHECKING:
    import numpy as np

MAX_BODY_BYTES = 16_000_000
DEFAULT_MAXREC = 20_000
HARD_MAXREC = 200_000
MAX_UPLOAD_ROWS = 50_000

_BOUNDARY = re.compile(r';\s*boundary=(?:"([^"]{1,200})"|([^\s;"]{1,200}))', re.IGNORECASE)
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")
_LANGUAGES = {"ADQL", "ADQL-2.0", "ADQL-2.1"}
Fetch = Callable[[str], bytes | None]
_DATATYPES: dict[str, Datatype] = {
    "boolean": "boolean",
    "unsignedByte": "int",
    "short": "short",
    "int": "int",
    "long": "long",
    "float": "float",
    "double": "double",
    "char": "char",
    "unicodeChar": "unicodeChar",
}


@dataclass(frozen=True, slots=True)
class Parameters:
    """Parameters in the order of the request, and the files of a multipart body by field name."""

    pairs: tuple[tuple[str, str], ...] = ()
    files: Mapping[str, bytes] = field(default_factory=dict)

    def get(self, name: str) -> str | None:
        """The last value of a parameter; None when it is not there."""
        return next((v for key, v in reversed(self.pairs) if key.upper() == name), None)

    def all(self, name: str) -> list[str]:
        """All values of a parameter."""
        return [value for key, value in self.pairs if key.upper() == name]

    def updated(self, other: Parameters) -> Parameters:
        """These parameters with another request's over them."""
        names = {key.upper() for key, _ in other.pairs}
        kept = tuple(pair for pair in self.pairs if pair[0].upper() not in names)
        return Parameters(kept + other.pairs, {**self.files, **other.files})


@dataclass(frozen=True, slots=True)
class TapQuery:
    """A query that is ready to run."""

    adql: str
    maxrec: int
    form: Format
    uploads: tuple[Upload, ...]


def read_parameters(query_string: str, content_type: str, body: bytes) -> Parameters:
    """The parameters of a GET or a POST.

    Raises
    ------
    InputError
        ``invalid_request`` when the body is neither a form nor multipart, or cannot be read.
    """
    pairs = parse_qsl(query_string, keep_blank_values=True)
    kind = content_type.partition(";")[0].strip().lower()
    if not body or kind == "application/x-www-form-urlencoded":
        text = body.decode("utf-8", errors="replace")
        return Parameters(tuple(pairs + parse_qsl(text, keep_blank_values=True)))
    if kind != "multipart/form-data":
        raise InputError(
            f"A body of type {kind or 'unknown'!r} cannot be read.",
            code="invalid_request",
            hint="Send a form (application/x-www-form-urlencoded) or multipart/form-data.",
        )
    files: dict[str, bytes] = {}
    for name, is_file, content in _parts(content_type, body):
        if is_file:
            files[name] = content
        else:
            pairs.append((name, content.decode("utf-8", errors="replace")))
    return Parameters(tuple(pairs), files)


def _parts(content_type: str, body: bytes) -> Iterable[tuple[str, bool, bytes]]:
    """Name, whether it is a file, and content of each part of a multipart body (RFC 2046, section 5.1).

    Cut here, since the standard library takes angle brackets off a boundary, and STILTS sends some.
    """
    found = _BOUNDARY.search(content_type)
    if found is None:
        raise _invalid("a multipart body without a boundary", "Say the boundary in the Content-Type.")
    delimiter = b"\r\n--" + (found[1] or found[2]).encode("latin-1", errors="replace")
    for piece in (b"\r\n" + body).split(delimiter)[1:]:
        if piece.startswith(b"--"):
            return
        head, _, content = piece.partition(b"\r\n")[2].partition(b"\r\n\r\n")
        part = BytesParser(policy=HTTP).parsebytes(head + b"\r\n\r\n", headersonly=True)
        name = part.get_param("name", header="content-disposition")
        if isinstance(name, str):
            yield name, part.get_filename() is not None, content


def read_query(parameters: Parameters, fetch: Fetch | None = None) -> TapQuery:
    """Check a request's parameters (TAP 1.1, section 2.7) and read its uploads.

    Parameters
    ----------
    parameters
        The request's.
    fetch
        Gives the table at a URL, or ``None`` for one from which no table is taken.

    Raises
    ------
    InputError
        ``invalid_request``, ``unsupported_format`` or ``invalid_upload``.
    """
    request = parameters.get("REQUEST")
    if request is not None and request.lower() != "doquery":
        raise _invalid(f"REQUEST={request[:40]} is not known", "Use REQUEST=doQuery.")
    language = parameters.get("LANG") or ""
    if language.upper() not in _LANGUAGES:
        raise _invalid(f"LANG={language[:40]} is not known", "Use LANG=ADQL.")
    adql = parameters.get("QUERY")
    if not adql:
        raise _invalid("QUERY is missing", "Send the ADQL in QUERY.")
    form = parse_format(parameters.get("RESPONSEFORMAT") or parameters.get("FORMAT"))
    uploads = tuple(_uploads(parameters, fetch))
    return TapQuery(adql, _maxrec(parameters.get("MAXREC")), form, uploads)


def _maxrec(text: str | None) -> int:
    if text is None or text == "":
        return DEFAULT_MAXREC
    if not re.fullmatch(r"\d{1,18}", text, re.ASCII):
        raise _invalid(f"MAXREC={text[:40]} is not a whole number", "Send MAXREC=0 or more.")
    return min(int(text), HARD_MAXREC)


def _uploads(parameters: Parameters, fetch: Fetch | None) -> Iterable[Upload]:
    seen: set[str] = set()
    for value in parameters.all("UPLOAD"):
        for item in filter(None, value.split(";")):
            name, _, uri = item.partition(",")
            if not _NAME.fullmatch(name) or name.lower() in seen:
                raise _bad_upload(name, "the name must be new, of letters, digits and _")
            seen.add(name.lower())
            yield _read_upload(name, _upload_body(name, uri, parameters, fetch))


def _upload_body(name: str, uri: str, parameters: Parameters, fetch: Fetch | None) -> bytes:
    if uri.startswith("param:"):
        body = parameters.files.get(uri.removeprefix("param:"))
        if body is None:
            raise _bad_upload(name, f"the request has no part {uri.removeprefix('param:')[:60]!r}")
        return body
    body = fetch(uri) if fetch is not None else None
    if body is None:
        raise _bad_upload(
            name, "only inline tables (param:<part>) and results of this archive's own jobs are taken"
        )
    return body


def _read_upload(name: str, body: bytes) -> Upload:
    # Imported late: reading VOTables costs half a second at import, and few queries upload.
    from astropy.io.votable import parse  # noqa: PLC0415

    try:
        table = parse(io.BytesIO(body), verify="ignore").get_first_table()
    except Exception as error:  # astropy raises many kinds for a bad document
        raise _bad_upload(name, f"it is not a VOTable: {str(error)[:160]}") from error
    columns = []
    for each in table.fields:
        datatype = _DATATYPES.get(each.datatype)
        text = datatype in {"char", "unicodeChar"}
        if datatype is None or (each.arraysize not in {None, "", "1"} and not text):
            raise _bad_upload(name, f"column {each.name!r} has a type that is not supported")
        if not _NAME.fullmatch(each.name):
            raise _bad_upload(name, f"{str(each.name)[:60]!r} is not a column name")
        unit, ucd, xtype = (str(text or "") for text in (each.unit, each.ucd, each.xtype))
        columns.append(Column(each.name, datatype, unit, ucd, xtype=xtype))
    if len({column.name.lower() for column in columns}) < max(1, len(columns)):
        raise _bad_upload(name, "it needs columns of different names")
    if len(table.array) > MAX_UPLOAD_ROWS:
        raise _bad_upload(name, f"it has more than {MAX_UPLOAD_ROWS} rows")
    return Upload(name, tuple(columns), _rows(table.array, columns))


def _rows(array: np.ma.MaskedArray, columns: Sequence[Column]) -> list[Row]:
    """The rows of a masked array as SQLite stores them: masked, NaN and empty text are NULL."""
    names = array.dtype.names or ()
    by_column = []
    for index, column in enumerate(columns):
        values = array[names[index]]
        cells = [_cell(value, column) for value in values.tolist()]
        by_column.append(cells)
    return list(zip(*by_column, strict=True))


def _cell(value: Cell, column: Column) -> Cell:
    if isinstance(value, bytes):
        value = value.decode("utf-8", errors="replace")
    if value is None or value == "" or value != value:  # noqa: PLR0124  # NaN
        return None
    return int(value) if column.datatype == "boolean" else value


def _invalid(what: str, hint: str) -> InputError:
    return InputError(f"The request cannot be answered: {what}.", code="invalid_request", hint=hint)


def _bad_upload(name: str, why: str) -> InputError:
    return InputError(
        f"The uploaded table {name[:60]!r} cannot be used: {why}.",
        code="invalid_upload",
        hint="Send it as UPLOAD=<name>,param:<part> with a VOTable in that part.",
    )
