from __future__ import annotations

import pytest

from beampipe_dagster.clock import ManualClock
from beampipe_dagster.discovery.archive import CONSERVATIVE
from beampipe_dagster.discovery.capabilities import read_capabilities
from beampipe_dagster.discovery.tap import TapArchive
from beampipe_dagster_tests.support.fake_tap import FakeTap, Reply, html, rows

GOOD = rows([{"a": "1"}])


def document(inside: str, *, standard: str = "ivo://ivoa.net/std/TAP") -> bytes:
    return (
        '<?xml version="1.0"?><vosi:capabilities xmlns:vosi="http://www.ivoa.net/xml/VOSICapabilities/v1.0"'
        ' xmlns:tr="http://www.ivoa.net/xml/TAPRegExt/v1.0"'
        ' xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance">'
        '<capability standardID="ivo://ivoa.net/std/VOSI#tables"/>'
        f'<capability standardID="{standard}" xsi:type="tr:TableAccess">{inside}</capability>'
        "</vosi:capabilities>"
    ).encode()


def inline(name: str = "upload-inline") -> str:
    return f'<uploadMethod ivo-id="ivo://ivoa.net/std/TAPRegExt#{name}"/>'


def test_what_a_document_says_is_read() -> None:
    said = read_capabilities(
        document(
            "<language><name>ADQL</name><version>2.0</version><version>2.1</version></language>"
            "<outputFormat><mime>application/x-votable+xml</mime><alias>votable</alias></outputFormat>"
            f"{inline()}"
            '<outputLimit><default unit="row">2000</default><hard unit="row"> 100000 </hard></outputLimit>'
            '<uploadLimit><hard unit="byte">99</hard><hard unit="row">500</hard></uploadLimit>'
        )
    )
    assert (said.upload, said.upload_row_limit, said.async_, said.documented) == (True, 500, True, True)
    assert (said.default_maxrec, said.hard_maxrec) == (2000, 100_000)
    assert said.languages == ("ADQL-2.0", "ADQL-2.1")
    assert said.formats == ("application/x-votable+xml", "votable")


@pytest.mark.parametrize(
    ("inside", "upload"), [("", False), (inline("upload-http"), False), (inline(), True)]
)
def test_uploads_are_only_made_where_they_may_be_inside_a_request(inside: str, *, upload: bool) -> None:
    assert read_capabilities(document(inside)).upload is upload


@pytest.mark.parametrize("unit", ["byte", "furlong"])
def test_a_limit_in_other_units_says_nothing_of_rows(unit: str) -> None:
    said = read_capabilities(
        document(f'<outputLimit><default unit="row">1</default><hard unit="{unit}">5</hard></outputLimit>')
    )
    assert (said.default_maxrec, said.hard_maxrec) == (1, None)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>maintenance</html>",
        b"<a",
        document("", standard="ivo://ivoa.net/std/SIA"),
        document("", standard="ivo://ivoa.net/std/TAP#aux"),
        b'<!DOCTYPE c [<!ENTITY a "aaaa">]><capabilities>&a;</capabilities>',
        document("").decode().encode("utf-16"),
    ],
)
def test_what_cannot_be_believed_says_nothing(body: bytes) -> None:
    assert read_capabilities(body) == CONSERVATIVE


def capable(tap: FakeTap, clock: ManualClock) -> TapArchive:
    return TapArchive(adapter="casda", url=tap.url, timeout_seconds=5.0, retries=0, clock=clock)


def test_they_are_asked_for_once_an_hour(clock: ManualClock) -> None:
    page = Reply(document(inline()), content_type="text/xml")
    with FakeTap(GOOD, pages={"capabilities": page}) as tap:
        archive = capable(tap, clock)
        assert archive.capabilities().upload
        clock.advance(3599)
        archive.capabilities()
        assert len(tap.asked) == 1
        clock.advance(2)
        archive.capabilities()
        assert len(tap.asked) == 2


def test_a_service_without_a_document_can_do_little(clock: ManualClock) -> None:
    with FakeTap(GOOD, pages={"capabilities": html()}) as tap:
        assert capable(tap, clock).capabilities() == CONSERVATIVE


def test_a_service_that_is_away_is_asked_again_soon(clock: ManualClock) -> None:
    with FakeTap(GOOD, pages={"capabilities": Reply(status=503)}) as tap:
        archive = capable(tap, clock)
        assert archive.capabilities() == CONSERVATIVE
        tap.pages["capabilities"] = Reply(document(inline()), content_type="text/xml")
        assert archive.capabilities() == CONSERVATIVE
        clock.advance(61)
        assert archive.capabilities().upload
