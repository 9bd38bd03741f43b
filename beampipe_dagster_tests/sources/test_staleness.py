"""How long a look at a source is believed, where it is not what the survey says."""

from __future__ import annotations

import pytest

from beampipe_dagster.errors import InputError
from beampipe_dagster.ledger.sources import NewSource
from beampipe_dagster_tests.support.ledgers import SURVEY
from beampipe_dagster_tests.support.platforms import Stage


def set_hours(stage: Stage, hours: int | None, *names: str) -> list[str]:
    return stage.platform.registry.set_staleness(SURVEY, names, hours, actor="anna")


def test_only_what_changes_is_told(stage: Stage) -> None:
    stage.register("A", "B")
    assert set_hours(stage, 12, "A") == ["A"]
    assert set_hours(stage, 12, "A", "B") == ["B"]
    assert set_hours(stage, 12, "A", "B") == []
    told = [(one.source_identifier, one.payload) for one in stage.events("source.staleness_set")]
    assert told == [("A", {"before": None, "hours": 12}), ("B", {"before": None, "hours": 12})]


def test_a_source_with_hours_of_its_own_is_due_by_them_and_later_by_the_survey_again(stage: Stage) -> None:
    stage.ready("A", "B")
    set_hours(stage, 2, "A")
    stage.clock.advance(3 * 3600)
    (report,) = stage.discover()
    assert report.unchanged == ["A"]
    set_hours(stage, None, "A")
    stage.clock.advance(3 * 3600)
    assert stage.discover() == []


@pytest.mark.parametrize("hours", [0, -1, 87_601])
def test_hours_out_of_range_are_refused(stage: Stage, hours: int) -> None:
    stage.register("A")
    with pytest.raises(InputError) as refused:
        set_hours(stage, hours, "A")
    assert refused.value.code == "invalid_staleness"
    assert stage.source("A").stale_after_hours is None


def test_an_unknown_name_changes_none(stage: Stage) -> None:
    stage.register("A")
    with pytest.raises(InputError) as refused:
        set_hours(stage, 5, "A", "nobody")
    assert refused.value.code == "source_not_registered"
    assert stage.source("A").stale_after_hours is None


def test_registering_again_leaves_the_hours_alone(stage: Stage) -> None:
    stage.register("A")
    set_hours(stage, 5, "A")
    stage.platform.registry.register(SURVEY, [NewSource("A")], actor="anna")
    assert stage.source("A").stale_after_hours == 5
