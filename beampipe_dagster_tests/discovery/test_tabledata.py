"""The fast way to a table comes to what the general way comes to."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch
from xml.sax.saxutils import escape, quoteattr

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from beampipe_dagster.discovery import votable
from beampipe_dagster.discovery.tabledata import read_plain
from beampipe_dagster.discovery.votable import ResultTable, UnreadableError, read_result

NAMESPACES = ("", ' xmlns="http://www.ivoa.net/xml/VOTable/v1.3"')
TYPES = [
    ("char", "*"), ("char", "8*"), ("char", "8"), ("char", None), ("unicodeChar", "*"), ("short", None),
    ("int", None), ("int", "1"), ("long", None), ("unsignedByte", None), ("float", None), ("double", None),
    ("boolean", None), ("double", "2"), ("int", "*"),
]  # fmt: skip  # one list
TEXT = st.text(
    st.characters(exclude_categories=["Cs", "Cc", "Cn"], exclude_characters="\u2028\u2029"), max_size=10
)
CELLS = st.one_of(
    TEXT,
    st.sampled_from(
        ["", " ", "NaN", "nan", "Inf", "-Inf", "+1", "-0", "0x1F", "1e400", "1e-400", ".5", "5.", "1E5", "T",
         "F", "true", "FALSE", "?", "1 2", "-9", "32767", "32768", "2147483647", "9223372036854775808",
         " 7 ", "0.1", "1e-05", "123456789012345678", "1e22", "00012"]
    ),
    st.integers(-(2**64), 2**64).map(str),
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.floats(width=32, allow_nan=False, allow_infinity=False).map(repr),
)  # fmt: skip  # one list
NULLS = st.sampled_from([None, None, None, "-9", "NaN", "0"])


def _document(
    fields: list[tuple[str, str | None, str | None]], rows: list[list[str]], more: dict[str, str]
) -> bytes:
    columns = "".join(
        f'<FIELD name="c{number}" datatype="{datatype}"'
        + (f' arraysize="{size}"' if size else "")
        + more.get("field", "")
        + (f"><VALUES null={quoteattr(null)}/></FIELD>" if null is not None else "/>")
        for number, (datatype, size, null) in enumerate(fields)
    )
    data = "".join(f"<TR>{''.join(f'<TD>{escape(cell)}</TD>' for cell in row)}</TR>" for row in rows)
    return (
        f'<?xml version="1.0" encoding="UTF-8"?><VOTABLE version="{more.get("version", "1.4")}"'
        f'{more.get("namespace", "")}><RESOURCE type="results"><INFO name="QUERY_STATUS" value="OK"/>'
        f"<TABLE{more.get('table', '')}>{columns}<DATA><TABLEDATA>{data}</TABLEDATA></DATA></TABLE>"
        f"{more.get('after', '')}</RESOURCE></VOTABLE>"
    ).encode()


def _outcome(body: bytes, *, fast: bool) -> Any:
    reader = read_plain if fast else lambda _: None
    with patch.object(votable, "read_plain", reader):
        try:
            return read_result(body, maxrec=100)
        except UnreadableError as error:
            return error.answer, error.query_status, error.rows


@st.composite
def documents(draw: st.DrawFn) -> bytes:
    fields = [
        (datatype, size, draw(NULLS) if datatype in {"short", "int", "long", "double"} else None)
        for datatype, size in draw(st.lists(st.sampled_from(TYPES), min_size=1, max_size=4))
    ]
    rows = draw(st.lists(st.lists(CELLS, min_size=len(fields), max_size=len(fields)), max_size=4))
    more = {
        "version": draw(st.sampled_from(["1.1", "1.2", "1.3", "1.4", "1.5"])),
        "namespace": draw(st.sampled_from(NAMESPACES)),
        "after": draw(
            st.sampled_from(
                [
                    "",
                    '<INFO name="QUERY_STATUS" value="OVERFLOW"/>',
                    '<INFO name="query_status" value="ERROR">x</INFO>',
                ]
            )
        ),
        "table": draw(st.sampled_from(["", f' nrows="{len(rows)}"', ' nrows="9"'])),
        "field": draw(
            st.sampled_from(["", ' unit="deg" ucd="pos.eq.ra"', ' unit="km/s"', ' unit="odd thing"'])
        ),
    }
    return _document(fields, rows, more)


@given(body=documents())
@settings(max_examples=400, deadline=None)
def test_both_ways_come_to_the_same(body: bytes) -> None:
    assert _outcome(body, fast=True) == _outcome(body, fast=False)


@given(
    rows=st.lists(
        st.tuples(
            st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), max_size=12),
            TEXT,
            st.integers(-(2**31) + 2, 2**31 - 3).map(str) | st.just(""),
            st.floats(allow_nan=False, allow_infinity=False).map(repr) | st.just(""),
            st.floats(width=32, allow_nan=False, allow_infinity=False).map(repr),
            st.sampled_from(["T", "false", "1", "?", ""]),
        ).map(list),
        max_size=5,
    )
)
@settings(max_examples=200, deadline=None)
def test_the_usual_table_is_read_fast_and_to_the_same(rows: list[list[str]]) -> None:
    kinds: list[tuple[str, str | None, str | None]] = [
        ("char", "*", None), ("unicodeChar", "*", None), ("int", None, None), ("double", None, None),
        ("float", None, None), ("boolean", None, None),
    ]  # fmt: skip  # one list
    body = _document(kinds, rows, {})
    assert read_plain(body) is not None
    found = _outcome(body, fast=True)
    assert found == _outcome(body, fast=False)
    assert isinstance(found, ResultTable)


@pytest.mark.parametrize(
    "body",
    [
        b"<!DOCTYPE a><VOTABLE version='1.4'><TABLEDATA/></VOTABLE>",
        b"<VOTABLE version='1.4'><TABLEDATA",
        b"<html>TABLEDATA</html>",
        _document([("int", None, None)], [["1"]], {}).replace(b"<TD>1</TD>", b"<TD>1</TD><TD>2</TD>"),
        _document([("int", None, None)], [["1"]], {}).replace(b"<TD>", b'<TD encoding="base64">'),
        _document([("int", None, None)], [["1"]], {}).replace(b"<TD>1", b"<TD><b>1</b>"),
        _document([("int", None, None)], [["1"]], {}).replace(b' name="c0"', b""),
        _document([("char", "*", None)], [["é"]], {}),
        _document([("double", "2", None)], [["1 2"]], {}),
    ],
)
def test_what_is_out_of_the_ordinary_is_left_to_the_general_way(body: bytes) -> None:
    assert read_plain(body) is None
