"""The law of the circuit breaker, as a state machine beside the ledger's own."""

from __future__ import annotations

import shutil
import tempfile
from datetime import timedelta
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from beampipe_dagster.ledger import gates
from beampipe_dagster.ledger.circuits import CLOSED, Circuit, CircuitState, Outcome, Rules, after, passed
from beampipe_dagster.ledger.engine import Ledger
from beampipe_dagster.ledger.gates import Granted, ShutOff, User
from beampipe_dagster_tests.support.ledgers import START

RULES = Rules(failures_to_open=3, open_seconds=10, longest_open_seconds=35)
TTL = timedelta(seconds=20)
KEY = "tap.example/tap"


def failed(circuit: Circuit, times: int) -> Circuit:
    for _ in range(times):
        circuit = after(circuit, Outcome.AWAY, "x", now=START, rules=RULES, reason="HTTP 503")
    return circuit


def test_a_circuit_opens_after_so_many_failures_in_a_row_and_says_why() -> None:
    assert failed(CLOSED, 2).state is CircuitState.CLOSED
    opened = failed(CLOSED, 3)
    assert (opened.state, opened.opened_at, opened.open_reason) == (CircuitState.OPEN, START, "HTTP 503")
    assert opened.open_until == START + timedelta(seconds=10)


def test_an_answer_in_between_begins_the_count_afresh() -> None:
    answered = after(failed(CLOSED, 2), Outcome.ANSWERED, "x", now=START, rules=RULES)
    assert failed(answered, 2).state is CircuitState.CLOSED


@pytest.mark.parametrize("outcome", [Outcome.UNCLEAR, Outcome.NOTHING])
def test_what_says_nothing_about_the_archive_neither_opens_nor_forgives(outcome: Outcome) -> None:
    circuit = failed(CLOSED, 2)
    assert after(circuit, outcome, "x", now=START, rules=RULES) == circuit


def test_each_failed_probe_doubles_the_time_up_to_the_longest() -> None:
    circuit, times = failed(CLOSED, 3), []
    for _ in range(40):
        now = circuit.open_until
        assert now is not None
        probing = passed(circuit, "probe", now=now, expires_at=now + TTL)
        assert probing is not None
        circuit = after(probing, Outcome.AWAY, "probe", now=now, rules=RULES)
        assert circuit.open_until is not None
        assert circuit.opened_at == START
        times.append((circuit.open_until - now).total_seconds())
    assert times[:3] == [20, 35, 35]
    assert set(times[3:]) == {35}


class CircuitMachine(RuleBasedStateMachine):
    """Requests come, answer, die; the ledger must agree with a model of few words."""

    template: ClassVar[Path]

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.mkdtemp(prefix="circuit-")
        path = Path(self.directory) / "ledger.db"
        shutil.copy(self.template, path)
        self.ledger = Ledger(f"sqlite:///{path}")
        self.now = START
        self.sent: dict[str, bool] = {}
        self.number = 0
        self.is_open = False
        self.open_until = START
        self.failures = self.openings = 0
        self.probe: str | None = None
        self.probe_until = START
        with self.ledger.begin() as conn:
            gates.ensure(
                conn, User("s", "casda", KEY), url="u", max_concurrency=99, min_interval_ms=0, now=START
            )

    def teardown(self) -> None:
        self.ledger.dispose()
        shutil.rmtree(self.directory)

    @rule()
    def ask(self) -> None:
        self.number += 1
        token = f"t{self.number}"
        with self.ledger.begin() as conn:
            got = gates.take(
                conn,
                KEY,
                token,
                holder="h",
                max_concurrency=99,
                min_interval=timedelta(0),
                ttl=TTL,
                now=self.now,
            )
        waits = self.now < (self.probe_until if self.probe else self.open_until)
        if self.is_open and waits:
            assert isinstance(got, ShutOff)
            return
        assert isinstance(got, Granted)
        assert got.probe == self.is_open
        self.sent[token] = got.probe
        if self.is_open:
            self.probe, self.probe_until = token, self.now + TTL

    @precondition(lambda self: self.sent)
    @rule(outcome=st.sampled_from(Outcome), data=st.data())
    def tell(self, outcome: Outcome, data: st.DataObject) -> None:
        token = data.draw(st.sampled_from(sorted(self.sent)))
        del self.sent[token]
        with self.ledger.begin() as conn:
            gates.settle(conn, KEY, token, outcome, rules=RULES, now=self.now, error={"message": "m"})
        if not self.is_open:
            self.failures = (
                0
                if outcome is Outcome.ANSWERED
                else self.failures + 1
                if outcome is Outcome.AWAY
                else self.failures
            )
            if self.failures >= RULES.failures_to_open:
                self._open()
        elif token == self.probe:
            self.probe = None
            if outcome is Outcome.ANSWERED:
                self.is_open, self.failures, self.openings = False, 0, 0
            elif outcome is not Outcome.NOTHING:
                self._open()

    def _open(self) -> None:
        self.is_open = True
        self.openings += 1
        self.open_until = self.now + timedelta(seconds=min(35, 10 * 2 ** (self.openings - 1)))

    @precondition(lambda self: self.sent)
    @rule(data=st.data())
    def die(self, data: st.DataObject) -> None:
        """Its process is killed between the request and its report."""
        del self.sent[data.draw(st.sampled_from(sorted(self.sent)))]

    @rule(seconds=st.integers(1, 40))
    def time_passes(self, seconds: int) -> None:
        self.now += timedelta(seconds=seconds)

    @invariant()
    def the_ledger_agrees(self) -> None:
        with self.ledger.read() as conn:
            circuit = gates.get(conn, KEY).circuit
        assert (circuit.state is not CircuitState.CLOSED) == self.is_open
        assert circuit.probe_token == self.probe
        assert circuit.openings == self.openings
        if not self.is_open:
            assert circuit.failures == self.failures < RULES.failures_to_open


def test_one_probe_at_a_time_goes_through_an_open_circuit_whatever_happens(migrated_sqlite: Path) -> None:
    class Machine(CircuitMachine):
        template = migrated_sqlite

    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=40,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )
