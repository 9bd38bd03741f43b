"""What a source is doing, in one word."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from beampipe_dagster.clock import ManualClock
from beampipe_dagster.config.canonical import JsonValue
from beampipe_dagster.ids import SequenceIds
from beampipe_dagster.ledger import executions, fsm, sources
from beampipe_dagster.ledger.engine import Ledger
from beampipe_dagster.ledger.execution_values import Execution
from beampipe_dagster.ledger.sources import Source
from beampipe_dagster.ledger.states import ControlPhase, DaliugeState, Status, SubmissionState
from beampipe_dagster.sources.status import (
    WORDS,
    Word,
    describe,
    executions_of,
    latest_executions,
    stage,
    vanishing_words,
)
from beampipe_dagster_tests.support.ledgers import (
    START,
    SURVEY,
    add_survey,
    new_execution,
    opened,
    register,
)

NEW, OLD = "a" * 64, "b" * 64
HELD: dict[str, JsonValue] = {"code": "source_disabled", "message": "the source is disabled", "hint": ""}
FAILED: dict[str, JsonValue] = {"code": "execution_failed", "message": "execution e failed: no", "hint": ""}
CLAIMED: dict[str, Any] = {"discovery_claim_token": "t"}
VANISHING: dict[str, Any] = {
    "last_checked_at": START,
    "last_outcome": "vanishing",
    "vanish_signature": OLD,
    "vanish_first_at": START,
    "vanish_count": 2,
    "next_attempt_at": START,
}
ERROR = {"code": "archive_timeout", "message": "no answer"}


@pytest.fixture
def one(migrated_sqlite: Path, tmp_path: Path) -> tuple[Source, Execution]:
    """A source and an execution of it, as they are at first."""
    path = tmp_path / "ledger.db"
    path.write_bytes(migrated_sqlite.read_bytes())
    ids = SequenceIds()
    with opened(f"sqlite:///{path}") as ledger, ledger.begin() as conn:
        (source,) = register(conn, ["A"], ids=ids)
        new = new_execution(add_survey(conn, ids=ids), ["A"], ids=ids)
        return source, executions.create(conn, new, now=START)


@pytest.mark.parametrize(
    ("columns", "word", "label"),
    [
        ({}, "unchecked", "unchecked"),
        (CLAIMED, "discovering", "discovering"),
        (VANISHING, "vanishing", "vanishing"),
        ({**VANISHING, "last_outcome": "error", "last_error": ERROR}, "discovery_failed", "discovery failed"),
        ({"enabled": False}, "disabled", "disabled"),
        ({"last_outcome": "error", "last_error": ERROR}, "discovery_failed", "discovery failed"),
        ({"last_outcome": "timeout"}, "discovery_failed", "discovery failed"),
        ({"last_outcome": "error", "quarantined_at": START}, "quarantined", "quarantined"),
        ({"last_checked_at": START, "last_outcome": "no_datasets"}, "no_datasets", "no datasets"),
        ({"last_checked_at": START, "workflow_run_pending": True}, "pending", "pending"),
        ({"workflow_run_pending": True, "last_outcome": "error"}, "pending", "pending"),
        ({"workflow_run_pending": True, "hold": HELD}, "held", "held: source_disabled"),
        ({"last_checked_at": START, "hold": FAILED}, "failed", "failed"),
        ({"last_checked_at": START, "hold": FAILED, "last_outcome": "error"}, "failed", "failed"),
        (
            {
                "last_checked_at": START,
                "discovery_signature": NEW,
                "last_executed_discovery_signature": NEW,
            },
            "completed",
            "completed",
        ),
        (
            {
                "last_checked_at": START,
                "discovery_signature": NEW,
                "last_executed_discovery_signature": OLD,
            },
            "idle",
            "idle",
        ),
    ],
)
def test_a_source_without_an_execution_is_described_by_its_row(
    one: tuple[Source, Execution], columns: dict[str, Any], word: str, label: str
) -> None:
    state = describe(replace(one[0], **columns), None)
    assert (state.word, state.label) == (word, label)
    assert word in WORDS


def test_an_active_execution_comes_before_everything_else(one: tuple[Source, Execution]) -> None:
    source, execution = one
    busy = replace(source, discovery_claim_expires_at=START, **CLAIMED, enabled=False, hold=HELD)
    state = describe(busy, execution)
    assert (state.word, state.detail) == (Word.RUNNING, "admitted, waits for its run")


def test_a_failure_is_told_in_the_execution_s_own_words(one: tuple[Source, Execution]) -> None:
    source, execution = one
    failed = replace(execution, status=Status.FAILED, last_error="drop image failed")
    assert describe(replace(source, hold=FAILED), failed).detail == "drop image failed"
    assert describe(replace(source, hold=FAILED), None).detail == "execution e failed: no"


def test_what_became_of_the_last_execution_counts_where_the_row_says_nothing(
    one: tuple[Source, Execution],
) -> None:
    source = replace(one[0], last_checked_at=START, discovery_signature=NEW)
    for status, word in (
        (Status.CANCELLED, "cancelled"),
        (Status.FAILED, "failed"),
        (Status.NOT_SUBMITTED, "idle"),
    ):
        assert describe(source, replace(one[1], status=status)).word == word


def test_a_signature_that_was_executed_is_completed_whatever_ran_since(
    one: tuple[Source, Execution],
) -> None:
    source = replace(
        one[0],
        last_checked_at=START,
        discovery_signature=NEW,
        last_executed_discovery_signature=NEW,
    )
    assert describe(source, replace(one[1], status=Status.CANCELLED)).word == "completed"


@pytest.mark.parametrize("phase", list(ControlPhase))
def test_every_phase_has_words(one: tuple[Source, Execution], phase: ControlPhase) -> None:
    words = stage(replace(one[1], control_phase=phase))
    assert words
    assert "_" not in words


def test_why_an_execution_waits_comes_before_how_far_it_is(one: tuple[Source, Execution]) -> None:
    running = replace(one[1], control_phase=ControlPhase.MONITORING, status=Status.RUNNING)
    assert stage(running) == "the session runs"
    away = replace(running, daliuge_state=DaliugeState.UNREACHABLE)
    assert stage(away) == "waits: its manager cannot be reached"
    assert stage(replace(away, last_error="no route")) == "waits: no route"
    lost = replace(away, submission_state=SubmissionState.UNCERTAIN, last_error="no route")
    assert stage(lost) == "submission uncertain, its session is being looked for"
    assert stage(replace(lost, status=Status.FAILED)) == "no route"
    assert stage(replace(running, status=Status.NOT_SUBMITTED)) == "not submitted"


def test_the_newest_execution_of_each_source_is_found(
    ledger: Ledger, clock: ManualClock, ids: SequenceIds
) -> None:
    with ledger.begin() as conn:
        register(conn, ["A", "B", "C"], ids=ids)
        revision = add_survey(conn, ids=ids)
        made: list[Execution] = []
        for names in (["A", "B"], ["A"]):
            clock.advance(1)
            run = executions.create(conn, new_execution(revision, names, ids=ids), now=clock.now())
            cancelled = fsm.StatusPatch(status=Status.CANCELLED)
            made.append(executions.move(conn, run, now=clock.now(), patch=cancelled))
        newest = latest_executions(conn, SURVEY, ["A", "B", "C"])
        assert {name: run.id for name, run in newest.items()} == {"A": made[1].id, "B": made[0].id}
        assert latest_executions(conn, "other", ["A"]) == {}
        assert latest_executions(conn, SURVEY, []) == {}
        assert [run.id for run in executions_of(conn, SURVEY, "A")] == [made[1].id, made[0].id]
        assert [run.id for run in executions_of(conn, SURVEY, "A", limit=1)] == [made[1].id]
        assert sources.get(conn, SURVEY, "C").id
        assert executions_of(conn, SURVEY, "C") == []


def test_what_is_missing_is_told_in_plain_words(one: tuple[Source, Execution]) -> None:
    source = replace(one[0], **VANISHING)
    told = vanishing_words(source)
    assert told is not None
    assert "since 2026-01-01T00:00:00.000Z (2 looks)" in told
    assert "asked about again after 2026-01-01T00:00:00.000Z" in told
    assert describe(source, None).detail == told
    assert vanishing_words(one[0]) is None
