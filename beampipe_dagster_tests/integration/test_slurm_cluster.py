"""What a real Slurm says, read by the parsers: states, reasons, accounts, faults, and submitting once."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest

from beampipe_dagster.backends.slurm.lookup import Named, lookup_command, read_lookup
from beampipe_dagster.backends.slurm.poll import PollAnswer, poll_command, read_poll
from beampipe_dagster.backends.slurm.reasons import Wait
from beampipe_dagster.backends.slurm.sacct import Accounting
from beampipe_dagster.backends.slurm.sbatch import FoundBy, Submitted, read_submit, submit_command
from beampipe_dagster.backends.slurm.states import Cause, Job, JobState, Source
from beampipe_dagster.errors import BackendError, BackendUnavailableError, Retry, SubmissionUncertainError
from beampipe_dagster_tests.support.slurm import (
    ACCOUNTING,
    CONTROLLER,
    Cluster,
    slurm_cluster,
    slurm_without_accounting,
)

__all__ = ["slurm_cluster", "slurm_without_accounting"]

pytestmark = pytest.mark.integration

NONCE = "n0nce4tests"


def look(cluster: Cluster, *ids: str) -> PollAnswer:
    done = cluster.shell(poll_command(ids, nonce=NONCE))
    return read_poll(f"Welcome to the login node\n{done.stdout}", ids, nonce=NONCE)


def wait_for(cluster: Cluster, number: str, rule: Callable[[Job], bool], *, seconds: float = 40.0) -> Job:
    end = time.monotonic() + seconds
    while True:
        job = look(cluster, number).jobs.get(number)
        if job is not None and rule(job):
            return job
        assert time.monotonic() < end, job
        time.sleep(0.2)


def ended(job: Job) -> bool:
    return job.state.is_terminal


def submit(cluster: Cluster, name: str, *options: str, seconds: int = 60) -> Submitted:
    script = cluster.directory / f"{name}.sh"
    script.write_text("#!/bin/bash\nsleep 60\n")
    words = ["sbatch", "--parsable", f"--job-name={name}", "-o", "/dev/null", *options, str(script)]
    directory = str(cluster.directory / "receipts")
    command = submit_command(words, name=name, directory=directory, nonce=NONCE, seconds=seconds)
    return read_submit(cluster.shell(command).stdout, name=name, nonce=NONCE)


def find(cluster: Cluster, name: str) -> Named:
    command = lookup_command(name, since=datetime.now(UTC), nonce=NONCE)
    return read_lookup(cluster.shell(command).stdout, name, nonce=NONCE)


def test_ends_are_told_with_exit_code_signal_and_cause(slurm_cluster: Cluster) -> None:
    scripts = {"exit 0": (0, 0), "exit 7": (7, 0), "kill -9 $$": (0, 9)}
    ids = {slurm_cluster.submit(script): expected for script, expected in scripts.items()}
    for number, (code, signal) in ids.items():
        job = wait_for(slurm_cluster, number, ended)
        assert job.exit is not None
        assert (job.exit.code, job.exit.signal, job.source) == (code, signal, Source.SQUEUE)
        assert (job.state, job.cause) in {(JobState.COMPLETED, None), (JobState.FAILED, Cause.PROGRAM)}
        assert job.started is not None
        assert job.ended is not None


def test_names_and_comments_that_look_like_rows_confuse_nothing(slurm_cluster: Cluster) -> None:
    number = slurm_cluster.submit("sleep 60", "-H -J 'a|b c;d' --comment='1|FAILED|x'")
    job = look(slurm_cluster, number).jobs[number]
    assert (job.name, job.comment, job.state) == ("a|b c;d", "1|FAILED|x", JobState.PENDING)
    assert not job.is_part
    slurm_cluster.said(f"scancel {number}")
    assert wait_for(slurm_cluster, number, ended).cause is Cause.CANCELLED


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ("-H", Wait.HELD),
        ("-p down", Wait.SITE),
        ("-N 99", Wait.NEVER),
        ("-p short -t 99:00", Wait.NEVER),
        ("-b now+1hour", Wait.QUEUE),
    ],
)
def test_a_pending_job_says_whose_turn_it_is(slurm_cluster: Cluster, options: str, kind: Wait) -> None:
    number = slurm_cluster.submit("exit 0", options)
    job = wait_for(slurm_cluster, number, lambda one: one.waiting is not None and one.waiting.kind is kind)
    assert job.state is JobState.PENDING
    slurm_cluster.said(f"scancel {number}")


def test_a_job_that_waits_for_a_failed_one_is_flagged(slurm_cluster: Cluster) -> None:
    first = slurm_cluster.submit("exit 1")
    second = slurm_cluster.submit("exit 0", f"-d afterok:{first}")
    job = wait_for(slurm_cluster, second, lambda one: one.waiting is not None and one.waiting.is_stuck)
    assert job.reason == "DependencyNeverSatisfied"
    slurm_cluster.said(f"scancel {second}")


def test_elements_of_arrays_are_marked(slurm_cluster: Cluster) -> None:
    number = slurm_cluster.submit("sleep 60", "-H --array=0-3")
    assert look(slurm_cluster, number).jobs[number].is_part
    slurm_cluster.said(f"scancel {number}")


def test_a_requeued_job_waits_again_and_says_so(slurm_cluster: Cluster) -> None:
    number = slurm_cluster.submit("sleep 60", "--requeue")
    wait_for(slurm_cluster, number, lambda job: job.state is JobState.RUNNING)
    slurm_cluster.said(f"scontrol requeue {number}")
    job = wait_for(slurm_cluster, number, lambda one: one.restarts == 1)
    assert not job.state.is_terminal
    slurm_cluster.said(f"scancel {number}")


def test_a_job_that_left_the_queue_is_told_by_the_accounts_and_a_stranger_is_absent(
    slurm_cluster: Cluster,
) -> None:
    number = slurm_cluster.submit("exit 3")
    job = wait_for(slurm_cluster, number, lambda one: one.source is Source.SACCT, seconds=60)
    assert (job.state, job.exit and job.exit.code) == (JobState.FAILED, 3)
    answer = look(slurm_cluster, number, "999999")
    assert (answer.absent, answer.accounting) == (frozenset({"999999"}), Accounting.ANSWERED)
    with slurm_cluster.without(ACCOUNTING):
        answer = look(slurm_cluster, number)
        assert (answer.unknown, answer.absent) == (frozenset({number}), frozenset())
        assert answer.accounting is Accounting.UNAVAILABLE


def test_without_accounting_nothing_is_concluded_from_silence(slurm_without_accounting: Cluster) -> None:
    number = slurm_without_accounting.submit("exit 0")
    assert wait_for(slurm_without_accounting, number, ended).state is JobState.COMPLETED
    answer = look(slurm_without_accounting, number, "999999")
    assert (answer.unknown, answer.absent) == (frozenset({"999999"}), frozenset())
    assert answer.accounting is Accounting.DISABLED


def test_a_controller_that_is_away_is_no_answer(slurm_cluster: Cluster) -> None:
    with slurm_cluster.without(CONTROLLER), pytest.raises(BackendUnavailableError) as caught:
        look(slurm_cluster, "1")
    assert (caught.value.code, caught.value.retry) == ("scheduler_unavailable", Retry.LATER)


def test_five_submissions_at_once_make_one_job(slurm_cluster: Cluster) -> None:
    name = slurm_cluster.name()
    with ThreadPoolExecutor(5) as pool:
        found = list(pool.map(lambda _: submit(slurm_cluster, name), range(5)))
    (number,) = {one.job for one in found}
    assert sorted(one.found_by for one in found).count(FoundBy.SBATCH) == 1
    assert all(one.is_released for one in found)
    assert list(find(slurm_cluster, name).jobs) == [number]
    slurm_cluster.said(f"scancel {number}")


def test_a_lost_receipt_is_found_in_the_queue(slurm_cluster: Cluster) -> None:
    name = slurm_cluster.name()
    first = submit(slurm_cluster, name)
    Path(slurm_cluster.directory, "receipts", f"{name}.receipt").unlink()
    assert submit(slurm_cluster, name) == Submitted(first.job, FoundBy.QUEUE, is_released=True)
    slurm_cluster.said(f"scancel {first.job}")


def test_a_refused_request_is_refused_for_good(slurm_cluster: Cluster) -> None:
    with pytest.raises(BackendError) as caught:
        submit(slurm_cluster, slurm_cluster.name(), "-p", "nosuch")
    assert (caught.value.code, caught.value.retry) == ("sbatch_refused", Retry.NEVER)


def test_a_hung_controller_makes_the_submission_uncertain_and_the_job_is_held(slurm_cluster: Cluster) -> None:
    name = slurm_cluster.name()
    script = slurm_cluster.directory / f"{name}.sh"
    script.write_text("#!/bin/bash\nsleep 60\n")
    # The controller hangs between the look and the submission: setup is what runs there.
    pid = slurm_cluster.children[CONTROLLER].pid
    command = submit_command(
        ["sbatch", "--parsable", f"--job-name={name}", "-o", "/dev/null", str(script)],
        name=name,
        directory=str(slurm_cluster.directory / "receipts"),
        nonce=NONCE,
        setup=f"kill -STOP {pid}",
        seconds=30,
    )
    try:
        with pytest.raises(SubmissionUncertainError):
            read_submit(slurm_cluster.shell(command).stdout, name=name, nonce=NONCE)
    finally:
        slurm_cluster.shell(f"kill -CONT {pid}")
    slurm_cluster.wait_for_controller()
    jobs = find(slurm_cluster, name).jobs
    assert [job.waiting and job.waiting.kind for job in jobs.values()] == [Wait.HELD]
    (number,) = jobs
    assert submit(slurm_cluster, name) == Submitted(number, FoundBy.QUEUE, is_released=True)
    slurm_cluster.said(f"scancel {number}")
