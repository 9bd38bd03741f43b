"""`beampipe timeline`, and the words of its story."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

import beampipe_dagster
from beampipe_dagster.cli import story
from beampipe_dagster.cli.story import tell, without_repeats
from beampipe_dagster.config.project import Discovery
from beampipe_dagster.ledger.provenance import RecordedEvent
from beampipe_dagster.ledger.states import Status
from beampipe_dagster_tests.cli.support import SURVEY, Beampipe, World

KIND = re.compile(r'"((?:config|source|discovery|execution)\.[a-z_]+)"')


def _event(
    kind: str, *, execution_id: str | None = None, source: str | None = None, **payload: Any
) -> RecordedEvent:
    return RecordedEvent(
        id="e",
        occurred_at=datetime(2026, 1, 1, tzinfo=UTC),
        event_type=kind,
        project_module=SURVEY,
        source_identifier=source,
        execution_id=execution_id,
        actor="system",
        correlation_id=None,
        payload=payload,
    )


def test_the_story_of_a_source_is_told_in_order(world: World, beampipe: Beampipe) -> None:
    world.looked_at("A")
    world.ended(world.submitted(world.admitted("A")), Status.FAILED, error="drop image failed: no")
    text = beampipe.ok("timeline", "source", "-p", SURVEY, "A")
    parts = ["registered", "discovery found news: 2 datasets in 1 scheduling block", "admitted as A@"]
    parts.append("failed: drop image failed: no")
    places = [text.index(part) for part in parts]
    assert places == sorted(places)
    assert "automation" in text
    events = beampipe.json("timeline", "source", "-p", SURVEY, "A")["events"]
    kinds = [event["event_type"] for event in events]
    assert kinds[0] == "source.registered"
    assert kinds[-1] == "execution.failed"
    assert events[-1]["text"] == "failed: drop image failed: no"


def test_what_is_told_once_for_each_source_of_an_execution_is_shown_once(
    world: World, beampipe: Beampipe
) -> None:
    for name in "AB":
        world.looked_at(name)
    run = world.admitted("A", "B")
    text = beampipe.ok("timeline", "execution", run.id[:30])
    assert text.count("admitted as") == 1
    assert "2 sources" in text
    assert len(beampipe.json("timeline", "execution", run.id)["events"]) == 4


def test_the_story_of_a_survey_names_its_sources_and_says_when_it_is_cut(
    world: World, beampipe: Beampipe
) -> None:
    world.looked_at("B")
    text = beampipe.ok("timeline", "project", SURVEY)
    assert "survey at revision 1" in text
    assert re.search(r"B +discovery found news", text)
    cut = beampipe.ok("timeline", "project", SURVEY, "--limit", "1")
    assert "Only the newest 1 events are shown" in cut
    assert "revision" not in cut
    answer = beampipe.json("timeline", "project", SURVEY, "--limit", "1")
    assert ([event["event_type"] for event in answer["events"]], answer["truncated"]) == (
        ["discovery.changed"],
        True,
    )


def test_unknown_subjects_are_refused(world: World, beampipe: Beampipe) -> None:
    del world
    beampipe.refused("timeline", "source", "-p", SURVEY, "Z", code="source_not_registered")
    beampipe.refused("timeline", "source", "-p", "nope", "A", code="project_not_found")
    beampipe.refused("timeline", "project", "nope", code="project_not_found")


def test_every_kind_of_event_that_the_platform_writes_has_words() -> None:
    package = Path(beampipe_dagster.__file__).parent
    places = [package / name for name in ("discovery", "execution", "poll", "sources")]
    text = "\n".join(path.read_text() for place in places for path in place.rglob("*.py"))
    # Paths in a project file look the same and are no events.
    settings = {f"discovery.{name}" for name in Discovery.model_fields}
    written = (set(KIND.findall(text)) - settings) | {
        f"execution.{status}" for status in ("completed", "failed", "cancelled")
    }
    assert len(written) > 20
    assert written <= story._WORDS.keys()


@pytest.mark.parametrize("kind", sorted(story._WORDS))
def test_an_event_without_its_payload_is_told_all_the_same(kind: str) -> None:
    assert tell(_event(kind)).text
    assert "\n" not in tell(_event(kind, message="two\nlines", error="two\nlines")).text


def test_an_unknown_kind_is_told_with_what_it_carries() -> None:
    assert tell(_event("moon.landed", who="Neil")).text == 'moon.landed {"who": "Neil"}'


def test_words_are_plain() -> None:
    assert (
        tell(_event("execution.submission_recorded", drops=1)).text
        == "submitted: the session runs with 1 drop"
    )
    assert tell(_event("execution.submission_recorded", adopted=True)).text.startswith("submission proven")
    held = tell(_event("execution.held", code="source_disabled", message="the source is disabled"))
    assert held.text == "held: the source is disabled [source_disabled]"
    assert tell(_event("discovery.requested", sources=9)).text == "a look was asked for with 9 sources"


def test_only_the_same_moment_of_the_same_execution_is_a_repeat() -> None:
    once = _event("execution.completed", execution_id="x", source="A")
    again = _event("execution.completed", execution_id="x", source="B")
    other = _event("execution.completed", execution_id="y", source="C")
    looks = [_event("discovery.changed", source=name) for name in "AB"]
    told = without_repeats([once, *looks, again, other])
    assert [(event.source_identifier, count) for event, count in told] == [
        ("A", 2),
        ("A", 1),
        ("B", 1),
        ("C", 1),
    ]
