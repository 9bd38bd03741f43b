from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beampipe_dagster.errors import ConflictError, InputError, NotFoundError
from beampipe_dagster.ledger import archive, sources
from beampipe_dagster.ledger.sources import NewSource
from beampipe_dagster.signature.payload import partition_key
from beampipe_dagster.sources import registry as registry_module
from beampipe_dagster.sources.registry import IDENTIFIER
from beampipe_dagster_tests.support.fake_daliuge import FINISHED
from beampipe_dagster_tests.support.ledgers import SURVEY, at_once
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


def test_registering_the_same_again_is_known_and_tells_nothing(stage: Stage) -> None:
    new = (NewSource("A", ra_deg=10.0, dec_deg=-20.0, stale_after_hours=6), NewSource("B"))
    register(stage, *new)
    told, events = len(stage.told("source_registry")), len(stage.events())
    again = register(stage, *new)
    assert (again.added, again.updated, again.known, again.refused) == ([], [], ["A", "B"], {})
    assert (len(stage.told("source_registry")), len(stage.events())) == (told, events)


def test_what_cannot_be_registered_can_be_left_out_with_its_reason(stage: Stage) -> None:
    new = [NewSource("A"), NewSource("50%"), NewSource("B", ra_deg=400.0, dec_deg=0.0), NewSource("C")]
    done = stage.platform.registry.register(SURVEY, new, actor="anna", skip_refused=True)
    assert done.added == ["A", "C"]
    assert list(done.refused) == ["50%", "B"]
    assert "cannot be a source identifier" in done.refused["50%"]
    assert "400.0" in done.refused["B"]
    with stage.ledger.read() as conn:
        assert [row.source_identifier for row in sources.listing(conn)] == ["A", "C"]


@pytest.mark.parametrize("hours", [0, -1, 87_601])
def test_a_time_after_which_nothing_is_ever_or_always_stale_is_refused(stage: Stage, hours: int) -> None:
    with pytest.raises(InputError) as caught:
        register(stage, NewSource("A", stale_after_hours=hours))
    assert caught.value.code == "invalid_staleness"


def test_disabled_sources_are_neither_looked_at_nor_admitted_until_they_are_enabled(stage: Stage) -> None:
    stage.ready("A", "B")
    registry = stage.platform.registry
    assert registry.disable(SURVEY, ["A", "A"], actor="anna") == ["A"]
    assert registry.disable(SURVEY, ["A"], actor="anna") == []
    assert [run.sources[0]["source_identifier"] for run in stage.admit()] == ["B"]
    asked = stage.archives.queries["casda", "A"]
    stage.clock.advance(30 * 3600)
    stage.discover()
    assert stage.archives.queries["casda", "A"] == asked
    assert registry.enable(SURVEY, ["A", "B"], actor="anna") == ["A"]
    assert [run.sources[0]["source_identifier"] for run in stage.admit()] == ["A"]
    told = [
        (one.event_type, one.source_identifier, one.actor)
        for one in stage.events("source.enabled", "source.disabled")
    ]
    assert told == [("source.disabled", "A", "anna"), ("source.enabled", "A", "anna")]
    *_, message = stage.told("source_registry")
    assert (message.payload["enabled"], message.payload["registered"]) == (2, 2)


@pytest.mark.parametrize("action", ["enable", "disable", "delete"])
def test_an_unknown_name_changes_nothing(stage: Stage, action: str) -> None:
    register(stage, NewSource("A"), NewSource("B", enabled=False))
    with pytest.raises(InputError) as caught:
        getattr(stage.platform.registry, action)(SURVEY, ["A", "B", "nobody"], actor="anna")
    assert caught.value.details == {"unknown": ["nobody"]}
    assert (stage.source("A").enabled, stage.source("B").enabled) == (True, False)
    with pytest.raises(InputError) as caught:
        getattr(stage.platform.registry, action)(SURVEY, [], actor="anna")
    assert caught.value.code == "no_sources"


def test_a_deleted_source_leaves_its_metadata_its_executions_and_its_story(stage: Stage) -> None:
    execution = stage.submitted("A")
    signature = stage.source("A").discovery_signature
    stage.daliuge.go(stage.session(execution), FINISHED)
    stage.poll()
    assert stage.execution(execution).terminal
    assert stage.platform.registry.delete(SURVEY, ["A"], actor="anna") == ["A"]
    with stage.ledger.read() as conn:
        assert sources.listing(conn) == []
        assert list(archive.metadata_of(conn, SURVEY, ["A"])) == ["A"]
        assert len(archive.changes_of(conn, SURVEY, "A")) == 1
    assert stage.execution(execution).terminal
    (event,) = stage.events("source.deleted")
    assert (event.source_identifier, event.actor) == ("A", "anna")
    assert event.payload["discovery_signature"] == signature
    assert len(stage.events()) > 5
    *_, message = stage.told("source_registry")
    assert (message.payload["registered"], message.payload["deleted_now"]) == (0, 1)


def test_a_source_that_is_registered_again_after_its_deletion_begins_afresh(stage: Stage) -> None:
    stage.ready("A")
    stage.platform.registry.delete(SURVEY, ["A"], actor="anna")
    register(stage, NewSource("A"))
    assert stage.source("A").discovery_signature is None
    (report,) = stage.discover()
    assert list(report.changed) == ["A"]


def test_a_source_that_an_execution_or_a_discovery_holds_is_not_deleted(stage: Stage) -> None:
    execution = stage.admitted("A")
    register(stage, NewSource("B"), NewSource("C"))
    stage.platform.discovery.tick(SURVEY)
    with pytest.raises(ConflictError) as caught:
        stage.platform.registry.delete(SURVEY, ["C", "A"], actor="anna")
    assert caught.value.code == "source_busy"
    assert caught.value.details == {"busy": {"A": f"execution {execution.id}", "C": "a discovery"}}
    with stage.ledger.read() as conn:
        assert len(sources.listing(conn)) == 3


def test_a_deletion_and_an_admission_at_once_never_both_get_the_source(stage: Stage) -> None:
    for number in range(5):
        name = f"S{number}"
        stage.ready(name)
        deleted, admitted = at_once(
            lambda name=name: stage.platform.registry.delete(SURVEY, [name], actor="anna"),  # type: ignore[misc]
            lambda: [run.sources[0]["source_identifier"] for run in stage.admit()],
        )
        if admitted == [name]:
            assert isinstance(deleted, ConflictError)
            assert deleted.code == "source_busy"
            assert stage.source(name).enabled
        else:
            assert (deleted, admitted) == ([name], [])


def test_a_request_for_very_many_sources_is_told_once(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry_module, "TOLD_ONE_BY_ONE", 2)
    stage.register("A", "B", "C")
    for wanted in (["A", "B"], ["A", "B", "C"]):
        assert stage.platform.registry.mark_for_discovery(SURVEY, wanted, actor="test") == len(wanted)
    told = [(one.source_identifier, one.payload) for one in stage.events("discovery.requested")]
    assert sorted(told[:2], key=str) == [("A", {"sources": 2}), ("B", {"sources": 2})]
    assert told[2:] == [(None, {"sources": 3})]
