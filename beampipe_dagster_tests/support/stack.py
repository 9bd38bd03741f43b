"""A whole beampipe for tests, as ``beampipe up`` starts it: real daemon, code server, archive and DALiuGE.

Run as a program, it is a small ``beampipe up`` with chosen sources, to be interrupted by a test.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from http.client import HTTPConnection, HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NoReturn, Self

import httpx
import pytest
from rich.console import Console

from beampipe_dagster.assembly import Platform, assemble
from beampipe_dagster.clock import SystemClock
from beampipe_dagster.config.profile import DeploymentProfile
from beampipe_dagster.config.settings import Settings
from beampipe_dagster.ledger import executions, sources
from beampipe_dagster.ledger.execution_values import Execution
from beampipe_dagster.ledger.sources import NewSource, Source
from beampipe_dagster.ledger.tables import batch_execution_record as record
from beampipe_dagster.sandbox import demo, guard
from beampipe_dagster.sandbox.archive.demo import load_demo
from beampipe_dagster.sandbox.daliuge import DaliugePorts, find_dlg
from beampipe_dagster.sandbox.home import prepare_home
from beampipe_dagster.sandbox.ports import LOOPBACK
from beampipe_dagster.sandbox.process import ProcessSpec
from beampipe_dagster.sandbox.supervisor import Supervisor
from beampipe_dagster.sandbox.up import UpOptions, UpPorts, environment, run_up, stages
from beampipe_dagster_tests.support.dlg import free_ports

SURVEY = "wallaby_demo"
QUICK = {
    "BEAMPIPE_SCHEDULER_INTERVAL_SECONDS": "2",
    "BEAMPIPE_DIM_POLL_INTERVAL_SECONDS": "1",
    "BEAMPIPE_SHAPING_EXECUTION_MAX_IN_FLIGHT_RUNS": "4",
    "BEAMPIPE_LEASE_SECONDS": "5",
    "BEAMPIPE_DATABASE_URL": "",
}
"""Everything soon, because a test waits for it, and on files whatever the developer's shell says."""


def need_daliuge() -> Path:
    """DALiuGE's command; without it the test is skipped, or fails in CI."""
    command = find_dlg()
    if command is None:
        absent("DALiuGE is not installed (no BEAMPIPE_DLG_BIN, .venv-daliuge or dlg on PATH)")
    return command


def absent(reason: str) -> NoReturn:
    """A service is not there: skip, but never in CI."""
    if os.environ.get("CI", "").lower() in {"1", "true", "yes"}:
        pytest.fail(reason)
    pytest.skip(reason)


def new_options(home: Path) -> UpOptions:
    """Options on ports of their own."""
    web, code_server, archive, metrics, nm, dim, tm, events, rpc = free_ports(9)
    stack = DaliugePorts(nm=nm, dim=dim, tm=tm, events=events, rpc=rpc)
    ports = UpPorts(web=web, code_server=code_server, archive=archive, metrics=metrics, daliuge=stack)
    return UpOptions(home=home, ports=ports, dlg=need_daliuge())


def seed(
    platform: Platform, names: Collection[str] | None, profile: DeploymentProfile, *, survey: str = SURVEY
) -> None:
    """The demo survey with these of its sources; all when None."""
    platform.projects.put_profile(profile)
    platform.projects.add_project(demo.FILES / "wallaby_demo.yaml", actor="test")
    wanted = [s for s in load_demo().sources if names is None or s.source_identifier in names]
    with platform.ledger.read() as conn:
        given = [source.source_identifier for source in wanted]
        known = {row.source_identifier for row in sources.by_identifiers(conn, survey, given)}
    new = [
        NewSource(source.source_identifier, ra_deg=source.ra_deg, dec_deg=source.dec_deg)
        for source in wanted
        if source.source_identifier not in known
    ]
    if new:
        platform.registry.register(survey, new, actor="test")


@dataclass
class Stack:
    """A running beampipe."""

    options: UpOptions
    env: Mapping[str, str]
    supervisor: Supervisor | None = None
    problems: list[BaseException] = field(default_factory=list)

    @cached_property
    def platform(self) -> Platform:
        """The services on its ledger."""
        return assemble(Settings.from_env({**os.environ, **self.env}))

    def executions(self) -> list[Execution]:
        """All executions, in the order of their making."""
        with self.platform.ledger.read() as conn:
            return executions.select(conn, record.c.project_module == SURVEY, limit=1000)

    def sources(self) -> dict[str, Source]:
        """The registry by identifier."""
        with self.platform.ledger.read() as conn:
            return {row.source_identifier: row for row in sources.listing(conn, SURVEY, limit=1000)}

    def sessions(self) -> list[str]:
        """Sessions that the island manager knows."""
        answer = httpx.get(
            f"{self.options.ports.daliuge.manager_url}/api/sessions", timeout=20, trust_env=False
        )
        return sorted(str(session["sessionId"]) for session in answer.json())

    def graphql(self, query: str, **variables: Any) -> dict[str, Any]:
        """Ask the web server."""
        answer = httpx.post(
            f"{self.options.web_url}/graphql",
            json={"query": query, "variables": variables},
            timeout=60,
            trust_env=False,
        )
        data: dict[str, Any] = answer.json()
        assert "errors" not in data, data["errors"]
        return dict(data["data"])

    def until(self, condition: Callable[[], bool], what: str, *, seconds: float) -> None:
        """Wait for something that the stack does by itself; says where everything stands when it does not."""
        end = time.monotonic() + seconds
        while not condition():
            if self.problems:
                raise self.problems[0]
            assert time.monotonic() < end, f"{what} not reached after {seconds:g} s\n{self.story()}"
            time.sleep(0.2)

    def story(self) -> str:
        """Where every source and execution stands."""
        lines = [
            f"{run.partition_key} {run.status.value} {run.control_phase.value} {run.submission_state.value} "
            f"attempt {run.attempt} launches {run.launch_count}: {run.last_error or ''}"
            for run in self.executions()
        ]
        lines += [f"{name} {row.last_outcome} {row.hold or ''}" for name, row in self.sources().items()]
        logs = self.options.home / "logs"
        for name in ("daemon", "code-server"):
            log = logs / f"{name}.log"
            if log.exists():
                tail = log.read_text(errors="replace").splitlines()[-15:]
                lines += [f"-- {name}", *tail]
        return "\n".join(lines)

    def pids(self) -> dict[str, int]:
        """Process ids by name, of those that run now."""
        assert self.supervisor is not None
        return self.supervisor.pids()

    def kill(self, *names: str) -> None:
        """SIGKILL to these processes and to everything that they started, all at once."""
        assert self.supervisor is not None
        pids = self.pids()
        for name in names:
            with suppress(ProcessLookupError):
                os.killpg(pids[name], signal.SIGKILL)
        for name in names:
            guard.signal_marked(f"{self.supervisor._token}.{name}", signal.SIGKILL)


@contextmanager
def running_stack(
    home: Path,
    *,
    names: Collection[str] | None = None,
    without: Collection[str] = (),
    env: Mapping[str, str] | None = None,
    options: UpOptions | None = None,
    profile_for: UpOptions | None = None,
    more: Callable[[Sequence[ProcessSpec]], Sequence[ProcessSpec]] = lambda _specs: (),
) -> Iterator[Stack]:
    """Start a stack, and leave nothing of it running.

    Parameters
    ----------
    names
        Sources of the demo survey to register; all when None.
    without
        Processes that are not started.
    env
        Variables over those of ``beampipe up`` and :data:`QUICK`.
    profile_for
        Options whose DALiuGE the profile names, when that is another one.
    more
        Gets the last stage's processes and gives further ones.
    """
    options = options or new_options(home)
    settings = {**environment(options), **QUICK, **(env or {})}
    prepare_home(home, code_server=(LOOPBACK, options.ports.code_server), environment=settings)
    planned = [
        [replace(spec, env={**spec.env, **settings}) for spec in stage if spec.name not in without]
        for stage in stages(options)
    ]
    planned.append(list(more(planned[-1])))
    stack = Stack(options, settings)
    profile = demo.local_profile(profile_for or options)
    supervisor = stack.supervisor = Supervisor(
        stages=planned, log_dir=home / "logs", clock=SystemClock(), on_event=lambda _event: None
    )
    stop = threading.Event()

    def after_stage(index: int) -> None:
        if index == 0:
            seed(stack.platform, names, profile)

    def watch() -> None:
        try:
            supervisor.watch(stop)
        except BaseException as error:  # noqa: BLE001  # told by the test that waits
            stack.problems.append(error)

    with supervisor:
        supervisor.start(after_stage=after_stage)
        thread = threading.Thread(target=watch, name="supervisor", daemon=True)
        thread.start()
        try:
            yield stack
        finally:
            stop.set()
            thread.join(timeout=60)
            supervisor.hurry()  # what a test has looked at need not end tidily
            stack.platform.ledger.dispose()


class Gate:
    """A proxy in front of an island manager that can stop deployments on their way there or back.

    Attributes
    ----------
    deployed
        Sessions whose deployment was handed on, in order.
    held
        Set when a deployment is being held.
    client
        Process id of whoever asked for the deployment that is held.
    """

    def __init__(self, manager_port: int) -> None:
        self.manager_port = manager_port
        self.deployed: list[str] = []
        self.held = threading.Event()
        self.client: int | None = None
        self._hold: str | None = None
        self._release = threading.Event()
        self._server = _GateServer(self)
        self.port = int(self._server.server_address[1])

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.open()
        self._server.shutdown()
        self._server.server_close()

    def hold(self, where: str) -> None:
        """Hold the next deployment: its ``request`` before the manager sees it, or the ``response`` after."""
        self.held.clear()
        self._release.clear()
        self._hold = where

    def open(self) -> None:
        """Let everything through again; what was held gets no answer."""
        self._hold = None
        self._release.set()

    def passes(
        self, session_id: str, client_port: int, forward: Callable[[], tuple[int, bytes]]
    ) -> tuple[int, bytes] | None:
        """Hand a deployment on; ``None`` when it ends without an answer."""
        where = self._hold
        if where == "request":
            self._wait(client_port)
            return None
        self.deployed.append(session_id)
        answer = forward()
        if where == "response":
            self._wait(client_port)
            return None
        return answer

    def _wait(self, client_port: int) -> None:
        self.client = process_at(client_port)
        self.held.set()
        self._release.wait(120)


class _GateServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, gate: Gate) -> None:
        self.gate = gate
        super().__init__((LOOPBACK, 0), _GateHandler)


class _GateHandler(BaseHTTPRequestHandler):
    server: _GateServer

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the base's name
        """Be quiet."""

    def _forward(self, body: bytes) -> tuple[int, bytes]:
        connection = HTTPConnection(LOOPBACK, self.server.gate.manager_port, timeout=60)
        try:
            headers = {
                name: value
                for name, value in self.headers.items()
                if name.lower() not in {"host", "connection", "accept-encoding"}
            }
            connection.request(self.command, self.path, body or None, {**headers, "Connection": "close"})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = self.path.strip("/").split("/")
        try:
            if self.command == "POST" and parts[-1] == "deploy":
                answer = self.server.gate.passes(
                    parts[-2], self.client_address[1], lambda: self._forward(body)
                )
            else:
                answer = self._forward(body)
        except (OSError, HTTPException):
            answer = None
        if answer is None:
            self.close_connection = True
            return
        status, content = answer
        with suppress(ConnectionError):
            self.send_response(status)
            self.send_header("Content-Type", "application/json" if status == 200 else "text/html")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    do_GET = do_POST = do_DELETE = _handle  # noqa: N815  # the base's names


def process_at(local_port: int) -> int | None:
    """The process that has a connection from this port of the loopback interface."""
    inodes = set()
    for line in Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:]:
        fields = line.split()
        if int(fields[1].rpartition(":")[2], 16) == local_port:
            inodes.add(f"socket:[{fields[9]}]")
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if any(str(link.readlink()) in inodes for link in (entry / "fd").iterdir()):
                return int(entry.name)
    return None


def living(home: Path) -> dict[int, str]:
    """Processes that know this home by their environment or arguments: command by process id."""
    wanted = str(home).encode()
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            command = (entry / "cmdline").read_bytes()
            knows = wanted in command or wanted in (entry / "environ").read_bytes()
            if command and knows and int(entry.name) != os.getpid():  # a zombie has no command
                found[int(entry.name)] = command.replace(b"\0", b" ").decode(errors="replace")
    return found


def as_json(options: UpOptions) -> str:
    """The ports of options, for :func:`main`."""
    ports = options.ports
    stack = ports.daliuge
    return json.dumps(
        {
            "web": ports.web,
            "code_server": ports.code_server,
            "archive": ports.archive,
            "metrics": ports.metrics,
            "daliuge": [stack.nm, stack.dim, stack.tm, stack.events, stack.rpc],
        }
    )


def main(home: str, ports: str, *names: str) -> int:
    """``beampipe up`` with the demo survey and these of its sources."""
    given = json.loads(ports)
    stack = DaliugePorts(*given.pop("daliuge"))
    options = UpOptions(home=Path(home), ports=UpPorts(**given, daliuge=stack))

    def plant() -> None:
        platform = demo.platform_of(options)
        seed(platform, names, demo.local_profile(options))
        platform.ledger.dispose()

    return run_up(options, console=Console(width=200), seed=plant)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
