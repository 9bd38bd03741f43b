from __future__ import annotations

import base64
import gzip
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beampipe_dagster.discovery.archive import AnswerClass
from beampipe_dagster.discovery.streams import BrokenStreamError, Column, promised_rows, stream_rows
from beampipe_dagster.discovery.votable import UnreadableError, read_result

# A cell as VOTable 1.4 has it in a stream, written by hand: not by the library that reads it.
FIELDS = [Column("int", None), Column("char", "*"), Column("double", "2"), Column("bit", "10")]
rows_of_cells = st.lists(
    st.tuples(st.integers(-(2**31), 2**31 - 1), st.binary(max_size=5), st.floats(width=32)), max_size=5
)


def row(number: int, letters: bytes, value: float) -> bytes:
    return struct.pack(">ii", number, len(letters)) + letters + struct.pack(">dd", value, value) + b"\xff\xc0"


def document(
    stream: bytes, fields: list[Column], *, kind: str = "BINARY", encoding: str = "base64", nrows: str = ""
) -> bytes:
    data = gzip.compress(stream) if encoding == "gzip" else stream
    described = "".join(
        f'<FIELD name="f{n}" datatype="{field.datatype}"'
        + (f' arraysize="{field.arraysize}"/>' if field.arraysize else "/>")
        for n, field in enumerate(fields)
    )
    return (
        '<VOTABLE version="1.4" xmlns="http://www.ivoa.net/xml/VOTable/v1.3"><RESOURCE type="results">'
        f'<INFO name="QUERY_STATUS" value="OK"/><TABLE{nrows}>{described}<DATA><{kind}>'
        f'<STREAM encoding="{encoding}">{base64.b64encode(data).decode()}</STREAM>'
        f"</{kind}></DATA></TABLE></RESOURCE></VOTABLE>"
    ).encode()


@pytest.mark.parametrize("kind", ["BINARY", "BINARY2"])
@given(cells=rows_of_cells)
def test_a_whole_stream_has_the_rows_that_were_written(
    kind: str, cells: list[tuple[int, bytes, float]]
) -> None:
    flags = b"\0" if kind == "BINARY2" else b""
    stream = b"".join(flags + row(*cell) for cell in cells)
    assert stream_rows(document(stream, FIELDS, kind=kind), FIELDS) == len(cells)


@pytest.mark.parametrize("kind", ["BINARY", "BINARY2"])
@given(cells=rows_of_cells.filter(bool), data=st.data())
def test_a_stream_cut_inside_a_row_is_refused(
    kind: str, cells: list[tuple[int, bytes, float]], data: st.DataObject
) -> None:
    flags = b"\0" if kind == "BINARY2" else b""
    parts = [flags + row(*cell) for cell in cells]
    ends = {sum(len(part) for part in parts[:count]) for count in range(len(parts) + 1)}
    cut = data.draw(st.integers(0, max(ends)).filter(lambda size: size not in ends))
    with pytest.raises(BrokenStreamError):
        stream_rows(document(b"".join(parts)[:cut], FIELDS, kind=kind), FIELDS)


@pytest.mark.parametrize("kind", ["BINARY", "BINARY2"])
@pytest.mark.parametrize("cut", [1, 3, 5, 7])
def test_a_cut_stream_never_looks_like_fewer_rows_or_none(kind: str, cut: int) -> None:
    one = (b"\0" if kind == "BINARY2" else b"") + struct.pack(">i", 5)
    fields = [Column("int", None)]
    whole = document(one * 2, fields, kind=kind)
    assert [found["f0"] for found in read_result(whole, maxrec=9).rows] == ["5", "5"]
    if cut % len(one):
        with pytest.raises(UnreadableError, match="middle of row") as caught:
            read_result(document((one * 2)[:cut], fields, kind=kind), maxrec=9)
        assert caught.value.answer is AnswerClass.MALFORMED


def test_fewer_rows_than_the_table_promises_are_refused() -> None:
    fields = [Column("int", None)]
    body = document(struct.pack(">ii", 1, 2), fields, nrows=' nrows="3"')
    assert promised_rows(body) == 3
    with pytest.raises(UnreadableError, match="should have 3 rows, and 2 could be read") as caught:
        read_result(body, maxrec=9)
    assert caught.value.answer is AnswerClass.MALFORMED


def test_an_empty_stream_is_no_rows() -> None:
    assert read_result(document(b"", [Column("int", None)]), maxrec=9).rows == []


def test_a_zipped_stream_is_walked_too() -> None:
    fields = [Column("short", None)]
    assert stream_rows(document(b"\0\1\0\2", fields, encoding="gzip"), fields) == 2
    with pytest.raises(BrokenStreamError):
        stream_rows(document(b"\0\1\0", fields, encoding="gzip"), fields)


def test_a_negative_length_and_text_that_is_no_base64_are_refused() -> None:
    fields = [Column("char", "*")]
    with pytest.raises(BrokenStreamError, match="negative"):
        stream_rows(document(struct.pack(">i", -1), fields), fields)
    with pytest.raises(BrokenStreamError, match="decoded"):
        stream_rows(document(b"\0\0\0\0\0", fields).replace(b"=</STREAM>", b"</STREAM>"), fields)


@pytest.mark.parametrize(
    "fields", [[Column("int", "2x*")], [Column("int", "0")], [Column("colour", None)], [Column("int", "?")]]
)
def test_a_width_that_cannot_be_told_is_not_guessed(fields: list[Column]) -> None:
    assert stream_rows(document(b"\0\0\0\0", fields), fields) is None


def test_tabledata_have_no_stream() -> None:
    assert stream_rows(b"<TABLE><DATA><TABLEDATA/></DATA></TABLE>", FIELDS) is None
