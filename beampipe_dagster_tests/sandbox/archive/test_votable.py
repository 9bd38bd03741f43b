from __future__ import annotations

import csv
import io
import math
import warnings
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from beampipe_dagster.errors import InputError
from beampipe_dagster.sandbox.archive.adql import Answer
from beampipe_dagster.sandbox.archive.columns import Column, Row
from beampipe_dagster.sandbox.archive.votable import Format, parse_format, write, write_error

COLUMNS = (
    Column("text", "char", ucd="meta.id"),
    Column("wide", "unicodeChar"),
    Column("small", "int"),
    Column("big", "long", unit="byte"),
    Column("real", "double", unit="km/s", description="less < more & 'so'"),
)

# XML cannot hold control characters, and an empty text is NULL in a VOTable.
plain_text = st.text(
    st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\ufffe\uffff"), min_size=1
)
rows = st.lists(
    st.tuples(
        st.none() | st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1),
        st.none() | plain_text.filter(lambda s: s.strip() == s),
        st.none() | st.integers(-(2**31) + 1, 2**31 - 1),
        st.none() | st.integers(-(2**63) + 1, 2**63 - 1),
        st.none() | st.floats(allow_nan=False),
    ),
    max_size=5,
)


def read(body: bytes) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from astropy.io.votable import parse  # noqa: PLC0415  # slow to import

        return parse(io.BytesIO(body))


def cells(body: bytes) -> list[tuple[Any, ...]]:
    array = read(body).get_first_table().array
    columns = [array[name].tolist() for name in array.dtype.names]
    return [tuple(row) for row in zip(*columns, strict=True)]


@pytest.mark.parametrize("form", ["tabledata", "binary2"])
@given(values=rows)
@settings(max_examples=60, deadline=None)
def test_what_is_written_is_what_astropy_reads(form: Format, values: list[Row]) -> None:
    # A text that is NULL and an empty one are the same in a VOTable.
    expected = [tuple("" if v is None and i < 2 else v for i, v in enumerate(r)) for r in values]
    found = [
        tuple("" if v is None and i < 2 else v for i, v in enumerate(r))
        for r in cells(write(Answer(COLUMNS, values), form))
    ]
    assert found == expected


@pytest.mark.parametrize("form", ["tabledata", "binary2"])
def test_null_numbers_are_masked_and_zero_is_not(form: Format) -> None:
    answer = Answer(COLUMNS, [("a", "b", None, None, None), ("a", "b", 0, 0, 0.0)])
    array = read(write(answer, form)).get_first_table().array
    for name in ("small", "big", "real"):
        assert array[name].mask.tolist() == [True, False]
    assert array["big"].tolist() == [None, 0]


def test_fields_carry_their_metadata() -> None:
    fields = read(write(Answer(COLUMNS, []), "tabledata")).get_first_table().fields
    assert [f.datatype for f in fields] == ["char", "unicodeChar", "int", "long", "double"]
    assert [f.arraysize for f in fields] == ["*", "*", None, None, None]
    assert str(fields[4].unit) == "km / s"
    assert fields[0].ucd == "meta.id"
    assert fields[4].description == "less < more & 'so'"


def test_ok_stands_before_the_table_and_overflow_after_it() -> None:
    body = write(Answer(COLUMNS[:1], [("a",)], overflow=True), "tabledata").decode()
    ok, overflow = body.index('value="OK"'), body.index('value="OVERFLOW"')
    assert ok < body.index("<TABLE>") < body.index("</TABLE>") < overflow
    assert "OVERFLOW" not in write(Answer(COLUMNS[:1], [("a",)]), "tabledata").decode()


def test_an_error_document_carries_its_message() -> None:
    resource = read(write_error("a < b & \x00c")).resources[0]
    (info,) = resource.infos
    assert (info.name, info.value, info.content) == ("QUERY_STATUS", "ERROR", "a < b & \ufffdc")


def test_characters_that_xml_cannot_hold_do_not_break_the_document() -> None:
    ((text,),) = cells(write(Answer(COLUMNS[1:2], [("a\x00\x1b]]>\r\n",)]), "tabledata"))
    assert text.startswith("a\ufffd\ufffd]]>")


def test_infinities_and_expressions_are_numbers() -> None:
    answer = Answer((Column('MAX(x) "<"', "double"),), [(math.inf,), (-math.inf,), (1e300,)])
    assert cells(write(answer, "tabledata")) == [(math.inf,), (-math.inf,), (1e300,)]


def test_csv_has_a_header_and_empty_cells_for_null() -> None:
    body = write(Answer(COLUMNS[:3], [('a,"b', None, 1), (None, "x", None)]), "csv").decode()
    assert list(csv.reader(io.StringIO(body))) == [
        ["text", "wide", "small"],
        ['a,"b', "", "1"],
        ["", "x", ""],
    ]


@pytest.mark.parametrize(
    ("text", "form"),
    [
        (None, "tabledata"),
        ("votable", "tabledata"),
        ("application/x-votable+xml", "tabledata"),
        ("VOTable/TD", "tabledata"),
        ("votable/b2", "binary2"),
        ('application/x-votable+xml; serialization="BINARY2"', "binary2"),
        ("CSV", "csv"),
        ("text/csv", "csv"),
    ],
)
def test_formats_are_known_by_their_usual_names(text: str | None, form: Format) -> None:
    assert parse_format(text) == form


def test_an_unknown_format_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InputError, match="votable/b2"):
        parse_format("fits")
