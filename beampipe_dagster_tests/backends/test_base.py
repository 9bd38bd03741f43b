from __future__ import annotations

import dataclasses

import pytest

from beampipe_dagster.backends import base
from beampipe_dagster.backends.daliuge import states
from beampipe_dagster.clock import ManualClock


def test_the_axis_has_the_ledgers_states() -> None:
    assert set(base.DaliugeState) == {
        "not_created",
        "pristine",
        "building",
        "deploying",
        "running",
        "finished",
        "cancelled",
        "failed",
        "unknown",
        "unreachable",
    }
    assert base.DaliugeState is states.DaliugeState


def test_an_observation_cannot_be_changed() -> None:
    seen = base.SessionObservation(
        session_id="s",
        state=base.DaliugeState.RUNNING,
        raw=3,
        drops=base.DropCounts(total=1, running=1),
        failed_drops=(),
        observed_at=ManualClock().now(),
        reason=None,
    )
    with pytest.raises(dataclasses.FrozenInstanceError):
        seen.state = base.DaliugeState.FINISHED  # type: ignore[misc]
