from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beampipe_dagster.execution import run_record

AT = datetime(2026, 1, 1, 12, 0, 0, 123456, tzinfo=UTC)
STAMP = "2026-01-01T12:00:00.123Z"


def test_the_record_lives_beside_the_manifest_and_everything_else_stays() -> None:
    manifest = {"sources": [1], "theirs": {"x": 1}}
    put = run_record.put(manifest, {"a": 1})
    assert put == {**manifest, "beampipe_run_record": {"a": 1}}
    assert run_record.of(put) == {"a": 1}
    assert run_record.of(None) == run_record.of({}) == run_record.of({run_record.KEY: "text"}) == {}


@given(st.text(), st.integers(min_value=1, max_value=64))
def test_bounded_text_is_a_beginning_of_the_text_within_its_bytes(text: str, limit: int) -> None:
    kept = run_record.bounded(text, limit)
    if kept is None:
        assert not text.strip()
    elif kept != text.strip():
        assert kept.endswith("...")
        assert text.strip().startswith(kept[:-3])
        assert len(kept[:-3].encode()) <= limit < len(text.strip().encode())


@pytest.mark.parametrize(
    ("log", "line"),
    [
        ("", ""),
        ("\n  \n", ""),
        ("just a word", "just a word"),
        ("INFO: fine\nERROR: no table\nmore", "no table"),
        ('Traceback (most recent call last):\n  File "x", line 1\nKeyError: 7\nafter', "KeyError: 7"),
        ("Traceback (most recent call last):\n  File", "Traceback (most recent call last):"),
    ],
)
def test_a_log_has_a_headline(log: str, line: str) -> None:
    assert run_record.headline(log) == line


def test_a_deployment_keeps_what_was_known_before() -> None:
    record = run_record.with_deploy(
        {"mine": 1, "dim": {"kept": True}},
        session_id="s",
        manager_url="http://dim:8001",
        verify_ssl=False,
        at=AT,
    )
    assert record["mine"] == 1
    assert record["dim"]["kept"] is True
    assert record["dim"]["deploy"] == {
        "deployed_at": STAMP,
        "dim_rest_base": "http://dim:8001",
        "verify_ssl": False,
        "operator_urls": {
            "dim_session_status_url": "http://dim:8001/api/sessions/s/status",
            "dim_graph_status_url": "http://dim:8001/api/sessions/s/graph/status",
        },
    }


def test_looks_are_counted_from_the_first_one() -> None:
    record: dict[str, Any] = {}
    for number in (1, 2):
        record = run_record.with_observation(
            record,
            session_state="running",
            at=AT.replace(hour=number),
            drops={"total": number},
            round_number=number,
        )
    assert record["dim_poll"] == {"started_at": "2026-01-01T01:00:00.123Z", "round": 2}
    assert record["dim"]["last_observation"]["drops"] == {"total": 2}
    silent = run_record.with_observation(
        record, session_state="unreachable", at=AT, drops=None, round_number=3
    )
    assert "drops" not in silent["dim"]["last_observation"]


def terminal(record: dict[str, Any], session_id: str = "s", **values: Any) -> dict[str, Any]:
    fields: dict[str, Any] = {"session_state": "failed", "at": AT, "ledger_status": "failed", **values}
    return run_record.with_terminal(record, session_id=session_id, **fields)


def test_the_first_ending_of_a_session_stays() -> None:
    first = terminal({}, error=" why ")
    again = terminal(first, session_state="finished", ledger_status="completed", error="other")
    assert first == again
    assert first["dim"]["terminal"] == {
        "session_state": "failed",
        "observed_at": STAMP,
        "session_id": "s",
        "ledger_status": "failed",
        "error": "why",
    }


def test_a_missing_status_is_added_to_an_ending() -> None:
    old = {"dim": {"terminal": {"session_id": "s", "session_state": "failed"}}}
    assert terminal(old)["dim"]["terminal"]["ledger_status"] == "failed"


def test_another_session_has_an_ending_of_its_own() -> None:
    second = terminal(terminal({}), session_id="t", session_state="finished", ledger_status="completed")
    assert second["dim"]["terminal"]["session_id"] == "t"


def test_failed_drops_are_kept_with_bounded_logs() -> None:
    drops = [{"oid": "1", "name": "image", "state": "error", "log": "x" * 5000}]
    kept = terminal({}, failed_drops=drops, error_drops_count=3)["dim"]["terminal"]
    assert kept["error_drops_count"] == 3
    assert len(kept["failed_drops"][0]["log"]) == run_record.LOG_LIMIT + 3
    assert kept["failed_drops"][0]["name"] == "image"
