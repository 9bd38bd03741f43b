"""How long keys stay, and how many there are."""

from __future__ import annotations

from datetime import timedelta

import pytest

from beampipe_dagster.discovery.retention import PartitionRetention
from beampipe_dagster.errors import NotFoundError
from beampipe_dagster.ledger.engine import Ledger
from beampipe_dagster_tests.support.ledgers import SURVEY
from beampipe_dagster_tests.support.platforms import Stage

DAY = 86_400.0


def retention(stage: Stage, *, days: int = 30, live_keys: int = 1000) -> PartitionRetention:
    return PartitionRetention(
        ledger=stage.ledger, clock=stage.clock, keep=timedelta(days=days), live_keys=live_keys
    )


def finish(stage: Stage) -> None:
    """Run what waits, to its end."""
    for execution in stage.admit():
        stage.submit(execution)
        stage.daliuge.go(stage.session(execution), 4)
    stage.poll()


def superseded(stage: Stage, *names: str) -> dict[str, str]:
    """Sources whose second signature was executed; their first keys by name."""
    stage.ready(*names)
    first = {name: f"{name}@{(stage.source(name).discovery_signature or '')[:12]}" for name in names}
    finish(stage)
    for number, name in enumerate(names):
        stage.archives.deposit(name, 900 + number)
    stage.request(*names)
    finish(stage)
    return first


def test_a_superseded_key_stays_for_its_days_and_goes_then(stage: Stage) -> None:
    keys = superseded(stage, "A")
    keeper = retention(stage)
    stage.clock.advance(29 * DAY)
    assert keeper.plan(SURVEY).retire == ()
    stage.clock.advance(2 * DAY)
    plan = keeper.plan(SURVEY)
    assert [key.partition_key for key in plan.due] == [keys["A"]]
    assert (plan.live, plan.left) == (2, 1)
    assert keeper.plan(SURVEY).retire == plan.retire, "a plan changes nothing"
    keeper.retire(SURVEY)
    assert keeper.plan(SURVEY).live == 1
    assert keeper.removable(SURVEY, [keys["A"], "B@0"]) == [keys["A"]]


def test_too_many_keys_send_superseded_ones_first_and_completed_ones_then(stage: Stage) -> None:
    keys = superseded(stage, "A", "B")
    plan = retention(stage, live_keys=3).plan(SURVEY)
    assert (plan.live, plan.due, plan.left) == (4, (), 3)
    assert [key.partition_key for key in plan.over] == [keys["A"]]
    plan = retention(stage, live_keys=1).plan(SURVEY)
    assert [key.superseded for key in plan.over] == [True, True, False]


def test_keys_that_are_needed_stay_however_many_there_are(stage: Stage) -> None:
    stage.ready("A", "B", "C")
    plan = retention(stage, live_keys=1).plan(SURVEY)
    assert (plan.retire, plan.left, plan.limit) == ((), 3, 1)


def test_a_key_that_comes_back_while_it_is_taken_out_is_put_in_again(stage: Stage) -> None:
    keys = superseded(stage, "A")
    keeper = retention(stage, days=0)
    keeper.retire(SURVEY)
    removed = keeper.removable(SURVEY, list(keys.values()))
    assert removed == [keys["A"]]
    stage.archives.withdraw("A", 900)
    stage.vanished("A")
    assert keeper.returned(SURVEY, removed) == [keys["A"]]


def test_an_unknown_survey_is_refused(ledger: Ledger, stage: Stage) -> None:
    del ledger
    with pytest.raises(NotFoundError, match="no project"):
        retention(stage).plan("nobody")
