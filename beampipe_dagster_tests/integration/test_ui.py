"""What an operator sees and may do in Dagster's pages, in a real browser on a real stack."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from beampipe_dagster.ledger.execution_values import Execution
from beampipe_dagster.ledger.states import Status
from beampipe_dagster_tests.support.browser import browser, keep, new_page
from beampipe_dagster_tests.support.stack import SURVEY, Stack, running_stack

__all__ = ["browser"]

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]

GOOD, BAD, HELD = "HIPASSJ1338-17", "HIPASSJ1324-19", "HIPASSJ1317-16"
LOCATION = "/locations/beampipe_dagster"
CHAIN = (
    "source_registry",
    "archive_metadata",
    "workflow_manifest",
    "prepared_graph",
    "physical_graph",
    "backend_run",
    "execution_outcome",
)
OUTCOMES = """
query Outcomes($key: AssetKeyInput!) {
  assetNodeOrError(assetKey: $key) { ... on AssetNode { assetMaterializations(limit: 50) { partition } } }
}
"""
OBSERVATIONS = """
query Observations($key: AssetKeyInput!) {
  assetNodeOrError(assetKey: $key) { ... on AssetNode {
    assetObservations(limit: 50) { metadataEntries { label ... on IntMetadataEntry { intValue } } }
  } }
}
"""
RUNS = """
query Runs($id: [String!]) {
  runsOrError(filter: {runIds: $id}, limit: 50) { ... on Runs { results { runId status tags { key value } } } }
}
"""


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The demo survey with one source of each kind, brought to its end."""
    home = tmp_path_factory.mktemp("ui") / "home"
    env = {"BEAMPIPE_LEASE_SECONDS": "20"}
    with running_stack(home, names={GOOD, BAD, HELD}, without={"metrics"}, env=env) as started:
        started.until(lambda: told(started) == 2, "two outcomes that Dagster knows", seconds=120)
        yield started


def told(stack: Stack) -> int:
    node = stack.graphql(OUTCOMES, key={"path": [SURVEY, "execution_outcome"]})["assetNodeOrError"]
    return len({event["partition"] for event in node.get("assetMaterializations") or []})


def execution(stack: Stack, source: str) -> Execution:
    (found,) = [run for run in stack.executions() if run.source_identifiers == [source]]
    return found


def runs(stack: Stack) -> dict[str, dict[str, Any]]:
    return {run["runId"]: run for run in stack.graphql(RUNS)["runsOrError"]["results"]}


@pytest.fixture
def page(browser: Browser, stack: Stack) -> Iterator[Page]:
    with new_page(browser, stack.options.web_url) as opened:
        yield opened


def test_the_graph_of_a_survey_reads_from_the_registry_to_the_outcome(page: Page) -> None:
    page.goto(f"{LOCATION}/asset-groups/{SURVEY}")
    places = []
    for name in CHAIN:
        node = page.get_by_text(name, exact=True).first
        expect(node).to_be_visible()
        box = node.bounding_box()
        assert box is not None
        places.append(box["x"])
    keep(page, "asset_graph")
    assert places == sorted(places)
    assert len(set(places)) == len(CHAIN)


def test_a_signatures_partition_shows_its_datasets(page: Page, stack: Stack) -> None:
    key = execution(stack, GOOD).partition_key
    page.goto(f"/assets/{SURVEY}/archive_metadata?view=partitions&partition={key}")
    for column in ("sbid", "dataset_id", "quality", "scan_id"):
        expect(page.get_by_text(column, exact=True).first).to_be_visible()
    for beam in range(2):
        expect(page.get_by_text(f"{GOOD}_SB72998_F00_B{beam:02}.ms.tar").first).to_be_visible()
    expect(page.get_by_text(stack.sources()[GOOD].discovery_signature or "none").first).to_be_visible()
    keep(page, "signature")


def test_a_failed_execution_shows_what_the_drop_said(page: Page, stack: Stack) -> None:
    failed = execution(stack, BAD)
    assert failed.status is Status.FAILED
    page.goto(f"/assets/{SURVEY}/execution_outcome?view=partitions&partition={failed.partition_key}")
    expect(page.get_by_text("session_failed").first).to_be_visible()
    expect(page.get_by_text(re.compile("drop image-beam failed: ValueError")).first).to_be_visible()
    expect(page.get_by_text(re.compile("REJECTED, refusing to image")).first).to_be_visible()
    keep(page, "failed_execution")
    row = stack.sources()[BAD]
    assert row.hold is not None
    assert "REJECTED" in str(row.hold["message"])


def test_a_source_that_is_held_is_in_the_execution_clocks_words(stack: Stack) -> None:
    query = """
    query Ticks($selector: SensorSelector!) {
      sensorOrError(sensorSelector: $selector) {
        ... on Sensor { sensorState { ticks(limit: 5) { skipReason } } }
      }
    }
    """
    selector = {
        "repositoryLocationName": "beampipe_dagster",
        "repositoryName": "__repository__",
        "sensorName": f"{SURVEY}_execution_tick",
    }

    def said() -> bool:
        sensor = stack.graphql(query, selector=selector)["sensorOrError"]
        words = [tick["skipReason"] or "" for tick in sensor["sensorState"]["ticks"]]
        return any(f"{HELD} (discovery_flags_failed)" in word for word in words)

    stack.until(said, "the held source in the tick's reason", seconds=30)


def overview_numbers(stack: Stack) -> dict[str, int]:
    """The numbers of the newest overview that Dagster knows."""
    node = stack.graphql(OBSERVATIONS, key={"path": [SURVEY, "source_registry"]})["assetNodeOrError"]
    for event in node["assetObservations"]:
        numbers = {
            entry["label"]: entry["intValue"] for entry in event["metadataEntries"] if "intValue" in entry
        }
        if "never_looked" in numbers:
            return numbers
    return {}


def test_the_registry_shows_the_survey_as_a_whole(page: Page, stack: Stack) -> None:
    def over() -> bool:
        numbers = overview_numbers(stack)
        return numbers.get("completed") == numbers.get("failed") == 1

    stack.until(over, "an overview of the end", seconds=60)
    numbers = overview_numbers(stack)
    assert {name: numbers[name] for name in ("total", "completed", "failed", "held", "never_looked")} == {
        "total": 3,
        "completed": 1,
        "failed": 1,
        "held": 1,
        "never_looked": 0,
    }
    page.set_viewport_size({"width": 1400, "height": 1300})
    page.goto(f"/assets/{SURVEY}/source_registry?view=overview")
    for words in ("states", "freshness", "never looked at", "sky"):
        expect(page.get_by_text(words, exact=True).first).to_be_visible()
    keep(page, "registry")
    page.get_by_text("[Show Markdown]").first.click()
    picture = page.locator("img[alt^='The sources of']").first
    expect(picture).to_be_visible()
    keep(page, "sky")
    assert picture.evaluate("image => image.naturalWidth") > 0


CLOCKS = (
    "poll_executions",
    "survey_overviews",
    f"{SURVEY}_execution_tick",
    f"{SURVEY}_scheduler_tick",
    "prune_partitions_daily",
)


def test_the_clocks_are_running(page: Page) -> None:
    page.goto("/automation")
    for name in CLOCKS:
        expect(page.get_by_text(name, exact=True)).to_be_visible()
    expect(page.locator("input[type=checkbox]:checked")).to_have_count(len(CLOCKS))
    keep(page, "sensors")


def test_the_clocks_are_said_to_be_running(stack: Stack) -> None:
    query = """
    query Sensors {
      sensorsOrError(repositorySelector: {
        repositoryLocationName: "beampipe_dagster", repositoryName: "__repository__"
      }) { ... on Sensors { results { name sensorState { status } } } }
    }
    """
    found = stack.graphql(query)["sensorsOrError"]["results"]
    assert {sensor["name"]: sensor["sensorState"]["status"] for sensor in found} == {
        "poll_executions": "RUNNING",
        "survey_overviews": "RUNNING",
        f"{SURVEY}_execution_tick": "RUNNING",
        f"{SURVEY}_scheduler_tick": "RUNNING",
    }


def test_the_launchpad_describes_every_field_of_a_registration(page: Page) -> None:
    page.goto(f"{LOCATION}/jobs/register_sources/playground")
    page.get_by_text("discover_now").first.click()
    for words in (
        "The survey's id, as in metadata.id",
        "Source identifiers, e.g. HIPASSJ1318-21",
        "Whether discovery and execution may",
        "Look at the archives at the next tick",
    ):
        expect(page.get_by_text(re.compile(re.escape(words))).first).to_be_visible()
    keep(page, "launchpad")


def test_a_completed_partition_that_is_materialized_by_hand_is_refused_and_runs_nothing(
    page: Page, stack: Stack
) -> None:
    completed = execution(stack, GOOD)
    assert completed.status is Status.COMPLETED
    sessions, before = stack.sessions(), set(runs(stack))
    page.goto(f"/assets/{SURVEY}/backend_run?view=partitions&partition={completed.partition_key}")
    page.get_by_role("button", name="Materialize…").click()
    keep(page, "materialize_dialog")
    page.get_by_role("button", name="Launch 1 run").click()
    ended: list[str] = []

    def over() -> bool:
        new = {run: runs(stack)[run]["status"] for run in set(runs(stack)) - before}
        ended[:] = [run for run, status in new.items() if status in {"FAILURE", "SUCCESS", "CANCELED"}]
        return bool(ended)

    stack.until(over, "the end of the run by hand", seconds=60)
    assert runs(stack)[ended[0]]["status"] == "FAILURE"
    page.goto(f"/runs/{ended[0]}")
    expect(page.get_by_text(re.compile(r"\[execution_completed\] execution")).first).to_be_visible()
    keep(page, "refused_run")
    assert stack.sessions() == sessions
    again = execution(stack, GOOD)
    assert (again.status, again.attempt) == (Status.COMPLETED, completed.attempt)
