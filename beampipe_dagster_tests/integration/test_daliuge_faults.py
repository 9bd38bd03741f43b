"""What goes wrong with a real DALiuGE, and what the backend makes of it.

The quiet faults share one engine. A test that kills a process has an engine of its own.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from beampipe_dagster.backends.base import DaliugeState, SessionObservation, SessionPresence
from beampipe_dagster.backends.daliuge.manager import IslandManager
from beampipe_dagster.backends.daliuge.physical import Drop, map_to_nodes
from beampipe_dagster.backends.daliuge.rest import RestBackend
from beampipe_dagster.backends.daliuge.translator import Translator
from beampipe_dagster.clock import SystemClock
from beampipe_dagster.errors import BackendUnavailableError, GraphError, SubmissionUncertainError
from beampipe_dagster.sandbox.daliuge import DaliugePorts, processes
from beampipe_dagster.sandbox.process import ProcessSpec
from beampipe_dagster_tests.support import graphs
from beampipe_dagster_tests.support.dlg import free_ports, start, stop, wait_ready
from beampipe_dagster_tests.support.stack import need_daliuge

pytestmark = pytest.mark.integration

NODE_MANAGER, ISLAND_MANAGER, TRANSLATOR = range(3)
ACTIVE = {DaliugeState.PRISTINE, DaliugeState.BUILDING, DaliugeState.DEPLOYING, DaliugeState.RUNNING}


@dataclass
class Engine:
    """A DALiuGE of its own, whose processes can be killed and started again."""

    ports: DaliugePorts
    specs: list[ProcessSpec]
    running: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def island(self) -> str:
        return f"127.0.0.1:{self.ports.dim}"

    def kill(self, which: int) -> None:
        """SIGKILL to the process and to what it started."""
        os.killpg(self.running[which].pid, signal.SIGKILL)
        self.running[which].wait()

    def restart(self, which: int) -> None:
        """Start a killed process again, and wait until it serves."""
        self.running[which] = start(self.specs[which])
        wait_ready([self.specs[which]], [self.running[which]])

    def translator(self) -> Translator:
        return Translator(url=self.ports.translator_url)

    def backend(self) -> RestBackend:
        manager = IslandManager(url=self.ports.manager_url)
        return RestBackend(manager=manager, clock=SystemClock(), settle_seconds=0.3)

    def placed(self, graph: graphs.Graph, prefix: str) -> list[Drop]:
        template = self.translator().translate(
            graph, algorithm="metis", num_partitions=1, num_islands=1, oid_prefix=prefix
        )
        return map_to_nodes(template, nodes=[self.ports.node], island=self.island)

    def submit(self, graph: graphs.Graph) -> tuple[str, frozenset[str]]:
        """A session that runs this graph, and the drops that it must have."""
        session = new_session()
        drops = self.placed(graph, session)
        self.backend().submit(session, drops, before_deploy=nothing)
        return session, oids(drops)


@contextmanager
def engine_at(root: Path) -> Iterator[Engine]:
    """Start an engine, and leave nothing of it running."""
    nm, dim, tm, events, rpc = free_ports(5)
    ports = DaliugePorts(nm=nm, dim=dim, tm=tm, events=events, rpc=rpc)
    made = Engine(ports, processes(dlg=need_daliuge(), root=root, ports=ports))
    try:
        made.running.extend(start(spec) for spec in made.specs)
        wait_ready(made.specs, made.running)
        yield made
    finally:
        stop(made.running)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with engine_at(tmp_path_factory.mktemp("dlg")) as made:
        yield made


@pytest.fixture
def mortal(tmp_path: Path) -> Iterator[Engine]:
    """An engine that may be killed."""
    with engine_at(tmp_path) as made:
        yield made


def new_session() -> str:
    return f"test-{uuid.uuid4()}"


def nothing() -> None:
    """The lease of this submission needs no renewal."""


def oids(drops: list[Drop]) -> frozenset[str]:
    return frozenset(drop["oid"] for drop in drops)


def until(
    backend: RestBackend,
    session: str,
    expected: frozenset[str] | None,
    done: Callable[[SessionObservation], bool],
    *,
    seconds: float = 60,
) -> SessionObservation:
    """Look until something is seen."""
    end = time.monotonic() + seconds
    while True:
        seen = backend.observe({session: expected})[session]
        if done(seen):
            return seen
        assert time.monotonic() < end, f"still {seen}"
        time.sleep(0.1)


def settled(backend: RestBackend, session: str, expected: frozenset[str] | None) -> SessionObservation:
    return until(backend, session, expected, lambda seen: seen.state not in ACTIVE)


def raising() -> graphs.Graph:
    """A Python function that raises, and the value that it was to make."""
    code = "def calibrate():\n    raise RuntimeError('no solution for antenna 12')\n"
    builder = graphs.GraphBuilder("raising").app(
        "calibrate",
        "dlg.apps.pyfunc.PyFuncApp",
        category="PyFuncApp",
        fields=[
            graphs.setting("func_name", "calibrate"),
            graphs.setting("func_code", code),
            graphs.setting("input_parser", "pickle", typed="Select"),
            graphs.setting("output_parser", "pickle", typed="Select"),
        ],
        outputs=["gains"],
    )
    return builder.memory("gains").link("calibrate.gains", "gains.io").build()


def half_failing(copies: int = 4) -> graphs.Graph:
    """A scatter of which one branch exits with 7: the others complete."""
    graph = graphs.scattered(copies)
    for node in graph["nodeDataArray"]:
        for one in node["fields"]:
            if one["name"] == "command":
                # The branches are told apart by the end of their output's name.
                one["value"] = (
                    "case {out} in *0) echo 'beam 0 has no data' >&2; exit 7;; esac; echo ok > {out}"
                )
    return graph


def test_a_failing_command_is_a_failure_with_its_own_words(engine: Engine) -> None:
    session, expected = engine.submit(graphs.failing())
    seen = settled(engine.backend(), session, expected)
    assert seen.state is DaliugeState.FAILED
    assert seen.failed_drops[0].name == "step2"
    assert "no calibration table" in seen.failed_drops[0].log


def test_a_failing_python_function_is_a_failure_with_its_exception(engine: Engine) -> None:
    session, expected = engine.submit(raising())
    seen = settled(engine.backend(), session, expected)
    assert seen.state is DaliugeState.FAILED
    first = seen.failed_drops[0]
    assert first.name == "calibrate"
    assert "no solution for antenna 12" in first.log


def test_a_missing_class_is_refused_and_leaves_nothing(engine: Engine) -> None:
    backend, session = engine.backend(), new_session()
    drops = engine.placed(graphs.unknown_class(), session)
    with pytest.raises(GraphError) as caught:
        backend.submit(session, drops, before_deploy=nothing)
    assert caught.value.code == "graph_refused"
    assert backend.presence(session) is SessionPresence.ABSENT


def test_one_failing_branch_of_a_scatter_fails_the_session_and_the_others_are_counted(
    engine: Engine,
) -> None:
    session, expected = engine.submit(half_failing())
    backend = engine.backend()

    def over(seen: SessionObservation) -> bool:
        return seen.state not in ACTIVE and seen.drops is not None and seen.drops.pending == 0

    seen = until(backend, session, expected, over)
    assert seen.state is DaliugeState.FAILED
    assert seen.drops is not None
    assert seen.drops.total == len(expected)
    assert seen.drops.error == 2, "the command and its file"
    assert seen.drops.completed == len(expected) - 2
    assert [drop.name for drop in seen.failed_drops if drop.log] == ["beam"]
    assert "beam 0 has no data" in seen.failed_drops[0].log


def test_a_long_session_is_cancelled_at_once_and_can_be_removed(engine: Engine) -> None:
    session, _ = engine.submit(graphs.sleeping(30))
    backend, begin = engine.backend(), time.monotonic()
    assert backend.observe({session: None})[session].state is DaliugeState.RUNNING
    assert backend.cancel(session).state is DaliugeState.CANCELLED
    backend.remove(session)
    assert backend.presence(session) is SessionPresence.ABSENT
    assert time.monotonic() - begin < 25, "it would have taken 30 s"


def test_a_session_that_nobody_knows_is_said_to_be_unknown(engine: Engine) -> None:
    backend, session = engine.backend(), new_session()
    seen = backend.observe({session: None})[session]
    assert (seen.state, seen.reason) == (
        DaliugeState.NOT_CREATED,
        "the manager does not know this session",
    )
    assert backend.cancel(session).state is DaliugeState.NOT_CREATED
    backend.discard(session)
    backend.remove(session)


def test_many_sessions_are_listed_as_each_of_them_says_itself(engine: Engine) -> None:
    backend = engine.backend()
    made = [engine.submit(graph) for graph in (graphs.hello(), graphs.failing(), graphs.sleeping(60))]
    wanted: dict[str, frozenset[str] | None] = dict(made)
    for session, expected in made[:2]:
        settled(backend, session, expected)
    unknown = new_session()
    listed = backend.observe({**wanted, unknown: None})
    alone = {session: backend.observe({session: expected})[session] for session, expected in made}
    for session, seen in alone.items():
        assert (listed[session].state, listed[session].raw, listed[session].drops) == (
            seen.state,
            seen.raw,
            seen.drops,
        )
    assert [seen.state for seen in alone.values()] == [
        DaliugeState.FINISHED,
        DaliugeState.FAILED,
        DaliugeState.RUNNING,
    ]
    assert listed[unknown].state is DaliugeState.NOT_CREATED
    backend.cancel(made[2][0])


def _submit_there(url: str, session: str, drops: list[Drop], verdicts: multiprocessing.Queue[str]) -> None:
    backend = RestBackend(manager=IslandManager(url=url), clock=SystemClock())
    try:
        backend.submit(session, drops, before_deploy=nothing)
    except SubmissionUncertainError as error:
        verdicts.put(error.code)
    else:
        verdicts.put("submitted")


def test_two_processes_that_submit_one_session_start_it_once(engine: Engine) -> None:
    session = new_session()
    drops = engine.placed(graphs.hello(), session)
    spawning = multiprocessing.get_context("spawn")
    verdicts: multiprocessing.Queue[str] = spawning.Queue()
    arguments = (engine.ports.manager_url, session, drops, verdicts)
    both = [spawning.Process(target=_submit_there, args=arguments) for _ in range(2)]
    for one in both:
        one.start()
    told = sorted(verdicts.get(timeout=60) for _ in both)
    for one in both:
        one.join(timeout=30)
    assert told == ["session_exists", "submitted"]
    assert settled(engine.backend(), session, oids(drops)).state is DaliugeState.FINISHED


def test_a_killed_node_manager_is_no_failure_and_a_restarted_one_has_lost_the_session(
    mortal: Engine,
) -> None:
    sessions = dict.fromkeys([mortal.submit(graphs.sleeping(60))[0] for _ in range(3)])
    backend = mortal.backend()
    mortal.kill(NODE_MANAGER)
    begin = time.monotonic()
    seen = backend.observe(sessions)
    assert {one.state for one in seen.values()} == {DaliugeState.UNREACHABLE}
    assert time.monotonic() - begin < 25, "10 s for all of them, not for each"
    first = next(iter(sessions))
    with pytest.raises(BackendUnavailableError):
        backend.remove(first)
    mortal.restart(NODE_MANAGER)
    seen = backend.observe(sessions)
    assert {one.state for one in seen.values()} == {DaliugeState.NOT_CREATED}
    assert backend.presence(first) is SessionPresence.ABSENT


def test_a_restarted_island_manager_finds_its_sessions_and_they_end_as_they_should(
    mortal: Engine,
) -> None:
    session, expected = mortal.submit(graphs.sleeping(15))
    backend = mortal.backend()
    mortal.kill(ISLAND_MANAGER)
    assert backend.observe({session: expected})[session].state is DaliugeState.UNREACHABLE
    mortal.restart(ISLAND_MANAGER)
    assert backend.observe({session: expected})[session].state is DaliugeState.RUNNING
    seen = settled(backend, session, expected)
    assert seen.state is DaliugeState.FINISHED, seen
    assert seen.drops is not None
    assert seen.drops.completed == len(expected)
    backend.remove(session)
    assert backend.presence(session) is SessionPresence.ABSENT


def test_a_killed_translator_is_a_wait_and_what_runs_goes_on(mortal: Engine) -> None:
    session, expected = mortal.submit(graphs.sleeping(1))
    mortal.kill(TRANSLATOR)
    translator = mortal.translator()
    assert not translator.available()
    with pytest.raises(BackendUnavailableError) as caught:
        mortal.placed(graphs.hello(), "p")
    assert caught.value.code == "backend_unreachable"
    assert settled(mortal.backend(), session, expected).state is DaliugeState.FINISHED
    mortal.restart(TRANSLATOR)
    assert len(mortal.placed(graphs.hello(), "p")) == 2
