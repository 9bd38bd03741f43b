from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beampipe_dagster.errors import InputError, NotFoundError
from beampipe_dagster.ledger import sources
from beampipe_dagster.ledger.sources import NewSource
from beampipe_dagster.signature.payload import partition_key
from beampipe_dagster.sources.registry import IDENTIFIER
from beampipe_dagster_tests.support.ledgers import SURVEY
from beampipe_dagster_tests.support.platforms import Stage


def register(stage: Stage, *new: NewSource, survey: str = SURVEY) -> Any:
    return stage.platform.registry.register(survey, new, actor="anna")


def test_new_and_known_sources_are_told_apart(stage: Stage) -> None:
    first = register(stage, NewSource("A", ra_deg=0.0, dec_deg=-90.0), NewSource("B"))
    assert (first.added, first.updated) == (["A", "B"], [])
    second = register(stage, NewSource("B", enabled=False), NewSource("C"))
    assert (second.added, second.updated) == (["C"], ["B"])
    assert not stage.source("B").enabled
    told = [
        (one.event_type, one.source_identifier) for one in stage.events("source.registered", "source.updated")
    ]
    assert told[2:] == [("source.registered", "C"), ("source.updated", "B")]
    *_, message = stage.told("source_registry")
    assert (message.payload["registered"], message.payload["enabled"], message.payload["added_now"]) == (
        3,
        2,
        1,
    )


@pytest.mark.parametrize(
    "name", ["", " A", "a'b", "50%", "a\\b", "A\n", "Ä", "-A", "x" * 101, "NGC...1", "A;B", "A\x00"]
)
def test_a_name_that_would_change_a_query_or_break_a_key_is_refused(stage: Stage, name: str) -> None:
    with pytest.raises(InputError) as caught:
        register(stage, NewSource("good"), NewSource(name))
    assert caught.value.code == "invalid_identifier"
    with stage.ledger.read() as conn:
        assert sources.listing(conn) == []


@given(st.from_regex(IDENTIFIER, fullmatch=True))
def test_every_name_that_is_taken_can_lead_a_partition_key(name: str) -> None:
    assert partition_key(name, "a" * 64) == f"{name}@{'a' * 12}"


@pytest.mark.parametrize(
    ("ra", "dec"), [(360.0, 0.0), (-0.1, 0.0), (0.0, 90.1), (0.0, -90.1), (math.nan, 0.0), (0.0, math.inf)]
)
def test_a_position_outside_the_sky_is_refused(stage: Stage, ra: float, dec: float) -> None:
    with pytest.raises(InputError) as caught:
        register(stage, NewSource("A", ra_deg=ra, dec_deg=dec))
    assert caught.value.code == "invalid_position"


def test_nothing_and_the_same_twice_are_refused(stage: Stage) -> None:
    with pytest.raises(InputError) as caught:
        register(stage)
    assert caught.value.code == "no_sources"
    with pytest.raises(InputError) as caught:
        register(stage, NewSource("A"), NewSource("A"))
    assert caught.value.code == "duplicate_source"


def test_a_survey_must_be_there(stage: Stage) -> None:
    with pytest.raises(NotFoundError) as caught:
        register(stage, NewSource("A"), survey="survy")
    assert caught.value.code == "project_not_found"


def test_a_request_names_its_sources_and_an_unknown_one_marks_nothing(stage: Stage) -> None:
    register(stage, NewSource("A"), NewSource("B"))
    with pytest.raises(InputError) as caught:
        stage.platform.registry.mark_for_discovery(SURVEY, ["A", "nobody"], actor="anna")
    assert caught.value.code == "source_not_registered"
    assert caught.value.details == {"unknown": ["nobody"]}
    assert stage.source("A").discovery_requested_at is None
    assert stage.platform.registry.mark_for_discovery(SURVEY, ["A"], actor="anna") == 1
    assert stage.source("A").discovery_requested_at == stage.clock.now()
    (event,) = stage.events("discovery.requested")
    assert (event.source_identifier, event.actor) == ("A", "anna")


def test_a_request_for_all_takes_every_enabled_source(stage: Stage) -> None:
    register(stage, NewSource("A"), NewSource("B"), NewSource("off", enabled=False))
    assert stage.platform.registry.mark_for_discovery(SURVEY, None, actor="anna") == 2
