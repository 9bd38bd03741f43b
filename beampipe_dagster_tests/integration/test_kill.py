"""A submission that is killed in the middle ends in exactly one deployed session, whichever side of it was lost.

The daemon, the code server and the process that runs the execution are killed at a moment that a proxy in front
of the island manager holds still; their supervisor starts them again, and nobody helps.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from beampipe_dagster.ledger import executions, provenance
from beampipe_dagster.ledger.execution_values import Execution
from beampipe_dagster.ledger.sources import NewSource
from beampipe_dagster.ledger.states import Status, SubmissionState
from beampipe_dagster_tests.support.stack import SURVEY, Gate, Stack, living, new_options, running_stack

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]

BEFORE, AFTER = "HIPASSJ1300-13", "HIPASSJ1338-17"
RECOVERY_SECONDS = 75.0


@pytest.fixture(scope="module")
def gate_and_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Gate, Stack]]:
    """The demo survey on a stack whose island manager is reached through the gate; no source yet."""
    options = new_options(tmp_path_factory.mktemp("kill") / "home")
    with Gate(options.ports.daliuge.dim) as gate:
        behind = replace(options.ports.daliuge, dim=gate.port)
        through = replace(options, ports=replace(options.ports, daliuge=behind))
        with running_stack(
            options.home,
            names=(),
            without={"webserver", "metrics"},
            options=options,
            profile_for=through,
        ) as stack:
            yield gate, stack


def register(stack: Stack, source: str) -> None:
    stack.platform.registry.register(SURVEY, [NewSource(source)], actor="test")


def of(stack: Stack, source: str) -> Execution:
    (found,) = [run for run in stack.executions() if run.source_identifiers == [source]]
    return found


def kill_in_the_middle(gate: Gate, stack: Stack, source: str, where: str) -> Execution:
    """Hold the source's deployment, see that its intent is in the ledger, and kill everything that works on it."""
    gate.hold(where)
    register(stack, source)
    stack.until(gate.held.is_set, f"the deployment of {source}", seconds=60)
    intended = of(stack, source)
    assert intended.submission_state is SubmissionState.IN_FLIGHT
    assert intended.daliuge_session_id is not None
    assert intended.submission_deadline_at is not None
    assert intended.lease_token is not None
    assert intended.daliuge_session_id in stack.sessions()
    before = stack.pids()
    worker = gate.client
    assert worker is not None
    assert worker not in before.values(), "the run has a process of its own"
    assert worker in living(stack.options.home)
    stack.kill("daemon", "code-server")
    stack.until(lambda: worker not in living(stack.options.home), "the end of the worker", seconds=10)
    gate.open()
    stack.until(
        lambda: (
            {"daemon", "code-server"} <= stack.pids().keys()
            and not set(stack.pids().values()) & {before["daemon"], before["code-server"]}
        ),
        "new processes",
        seconds=30,
    )
    return intended


def completed(stack: Stack, source: str) -> Execution:
    stack.until(lambda: of(stack, source).terminal, f"the end of {source}", seconds=RECOVERY_SECONDS)
    run = of(stack, source)
    assert run.status is Status.COMPLETED, run.last_error
    return run


def sessions_of(stack: Stack, run: Execution) -> list[str]:
    return [name for name in stack.sessions() if run.id in name]


def told(stack: Stack, run: Execution) -> list[str]:
    with stack.platform.ledger.read() as conn:
        return [event.event_type for event in provenance.timeline(conn, execution_id=run.id)]


def test_killed_before_the_deployment_it_is_deployed_once_in_a_fresh_session(
    gate_and_stack: tuple[Gate, Stack],
) -> None:
    gate, stack = gate_and_stack
    intended = kill_in_the_middle(gate, stack, BEFORE, "request")
    run = completed(stack, BEFORE)
    assert run.id == intended.id
    assert run.attempt == 2
    assert run.daliuge_session_id != intended.daliuge_session_id
    assert sessions_of(stack, run) == [run.daliuge_session_id], "the one that never ran was removed"
    assert [name for name in gate.deployed if run.id in name] == [run.daliuge_session_id]
    assert told(stack, run).count("execution.submission_disproved") == 1
    assert told(stack, run).count("execution.submission_recorded") == 1


def test_killed_after_the_deployment_its_session_is_adopted_and_not_deployed_again(
    gate_and_stack: tuple[Gate, Stack],
) -> None:
    gate, stack = gate_and_stack
    intended = kill_in_the_middle(gate, stack, AFTER, "response")
    run = completed(stack, AFTER)
    assert run.id == intended.id
    assert run.attempt == 1
    assert run.daliuge_session_id == intended.daliuge_session_id
    assert sessions_of(stack, run) == [run.daliuge_session_id]
    assert [name for name in gate.deployed if run.id in name] == [run.daliuge_session_id]
    assert told(stack, run).count("execution.submission_recorded") == 1
    assert told(stack, run).count("execution.submission_disproved") == 0


def test_after_the_kills_every_source_has_one_execution_and_nothing_runs_again(
    gate_and_stack: tuple[Gate, Stack],
) -> None:
    _, stack = gate_and_stack
    before = {run.id: run.attempt for run in stack.executions()}
    time.sleep(5)  # several ticks of every clock
    assert {run.id: run.attempt for run in stack.executions()} == before
    assert len(before) == len(stack.sources())
    with stack.platform.ledger.read() as conn:
        assert executions.active_sources(conn, SURVEY) == set()
    assert len(stack.sessions()) == len(before)
