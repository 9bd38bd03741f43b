from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from beampipe_dagster.discovery.archive import AnswerClass
from beampipe_dagster.discovery.cells import cell_text
from beampipe_dagster.discovery.votable import (
    SHOWN,
    UnreadableError,
    error_message,
    excerpt,
    read_result,
)
from beampipe_dagster_tests.support.fake_tap import Serialisation, reserialised, votable

TYPES = {
    "name": "char",
    "note": "unicodeChar",
    "n": "int",
    "big": "long",
    "single": "float",
    "double": "double",
    "flag": "boolean",
    "pair": "double[2]",
    "many": "double[*]",
}
ROWS: list[dict[str, str | None]] = [
    {
        "name": " ASKAP-72962 ",
        "note": "é<&>",
        "n": "0",
        "big": "9007199254740993",
        "single": "0.1",
        "double": "198.39200000000002",
        "flag": "T",
        "pair": "1 2.5",
        "many": "1 2 3",
    },
    {
        "name": "x",
        "note": "y",
        "n": "7",
        "big": "-5",
        "single": "1e-7",
        "double": "2",
        "flag": "F",
        "pair": "0 1e20",
        "many": "9",
    },
    dict.fromkeys(("name", "note", "n", "big", "single", "double", "flag", "pair", "many")),
]
TEXTS = [
    {
        "name": "ASKAP-72962",
        "note": "é<&>",
        "n": "0",
        "big": "9007199254740993",
        "single": "0.1",
        "double": "198.39200000000002",
        "flag": "true",
        "pair": "1.0 2.5",
        "many": "1.0 2.0 3.0",
    },
    {
        "name": "x",
        "note": "y",
        "n": "7",
        "big": "-5",
        "single": "1e-7",
        "double": "2.0",
        "flag": "false",
        "pair": "0.0 1e+20",
        "many": "9.0",
    },
    dict.fromkeys(("name", "note", "n", "big", "single", "double", "flag", "pair", "many"), ""),
]
DOCUMENT = votable(list(TYPES), ROWS, TYPES)
RESULTS = '<RESOURCE type="results"><INFO name="QUERY_STATUS" value="OK"/>'
EMPTY_TABLE = '<TABLE><FIELD name="a" datatype="int"/></TABLE>'


def refusal(body: bytes, *, maxrec: int = 100) -> UnreadableError:
    with pytest.raises(UnreadableError) as caught:
        read_result(body, maxrec=maxrec)
    return caught.value


@pytest.mark.parametrize("serialisation", ["tabledata", "binary", "binary2"])
def test_every_serialisation_gives_the_same_text(serialisation: Serialisation) -> None:
    body = DOCUMENT if serialisation == "tabledata" else reserialised(DOCUMENT, serialisation)
    result = read_result(body, maxrec=100)
    assert result.rows == TEXTS
    assert result.query_status == "OK"


@pytest.mark.parametrize("serialisation", ["tabledata", "binary2"])
@settings(max_examples=60, deadline=None)
@given(part=st.floats(0, 0.999))
def test_no_beginning_of_a_document_is_an_answer(serialisation: Serialisation, part: float) -> None:
    body = DOCUMENT if serialisation == "tabledata" else reserialised(DOCUMENT, serialisation)
    cut = body.rstrip()[: int(len(body.rstrip()) * part)]
    assert refusal(cut).answer is AnswerClass.MALFORMED


def test_no_rows_are_believed_when_the_service_says_ok() -> None:
    assert read_result(votable(["a"], [], {}), maxrec=1).rows == []


def test_no_rows_without_a_status_are_not_believed() -> None:
    assert refusal(votable(["a"], [], {}, status=None)).answer is AnswerClass.MALFORMED


def test_rows_without_a_status_are() -> None:
    result = read_result(votable(["a"], [{"a": "1"}], {}, status=None), maxrec=5)
    assert (result.rows, result.query_status) == ([{"a": "1"}], None)


@pytest.mark.parametrize(
    ("tail", "answer", "status"),
    [
        ('<INFO name="QUERY_STATUS" value="OVERFLOW"/>', AnswerClass.OVERFLOW, "OVERFLOW"),
        ('<INFO name="QUERY_STATUS" value="ERROR">gone</INFO>', AnswerClass.ERROR, "ERROR"),
        ('<INFO name="query_status" value="error">gone</INFO>', AnswerClass.ERROR, "ERROR"),
        ('<INFO name="QUERY_STATUS" value="ABORTED">gone</INFO>', AnswerClass.ERROR, "ABORTED"),
    ],
)
def test_a_status_after_the_table_counts(tail: str, answer: AnswerClass, status: str) -> None:
    error = refusal(votable(["a"], [{"a": "1"}, {"a": "2"}], {}, tail=tail))
    assert (error.answer, error.query_status, error.rows) == (answer, status, 2)


def test_an_error_before_a_table_counts_although_an_ok_follows() -> None:
    body = votable(["a"], [{"a": "1"}], {}, status="ERROR", tail='<INFO name="QUERY_STATUS" value="OK"/>')
    assert refusal(body).answer is AnswerClass.ERROR


@pytest.mark.parametrize("maxrec", [1, 2])
def test_as_many_rows_as_maxrec_are_an_overflow_said_or_not(maxrec: int) -> None:
    body = votable(["a"], [{"a": "1"}, {"a": "2"}], {})
    assert refusal(body, maxrec=maxrec).answer is AnswerClass.OVERFLOW
    assert len(read_result(body, maxrec=3).rows) == 2


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" \n",
        b"<html><body>Maintenance</body></html>",
        b"a,b\n1,2\n",
        b'{"data": []}',
        b"\x00\x01\x02",
        DOCUMENT.replace(b"<TD>x</TD>", b""),
        DOCUMENT.replace(b"<TD>0</TD>", b"<TD>zero</TD>").replace(b"</RESOURCE>", b"</RESOURCES>"),
    ],
)
def test_what_is_no_votable_is_malformed(body: bytes) -> None:
    assert refusal(body).answer is AnswerClass.MALFORMED


@pytest.mark.parametrize(
    "resource",
    [
        "",
        '<RESOURCE type="meta"/>',
        f"{RESULTS}</RESOURCE>",
        f"{RESULTS}<TABLE><DATA><TABLEDATA/></DATA></TABLE></RESOURCE>",
        f"{RESULTS}{EMPTY_TABLE}{EMPTY_TABLE}</RESOURCE>",
    ],
)
def test_a_votable_without_exactly_one_result_table_is_malformed(resource: str) -> None:
    body = f'<VOTABLE version="1.4" xmlns="http://www.ivoa.net/xml/VOTable/v1.3">{resource}</VOTABLE>'
    assert refusal(body.encode()).answer is AnswerClass.MALFORMED


def test_data_that_are_elsewhere_are_never_fetched() -> None:
    stream = b'<BINARY><STREAM href="file:///etc/hostname"/></BINARY>'
    error = refusal(DOCUMENT.replace(b"<TABLEDATA>", stream + b"<TABLEDATA>"))
    assert error.answer is AnswerClass.MALFORMED
    assert "elsewhere" in error.message


def test_prefixed_elements_are_read() -> None:
    body = (
        '<v:VOTABLE version="1.4" xmlns:v="http://www.ivoa.net/xml/VOTable/v1.3"><v:RESOURCE type="results">'
        '<v:INFO name="QUERY_STATUS" value="OK"/><v:TABLE><v:FIELD name="a" datatype="int"/><v:DATA>'
        "<v:TABLEDATA><v:TR><v:TD>7</v:TD></v:TR></v:TABLEDATA></v:DATA></v:TABLE></v:RESOURCE></v:VOTABLE>"
    )
    assert read_result(body.encode(), maxrec=5).rows == [{"a": "7"}]


def test_a_column_twice_is_one_when_equal_and_refused_when_not() -> None:
    twice = votable(["a", "b"], [{"a": "1", "b": "1"}], {}).replace(b'name="b"', b'name="a"')
    assert read_result(twice, maxrec=5).rows == [{"a": "1"}]
    error = refusal(twice.replace(b"<TD>1</TD></TR>", b"<TD>2</TD></TR>"))
    assert error.answer is AnswerClass.MALFORMED
    assert "AS" in error.message


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (None, ""),
        (np.ma.masked, ""),
        (float("nan"), ""),
        (np.float32("nan"), ""),
        (" a ", "a"),
        (np.str_(" a "), "a"),
        (b" a ", "a"),
        (True, "true"),
        (np.bool_(False), "false"),
        (np.int16(-3), "-3"),
        (np.uint64(2**64 - 1), "18446744073709551615"),
        (np.float32(0.1), "0.1"),
        (np.float32(16777216), "16777216.0"),
        (np.float64(0.1), "0.1"),
        (2.0, "2.0"),
        (1e-7, "1e-7"),
        (1e16, "1e+16"),
        (float("inf"), "+Inf"),
        (np.float32("-inf"), "-Inf"),
        (np.complex64(1 + 2j), "1.0 2.0"),
        (np.array([1, 2]), "1 2"),
        (np.ma.array([1.0, 2.0], mask=[False, True]), "1.0 NaN"),
        (np.ma.array([1.0, 2.0], mask=True), ""),
        (np.array([]), ""),
        ([1, [2, 3]], "1 2 3"),
    ],
)
def test_a_cell_is_written(value: Any, written: str) -> None:
    assert cell_text(value) == written


@given(value=st.floats(allow_nan=False, allow_infinity=False))
def test_a_doubles_text_reads_back(value: float) -> None:
    assert float(cell_text(value)) == value


@given(value=st.floats(allow_nan=False, allow_infinity=False, width=32))
def test_a_singles_text_reads_back_in_its_own_precision(value: float) -> None:
    single = np.float32(value)
    written = cell_text(single)
    assert np.float32(written) == single
    digits = written.split("e", maxsplit=1)[0].strip("-").replace(".", "").strip("0")
    assert len(digits) <= 9


def test_a_services_message_is_one_short_line() -> None:
    body = votable(["a"], [], {}, status=None, tail='<INFO name="QUERY_STATUS" value="ERROR">a\n b</INFO>')
    assert error_message(body) == "a b"
    assert error_message(b"<html><h1>Not\n found</h1></html>") == "Not found"
    assert error_message(b"") == ""
    assert len(excerpt(b"word " * 1_000)) == SHOWN


@pytest.mark.parametrize(("kind", "largest"), [("short", 2**15 - 1), ("int", 2**31 - 1), ("long", 2**63 - 1)])
def test_a_number_that_does_not_fit_its_column_is_refused_and_never_cut_to_the_limit(
    kind: str, largest: int
) -> None:
    document = (
        '<VOTABLE version="1.4"><RESOURCE type="results"><INFO name="QUERY_STATUS" value="OK"/><TABLE>'
        f'<FIELD name="a" datatype="{kind}"/><DATA><TABLEDATA><TR><TD>%d</TD></TR></TABLEDATA></DATA>'
        "</TABLE></RESOURCE></VOTABLE>"
    )
    for fits in (largest, -largest - 1):
        assert read_result((document % fits).encode(), maxrec=10).rows == [{"a": str(fits)}]
    for too_large in (largest + 1, -largest - 2):
        with pytest.raises(UnreadableError) as caught:
            read_result((document % too_large).encode(), maxrec=10)
        assert caught.value.answer is AnswerClass.MALFORMED
        assert f"that is no {kind}" in caught.value.message
