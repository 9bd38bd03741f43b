"""State words, exits and reasons."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beampipe_dagster.backends.slurm.reasons import Wait, waiting
from beampipe_dagster.backends.slurm.states import (
    Cause,
    ExitStatus,
    Job,
    JobState,
    Source,
    exit_status,
    job_state,
    scheduler_state,
    wait_status,
)
from beampipe_dagster.ledger.states import SchedulerState


@pytest.mark.parametrize("word", ["OUT_OF_ME+", "FAILED+", "PD", "", "+", "WEIRD"])
def test_a_word_that_was_cut_or_is_not_known_means_nothing(word: str) -> None:
    assert job_state(word) is JobState.UNKNOWN


@given(st.text(max_size=40))
def test_every_text_has_a_state_and_case_changes_nothing(text: str) -> None:
    assert job_state(text.lower()) is job_state(text.lower().upper())


@given(st.lists(st.sampled_from(["RUNNING", "PENDING", "FAILED", "TIMEOUT", "COMPLETED"]), min_size=1))
def test_of_several_words_the_highest_counts_in_any_order(words: list[str]) -> None:
    expected = max((job_state(word) for word in words), key=lambda state: state.rank)
    assert job_state("+".join(words)) is job_state("+".join(reversed(words))) is expected


@pytest.mark.parametrize("word", ["NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "PREEMPTED"])
def test_words_that_end_a_job_are_failures_of_the_ledger(word: str) -> None:
    assert scheduler_state(word) is SchedulerState.FAILED


@pytest.mark.parametrize(
    ("word", "cause"),
    [
        ("FAILED", Cause.PROGRAM),
        ("OUT_OF_MEMORY", Cause.RESOURCES),
        ("NODE_FAIL", Cause.INFRASTRUCTURE),
        ("CANCELLED", Cause.CANCELLED),
        ("COMPLETED", None),
        ("RUNNING", None),
    ],
)
def test_a_bad_end_has_a_cause(word: str, cause: Cause | None) -> None:
    assert Job("1", word, Source.SQUEUE).cause is cause


@given(st.integers(0, 255), st.integers(0, 64))
def test_both_ways_to_write_an_exit_agree(code: int, signal: int) -> None:
    assert wait_status(str(code << 8 | signal)) == exit_status(f"{code}:{signal}") == ExitStatus(code, signal)


def test_an_exit_that_cannot_be_read_is_none() -> None:
    assert exit_status(":5").code is None
    assert wait_status("x").code is None


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("Priority", Wait.QUEUE),
        (None, Wait.QUEUE),
        ("ReqNodeNotAvail, UnavailableNodes:n[1-4]", Wait.SITE),
        ("JobHeldAdmin", Wait.HELD),
        ("job requeued in held state", Wait.HELD),
        ("DependencyNeverSatisfied", Wait.NEVER),
        ("QOSMaxCpuPerJobLimit", Wait.NEVER),
        ("AssocMaxWallDurationPerJobLimit", Wait.NEVER),
        ("AssocGrpCpuLimit", Wait.QUEUE),
    ],
)
def test_a_reason_says_whose_turn_it_is(reason: str | None, kind: Wait) -> None:
    found = waiting(reason)
    assert found.kind is kind
    assert bool(found.hint) is (kind is not Wait.QUEUE)
    assert found.is_stuck is (kind in {Wait.HELD, Wait.NEVER})
