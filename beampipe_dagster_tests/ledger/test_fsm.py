from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beampipe_dagster.errors import ConflictError
from beampipe_dagster.ledger.fsm import StatusFields, StatusPatch, allows, apply
from beampipe_dagster.ledger.states import LOCKED, TERMINAL, ExecutionPhase, Status
from beampipe_dagster_tests.support.ledgers import START

LATER = START + timedelta(hours=1)
TABLE = {
    "pending": {"running", "cancelled", "failed"},
    "running": {"awaiting_scheduler", "completed", "not_submitted", "failed", "cancelled"},
    "awaiting_scheduler": {"running", "completed", "failed", "cancelled"},
    "not_submitted": {"running", "cancelled"},
    "failed": {"retrying", "running", "cancelled"},
    "retrying": {"running", "failed", "cancelled"},
    "completed": set(),
    "cancelled": set(),
}


@pytest.mark.parametrize("current", Status)
@pytest.mark.parametrize("target", Status)
def test_the_moves_are_those_of_the_table(current: Status, target: Status) -> None:
    assert allows(current, target) == (target.value in TABLE[current.value])


@given(st.sampled_from(sorted(LOCKED)), st.lists(st.sampled_from(Status), max_size=8))
def test_no_path_leaves_completed_or_cancelled(start: Status, targets: list[Status]) -> None:
    fields = StatusFields(start)
    for target in targets:
        fields = apply(fields, StatusPatch(status=target), now=START)
        assert fields.status is start


@given(st.lists(st.sampled_from(Status), max_size=12))
def test_every_path_goes_along_the_table_and_stamps_its_times_once(targets: list[Status]) -> None:
    fields = StatusFields(Status.PENDING)
    for number, target in enumerate(targets):
        now = START + timedelta(seconds=number)
        before = fields
        legal = target is before.status or allows(before.status, target) or before.status in LOCKED
        if not legal:
            with pytest.raises(ConflictError):
                apply(fields, StatusPatch(status=target), now=now)
            continue
        fields = apply(fields, StatusPatch(status=target), now=now)
        assert fields.status is before.status or allows(before.status, fields.status)
        assert fields.started_at == (before.started_at or (now if fields.status is Status.RUNNING else None))
        if before.completed_at is not None:
            assert fields.completed_at == before.completed_at
        assert (fields.completed_at is not None) >= (fields.status in TERMINAL)
        retried = before.status is Status.FAILED and fields.status is Status.RETRYING
        assert fields.retry_count == before.retry_count + retried


def test_a_refused_move_names_where_it_could_go() -> None:
    with pytest.raises(ConflictError) as caught:
        apply(StatusFields(Status.PENDING), StatusPatch(status=Status.COMPLETED), now=START)
    assert caught.value.hint == "from pending it can go to: cancelled, failed, running"
    assert caught.value.details == {"from": "pending", "to": "completed"}


@pytest.mark.parametrize("status", Status)
def test_staying_is_always_accepted_and_changes_no_time(status: Status) -> None:
    fields = StatusFields(status, started_at=START, completed_at=START)
    after = apply(fields, StatusPatch(status=status, error="why"), now=LATER)
    assert (after.started_at, after.completed_at, after.last_error) == (START, START, "why")


def test_late_evidence_on_a_locked_row_keeps_the_status_and_applies_the_rest() -> None:
    fields = StatusFields(Status.CANCELLED)
    after = apply(fields, StatusPatch(status=Status.FAILED, error="too late"), now=START)
    assert (after.status, after.last_error) == (Status.CANCELLED, "too late")


@pytest.mark.parametrize(
    ("current", "target"),
    [
        (Status.FAILED, Status.RETRYING),
        (Status.FAILED, Status.RUNNING),
        (Status.RETRYING, Status.RUNNING),
        (Status.RUNNING, Status.COMPLETED),
    ],
)
def test_success_and_a_new_start_clear_an_error_that_they_overtake(current: Status, target: Status) -> None:
    fields = StatusFields(current, last_error="old")
    assert apply(fields, StatusPatch(status=target), now=START).last_error is None
    assert apply(fields, StatusPatch(status=target, error="new"), now=START).last_error == "new"


def test_an_end_clears_the_phase_unless_it_is_given() -> None:
    fields = StatusFields(Status.RUNNING, execution_phase=ExecutionPhase.SUBMIT)
    assert apply(fields, StatusPatch(status=Status.FAILED), now=START).execution_phase is None
    given_phase = StatusPatch(status=Status.FAILED, execution_phase=ExecutionPhase.SUBMIT)
    assert apply(fields, given_phase, now=START).execution_phase is ExecutionPhase.SUBMIT
    assert apply(fields, StatusPatch(error="x"), now=START).execution_phase is ExecutionPhase.SUBMIT
