"""The live table of sources."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from beampipe_dagster.assembly import Platform, assemble
from beampipe_dagster.clock import ManualClock
from beampipe_dagster.config.settings import Settings
from beampipe_dagster.ids import SequenceIds
from beampipe_dagster.ledger import executions, fsm
from beampipe_dagster.ledger.states import ControlPhase, DaliugeState, Status, SubmissionState
from beampipe_dagster.sandbox.watch import STYLES, drops_text, executions_table, word_text
from beampipe_dagster.sources.status import Word
from beampipe_dagster_tests.support.ledgers import START, SURVEY, add_survey, new_execution, register

SIGNATURE = "a" * 64


@pytest.fixture
def platform(tmp_path: Path, migrated_sqlite: Path) -> Iterator[Platform]:
    """A survey with a source running (D), held (C), pending (B) and unchecked (A)."""
    (tmp_path / "ledger.db").write_bytes(migrated_sqlite.read_bytes())
    clock, ids = ManualClock(START), SequenceIds()
    made = assemble(Settings.from_env({"BEAMPIPE_HOME": str(tmp_path)}), clock=clock, ids=ids)
    hold = {"code": "discovery_flags_failed", "message": "flags do not pass: [bold]x", "hint": ""}
    waiting = {
        "last_checked_at": START,
        "discovery_signature": SIGNATURE,
        "workflow_run_pending": True,
        "workflow_run_pending_at": START,
    }
    with made.ledger.begin() as conn:
        register(conn, ["A"], ids=ids)
        register(conn, ["B"], ids=ids, **waiting)
        register(conn, ["C"], ids=ids, **waiting, hold=hold)
        register(conn, ["D"], ids=ids, last_checked_at=START, discovery_signature=SIGNATURE)
        new = new_execution(add_survey(conn, ids=ids), ["D"], ids=ids, signature=SIGNATURE)
        executions.move(
            conn,
            executions.create(conn, new, now=START),
            now=START,
            patch=fsm.StatusPatch(status=Status.RUNNING),
            values={
                "submission_state": SubmissionState.SUBMITTED,
                "daliuge_state": DaliugeState.RUNNING,
                "control_phase": ControlPhase.MONITORING,
                "drop_counts": {"total": 10, "completed": 4, "error": 2},
            },
        )
    clock.advance(125)
    yield made
    made.ledger.dispose()


def _lines(platform: Platform, *, width: int = 100, limit: int = 40) -> list[str]:
    out = Console(file=io.StringIO(), width=width, record=True)
    out.print(executions_table(platform, [SURVEY], limit=limit))
    return [line.rstrip() for line in out.export_text().splitlines()]


def test_those_in_motion_come_first_with_state_session_drops_age_and_reason(platform: Platform) -> None:
    header, running, pending, held, unchecked, caption = _lines(platform)
    assert header.split() == ["source", "state", "partition", "session", "drops", "age", "reason"]
    assert running.split(maxsplit=7) == [
        "D",
        "running",
        "@aaaaaaaaaaaa",
        "running",
        "██▒░░",
        "4/10",
        "2m",
        "05s  the session runs",
    ]
    assert pending.split() == ["B", "pending", "@aaaaaaaaaaaa", "2m", "05s"]
    assert held.endswith("flags do not pass: [bold]x")
    assert unchecked.split()[:2] == ["A", "unchecked"]
    assert caption == "1 unchecked, 1 pending, 1 held, 1 running"


@pytest.mark.parametrize("width", [60, 80, 100, 200])
def test_the_table_fits_the_terminal(platform: Platform, width: int) -> None:
    assert max(len(line) for line in _lines(platform, width=width)) <= width


def test_what_is_left_out_is_counted(platform: Platform) -> None:
    lines = _lines(platform, limit=1)
    assert lines[1].startswith("D ")
    assert lines[2].endswith("; 3 more not shown")


def test_a_source_that_runs_is_shown_however_many_there_are(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("beampipe_dagster.sandbox.watch.sources.listing", lambda *_: [])
    lines = _lines(platform)
    assert lines[1].startswith("D ")
    assert lines[2] == "1 running; 3 more not shown"


def test_an_empty_ledger_has_an_empty_table(platform: Platform) -> None:
    out = Console(file=io.StringIO(), width=100, record=True)
    out.print(executions_table(platform, []))
    assert "no sources yet" in out.export_text()


def test_a_bar_is_full_only_when_everything_is_completed() -> None:
    assert drops_text({"total": 10, "completed": 10}).plain == "█████ 10/10"
    assert drops_text({"total": 100, "completed": 99}).plain == "████░ 99/100"
    assert drops_text({"total": 100, "completed": 99, "error": 1}).plain == "████▒ 99/100"
    assert drops_text({"total": 4}).plain == "░░░░░ 0/4"
    for nothing in (None, {}, {"total": 0}):
        assert drops_text(nothing).plain == ""


def test_every_word_has_a_style_and_is_shown_with_blanks() -> None:
    assert set(Word) <= set(STYLES)
    assert word_text("no_datasets").plain == "no datasets"
    assert word_text("held", "held: x").plain == "held: x"
    assert word_text("").plain == ""
