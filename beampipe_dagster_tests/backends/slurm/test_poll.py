"""The answers of squeue and sacct, put together; answers that are cut or strange."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beampipe_dagster.backends.slurm.frames import frames
from beampipe_dagster.backends.slurm.lookup import (
    checked_job_id,
    composed,
    lookup_command,
    parsed,
    read_lookup,
)
from beampipe_dagster.backends.slurm.poll import MOST_IDS, poll_command, read_poll
from beampipe_dagster.backends.slurm.sacct import Accounting, parse_sacct
from beampipe_dagster.backends.slurm.squeue import SEPARATOR, parse_squeue
from beampipe_dagster.backends.slurm.states import JobState, Source
from beampipe_dagster.errors import BackendUnavailableError, BeampipeError, InputError

NONCE = "n0nce4tests"
LINE = "\n"


def queued(number: str, state: str, name: str = "job", comment: str = "(null)") -> str:
    times = ["1700000000", "1700000001", "1700000002"]
    fields = [number, state, "None", "0", "0", "work", "n1", *times, "N/A", "N/A", name, comment]
    return "".join(f"{field}{SEPARATOR}" for field in fields) + "\x1e\n"


def accounted(number: str, state: str, name: str = "job") -> str:
    times = ["1700000000", "1700000001", "Unknown"]
    fields = [number, state, "0:0", "None", "work", "n1", *times, name, ""]
    return "".join(f"{field}{SEPARATOR}" for field in fields) + "\n"


def frame(name: str, text: str, code: int = 0) -> str:
    return f"\n@{NONCE}@{name}\n{text.removesuffix(LINE)}\n@{NONCE}@end {code}\n"


def test_the_queue_wins_over_accounts_that_already_see_an_end() -> None:
    output = frame("squeue", queued("1", "PENDING")) + frame("sacct", accounted("1", "PREEMPTED"))
    assert read_poll(output, ["1"], nonce=NONCE).jobs["1"].state is JobState.PENDING


def test_a_job_that_nobody_knows_is_absent_only_when_both_answered() -> None:
    output = frame("squeue", "") + frame("sacct", accounted("2", "COMPLETED"))
    answer = read_poll(output, ["1", "2"], nonce=NONCE)
    assert (answer.absent, answer.unknown, answer.jobs["2"].source) == (
        frozenset({"1"}),
        frozenset(),
        Source.SACCT,
    )
    output = frame("squeue", "") + frame("sacct", "sacct: error: Problem talking to the database", 1)
    answer = read_poll(output, ["1"], nonce=NONCE)
    assert (answer.absent, answer.unknown) == (frozenset(), frozenset({"1"}))
    assert answer.accounting is Accounting.UNAVAILABLE


@given(st.integers(0, 400))
def test_an_answer_that_is_cut_anywhere_is_an_error_and_never_an_absence(length: int) -> None:
    whole = frame("squeue", queued("1", "RUNNING")) + frame("sacct", accounted("2", "COMPLETED"))
    cut = whole[: min(length, len(whole) - 2)]
    with pytest.raises(BackendUnavailableError):
        read_poll(cut, ["1", "2"], nonce=NONCE)


@given(st.text(max_size=60), st.text(max_size=60))
def test_no_name_or_comment_changes_what_is_read_of_another_job(name: str, comment: str) -> None:
    clean = name.replace(SEPARATOR, "")
    jobs = parse_squeue(queued("1", "RUNNING", clean, comment.replace(SEPARATOR, "")) + queued("2", "FAILED"))
    assert {number: job.state for number, job in jobs.items()} == {
        "1": JobState.RUNNING,
        "2": JobState.FAILED,
    }
    assert jobs["1"].name == clean


@given(st.text(max_size=200))
def test_no_text_makes_the_parsers_raise_anything_else(text: str) -> None:
    for read in (parse_squeue, parse_sacct):
        try:
            read(text)
        except BeampipeError as error:
            assert error.hint  # noqa: PT017  # an answer is also fine


def test_warnings_beside_rows_are_no_rows() -> None:
    jobs = parse_squeue(f"squeue: warning: slow\n{queued('7', 'RUNNING')}bye\n")
    assert list(jobs) == ["7"]


def test_a_login_shell_that_talks_is_not_heard() -> None:
    assert frames(f"hello\n@other@squeue\n{frame('squeue', 'x')}", NONCE)["squeue"].text == "x\n"


def test_a_queue_that_fails_is_an_error() -> None:
    output = frame("squeue", "slurm_load_jobs error: Unable to contact slurm controller", 1)
    with pytest.raises(BackendUnavailableError, match="Unable to contact"):
        read_poll(output, ["1"], nonce=NONCE)


@pytest.mark.parametrize("number", ["1_2", "1+0", "1;rm -rf /", "", "$(x)", "\u0663"])
def test_nothing_but_numbers_reaches_the_shell(number: str) -> None:
    with pytest.raises(InputError):
        checked_job_id(number)
    with pytest.raises(InputError):
        poll_command([number], nonce=NONCE)


def test_the_longest_question_is_far_below_what_a_shell_takes() -> None:
    ids = [str(10**10 + number) for number in range(MOST_IDS)]
    assert len(poll_command(ids, nonce=NONCE)) < 64 * 1024
    with pytest.raises(InputError, match="901"):
        poll_command([*ids, "1"], nonce=NONCE)


def test_only_the_exact_name_is_found_and_silence_needs_both() -> None:
    queue, accounts = (
        queued("1", "RUNNING", "bp-1") + queued("2", "RUNNING", "bp-11"),
        accounted("1", "PENDING"),
    )
    found = read_lookup(frame("squeue", queue) + frame("sacct", accounts), "bp-1", nonce=NONCE)
    assert ([*found.jobs], found.is_complete) == (["1"], True)
    assert found.jobs["1"].source is Source.SQUEUE
    found = read_lookup(frame("squeue", "") + frame("sacct", "down", 1), "bp-1", nonce=NONCE)
    assert ([*found.jobs], found.is_complete) == ([], False)


def test_the_search_in_the_accounts_begins_a_day_before_the_intent() -> None:
    command = lookup_command("bp-1", since=datetime(2026, 5, 2, 12, tzinfo=UTC), nonce=NONCE)
    assert "--starttime=2026-05-01T12:00:00" in command


@given(st.from_regex(r"[A-Za-z0-9._-]{1,60}", fullmatch=True), st.integers(0, 10**12))
def test_a_composed_id_comes_apart_again(session: str, job: int) -> None:
    found = parsed(composed(session, str(job), "/scratch/a|b"))
    assert (found.session, found.job, found.directory) == (session, str(job), "/scratch/a|b")
