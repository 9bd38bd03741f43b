"""What one look at a session changes in the ledger."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy.engine import Connection

from beampipe_dagster.backends.base import SessionObservation
from beampipe_dagster.clock import Clock
from beampipe_dagster.execution import run_record
from beampipe_dagster.execution.outcome import finish
from beampipe_dagster.execution.reconcile import Axes, Decision, NextAction, reconcile
from beampipe_dagster.ids import Ids
from beampipe_dagster.ledger import executions, fsm, observations, outbox, provenance
from beampipe_dagster.ledger.execution_values import Execution
from beampipe_dagster.ledger.observations import Observation
from beampipe_dagster.ledger.polling import InFlight
from beampipe_dagster.ledger.states import (
    DALIUGE_ACTIVE,
    TERMINAL,
    ControlPhase,
    DaliugeState,
    FailureClass,
    Status,
    TerminalOutcome,
)
from beampipe_dagster.poll import escalation
from beampipe_dagster.poll.cadence import Cadence
from beampipe_dagster.poll.escalation import STUCK, UNRESOLVED, Escalation

LOST_LOOKS: Final = 3
"""Complete answers of "unknown session" before a submitted session counts as lost."""
PROGRESS_ASSET: Final = "backend_run"
PROGRESS_STEPS: Final = 4
"""Dagster is told of a running session's progress at most so often, less one: at each quarter."""


@dataclass(frozen=True, slots=True)
class Looked:
    """An execution in flight, what was seen of its session, and the survey's cadence."""

    one: InFlight
    seen: SessionObservation
    cadence: Cadence

    @property
    def answered(self) -> bool:
        """Whether anybody said anything about the session."""
        return self.seen.state is not DaliugeState.UNREACHABLE


class Moves:
    """Writes looks, each in the caller's transaction.

    Parameters
    ----------
    clock, ids
        Time and identifiers.
    stuck_seconds
        How long the drops of a running session may stay as they are before an operator is told.
    """

    def __init__(self, *, clock: Clock, ids: Ids, stuck_seconds: float) -> None:
        self._clock = clock
        self._ids = ids
        self._stuck = timedelta(seconds=stuck_seconds)

    def next_at(self, looked: Looked, now: datetime) -> datetime:
        """When the session is looked at next."""
        one = looked.one
        wait = looked.cadence.wait(
            age=(now - (one.started_at or now)).total_seconds(),
            failures=0 if looked.answered else one.poll_failure_count + 1,
            key=f"{one.id}:{one.poll_count}",
        )
        return now + timedelta(seconds=wait)

    def unchanged(self, looked: Looked, now: datetime) -> bool:
        """Whether nothing has to be written but that it was looked at."""
        one, seen = looked.one, looked.seen
        if seen.state is not one.daliuge_state or one.absent_count:
            return False
        if not looked.answered:
            return one.poll_failure_count > 0
        return (
            seen.state in DALIUGE_ACTIVE
            and one.monitored
            and one.poll_failure_count == 0
            and seen.reason is None
            and (seen.drops is None or dict(seen.drops.as_dict()) == one.drop_counts)
            and UNRESOLVED not in one.escalations
            and not self._raised(one.progress_at, one.poll_count + 1, one.escalations, looked, now)
        )

    def apply(self, conn: Connection, execution: Execution, looked: Looked) -> Execution:
        """Write one look, and what follows from it."""
        seen, now = looked.seen, self._clock.now()
        if seen.state is not execution.daliuge_state:
            observations.record(conn, [_evidence(execution, seen)], ids=self._ids, now=now)
        if seen.state is DaliugeState.NOT_CREATED:
            return self._absent(conn, execution, looked, now)
        values = self._values(execution, looked, now)
        decision = reconcile(_axes(execution, seen.state))
        if decision.next_action is NextAction.VERIFY_OUTPUTS:
            values["control_phase"] = ControlPhase.OUTPUT_VERIFICATION
        if decision.status in TERMINAL:
            return self._finish(conn, execution, seen, decision, values, now)
        return self._go_on(conn, execution, looked, decision, values, now)

    def _values(self, execution: Execution, looked: Looked, now: datetime) -> dict[str, Any]:
        """The columns that a look at a known session writes, however it stands."""
        seen = looked.seen
        drops = _counts(seen) or execution.drop_counts
        values: dict[str, Any] = {
            "daliuge_state": seen.state,
            "drop_counts": drops,
            "poll_count": execution.poll_count + (1 if looked.answered else 0),
            "poll_failure_count": 0 if looked.answered else looked.one.poll_failure_count + 1,
            "last_reconciled_at": now,
            "next_poll_at": self.next_at(looked, now),
        }
        if looked.answered:
            values |= {"daliuge_raw_status": seen.raw, "absent_count": 0}
        if seen.drops is not None:
            values["counted_at"] = now
        if drops != execution.drop_counts or looked.one.progress_at is None:
            values["progress_at"] = now
        if execution.control_phase is ControlPhase.SUBMITTED:
            values["control_phase"] = ControlPhase.MONITORING
        return values

    def _go_on(
        self,
        conn: Connection,
        execution: Execution,
        looked: Looked,
        decision: Decision,
        values: dict[str, Any],
        now: datetime,
    ) -> Execution:
        """It is not over: what was seen goes into the run record, and an operator may have to be told."""
        seen, drops, rounds = looked.seen, values["drop_counts"], values["poll_count"]
        record = run_record.with_observation(
            execution.run_record,
            session_state=seen.state.value,
            at=seen.observed_at,
            drops=drops,
            round_number=rounds,
        )
        progress_at = values.get("progress_at", looked.one.progress_at)
        over = {UNRESOLVED, STUCK} if progress_at == now else {UNRESOLVED}
        told = {kind: about for kind, about in (execution.escalations or {}).items() if kind not in over}
        raised = self._raised(progress_at, rounds, told, looked, now)
        told |= escalation.tell(conn, execution, raised, ids=self._ids, now=now)
        values["escalations"] = told or None
        if raised:
            reason = "; ".join(one.reason for one in raised)
            record = run_record.with_escalation(record, round_number=rounds, reason=reason)
        values["workflow_manifest"] = run_record.put(execution.workflow_manifest, record)
        self._tell_progress(conn, execution, drops, now)
        values["last_error_code"] = None if looked.answered else "backend_unavailable"
        status = decision.status if decision.status not in {Status.PENDING, execution.status} else None
        patch = fsm.StatusPatch(
            status=status, error=None if looked.answered else seen.reason, clear_error=looked.answered
        )
        return executions.move(conn, execution, now=now, patch=patch, values=values)

    def _raised(
        self,
        progress_at: datetime | None,
        rounds: int,
        told: dict[str, Any],
        looked: Looked,
        now: datetime,
    ) -> list[Escalation]:
        if looked.seen.state not in DALIUGE_ACTIVE:
            return []
        found = [
            escalation.of_rounds(rounds, looked.cadence.max_rounds, told),
            escalation.of_progress(progress_at, now=now, limit=self._stuck, told=told),
        ]
        return [one for one in found if one is not None]

    def _tell_progress(
        self, conn: Connection, execution: Execution, drops: dict[str, int] | None, now: datetime
    ) -> None:
        """Tell Dagster when another quarter of the drops is completed; nothing before the first."""
        if _quarter(drops) <= _quarter(execution.drop_counts) or not drops:
            return
        message = outbox.Message(
            kind="observation",
            project_module=execution.project_module,
            asset=PROGRESS_ASSET,
            partition_key=execution.partition_key,
            correlation_id=execution.id,
            payload={
                "execution_id": execution.id,
                "progress": f"{drops['completed']} of {drops['total']} drops completed",
                "drops": dict(drops),
                "session_id": execution.daliuge_session_id,
            },
        )
        outbox.put(conn, [message], now=now, available_at=now)

    def _absent(self, conn: Connection, execution: Execution, looked: Looked, now: datetime) -> Execution:
        """A submitted session that its manager does not know: look again before calling it lost."""
        looks = execution.absent_count + 1
        values: dict[str, Any] = {
            "absent_count": looks,
            "poll_count": execution.poll_count + 1,
            "poll_failure_count": 0,
            "daliuge_raw_status": looked.seen.raw,
            "last_reconciled_at": now,
            "next_poll_at": now + timedelta(seconds=looked.cadence.interval),
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
                round_number=values["poll_count"],
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
        values["escalations"] = None
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


def _quarter(drops: dict[str, int] | None) -> int:
    if not drops or not drops.get("total"):
        return 0
    return PROGRESS_STEPS * drops.get("completed", 0) // drops["total"]


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
