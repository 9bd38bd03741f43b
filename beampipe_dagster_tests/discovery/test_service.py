from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from beampipe_dagster.discovery.archive import AnswerClass
from beampipe_dagster.discovery.service import BatchReport
from beampipe_dagster.discovery.settle import FIRST_BACKOFF_SECONDS
from beampipe_dagster.errors import ConflictError
from beampipe_dagster.ledger import archive, sources
from beampipe_dagster.ledger.sources import DiscoveryClaim
from beampipe_dagster.signature.payload import NO_DATASETS_DIGEST
from beampipe_dagster_tests.support.archives import INCOMPLETE, quiet
from beampipe_dagster_tests.support.ledgers import SURVEY, at_once
from beampipe_dagster_tests.support.platforms import Stage

METADATA = "archive_metadata"


def metadata_of(stage: Stage, name: str) -> dict[str, dict[str, Any]]:
    with stage.ledger.read() as conn:
        return archive.metadata_of(conn, SURVEY, [name]).get(name, {})


def only(reports: list[BatchReport]) -> BatchReport:
    (report,) = reports
    return report


def test_new_datasets_make_a_source_pending_with_rows_signature_story_and_message(stage: Stage) -> None:
    stage.archives.deposit("A", 7, beams=2)
    stage.register("A")
    report = only(stage.discover())
    source = stage.source("A")
    assert list(report.changed) == ["A"]
    assert report.datasets == 2
    assert source.workflow_run_pending
    assert source.workflow_run_pending_at == source.last_checked_at == stage.clock.now()
    assert source.last_outcome == "changed"
    assert source.discovery_claim_token is None
    assert len(metadata_of(stage, "A")["7"]["datasets"]) == 2
    (event,) = stage.events("discovery.changed")
    assert event.payload == {"signature": source.discovery_signature, "sbids": 1, "datasets": 2}
    (message,) = stage.told(METADATA)
    assert message.partition_key == report.changed["A"] == f"A@{(source.discovery_signature or '')[:12]}"
    assert message.payload["dataset_count"] == 2
    assert message.payload["flags"] == {"catalogued": True}
    assert len(message.payload["evidence"]) == 2  # type: ignore[arg-type]


def test_every_field_is_stored_although_not_every_one_is_signed(stage: Stage) -> None:
    stage.ready("A")
    assert metadata_of(stage, "A")["100"]["datasets"][0]["access_url"].startswith("https://")


def test_the_same_again_is_unchanged_and_tells_nothing_of_a_partition(stage: Stage) -> None:
    stage.ready("A")
    before, told = stage.source("A"), len(stage.told(METADATA))
    stage.archives.change("A", access_url="https://elsewhere/")
    report = only(stage.request("A"))
    after = stage.source("A")
    assert report.unchanged == ["A"]
    assert (after.discovery_signature, after.last_outcome) == (before.discovery_signature, "unchanged")
    assert after.last_checked_at == stage.clock.now()
    assert after.workflow_run_pending_at == before.workflow_run_pending_at
    assert len(stage.told(METADATA)) == told
    (event,) = stage.events("discovery.unchanged")
    assert event.source_identifier == "A"


def test_what_is_not_signed_is_kept_up_to_date_all_the_same(stage: Stage) -> None:
    stage.add_survey(sign_flags=False)
    stage.archives.deposit("A", 7)
    stage.archives.catalogue("A", known=False)
    stage.register("A")
    stage.discover()
    assert metadata_of(stage, "A")["7"]["discovery_flags"] == {"catalogued": False}
    stage.archives.catalogue("A")
    stage.archives.change("A", access_url="https://fresh/")
    assert only(stage.request("A")).unchanged == ["A"]
    (block,) = metadata_of(stage, "A").values()
    assert block["discovery_flags"] == {"catalogued": True}
    assert block["datasets"][0]["access_url"] == "https://fresh/"


def test_no_datasets_is_an_answer_that_is_stored_and_never_pending(stage: Stage) -> None:
    stage.register("A")
    report = only(stage.discover())
    source = stage.source("A")
    assert report.no_datasets == ["A"]
    assert report.changed == {}
    assert (source.discovery_signature, source.last_outcome) == (NO_DATASETS_DIGEST, "no_datasets")
    assert not source.workflow_run_pending
    assert metadata_of(stage, "A") == {"0": {"datasets": [], "discovery_status": "no_datasets"}}
    assert len(stage.events("discovery.no_datasets")) == 1
    assert stage.told(METADATA) == []


def test_no_datasets_again_tells_nothing_more(stage: Stage) -> None:
    stage.register("A")
    stage.discover()
    report = only(stage.request("A"))
    assert report.no_datasets == ["A"]
    assert len(stage.events("discovery.no_datasets", "discovery.unchanged")) == 1
    assert stage.source("A").last_checked_at == stage.clock.now()


def test_datasets_that_come_later_make_the_source_pending(stage: Stage) -> None:
    stage.register("A")
    stage.discover()
    stage.archives.deposit("A", 7)
    assert list(only(stage.request("A")).changed) == ["A"]
    assert stage.source("A").workflow_run_pending
    assert list(metadata_of(stage, "A")) == ["7"]


def test_datasets_that_vanish_take_their_rows_and_the_pending_flag(stage: Stage) -> None:
    stage.ready("A")
    stage.archives.withdraw("A")
    assert only(stage.vanished("A")).no_datasets == ["A"]
    source = stage.source("A")
    assert not source.workflow_run_pending
    assert source.discovery_signature == NO_DATASETS_DIGEST
    assert list(metadata_of(stage, "A")) == ["0"]


def test_a_scheduling_block_that_vanishes_takes_its_row_only(stage: Stage) -> None:
    stage.archives.deposit("A", 7)
    stage.archives.deposit("A", 8)
    stage.register("A")
    stage.discover()
    stage.archives.withdraw("A", 7)
    stage.vanished("A")
    assert list(metadata_of(stage, "A")) == ["8"]
    with stage.ledger.read() as conn:
        newest = archive.changes_of(conn, SURVEY, "A")[0]
    assert newest.sbid_count == 1
    removed: Any = newest.diff["removed"]
    assert {one["sbid"] for one in removed} == {"7"}


def test_a_signature_that_comes_back_is_a_change_of_its_own(stage: Stage) -> None:
    stage.ready("A")
    first = stage.source("A").discovery_signature
    stage.archives.deposit("A", 8)
    stage.request("A")
    second = stage.source("A").discovery_signature
    stage.archives.withdraw("A", 8)
    report = only(stage.vanished("A"))
    assert stage.source("A").discovery_signature == first
    assert stage.source("A").workflow_run_pending
    assert list(report.changed) == ["A"]
    with stage.ledger.read() as conn:
        history = archive.changes_of(conn, SURVEY, "A")
    assert [one.signature for one in history] == [first, second, first]
    assert [one.previous_signature for one in history] == [second, first, None]


@pytest.mark.parametrize("adapter", ["casda", "vizier"])
@pytest.mark.parametrize("answer", INCOMPLETE)
def test_an_incomplete_answer_changes_nothing_but_the_next_attempt(
    stage: Stage, answer: AnswerClass, adapter: str
) -> None:
    stage.ready("A")
    before, rows, told = stage.source("A"), metadata_of(stage, "A"), len(stage.told(METADATA))
    stage.archives.deposit("A", 8)
    stage.archives.fail("A", answer, adapter=adapter)
    report = only(stage.request("A"))
    after = stage.source("A")
    assert list(report.failed) == ["A"]
    assert (after.discovery_signature, after.last_checked_at) == (
        before.discovery_signature,
        before.last_checked_at,
    )
    assert after.workflow_run_pending_at == before.workflow_run_pending_at
    assert metadata_of(stage, "A") == rows
    assert len(stage.told(METADATA)) == told
    outcome = "timeout" if answer is AnswerClass.TIMEOUT else "error"
    assert after.last_outcome == outcome
    assert after.last_error is not None
    assert after.last_error["code"] == f"archive_{answer.value}"
    assert after.next_attempt_at == stage.clock.now() + timedelta(seconds=FIRST_BACKOFF_SECONDS)
    (event,) = stage.events(f"discovery.{outcome}")
    assert event.payload["code"] == f"archive_{answer.value}"


def test_an_archive_that_is_away_never_looks_like_an_empty_one(stage: Stage) -> None:
    stage.register("A")
    stage.archives.fail("A", AnswerClass.UNAVAILABLE)
    stage.discover()
    source = stage.source("A")
    assert (source.discovery_signature, source.last_checked_at) == (None, None)
    assert metadata_of(stage, "A") == {}


def test_failures_are_tried_less_and_less_often_until_one_look_succeeds(stage: Stage) -> None:
    stage.archives.deposit("A", 7)
    stage.register("A")
    waits = []
    stage.archives.fail("A", *[AnswerClass.TIMEOUT] * 9)
    for _ in range(9):
        stage.discover()
        source = stage.source("A")
        assert source.next_attempt_at is not None
        waits.append((source.next_attempt_at - stage.clock.now()).total_seconds())
        assert stage.platform.discovery.tick(SURVEY).skip_reason == "nothing_due"
        stage.clock.advance(waits[-1])
    assert waits == [30, 60, 120, 240, 480, 960, 1920, 3600, 3600]
    stage.discover()
    source = stage.source("A")
    assert (source.failure_count, source.next_attempt_at, source.last_error) == (0, None, None)


def test_one_bad_source_never_spoils_the_batch(stage: Stage) -> None:
    names = ["A", "B", "C", "D", "E"]
    for name in names:
        stage.archives.deposit(name, 7)
    stage.archives.change("B", filename=None)  # a dataset without a name
    stage.archives.fail("C", AnswerClass.OVERFLOW)
    stage.archives.fail("D", ZeroDivisionError("a defect"))
    stage.register(*names)
    report = only(stage.discover())
    assert set(report.changed) == {"A", "E"}
    assert set(report.failed) == {"B", "C", "D"}
    codes = {name: (stage.source(name).last_error or {}).get("code") for name in "BCD"}
    assert codes == {"B": "missing_dataset_identity", "C": "archive_overflow", "D": "internal"}
    with stage.ledger.read() as conn:
        assert sources.open_claims(conn) == []


def test_what_the_ledger_cannot_hold_is_that_sources_error_only(stage: Stage) -> None:
    stage.archives.deposit("A", 7)
    stage.archives.deposit("B", 7)
    stage.archives.change("B", obs_id="9" * 101)
    stage.register("A", "B")
    report = only(stage.discover())
    if stage.ledger.dialect == "sqlite":  # which has no limit on a text's length
        assert set(report.changed) == {"A", "B"}
        return
    assert list(report.changed) == ["A"]
    assert (stage.source("B").last_error or {})["code"] == "metadata_not_storable"
    assert stage.source("B").discovery_signature is None
    assert metadata_of(stage, "B") == {}


def test_a_claim_that_nobody_began_is_given_again_under_the_same_token(stage: Stage) -> None:
    stage.archives.deposit("A", 7)
    stage.register("A")
    first = stage.platform.discovery.tick(SURVEY)
    stage.clock.advance(60)
    again = stage.platform.discovery.tick(SURVEY)
    assert [claim.token for claim in again.claims] == [claim.token for claim in first.claims]
    stage.platform.discovery.run_batch(first.claims[0].token)
    assert stage.platform.discovery.tick(SURVEY).claims == []


def test_a_batch_that_is_run_again_does_nothing(stage: Stage) -> None:
    stage.archives.deposit("A", 7)
    stage.register("A")
    (claim,) = stage.platform.discovery.tick(SURVEY).claims
    stage.platform.discovery.run_batch(claim.token)
    asked = stage.archives.queries.total()
    assert stage.platform.discovery.run_batch(claim.token).done_before
    assert stage.archives.queries.total() == asked
    assert len(stage.events("discovery.changed")) == 1


def test_of_two_runs_of_a_batch_at_once_one_is_refused(stage: Stage) -> None:
    stage.archives.deposit("A", 7)
    stage.register("A")
    (claim,) = stage.platform.discovery.tick(SURVEY).claims
    run = lambda: stage.platform.discovery.run_batch(claim.token)  # noqa: E731  # done three times
    done = at_once(run, run, run)
    assert [type(one) for one in done].count(BatchReport) >= 1
    assert all(isinstance(one, BatchReport | ConflictError) for one in done)
    assert stage.archives.queries["casda", "A"] == 1
    assert len(stage.told(METADATA)) == 1


def test_a_batch_that_died_loses_its_claim_and_its_sources_are_looked_at_by_another(stage: Stage) -> None:
    stage.archives.deposit("A", 7)
    stage.register("A")
    (claim,) = stage.platform.discovery.tick(SURVEY).claims

    class KilledError(BaseException):
        pass

    def die(adapter: str, source: str) -> None:
        del adapter, source
        raise KilledError

    stage.archives.on_query = die
    with pytest.raises(KilledError):
        stage.platform.discovery.run_batch(claim.token)
    stage.archives.on_query = quiet
    assert stage.platform.discovery.tick(SURVEY).claims == []
    stage.clock.advance(61)
    tick = stage.platform.discovery.tick(SURVEY)
    assert tick.expired == [claim.token]
    with pytest.raises(ConflictError) as caught:
        stage.platform.discovery.run_batch(claim.token)
    assert caught.value.code == "claim_not_open"
    assert list(stage.platform.discovery.run_batch(tick.claims[0].token).changed) == ["A"]


def test_a_batch_that_was_too_slow_writes_nothing_over_its_successor(stage: Stage) -> None:
    stage.archives.deposit("A", 7)
    stage.register("A")
    (claim,) = stage.platform.discovery.tick(SURVEY).claims
    successors: list[DiscoveryClaim] = []

    def overtake(adapter: str, source: str) -> None:
        del source
        if adapter == "casda" and not successors:
            stage.clock.advance(3600)
            successors.extend(stage.platform.discovery.tick(SURVEY).claims)

    stage.archives.on_query = overtake
    report = stage.platform.discovery.run_batch(claim.token)
    assert report.lost == ["A"]
    assert stage.source("A").discovery_signature is None
    assert stage.told(METADATA) == []
    assert stage.source("A").discovery_claim_token == successors[0].token
    assert list(stage.platform.discovery.run_batch(successors[0].token).changed) == ["A"]


def test_a_request_during_a_query_is_answered_by_another_one(stage: Stage) -> None:
    stage.archives.deposit("A", 7)
    stage.register("A")

    def ask(adapter: str, source: str) -> None:
        if adapter == "casda":
            stage.clock.advance(1)
            stage.platform.registry.mark_for_discovery(SURVEY, [source], actor="test")

    stage.archives.on_query = ask
    stage.discover()
    stage.archives.on_query = quiet
    assert only(stage.discover()).unchanged == ["A"]


def test_a_tick_takes_batches_up_to_its_caps(stage: Stage) -> None:
    stage.add_survey(discovery={"batch_size": 2, "tick_discovery_batch_limit": 2})
    stage.register(*(f"S{number:02}" for number in range(20)))
    first = stage.platform.discovery.tick(SURVEY)
    assert [claim.source_count for claim in first.claims] == [2, 2]
    second = stage.platform.discovery.tick(SURVEY)
    assert len(second.claims) == 4
    third = stage.platform.discovery.tick(SURVEY)
    assert len(third.claims) == 4, "four batches in flight are the limit of all surveys"


def test_a_tick_takes_sources_up_to_its_limit(stage: Stage) -> None:
    stage.add_survey(discovery={"batch_size": 2, "tick_discovery_source_limit": 3})
    stage.register(*(f"S{number:02}" for number in range(20)))
    assert [one.source_count for one in stage.platform.discovery.tick(SURVEY).claims] == [2, 1]


def test_a_skipped_tick_says_why(stage: Stage) -> None:
    assert stage.platform.discovery.tick(SURVEY).skip_reason == "nothing_due"
    stage.add_survey(discovery={"batch_size": 1, "concurrent_discovery_batch_limit": 1})
    stage.register("A", "B")
    (claim,) = stage.platform.discovery.tick(SURVEY).claims
    with stage.ledger.begin() as conn:
        sources.start_claim(conn, claim.token, now=stage.clock.now(), expires_at=claim.expires_at)
    assert stage.platform.discovery.tick(SURVEY).skip_reason == "project_in_flight_cap"
    stage.add_survey(discovery={"enabled": False})
    assert stage.platform.discovery.tick(SURVEY).skip_reason == "disabled"


def test_ticks_at_once_keep_the_caps_and_never_share_a_source(stage: Stage) -> None:
    stage.add_survey(discovery={"batch_size": 2})
    stage.register(*(f"S{number:02}" for number in range(20)))
    done = at_once(*(lambda: stage.platform.discovery.tick(SURVEY) for _ in range(4)))
    assert not [one for one in done if isinstance(one, BaseException)]
    with stage.ledger.read() as conn:
        claims = sources.open_claims(conn)
        held = [
            source.source_identifier
            for claim in claims
            for source in sources.claimed_sources(conn, claim.token)
        ]
    assert len(claims) == 4
    assert len(held) == len(set(held)) == 8


def test_the_sources_of_a_batch_are_asked_for_together_unless_told_otherwise(stage: Stage) -> None:
    for name in ("A", "B", "C"):
        stage.archives.deposit(name, 7)
    stage.register("A", "B", "C")
    together = only(stage.discover())
    assert stage.archives.batches == {"casda": 1, "vizier": 1}
    evidence: Any = stage.told(METADATA)[0].payload["evidence"]
    assert [item["sources"] for item in evidence] == [3, 3]
    stage.platform.discovery._batching = False
    alone = only(stage.request("A", "B", "C"))
    assert stage.archives.batches == {"casda": 1, "vizier": 1}
    assert sorted(together.changed) == sorted(alone.unchanged) == ["A", "B", "C"]


def test_progress_is_told_source_by_source(stage: Stage) -> None:
    stage.register("A", "B")
    (claim,) = stage.platform.discovery.tick(SURVEY).claims
    told: list[tuple[int, int, str]] = []
    stage.platform.discovery.run_batch(claim.token, progress=lambda *step: told.append(step))
    assert [(done, total) for done, total, _ in told] == [(1, 2), (2, 2)]
    assert {name for _, _, name in told} == {"A", "B"}


def test_however_often_archives_fail_the_end_is_the_same(any_stage: Stage) -> None:
    stage = any_stage
    names = [f"S{number}" for number in range(8)]
    for name in names[:6]:
        stage.archives.deposit(name, 7, beams=2)
    stage.register(*names)
    for _ in range(40):
        stage.discover()
        stage.clock.advance(600)
        if all(stage.source(name).last_checked_at for name in names):
            break
    outcomes = {name: stage.source(name).last_outcome for name in names}
    assert outcomes == {**dict.fromkeys(names[:6], "changed"), **dict.fromkeys(names[6:], "no_datasets")}
    assert len(stage.told(METADATA)) == 6
    assert all(len(metadata_of(stage, name)["7"]["datasets"]) == 2 for name in names[:6])
