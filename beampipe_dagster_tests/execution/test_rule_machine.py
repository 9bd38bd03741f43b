"""Whatever goes wrong, in whichever order: nothing runs twice, nothing is lost, and everything comes to an end.

Stories are made of rules that are drawn at random: ticks of two daemons, steps of runs, polls, deposits, operators,
faults of DALiuGE, nodes and managers that forget, processes that die at a commit or a request, or sleep at one for
too long. After every rule the ledger and the sessions are compared; at the end nothing goes wrong any more, and the
world has to come to rest. ``BEAMPIPE_CHAOS_RANDOM=1`` tells other stories each time, ``BEAMPIPE_CHAOS_EXAMPLES``
says how many.
"""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Final

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from beampipe_dagster.backends.base import SessionPresence
from beampipe_dagster.discovery.archive import AnswerClass
from beampipe_dagster.execution import outcome, submission
from beampipe_dagster.execution.holder import Holder
from beampipe_dagster.execution.launch import Launch, Launcher
from beampipe_dagster.execution.submission import Submission
from beampipe_dagster.ledger import executions, leases, provenance
from beampipe_dagster.ledger.audit import audit
from beampipe_dagster.ledger.engine import Ledger
from beampipe_dagster.ledger.states import Status, SubmissionState
from beampipe_dagster.poll import moves
from beampipe_dagster.poll.uncertain import UncertainSubmissions
from beampipe_dagster_tests.support.chaos import (
    FAULTS,
    FIRST,
    SECOND,
    SOURCES,
    Ledgers,
    Snapshot,
    World,
    prepare,
    snapshots,
)
from beampipe_dagster_tests.support.fake_daliuge import CANCELLED, FAILED, FINISHED, Fault
from beampipe_dagster_tests.support.ledgers import SURVEY
from beampipe_dagster_tests.support.platforms import STEPS
from beampipe_dagster_tests.support.postgres import PostgresServer

RANDOM: Final = bool(os.environ.get("BEAMPIPE_CHAOS_RANDOM"))
EXAMPLES: Final = int(os.environ.get("BEAMPIPE_CHAOS_EXAMPLES", "2000"))
RULES: Final = 9
"""Rules of one story."""
PARTS: Final = 2
"""Tests that share the stories, so that two workers have one each."""
ON_POSTGRESQL: Final = 40
ROUNDS: Final = 40
"""Within so many rounds a world without faults comes to rest."""

FINAL: Final = frozenset({"completed", "failed", "cancelled", "not_submitted"})
CALLS: Final = ("create", "append", "size", "deploy", "status", "node_sessions", "translate", "nodes", "delete")
DAEMON = st.integers(0, 1)

_EXECUTIONS: Final = sa.text("SELECT id, status, daliuge_session_id, sources FROM batch_execution_record")
_LIVE_SOURCES: Final = sa.text(
    "SELECT source_identifier, count(*) FROM execution_sources WHERE active GROUP BY source_identifier"
)
_UNASKED: Final = sa.text(
    "SELECT s.source_identifier FROM source_registry s WHERE s.enabled AND NOT s.workflow_run_pending"
    " AND s.discovery_signature IS NOT NULL AND s.hold IS NULL"
    " AND (s.last_executed_discovery_signature IS NULL"
    "   OR s.last_executed_discovery_signature <> s.discovery_signature)"
    " AND NOT EXISTS (SELECT 1 FROM execution_sources e"
    "   WHERE e.project_module = s.project_module AND e.source_identifier = s.source_identifier AND e.active)"
    " AND NOT EXISTS (SELECT 1 FROM discovery_signatures d WHERE d.source_identifier = s.source_identifier"
    "   AND d.signature = s.discovery_signature AND d.dataset_count = 0)"
)
"""Sources with datasets that were never executed, that nobody executes, and that nothing holds."""
_UNLOOKED: Final = sa.text(
    "SELECT count(*) FROM source_registry WHERE enabled AND quarantined_at IS NULL"
    " AND (discovery_claim_token IS NOT NULL OR last_checked_at IS NULL OR discovery_requested_at > last_checked_at)"
)


class Chaos(RuleBasedStateMachine):
    """The rules, what must hold after each of them, and the end."""

    new_world: ClassVar[Callable[[str], World]]

    def __init__(self) -> None:
        super().__init__()
        self.before: dict[str, str] = {}

    @initialize(begin=st.sampled_from(["pending", "translated", "translated", "running"]))
    def begins(self, begin: str) -> None:
        self.world = type(self).new_world(begin)

    # -- what happens by itself -------------------------------------------------------------------------------

    @rule(daemon=DAEMON)
    def execution_tick(self, daemon: int) -> None:
        self.world.tick(daemon)

    @precondition(lambda self: self.world.runs)
    @rule(daemon=DAEMON, steps=st.integers(1, len(STEPS)), last=st.booleans())
    def run_goes_on(self, daemon: int, steps: int, *, last: bool) -> None:
        self.world.work(daemon, self.world.runs[-1 if last else 0], steps)

    @precondition(lambda self: self.world.runs)
    @rule(daemon=DAEMON)
    def run_goes_to_its_end(self, daemon: int) -> None:
        self.world.work(daemon, self.world.runs[0], len(STEPS))

    @rule(daemon=DAEMON, seconds=st.sampled_from([0, 6, 61]))
    def poll(self, daemon: int, seconds: int) -> None:
        self.world.clock.advance(seconds)
        self.world.poll(daemon)

    @rule(seconds=st.sampled_from([2, 70, 130, 1000]))
    def time_passes(self, seconds: int) -> None:
        self.world.clock.advance(seconds)

    @rule(daemon=DAEMON, source=st.sampled_from(SOURCES), fault=st.sampled_from([None, *AnswerClass]))
    def deposit(self, daemon: int, source: str, fault: AnswerClass | None) -> None:
        world = self.world
        world.archives.deposit(source, next(world.deposits))
        if fault is not None and fault is not AnswerClass.COMPLETE:
            world.archives.fail(source, fault)
        world.clock.advance(1)
        world.stage.platform.registry.mark_for_discovery(SURVEY, [source], actor="test")
        world.discover(daemon)

    @precondition(lambda self: self.world.sessions.live())
    @rule(state=st.sampled_from([FINISHED, FINISHED, FAILED, CANCELLED]))
    def session_ends(self, state: int) -> None:
        self.world.sessions.end(self.world.sessions.live()[0], state)

    # -- what operators do ------------------------------------------------------------------------------------

    @rule()
    def revision(self) -> None:
        rules = {"execution": {"tick_execution_source_limit": 5 + next(self.world.revisions)}}
        self.world.stage.add_survey(**rules)

    @rule(daemon=DAEMON, source=st.sampled_from(SOURCES))
    def launched_by_hand(self, daemon: int, source: str) -> None:
        signature = self.world.stage.source(source).discovery_signature
        key = f"{source}@{(signature or 'none')[:12]}"
        self.world.by(
            daemon,
            lambda platform: platform.launcher.for_partition(SURVEY, key, actor="operator", again=True),
        )

    # -- what goes wrong --------------------------------------------------------------------------------------

    @rule(call=st.sampled_from(CALLS), kind=st.sampled_from(FAULTS))
    def fault(self, call: str, kind: str) -> None:
        if (call, kind) != ("append", "done_555"):  # a verdict about the graph, and no mishap
            self.world.sessions.plan.on(call, Fault(kind))

    @rule(kind=st.sampled_from(FAULTS))
    def fault_of_the_deployment(self, kind: str) -> None:
        self.world.sessions.plan.on("deploy", Fault(kind))

    @rule(daemon=DAEMON, points=st.integers(0, 9))
    def about_to_die(self, daemon: int, points: int) -> None:
        self.world.processes[daemon].fuse.left = points

    @precondition(lambda self: self.world.runs)
    @rule(points=st.integers(0, 16))
    def run_dies(self, points: int) -> None:
        self.world.processes[0].fuse.left = points
        self.world.work(0, self.world.runs[0], len(STEPS))

    @rule(
        call=st.sampled_from(["/deploy", "/append", "/status"]),
        seconds=st.sampled_from([30, 200]),
        daemon=DAEMON,
    )
    def process_will_sleep(self, call: str, seconds: int, daemon: int) -> None:
        self.world.stall(call, seconds, daemon)

    @precondition(lambda self: self.world.runs)
    @rule()
    def run_is_lost(self) -> None:
        self.world.runs.pop()

    @rule()
    def manager_goes_and_comes(self) -> None:
        self.world.sessions.away = not self.world.sessions.away

    @rule(node=st.booleans())
    def restart(self, *, node: bool) -> None:
        if node:
            self.world.sessions.restart_node()
        else:
            self.world.sessions.restart_manager()

    # -- what must be -----------------------------------------------------------------------------------------

    @invariant()
    def nothing_is_wrong(self) -> None:
        world = self.world
        assert not world.violations, world.violations
        with world.ledger.read() as conn:
            rows = conn.execute(_EXECUTIONS).all()
            shared = [name for name, number in conn.execute(_LIVE_SOURCES) if number > 1]
            unasked = list(conn.scalars(_UNASKED))
        assert not shared, f"more than one execution has {shared}"
        assert not unasked, f"nobody will run {unasked}"
        self._moves({row.id: row.status for row in rows})
        live = world.sessions.live()
        owners = Counter(row.id for row in rows for name in live if row.id in name)
        assert not [one for one, number in owners.items() if number > 1], f"it runs twice: {live}"
        assert sum(owners.values()) == len(live), f"a session is nobody's: {live}"
        for row in rows:
            if row.status == "completed":
                assert row.daliuge_session_id in world.sessions.finished, f"{row.id} did not complete"
            if row.status in {"completed", "failed"}:
                assert not [name for name in live if row.id in name], f"{row.id} is {row.status} and runs"

    def _moves(self, now: dict[str, str]) -> None:
        for name, status in self.before.items():
            assert status not in FINAL or now[name] == status, f"{name} went from {status} to {now[name]}"
            assert now[name] != "pending" or status == "pending", f"{name} went back to pending"
        self.before = now

    # -- the end ----------------------------------------------------------------------------------------------

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.calm()
            rounds = 0
            while not self._at_rest():
                rounds += 1
                assert rounds < ROUNDS, f"no rest: {self._story()}"
                self._round()
            self._explained()

    def _round(self) -> None:
        world = self.world
        world.clock.advance(130)
        with world.ledger.read() as conn:
            unlooked = conn.execute(_UNLOOKED).scalar_one()
        if unlooked:
            world.clock.advance(7200)
            world.discover(0)
        world.tick(0)
        for run in list(world.runs):
            world.work(0, run, len(STEPS))
        self.nothing_is_wrong()
        world.finish_sessions()
        world.poll(1)
        waits = [source.retry_at for source in map(world.stage.source, SOURCES) if source.retry_at]
        if waits and not world.runs and not world.sessions.live():
            world.clock.advance(max(0.0, (min(waits) - world.clock.now()).total_seconds()))

    def _at_rest(self) -> bool:
        self.nothing_is_wrong()
        with self.world.ledger.read() as conn:
            active = conn.execute(
                sa.text("SELECT count(*) FROM batch_execution_record WHERE completed_at IS NULL")
            )
            pending = conn.execute(
                sa.text("SELECT count(*) FROM source_registry WHERE enabled AND workflow_run_pending")
            )
            unlooked = conn.execute(_UNLOOKED)
            return not any(one.scalar_one() for one in (active, pending, unlooked))

    def _explained(self) -> None:
        world = self.world
        with world.ledger.read() as conn:
            assert list(audit(conn)) == []
            told = provenance.timeline(conn, limit=10_000)
            done = executions.select(conn)
        for one in done:
            assert one.terminal
            assert one.terminal_outcome
            kinds = Counter(event.event_type for event in told if event.execution_id == one.id)
            assert kinds["execution.execute_started"] == one.attempt
            assert kinds[f"execution.{one.status.value}"] == 1
            assert kinds["execution.submission_recorded"] <= 1
            assert one.status is not Status.FAILED or (one.last_error and one.last_error_code)
        for source in map(world.stage.source, SOURCES):
            executed = source.discovery_signature == source.last_executed_discovery_signature
            empty = source.last_outcome == "no_datasets"
            assert executed or empty or (source.hold and source.hold["hint"]), f"{source} waits for nothing"
            assert source.discovery_claim_token is None

    def _story(self) -> str:
        lines = [
            f"{one.partition_key} {one.status} {one.submission_state} {one.last_error} launch {one.next_launch_at} "
            f"lease {one.lease_expires_at}"
            for one in self.world.stage.executions()
        ]
        lines += [f"{self.world.stage.source(name)}" for name in SOURCES]
        return "\n".join([f"at {self.world.clock.now()}", *lines])


# -- how stories are told ---------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def begins(migrated_sqlite: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Snapshot]:
    """Where stories begin."""
    return snapshots(migrated_sqlite, tmp_path_factory.mktemp("chaos"))


@pytest.fixture
def machine(begins: dict[str, Snapshot]) -> Iterator[type[Chaos]]:
    """The machine on SQLite, in memory where the system has such a directory."""
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None) as name:
        home = Path(name) / "home"
        home.mkdir()
        ledgers = Ledgers(Path(name))

        class OnSqlite(Chaos):
            @staticmethod
            def new_world(begin: str) -> World:
                return World(ledgers.at(begins[begin]), home, begins[begin])

        yield OnSqlite
        ledgers.ledger.dispose()


def tell(machine: type[Chaos], number: int, *, part: int = 0, shrink: bool = True) -> None:
    """Tell so many stories, the same ones each time unless random ones are wanted."""
    phases = [Phase.explicit, Phase.generate, *([Phase.shrink] if shrink else [])]
    wanted = settings(
        max_examples=number,
        stateful_step_count=RULES,
        deadline=None,
        database=None,
        phases=phases,
        print_blob=RANDOM,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(machine if RANDOM else seed(7 + part)(machine), settings=wanted)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("part", range(PARTS))
def test_no_order_of_events_runs_anything_twice_or_loses_anything(machine: type[Chaos], part: int) -> None:
    tell(machine, EXAMPLES // PARTS, part=part)
