"""Outbox messages become events that Dagster can store as often as they are told."""

from __future__ import annotations

from typing import Any

import dagster as dg

from beampipe_dagster.defs import events
from beampipe_dagster.ledger.outbox import Kind, StoredMessage
from beampipe_dagster_tests.definitions.world import World
from beampipe_dagster_tests.support.ledgers import START

OUTCOME: dict[str, Any] = {
    "execution_id": "e1",
    "status": "failed",
    "outcome": "failed",
    "error": "drop image failed: no beam",
    "error_code": "session_failed",
    "session_id": "s1",
    "manager_url": "http://dim:8001",
    "drops": {"total": 3, "error": 1},
    "sources": ["A1"],
    "signature": "a" * 64,
    "datasets": 2,
    "seconds": 3.5,
    "phases": {"submit": "2026-01-01T00:00:02.000Z", "stage": "2026-01-01T00:00:01.000Z"},
    "run_record": {
        "dim": {
            "terminal": {"failed_drops": [{"oid": "o1", "name": "image", "state": "error", "log": "no beam"}]}
        }
    },
}
CHECK: dict[str, Any] = {
    "check": "execution_succeeded",
    "passed": False,
    "partition_key": "A1@aaaaaaaaaaaa",
    "execution_id": "e1",
    "error": "drop image failed",
}


def message(
    kind: Kind,
    asset: str,
    payload: dict[str, Any],
    *,
    number: int = 7,
    key: str | None = None,
    survey: str = "toy",
) -> StoredMessage:
    return StoredMessage(number, kind, survey, asset, key, payload, "c1", START)


def test_a_materialization_carries_its_partition_and_the_number_of_its_message() -> None:
    event = events.to_event(message("materialization", "execution_outcome", OUTCOME, key="A1@aaaaaaaaaaaa"))
    assert isinstance(event, dg.AssetMaterialization)
    assert (event.asset_key, event.partition) == (
        dg.AssetKey(["toy", "execution_outcome"]),
        "A1@aaaaaaaaaaaa",
    )
    assert event.metadata["outbox_id"].value == 7


def test_the_outcome_shows_the_failed_drops_words_and_links_to_its_session() -> None:
    event = events.to_event(message("materialization", "execution_outcome", OUTCOME, key="A1@aaaaaaaaaaaa"))
    assert isinstance(event, dg.AssetMaterialization)
    shown = event.metadata
    assert "drop image failed: no beam" in str(shown["error"].value)
    table = shown["failed_drops"]
    assert isinstance(table, dg.TableMetadataValue)
    assert [dict(row.data) for row in table.records] == [
        {"name": "image", "said": "no beam", "log": "no beam"}
    ]
    assert shown["daliuge_session"].value == "http://dim:8001/session?sessionId=s1"
    phases = shown["phases"]
    assert isinstance(phases, dg.TableMetadataValue)
    assert [row.data["phase"] for row in phases.records] == ["stage", "submit"]


def test_a_check_has_its_partition_in_the_metadata_only() -> None:
    event = events.to_event(message("check", "execution_outcome", CHECK, key="A1@aaaaaaaaaaaa"))
    assert isinstance(event, dg.AssetCheckEvaluation)
    assert event.partition is None
    assert event.metadata["partition"].value == "A1@aaaaaaaaaaaa"
    assert (event.passed, event.severity) == (False, dg.AssetCheckSeverity.ERROR)
    assert event.metadata["error"].value == "drop image failed"


def test_the_same_check_can_be_stored_again_and_again(here: World) -> None:
    event = events.to_event(message("check", "execution_outcome", CHECK, key="A1@aaaaaaaaaaaa"))
    for _ in range(2):
        here.instance.report_runless_asset_event(event)
    assert isinstance(event, dg.AssetCheckEvaluation)


def test_an_observation_tells_the_registrys_counts() -> None:
    payload: dict[str, Any] = {"registered": 3, "pending": 1, "batch": {"total": 2}, "flag": True}
    event = events.to_event(message("observation", "source_registry", payload))
    assert isinstance(event, dg.AssetObservation)
    assert event.partition is None
    assert {name: value.value for name, value in event.metadata.items()} == {
        "registered": 3,
        "pending": 1,
        "batch": {"total": 2},
        "outbox_id": 7,
    }


def test_an_asset_without_a_rendering_of_its_own_shows_its_facts_by_kind() -> None:
    payload: dict[str, Any] = {"n": 1, "x": 1.5, "ok": True, "none": None, "doc": {"a": 1}, "word": "b"}
    event = events.to_event(message("materialization", "physical_graph", payload, key="k"))
    assert isinstance(event, dg.AssetMaterialization)
    kinds = {name: type(value).__name__ for name, value in event.metadata.items()}
    assert kinds == {
        "n": "IntMetadataValue",
        "x": "FloatMetadataValue",
        "ok": "TextMetadataValue",
        "none": "TextMetadataValue",
        "doc": "JsonMetadataValue",
        "word": "TextMetadataValue",
        "outbox_id": "IntMetadataValue",
    }


def test_partitions_are_those_of_the_messages_by_survey_each_once_and_in_order() -> None:
    told = [
        message("materialization", "archive_metadata", {}, key="B@1"),
        message("materialization", "archive_metadata", {}, key="A@1"),
        message("materialization", "execution_outcome", {}, key="B@1"),
        message("materialization", "archive_metadata", {}, key="C@1", survey="other"),
        message("check", "execution_outcome", CHECK, key="D@1"),
        message("observation", "source_registry", {}),
    ]
    assert events.partition_keys(told) == {"toy": ["B@1", "A@1"], "other": ["C@1"]}
