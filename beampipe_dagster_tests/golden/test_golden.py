"""Known cases, replayed where they are present."""

from __future__ import annotations

import pytest

from beampipe_dagster.config.canonical import canonical_json
from beampipe_dagster_tests.golden.runner import (
    Verdict,
    built_areas,
    default_directory,
    load_area,
    replay_area,
    shortened,
)


@pytest.mark.parametrize("name", built_areas())
def test_every_known_case_of_the_area_passes_or_deviates_for_a_named_reason(name: str) -> None:
    directory = default_directory()
    path = directory / f"{name}.json"
    if not path.is_file():
        pytest.skip(f"no case file {path} (set BEAMPIPE_GOLDEN_DIR)")
    outcomes = replay_area(load_area(name), path, files=directory.resolve().parent)
    assert outcomes, f"{path} holds no case with a function"
    failures = []
    for outcome in outcomes:
        if outcome.verdict is Verdict.FAILED:
            expected, got = shortened(canonical_json(outcome.case.expected), outcome.got)
            failures.append(f"{outcome.case.name}: expected {expected} got {outcome.note or got}")
    assert not failures, "\n".join(failures)
