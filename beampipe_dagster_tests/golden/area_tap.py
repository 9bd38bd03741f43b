"""URLs of TAP services, and rows read from their answers."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, cast
from xml.etree import ElementTree as ET

from beampipe_dagster.config.canonical import canonical_json
from beampipe_dagster.discovery.archive import DEFAULT_MAXREC
from beampipe_dagster.discovery.tap_session import tap_base_url
from beampipe_dagster.discovery.votable import UnreadableError, read_result
from beampipe_dagster.errors import ConfigError
from beampipe_dagster_tests.golden.runner import Case, Deviation

if TYPE_CHECKING:
    from beampipe_dagster.config.canonical import JsonValue

_ENDPOINT = re.compile(r"/(?:a?sync)$", re.IGNORECASE)
_STATUS_OK = '<INFO name="QUERY_STATUS" value="OK"/>'
_INT = re.compile(r"[+-]?[0-9]+")
_BITS = {"short": 16, "int": 32, "long": 64}
_ERROR: JsonValue = {"error": True}


def sync_url(value: JsonValue) -> JsonValue:
    """``{url}`` -> where synchronous queries go (TAP 1.1 section 2), or ``{error_code}``."""
    try:
        return f"{tap_base_url(_text(value, 'url'))}/sync"
    except ConfigError as error:
        return {"error_code": error.code}


def votable_rows(value: JsonValue) -> JsonValue:
    """``{xml}`` -> ``{rows}``, or ``{error}`` for what is no complete answer."""
    body = _completed(_text(value, "xml"))
    try:
        rows: list[JsonValue] = list(read_result(body.encode(), maxrec=DEFAULT_MAXREC).rows)
    except UnreadableError:
        return _ERROR
    return {"rows": rows}


def json_rows(value: JsonValue) -> JsonValue:
    """``{value}`` -> ``{error}``: JSON is no answer to a query for a VOTable."""
    body = canonical_json(cast("dict[str, JsonValue]", value)["value"])
    try:
        rows: list[JsonValue] = list(read_result(body.encode(), maxrec=DEFAULT_MAXREC).rows)
    except UnreadableError:
        return _ERROR
    return {"rows": rows}


def _text(value: JsonValue, name: str) -> str:
    return cast("dict[str, str]", value)[name]


def _completed(xml: str) -> str:
    """A fragment as a service would send it: a result that says OK, and a type for each column.

    What a fragment says itself is left as it is.
    """
    if "QUERY_STATUS" not in xml:
        xml = re.sub(
            r"<RESOURCE(?: type=\"results\")?>", f'<RESOURCE type="results">{_STATUS_OK}', xml, count=1
        )
    return re.sub(r"<FIELD((?:(?!datatype)[^>/])*)/>", r'<FIELD\1 datatype="char" arraysize="*"/>', xml)


def _sent_to(case: Case) -> str:
    url = _text(case.input, "url").strip().rstrip("/")
    return f"{_ENDPOINT.sub('', url).rstrip('/')}/sync"


def _is_url(case: Case) -> bool:
    return case.fn in {"casda_url", "vizier_url"}


def _is_plain_http(case: Case) -> bool:
    return case.fn == "vizier_url" and _text(case.input, "url").strip().lower().startswith("http://")


def _is_unusable_url(case: Case) -> bool:
    return _is_url(case) and not re.fullmatch(
        r"https?://[^\s/?#@]+[^\s?#@]*", _text(case.input, "url").strip()
    )


def _says_it_failed(case: Case) -> bool:
    return case.fn == "votable" and bool(
        re.search(r'QUERY_STATUS"\s+value="(?!OK")', _text(case.input, "xml"))
    )


def _is_stream(case: Case) -> bool:
    return case.fn == "votable" and "<STREAM" in _text(case.input, "xml")


def _is_no_votable(case: Case) -> bool:
    return case.fn == "votable" and "<VOTABLE" not in _text(case.input, "xml")


def _has_text_in_numbers(case: Case) -> bool:
    """Cells that are no numbers, or too large ones, in columns that the document declares as numbers."""
    if case.fn != "votable":
        return False
    xml = _text(case.input, "xml")
    kinds = [m[1] for m in re.finditer(r'<FIELD[^>]*datatype="(\w+)"', xml)]
    for row in re.findall(r"<TR>(.*?)</TR>", xml, re.DOTALL):
        cells = re.findall(r"<TD>(.*?)</TD>|<TD/>", row, re.DOTALL)
        for kind, text in zip(kinds, cells, strict=False):
            number = text.strip()
            if kind in _BITS and number and not (_INT.fullmatch(number) and _fits(number, _BITS[kind])):
                return True
            if kind in {"double", "float"} and text.strip() and not _is_float(text):
                return True
    return False


def _fits(number: str, bits: int) -> bool:
    return -(1 << (bits - 1)) <= int(number) < 1 << (bits - 1)


def _is_float(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _is_ragged(case: Case) -> bool:
    """Rows with more or fewer cells than there are columns, or several tables in one answer."""
    if case.fn != "votable":
        return False
    xml = _text(case.input, "xml")
    columns = len(re.findall(r"<FIELD\b", xml))
    rows = re.findall(r"<TR>(.*?)</TR>", xml, re.DOTALL)
    return xml.count("<TABLE>") > 1 or any(len(re.findall(r"<TD\b", row)) != columns for row in rows)


def _is_broken(case: Case) -> bool:
    if case.fn != "votable":
        return False
    try:
        ET.fromstring(_text(case.input, "xml"))  # noqa: S314  # cases of our own
    except ET.ParseError:
        return True
    return False


def _has_unclear_names(case: Case) -> bool:
    if case.fn != "votable":
        return False
    fields = re.findall(r"<FIELD\b([^>]*)>", _text(case.input, "xml"))
    names = [re.search(r'\b(?:name|ID)="([^"]*)"', text) for text in fields]
    given = [match[1] for match in names if match]
    return len(given) < len(fields) or len(set(given)) < len(given)


def _is_prefixed(case: Case) -> bool:
    return case.fn == "votable" and re.search(r"<\w+:TABLE\b", _text(case.input, "xml")) is not None


def _has_types(case: Case) -> bool:
    return case.fn == "votable" and re.search(r'datatype="(?!char)', _text(case.input, "xml")) is not None


def _same_values(case: Case, got: JsonValue) -> bool:
    """Every cell is the same number or truth value, a null is empty, and text is the same text."""
    expected, answer = cast("dict[str, Any]", case.expected), cast("dict[str, Any]", got)
    if "rows" not in answer or len(expected.get("rows", [])) != len(answer["rows"]):
        return False
    null = re.search(r'null="([^"]*)"', _text(case.input, "xml"))
    return all(
        old.keys() == new.keys() and all(_same_cell(old[k], new[k], null and null[1]) for k in old)
        for old, new in zip(expected["rows"], answer["rows"], strict=True)
    )


def _same_cell(old: str, new: str, null: str | None) -> bool:
    if old == new or (new == "" and old.lower() in {"nan", "?", null}):
        return True
    if new in {"true", "false"}:
        return (old.lower() in {"t", "1", "true"}) == (new == "true")
    return _is_float(old) and _is_float(new) and float(old) == float(new)


def _is_error(_case: Case, got: JsonValue) -> bool:
    return got == _ERROR


FUNCTIONS: dict[str, Any] = {
    "casda_url": sync_url,
    "vizier_url": sync_url,
    "votable": votable_rows,
    "rows_json": json_rows,
}
DEVIATIONS = [
    Deviation(
        name="one URL for one service",
        reason="a service is named by its base URL (TAP 1.1); slashes at the end and /sync mean the same",
        applies=lambda case: _is_url(case) and not _is_unusable_url(case) and not _is_plain_http(case),
        agrees=lambda case, got: got == _sent_to(case),
    ),
    Deviation(
        name="the scheme as it is written",
        reason="a service on plain HTTP, such as one on this machine, is asked on plain HTTP",
        applies=_is_plain_http,
        agrees=lambda case, got: got == _sent_to(case),
    ),
    Deviation(
        name="no URL of a service",
        reason="what cannot be the base URL of a service is refused before anything is sent",
        applies=_is_unusable_url,
        agrees=lambda _case, got: got == {"error_code": "invalid_tap_url"},
    ),
    Deviation(
        name="a failure is not an empty table",
        reason="a service that says ERROR or OVERFLOW has not answered, and nothing may be concluded from it",
        applies=_says_it_failed,
        agrees=_is_error,
    ),
    Deviation(
        name="not a table at all",
        reason="an answer that is no VOTable says nothing about what the archive holds",
        applies=_is_no_votable,
        agrees=_is_error,
    ),
    Deviation(
        name="half a document",
        reason="a document that breaks off may have lost rows, whatever it holds until there",
        applies=_is_broken,
        agrees=_is_error,
    ),
    Deviation(
        name="columns have names, and each its own",
        reason="a cell under no name, or under the name of another column, cannot be told from the other",
        applies=_has_unclear_names,
        agrees=_is_error,
    ),
    Deviation(
        name="streams are read, or refused",
        reason="rows in BINARY and BINARY2 are rows; a stream that cannot be read is no empty table",
        applies=_is_stream,
        agrees=lambda case, got: got != case.expected,
    ),
    Deviation(
        name="namespaces",
        reason="an element with a prefix is the same element (XML namespaces); its rows are not dropped",
        applies=_is_prefixed,
        agrees=lambda case, got: got != case.expected,
    ),
    Deviation(
        name="a row is as long as the table is wide",
        reason="VOTable 1.4 has a cell for each column; of another document nobody knows which cell is which",
        applies=_is_ragged,
        agrees=_is_error,
    ),
    Deviation(
        name="text in a column of numbers",
        reason="a document that contradicts its own types is not believed",
        applies=_has_text_in_numbers,
        agrees=_is_error,
    ),
    Deviation(
        name="one text for one value",
        reason="a typed cell has the same text in every serialisation, and a null is empty",
        applies=_has_types,
        agrees=_same_values,
    ),
    Deviation(
        name="VOTables only",
        reason="a TAP service is asked for a VOTable; JSON has no QUERY_STATUS to say that it is whole",
        applies=lambda case: case.fn == "rows_json",
        agrees=_is_error,
    ),
]
