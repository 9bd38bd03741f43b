from __future__ import annotations

import pytest
import requests

from beampipe_dagster.errors import InputError
from beampipe_dagster.sandbox.archive.parameters import (
    HARD_MAXREC,
    Parameters,
    TapQuery,
    read_parameters,
    read_query,
)

VOTABLE = b"""<?xml version="1.0"?><VOTABLE version="1.3"><RESOURCE><TABLE>
<FIELD name="name" datatype="char" arraysize="*"/><FIELD name="n" datatype="long"/>
<FIELD name="x" datatype="double"/><FIELD name="ok" datatype="boolean"/>
<DATA><TABLEDATA><TR><TD>a</TD><TD>1</TD><TD>1.5</TD><TD>T</TD></TR><TR><TD/><TD/><TD/><TD/></TR>
</TABLEDATA></DATA></TABLE></RESOURCE></VOTABLE>"""


def query(*extra: tuple[str, str], files: dict[str, bytes] | None = None) -> TapQuery:
    pairs = (("LANG", "ADQL"), ("QUERY", "SELECT 1"), *extra)
    return read_query(Parameters(pairs, files or {}))


def test_names_are_case_insensitive_and_the_last_value_counts() -> None:
    parameters = read_parameters("lang=ADQL&Query=a", "", b"")
    assert parameters.get("QUERY") == "a"
    form = read_parameters("query=a", "application/x-www-form-urlencoded", b"QUERY=b+c%27d")
    assert form.get("QUERY") == "b c'd"


def test_a_multipart_body_gives_parameters_and_files() -> None:
    prepared = requests.Request(
        "POST",
        "http://x/",
        data={"QUERY": "SELECT 'ü'", "LANG": "ADQL"},
        files={"t": ("t.vot", b"\r\nbin\x00ary\r\n", "application/x-votable+xml")},
    ).prepare()
    assert isinstance(prepared.body, bytes)
    parameters = read_parameters("", prepared.headers["Content-Type"], prepared.body)
    assert parameters.get("QUERY") == "SELECT 'ü'"
    assert parameters.files == {"t": b"\r\nbin\x00ary\r\n"}


@pytest.mark.parametrize("boundary", ["<<<--B-->>>", "b", "a'()+_,-./:=?b"])
def test_a_boundary_may_be_of_any_characters(boundary: str) -> None:
    body = (
        f'\r\n--{boundary}\r\nContent-Disposition: form-data; name="LANG"\r\n\r\nADQL\r\n'
        f'--{boundary}\r\nContent-Disposition: form-data; name="t"; filename="t"\r\n\r\n--x\r\n\r\n'
        f"--{boundary}--\r\n"
    )
    parameters = read_parameters("", f'multipart/form-data; boundary="{boundary}"', body.encode())
    assert parameters.pairs == (("LANG", "ADQL"),)
    assert parameters.files == {"t": b"--x\r\n"}


def test_a_multipart_body_without_a_boundary_is_refused() -> None:
    with pytest.raises(InputError, match="boundary"):
        read_parameters("", "multipart/form-data", b"--x--")


def test_a_table_at_a_url_is_taken_only_from_where_it_may_be() -> None:
    pair = ("UPLOAD", "t,http://127.0.0.1/casda/tap/async/1/results/result")
    parameters = Parameters((("LANG", "ADQL"), ("QUERY", "SELECT 1"), pair))
    asked: list[str] = []

    def fetch(url: str) -> bytes:
        asked.append(url)
        return VOTABLE

    (upload,) = read_query(parameters, fetch).uploads
    assert (upload.name, len(upload.rows)) == ("t", 2)
    assert asked == [pair[1].partition(",")[2]]
    for refusing in (None, lambda _url: None):
        with pytest.raises(InputError) as caught:
            read_query(parameters, refusing)
        assert caught.value.code == "invalid_upload"


def test_a_body_of_another_type_is_refused() -> None:
    with pytest.raises(InputError, match="application/json"):
        read_parameters("", "application/json", b"{}")


@pytest.mark.parametrize(
    ("pair", "words"),
    [
        (("MAXREC", "-1"), "MAXREC"),
        (("MAXREC", "many"), "MAXREC"),
        (("REQUEST", "getCapabilities"), "REQUEST"),
        (("LANG", "PQL"), "LANG"),
        (("QUERY", ""), "QUERY"),
        (("FORMAT", "fits"), "fits"),
        (("UPLOAD", "t,http://example.org/t.vot"), "inline"),
        (("UPLOAD", "t,param:t"), "no part"),
        (("UPLOAD", "1t,param:t"), "name"),
        (("UPLOAD", "t"), "inline"),
    ],
)
def test_a_wrong_parameter_is_named(pair: tuple[str, str], words: str) -> None:
    with pytest.raises(InputError, match=words):
        query(pair)


def test_maxrec_is_capped() -> None:
    assert query(("MAXREC", "999999999999")).maxrec == HARD_MAXREC
    assert query(("MAXREC", "0")).maxrec == 0


def test_an_upload_is_read_with_its_types_and_nulls() -> None:
    (upload,) = query(("UPLOAD", "t,param:p"), files={"p": VOTABLE}).uploads
    assert [(c.name, c.datatype) for c in upload.columns] == [
        ("name", "char"),
        ("n", "long"),
        ("x", "double"),
        ("ok", "boolean"),
    ]
    assert upload.rows == [("a", 1, 1.5, 1), (None, None, None, None)]


@pytest.mark.parametrize(
    "body",
    [
        b"not xml",
        VOTABLE.replace(b'name="n"', b'name="name"'),
        VOTABLE.replace(b'name="n"', b'name="n) --"'),
        VOTABLE.replace(b'datatype="long"', b'datatype="doubleComplex"'),
    ],
    ids=["no xml", "same names", "hostile name", "unsupported type"],
)
def test_an_upload_that_cannot_be_used_is_refused(body: bytes) -> None:
    with pytest.raises(InputError) as caught:
        query(("UPLOAD", "t,param:p"), files={"p": body})
    assert caught.value.code == "invalid_upload"


def test_two_uploads_of_one_name_are_refused() -> None:
    with pytest.raises(InputError, match="must be new"):
        query(("UPLOAD", "t,param:p;T,param:p"), files={"p": VOTABLE})
