"""A world in one process in which anything may go wrong: processes that die anywhere, services that lie.

The platform's own services run in it, on a real database, and speak HTTP to a DALiuGE that keeps its sessions; only
the sockets are missing, so that thousands of stories are told in the time of one. A process dies by an exception that
nothing catches, at a commit or a request that was chosen before; from then on nothing that it still tries is done.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from copy import deepcopy
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, Final

import httpx
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from beampipe_dagster.assembly import Platform
from beampipe_dagster.backends.base import Backend
from beampipe_dagster.backends.daliuge.manager import IslandManager
from beampipe_dagster.backends.daliuge.rest import RestBackend
from beampipe_dagster.backends.daliuge.translator import Translator
from beampipe_dagster.backends.provider import BackendProvider
from beampipe_dagster.clock import Clock, ManualClock
from beampipe_dagster.config.profile import DeploymentProfile
from beampipe_dagster.errors import BeampipeError
from beampipe_dagster.ids import SequenceIds
from beampipe_dagster.ledger import executions
from beampipe_dagster.ledger.engine import Ledger
from beampipe_dagster.ledger.execution_values import Execution
from beampipe_dagster.ledger.states import SubmissionState
from beampipe_dagster_tests.support import fake_daliuge
from beampipe_dagster_tests.support.archives import FakeArchives
from beampipe_dagster_tests.support.fake_daliuge import (
    DEPLOYING,
    FINISHED,
    HTML_500,
    RUNNING,
    FakeSession,
    RefusedError,
    node_error,
)
from beampipe_dagster_tests.support.ledgers import SURVEY
from beampipe_dagster_tests.support.platforms import STEPS, IngestingDaliuge, Stage, make_platform

LIVE: Final = frozenset({DEPLOYING, RUNNING})
FAULTS: Final = (
    "refused",
    "html",
    "done_html",
    "cut",
    "done_cut",
    "timeout",
    "done_timeout",
    "node_down",
    "done_555",
)
"""How a request fails: not sent, not done, or done; and only for the first of them can a client tell."""

DEFECTS: Final = frozenset({"internal", "ledger_unavailable"})
"""Codes of what never happens here by itself: the ledger is always there."""

FIRST, SECOND = "A", "B"
SOURCES: Final = (FIRST, SECOND)
MANAGER_PORT, TRANSLATOR_PORT = 8001, 8084


class ProcessDied(BaseException):
    """The process ends here; nobody may handle it, and nothing of it goes on."""


class Fuse:
    """Decides where a process dies.

    Attributes
    ----------
    left
        Points to pass before it dies; None when it does not.
    dead
        Whether it is.
    """

    def __init__(self) -> None:
        self.left: int | None = None
        self.dead = False

    def point(self, _name: str) -> None:
        """A place where a process may die."""
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                self.dead = True
        if self.dead:
            raise ProcessDied


class MortalLedger(Ledger):
    """The ledger as one process has it: it may die before and after each commit."""

    def __init__(self, ledger: Ledger, fuse: Fuse) -> None:
        self.url = ledger.url
        self.engine = ledger.engine
        self._fuse = fuse

    @contextmanager
    def begin(self) -> Iterator[Connection]:
        if self._fuse.dead:
            raise ProcessDied
        with super().begin() as conn:
            yield conn
            self._fuse.point("before a commit")
        self._fuse.point("after a commit")


class Sessions(IngestingDaliuge):
    """A DALiuGE without sockets that keeps account of what it was asked for.

    Attributes
    ----------
    away
        Whether the island manager can be reached at all.
    finished
        Sessions that really finished, also those that are gone.
    on_deploy
        Told of a deployment that is done.
    """

    def __init__(self) -> None:
        super().__init__()
        self.manager.port, self.translator.port = MANAGER_PORT, TRANSLATOR_PORT
        self.away = False
        self.finished: set[str] = set()
        self.on_deploy: Callable[[str], None] = lambda _session: None

    def deploy(self, session_id: str, body: bytes) -> object:
        answer = super().deploy(session_id, body)
        self.on_deploy(session_id)  # one that is refused, because the session is gone, started nothing
        return answer

    def end(self, session_id: str, state: int) -> None:
        """The session comes to its end."""
        self.sessions[session_id].state = state
        if state == FINISHED:
            self.finished.add(session_id)

    def live(self) -> list[str]:
        """Sessions that run."""
        return [name for name, session in self.sessions.items() if session.state in LIVE]

    def respond(self, request: httpx.Request) -> httpx.Response:
        """What the service on the request's port answers, if it does."""
        manager = request.url.port == MANAGER_PORT
        if manager and self.away:
            raise httpx.ConnectError("connection refused")
        routes = fake_daliuge._MANAGER if manager else fake_daliuge._TRANSLATOR
        for method, pattern, name in routes:
            match = pattern.fullmatch(request.url.path)
            if match and method == request.method:
                return self._called(name, "".join(match.groups()), request.read())
        return httpx.Response(404, html="<html>Not found</html>")

    def _called(self, name: str, argument: str, body: bytes) -> httpx.Response:
        fault = self.plan.next(name)
        kind = fault.kind if fault else None
        if kind == "refused":
            raise httpx.ConnectError("connection refused")
        self.calls.append(name)
        answer = httpx.Response(200, json=None)
        if kind is None or kind.startswith("done"):
            try:
                answer = httpx.Response(200, json=getattr(self, name)(argument, body))
            except RefusedError as refusal:
                answer = httpx.Response(refusal.status, text=refusal.body)
        if kind is None:
            return answer
        if kind.endswith("cut"):
            raise httpx.RemoteProtocolError("the connection was closed")
        if kind.endswith("timeout"):
            raise httpx.ReadTimeout("no answer in time")
        if kind.endswith("html"):
            return httpx.Response(500, html=HTML_500)
        exception = "SubManagerException" if kind == "node_down" else "ErrorManagerCaughtException"
        return httpx.Response(555, text=node_error(exception).body)


class Wire(httpx.BaseTransport):
    """One process's requests: it may die before they are sent, and before it reads their answers."""

    def __init__(self, sessions: Sessions, fuse: Fuse, before: Callable[[str], None]) -> None:
        self._sessions = sessions
        self._fuse = fuse
        self._before = before

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self._fuse.point("before a request")
        self._before(request.url.path)
        try:
            answer = self._sessions.respond(request)
        except httpx.TransportError:
            self._fuse.point("after a request without an answer")
            raise
        self._fuse.point("after a request")
        return answer


class WiredBackends(BackendProvider):
    """The product's clients on a wire of this process."""

    def __init__(self, *, clock: Clock, wire: Wire) -> None:
        super().__init__(clock=clock)
        client = httpx.Client(transport=wire)
        manager = IslandManager(url=f"http://127.0.0.1:{MANAGER_PORT}", client=client)
        self._backend = RestBackend(manager=manager, clock=clock, verify_ssl=True)
        self._translator = Translator(url=f"http://127.0.0.1:{TRANSLATOR_PORT}", client=client)

    def backend(self, profile: DeploymentProfile) -> Backend:
        del profile
        return self._backend

    def translator(self, profile: DeploymentProfile) -> Translator:
        del profile
        return self._translator


@dataclass
class Process:
    """A daemon, or a run: a platform that may die."""

    platform: Platform
    fuse: Fuse


@dataclass
class Run:
    """A Dagster run: the steps of one execution, one after the other, by one holder."""

    execution: Execution
    holder: str
    steps: list[str] = field(default_factory=lambda: list(STEPS))
    busy: bool = False


class World:
    """A survey, its archives, its DALiuGE, and processes on one ledger.

    Attributes
    ----------
    violations
        What must never be, and was seen all the same.
    runs
        Runs that were launched and are not over.
    """

    def __init__(self, ledger: Ledger, home: Path, snapshot: Snapshot | None = None) -> None:
        self.ledger = ledger
        self.home = home
        self.clock = ManualClock(snapshot.now if snapshot else None)
        self.ids = SequenceIds()
        self.ids._next = count(snapshot.identifiers if snapshot else 1)
        self.archives = FakeArchives(clock=self.clock)
        self.archives.deposit(FIRST, 100)
        self.sessions = Sessions()
        self.sessions.on_deploy = self._intended
        self.runs: list[Run] = []
        if snapshot:
            self.sessions.sessions = deepcopy(snapshot.sessions)
            self.sessions.listed = list(self.sessions.sessions)
            self.runs = [Run(run.execution, run.holder, list(run.steps)) for run in snapshot.runs]
        self.violations: list[str] = []
        self.deposits = count(200)
        self.revisions = count(1)
        self.meanwhile: Callable[[], None] | None = None
        self.meanwhile_at = "/deploy"
        self.processes = [self.born(), self.born()]
        self.stage = Stage(
            make_platform(ledger, home=home, clock=self.clock, archives=self.archives, ids=self.ids),
            self.clock,
            self.archives,
            self.sessions,
            home,
        )

    def born(self) -> Process:
        """A new process on the ledger."""
        fuse = Fuse()
        platform = make_platform(
            MortalLedger(self.ledger, fuse),
            home=self.home,
            clock=self.clock,
            archives=self.archives,
            ids=self.ids,
            source_concurrency=1,
        )
        wire = Wire(self.sessions, fuse, self._on_request)
        platform.__dict__["backends"] = WiredBackends(clock=self.clock, wire=wire)
        return Process(platform, fuse)

    def by(self, number: int, action: Callable[[Platform], object]) -> object:
        """Let a process do something; when it dies, another one takes its place.

        An error of the product's own kind is an outcome like any other, but for those that are :data:`DEFECTS`.
        """
        process = self.processes[number]
        try:
            return action(process.platform)
        except ProcessDied:
            self.processes[number] = self.born()
            return None
        except BeampipeError as error:
            if error.code in DEFECTS:
                raise
            return error

    # -- what happens ---------------------------------------------------------------------------------------

    def discover(self, number: int) -> None:
        """A discovery tick and its batches."""

        def act(platform: Platform) -> None:
            for claim in platform.discovery.tick(SURVEY).claims:
                with suppress(BeampipeError):
                    platform.discovery.run_batch(claim.token)

        self.by(number, act)

    def tick(self, number: int) -> None:
        """An execution tick: admission, and the runs that it asks for."""

        def act(platform: Platform) -> None:
            platform.admission.tick(SURVEY)
            self.runs += [Run(launch.execution, self.ids.new()) for launch in platform.launcher.due(SURVEY)]

        self.by(number, act)

    def work(self, number: int, run: Run, steps: int) -> None:
        """So many of a run's next steps; a run whose step fails is over, and so is one whose process dies."""
        if run.busy:
            return  # it sleeps in the middle of a step
        run.busy = True
        for _ in range(steps):
            if run not in self.runs:
                break
            process, name = self.processes[number], run.steps.pop(0)
            outcome = self.by(number, partial(self._step, run, name))
            failed = isinstance(outcome, BeampipeError) or process is not self.processes[number]
            if (failed or not run.steps) and run in self.runs:
                self.runs.remove(run)
        run.busy = False

    def _step(self, run: Run, name: str, platform: Platform) -> None:
        execution = platform.launcher.for_partition(SURVEY, run.execution.partition_key, actor="dagster")
        service = platform.submission if name == "backend_run" else platform.steps
        getattr(service, name)(execution.id, holder=run.holder)

    def poll(self, number: int) -> None:
        """A poll."""
        self.by(number, lambda platform: platform.poll.tick())

    def stall(self, call: str, seconds: float, number: int) -> None:
        """The process that next makes this call sleeps before it; the other one goes on in that time."""

        def others() -> None:
            for _ in range(3):
                self.clock.advance(seconds / 3)
                self.poll(number)
            self.tick(number)
            for run in list(self.runs)[:2]:
                self.work(number, run, len(STEPS))

        self.meanwhile, self.meanwhile_at = others, call

    def _on_request(self, path: str) -> None:
        action = self.meanwhile
        if action is not None and path.endswith(self.meanwhile_at):
            self.meanwhile = None
            action()

    # -- what must be ---------------------------------------------------------------------------------------

    def _intended(self, session_id: str) -> None:
        """Told of each deployment: the ledger must know of it."""
        with self.ledger.read() as conn:
            found = [one for one in executions.select(conn) if one.daliuge_session_id == session_id]
        if not found or found[0].submission_state not in {
            SubmissionState.IN_FLIGHT,
            SubmissionState.UNCERTAIN,
        }:
            state = found[0].submission_state.value if found else "unknown to the ledger"
            self.violations.append(f"session {session_id} is deployed, and its submission is {state}")

    def calm(self) -> None:
        """Nothing goes wrong any more, and who was about to die does not."""
        self.sessions.plan.queued.clear()
        self.sessions.away = False
        self.meanwhile = None
        self.processes = [self.born(), self.born()]
        self.runs.clear()  # they are lost, and launched again

    def finish_sessions(self) -> None:
        """All that runs comes to a good end."""
        for name in self.sessions.live():
            self.sessions.end(name, FINISHED)


@dataclass(frozen=True)
class Snapshot:
    """Where a story begins: a ledger's file, and what else there was.

    Attributes
    ----------
    identifiers
        The first identifier that is not used yet.
    """

    path: Path
    now: datetime
    identifiers: int
    sessions: dict[str, FakeSession]
    runs: tuple[Run, ...]


def snapshots(template: Path, directory: Path) -> dict[str, Snapshot]:
    """Stories may begin with a source that is ``pending``, one with its graph ``translated``, or one ``running``.

    The steps before are the same in each of them, and take most of the time.
    """
    path = directory / "template.db"
    shutil.copyfile(template, path)
    home = directory / "home"
    home.mkdir()
    found: dict[str, Snapshot] = {}
    ledger = Ledger(f"sqlite:///{path}")
    try:
        world = World(ledger, home)

        def keep(name: str) -> None:
            ledger.dispose()  # and with it what is not in the file yet
            copy = directory / f"{name}.db"
            shutil.copyfile(path, copy)
            runs = tuple(Run(run.execution, run.holder, list(run.steps)) for run in world.runs)
            used = int(world.ids.new()[-12:], 16) + 1
            found[name] = Snapshot(copy, world.clock.now(), used, deepcopy(world.sessions.sessions), runs)

        prepare(world)
        keep("pending")
        world.tick(0)
        world.work(0, world.runs[0], len(STEPS) - 1)
        keep("translated")
        world.work(0, world.runs[0], 1)
        keep("running")
    finally:
        ledger.dispose()
    return found


def prepare(world: World) -> None:
    """The survey, its profile and two sources, of which one has been discovered."""
    world.stage.add_profile()
    world.stage.add_survey()
    world.stage.register(*SOURCES)
    world.stage.discover()


class Ledgers:
    """One engine, whose file is put back to a snapshot before each story: no statement is compiled twice."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "ledger.db"
        self.ledger = Ledger(f"sqlite:///{self._path}")
        sa.event.listen(self.ledger.engine, "connect", _unsafe)

    def at(self, snapshot: Snapshot) -> Ledger:
        """The ledger as the snapshot has it."""
        self.ledger.dispose()
        for suffix in ("-wal", "-shm"):
            self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)
        shutil.copyfile(snapshot.path, self._path)
        return self.ledger


def _unsafe(raw: Any, _record: object) -> None:
    """No test cuts the power."""
    raw.execute("PRAGMA synchronous = OFF")
