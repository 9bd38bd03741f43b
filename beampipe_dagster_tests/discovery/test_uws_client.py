from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
import requests

from beampipe_dagster.clock import ManualClock
from beampipe_dagster.discovery.archive import Answer, Upload
from beampipe_dagster.discovery.job_store import JobStore, LedgerJobs, MemoryJobs
from beampipe_dagster.discovery.tap import TapArchive
from beampipe_dagster.discovery.tap_session import TapSession
from beampipe_dagster.errors import ArchiveError, Retry
from beampipe_dagster.ids import SequenceIds
from beampipe_dagster.ledger import archive_jobs
from beampipe_dagster.ledger.archive_jobs import ArchiveJob
from beampipe_dagster.ledger.engine import Ledger
from beampipe_dagster_tests.support.fake_tap import (
    Reply,
    busy,
    error_document,
    html,
    overflow,
    rows,
    too_many,
    with_fault,
)
from beampipe_dagster_tests.support.fake_uws import FakeUws, Form

TABLE: list[dict[str, str | None]] = [{"obs_id": "ASKAP-1", "n": "5"}, {"obs_id": "ASKAP-2", "n": None}]
GOOD = rows(TABLE, types={"n": "int"})
SEEN = [{"obs_id": "ASKAP-1", "n": "5"}, {"obs_id": "ASKAP-2", "n": ""}]
ADQL = "SELECT obs_id, n FROM ivoa.obscore"
WHOLE = [
    "POST async",
    "GET async/job",
    "POST async/job/phase",
    "GET async/job",
    "GET async/job",
    "GET async/job",
    "GET async/job/results/result",
    "DELETE async/job",
]


class Died(BaseException):
    """The process was killed here."""


class DyingJobs:
    """A store whose process dies right after it has kept something."""

    def __init__(self, jobs: JobStore, dies_in: str) -> None:
        self._jobs = jobs
        self._dies_in = dies_in

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> Any:
            done = getattr(self._jobs, name)(*arguments)
            if name == self._dies_in:
                raise Died
            return done

        return call


def archive(
    tap: FakeUws, clock: ManualClock, jobs: JobStore | None = None, *, retries: int = 2, **more: Any
) -> TapArchive:
    return TapArchive(
        adapter="casda",
        url=tap.url,
        timeout_seconds=5.0,
        retries=retries,
        clock=clock,
        jobs=jobs or MemoryJobs(clock=clock),
        **more,
    )


def ledger_jobs(ledger: Ledger, clock: ManualClock) -> LedgerJobs:
    return LedgerJobs(ledger=ledger, clock=clock, ids=SequenceIds())


def kept(ledger: Ledger) -> list[ArchiveJob]:
    with ledger.read() as conn:
        return archive_jobs.newest(conn)


def failure(tap: FakeUws, clock: ManualClock, **more: Any) -> ArchiveError:
    with pytest.raises(ArchiveError) as caught:
        archive(tap, clock, **more).query_async(ADQL)
    return caught.value


def test_a_job_is_created_then_run_then_followed_then_collected_then_deleted(clock: ManualClock) -> None:
    with FakeUws(GOOD) as tap:
        answer = archive(tap, clock).query_async(ADQL, maxrec=50)
    assert answer.rows == SEEN
    assert tap.trace == WHOLE
    created = tap.asked[0].parameters
    assert (created["QUERY"], created["MAXREC"], created["LANG"]) == (ADQL, "50", "ADQL")
    assert "PHASE" not in created
    assert tap.jobs == {}


def test_the_evidence_tells_of_the_job_and_its_phases(clock: ManualClock) -> None:
    with FakeUws(GOOD, version="1.0") as tap:
        evidence = archive(tap, clock).query_async(ADQL).evidence
    shown: Any = evidence.as_dict()
    assert (shown["mode"], shown["url"]) == ("async", f"{tap.url}/async")
    assert shown["job_url"] == f"{tap.url}/async/1"
    assert [phase for phase, _ in shown["phases"]] == ["PENDING", "QUEUED", "EXECUTING", "COMPLETED"]
    times = [time for _, time in shown["phases"]]
    assert times == sorted(times)
    assert times[0] < times[-1]
    assert (shown["query_status_head"], shown["query_status_tail"], shown["rows"]) == ("OK", None, 2)


def test_a_service_of_uws_1_1_is_asked_to_hold_its_answer_back(clock: ManualClock) -> None:
    with FakeUws(GOOD) as tap:
        archive(tap, clock).query_async(ADQL)
    looks = [request.parameters for request in tap.asked if request.short == "GET async/job"]
    assert looks[0] == {}
    assert [(look["WAIT"], look["PHASE"]) for look in looks[1:]] == [
        ("5", "PENDING"),
        ("5", "QUEUED"),
        ("5", "EXECUTING"),
    ]


def test_a_service_of_uws_1_0_is_looked_at_less_and_less_often(clock: ManualClock) -> None:
    with FakeUws(GOOD, version="1.0", phases=("EXECUTING",) * 12 + ("COMPLETED",)) as tap:
        archive(tap, clock).query_async(ADQL)
    assert all("WAIT" not in request.parameters for request in tap.asked)
    assert 60 < clock.monotonic() < 120


@pytest.mark.parametrize("phase", ["QUEUED", "EXECUTING", "SUSPENDED", "HELD", "UNKNOWN", "THINKING"])
def test_a_job_in_any_other_phase_is_still_at_work(clock: ManualClock, phase: str) -> None:
    with FakeUws(GOOD, phases=(phase, phase, "COMPLETED")) as tap:
        assert archive(tap, clock).query_async(ADQL).rows == SEEN


@pytest.mark.parametrize("form", ["href", "relative", "text", "none"])
def test_the_result_is_found_in_whatever_form_the_document_names_it(clock: ManualClock, form: Form) -> None:
    with FakeUws(GOOD, form=form) as tap:
        assert archive(tap, clock).query_async(ADQL).rows == SEEN
    assert "GET async/job/results/result" in tap.trace


@pytest.mark.parametrize(
    ("phases", "message", "result", "code", "said"),
    [
        (("ERROR",), "no such column: x", GOOD, "archive_error", "no such column: x"),
        (("ERROR",), "TAP service too busy", GOOD, "archive_refused", "too busy"),
        (("ERROR",), "", GOOD, "archive_error", "does not say why"),
        (("EXECUTING", "ABORTED"), "", GOOD, "archive_error", "aborted"),
        (("ARCHIVED",), "", GOOD, "archive_unavailable", "archived"),
        (("COMPLETED",), "", overflow(TABLE), "archive_overflow", "more rows"),
        (("COMPLETED",), "", error_document("at the end"), "archive_error", "at the end"),
        (("COMPLETED",), "", html(), "archive_malformed", "no whole VOTable"),
    ],
)
def test_a_job_that_ends_without_a_table_is_an_error_and_is_closed_and_deleted(
    ledger: Ledger,
    clock: ManualClock,
    phases: tuple[str, ...],
    message: str,
    result: Reply,
    code: str,
    said: str,
) -> None:
    with FakeUws(result, phases=phases, message=message) as tap:
        error = failure(tap, clock, jobs=ledger_jobs(ledger, clock))
    assert error.code == code
    assert said in error.message
    (row,) = kept(ledger)
    assert (row.state, row.deleted_at) == ("failed", clock.now())
    assert said in (row.message or "")
    assert tap.jobs == {}
    assert error.details["job_url"] == f"{tap.url}/async/1"


@pytest.mark.parametrize("dies_in", ["begin", "opened", "seen"])
def test_the_same_query_goes_on_with_the_job_that_a_dead_process_left(
    ledger: Ledger, clock: ManualClock, dies_in: str
) -> None:
    jobs: Any = ledger_jobs(ledger, clock)
    with FakeUws(GOOD) as tap:
        with pytest.raises(Died):
            archive(tap, clock, DyingJobs(jobs, dies_in)).query_async(ADQL)
        answer = archive(tap, clock, jobs).query_async(ADQL)
    assert answer.rows == SEEN
    assert tap.created == 1
    states = [row.state for row in kept(ledger)]
    # An intent without a URL was never told to run; nothing is wanted from it.
    assert states == (["collected", "intent"] if dies_in == "begin" else ["collected"])


def test_a_job_is_told_to_run_only_after_its_url_was_kept(ledger: Ledger, clock: ManualClock) -> None:
    with FakeUws(GOOD) as tap:
        with pytest.raises(Died):
            archive(tap, clock, DyingJobs(ledger_jobs(ledger, clock), "opened")).query_async(ADQL)
        assert tap.trace == ["POST async"]
        assert tap.jobs["1"].phase == "PENDING"
    (row,) = kept(ledger)
    assert (row.state, row.job_url) == ("open", f"{tap.url}/async/1")


def test_a_job_that_takes_longer_than_it_is_waited_for_is_gone_on_with(
    ledger: Ledger, clock: ManualClock
) -> None:
    jobs = ledger_jobs(ledger, clock)
    with FakeUws(GOOD, version="1.0", phases=("EXECUTING",) * 8 + ("COMPLETED",)) as tap:
        error = failure(tap, clock, jobs=jobs, job_seconds=5.0)
        assert (error.code, error.retry) == ("archive_timeout", Retry.LATER)
        assert "goes on with the same job" in error.hint
        answer = archive(tap, clock, jobs).query_async(ADQL)
    assert answer.rows == SEEN
    assert tap.created == 1
    assert [phase for phase, _ in answer.evidence.phases] == ["PENDING", "EXECUTING", "COMPLETED"]


def test_without_a_ledger_a_job_is_gone_on_with_in_the_same_process(clock: ManualClock) -> None:
    jobs = MemoryJobs(clock=clock)
    with FakeUws(GOOD, version="1.0", phases=("EXECUTING",) * 8 + ("COMPLETED",)) as tap:
        failure(tap, clock, jobs=jobs, job_seconds=5.0)
        assert archive(tap, clock, jobs).query_async(ADQL).rows == SEEN
        assert tap.created == 1
        assert archive(tap, clock, jobs).query_async(ADQL).rows == SEEN
    assert tap.created == 2


def test_another_query_is_another_job(ledger: Ledger, clock: ManualClock) -> None:
    jobs = ledger_jobs(ledger, clock)
    upload = Upload("mine", ("id",), (("a",),))
    with FakeUws(GOOD, version="1.0", phases=("EXECUTING",) * 1000) as tap:
        for adql, maxrec, table in (
            (ADQL, 10, None),
            (f"{ADQL} ", 10, None),
            (ADQL, 11, None),
            (ADQL, 10, upload),
            (ADQL, 10, Upload("mine", ("id",), (("b",),))),
        ):
            with pytest.raises(ArchiveError, match="archive_timeout"):
                archive(tap, clock, jobs, job_seconds=1.0).query_async(adql, maxrec=maxrec, upload=table)
    assert tap.created == 5
    assert len({row.query_key for row in kept(ledger)}) == 5


def test_a_job_that_the_archive_forgot_is_recorded_and_asked_for_anew_once(
    ledger: Ledger, clock: ManualClock
) -> None:
    jobs = ledger_jobs(ledger, clock)
    with FakeUws(GOOD, version="1.0", phases=("EXECUTING",) * 8 + ("COMPLETED",)) as tap:
        failure(tap, clock, jobs=jobs, job_seconds=1.0)
        tap.jobs.clear()
        answer = archive(tap, clock, jobs).query_async(ADQL)
    assert answer.rows == SEEN
    assert [row.state for row in kept(ledger)] == ["collected", "lost"]


def test_a_job_that_is_lost_at_once_is_an_error_for_later(ledger: Ledger, clock: ManualClock) -> None:
    gone = Reply(b"", status=404)
    with FakeUws(GOOD, faults={"GET async/job": [gone]}) as tap:
        error = failure(tap, clock, jobs=ledger_jobs(ledger, clock))
    assert (error.code, error.retry) == ("archive_unavailable", Retry.LATER)
    assert [row.state for row in kept(ledger)] == ["lost"]


def test_a_job_past_its_destruction_is_dropped(ledger: Ledger, clock: ManualClock) -> None:
    jobs = ledger_jobs(ledger, clock)
    drop = (clock.now() + timedelta(hours=1)).isoformat()
    with FakeUws(GOOD, version="1.0", phases=("EXECUTING",) * 1000, destruction=drop) as tap:
        failure(tap, clock, jobs=jobs, job_seconds=1.0)
        clock.advance(3600)
        failure(tap, clock, jobs=jobs, job_seconds=1.0)
    assert tap.created == 2
    assert [row.state for row in kept(ledger)] == ["open", "expired"]


@pytest.mark.parametrize(
    ("at", "fault"),
    [
        ("POST async", too_many("1")),
        ("POST async", busy()),
        ("GET async/job", Reply(b"", status=502)),
        ("GET async/job", html()),
        ("POST async/job/phase", busy()),
        ("GET async/job/results", with_fault(GOOD, "truncate")),
        ("GET async/job/results", Reply(b"", status=500)),
    ],
)
def test_what_passes_is_asked_again(clock: ManualClock, at: str, fault: Reply) -> None:
    with FakeUws(GOOD, faults={at: [fault, fault]}) as tap:
        assert archive(tap, clock).query_async(ADQL).rows == SEEN
    assert tap.created == 1


def test_what_stays_leaves_the_job_open_for_the_next_time(ledger: Ledger, clock: ManualClock) -> None:
    jobs = ledger_jobs(ledger, clock)
    broken = Reply(b"", status=500)
    with FakeUws(GOOD, faults={"GET async/job": [broken] * 3}) as tap:
        assert failure(tap, clock, jobs=jobs).code == "archive_unavailable"
        assert [row.state for row in kept(ledger)] == ["open"]
        assert archive(tap, clock, jobs).query_async(ADQL).rows == SEEN
    assert tap.created == 1


def test_a_refused_creation_leaves_nothing_open(ledger: Ledger, clock: ManualClock) -> None:
    with FakeUws(GOOD, faults={"POST async": [error_document("no such language")]}) as tap:
        error = failure(tap, clock, jobs=ledger_jobs(ledger, clock))
    assert (error.code, "no such language" in error.message) == ("archive_error", True)
    assert [row.state for row in kept(ledger)] == ["abandoned"]


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (Reply(status=301, headers={"Location": "https://new.example/tap/async"}), "configure that URL"),
        (Reply(status=303, headers={"Location": "file:///etc/passwd"}), "which is no job"),
        (Reply(status=303, headers={"Location": "/tap/async"}), "which is no job"),
    ],
)
def test_a_place_that_can_be_no_job_is_not_gone_to(clock: ManualClock, reply: Reply, said: str) -> None:
    with FakeUws(GOOD, faults={"POST async": [reply]}) as tap:
        error = failure(tap, clock)
    assert (error.code, said in error.message) == ("archive_malformed", True)
    assert tap.trace == ["POST async"]


def test_a_service_that_cannot_delete_by_method_is_asked_by_action(
    ledger: Ledger, clock: ManualClock
) -> None:
    with FakeUws(GOOD, faults={"DELETE": [Reply(b"", status=405)]}) as tap:
        archive(tap, clock, ledger_jobs(ledger, clock)).query_async(ADQL)
    assert tap.trace[-2:] == ["DELETE async/job", "POST async/job"]
    assert kept(ledger)[0].deleted_at is not None


def test_a_job_that_cannot_be_deleted_does_not_spoil_its_answer(ledger: Ledger, clock: ManualClock) -> None:
    with FakeUws(GOOD, faults={"DELETE": [Reply(b"", status=500)]}) as tap:
        assert archive(tap, clock, ledger_jobs(ledger, clock)).query_async(ADQL).rows == SEEN
    (row,) = kept(ledger)
    assert (row.state, row.deleted_at) == ("collected", None)


class ShutSession(TapSession):
    """A session that is not let through to the archive for some requests."""

    def __init__(self, method: str) -> None:
        super().__init__(timeout_seconds=5.0)
        self.shut = method

    def send(self, request: requests.PreparedRequest, **kwargs: Any) -> requests.Response:
        if request.method == self.shut:
            raise ArchiveError("nobody may ask now", code="archive_circuit_open")
        return super().send(request, **kwargs)


def test_an_answer_is_not_lost_when_the_archive_is_shut_off_after_it(
    ledger: Ledger, clock: ManualClock
) -> None:
    jobs = ledger_jobs(ledger, clock)
    with FakeUws(GOOD) as tap:
        answer = archive(tap, clock, jobs, session=ShutSession("DELETE")).query_async(ADQL)
    assert answer.rows == SEEN
    assert kept(ledger)[0].state == "collected"


def test_an_archive_that_is_shut_off_in_between_leaves_the_job_open(
    ledger: Ledger, clock: ManualClock
) -> None:
    jobs = ledger_jobs(ledger, clock)
    with FakeUws(GOOD) as tap:
        with pytest.raises(ArchiveError, match="archive_circuit_open"):
            archive(tap, clock, jobs, session=ShutSession("GET")).query_async(ADQL)
        assert archive(tap, clock, jobs).query_async(ADQL).rows == SEEN
    assert tap.created == 1


def test_neither_ledger_nor_evidence_keep_what_may_be_secret_in_a_url(
    ledger: Ledger, clock: ManualClock
) -> None:
    with FakeUws(GOOD) as tap:
        place = tap.url.replace("http://", "http://me:hunter2@") + "/async/1?token=hunter2"
        tap.faults["POST async"] = [Reply(status=303, headers={"Location": place})]
        error = failure(tap, clock, jobs=ledger_jobs(ledger, clock))
    (row,) = kept(ledger)
    assert row.job_url == f"{tap.url}/async/1"
    assert "hunter2" not in str(error.as_dict())


def test_an_upload_goes_with_the_job(clock: ManualClock) -> None:
    with FakeUws(GOOD) as tap:
        answer: Answer = archive(tap, clock).query_async(ADQL, upload=Upload("mine", ("id",), (("a",),)))
    assert answer.evidence.as_dict()["uploaded_rows"] == 1
