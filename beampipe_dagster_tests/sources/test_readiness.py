from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from beampipe_dagster.ledger.sources import Source
from beampipe_dagster.sources.readiness import HINTS, blocker, failed_flags, truthy
from beampipe_dagster_tests.support.ledgers import START, SURVEY

SOURCE = Source(
    id="id",
    project_module=SURVEY,
    source_identifier="A",
    enabled=True,
    ra_deg=None,
    dec_deg=None,
    created_at=START,
    updated_at=START,
    stale_after_hours=None,
    last_checked_at=START,
    last_attempted_at=START,
    discovery_requested_at=None,
    last_outcome="changed",
    last_error=None,
    failure_count=0,
    next_attempt_at=None,
    discovery_signature="a" * 64,
    last_executed_discovery_signature=None,
    discovery_claim_token=None,
    discovery_claim_expires_at=None,
    workflow_run_pending=True,
    workflow_run_pending_at=START,
    hold=None,
)
ROWS: dict[str, Any] = {"1": {"datasets": [{"n": 1}], "discovery_flags": {"found": True}}}
EMPTY: dict[str, Any] = {"0": {"datasets": [], "discovery_status": "no_datasets"}}
BAD: dict[str, Any] = {"2": {"datasets": [{"n": 2}], "discovery_flags": {"b": None, "a": "", "c": 1}}}


def code(source: Source | None, rows: dict[str, Any], **values: Any) -> str | None:
    found = blocker(source, rows, **values)
    return found.code if found else None


def test_a_source_with_everything_is_ready() -> None:
    assert blocker(SOURCE, ROWS) is None
    assert blocker(SOURCE, {"1": {"datasets": [{}]}, "2": "not an object"}) is None


@pytest.mark.parametrize(
    ("changes", "rows", "expected"),
    [
        ({"enabled": False}, ROWS, "source_disabled"),
        ({"last_checked_at": None}, ROWS, "discovery_never_ran"),
        ({"discovery_signature": None}, ROWS, "discovery_signature_missing"),
        ({"discovery_signature": ""}, ROWS, "discovery_signature_missing"),
        ({"discovery_claim_token": "t"}, ROWS, "discovery_in_progress"),
        ({}, {}, "no_archive_metadata"),
        ({}, EMPTY, "no_datasets"),
        ({}, {**ROWS, **BAD}, "discovery_flags_failed"),
    ],
)
def test_the_first_rule_that_does_not_hold_is_told(
    changes: dict[str, Any], rows: dict[str, Any], expected: str
) -> None:
    found = blocker(replace(SOURCE, **changes), rows)
    assert found is not None
    assert (found.code, found.hint) == (expected, HINTS[expected])
    worse: dict[str, Any] = {"enabled": False, "last_checked_at": None, "discovery_signature": None}
    assert code(replace(SOURCE, **worse), {}) == "source_disabled"


def test_a_source_that_is_not_there_is_said_so() -> None:
    assert code(None, ROWS) == "source_not_registered"


def test_every_reason_has_a_hint_and_its_document() -> None:
    found = blocker(SOURCE, {**ROWS, **BAD})
    assert found is not None
    assert found.as_dict() == {
        "code": "discovery_flags_failed",
        "message": "readiness flags do not pass: a, b",
        "hint": HINTS["discovery_flags_failed"],
    }


def test_only_the_requested_scheduling_blocks_count() -> None:
    rows = {**ROWS, **BAD}
    assert code(SOURCE, rows, sbids=["1"]) is None
    assert code(SOURCE, rows, sbids=["2"]) == "discovery_flags_failed"
    assert code(SOURCE, rows, sbids=["9"]) == "no_archive_metadata"
    assert code(SOURCE, rows, sbids=[]) == "discovery_flags_failed"


@pytest.mark.parametrize("value", [None, False, 0, 0.0, "", "  ", [], {}])
def test_what_does_not_pass(value: Any) -> None:
    assert not truthy(value)
    assert failed_flags({"1": {"discovery_flags": {"x": value}}}) == ["x"]


@pytest.mark.parametrize("value", [True, 1, -1, "0", "false", [0], {"a": None}])
def test_what_passes(value: Any) -> None:
    assert truthy(value)
    assert failed_flags({"1": {"discovery_flags": {"x": value}}}) == []
