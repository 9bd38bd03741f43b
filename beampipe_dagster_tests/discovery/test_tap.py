from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime

import pytest
import requests
import stamina

from beampipe_dagster.clock import ManualClock, SystemClock
from beampipe_dagster.discovery import tap_session
from beampipe_dagster.discovery.archive import AnswerClass, Archive
from beampipe_dagster.discovery.tap import TapArchive
from beampipe_dagster.discovery.tap_session import (
    MAX_RETRY_AFTER_SECONDS,
    TapSession,
    backoff,
    retry_after,
    tap_base_url,
)
from beampipe_dagster.errors import ArchiveError, ConfigError, InputError, Retry
from beampipe_dagster_tests.support.fake_tap import (
    FakeTap,
    Fault,
    Reply,
    Serialisation,
    availability_document,
    busy,
    error_after_rows,
    error_document,
    html,
    overflow,
    redirect,
    rows,
    slow,
    too_many,
    votable,
    with_fault,
)

TABLE: list[dict[str, str | None]] = [{"obs_id": "ASKAP-1", "n": "5"}, {"obs_id": "ASKAP-2", "n": None}]
GOOD = rows(TABLE, types={"n": "int"})
SEEN = [{"obs_id": "ASKAP-1", "n": "5"}, {"obs_id": "ASKAP-2", "n": ""}]
ADQL = "SELECT obs_id, n FROM ivoa.obscore WHERE obs_id LIKE 'ASKAP%'"


@pytest.fixture
def no_waiting() -> Iterator[None]:
    """Repetitions come at once; how many there are stays what the archive says."""
    with stamina.set_testing(True, attempts=100, cap=True):
        yield


def archive(tap: FakeTap, *, retries: int = 0, timeout: float = 5.0) -> TapArchive:
    return TapArchive(
        adapter="casda", url=tap.url, timeout_seconds=timeout, retries=retries, clock=SystemClock()
    )


def failure(*script: Reply, retries: int = 0, timeout: float = 5.0, maxrec: int = 100) -> ArchiveError:
    with FakeTap(*script) as tap:
        with pytest.raises(ArchiveError) as caught:
            archive(tap, retries=retries, timeout=timeout).query(ADQL, maxrec=maxrec)
        assert caught.value.details["attempts"] == len(tap.queries)
    return caught.value


@pytest.mark.parametrize("serialisation", ["tabledata", "binary", "binary2"])
@pytest.mark.parametrize("chunked", [False, True])
def test_a_complete_answer_comes_with_its_evidence(serialisation: Serialisation, *, chunked: bool) -> None:
    reply = rows(TABLE, types={"n": "int"}, serialisation=serialisation)
    with FakeTap(replace(reply, chunked=chunked)) as tap:
        port: Archive = archive(tap)
        answer = port.query(ADQL)
    assert answer.rows == SEEN
    seen = answer.evidence
    assert (seen.adapter, seen.url) == ("casda", f"{tap.url}/sync")
    assert (seen.answer, seen.rows, seen.attempts) == (AnswerClass.COMPLETE, 2, 1)
    assert (seen.http_status, seen.query_status) == (200, "OK")
    assert seen.query_sha256 == hashlib.sha256(ADQL.encode()).hexdigest()
    assert seen.bytes is not None
    assert seen.bytes > 100


def test_a_query_is_posted_with_maxrec_under_our_name() -> None:
    with FakeTap(GOOD) as tap:
        archive(tap).query(ADQL, maxrec=77)
    (asked,) = tap.queries
    assert (asked.method, asked.path) == ("POST", "/tap/sync")
    assert asked.parameters == {"REQUEST": "doQuery", "LANG": "ADQL", "MAXREC": "77", "QUERY": ADQL}
    assert asked.user_agent.startswith("beampipe-dagster/")


def test_nothing_found_is_an_answer() -> None:
    with FakeTap(rows([], types={"a": "char"})) as tap:
        assert archive(tap).query(ADQL).rows == []


@pytest.mark.parametrize(
    ("reply", "code", "retry"),
    [
        (overflow(TABLE), "archive_overflow", Retry.NEVER),
        (error_document("Incorrect ADQL query: unknown table"), "archive_error", Retry.LATER),
        (error_document("Incorrect ADQL query", status=400), "archive_error", Retry.NEVER),
        (error_after_rows(TABLE, "connection lost"), "archive_error", Retry.LATER),
        (error_after_rows(TABLE, "temporarily unavailable"), "archive_error", Retry.LATER),
        (html("Not Found", status=404), "archive_error", Retry.NEVER),
        (html(), "archive_malformed", Retry.LATER),
        (Reply(b""), "archive_malformed", Retry.LATER),
        (Reply(b"a\n1\n", content_type="text/csv"), "archive_malformed", Retry.LATER),
        (Reply(votable(["a"], [], {}, status=None)), "archive_malformed", Retry.LATER),
        (Reply(votable(["a"], [{"a": "1"}], {})[:-20]), "archive_malformed", Retry.LATER),
        (Reply(b"", status=204), "archive_malformed", Retry.LATER),
        (html("Log in", status=401), "archive_refused", Retry.NEVER),
        (html("Forbidden", status=403), "archive_refused", Retry.NEVER),
        (too_many("7200"), "archive_refused", Retry.LATER),
    ],
)
def test_what_does_not_pass_is_not_asked_again(reply: Reply, code: str, retry: Retry) -> None:
    error = failure(reply, GOOD, retries=3)
    assert (error.code, error.retry, error.details["attempts"]) == (code, retry, 1)
    assert error.details["answer"] == code.removeprefix("archive_")


TRANSIENT = [
    (too_many("0"), "archive_refused"),
    (busy(503), "archive_refused"),
    (busy(400), "archive_refused"),
    (busy(200), "archive_refused"),
    (busy(400, "Unable to check the ADQL query!"), "archive_refused"),
    (busy(503, "No connection available"), "archive_refused"),
    (html("Temporarily Unavailable", status=503), "archive_refused"),
    (html("Maintenance", status=503), "archive_unavailable"),
    (html("Bad gateway", status=502), "archive_unavailable"),
    (error_document("internal", status=500), "archive_unavailable"),
    (with_fault(GOOD, "reset"), "archive_unavailable"),
    (with_fault(GOOD, "reset_in_body"), "archive_malformed"),
    (with_fault(GOOD, "truncate"), "archive_malformed"),
    (with_fault(replace(GOOD, chunked=True), "truncate"), "archive_malformed"),
]


@pytest.mark.usefixtures("no_waiting")
@pytest.mark.parametrize(("reply", "code"), TRANSIENT)
def test_what_passes_is_asked_again_until_it_has(reply: Reply, code: str) -> None:
    with FakeTap(reply, reply, GOOD) as tap:
        answer = archive(tap, retries=2).query(ADQL)
    assert answer.rows == SEEN
    assert answer.evidence.attempts == len(tap.queries) == 3
    error = failure(reply, retries=1)
    assert (error.code, error.retry, error.details["attempts"]) == (code, Retry.LATER, 2)


@pytest.mark.usefixtures("no_waiting")
@pytest.mark.parametrize(
    "reply",
    [
        slow(GOOD, 5),
        with_fault(GOOD, "trickle"),
        with_fault(replace(GOOD, chunked=True), "trickle"),
    ],
)
def test_a_silent_and_a_trickling_service_both_end_in_time(reply: Reply) -> None:
    began = time.monotonic()
    error = failure(reply, timeout=0.3, retries=1)
    assert (error.code, error.retry, error.details["attempts"]) == ("archive_timeout", Retry.LATER, 2)
    assert time.monotonic() - began < 3


def test_a_service_that_is_not_there_is_unavailable() -> None:
    with FakeTap(GOOD) as tap:
        gone = archive(tap)
    with pytest.raises(ArchiveError) as caught:
        gone.query(ADQL)
    assert caught.value.code == "archive_unavailable"
    assert caught.value.details["http_status"] is None
    assert "Connection refused" in caught.value.message


def test_more_rows_than_maxrec_are_never_a_part_that_looks_whole() -> None:
    for maxrec in (1, 2):
        error = failure(GOOD, maxrec=maxrec)
        assert (error.code, error.details["rows"]) == ("archive_overflow", maxrec)


def test_the_message_of_the_archive_is_shown() -> None:
    assert "unknown table nowhere" in failure(error_document("unknown table nowhere")).message
    assert "HTTP 400: unknown table" in failure(error_document("unknown table", status=400)).message


def test_partial_rows_are_evidence_only() -> None:
    error = failure(error_after_rows(TABLE, "connection lost"))
    assert (error.details["rows"], error.details["query_status"]) == (2, "ERROR")


def test_a_redirect_that_loses_the_query_says_where_it_went() -> None:
    with (
        FakeTap(error_document("REQUEST is missing", status=400)) as new,
        FakeTap(redirect(f"{new.url}/sync")) as old,
    ):
        with pytest.raises(ArchiveError) as caught:
            archive(old).query(ADQL)
        assert f"{new.url}/sync" in caught.value.message


def test_a_body_beyond_the_bound_is_not_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tap_session, "MAX_BYTES", 1_000)
    error = failure(Reply(b"x" * 1_000_000))
    assert error.code == "archive_overflow"
    assert error.details["bytes"] < 200_000


def test_retry_after_is_waited_for() -> None:
    with FakeTap(too_many("1"), GOOD) as tap:
        began = time.monotonic()
        answer = archive(tap, retries=1).query(ADQL)
        waited = time.monotonic() - began
    assert answer.evidence.attempts == 2
    assert waited >= 1


def test_waits_grow_and_respect_what_the_service_asks_for() -> None:
    def failed(seconds: float | None, *, transient: bool = True) -> Exception:
        return tap_session.FailedError(AnswerClass.REFUSED, "x", transient=transient, retry_after=seconds)

    assert backoff(failed(None)) is True
    assert backoff(failed(7.0)) == 7.0
    assert backoff(failed(MAX_RETRY_AFTER_SECONDS + 1)) is False
    assert backoff(failed(None, transient=False)) is False
    assert backoff(ValueError("x")) is False


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, None),
        ("12", 12.0),
        ("soon", None),
        ("-1", None),
        ("Thu, 01 Jan 2026 00:00:30 GMT", 30.0),
        ("Wed, 31 Dec 2025 00:00:00 GMT", 0.0),
    ],
)
def test_retry_after_is_seconds_or_a_date(header: str | None, seconds: float | None) -> None:
    assert retry_after(header, ManualClock(datetime(2026, 1, 1, tzinfo=UTC))) == seconds


@pytest.mark.parametrize(
    "url",
    ["https://h/x/tap", "https://h/x/tap/", "https://h/x/tap/sync", " https://h/x/tap/sync/ "],
)
def test_every_spelling_of_a_tap_url_is_the_same_service(url: str) -> None:
    assert tap_base_url(url) == "https://h/x/tap"


@pytest.mark.parametrize(
    "url",
    ["", "h/tap", "ftp://h/tap", "https://", "https://h/tap?x=1", "https://h/ta p", "https://h:x/tap"],
)
def test_what_is_no_tap_url_is_refused(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        tap_base_url(url)
    assert caught.value.code == "invalid_tap_url"


def test_a_password_in_a_url_is_refused_and_not_repeated() -> None:
    with pytest.raises(ConfigError) as caught:
        tap_base_url("https://user:secret@h/tap")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("timeout", "retries", "code"), [(0, 0, "invalid_tap_timeout"), (1, -1, "invalid_tap_retries")]
)
def test_limits_that_cannot_work_are_refused(timeout: float, retries: int, code: str) -> None:
    with pytest.raises(ConfigError) as caught:
        TapArchive(
            adapter="casda",
            url="https://h/tap",
            timeout_seconds=timeout,
            retries=retries,
            clock=ManualClock(),
        )
    assert caught.value.code == code


def test_a_maxrec_that_asks_for_nothing_is_refused() -> None:
    with FakeTap(GOOD) as tap:
        with pytest.raises(InputError) as caught:
            archive(tap).query(ADQL, maxrec=0)
        assert caught.value.code == "invalid_maxrec"
        assert tap.queries == []


def test_many_threads_share_one_archive() -> None:
    def echo(number: int) -> Reply:
        return rows([{"n": str(number)}])

    with FakeTap(*(echo(number) for number in range(40))) as tap:
        one = archive(tap)
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda _: one.query(ADQL).rows[0]["n"], range(40)))
        one.close()
    assert sorted(answers, key=lambda text: int(str(text))) == [str(number) for number in range(40)]


def test_an_own_session_is_used_as_it_is() -> None:
    session = requests.Session()
    session.headers["User-Agent"] = "mine"
    with FakeTap(GOOD) as tap:
        TapArchive(
            adapter="casda",
            url=tap.url,
            timeout_seconds=1,
            retries=0,
            clock=SystemClock(),
            session=session,
        ).query(ADQL)
    assert tap.queries[0].user_agent == "mine"


def test_the_session_never_waits_for_ever() -> None:
    with FakeTap(slow(GOOD, 5)) as tap, pytest.raises(requests.ReadTimeout):
        TapSession(timeout_seconds=0.2).post(f"{tap.url}/sync")


@pytest.mark.parametrize(
    ("pages", "available", "said"),
    [
        ({"availability": availability_document(available=True)}, True, "is available"),
        ({"availability": availability_document(available=False, note="until 9")}, False, "until 9"),
        ({"availability": html()}, False, "maintenance"),
        ({"availability": html(status=503)}, False, "HTTP 503"),
        ({"capabilities": Reply(b"<vosi:capabilities/>")}, True, "capabilities"),
        ({}, False, "HTTP 404"),
        ({"availability": with_fault(Reply(b""), "reset")}, False, "cannot be reached"),
        ({"availability": slow(Reply(b""), 5)}, False, "cannot be reached"),
    ],
)
def test_availability_is_a_sentence_and_never_an_error(
    pages: dict[str, Reply], said: str, *, available: bool
) -> None:
    with FakeTap(GOOD, pages=pages) as tap:
        up, sentence = archive(tap, timeout=0.5).availability()
    assert up is available
    assert said in sentence
    assert tap.url in sentence


@pytest.mark.parametrize("fault", ["reset", "truncate", "reset_in_body"])
def test_a_broken_connection_does_not_break_the_next_query(fault: Fault) -> None:
    with FakeTap(with_fault(GOOD, fault), GOOD) as tap:
        one = archive(tap)
        with pytest.raises(ArchiveError):
            one.query(ADQL)
        assert one.query(ADQL).rows == SEEN
