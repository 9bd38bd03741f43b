"""The real DALiuGE for tests: one stack a test process, on free ports, in a temporary directory."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from beampipe_dagster.sandbox.daliuge import DaliugePorts, find_dlg, processes
from beampipe_dagster.sandbox.process import ProcessSpec

START_SECONDS = 120.0
STOP_SECONDS = 4.0
TEST_PORTS = (15_000, 32_000)


@dataclass(frozen=True)
class DaliugeStack:
    """What a test needs to know about the running stack."""

    ports: DaliugePorts
    root: Path

    @property
    def translator_url(self) -> str:
        return self.ports.translator_url

    @property
    def manager_url(self) -> str:
        return self.ports.manager_url

    @property
    def node(self) -> str:
        return self.ports.node

    @property
    def island(self) -> str:
        return f"127.0.0.1:{self.ports.dim}"


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on; held together so that they differ.

    They are below those that the system gives to outgoing connections (from 32768 on): one of these could be taken
    between now and when a service wants it, and DALiuGE's managers hang for ever on a port that is taken.
    """
    sockets: list[socket.socket] = []
    try:
        while len(sockets) < count:
            one = socket.socket()
            try:
                one.bind(("127.0.0.1", random.randrange(*TEST_PORTS)))
            except OSError:
                one.close()
            else:
                sockets.append(one)
        return [int(one.getsockname()[1]) for one in sockets]
    finally:
        for one in sockets:
            one.close()


def start(spec: ProcessSpec) -> subprocess.Popen[bytes]:
    """Start one process in a group of its own; its output goes to ``<cwd>/<name>.out``."""
    with (spec.cwd / f"{spec.name}.out").open("ab") as out:
        return subprocess.Popen(
            spec.argv,
            cwd=spec.cwd,
            env={**os.environ, **spec.env},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def stop(running: list[subprocess.Popen[bytes]]) -> None:
    """Ask politely, then kill the groups: a node manager waits for its running applications."""
    for process in running:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
    end = time.monotonic() + STOP_SECONDS
    for process in running:
        with suppress(subprocess.TimeoutExpired):
            process.wait(max(0.1, end - time.monotonic()))
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_ready(specs: list[ProcessSpec], running: list[subprocess.Popen[bytes]]) -> None:
    """Wait until all serve; a process that ended or never serves fails with its own output."""
    end = time.monotonic() + START_SECONDS
    for spec, process in zip(specs, running, strict=True):
        while not spec.ready():
            if process.poll() is not None or time.monotonic() > end:
                output = (spec.cwd / f"{spec.name}.out").read_text(errors="replace")[-2000:]
                pytest.fail(f"{spec.describe} does not serve (exit {process.poll()}):\n{output}")
            time.sleep(0.1)


@pytest.fixture(scope="session")
def dlg(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaliugeStack]:
    """A running node manager, island manager and translator."""
    command = find_dlg()
    if command is None:
        reason = "DALiuGE is not installed (no BEAMPIPE_DLG_BIN, .venv-daliuge or dlg on PATH)"
        if os.environ.get("CI", "").lower() == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    nm, dim, tm, events, rpc = free_ports(5)
    ports = DaliugePorts(nm=nm, dim=dim, tm=tm, events=events, rpc=rpc)
    root = tmp_path_factory.mktemp("dlg")
    specs = processes(dlg=command, root=root, ports=ports)
    running: list[subprocess.Popen[bytes]] = []
    try:
        running.extend(start(spec) for spec in specs)
        wait_ready(specs, running)
        yield DaliugeStack(ports=ports, root=root)
    finally:
        stop(running)
