"""Sources that keep failing by their own fault are set aside; an archive that is away is nobody's fault."""

from __future__ import annotations

import pytest

from beampipe_dagster.discovery.archive import AnswerClass
from beampipe_dagster.discovery.quarantine import DEFAULT_AFTER, is_own_failure
from beampipe_dagster.errors import (
    ArchiveError,
    BeampipeError,
    ConfigError,
    DataError,
    InputError,
    LedgerError,
    Retry,
)
from beampipe_dagster.execution.revisions import RevisionService
from beampipe_dagster_tests.support.archives import INCOMPLETE
from beampipe_dagster_tests.support.ledgers import SURVEY
from beampipe_dagster_tests.support.platforms import Stage

BAD_ROWS = DataError("the rows of 'A' have no SBID")


@pytest.mark.parametrize(
    ("error", "own"),
    [
        (BAD_ROWS, True),
        (InputError("a value cannot be quoted", code="unsafe_identifier"), True),
        (ArchiveError("HTTP 400", code="archive_error", retry=Retry.NEVER), True),
        (ArchiveError("too many rows", code="archive_overflow", retry=Retry.NEVER), True),
        (BeampipeError("KeyError: 'x'"), True),
        (ArchiveError("HTTP 401", code="archive_refused", retry=Retry.NEVER), False),
        (ArchiveError("busy", code="archive_refused"), False),
        (ArchiveError("no answer", code="archive_unavailable"), False),
        (ArchiveError("no answer in time", code="archive_timeout"), False),
        (ConfigError("no TAP service is configured", code="archive_not_configured"), False),
        (LedgerError("the ledger is away"), False),
    ],
)
def test_whose_fault_a_failed_look_is(error: BeampipeError, own: object) -> None:
    assert is_own_failure(error) is own


def fail(stage: Stage, *faults: AnswerClass | Exception) -> None:
    """Looks at A, one after the other, each when its wait is over."""
    for fault in faults:
        stage.archives.fail("A", fault)
        assert stage.discover(), "nothing was due"
        stage.clock.advance(2 * 3600)


def test_a_source_is_quarantined_once_and_not_asked_about_again_by_the_clock(stage: Stage) -> None:
    stage.register("A", "B")
    fail(stage, *[BAD_ROWS] * (DEFAULT_AFTER - 1))
    assert stage.source("A").quarantined_at is None
    assert stage.events("discovery.quarantined") == []
    fail(stage, BAD_ROWS)
    source = stage.source("A")
    assert source.quarantined_at is not None
    assert source.next_attempt_at is None
    assert source.last_error is not None
    assert source.last_error["code"] == "invalid_metadata"
    (event,) = stage.events("discovery.quarantined")
    assert (event.source_identifier, event.payload["failures"]) == ("A", DEFAULT_AFTER)
    assert event.payload["code"] == "invalid_metadata"
    asked = stage.archives.queries["casda", "A"]
    stage.clock.advance(40 * 86_400)
    stage.discover()
    assert stage.archives.queries["casda", "A"] == asked
    assert stage.source("B").last_checked_at == stage.clock.now()


@pytest.mark.parametrize("answer", [one for one in INCOMPLETE if one is not AnswerClass.OVERFLOW])
def test_an_archive_that_is_away_quarantines_nobody(stage: Stage, answer: AnswerClass) -> None:
    stage.register("A")
    fail(stage, *[answer] * (DEFAULT_AFTER + 2))
    source = stage.source("A")
    assert (source.failure_count, source.own_failure_count) == (DEFAULT_AFTER + 2, 0)
    assert source.quarantined_at is None
    assert source.next_attempt_at is not None


def test_failures_of_the_archive_do_not_count_and_a_complete_answer_begins_afresh(stage: Stage) -> None:
    stage.register("A")
    fail(stage, *[AnswerClass.UNAVAILABLE] * DEFAULT_AFTER, *[BAD_ROWS] * (DEFAULT_AFTER - 1))
    assert stage.source("A").own_failure_count == DEFAULT_AFTER - 1
    stage.request("A")
    assert (stage.source("A").failure_count, stage.source("A").own_failure_count) == (0, 0)
    stage.clock.advance(30 * 3600)
    fail(stage, BAD_ROWS)
    assert stage.source("A").quarantined_at is None


def test_a_request_lets_a_quarantined_source_go(stage: Stage) -> None:
    stage.register("A")
    fail(stage, *[BAD_ROWS] * DEFAULT_AFTER)
    stage.platform.registry.mark_for_discovery(SURVEY, ["A"], actor="anna")
    source = stage.source("A")
    assert (source.quarantined_at, source.own_failure_count) == (None, 0)
    stage.archives.deposit("A", 7)
    (report,) = stage.discover()
    assert list(report.changed) == ["A"]
    assert stage.source("A").last_error is None


def test_a_new_revision_lets_failing_sources_go_since_the_fault_may_have_been_the_surveys(
    stage: Stage,
) -> None:
    stage.register("A")
    fail(stage, *[BAD_ROWS] * DEFAULT_AFTER)
    stage.register("B", "C")
    stage.archives.fail("B", AnswerClass.ERROR)
    stage.discover()
    assert stage.source("A").quarantined_at is not None
    assert stage.source("B").next_attempt_at is not None
    stage.add_survey(discovery={"batch_size": 7})
    for name in ("A", "B"):
        source = stage.source(name)
        assert (source.quarantined_at, source.next_attempt_at) == (None, None)
        assert (source.failure_count, source.own_failure_count) == (0, 0)
    told = stage.events("discovery.released")
    assert {one.source_identifier for one in told} == {None, "A"}
    (whole,) = [one for one in told if one.source_identifier is None]
    assert whole.payload == {"why": "revision 2 is active now", "released": 2, "quarantined": 1}
    assert sorted(stage.discover()[0].no_datasets) == ["A", "B"]


def test_going_back_to_a_revision_lets_failing_sources_go(stage: Stage) -> None:
    stage.add_survey(discovery={"batch_size": 7})
    stage.register("A")
    stage.archives.fail("A", AnswerClass.ERROR)
    stage.discover()
    service = RevisionService(ledger=stage.ledger, clock=stage.clock, ids=stage.platform.ids)
    service.activate(SURVEY, 1, actor="test")
    assert stage.source("A").failure_count == 0


def test_the_same_revision_again_releases_nothing(stage: Stage) -> None:
    stage.register("A")
    stage.archives.fail("A", AnswerClass.ERROR)
    stage.discover()
    stage.add_survey()
    assert stage.source("A").failure_count == 1
    assert stage.events("discovery.released") == []


def test_a_new_revision_does_not_hurry_a_source_that_waits_for_a_second_look(stage: Stage) -> None:
    stage.ready("A")
    stage.archives.withdraw("A")
    stage.request("A")
    waits = stage.source("A").next_attempt_at
    stage.add_survey(discovery={"batch_size": 7})
    assert stage.source("A").next_attempt_at == waits
