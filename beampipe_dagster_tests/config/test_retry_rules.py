"""`automation.execution.retry` and `weight` of a project file."""

from __future__ import annotations

import json
from typing import Any

import pytest

from beampipe_dagster.config.project import ExecutionAutomation, RetryRules
from beampipe_dagster.config.validation import validate_project
from beampipe_dagster_tests.support.platforms import survey_spec


def problems(**execution: Any) -> list[str]:
    report = validate_project(json.dumps(survey_spec("0" * 64, execution=execution)))
    return [item.code for item in report.errors]


def test_a_file_that_does_not_use_them_keeps_its_canonical_form() -> None:
    assert {"retry", "weight"} & ExecutionAutomation(enabled=True).as_json().keys() == set()
    used = ExecutionAutomation(enabled=True, retry=RetryRules(max_attempts=0), weight=2).as_json()
    assert (used["retry"], used["weight"]) == ({"max_attempts": 0}, 2)


@pytest.mark.parametrize(
    "execution",
    [{}, {"retry": {}}, {"retry": {"max_attempts": 0}}, {"retry": {"factor": 1, "first_delay_minutes": 0.5}}],
)
def test_what_is_sensible_is_taken(execution: dict[str, Any]) -> None:
    assert problems(**execution) == []


@pytest.mark.parametrize(
    "execution",
    [
        {"retry": {"max_attempts": -1}},
        {"retry": {"max_attempts": 101}},
        {"retry": {"factor": 0.5}},
        {"retry": {"first_delay_minutes": -1}},
        {"retry": {"attempts": 1}},
        {"weight": 0},
    ],
)
def test_what_is_not_is_refused(execution: dict[str, Any]) -> None:
    assert problems(**execution) != []
