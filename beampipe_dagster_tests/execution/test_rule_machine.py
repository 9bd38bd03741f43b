"""Whatever goes wrong, in whichever order: nothing runs twice, nothing is lost, and everything comes to an end.

Stories are made of rules that are drawn at random: ticks of two daemons, steps of runs, polls, deposits, operators,
faults of DALiuGE, nodes and managers that forget, processes that die at a commit or a request, or sleep at one for
too long. After every rule the ledger and the sessions are compared; at the end nothing goes wrong any more, and the
world has to come to rest. ``BEAMPIPE_CHAOS_RANDOM=1`` tells other stories each time, ``BEAMPIPE_CHAOS_EXAMPLES``
says how many.
"""

from __future__ import annotations

import os
import random
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy.engine import Connection

from beampipe_dagster.backends.base import Backend, SessionPresence
from beampipe_dagster.execution import outcome, submission
from beampipe_dagster.execution.holder import Holder
from beampipe_dagster.execution.launch import Launch, Launcher
from beampipe_dagster.execution.submission import Submission
from beampipe_dagster.ledger import executions, provenance
from beampipe_dagster.ledger.audit import audit
from beampipe_dagster.ledger.engine import Ledger
from beampipe_dagster.ledger.execution_values import Execution
from beampipe_dagster.ledger.states import Status, SubmissionState, TerminalOutcome
from beampipe_dagster.poll import moves
from beampipe_dagster.poll.uncertain import UncertainSubmissions
from beampipe_dagster.signature.payload import partition_key
from beampipe_dagster_tests.support.archives import INCOMPLETE
from beampipe_dagster_tests.support.chaos import (
    FAULTS,
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
SHRINK: Final = bool(os.environ.get("BEAMPIPE_CHAOS_SHRINK"))
"""Whether a story that fails is made shorter, which takes minutes."""
RULES: Final = 9
"""Rules of one story."""
PARTS: Final = 2
"""Tests that share the stories, so that two workers have one each."""
ON_POSTGRESQL: Final = 12
FOR_MUTANTS: Final = 300
"""A broken rule is found within so many stories, most within a few."""
ROUNDS: Final = 40
"""Within so many rounds a world without faults comes to rest."""

FINAL: Final = frozenset({"completed", "failed", "cancelled", "not_submitted"})
CALLS: Final = (
    "create",
    "append",
    "size",
    "deploy",
    "status",
    "node_sessions",
    "translate",
    "nodes",
    "delete",
)
SLEEPY: Final = ("/api/sessions", "/append", "/deploy")
TURNS: Final = (
    *("execution_tick", "run_goes_on", "run_goes_on", "poll", "poll", "poll", "time_passes", "deposit"),
    *("session_ends", "session_ends", "revision", "launched_by_hand", "fault", "about_to_die"),
    *("run_is_deployed_with_a_fault", "run_is_deployed_with_a_fault", "run_dies", "run_dies"),
    *("run_sleeps", "run_sleeps"),
    *("run_is_lost", "manager_goes_or_comes", "node_or_manager_restarts"),
)
"""What may happen, by weight; one rule for all, because drawing among many rules prefers a few of them."""

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
    " AND NOT EXISTS (SELECT 1 FROM execution_sources c JOIN batch_execution_record r ON r.id = c.execution_id"
    "   WHERE c.source_identifier = s.source_identifier AND c.discovery_signature = s.discovery_signature"
    "   AND r.status = 'cancelled')"
)
"""Sources with datasets that were never executed, that nobody executes, holds or has cancelled."""
_UNLOOKED: Final = sa.text(
    "SELECT count(*) FROM source_registry WHERE enabled AND quarantined_at IS NULL"
    " AND (discovery_claim_token IS NOT NULL OR last_checked_at IS NULL OR discovery_requested_at > last_checked_at)"
)


class Chaos(RuleBasedStateMachine):
    """The rules, what must hold after each of them, and the end."""

    @staticmethod
    def new_world(begin: str) -> World:
        """A world at one of the beginnings."""
        raise NotImplementedError(begin)

    def __init__(self) -> None:
        super().__init__()
        self.before: dict[str, str] = {}

    @initialize(begin=st.sampled_from(["pending", "translated", "translated", "running"]))
    def begins(self, begin: str) -> None:
        self.world = type(self).new_world(begin)

    @rule(turn=st.sampled_from(TURNS), number=st.integers(0, 999), daemon=st.integers(0, 1))
    def then(self, turn: str, number: int, daemon: int) -> None:
        """One turn; its details follow from a number. A turn that cannot be now is a tick."""
        self.choose = random.Random(number)
        if (turn.startswith("run_") and not self.world.runs) or (
            turn == "session_ends" and not self.world.sessions.live()
        ):
            turn = "execution_tick"
        getattr(self, turn)(daemon)

    # -- what happens by itself -------------------------------------------------------------------------------

    def execution_tick(self, daemon: int) -> None:
        self.world.tick(daemon)

    def run_goes_on(self, daemon: int) -> None:
        run = self.choose.choice(self.world.runs)
        self.world.work(daemon, run, self.choose.choice([1, 2, len(STEPS)]))

    def poll(self, daemon: int) -> None:
        self.world.clock.advance(self.choose.choice([0, 6, 61]))
        self.world.poll(daemon)

    def time_passes(self, _daemon: int) -> None:
        self.world.clock.advance(self.choose.choice([2, 70, 130, 1000]))

    def deposit(self, daemon: int) -> None:
        world, source = self.world, self.choose.choice(SOURCES)
        world.archives.deposit(source, next(world.deposits))
        fault = self.choose.choice([None, *INCOMPLETE])
        if fault is not None:
            world.archives.fail(source, fault)
        world.clock.advance(1)
        world.stage.platform.registry.mark_for_discovery(SURVEY, [source], actor="test")
        world.discover(daemon)

    def session_ends(self, _daemon: int) -> None:
        sessions = self.world.sessions
        sessions.end(sessions.live()[0], self.choose.choice([FINISHED, FINISHED, FAILED, CANCELLED]))

    # -- what operators do ------------------------------------------------------------------------------------

    def revision(self, _daemon: int) -> None:
        rules = {"tick_execution_source_limit": 5 + next(self.world.revisions)}
        self.world.stage.add_survey(execution=rules)

    def launched_by_hand(self, daemon: int) -> None:
        source = self.choose.choice(SOURCES)
        key = partition_key(source, self.world.stage.source(source).discovery_signature or "none")
        self.world.by(
            daemon,
            lambda platform: platform.launcher.for_partition(SURVEY, key, actor="operator", again=True),
        )

    # -- what goes wrong --------------------------------------------------------------------------------------

    def fault(self, _daemon: int) -> None:
        call, kind = self.choose.choice(CALLS), self.choose.choice(FAULTS)
        if (call, kind) != ("append", "done_555"):  # a verdict about the graph, and no mishap
            self.world.sessions.plan.on(call, Fault(kind))

    def run_is_deployed_with_a_fault(self, daemon: int) -> None:
        """What came of it may not be found out soon, because the manager goes away."""
        self.world.sessions.plan.on("deploy", Fault(self.choose.choice(FAULTS)))
        self.world.work(daemon, self.world.runs[0], len(STEPS))
        self.world.sessions.away = self.choose.random() < 0.5
        for _ in range(self.choose.choice([0, 2])):
            self.world.clock.advance(61)
            self.world.poll(1 - daemon)

    def about_to_die(self, daemon: int) -> None:
        self.world.processes[daemon].fuse.left = self.choose.randrange(10)

    def run_dies(self, daemon: int) -> None:
        self.world.processes[daemon].fuse.left = self.choose.randrange(18)
        self.world.work(daemon, self.world.runs[0], len(STEPS))

    def run_sleeps(self, daemon: int) -> None:
        """Its process sleeps before a request, and wakes up when others have gone on."""
        self.world.stall(self.choose.choice(SLEEPY), self.choose.choice([30, 200, 200]), 1 - daemon)
        self.world.work(daemon, self.world.runs[0], len(STEPS))

    def run_is_lost(self, _daemon: int) -> None:
        self.world.runs.pop()

    def manager_goes_or_comes(self, _daemon: int) -> None:
        self.world.sessions.away = not self.world.sessions.away

    def node_or_manager_restarts(self, _daemon: int) -> None:
        restart = self.choose.choice([self.world.sessions.restart_node, self.world.sessions.restart_manager])
        restart()

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
            cancelled = {
                (one["source_identifier"], one["discovery_signature"])
                for execution in done
                if execution.status is Status.CANCELLED
                for one in execution.sources
            }
            stopped = (source.source_identifier, source.discovery_signature) in cancelled
            assert executed or empty or stopped or (source.hold and source.hold["hint"]), (
                f"{source} waits for nothing"
            )
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
    shared = Path("/dev/shm")  # noqa: S108  # a directory of its own is made in it
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


def tell(machine: type[Chaos], number: int, *, part: int = 0) -> None:
    """Tell so many stories, the same ones each time unless random ones are wanted."""
    phases = [Phase.generate, *([Phase.shrink] if SHRINK else [])]
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


@pytest.mark.timeout(300)
def test_the_same_holds_on_postgresql(postgres_server: PostgresServer, tmp_path: Path) -> None:
    with ExitStack() as opened:

        class OnPostgresql(Chaos):
            @staticmethod
            def new_world(begin: str) -> World:
                del begin  # every story begins with a source that is pending
                opened.close()
                ledger = Ledger(opened.enter_context(postgres_server.database()))
                opened.callback(ledger.dispose)
                world = World(ledger, tmp_path)
                prepare(world)
                return world

        tell(OnPostgresql, ON_POSTGRESQL)


# -- it can fail ------------------------------------------------------------------------------------------------


def deploys_without_an_intent(patch: pytest.MonkeyPatch) -> None:
    """The intent is only in the process's memory."""

    def intend(_self: Submission, execution: Execution, backend: Backend, drops: int) -> Execution:
        del drops
        return replace(
            execution,
            daliuge_session_id=submission.session_id(execution, execution.attempt + 1),
            daliuge_manager_url=backend.url,
            submission_state=SubmissionState.IN_FLIGHT,
        )

    patch.setattr(Submission, "_intend", intend)


def submits_again_when_uncertain(patch: pytest.MonkeyPatch) -> None:
    """An ambiguous answer counts as a refusal, and is followed by another attempt."""
    patch.setattr(Submission, "_uncertain", Submission._nothing_started)


def takes_silence_for_absence(patch: pytest.MonkeyPatch) -> None:
    """A manager that cannot be reached counts as one that does not know the session."""
    settle = UncertainSubmissions.settle

    def hasty(
        self: UncertainSubmissions, execution: Execution, backend: Backend, presence: SessionPresence
    ) -> bool:
        silent = presence is SessionPresence.UNREACHABLE
        return settle(self, execution, backend, SessionPresence.ABSENT if silent else presence)

    patch.setattr(UncertainSubmissions, "settle", hasty)


def forgets_sources_of_failed_executions(patch: pytest.MonkeyPatch) -> None:
    """A failure neither holds its sources nor makes them pending again."""
    patch.setattr(outcome, "_settle_sources", lambda *_args, **_values: None)


def never_launches_a_lost_run_again(patch: pytest.MonkeyPatch) -> None:
    """Each execution is launched once, whatever becomes of its run."""
    due = Launcher.due

    def once(self: Launcher, project_id: str, *, limit: int = 100) -> list[Launch]:
        return [one for one in due(self, project_id, limit=limit) if one.execution.launch_count == 1]

    patch.setattr(Launcher, "due", once)


def takes_a_lost_session_for_success(patch: pytest.MonkeyPatch) -> None:
    """A session that its manager does not know any more has surely finished."""

    def finished(conn: Connection, execution: Execution, status: Status, **values: Any) -> Execution:
        if values.get("error_code") == "session_lost":
            plain = {key: value for key, value in values.items() if key in {"clock", "ids", "values"}}
            return outcome.finish(
                conn, execution, Status.COMPLETED, outcome=TerminalOutcome.SUCCEEDED, **plain
            )
        return outcome.finish(conn, execution, status, **values)

    patch.setattr(moves, "finish", finished)


def deploys_without_its_lease(patch: pytest.MonkeyPatch) -> None:
    """A process that slept goes on without a look at whether it still may."""
    patch.setattr(Holder, "confirm", lambda _self: None)


MUTANTS: Final = (
    (deploys_without_an_intent, "its submission is"),
    (submits_again_when_uncertain, "is failed and runs"),
    (takes_silence_for_absence, "it runs twice"),
    (forgets_sources_of_failed_executions, "nobody will run"),
    (never_launches_a_lost_run_again, "no rest"),
    (takes_a_lost_session_for_success, "did not complete"),
)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("mutant", "words"), MUTANTS, ids=[one.__name__ for one, _ in MUTANTS])
def test_a_broken_rule_is_found(
    machine: type[Chaos],
    monkeypatch: pytest.MonkeyPatch,
    mutant: Callable[[pytest.MonkeyPatch], None],
    words: str,
) -> None:
    mutant(monkeypatch)
    with pytest.raises(AssertionError, match=words):
        tell(machine, FOR_MUTANTS)


@pytest.mark.parametrize("broken", [False, True])
def test_a_process_that_slept_deploys_nothing_because_its_lease_is_gone(
    machine: type[Chaos], monkeypatch: pytest.MonkeyPatch, *, broken: bool
) -> None:
    if broken:
        deploys_without_its_lease(monkeypatch)
    world = machine.new_world("translated")
    world.stall("/api/sessions", 200, 1)
    world.work(0, world.runs[0], len(STEPS))
    assert len(world.sessions.live()) == (2 if broken else 1)
