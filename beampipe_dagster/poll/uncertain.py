"""Submissions without a receipt: look for their session, then adopt it, or prove that nothing was started.

Looked at are submissions whose outcome is uncertain, and those whose process died between the intent and the
receipt (their lease ran out). A deployed session is adopted as it is. One that was never deployed is removed
and the execution goes on with a fresh session, but only after two complete looks some time apart: a deploy may
still have been on its way. An answer that says nothing proves nothing.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from beampipe_dagster.backends.base import Backend, SessionPresence, SubmissionReceipt
from beampipe_dagster.backends.provider import BackendProvider
from beampipe_dagster.clock import Clock
from beampipe_dagster.errors import BeampipeError, ConfigError, ConflictError
from beampipe_dagster.execution.steps import profile_of
from beampipe_dagster.execution.submission import record_receipt
from beampipe_dagster.ids import Ids
from beampipe_dagster.ledger import executions, fsm, observations, provenance
from beampipe_dagster.ledger.engine import Ledger
from beampipe_dagster.ledger.execution_values import Execution
from beampipe_dagster.ledger.observations import Observation
from beampipe_dagster.ledger.states import ACTIVE, ControlPhase, Status, SubmissionState
from beampipe_dagster.ledger.tables import batch_execution_record as record

NEGATIVE_LOOKS: Final = 2
"""Complete negative looks, at least one poll interval apart, before a submission counts as not happened."""


class UncertainSubmissions:
    """Resolves submissions by looking."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        clock: Clock,
        ids: Ids,
        backends: BackendProvider,
        interval_seconds: float,
    ) -> None:
        self._ledger = ledger
        self._clock = clock
        self._ids = ids
        self._backends = backends
        self._interval = timedelta(seconds=interval_seconds)

    def resolve(self, resolved: list[str], unreachable: list[str], *, deadline: float) -> None:
        """Look for every session without a receipt; identifiers go to the two lists.

        Parameters
        ----------
        resolved, unreachable
            Take the identifiers.
        deadline
            When to stop, as the clock's ``monotonic``; what is left stays due.
        """
        away: set[str] = set()
        for execution in self._open():
            if self._clock.monotonic() >= deadline:
                return
            try:
                backend = self._backends.backend(profile_of(execution))
                if backend.url in away:  # every question would take as long to fail
                    presence = SessionPresence.UNREACHABLE
                else:
                    presence = backend.presence(execution.daliuge_session_id or "")
                if presence is SessionPresence.UNREACHABLE:
                    away.add(backend.url)
                if presence is SessionPresence.UNREACHABLE:
                    unreachable.append(execution.id)
                    self._later(execution)
                elif presence is SessionPresence.DEPLOYED:
                    self._adopt(execution, backend)
                    resolved.append(execution.id)
                elif self._negative(execution, backend, presence):
                    resolved.append(execution.id)
            except ConflictError:
                continue  # it moved while we looked
            except ConfigError:
                unreachable.append(execution.id)  # its profile leads nowhere; the others are looked at

    def _open(self) -> list[Execution]:
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
            )

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

    def _later(self, execution: Execution) -> None:
        now = self._clock.now()
        with self._ledger.begin() as conn:
            executions.move(conn, execution, now=now, values={"next_poll_at": now + self._interval * 2})

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
            self._note(conn, execution, SessionPresence.DEPLOYED)
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
        """Count a complete negative look; at the last one, clear the way for a fresh attempt."""
        now = self._clock.now()
        looks = execution.absent_count + 1
        with self._ledger.begin() as conn:
            current = self._current(conn, execution)
            self._note(conn, execution, presence)
            if looks < NEGATIVE_LOOKS:
                executions.move(
                    conn,
                    current,
                    now=now,
                    values={"absent_count": looks, "next_poll_at": now + self._interval},
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
            except BeampipeError:
                self._later(execution)
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

    def _note(self, conn: Connection, execution: Execution, presence: SessionPresence) -> None:
        seen = Observation(
            execution_id=execution.id,
            kind="daliuge_session",
            normalized_state=presence.value,
            reason="looked for a submission without a receipt",
            payload={"session_id": execution.daliuge_session_id},
        )
        observations.record(conn, [seen], ids=self._ids, now=self._clock.now())
