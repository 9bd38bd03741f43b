"""A whole beampipe: stopped by Ctrl-C without a trace, started again where it was, and on PostgreSQL."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from beampipe_dagster.clock import SystemClock
from beampipe_dagster.errors import ConfigError
from beampipe_dagster.ledger import tables
from beampipe_dagster.ledger.states import Status
from beampipe_dagster.sandbox.ports import LOOPBACK
from beampipe_dagster.sandbox.process import ProcessSpec
from beampipe_dagster.sandbox.supervisor import Supervisor
from beampipe_dagster.sandbox.up import UpOptions, environment, run_up, serves
from beampipe_dagster_tests.support.postgres import PostgresServer
from beampipe_dagster_tests.support.stack import (
    QUICK,
    SURVEY,
    Stack,
    as_json,
    living,
    new_options,
    running_stack,
)

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]

ROOT = Path(__file__).resolve().parents[2]
GOOD, BAD, EMPTY = "HIPASSJ1300-13", "HIPASSJ1324-19", "HIPASSJ1320-12"
WORKSPACE = """
query Workspace {
  workspaceOrError {
    ... on Workspace {
      locationEntries {
        name
        loadStatus
        locationOrLoadError {
          __typename
          ... on PythonError { message }
          ... on RepositoryLocation { repositories { assetGroups { groupName } } }
        }
      }
    }
  }
}
"""
OUTCOMES = """
query Outcomes($key: AssetKeyInput!) {
  assetNodeOrError(assetKey: $key) { ... on AssetNode { assetMaterializations(limit: 50) { partition } } }
}
"""


@contextmanager
def up(options: UpOptions, *names: str) -> Iterator[subprocess.Popen[str]]:
    """``beampipe up`` in a process of its own."""
    with subprocess.Popen(
        [
            sys.executable,
            "-m",
            "beampipe_dagster_tests.support.stack",
            str(options.home),
            as_json(options),
            *names,
        ],
        env={**os.environ, **QUICK},
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
                process.wait(timeout=60)


def interrupt(process: subprocess.Popen[str]) -> str:
    """Ctrl-C; what the process has printed."""
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    return output


def wait_up(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    lines: list[str] = []
    for line in process.stdout:
        lines.append(line)
        if "Everything is up" in line:
            return
    pytest.fail("it ended before it was up:\n" + "".join(lines))


def identities(stack: Stack) -> list[tuple[str, str, int, str | None]]:
    return [(run.id, run.status.value, run.attempt, run.daliuge_session_id) for run in stack.executions()]


def outcomes(stack: Stack) -> list[str]:
    node = stack.graphql(OUTCOMES, key={"path": [SURVEY, "execution_outcome"]})["assetNodeOrError"]
    return sorted({event["partition"] for event in node.get("assetMaterializations") or []})


def test_ctrl_c_leaves_nothing_and_a_second_start_goes_on_with_the_same_state(tmp_path: Path) -> None:
    options = new_options(tmp_path / "home")
    stack = Stack(options, {**environment(options), **QUICK})
    with up(options, GOOD, EMPTY) as first:
        wait_up(first)
        stack.until(
            lambda: (
                [run.status for run in stack.executions()] == [Status.COMPLETED]
                and stack.sources()[EMPTY].last_outcome == "no_datasets"
            ),
            "the first results",
            seconds=90,
        )
        stack.until(lambda: len(outcomes(stack)) == 1, "the outcome in Dagster", seconds=30)
        assert len(living(options.home)) >= 9
        said = interrupt(first)
    assert "nothing is left running" in said
    assert "Traceback" not in said
    assert living(options.home) == {}

    before = identities(stack)
    with up(options, GOOD, EMPTY) as second:
        wait_up(second)
        asked = stack.platform.clock.now()
        stack.platform.registry.mark_for_discovery(SURVEY, None, actor="test")
        stack.until(
            lambda: all((row.last_checked_at or asked) > asked for row in stack.sources().values()),
            "another look at every source",
            seconds=60,
        )
        stack.until(lambda: stack.sources()[GOOD].last_outcome == "unchanged", "no news", seconds=10)
        assert not stack.sources()[GOOD].workflow_run_pending
        assert identities(stack) == before
        assert stack.sessions() == []
        interrupt(second)
    assert living(options.home) == {}
    assert identities(stack) == before

    with plain_dagster(options) as location:
        assert location["loadStatus"] == "LOADED"
        assert location["locationOrLoadError"]["__typename"] == "RepositoryLocation", location
        (repository,) = location["locationOrLoadError"]["repositories"]
        assert [group["groupName"] for group in repository["assetGroups"]] == [SURVEY]
        assert outcomes(stack) == sorted(run.partition_key for run in stack.executions())


@contextmanager
def plain_dagster(options: UpOptions) -> Iterator[dict[str, Any]]:
    """``dagster dev -w workspace.yaml`` on the home; what its web server says about the code location."""
    kept = dict(
        line.split("=", 1)
        for line in (options.home / "env").read_text().splitlines()
        if line and not line.startswith("#")
    )
    assert kept["DAGSTER_HOME"] == str(options.home)
    where = ("-h", LOOPBACK, "-p", str(options.ports.web))
    spec = ProcessSpec(
        name="dagster-dev",
        argv=(sys.executable, "-m", "dagster", "dev", "-w", str(ROOT / "workspace.yaml"), *where),
        env={**environment(options), **QUICK},
        cwd=ROOT,
        ready=lambda: serves(f"{options.web_url}/server_info"),
        describe="dagster dev",
    )
    stack = Stack(options, {})
    with Supervisor(stages=[[spec]], log_dir=options.home / "logs", clock=SystemClock()) as supervisor:
        supervisor.start()
        entries = stack.graphql(WORKSPACE)["workspaceOrError"]["locationEntries"]
        (entry,) = entries
        yield entry


def test_a_taken_port_is_one_clear_error_and_nothing_is_started(tmp_path: Path) -> None:
    options = new_options(tmp_path / "home")
    with socket.create_server((LOOPBACK, options.ports.web)), pytest.raises(ConfigError) as caught:
        run_up(options)
    assert caught.value.code == "port_taken"
    assert str(options.ports.web) in caught.value.message
    assert f"pid {os.getpid()}" in caught.value.message
    assert "--port" in caught.value.message
    assert living(options.home) == {}


def second_daemon(home: Path) -> Any:
    """A twin of the last stage's daemon."""

    def more(specs: Sequence[ProcessSpec]) -> list[ProcessSpec]:
        (daemon,) = [spec for spec in specs if spec.name == "daemon"]
        log = home / "logs" / "daemon-2.log"

        def ready() -> bool:
            return log.exists() and b"configured with the following daemons" in log.read_bytes()

        return [replace(daemon, name="daemon-2", ready=ready)]

    return more


def test_on_postgresql_two_daemons_claim_each_source_and_submit_each_execution_once(
    tmp_path: Path, postgres_server: PostgresServer
) -> None:
    home = tmp_path / "home"
    names = {GOOD, "HIPASSJ1300-13B", "HIPASSJ1338-17", BAD, EMPTY}
    with (
        postgres_server.database(template=None) as url,
        running_stack(
            home,
            names=names,
            without={"webserver", "metrics"},
            env={"BEAMPIPE_DATABASE_URL": url, "BEAMPIPE_LEASE_SECONDS": "20"},
            more=second_daemon(home),
        ) as stack,
    ):
        stack.until(
            lambda: (
                len(stack.executions()) == len(names) - 1 and all(run.terminal for run in stack.executions())
            ),
            "the end of every execution",
            seconds=120,
        )
        ended = {run.source_identifiers[0]: run for run in stack.executions()}
        assert {name: run.status for name, run in ended.items()} == {
            name: Status.FAILED if name == BAD else Status.COMPLETED for name in names - {EMPTY}
        }
        assert {run.attempt for run in ended.values()} == {1}
        assert stack.sessions() == sorted(str(run.daliuge_session_id) for run in ended.values())
        with stack.platform.ledger.read() as conn:
            claimed = conn.execute(sa.select(sa.func.sum(tables.discovery_claims.c.source_count))).scalar()
            runs = conn.execute(sa.text("SELECT count(*) FROM runs")).scalar()
            events = conn.execute(sa.text("SELECT count(*) FROM event_logs")).scalar()
        assert claimed == len(names)
        assert runs is not None
        assert runs >= len(ended)
        assert events is not None
        assert events > 0
        assert not (home / "dagster").exists()
        assert not (home / "ledger.db").exists()
        assert all(pid in living(home) for name, pid in stack.pids().items() if name.startswith("daemon"))
    assert living(home) == {}
