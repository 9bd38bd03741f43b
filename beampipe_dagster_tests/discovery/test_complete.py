from __future__ import annotations

import pytest

from beampipe_dagster.clock import ManualClock
from beampipe_dagster.discovery.archive import AnswerClass, TapCapabilities
from beampipe_dagster.discovery.complete import complete_answer
from beampipe_dagster.errors import ArchiveError, Retry
from beampipe_dagster_tests.support.archives import FakeArchive, FakeArchives

ADQL = "SELECT * FROM t WHERE f LIKE 'A%'"


def archive(clock: ManualClock, beams: int, *, jobs: bool = True, hard: int | None = None) -> FakeArchive:
    archives = FakeArchives(clock=clock)
    archives.deposit("A%", 1, beams=beams)
    archives.capabilities = TapCapabilities(async_=jobs, hard_maxrec=hard, documented=jobs)
    return FakeArchive(archives, "casda")


def test_an_answer_that_is_whole_at_once_needs_no_job(clock: ManualClock) -> None:
    one = archive(clock, 4)
    assert len(complete_answer(one, ADQL, maxrec=5).rows) == 4
    assert one.archives.modes == ["sync"]


def test_an_overflow_becomes_a_job_with_more_rows(clock: ManualClock) -> None:
    one = archive(clock, 5)
    answer = complete_answer(one, ADQL, maxrec=5)
    assert (len(answer.rows), answer.evidence.mode) == (5, "async")
    assert one.archives.modes == ["sync", "async"]


@pytest.mark.parametrize(
    ("jobs", "hard", "most", "modes", "said"),
    [
        (False, None, 100, ["sync"], "does not say that it runs jobs"),
        (True, 8, 100, ["sync", "async"], "gives out 8 rows"),
        (True, 5, 100, ["sync"], "gives out 5 rows"),
        (True, None, 8, ["sync", "async"], "More than 8 rows"),
    ],
)
def test_what_overflows_in_every_way_says_what_to_do(
    clock: ManualClock, hard: int | None, most: int, modes: list[str], said: str, *, jobs: bool
) -> None:
    one = archive(clock, 9, jobs=jobs, hard=hard)
    with pytest.raises(ArchiveError) as caught:
        complete_answer(one, ADQL, maxrec=5, most_rows=most)
    assert (caught.value.code, caught.value.retry) == ("archive_overflow", Retry.NEVER)
    assert said in caught.value.hint
    assert caught.value.details["answer"] == "overflow"
    assert one.archives.modes == modes


def test_another_failure_is_not_asked_again_as_a_job(clock: ManualClock) -> None:
    one = archive(clock, 9)
    one.archives.fail("A%", AnswerClass.TIMEOUT)
    with pytest.raises(ArchiveError, match="archive_timeout"):
        complete_answer(one, ADQL, maxrec=5)
    assert one.archives.modes == ["sync"]
