"""One look at everything in flight.

A tick reads what is due from the ledger, asks each target once for all its sessions, all targets at the same time,
and writes what changed. It is bounded by a deadline and holds a lease, because a sensor's timeout does not stop its
code: two ticks must never overlap. Nothing is ever failed for its age.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy.engine import Connection

from beampipe_dagster.backends.base import Backend, SessionObservation, SessionPresence
from beampipe_dagster.backends.provider import BackendProvider
from beampipe_dagster.clock import Clock
from beampipe_dagster.config.profile import DeploymentProfile
from beampipe_dagster.errors import BeampipeError, ConflictError
from beampipe_dagster.execution.cancel import Cancelling
from beampipe_dagster.ids import Ids
from beampipe_dagster.ledger import artifacts, executions, fsm, leases, polling
from beampipe_dagster.ledger.engine import Ledger
from beampipe_dagster.ledger.execution_values import Execution
from beampipe_dagster.ledger.polling import InFlight, Unchanged
from beampipe_dagster.ledger.states import DALIUGE_ACTIVE, ArtifactKind, DaliugeState, SubmissionState
from beampipe_dagster.poll import cancelling
from beampipe_dagster.poll.cadence import LONGEST_SECONDS, Cadence, Cadences
from beampipe_dagster.poll.cleaning import Cleaning
from beampipe_dagster.poll.moves import Looked, Moves
from beampipe_dagster.poll.targets import Answers, Questions, Targets
from beampipe_dagster.poll.uncertain import UncertainSubmissions

LEASE: Final = "poll_tick"
BATCH: Final = 2000
"""Executions that one tick looks at, the longest overdue first."""
COUNTED: Final = 40
"""Running sessions of one target whose drops are counted in one tick, in turn: each takes a request."""
TICK_SECONDS: Final = 30.0
"""A tick begins nothing new after so long; a sensor is given up after 60 s."""
PATIENCE_SECONDS: Final = 5.0
"""A tick waits so long for its targets; what comes later is taken by the next one."""
WRITTEN: Final = 50
"""Looks that saw something new, and end nothing, written in one transaction."""
STUCK_SECONDS: Final = 6 * 3600.0

_GOING_ON = DALIUGE_ACTIVE | {DaliugeState.UNREACHABLE, DaliugeState.UNKNOWN}


@dataclass(slots=True)
class PollReport:
    """What a tick saw and did, for the sensor's page."""

    looked_at: int = 0
    changed: list[str] = field(default_factory=list)
    terminal: list[str] = field(default_factory=list)
    resolved: list[str] = field(default_factory=list)
    unreachable: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    waiting_for: list[str] = field(default_factory=list)
    skipped: str | None = None

    def summary(self) -> str:
        """One line for people."""
        if self.skipped:
            return self.skipped
        parts = [f"looked at {self.looked_at}"]
        for words, items in (
            ("ended", self.terminal),
            ("resolved", self.resolved),
            ("could not be reached", self.unreachable),
            ("cleaned up", self.removed),
        ):
            if items:
                parts.append(f"{len(items)} {words}")
        if self.waiting_for:
            parts.append(f"still waiting for {', '.join(self.waiting_for)}")
        return ", ".join(parts)


class Expected(Mapping[str, frozenset[str] | None]):
    """The drops that each session must have, read from its physical graph when they are asked for.

    That is only when a session says that it has finished. ``problems`` has the sessions whose graph could not be
    read; what was seen of them must not be believed.
    """

    def __init__(self, *, ledger: Ledger, due: Sequence[InFlight]) -> None:
        self._ledger = ledger
        self._executions = {one.session_id: one.id for one in due}
        self.problems: dict[str, BeampipeError] = {}

    def __getitem__(self, session_id: str) -> frozenset[str] | None:
        """Identifiers of the drops."""
        execution_id = self._executions[session_id]
        try:
            with self._ledger.read() as conn:
                artifact = artifacts.describe(conn, execution_id, ArtifactKind.PHYSICAL_GRAPH)
                drops: Any = artifacts.load(conn, artifact.id)
        except BeampipeError as error:
            self.problems[session_id] = error
            return None
        return frozenset(drop["oid"] for drop in drops if "oid" in drop)

    def __iter__(self) -> Iterator[str]:
        """The sessions, the longest overdue first."""
        return iter(self._executions)

    def __len__(self) -> int:
        """How many sessions there are."""
        return len(self._executions)


class PollService:
    """Observes submitted executions and moves them.

    Parameters
    ----------
    interval_seconds
        Shortest time between two looks at a session, where its survey says nothing.
    lease_seconds
        After how long a tick that died is replaced.
    delete_sessions
        Whether sessions of terminal executions are removed.
    stuck_seconds
        How long a running session's drops may stay as they are before an operator is told.
    patience_seconds
        How long a tick waits for its targets' answers.
    """

    def __init__(
        self,
        *,
        ledger: Ledger,
        clock: Clock,
        ids: Ids,
        backends: BackendProvider,
        interval_seconds: float,
        lease_seconds: float = 120.0,
        delete_sessions: bool = False,
        stuck_seconds: float = STUCK_SECONDS,
        patience_seconds: float = PATIENCE_SECONDS,
    ) -> None:
        self._ledger = ledger
        self._clock = clock
        self._ids = ids
        self._backends = backends
        self._lease_seconds = lease_seconds
        self._patience = patience_seconds
        self._cadences = Cadences(interval=interval_seconds)
        self._moves = Moves(clock=clock, ids=ids, stuck_seconds=stuck_seconds)
        self._targets = Targets(clock=clock)
        self._profiles: dict[str, DeploymentProfile] = {}
        self._uncertain = UncertainSubmissions(
            ledger=ledger, clock=clock, ids=ids, interval_seconds=interval_seconds
        )
        self._cancelling = Cancelling(ledger=ledger, clock=clock, ids=ids, backend_of=self._backend_of)
        cleaning = Cleaning(ledger=ledger, clock=clock, ids=ids, backend_of=self._backend_of)
        self._cleaning = cleaning if delete_sessions else None

    def tick(self) -> PollReport:
        """Look once at everything that is due."""
        report = PollReport()
        token = self._ids.new()
        begin = self._clock.monotonic()
        deadline = begin + min(self._lease_seconds / 2, TICK_SECONDS)
        with self._ledger.begin() as conn:
            mine = leases.acquire(conn, LEASE, token, now=self._clock.now(), seconds=self._lease_seconds)
        if not mine:
            report.skipped = "another poll is at work"
            return report
        try:
            self._round(report, deadline=deadline, patience=min(deadline, begin + self._patience))
        finally:
            with self._ledger.begin() as conn:
                leases.release(conn, LEASE, token)
        return report

    def _round(self, report: PollReport, *, deadline: float, patience: float) -> None:
        if self._clock.monotonic() >= deadline:
            return  # all is still due at the next tick
        report.terminal.extend(
            cancelling.go_on(
                ledger=self._ledger, clock=self._clock, cancelling=self._cancelling, deadline=patience
            )
        )
        defects = []
        for answers in self._targets.ask(self._questions(report), deadline=patience):
            if answers.defect is not None:
                defects.append(answers.defect)
            self._write(answers, report, deadline)
        busy = self._targets.busy
        report.waiting_for.extend(sorted(busy))
        if self._cleaning is not None:
            report.removed.extend(self._cleaning.run(avoid=busy, deadline=deadline))
        for defect in defects:
            raise defect  # a mistake of ours; the other targets' answers are written

    # ---------------------------------------------------------------- what is asked

    def _questions(self, report: PollReport) -> list[Questions]:
        with self._ledger.read() as conn:
            due = polling.due(conn, now=self._clock.now(), limit=BATCH)
        groups: dict[str, tuple[Backend, list[InFlight], list[Execution]]] = {}
        for one in due:
            try:
                backend = self._backend_of(one.deployment_profile_snapshot)
            except BeampipeError as error:
                self._cannot_look(one.id, error)
                continue
            groups.setdefault(backend.url, (backend, [], []))[1].append(one)
        for execution in self._uncertain.open():
            try:
                backend = self._backend_of(execution.deployment_profile_snapshot)
            except BeampipeError as error:
                report.unreachable.append(execution.id)  # its profile leads nowhere; the others are looked at
                self._uncertain.hold(execution, error.message)
                continue
            groups.setdefault(backend.url, (backend, [], []))[2].append(execution)
        return [
            Questions(
                backend=backend,
                due=ours,
                expected=Expected(ledger=self._ledger, due=ours),
                counted=_in_turn(ours),
                uncertain=unsure,
            )
            for backend, ours, unsure in groups.values()
        ]

    def _backend_of(self, snapshot: Mapping[str, Any]) -> Backend:
        """The backend of a profile as it was at admission; the same profile is read once."""
        key = json.dumps(snapshot, sort_keys=True)
        if key not in self._profiles:
            self._profiles[key] = DeploymentProfile.from_snapshot(dict(snapshot))
        return self._backends.backend(self._profiles[key])

    def _cannot_look(self, execution_id: str, error: BeampipeError) -> None:
        """Keep why an execution cannot be looked at; the others are, and it is tried again."""
        now = self._clock.now()
        with suppress(ConflictError), self._ledger.begin() as conn:
            execution = executions.get(conn, execution_id, lock=True)
            if execution.terminal:
                return
            executions.move(
                conn,
                execution,
                now=now,
                patch=fsm.StatusPatch(error=str(error)),
                values={
                    "last_error_code": error.code,
                    "next_poll_at": now + timedelta(seconds=LONGEST_SECONDS),
                },
            )

    # ---------------------------------------------------------------- what is written

    def _write(self, answers: Answers, report: PollReport, deadline: float) -> None:
        """Write a target's answers; those that saw nothing new together, the others one by one."""
        self._settle(answers, report, deadline)
        asked = answers.asked
        problems = asked.expected.problems if isinstance(asked.expected, Expected) else {}
        moved: list[Looked] = []
        same: list[Looked] = []
        now = self._clock.now()
        for looked in self._looked(answers):
            if looked.one.session_id in problems:
                self._cannot_look(looked.one.id, problems[looked.one.session_id])
            else:
                (same if self._moves.unchanged(looked, now) else moved).append(looked)
        report.looked_at += len(answers.seen)
        report.unreachable.extend(one.one.id for one in same if not one.answered)
        if same:
            with self._ledger.begin() as conn:
                polling.looked_at(conn, _grouped(same, now, self._moves.next_at), now=now)
        self._move_all(moved, report, deadline)

    def _settle(self, answers: Answers, report: PollReport, deadline: float) -> None:
        """What follows for submissions without a receipt."""
        for execution in answers.asked.uncertain:
            presence = answers.presences.get(execution.id)
            if presence is None or self._clock.monotonic() >= deadline:
                continue
            if self._uncertain.settle(execution, answers.asked.backend, presence):
                report.resolved.append(execution.id)
            elif presence is SessionPresence.UNREACHABLE:
                report.unreachable.append(execution.id)

    def _looked(self, answers: Answers) -> list[Looked]:
        pairs: list[tuple[InFlight, SessionObservation]] = [
            (one, answers.seen[one.session_id]) for one in answers.asked.due if one.session_id in answers.seen
        ]
        cadences: dict[str, Cadence] = {}
        with self._ledger.read() as conn:
            for one, _ in pairs:
                if one.project_config_id not in cadences:
                    cadences[one.project_config_id] = self._cadences.of(conn, one.project_config_id)
        return [Looked(one, seen, cadences[one.project_config_id]) for one, seen in pairs]

    def _move_all(self, moved: Sequence[Looked], report: PollReport, deadline: float) -> None:
        """Write looks that saw something new; those that end nothing some at a time.

        An end touches sources, which everybody locks in the order of their names: it has a transaction of its own.
        """
        going_on = sorted((one for one in moved if one.seen.state in _GOING_ON), key=lambda one: one.one.id)
        batches = [going_on[start : start + WRITTEN] for start in range(0, len(going_on), WRITTEN)]
        batches += [[one] for one in moved if one.seen.state not in _GOING_ON]
        for batch in batches:
            if self._clock.monotonic() >= deadline:
                return  # they are still due
            with self._ledger.begin() as conn:
                done = [(looked, self._move(conn, looked)) for looked in batch]
            for looked, after in done:
                if after is not None:
                    self._count(looked, after, report)

    def _move(self, conn: Connection, looked: Looked) -> Execution | None:
        """Write one look; None when the execution moved while we looked, and the next tick sees it as it is."""
        one = looked.one
        with suppress(ConflictError), conn.begin_nested():
            current = executions.get(conn, one.id, lock=True)
            if (
                not current.terminal
                and current.daliuge_session_id == one.session_id
                and current.submission_state is SubmissionState.SUBMITTED
            ):
                return self._moves.apply(conn, current, looked)
        return None

    def _count(self, looked: Looked, after: Execution, report: PollReport) -> None:
        if not looked.answered:
            report.unreachable.append(after.id)
        if after.daliuge_state is not looked.one.daliuge_state:
            report.changed.append(after.id)
        if after.terminal:
            report.terminal.append(after.id)


def _in_turn(due: Sequence[InFlight]) -> frozenset[str]:
    """The sessions whose drops were counted the longest ago."""
    by_count = sorted(
        due, key=lambda one: (one.counted_at is not None, one.counted_at and one.counted_at.timestamp())
    )
    return frozenset(one.session_id for one in by_count[:COUNTED])


def _grouped(
    same: Sequence[Looked], now: datetime, next_at: Callable[[Looked, datetime], datetime]
) -> list[Unchanged]:
    """Looks that saw nothing new, those together that are due again in the same second."""
    groups: dict[tuple[datetime, bool, bool], list[str]] = {}
    for looked in same:
        at = next_at(looked, now)
        at = at.replace(microsecond=0) if at - now > timedelta(seconds=LONGEST_SECONDS / 10) else at
        groups.setdefault((at, looked.answered, looked.seen.drops is not None), []).append(looked.one.id)
    return [Unchanged(ids, at, answered, counted) for (at, answered, counted), ids in groups.items()]
