"""Cancelling: a request that is kept first, and an end that was seen.

An execution without a session ends at once. One with a session is told to stop, and counts as cancelled only when
its manager says so; until then it stays active and the request stays with it. One whose submission is not known yet
is cancelled when it is known. A session that ended before it could be cancelled keeps its own end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

from sqlalchemy.engine import Connection

from beampipe_dagster.backends.base import Backend, SessionObservation
from beampipe_dagster.clock import Clock
from beampipe_dagster.errors import ConflictError, InputError
from beampipe_dagster.execution import run_record
from beampipe_dagster.execution.outcome import finish
from beampipe_dagster.execution.reconcile import Axes, reconcile
from beampipe_dagster.ids import Ids
from beampipe_dagster.ledger import executions, observations, provenance
from beampipe_dagster.ledger.engine import Ledger
from beampipe_dagster.ledger.execution_values import Execution
from beampipe_dagster.ledger.observations import Observation
from beampipe_dagster.ledger.states import DaliugeState, Status, SubmissionState, TerminalOutcome

REASON_LENGTH: Final = 1000
UNKNOWN: Final = frozenset({SubmissionState.IN_FLIGHT, SubmissionState.UNCERTAIN})
"""States of a submission of which nobody knows yet whether there is a session to cancel."""
FIRST_WAIT_SECONDS: Final = 5.0
LONGEST_WAIT_SECONDS: Final = 300.0
LOOKS: Final = 3
"""How often a request itself tells a session to stop; after that the poll goes on."""


@dataclass(frozen=True, slots=True)
class Cancellation:
    """What became of a request.

    Attributes
    ----------
    state
        ``cancelled``: it is over; ``cancelling``: its session was told to stop, and nothing confirms it yet;
        ``waiting``: first it must be known whether it has a session.
    asked_before
        Whether the same had been asked for already.
    """

    execution: Execution
    state: str
    asked_before: bool = False


class Cancelling:
    """Cancels executions.

    Parameters
    ----------
    backend_of
        Gives the backend of a profile's snapshot.
    """

    def __init__(
        self,
        *,
        ledger: Ledger,
        clock: Clock,
        ids: Ids,
        backend_of: Callable[[Mapping[str, Any]], Backend],
    ) -> None:
        self._ledger = ledger
        self._clock = clock
        self._ids = ids
        self._backend_of = backend_of

    def cancel(self, execution_id: str, *, reason: str, actor: str, looks: int = LOOKS) -> Cancellation:
        """Ask for a cancellation, and do it as far as it can be done now.

        Raises
        ------
        InputError
            ``cancel_reason_required``, ``cancel_reason_too_long``.
        NotFoundError
            ``execution_not_found``.
        ConflictError
            ``execution_terminal``: it is over.
        """
        reason = checked_reason(reason, prefix="cancel")
        with self._ledger.begin() as conn:
            current = executions.get(conn, execution_id, lock=True)
            if current.terminal:
                raise ConflictError(
                    f"execution {execution_id} is {current.status} already",
                    code="execution_terminal",
                    hint="there is nothing left to cancel: beampipe execution show " + execution_id,
                )
            before = current.cancel_requested_at is not None
            if not before:
                current = self._request(conn, current, reason, actor)
            if current.submission_state not in UNKNOWN | {SubmissionState.SUBMITTED}:
                return Cancellation(self._end(conn, current), "cancelled", before)
        if current.submission_state in UNKNOWN:
            return Cancellation(current, "waiting", before)
        for _ in range(looks):
            current = self.attempt(current)
            if current.terminal:
                break
        state = current.status.value if current.terminal else "cancelling"
        return Cancellation(current, state, before)

    def attempt(self, execution: Execution) -> Execution:
        """Go on with a cancellation that was asked for; the execution as it is afterwards."""
        if execution.submission_state is not SubmissionState.SUBMITTED:
            return self._without_session(execution)
        backend = self._backend_of(execution.deployment_profile_snapshot)
        seen = backend.cancel(execution.daliuge_session_id or "")
        with self._ledger.begin() as conn:
            current = executions.get(conn, execution.id, lock=True)
            same = current.daliuge_session_id == execution.daliuge_session_id
            if current.terminal or not same or current.submission_state is not SubmissionState.SUBMITTED:
                return current
            if seen.state is DaliugeState.CANCELLED:
                return self._end(conn, current, seen)
            return self._later(conn, current, seen)

    def _without_session(self, execution: Execution) -> Execution:
        with self._ledger.begin() as conn:
            current = executions.get(conn, execution.id, lock=True)
            known = current.submission_state not in UNKNOWN | {SubmissionState.SUBMITTED}
            if not current.terminal and current.cancel_requested_at is not None and known:
                return self._end(conn, current)
            return current

    def _request(self, conn: Connection, execution: Execution, reason: str, actor: str) -> Execution:
        now = self._clock.now()
        moved = executions.move(
            conn,
            execution,
            now=now,
            values={
                "cancel_requested_at": now,
                "cancel_requested_by": actor,
                "cancel_reason": reason,
                "cancel_next_at": now,
            },
        )
        payload: dict[str, Any] = {"reason": reason, "submission_state": execution.submission_state.value}
        event = _event(moved, "execution.cancel_requested", payload, actor=actor)
        provenance.record(conn, [event], ids=self._ids, now=now)
        return moved

    def _later(self, conn: Connection, execution: Execution, seen: SessionObservation) -> Execution:
        """Nothing confirms it: keep what was seen when it is new, and have the poll look at once and again."""
        now = self._clock.now()
        wait = min(LONGEST_WAIT_SECONDS, FIRST_WAIT_SECONDS * 2 ** min(execution.cancel_attempts, 10))
        if not execution.cancel_attempts:
            why = seen.reason or f"the session is {seen.state.value}"
            event = _event(execution, "execution.cancel_unconfirmed", {"reason": why})
            observations.record(conn, [_evidence(execution, seen)], ids=self._ids, now=now)
            provenance.record(conn, [event], ids=self._ids, now=now)
        return executions.move(
            conn,
            execution,
            now=now,
            values={
                "cancel_attempts": execution.cancel_attempts + 1,
                "cancel_next_at": now + timedelta(seconds=wait),
                "next_poll_at": now,
            },
        )

    def _end(
        self, conn: Connection, execution: Execution, seen: SessionObservation | None = None
    ) -> Execution:
        """It is cancelled: nothing runs, or its manager said that the session is."""
        now = self._clock.now()
        values: dict[str, Any] = {"escalations": None}
        outcome = TerminalOutcome.CANCELLED
        if seen is not None:
            observations.record(conn, [_evidence(execution, seen)], ids=self._ids, now=now)
            decision = reconcile(
                Axes(
                    submission=execution.submission_state,
                    scheduler=execution.scheduler_state,
                    daliuge=seen.state,
                    outputs=execution.output_state,
                )
            )
            outcome = decision.outcome or outcome
            if decision.mismatch:
                payload = {"code": decision.mismatch, "requires_operator": decision.requires_operator}
                event = _event(execution, "execution.reconciliation_mismatch", payload)
                provenance.record(conn, [event], ids=self._ids, now=now)
            kept = run_record.with_terminal(
                execution.run_record,
                session_id=execution.daliuge_session_id,
                session_state=seen.state.value,
                at=seen.observed_at,
                ledger_status=Status.CANCELLED.value,
            )
            values |= {
                "daliuge_state": seen.state,
                "daliuge_raw_status": seen.raw,
                "last_reconciled_at": now,
                "workflow_manifest": run_record.put(execution.workflow_manifest, kept),
            }
        return finish(
            conn,
            execution,
            Status.CANCELLED,
            outcome=outcome,
            clock=self._clock,
            ids=self._ids,
            values=values,
        )


def checked_reason(reason: str, *, prefix: str) -> str:
    """The reason, trimmed.

    Raises
    ------
    InputError
        ``<prefix>_reason_required``, ``<prefix>_reason_too_long``.
    """
    trimmed = reason.strip()
    if not trimmed:
        raise InputError(
            "no reason was given", code=f"{prefix}_reason_required", hint="say why, in a few words"
        )
    if len(trimmed) > REASON_LENGTH:
        raise InputError(
            f"the reason has {len(trimmed):,} characters",
            code=f"{prefix}_reason_too_long",
            hint=f"give at most {REASON_LENGTH:,}",
        )
    return trimmed


def _event(
    execution: Execution, event_type: str, payload: dict[str, Any], *, actor: str = "system"
) -> provenance.Event:
    return provenance.Event(
        event_type=event_type,
        project_module=execution.project_module,
        source_identifier=execution.source_identifiers[0],
        execution_id=execution.id,
        actor=actor,
        correlation_id=execution.claim_token,
        payload={**payload, "session_id": execution.daliuge_session_id},
    )


def _evidence(execution: Execution, seen: SessionObservation) -> Observation:
    return Observation(
        execution_id=execution.id,
        kind="daliuge_session",
        normalized_state=seen.state.value,
        raw_state="CANCELLED_CONFIRMED" if seen.state is DaliugeState.CANCELLED else None,
        reason=seen.reason or "looked at after it was told to stop",
        payload={"session_id": execution.daliuge_session_id, "raw": seen.raw},
    )
