"""The adapter against the sandbox archive, over a real socket: everything but what only faults show."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from beampipe_dagster.clock import ManualClock, SystemClock
from beampipe_dagster.discovery.archive import Upload
from beampipe_dagster.discovery.complete import complete_answer
from beampipe_dagster.discovery.job_store import LedgerJobs
from beampipe_dagster.discovery.tap import TapArchive
from beampipe_dagster.errors import ArchiveError
from beampipe_dagster.ids import UuidIds
from beampipe_dagster.ledger import archive_jobs
from beampipe_dagster.ledger.engine import Ledger
from beampipe_dagster.sandbox.archive.server import ArchiveServer

OBSERVED = "SELECT filename, t_xel, s_ra FROM ivoa.obscore ORDER BY filename"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ArchiveServer]:
    with ArchiveServer(tmp_path_factory.mktemp("archive")) as running:
        yield running


@pytest.fixture(scope="module")
def archive(server: ArchiveServer) -> TapArchive:
    return TapArchive(
        adapter="casda", url=server.casda_url, timeout_seconds=30, retries=0, clock=SystemClock()
    )


def test_a_job_gives_what_the_query_gives(archive: TapArchive) -> None:
    at_once, job = archive.query(OBSERVED), archive.query_async(OBSERVED)
    assert job.rows == at_once.rows
    assert job.columns == at_once.columns
    assert [column.datatype for column in job.columns] == ["char", "long", "double"]
    assert isinstance(job.typed()[0]["s_ra"], float)


@pytest.mark.parametrize("name", ["HIPASSJ0324-21", "a'b", "é<&>"])
def test_the_texts_of_an_upload_arrive_as_they_are(archive: TapArchive, name: str) -> None:
    upload = Upload("mine", ("name", "n"), ((name, "1"), ("other", "2")))
    adql = "SELECT m.name, m.n FROM TAP_UPLOAD.mine AS m WHERE m.n = '1'"
    for answer in (archive.query(adql, upload=upload), archive.query_async(adql, upload=upload)):
        assert answer.rows == [{"name": name, "n": "1"}]
        assert answer.evidence.uploaded_rows == 2


def test_an_overflow_becomes_a_job_with_what_the_archive_gives_out(archive: TapArchive) -> None:
    whole = archive.query(OBSERVED).rows
    with pytest.raises(ArchiveError, match="archive_overflow"):
        archive.query_async(OBSERVED, maxrec=len(whole))
    answer = complete_answer(archive, OBSERVED, maxrec=len(whole))
    assert (answer.rows, answer.evidence.mode) == (whole, "async")


def test_what_is_wrong_with_a_query_is_said_in_the_archives_words(archive: TapArchive) -> None:
    with pytest.raises(ArchiveError, match="no such column") as caught:
        archive.query_async("SELECT nowhere FROM ivoa.obscore")
    assert caught.value.code == "archive_error"


def test_a_job_of_a_process_that_died_is_gone_on_with_by_the_next(
    server: ArchiveServer, ledger: Ledger
) -> None:
    def started(seconds: float) -> TapArchive:
        clock = ManualClock(SystemClock().now())
        jobs = LedgerJobs(ledger=ledger, clock=clock, ids=UuidIds())
        return TapArchive(
            adapter="casda",
            url=server.casda_url,
            timeout_seconds=30,
            retries=0,
            clock=clock,
            jobs=jobs,
            job_seconds=seconds,
        )

    # No time to wait: the first look at the job, before it was told to run, is the last.
    with pytest.raises(ArchiveError, match="archive_timeout"):
        started(-1.0).query_async(OBSERVED)
    answer = started(60.0).query_async(OBSERVED)
    assert answer.rows
    with ledger.read() as conn:
        (row,) = archive_jobs.newest(conn)
    assert (row.state, row.job_url) == ("collected", answer.evidence.job_url)
    assert [phase for phase, _ in answer.evidence.phases][:1] == ["PENDING"]
