"""One look at everything in flight.

A tick reads what is due from the ledger, asks each target once for all its sessions, and writes what changed.
It is bounded by a deadline and holds a lease, because a sensor's timeout does not stop its code: two ticks must
never overlap. Nothing is ever failed for its age.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from beampipe_dagster.backends.base import Backend, SessionObservation
from beampipe_dagster.backends.provider import BackendProvider
from beampipe_dagster.clock import Clock
from beampipe_dagster.errors import BeampipeError, ConflictError
from beampipe_dagster.execution import run_record
from beampipe_dagster.execution.outcome import finish
from beampipe_dagster.execution.reconcile import Axes, Decision, NextAction, reconcile
from beampipe_dagster.execution.steps import profile_of
from beampipe_dagster.ids import Ids
from beampipe_dagster.ledger import artifacts, executions, fsm, leases, observations, provenance
from beampipe_dagster.ledger.engine import Ledger
from beampipe_dagster.ledger.execution_values import Execution
from beampipe_dagster.ledger.observations import Observation
from beampipe_dagster.ledger.states import (
    ACTIVE,
    TERMINAL,
    ArtifactKind,
    ControlPhase,
    DaliugeState,
    FailureClass,
    Status,
    SubmissionState,
    TerminalOutcome,
)
from beampipe_dagster.ledger.tables import batch_execution_record as record
from beampipe_dagster.poll.uncertain import UncertainSubmissions

LEASE: Final = "poll_tick"
LONGEST_INTERVAL_SECONDS: Final = 60.0
LOST_LOOKS: Final = 3
"""Complete answers of "unknown session" before a submitted session counts as lost."""

BATCH: Final = 500
LOOKS: Final = 50
"""Sessions that are looked at between two looks at the clock."""


@dataclass(slots=True)
class PollReport:
    """What a tick saw and did, for the sensor's page."""

    looked_at: int = 0
    changed: list[str] = field(default_factory=list)
    terminal: list[str] = field(default_factory=list)
    resolved: list[str] = field(default_factory=list)
    unreachable: list[str] = field(default_factory=list)
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
        ):
            if items:
                parts.append(f"{len(items)} {words}")
        return ", ".join(parts)


class PollService:
    """Observes submitted executions and moves them."""

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
    ) -> None:
        self._ledger = ledger
        self._clock = clock
        self._ids = ids
        self._backends = backends
        self._interval = interval_seconds
        self._lease_seconds = lease_seconds
        self._delete_sessions = delete_sessions
        self._oids: dict[str, frozenset[str]] = {}
        self._uncertain = UncertainSubmissions(
            ledger=ledger, clock=clock, ids=ids, backends=backends, interval_seconds=interval_seconds
        )

    def tick(self) -> PollReport:
        """Look once at everything that is due."""
        report = PollReport()
        token = self._ids.new()
        deadline = self._clock.monotonic() + self._lease_seconds / 2
        with self._ledger.begin() as conn:
            mine = leases.acquire(conn, LEASE, token, now=self._clock.now(), seconds=self._lease_seconds)
        if not mine:
            report.skipped = "another poll is at work"
            return report
        try:
            self._uncertain.resolve(report.resolved, report.unreachable, deadline=deadline)
            for backend, due in self._by_target(self._due()):
                for start in range(0, len(due), LOOKS):
                    if self._clock.monotonic() >= deadline:
                        return report  # the rest is still due at the next tick
                    self._look(backend, due[start : start + LOOKS], report)
        finally:
            with self._ledger.begin() as conn:
                leases.release(conn, LEASE, token)
        return report

    def _due(self) -> list[Execution]:
        now = self._clock.now()
        with self._ledger.read() as conn:
            return executions.select(
                conn,
                record.c.submission_state == SubmissionState.SUBMITTED.value,
                record.c.status.in_([status.value for status in ACTIVE]),
                # A finished session whose outputs are to be verified may be gone any time; it is not lost.
                record.c.control_phase != ControlPhase.OUTPUT_VERIFICATION.value,
                sa.or_(record.c.next_poll_at.is_(None), record.c.next_poll_at <= now),
                limit=BATCH,
            )

    def _by_target(self, due: Iterable[Execution]) -> list[tuple[Backend, list[Execution]]]:
        groups: dict[str, tuple[Backend, list[Execution]]] = {}
        for execution in due:
            try:
                self._expected(execution)
                backend = self._backends.backend(profile_of(execution))
            except BeampipeError as error:
                self._cannot_look(execution, error)
                continue
            groups.setdefault(backend.url, (backend, []))[1].append(execution)
        return list(groups.values())

    def _look(self, backend: Backend, due: list[Execution], report: PollReport) -> None:
        wanted = {
            execution.daliuge_session_id: self._expected(execution)
            for execution in due
            if execution.daliuge_session_id
        }
        seen = backend.observe(wanted)
        report.looked_at += len(seen)
        for execution in due:
            observation = seen.get(execution.daliuge_session_id or "")
            if observation is None:
                continue
            try:
                with self._ledger.begin() as conn:
                    moved = self._apply(conn, execution, observation)
            except ConflictError:
                continue  # it moved while we looked; the next tick sees it as it is
            if observation.state is DaliugeState.UNREACHABLE:
                report.unreachable.append(execution.id)
            if moved.daliuge_state is not execution.daliuge_state:
                report.changed.append(execution.id)
            if moved.terminal:
                report.terminal.append(execution.id)
                self._oids.pop(execution.id, None)
                self._clean_up(backend, moved)

    def _cannot_look(self, execution: Execution, error: BeampipeError) -> None:
        """Keep why an execution cannot be looked at; the others are, and it is tried again."""
        now = self._clock.now()
        with suppress(ConflictError), self._ledger.begin() as conn:
            executions.move(
                conn,
                execution,
                now=now,
                patch=fsm.StatusPatch(error=str(error)),
                values={
                    "last_error_code": error.code,
                    "next_poll_at": now + timedelta(seconds=LONGEST_INTERVAL_SECONDS),
                },
            )

    def _expected(self, execution: Execution) -> frozenset[str]:
        """Drops that the session must have; read from the physical graph once a process."""
        if execution.id not in self._oids:
            with self._ledger.read() as conn:
                artifact = artifacts.describe(conn, execution.id, ArtifactKind.PHYSICAL_GRAPH)
                drops: Any = artifacts.load(conn, artifact.id)
            self._oids[execution.id] = frozenset(drop["oid"] for drop in drops if "oid" in drop)
        return self._oids[execution.id]

    def _apply(self, conn: Connection, execution: Execution, seen: SessionObservation) -> Execution:
        """Write one observation, and what follows from it."""
        now = self._clock.now()
        changed = seen.state is not execution.daliuge_state
        if changed:
            observations.record(conn, [_evidence(execution, seen)], ids=self._ids, now=now)
        if seen.state is DaliugeState.NOT_CREATED:
            return self._absent(conn, execution, seen, now)
        drops = _counts(seen) or execution.drop_counts
        values: dict[str, Any] = {
            "daliuge_state": seen.state,
            "daliuge_raw_status": seen.raw,
            "drop_counts": drops,
            "absent_count": 0,
            "poll_count": execution.poll_count + 1,
            "last_reconciled_at": now,
            "next_poll_at": now + timedelta(seconds=self._next_interval(execution, seen, now)),
        }
        if execution.control_phase is ControlPhase.SUBMITTED:
            values["control_phase"] = ControlPhase.MONITORING
        decision = reconcile(_axes(execution, seen.state))
        if decision.next_action is NextAction.VERIFY_OUTPUTS:
            values["control_phase"] = ControlPhase.OUTPUT_VERIFICATION
        if decision.status in TERMINAL:
            return self._finish(conn, execution, seen, decision, values, now)
        kept = run_record.with_observation(
            execution.run_record,
            session_state=seen.state.value,
            at=seen.observed_at,
            drops=drops,
            round_number=execution.poll_count + 1,
        )
        values["workflow_manifest"] = run_record.put(execution.workflow_manifest, kept)
        patch = fsm.StatusPatch(clear_error=True)
        if seen.state is DaliugeState.UNREACHABLE:
            patch = fsm.StatusPatch(error=seen.reason)
            values["last_error_code"] = "backend_unavailable"
        else:
            values["last_error_code"] = None
        if decision.status is not Status.PENDING and decision.status is not execution.status:
            patch = fsm.StatusPatch(status=decision.status, error=patch.error, clear_error=patch.clear_error)
        return executions.move(conn, execution, now=now, patch=patch, values=values)

    def _next_interval(self, execution: Execution, seen: SessionObservation, now: datetime) -> float:
        """Often at the start and less often later; an unreachable target is asked less and less."""
        if seen.state is DaliugeState.UNREACHABLE:
            return min(LONGEST_INTERVAL_SECONDS, self._interval * 4)
        age = (now - (execution.started_at or now)).total_seconds()
        return min(LONGEST_INTERVAL_SECONDS, max(self._interval, age / 20))

    def _absent(
        self, conn: Connection, execution: Execution, seen: SessionObservation, now: datetime
    ) -> Execution:
        """A submitted session that its manager does not know: look again before calling it lost."""
        looks = execution.absent_count + 1
        values: dict[str, Any] = {
            "absent_count": looks,
            "poll_count": execution.poll_count + 1,
            "daliuge_raw_status": seen.raw,
            "last_reconciled_at": now,
            "next_poll_at": now + timedelta(seconds=self._interval),
        }
        if looks < LOST_LOOKS:
            return executions.move(conn, execution, now=now, values=values)
        error = (
            f"session {execution.daliuge_session_id} was deployed, and its manager no longer knows it; "
            "what it had done is not known"
        )
        values["daliuge_state"] = DaliugeState.UNKNOWN
        values["workflow_manifest"] = run_record.put(
            execution.workflow_manifest,
            run_record.with_terminal(
                execution.run_record,
                session_id=execution.daliuge_session_id,
                session_state="lost",
                at=now,
                ledger_status=Status.FAILED.value,
                error=error,
            ),
        )
        return finish(
            conn,
            execution,
            Status.FAILED,
            outcome=TerminalOutcome.INCONSISTENT,
            clock=self._clock,
            ids=self._ids,
            values=values,
            error=error,
            error_code="session_lost",
            failure_class=FailureClass.INCONSISTENT_STATE.value,
        )

    def _finish(
        self,
        conn: Connection,
        execution: Execution,
        seen: SessionObservation,
        decision: Decision,
        values: dict[str, Any],
        now: datetime,
    ) -> Execution:
        error = _error_text(seen) if decision.status is Status.FAILED else None
        kept = run_record.with_terminal(
            run_record.with_observation(
                execution.run_record,
                session_state=seen.state.value,
                at=seen.observed_at,
                drops=values["drop_counts"],
                round_number=execution.poll_count + 1,
            ),
            session_id=execution.daliuge_session_id,
            session_state=seen.state.value,
            at=seen.observed_at,
            ledger_status=decision.status.value,
            error=error,
            failed_drops=[
                {"oid": drop.oid, "name": drop.name, "state": drop.state, "log": drop.log}
                for drop in seen.failed_drops
            ],
            error_drops_count=seen.drops.error if seen.drops else len(seen.failed_drops),
        )
        values["workflow_manifest"] = run_record.put(execution.workflow_manifest, kept)
        if decision.mismatch:
            self._mismatch(conn, execution, decision, now)
        return finish(
            conn,
            execution,
            decision.status,
            outcome=decision.outcome or TerminalOutcome.INCONSISTENT,
            clock=self._clock,
            ids=self._ids,
            values=values,
            error=error,
            error_code="session_failed" if error else None,
            failure_class=FailureClass.GRAPH.value if error else None,
        )

    def _mismatch(self, conn: Connection, execution: Execution, decision: Decision, now: datetime) -> None:
        event = provenance.Event(
            event_type="execution.reconciliation_mismatch",
            project_module=execution.project_module,
            execution_id=execution.id,
            correlation_id=execution.claim_token,
            payload={"code": decision.mismatch, "requires_operator": decision.requires_operator},
        )
        provenance.record(conn, [event], ids=self._ids, now=now)

    def _clean_up(self, backend: Backend, execution: Execution) -> None:
        """Delete a terminal session where the settings say so; the outcome does not depend on it."""
        if not self._delete_sessions or execution.daliuge_session_id is None:
            return
        try:
            backend.remove(execution.daliuge_session_id)
        except BeampipeError as error:
            with self._ledger.begin() as conn:
                event = provenance.Event(
                    event_type="execution.session_left_behind",
                    project_module=execution.project_module,
                    execution_id=execution.id,
                    payload=error.as_dict(),
                )
                provenance.record(conn, [event], ids=self._ids, now=self._clock.now())


def _axes(execution: Execution, daliuge: DaliugeState) -> Axes:
    return Axes(
        submission=execution.submission_state,
        scheduler=execution.scheduler_state,
        daliuge=daliuge,
        outputs=execution.output_state,
        output_verification_required=execution.output_verification_required,
    )


def _counts(seen: SessionObservation) -> dict[str, Any] | None:
    return dict(seen.drops.as_dict()) if seen.drops else None


def _evidence(execution: Execution, seen: SessionObservation) -> Observation:
    return Observation(
        execution_id=execution.id,
        kind="daliuge_session",
        normalized_state=seen.state.value,
        raw_state=run_record.bounded(str(seen.raw)) if seen.raw is not None else None,
        reason=seen.reason,
        payload={
            "drops": _counts(seen),
            "failed_drops": [{"name": drop.name, "log": drop.log} for drop in seen.failed_drops],
        },
    )


def _error_text(seen: SessionObservation) -> str:
    """What failed, in one line: the first failed drop's own words, else the session's."""
    first = next((drop for drop in seen.failed_drops if drop.log), None)
    if first is not None:
        return f"drop {first.name} failed: {run_record.bounded(run_record.headline(first.log), 300)}"
    return seen.reason or "the session failed"
