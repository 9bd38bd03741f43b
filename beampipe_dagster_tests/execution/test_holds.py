from __future__ import annotations

import pytest

from beampipe_dagster.errors import BeampipeError
from beampipe_dagster.ledger.holds import Scope
from beampipe_dagster_tests.support.ledgers import SURVEY
from beampipe_dagster_tests.support.platforms import Stage


def hold(stage: Stage, scope: Scope, subject: str, hours: float | None = None) -> None:
    stage.platform.holds.hold(
        scope,
        subject,
        reason="maintenance",
        actor="ada",
        hours=hours,
        project_id=SURVEY if scope is Scope.SOURCE else "",
    )


def release(stage: Stage, scope: Scope, subject: str) -> None:
    project = SURVEY if scope is Scope.SOURCE else ""
    stage.platform.holds.release(scope, subject, reason="done", actor="ada", project_id=project)


@pytest.mark.parametrize(
    ("scope", "subject"), [(Scope.SOURCE, "A"), (Scope.PROJECT, SURVEY), (Scope.PROFILE, "local")]
)
def test_what_is_held_is_not_admitted_until_it_is_released(stage: Stage, scope: Scope, subject: str) -> None:
    stage.ready("A")
    hold(stage, scope, subject)
    assert stage.admit() == []
    (event,) = stage.events("profile.paused" if scope is Scope.PROFILE else f"{scope.value}.held")
    assert (event.actor, event.payload["reason"]) == ("ada", "maintenance")
    release(stage, scope, subject)
    assert len(stage.admit()) == 1


def test_a_held_source_says_who_holds_it_and_why(stage: Stage) -> None:
    stage.ready("A")
    hold(stage, Scope.SOURCE, "A")
    report = stage.platform.admission.tick(SURVEY)
    assert report.held == {"A": "held_by_operator"}
    kept = stage.source("A").hold
    assert kept is not None
    assert "ada" in str(kept["message"])
    assert "maintenance" in str(kept["message"])


@pytest.mark.parametrize("scope", [Scope.EXECUTION, Scope.PROJECT, Scope.PROFILE])
def test_an_admitted_execution_is_not_launched_while_it_is_held(stage: Stage, scope: Scope) -> None:
    execution = stage.admitted("A")
    subject = {Scope.EXECUTION: execution.id, Scope.PROJECT: SURVEY, Scope.PROFILE: "local"}[scope]
    hold(stage, scope, subject)
    assert stage.platform.launcher.due(SURVEY) == []
    release(stage, scope, subject)
    assert len(stage.platform.launcher.due(SURVEY)) == 1


def test_a_hold_is_over_when_its_time_is(stage: Stage) -> None:
    stage.ready("A")
    hold(stage, Scope.SOURCE, "A", hours=1)
    assert stage.admit() == []
    stage.clock.advance(3601)
    assert len(stage.admit()) == 1


def test_what_was_submitted_cannot_be_held(stage: Stage) -> None:
    execution = stage.submitted("A")
    with pytest.raises(BeampipeError) as caught:
        hold(stage, Scope.EXECUTION, execution.id)
    assert caught.value.code == "execution_submitted"


def test_a_hold_is_put_once_and_released_once(stage: Stage) -> None:
    hold(stage, Scope.PROJECT, SURVEY)
    with pytest.raises(BeampipeError) as twice:
        hold(stage, Scope.PROJECT, SURVEY)
    release(stage, Scope.PROJECT, SURVEY)
    with pytest.raises(BeampipeError) as again:
        release(stage, Scope.PROJECT, SURVEY)
    assert (twice.value.code, again.value.code) == ("already_held", "not_held")
