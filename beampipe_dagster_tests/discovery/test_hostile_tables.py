"""Documents that are short and would become long: refused before a parser makes room for them."""

from __future__ import annotations

import base64
import gzip
import time

import pytest

from beampipe_dagster.discovery import streams
from beampipe_dagster.discovery.archive import AnswerClass
from beampipe_dagster.discovery.votable import UnreadableError, query_statuses, read_result
from beampipe_dagster_tests.support.fake_tap import error_after_rows, rows, votable

OK = '<INFO name="QUERY_STATUS" value="OK"/>'


def document(fields: str, data: str, *, table: str = "", prolog: str = "") -> bytes:
    return (
        f'<?xml version="1.0"?>{prolog}<VOTABLE version="1.4" xmlns="http://www.ivoa.net/xml/VOTable/v1.3">'
        f'<RESOURCE type="results">{OK}<TABLE {table}>{fields}<DATA>{data}</DATA></TABLE></RESOURCE></VOTABLE>'
    ).encode()


def refused(body: bytes) -> str:
    begin = time.monotonic()
    with pytest.raises(UnreadableError) as caught:
        read_result(body, maxrec=100)
    assert caught.value.answer is AnswerClass.MALFORMED
    assert time.monotonic() - begin < 20
    return caught.value.message


def test_entities_are_refused() -> None:
    laughs = "".join(f'<!ENTITY l{n + 1} "{f"&l{n};" * 10}">' for n in range(9))
    bomb = f'<!DOCTYPE VOTABLE [<!ENTITY l0 "lol">{laughs}]>'
    cell = '<FIELD name="a" datatype="char" arraysize="*"/>'
    body = document(cell, "<TABLEDATA><TR><TD>&l9;</TD></TR></TABLEDATA>", prolog=bomb)
    assert "entities" in refused(body)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp037"])
def test_an_encoding_that_hides_them_is_refused(encoding: str) -> None:
    assert "which no service sends" in refused(votable(["a"], [{"a": "1"}], {}).decode().encode(encoding))


def test_too_many_columns_are_refused() -> None:
    fields = '<FIELD name="a" datatype="int"/>' * (streams.MAX_COLUMNS + 1)
    assert "columns" in refused(document(fields, "<TABLEDATA/>"))


@pytest.mark.parametrize(("kind", "size"), [("double", "1000000000"), ("char", "99999x99999")])
def test_cells_that_would_take_gigabytes_are_refused(kind: str, size: str) -> None:
    field = f'<FIELD name="a" datatype="{kind}" arraysize="{size}"/>'
    assert "would take" in refused(document(field, "<TABLEDATA><TR><TD>1</TD></TR></TABLEDATA>"))


def test_a_variable_cell_may_have_a_large_limit() -> None:
    field = '<FIELD name="a" datatype="char" arraysize="100000000*"/>'
    body = document(field, "<TABLEDATA><TR><TD>x</TD></TR></TABLEDATA>")
    assert read_result(body, maxrec=10).rows == [{"a": "x"}]


def test_rows_that_are_only_announced_take_no_room() -> None:
    field = '<FIELD name="a" datatype="double"/>'
    assert "announces" in refused(document(field, "<TABLEDATA/>", table='nrows="999999999999"'))


def test_a_stream_that_is_packed_too_well_is_not_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "MAX_STREAM_BYTES", 1_000_000)
    packed = base64.b64encode(gzip.compress(bytes(2_000_000), 9)).decode()
    data = f'<BINARY><STREAM encoding="gzip">{packed}</STREAM></BINARY>'
    assert "when unpacked" in refused(document('<FIELD name="a" datatype="double"/>', data))


@pytest.mark.parametrize("tag", ["FIELD", "TABLE", "INFO", "STREAM", "BINARY", "BINARY2><STREAM", "TD"])
@pytest.mark.parametrize("mark", [" ", ' "', " '\"", ' name="QUERY_STATUS" ', " href "])
def test_tags_that_never_end_cost_no_more_than_their_length(tag: str, mark: str) -> None:
    refused(b"<VOTABLE>" + f"<{tag}{mark}".encode() * 100_000)


def test_the_status_is_known_before_and_after_the_rows() -> None:
    late = error_after_rows([{"a": "1"}], "no space left")
    assert callable(late.body)
    assert query_statuses(late.body({})) == ("OK", "ERROR")
    plain = rows([{"a": "1"}])
    assert callable(plain.body)
    assert query_statuses(plain.body({})) == ("OK", None)
    assert query_statuses(b'<INFO value="ERROR" name="query_status">x</INFO>') == ("ERROR", None)
    with pytest.raises(UnreadableError) as caught:
        read_result(late.body({}), maxrec=10)
    assert caught.value.statuses == ("OK", "ERROR")
