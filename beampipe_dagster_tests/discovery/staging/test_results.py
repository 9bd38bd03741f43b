from __future__ import annotations

from datetime import UTC, datetime
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beampipe_dagster.discovery.staging.results import (
    ENDED,
    earliest,
    expiry,
    file_name,
    read_job,
    read_jobs,
    read_results,
    scan_of,
    sorted_urls,
)
from beampipe_dagster.errors import ArchiveError

UWS = 'xmlns:uws="http://www.ivoa.net/xml/UWS/v1.0" xmlns:xlink="http://www.w3.org/1999/xlink"'
SIGNED = (
    "https://h/sb1/A.ms.tar?response-content-disposition=attachment%3B%20filename%20%3D%22B%20b.ms.tar%22"
    "&X-Amz-Date=20260119T022201Z&X-Amz-Expires=604593&X-Amz-Signature=abc"
)


def job(inside: str) -> bytes:
    return f"<uws:job {UWS}>{inside}</uws:job>".encode()


def result(result_id: str, href: str) -> str:
    return f"<uws:result id={quoteattr(result_id)} xlink:href={quoteattr(href)}/>"


def urls(*items: str) -> list[str]:
    return [one.url for one in read_results(job(f"<uws:results>{''.join(items)}</uws:results>"), name="j")]


@given(url=st.from_regex(r"https://h/[a-z%0-9+&=?.-]{0,40}", fullmatch=True))
def test_a_url_that_is_quoted_as_a_whole_is_unquoted_once(url: str) -> None:
    assert urls(result("visibility-1", quote(url, safe=""))) == [url]


@given(url=st.from_regex(r"https://h/[a-z0-9]{1,10}%2[0F]x\?a=%2F", fullmatch=True))
def test_a_url_that_is_not_quoted_keeps_its_own_quoted_characters(url: str) -> None:
    assert urls(result("visibility-1", url)) == [url]


def test_results_come_as_attributes_or_as_references() -> None:
    reference = '<uws:result id="a-1"><uws:reference>https://h/1?x=1&amp;y=2</uws:reference></uws:result>'
    inner = '<uws:result id="a-2"><uws:reference xlink:href="https://h/2"/></uws:result>'
    nothing = '<uws:result id="a-3"/><uws:result xlink:href="https://h/4"/>'
    assert urls(reference, inner, nothing) == ["https://h/1?x=1&y=2", "https://h/2"]


def test_results_are_sorted_by_what_they_are_of() -> None:
    items = [
        result("visibility-105", SIGNED),
        result("visibility-105.checksum", "https://h/B.ms.tar.checksum"),
        result("evaluation-7", "https://h/x/cal.tar?sig=1"),
        result("evaluation-7.checksum", "https://h/x/cal.tar.checksum"),
        result("cube-3", "https://h/cube.fits"),
        result("visibility-", "https://h/none"),
    ]
    found = sorted_urls(read_results(job(f"<uws:results>{''.join(items)}</uws:results>"), name="j"))
    assert found.data == {"105": SIGNED}
    assert found.checksum == {"105": "https://h/B.ms.tar.checksum"}
    assert found.evaluation == {"cal.tar": "https://h/x/cal.tar?sig=1"}
    assert found.evaluation_checksum == {"cal.tar": "https://h/x/cal.tar.checksum"}
    assert "sig=1" not in repr(found)


def test_a_job_is_read_with_its_blanks_its_times_and_its_error() -> None:
    found = read_job(
        job(
            "<uws:jobId>\n<![CDATA[ j-1 ]]>\n</uws:jobId><uws:phase>error</uws:phase>"
            "<uws:creationTime>2026-01-19T10:18:34.898+0800</uws:creationTime>"
            '<uws:parameters><uws:parameter id="id"><![CDATA[ tok1 ]]></uws:parameter>'
            '<uws:parameter id="ID">tok2 tok3</uws:parameter><uws:parameter id="BAND">1</uws:parameter>'
            "</uws:parameters><uws:errorSummary><uws:message>no https://h/a?sig=secret</uws:message>"
            "</uws:errorSummary>"
        ),
        name="j",
    )
    assert (found.job_id, found.phase, found.error) == ("j-1", "ERROR", "no https://h/a?...")
    assert found.identifiers == {"tok1", "tok2", "tok3"}
    assert found.created_at == datetime(2026, 1, 19, 2, 18, 34, 898_000, UTC)
    assert "tok1" not in repr(found)


@pytest.mark.parametrize(
    "phase", ["PENDING", "QUEUED", "EXECUTING", "SUSPENDED", "HELD", "UNKNOWN", "NEW", ""]
)
def test_a_phase_that_is_no_end_is_a_job_at_work(phase: str) -> None:
    assert read_job(job(f"<uws:phase>{phase}</uws:phase>"), name="j").phase not in ENDED


@pytest.mark.parametrize("body", [b"", b"<html>", b"<a/>", b"\xff"])
def test_what_is_no_job_says_so(body: bytes) -> None:
    with pytest.raises(ArchiveError) as caught:
        read_job(body, name="https://h/j")
    assert (caught.value.code, "https://h/j" in caught.value.message) == ("staging_answer_unreadable", True)


def test_a_list_of_jobs_gives_their_places_and_times() -> None:
    body = (
        f'<uws:jobs {UWS}><uws:jobref id="a" xlink:href="https://h/a"><uws:phase>PENDING</uws:phase>'
        '<uws:creationTime>2026-01-01T00:00:00</uws:creationTime></uws:jobref><uws:jobref id="b"/></uws:jobs>'
    )
    first, second = read_jobs(body.encode(), name="h")
    assert (first.job_id, first.url, first.created_at) == (
        "a",
        "https://h/a",
        datetime(2026, 1, 1, tzinfo=UTC),
    )
    assert (second.job_id, second.url, second.created_at) == ("b", None, None)
    with pytest.raises(ArchiveError):
        read_jobs(job(""), name="h")


@pytest.mark.parametrize(
    ("url", "name"),
    [
        (SIGNED, "B b.ms.tar"),
        ("https://h/x/a%20b.tar?sig=1", "a b.tar"),
        ("https://h/x/?response-content-disposition=attachment%3B%20filename%3D../../etc/c.tar", "c.tar"),
        ("https://h/x/a.tar?response-content-disposition=inline", "a.tar"),
        ("https://h", ""),
    ],
)
def test_a_files_name_is_the_one_to_save_it_under(url: str, name: str) -> None:
    assert file_name(url) == name


@pytest.mark.parametrize(
    ("url", "until"),
    [
        (SIGNED, datetime(2026, 1, 26, 2, 18, 34, tzinfo=UTC)),
        ("https://h/a?Expires=1769393914&Signature=x", datetime(2026, 1, 26, 2, 18, 34, tzinfo=UTC)),
        ("https://h/a?se=2026-01-26T02:18:34Z&sig=x", datetime(2026, 1, 26, 2, 18, 34, tzinfo=UTC)),
        (
            "https://h/a?x-goog-date=20260126T021833Z&x-goog-expires=1",
            datetime(2026, 1, 26, 2, 18, 34, tzinfo=UTC),
        ),
        ("https://h/a", None),
        ("https://h/a?X-Amz-Date=today&X-Amz-Expires=1", None),
        ("https://h/a?X-Amz-Date=20260119T022201Z", None),
        ("https://h/a?Expires=tomorrow&se=later", None),
    ],
)
def test_an_expiry_is_read_from_every_kind_of_signed_url(url: str, until: datetime | None) -> None:
    assert expiry(url) == until


def test_of_several_urls_the_first_to_expire_counts() -> None:
    late, soon = "https://h/a?Expires=2000000000", "https://h/a?Expires=1900000000"
    assert earliest([late, "https://h/unsigned", soon]) == datetime.fromtimestamp(1_900_000_000, UTC)
    assert earliest(["https://h/unsigned"]) is None


@pytest.mark.parametrize(
    ("identifier", "scan"),
    [("ivo://au.csiro/scan-105174-72962", "105174"), ("scan-9", "9"), ("cube-244", None), ("scan--3", "")],
)
def test_a_scan_stands_between_its_word_and_the_next_dash(identifier: str, scan: str | None) -> None:
    assert scan_of(identifier) == scan


@given(body=st.binary(max_size=200))
def test_whatever_is_answered_it_is_read_or_refused(body: bytes) -> None:
    for read in (read_job, read_results, read_jobs):
        try:
            read(body, name="j")
        except ArchiveError as error:
            assert error.code == "staging_answer_unreadable"  # noqa: PT017  # a property of all inputs
