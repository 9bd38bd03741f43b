"""Submissions without a receipt: look for their session, then adopt it, or prove that nothing was started.

Looked at are submissions whose outcome is uncertain, and those whose process died between the intent and the
receipt (their lease ran out). A deployed session is adopted as it is. One that was never deployed is removed
and the execution goes on with a fresh session, but only after two complete looks some time apart: a deploy may
still have been on its way. An answer that says nothing proves nothing: past its deadline such a submission counts
as uncertain, and an operator is told once why it cannot be resolved.
"""

from __future__ import annotations

from contextlib import suppress
from datetime import timedelta
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from beampipe_dagster.backends.base import Backend, SessionPresence, SubmissionReceipt
from beampipe_dagster.clock import Clock
from beampipe_dagster.errors import BeampipeError, ConflictError
from beampipe_dagster.execution.submission import record_receipt
from beampipe_dagster.ids import Ids
from beampipe_dagster.ledger import executions, fsm, observations, provenance
from beampipe_dagster.ledger.engine import Ledger
from beampipe_dagster.ledger.execution_values import Execution
from beampipe_dagster.ledger.observations import Observation
from beampipe_dagster.ledger.states import ACTIVE, ControlPhase, Status, SubmissionState
from beampipe_dagster.ledger.tables import batch_execution_record as record
from beampipe_dagster.poll import escalation, evidence
from beampipe_dagster.poll.escalation import UNRESOLVED, Escalation

NEGATIVE_LOOKS: Final = 2
"""Complete negative looks, at least one poll interval apart, before a submission counts as not happened."""
LIMIT: Final = 200
"""Submissions without a receipt that one tick looks for."""


class UncertainSubmissions:
    """Resolves submissions by what was found when their sessions were looked for."""

    def __init__(self, *, ledger: Ledger, clock: Clock, ids: Ids, interval_seconds: float) -> None:
        self._ledger = ledger
        self._clock = clock
        self._ids = ids
        self._interval = timedelta(seconds=interval_seconds)

    def open(self) -> list[Execution]:
        """Submissions without a receipt whose time to be looked for has come, without their manifests."""
        now = self._clock.now()
        due = sa.or_(record.c.next_poll_at.is_(None), record.c.next_poll_at <= now)
        died = sa.and_(
            record.c.submission_state == SubmissionState.IN_FLIGHT.value,
            sa.or_(record.c.lease_expires_at.is_(None), record.c.lease_expires_at <= now),
        )
        with self._ledger.read() as conn:
            return executions.select(
                conn,
                sa.or_(died, record.c.submission_state == SubmissionState.UNCERTAIN.value),
                record.c.status.in_([status.value for status in ACTIVE]),
                due,
                limit=LIMIT,
                light=True,
            )

    def settle(self, execution: Execution, backend: Backend, presence: SessionPresence) -> bool:
        """Do what follows from a look; whether it is resolved now."""
        try:
            if presence is SessionPresence.UNREACHABLE:
                self.hold(
                    execution, f"its session cannot be looked for: {backend.url} or one of its nodes is away"
                )
                return False
            if presence is SessionPresence.DEPLOYED:
                self._adopt(execution, backend)
                return True
            return self._negative(execution, backend, presence)
        except ConflictError:
            return False  # its own process resolved it, or is alive after all

    def hold(self, execution: Execution, reason: str) -> None:
        """It cannot be resolved now: look again later, and past its deadline tell an operator, once."""
        now = self._clock.now()
        with suppress(ConflictError), self._ledger.begin() as conn:
            current = self._current(conn, execution)
            values: dict[str, Any] = {"next_poll_at": now + self._interval * 2}
            patch = fsm.StatusPatch()
            overdue = current.submission_deadline_at is not None and current.submission_deadline_at <= now
            if overdue and current.submission_state is SubmissionState.IN_FLIGHT:
                patch, more = self._overdue(conn, current)
                values |= more
            if overdue and UNRESOLVED not in (current.escalations or {}):
                raised = Escalation(
                    UNRESOLVED,
                    f"session {current.daliuge_session_id} has no receipt since its deadline: {reason}",
                    "bring the manager back, and it is resolved by itself; nothing is submitted again until then",
                )
                told = escalation.tell(conn, current, [raised], ids=self._ids, now=now)
                values["escalations"] = {**(current.escalations or {}), **told}
            executions.move(conn, current, now=now, patch=patch, values=values)

    def _overdue(self, conn: Connection, execution: Execution) -> tuple[fsm.StatusPatch, dict[str, Any]]:
        """A submission in flight whose process and deadline are gone counts as uncertain."""
        error = f"session {execution.daliuge_session_id} got no receipt by its deadline; it may run"
        event = provenance.Event(
            event_type="execution.submission_uncertain",
            project_module=execution.project_module,
            source_identifier=execution.source_identifiers[0],
            execution_id=execution.id,
            correlation_id=execution.claim_token,
            payload={
                "code": "submission_deadline_passed",
                "message": error,
                "session_id": execution.daliuge_session_id,
            },
        )
        provenance.record(conn, [event], ids=self._ids, now=self._clock.now())
        return fsm.StatusPatch(status=Status.AWAITING_SCHEDULER, error=error), {
            "submission_state": SubmissionState.UNCERTAIN,
            "last_error_code": "submission_deadline_passed",
            "lease_token": None,
            "lease_expires_at": None,
        }

    def _current(self, conn: Connection, execution: Execution) -> Execution:
        """The execution as it is now, held, as long as it is the submission that was looked for.

        Raises
        ------
        ConflictError
            ``submission_resolved``: it got its receipt, or its process is alive after all.
        """
        current = executions.get(conn, execution.id, lock=True)
        if (
            not current.terminal
            and current.daliuge_session_id == execution.daliuge_session_id
            and current.submission_state in {SubmissionState.IN_FLIGHT, SubmissionState.UNCERTAIN}
            and current.lease_token == execution.lease_token
            and current.lease_expires_at == execution.lease_expires_at
        ):
            return current
        raise ConflictError(
            f"the submission of execution {execution.id} was resolved meanwhile",
            code="submission_resolved",
            hint="nothing has to be done",
        )

    def _adopt(self, execution: Execution, backend: Backend) -> None:
        now = self._clock.now()
        receipt = SubmissionReceipt(
            session_id=execution.daliuge_session_id or "",
            manager_url=backend.url,
            drops=(execution.drop_counts or {}).get("total", 0),
            roots=0,
            deployed_at=now,
        )
        with self._ledger.begin() as conn:
            current = self._current(conn, execution)
            self._note(conn, current, SessionPresence.DEPLOYED)
            record_receipt(
                conn,
                current,
                receipt,
                verify_ssl=backend.verify_ssl,
                clock=self._clock,
                ids=self._ids,
                adopted=True,
            )

    def _negative(self, execution: Execution, backend: Backend, presence: SessionPresence) -> bool:
        """Keep a complete negative look; when there are enough, clear the way for a fresh attempt."""
        now = self._clock.now()
        with self._ledger.begin() as conn:
            current = self._current(conn, execution)
            looks = self._looks(conn, current)
            if not self._enough(looks):
                self._note(conn, current, presence)
                looks = self._looks(conn, current)
            if not self._enough(looks):
                executions.move(
                    conn,
                    current,
                    now=now,
                    values={
                        "absent_count": len(evidence.negatives(looks)),
                        "next_poll_at": now + self._interval,
                    },
                )
                return False
            # From here on its process, should it wake up, finds that it may not deploy any more.
            execution = executions.move(
                conn, current, now=now, values={"lease_token": None, "lease_expires_at": None}
            )
        if presence is SessionPresence.UNDEPLOYED:
            try:
                backend.discard(execution.daliuge_session_id or "")
            except ConflictError:
                self._adopt(execution, backend)  # it was deployed after all
                return True
            except BeampipeError as error:
                self.hold(execution, f"its session cannot be removed: {error.message}")
                return False
        with self._ledger.begin() as conn:
            current = self._current(conn, execution)
            moved = executions.move(
                conn,
                current,
                now=now,
                patch=fsm.StatusPatch(
                    status=Status.RUNNING if current.status is Status.AWAITING_SCHEDULER else None
                ),
                values={
                    "submission_state": SubmissionState.NOT_STARTED,
                    "control_phase": ControlPhase.TRANSLATED,
                    "absent_count": 0,
                    "escalations": None,
                    "lease_token": None,
                    "lease_expires_at": None,
                    "next_launch_at": now,
                    "next_poll_at": None,
                },
            )
            event = provenance.Event(
                event_type="execution.submission_disproved",
                project_module=moved.project_module,
                source_identifier=moved.source_identifiers[0],
                execution_id=moved.id,
                correlation_id=moved.claim_token,
                payload={"session_id": execution.daliuge_session_id, "presence": presence.value},
            )
            provenance.record(conn, [event], ids=self._ids, now=now)
        return True

    def _looks(self, conn: Connection, execution: Execution) -> list[evidence.Look]:
        target = evidence.fingerprint(execution.daliuge_session_id, execution.daliuge_manager_url)
        return evidence.looks(observations.of(conn, execution.id), target)

    def _enough(self, looks: list[evidence.Look]) -> bool:
        return evidence.disproved(looks, number=NEGATIVE_LOOKS, span=self._interval)

    def _note(self, conn: Connection, execution: Execution, presence: SessionPresence) -> None:
        seen = Observation(
            execution_id=execution.id,
            kind=evidence.KIND,
            normalized_state=presence.value,
            reason="looked for a submission without a receipt",
            payload=evidence.payload(execution.daliuge_session_id, execution.daliuge_manager_url),
        )
        observations.record(conn, [seen], ids=self._ids, now=self._clock.now())
