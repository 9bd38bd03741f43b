"""Overviews in Dagster: told once, told again when something has changed and the last one is old enough."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import dagster as dg

from beampipe_dagster.defs import metadata
from beampipe_dagster.defs.overview import TICKS_BETWEEN, overviews, survey_overviews
from beampipe_dagster_tests.definitions.world import SURVEY, World

INTERVAL = 30
EVERY = timedelta(seconds=INTERVAL * TICKS_BETWEEN)


def tick(world: World, cursor: str | None = None) -> Any:
    sensor = survey_overviews(INTERVAL)
    with dg.build_sensor_context(
        instance=world.instance, cursor=cursor, resources={"platform": world.resource}
    ) as context:
        return sensor(context)


def test_an_overview_shows_the_sky_the_states_and_numbers(here: World) -> None:
    here.add_survey()
    here.register("A", "B")
    result = tick(here)
    (event,) = result.asset_events
    assert event.asset_key == dg.AssetKey([SURVEY, "source_registry"])
    shown = event.metadata
    assert shown["sky"].value.startswith("![The sources of ")
    assert [record.data for record in shown["states"].records] == [
        {"state": "unchecked", "sources": "2", "share": "100.0%"}
    ]
    assert (shown["total"].value, shown["never_looked"].value, shown["completed"].value) == (2, 2, 0)


def test_a_survey_without_sources_is_not_told(here: World) -> None:
    here.add_survey()
    assert isinstance(tick(here), dg.SkipReason)


def test_nothing_new_is_told_and_news_waits_for_its_time(here: World) -> None:
    here.add_survey()
    here.register("A")
    first, told = overviews(here.platform, {}, every=EVERY)
    assert len(first) == 1
    here.clock.advance(EVERY.total_seconds())
    assert overviews(here.platform, told, every=EVERY) == ([], told)
    here.register("B")
    again, told = overviews(here.platform, told, every=EVERY)
    assert [event.metadata["total"].value for event in again] == [2]
    here.register("C")
    here.clock.advance(EVERY.total_seconds() - 1)
    assert overviews(here.platform, told, every=EVERY)[0] == []
    here.clock.advance(1)
    assert len(overviews(here.platform, told, every=EVERY)[0]) == 1


def test_the_cursor_keeps_what_was_told(here: World) -> None:
    here.add_survey()
    here.register("A")
    cursor = tick(here).cursor
    assert set(json.loads(cursor)) == {SURVEY}
    here.clock.advance(EVERY.total_seconds())
    assert isinstance(tick(here, cursor), dg.SkipReason)


def test_differences_of_a_signature_are_rows() -> None:
    shown: Any = metadata.of_signature(
        {
            "source_identifier": "A",
            "signature": "b" * 64,
            "dataset_count": 2,
            "diff": {
                "counts": {"added": 1, "removed": 0, "changed": 1},
                "added": [{"sbid": "7", "dataset": "new.tar"}],
                "changed": [
                    {"sbid": "7", "dataset": "old.tar", "fields": {"quality": {"old": "GOOD", "new": None}}}
                ],
                "flags": [{"sbid": "7", "fields": {"catalogued": {"old": False, "new": True}}}],
            },
        }
    )
    assert [list(record.data.values()) for record in shown["differences"].records] == [
        ["added", "7", "new.tar", "", "", ""],
        ["changed", "7", "old.tar", "quality", "GOOD", ""],
        ["flags", "7", "", "catalogued", "False", "True"],
    ]
    assert (shown["datasets_added"].value, shown["datasets_removed"].value) == (1, 0)
