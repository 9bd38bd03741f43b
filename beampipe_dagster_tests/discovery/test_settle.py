"""The flap guard: what is missing is believed at the second look, and nothing is lost until then."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from beampipe_dagster.clock import rfc3339
from beampipe_dagster.discovery.archive import AnswerClass
from beampipe_dagster.discovery.service import BatchReport
from beampipe_dagster.discovery.settle import DEFAULT_RECHECK
from beampipe_dagster.ledger import archive
from beampipe_dagster.ledger.sources import Source
from beampipe_dagster.signature.payload import NO_DATASETS_DIGEST, sign_stored
from beampipe_dagster_tests.support.ledgers import SURVEY, at_once
from beampipe_dagster_tests.support.platforms import Stage, make_platform

HOUR = DEFAULT_RECHECK.total_seconds()


def rows(stage: Stage, name: str = "A") -> dict[str, Any]:
    with stage.ledger.read() as conn:
        found: dict[str, Any] = archive.metadata_of(conn, SURVEY, [name]).get(name, {})
    return found


def changes(stage: Stage, name: str = "A") -> list[str]:
    with stage.ledger.read() as conn:
        return [one.signature for one in archive.changes_of(conn, SURVEY, name)]


def only(reports: list[BatchReport]) -> BatchReport:
    (report,) = reports
    return report


def two_blocks(stage: Stage, *names: str) -> None:
    """Sources with the scheduling blocks 7 and 8."""
    for name in names:
        stage.archives.deposit(name, 7)
        stage.archives.deposit(name, 8)
    stage.register(*names)
    stage.discover()


def kept(source: Source) -> tuple[object, ...]:
    """What a look that is not believed must leave alone."""
    return (
        source.discovery_signature,
        source.last_checked_at,
        source.workflow_run_pending,
        source.workflow_run_pending_at,
        source.last_executed_discovery_signature,
    )


@pytest.mark.parametrize("block", [None, 7])
def test_datasets_that_are_missing_once_change_nothing_but_their_mark(
    stage: Stage, block: int | None
) -> None:
    two_blocks(stage, "A")
    before, had, told = stage.source("A"), rows(stage), len(stage.told("archive_metadata"))
    stage.archives.withdraw("A", block)
    report = only(stage.request("A"))
    after = stage.source("A")
    assert report.vanishing == ["A"]
    assert (report.changed, report.unchanged, report.no_datasets) == ({}, [], [])
    assert kept(after) == kept(before)
    assert rows(stage) == had
    assert changes(stage) == [before.discovery_signature]
    assert len(stage.told("archive_metadata")) == told
    assert after.last_outcome == "vanishing"
    assert (after.vanish_first_at, after.vanish_count) == (stage.clock.now(), 1)
    assert after.vanish_signature not in {None, before.discovery_signature}
    assert after.next_attempt_at == stage.clock.now() + DEFAULT_RECHECK


def test_the_story_tells_what_was_missing_and_on_what_it_rests(stage: Stage) -> None:
    two_blocks(stage, "A")
    stage.archives.withdraw("A", 8)
    stage.request("A")
    source = stage.source("A")
    (event,) = stage.events("discovery.vanishing")
    payload: Any = event.payload
    assert payload["missing"] == 1
    assert payload["missing_datasets"] == [{"sbid": "8", "dataset": "A_SB8_beam00.tar"}]
    assert (payload["datasets"], payload["looks"]) == (1, 1)
    assert (payload["signature"], payload["candidate"]) == (
        source.discovery_signature,
        source.vanish_signature,
    )
    assert payload["believed_after"] == rfc3339(stage.clock.now() + DEFAULT_RECHECK)
    assert payload["evidence"][0]["answer"] == "complete"


def test_the_second_look_that_says_the_same_is_believed(stage: Stage) -> None:
    two_blocks(stage, "A")
    stage.archives.withdraw("A", 8)
    stage.request("A")
    since, candidate = stage.clock.now(), stage.source("A").vanish_signature
    stage.clock.advance(HOUR)
    report = only(stage.discover())
    source = stage.source("A")
    assert list(report.changed) == ["A"]
    assert source.discovery_signature == candidate
    assert source.workflow_run_pending
    assert list(rows(stage)) == ["7"]
    assert (source.vanish_signature, source.vanish_first_at, source.vanish_count) == (None, None, 0)
    assert source.last_checked_at == stage.clock.now()
    event = stage.events("discovery.changed")[-1]
    assert (event.payload["missing_since"], event.payload["looks"]) == (rfc3339(since), 2)


def test_a_source_that_lost_everything_is_believed_to_be_empty_at_the_second_look(stage: Stage) -> None:
    two_blocks(stage, "A")
    stage.archives.withdraw("A")
    stage.request("A")
    stage.clock.advance(HOUR)
    assert only(stage.discover()).no_datasets == ["A"]
    source = stage.source("A")
    assert (source.discovery_signature, source.last_outcome) == (NO_DATASETS_DIGEST, "no_datasets")
    assert not source.workflow_run_pending


def test_the_clock_asks_again_when_the_interval_is_over_and_not_before(stage: Stage) -> None:
    two_blocks(stage, "A")
    stage.archives.withdraw("A", 8)
    stage.request("A")
    stage.clock.advance(HOUR - 1)
    assert stage.platform.discovery.tick(SURVEY).skip_reason == "nothing_due"
    stage.clock.advance(1)
    (claim,) = stage.platform.discovery.tick(SURVEY).claims
    assert claim.source_count == 1


def test_a_look_on_request_before_the_interval_is_over_confirms_nothing(stage: Stage) -> None:
    two_blocks(stage, "A")
    stage.archives.withdraw("A", 8)
    stage.request("A")
    first = stage.clock.now()
    stage.clock.advance(HOUR - 10)
    assert only(stage.request("A")).vanishing == ["A"]
    source = stage.source("A")
    assert (source.vanish_first_at, source.vanish_count) == (first, 2)
    assert source.next_attempt_at == first + DEFAULT_RECHECK
    stage.clock.advance(10)
    assert list(only(stage.discover()).changed) == ["A"]


def test_datasets_that_are_back_leave_no_trace_but_the_story(stage: Stage) -> None:
    two_blocks(stage, "A")
    before = stage.source("A")
    stage.archives.withdraw("A", 8)
    stage.request("A")
    stage.archives.deposit("A", 8)
    stage.clock.advance(HOUR)
    report = only(stage.discover())
    source = stage.source("A")
    assert report.unchanged == ["A"]
    assert source.discovery_signature == before.discovery_signature
    assert source.workflow_run_pending_at == before.workflow_run_pending_at
    assert (source.vanish_signature, source.vanish_first_at, source.vanish_count) == (None, None, 0)
    assert changes(stage) == [before.discovery_signature]
    assert stage.platform.discovery.tick(SURVEY).skip_reason == "nothing_due"


def test_another_candidate_begins_the_wait_afresh(stage: Stage) -> None:
    two_blocks(stage, "A")
    stage.archives.withdraw("A", 8)
    stage.request("A")
    first = stage.source("A").vanish_signature
    stage.archives.withdraw("A")
    stage.clock.advance(HOUR)
    assert only(stage.discover()).vanishing == ["A"]
    source = stage.source("A")
    assert source.vanish_signature not in {None, first}
    assert (source.vanish_first_at, source.vanish_count) == (stage.clock.now(), 1)


def test_new_datasets_wait_with_the_missing_ones_and_no_mixed_scope_is_signed(stage: Stage) -> None:
    two_blocks(stage, "A")
    before, had = stage.source("A"), rows(stage)
    stage.archives.withdraw("A", 8)
    stage.archives.deposit("A", 9)
    assert only(stage.request("A")).vanishing == ["A"]
    assert kept(stage.source("A")) == kept(before)
    assert rows(stage) == had
    stage.clock.advance(HOUR)
    assert list(only(stage.discover()).changed) == ["A"]
    assert list(rows(stage)) == ["7", "9"]


def test_new_datasets_alone_are_believed_at_once(stage: Stage) -> None:
    two_blocks(stage, "A")
    stage.archives.deposit("A", 9)
    assert list(only(stage.request("A")).changed) == ["A"]


def test_new_datasets_are_believed_at_once_when_the_missing_ones_are_back(stage: Stage) -> None:
    two_blocks(stage, "A")
    stage.archives.withdraw("A", 8)
    stage.request("A")
    stage.archives.deposit("A", 8)
    stage.archives.deposit("A", 9)
    assert list(only(stage.request("A")).changed) == ["A"]
    assert stage.source("A").vanish_first_at is None
    assert "missing_since" not in stage.events("discovery.changed")[-1].payload


def test_a_dataset_whose_fields_change_is_not_missing(stage: Stage) -> None:
    two_blocks(stage, "A")
    stage.archives.change("A", quality="GOOD")
    stage.add_survey(discovery={"stale_after_hours": 23})
    assert only(stage.request("A")).vanishing == []


def test_a_first_look_without_datasets_is_believed_at_once(stage: Stage) -> None:
    stage.register("A")
    assert only(stage.discover()).no_datasets == ["A"]


def test_the_wait_is_never_longer_than_a_look_stays_fresh(stage: Stage) -> None:
    stage.platform.discovery._vanish_recheck = timedelta(hours=5)
    stage.archives.deposit("A", 7)
    stage.archives.deposit("B", 7)
    stage.register("A", stale_after_hours=2)
    stage.register("B")
    stage.discover()
    stage.archives.withdraw("A")
    stage.archives.withdraw("B")
    stage.request("A", "B")
    now = stage.clock.now()
    assert stage.source("A").next_attempt_at == now + timedelta(hours=2)
    assert stage.source("B").next_attempt_at == now + timedelta(hours=5)


def test_a_failed_look_between_two_answers_does_not_forget_the_first(stage: Stage) -> None:
    two_blocks(stage, "A")
    stage.archives.withdraw("A", 8)
    stage.request("A")
    first = stage.source("A")
    stage.clock.advance(HOUR)
    stage.archives.fail("A", AnswerClass.UNAVAILABLE)
    assert list(only(stage.discover()).failed) == ["A"]
    after = stage.source("A")
    assert (after.vanish_signature, after.vanish_first_at) == (first.vanish_signature, first.vanish_first_at)
    stage.clock.advance(30)
    assert list(only(stage.discover()).changed) == ["A"]


def test_an_answer_that_is_not_complete_never_confirms(stage: Stage) -> None:
    two_blocks(stage, "A")
    before = stage.source("A")
    stage.archives.withdraw("A")
    stage.request("A")
    for answer in (AnswerClass.OVERFLOW, AnswerClass.MALFORMED):
        stage.clock.advance(2 * HOUR)
        stage.archives.fail("A", answer)
        stage.discover()
        assert kept(stage.source("A")) == kept(before)


def test_the_wait_survives_a_restart(stage: Stage) -> None:
    two_blocks(stage, "A")
    stage.archives.withdraw("A", 8)
    stage.request("A")
    stage.clock.advance(HOUR)
    other = make_platform(
        stage.ledger,
        home=stage.home,
        clock=stage.clock,
        archives=stage.archives,
        ids=stage.platform.ids,
    )
    (claim,) = other.discovery.tick(SURVEY).claims
    assert list(other.discovery.run_batch(claim.token).changed) == ["A"]


def test_of_two_runs_at_once_one_confirms_and_it_is_told_once(stage: Stage) -> None:
    two_blocks(stage, "A")
    stage.archives.withdraw("A", 8)
    stage.request("A")
    stage.clock.advance(HOUR)
    (claim,) = stage.platform.discovery.tick(SURVEY).claims
    run = lambda: stage.platform.discovery.run_batch(claim.token)  # noqa: E731  # done three times
    at_once(run, run, run)
    assert len(changes(stage)) == 2
    assert len(stage.events("discovery.changed")) == 2


def test_a_batch_that_was_overtaken_marks_nothing(stage: Stage) -> None:
    two_blocks(stage, "A")
    stage.archives.withdraw("A", 8)
    stage.clock.advance(1)
    stage.platform.registry.mark_for_discovery(SURVEY, ["A"], actor="test")
    (claim,) = stage.platform.discovery.tick(SURVEY).claims
    overtaken: list[str] = []

    def overtake(adapter: str, source: str) -> None:
        del source
        if adapter == "casda" and not overtaken:
            overtaken.append(adapter)
            stage.clock.advance(4 * HOUR)
            stage.platform.discovery.tick(SURVEY)

    stage.archives.on_query = overtake
    assert stage.platform.discovery.run_batch(claim.token).lost == ["A"]
    assert stage.source("A").vanish_first_at is None
    assert stage.events("discovery.vanishing") == []


def test_what_confirms_is_an_answer_about_the_source_alone(stage: Stage) -> None:
    two_blocks(stage, "A", "B", "C")
    stage.archives.withdraw("A", 8)
    stage.request("A", "B", "C")
    asked = stage.archives.queries["casda", "A"]
    batches = stage.archives.batches["casda"]
    stage.clock.advance(HOUR)
    assert list(only(stage.request("A", "B", "C")).changed) == ["A"]
    assert stage.archives.queries["casda", "A"] == asked + 1
    assert stage.archives.batches["casda"] == batches + 1
    (evidence,) = [
        item
        for item in stage.told("archive_metadata")[-1].payload["evidence"]  # type: ignore[union-attr]
        if item["adapter"] == "casda"  # type: ignore[index, call-overload]
    ]
    assert evidence.get("sources", 1) == 1  # type: ignore[union-attr]


def test_a_pending_source_is_not_run_while_its_scope_is_in_doubt(stage: Stage) -> None:
    two_blocks(stage, "A")
    stage.archives.withdraw("A", 8)
    stage.request("A")
    tick = stage.platform.admission.tick(SURVEY)
    assert (tick.admitted, tick.held) == ([], {"A": "datasets_vanishing"})
    stage.archives.deposit("A", 8)
    stage.clock.advance(HOUR)
    stage.discover()
    (execution,) = stage.admit()
    assert execution.source_identifiers == ["A"]
    assert stage.source("A").hold is None


@pytest.mark.parametrize("batching", [True, False])
def test_batches_and_single_looks_wait_alike(stage: Stage, *, batching: bool) -> None:
    stage.platform.discovery._batching = batching
    two_blocks(stage, "A", "B", "C")
    stage.archives.withdraw("A")
    stage.archives.withdraw("B", 7)
    report = only(stage.request("A", "B", "C"))
    assert sorted(report.vanishing) == ["A", "B"]
    assert report.unchanged == ["C"]
    stage.clock.advance(HOUR)
    report = only(stage.request("A", "B", "C"))
    assert (report.no_datasets, list(report.changed), report.unchanged) == (["A"], ["B"], ["C"])


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    answers=st.lists(st.frozensets(st.sampled_from([7, 8, 9]), max_size=3), min_size=1, max_size=6),
    waits=st.lists(st.sampled_from([10.0, HOUR / 2, HOUR, 3 * HOUR]), min_size=6, max_size=6),
)
def test_rows_always_sign_to_the_signature_and_a_loss_needs_two_equal_answers(
    stage: Stage, answers: list[frozenset[int]], waits: list[float]
) -> None:
    name = f"S{stage.clock.monotonic()}"
    believed = frozenset({7, 8})
    for block in believed:
        stage.archives.deposit(name, block)
    stage.register(name)
    stage.discover()
    seen: tuple[frozenset[int], float] | None = None
    for answer, wait in zip(answers, waits, strict=False):
        stage.clock.advance(wait)
        stage.archives.withdraw(name)
        for block in sorted(answer):
            stage.archives.deposit(name, block)
        stage.request(name)
        now = stage.clock.monotonic()
        if not believed - answer:
            believed, seen = answer, None
        elif seen is None or seen[0] != answer:
            seen = (answer, now)
        elif now - seen[1] >= HOUR:
            believed, seen = answer, None
        source = stage.source(name)
        stored = rows(stage, name)
        assert sign_stored(stored, exclude_fields=["access_url"], include_flags=True).digest == (
            source.discovery_signature
        )
        assert set(stored) == ({str(block) for block in believed} or {"0"})
        assert (source.vanish_first_at is not None) == (seen is not None)


def renaming_spec(stage: Stage) -> None:
    """A revision that calls each dataset by its link."""
    spec = json.loads((stage.home / "survey.yaml").read_text())
    spec["discovery"]["prepare_metadata"]["field_map"]["dataset_id"] = {"from": "access_url"}
    (stage.home / "survey.yaml").write_text(json.dumps(spec))
    stage.platform.projects.add_project(stage.home / "survey.yaml", actor="test")


def test_a_revision_that_names_datasets_anew_makes_none_vanish(stage: Stage) -> None:
    two_blocks(stage, "A")
    renaming_spec(stage)
    assert list(only(stage.request("A")).changed) == ["A"]


def test_fewer_datasets_wait_for_a_second_look_also_after_a_new_revision(stage: Stage) -> None:
    two_blocks(stage, "A")
    renaming_spec(stage)
    stage.archives.withdraw("A", 8)
    assert only(stage.request("A")).vanishing == ["A"]
