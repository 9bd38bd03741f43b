"""Several daemons, in processes of their own, on one ledger: everything happens once."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import sqlalchemy as sa

from beampipe_dagster.clock import SystemClock
from beampipe_dagster.errors import BeampipeError
from beampipe_dagster.ids import UuidIds
from beampipe_dagster.ledger.engine import Ledger
from beampipe_dagster.ledger.execution_values import Execution
from beampipe_dagster.ledger.states import Status
from beampipe_dagster.ledger.tables import discovery_claims
from beampipe_dagster_tests.support.archives import FakeArchives
from beampipe_dagster_tests.support.fake_daliuge import FINISHED
from beampipe_dagster_tests.support.ledgers import SURVEY, opened
from beampipe_dagster_tests.support.platforms import STEPS, Stage, make_platform

NAMES = [f"S{number:02}" for number in range(8)]
SECONDS = 60.0
LEASE_SECONDS = 2.0


def daemon(url: str, home: str) -> None:
    """What Dagster's sensors and runs do, over and over, until the process is ended."""
    clock = SystemClock()
    archives = FakeArchives(clock=clock)
    for name in NAMES:
        archives.deposit(name, 7)
    with opened(url) as ledger:
        platform = make_platform(
            ledger,
            home=Path(home),
            clock=clock,
            archives=archives,
            ids=UuidIds(),
            lease_seconds=LEASE_SECONDS,
            poll_interval_seconds=0.1,
        )
        while True:
            for claim in platform.discovery.tick(SURVEY).claims:
                attempt(partial(platform.discovery.run_batch, claim.token))
            platform.admission.tick(SURVEY)
            for launch in platform.launcher.due(SURVEY):
                holder = platform.ids.new()
                for step in STEPS:
                    service = platform.submission if step == "backend_run" else platform.steps
                    attempt(partial(getattr(service, step), launch.execution.id, holder=holder))
            attempt(platform.poll.tick)
            time.sleep(0.05)


def attempt(action: Callable[[], object]) -> None:
    """Do it; what is refused or waits is done again, or by somebody else. A defect ends the process."""
    try:
        action()
    except BeampipeError as error:
        if error.code == "internal":
            raise


def start(ledger: Ledger, home: Path, number: int) -> list[BaseProcess]:
    context = multiprocessing.get_context("spawn")
    processes: list[BaseProcess] = [
        context.Process(target=daemon, args=(ledger.url, str(home)), daemon=True) for _ in range(number)
    ]
    for process in processes:
        process.start()
    return processes


def stop(processes: list[BaseProcess]) -> None:
    for process in processes:
        process.kill()
        process.join()


def let_sessions_finish(stage: Stage) -> int:
    with stage.daliuge.lock:
        for name in stage.daliuge.ever_started & set(stage.daliuge.sessions):
            stage.daliuge.sessions[name].state = FINISHED
        return len(stage.daliuge.ever_started)


def wait(stage: Stage) -> list[Execution]:
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        let_sessions_finish(stage)
        done = stage.executions()
        if len(done) >= len(NAMES) and all(one.terminal for one in done):
            return done
        time.sleep(0.1)
    return stage.executions()


def assert_everything_happened_once(stage: Stage, done: list[Execution]) -> None:
    assert Counter(one.source_identifiers[0] for one in done) == Counter(NAMES)
    assert [one.status for one in done] == [Status.COMPLETED] * len(NAMES), [one.last_error for one in done]
    assert stage.daliuge.ever_started == {one.daliuge_session_id for one in done}
    changed = Counter(event.source_identifier for event in stage.events("discovery.changed"))
    assert changed == Counter(NAMES)
    ended = Counter(event.execution_id for event in stage.events("execution.completed"))
    assert ended == Counter(one.id for one in done)
    assert len(stage.told("archive_metadata")) == len(NAMES)
    assert len(stage.told("execution_outcome")) == 2 * len(NAMES)


def test_two_daemons_on_one_ledger_do_everything_once(stage: Stage) -> None:
    stage.register(*NAMES)
    processes = start(stage.ledger, stage.home, 2)
    try:
        done = wait(stage)
        alive = [process.is_alive() for process in processes]
    finally:
        stop(processes)
    assert alive == [True, True]
    assert_everything_happened_once(stage, done)
    assert stage.daliuge.deploys() == len(NAMES)
    with stage.ledger.read() as conn:
        claimed = conn.execute(sa.select(sa.func.sum(discovery_claims.c.source_count))).scalar_one()
    assert claimed == len(NAMES)
    assert {one.attempt for one in done} == {1}


@pytest.mark.parametrize("started", [0, 3])
def test_a_daemon_that_is_killed_anywhere_leaves_nothing_undone_and_nothing_twice(
    stage: Stage, started: int
) -> None:
    stage.register(*NAMES)
    first = start(stage.ledger, stage.home, 1)
    try:
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            begun = len(stage.daliuge.ever_started) if started else len(stage.events("discovery.changed"))
            if begun > started:
                break
            time.sleep(0.002)
        pid = first[0].pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        first += start(stage.ledger, stage.home, 1)
        done = wait(stage)
    finally:
        stop(first)
    assert_everything_happened_once(stage, done)
