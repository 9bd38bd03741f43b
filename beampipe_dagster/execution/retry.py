"""Retry in place: a failed execution goes on at the step that failed, because an operator says so.

The clock's own retries are new executions, with the survey's budget, and only for what passes by itself. A retry in
place keeps the execution, its documents and its revision: it is for what was mended outside, and it is refused where
a newer execution or a newer signature has taken its place. What failed in its session is begun again in a new one,
and only after the manager has said that the old one has ended.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from beampipe_dagster.backends.base import Backend, SessionObservation
from beampipe_dagster.clock import Clock, rfc3339
from beampipe_dagster.errors import BeampipeError, ConflictError
from beampipe_dagster.execution import run_record
from beampipe_dagster.execution.admission import QUEUE
from beampipe_dagster.execution.cancel import checked_reason
from beampipe_dagster.ids import Ids
from beampipe_dagster.ledger import executions, fsm, observations, provenance, registration, sources
from beampipe_dagster.ledger.engine import Ledger, queue
from beampipe_dagster.ledger.execution_values import Execution
from beampipe_dagster.ledger.observations import Observation
from beampipe_dagster.ledger.pending import FORGIVEN
from beampipe_dagster.ledger.states import (
    ControlPhase,
    DaliugeState,
    ExecutionPhase,
    OutputState,
    SchedulerState,
    Status,
    SubmissionState,
    TerminalOutcome,
)
from beampipe_dagster.ledger.tables import batch_execution_record as record

MAY_EXIST: Final = frozenset(
    {
        SubmissionState.PREPARING,
        SubmissionState.IN_FLIGHT,
        SubmissionState.SUBMITTED,
        SubmissionState.UNCERTAIN,
    }
)
PROVABLE: Final = frozenset(
    {"external_state_inconsistent", "submission_may_exist", "daliuge_session_may_exist"}
)
"""Refusals that the end of the old session overrules, when its manager says so."""
ENDED: Final = frozenset(
    {DaliugeState.FINISHED, DaliugeState.FAILED, DaliugeState.CANCELLED, DaliugeState.NOT_CREATED}
)
"""What a complete look at the old session must say."""


@dataclass(frozen=True, slots=True)
class Failure:
    """What is known about a failed execution, as far as a retry depends on it."""

    status: Status
    phase: ExecutionPhase | None
    submission: SubmissionState
    scheduler: SchedulerState
    daliuge: DaliugeState
    outcome: TerminalOutcome | None
    has_manifest: bool
    has_job: bool


def refusal(failure: Failure) -> str | None:
    """Code of what speaks against a retry in place, the first of several; ``None`` for nothing."""
    checks = (
        ("execution_not_failed", failure.status is not Status.FAILED),
        ("external_state_inconsistent", failure.outcome is TerminalOutcome.INCONSISTENT),
        ("submission_may_exist", failure.submission in MAY_EXIST),
        (
            "scheduler_work_exists",
            failure.has_job or failure.scheduler is not SchedulerState.NOT_SUBMITTED,
        ),
        ("daliuge_session_may_exist", failure.daliuge is not DaliugeState.NOT_CREATED),
        (
            "retry_manifest_missing",
            failure.phase is ExecutionPhase.SUBMIT and not failure.has_manifest,
        ),
    )
    return next((code for code, holds in checks if holds), None)


def begins_at(failure: Failure) -> ExecutionPhase:
    """The half in which a retry goes on: the submission, when all before it is there."""
    failed = failure.submission is SubmissionState.FAILED and failure.has_manifest
    if failure.phase is ExecutionPhase.SUBMIT or failed:
        return ExecutionPhase.SUBMIT
    return ExecutionPhase.STAGE_AND_MANIFEST


class RetryInPlace:
    """Lets failed executions go on.

    Parameters
    ----------
    backend_of
        Gives the backend of a profile's snapshot.
    """

    def __init__(
        self, *, ledger: Ledger, clock: Clock, ids: Ids, backend_of: Callable[[Mapping[str, Any]], Backend]
    ) -> None:
        self._ledger = ledger
        self._clock = clock
        self._ids = ids
        self._backend_of = backend_of

    def retry(self, execution_id: str, *, reason: str, actor: str) -> Execution:
        """Begin a failed execution again at the step that failed.

        Raises
        ------
        InputError
            ``retry_reason_required``, ``retry_reason_too_long``.
        NotFoundError
            ``execution_not_found``.
        ConflictError
            A code of :func:`refusal`; ``execution_superseded``, ``signature_superseded``,
            ``source_admission_claimed``.
        BackendUnavailableError
            Nobody can say whether its old session has ended.
        """
        reason = checked_reason(reason, prefix="retry")
        with self._ledger.read() as conn:
            before = executions.get(conn, execution_id)
        code = refusal(failure_of(before))
        seen: SessionObservation | None = None
        if code is not None:
            seen = self._ended(before, code)
        with self._ledger.begin() as conn:
            queue(conn, QUEUE)
            current = executions.get(conn, execution_id, lock=True)
            same = (current.status, current.retry_count, current.daliuge_session_id) == (
                before.status,
                before.retry_count,
                before.daliuge_session_id,
            )
            if not same:
                raise _refused(current, "execution_not_failed")
            self._newest(conn, current)
            self._take_sources(conn, current)
            return self._begin(conn, current, seen, reason, actor)

    def _ended(self, execution: Execution, code: str) -> SessionObservation | None:
        """The look that proves that the old session has ended, where that overrules the refusal."""
        session = execution.daliuge_session_id
        job = execution.scheduler_job_id or execution.scheduler_state is not SchedulerState.NOT_SUBMITTED
        if code not in PROVABLE or session is None or job or execution.submission_abandoned_at is not None:
            raise _refused(execution, code)
        backend = self._backend_of(execution.deployment_profile_snapshot)
        seen = backend.observe({session: None})[session]
        if seen.state not in ENDED:
            raise _refused(execution, code, f"its session {session} is {seen.state.value}")
        return seen

    def _newest(self, conn: Connection, execution: Execution) -> None:
        newer = executions.select(
            conn,
            record.c.project_module == execution.project_module,
            record.c.partition_key == execution.partition_key,
            record.c.created_at > execution.created_at,
            limit=1,
            light=True,
        )
        if newer:
            raise ConflictError(
                f"execution {newer[0].id} tries the same signature again already",
                code="execution_superseded",
                hint="retry that one, if it fails too",
            )

    def _take_sources(self, conn: Connection, execution: Execution) -> None:
        """The sources are this execution's again, as long as their signatures are still its own."""
        busy = executions.active_sources(conn, execution.project_module) & set(execution.source_identifiers)
        if busy:
            raise ConflictError(
                f"an active execution has {', '.join(sorted(busy))}",
                code="source_admission_claimed",
                hint="wait until it has ended: beampipe execution list --active",
            )
        signatures = {one["source_identifier"]: one["discovery_signature"] for one in execution.sources}
        rows = registration.locked(conn, execution.project_module, execution.source_identifiers)
        newer = [
            row.source_identifier
            for row in rows
            if row.discovery_signature != signatures[row.source_identifier]
        ]
        if newer:
            raise ConflictError(
                f"{', '.join(newer)} has a newer signature than execution {execution.id}",
                code="signature_superseded",
                hint="the newer signature runs by itself; what this one was about is out of date",
            )
        cleared: dict[str, object] = {"workflow_run_pending": False, "hold": None, **FORGIVEN}
        sources.update(conn, [row.id for row in rows], cleared, now=self._clock.now())

    def _begin(
        self,
        conn: Connection,
        execution: Execution,
        seen: SessionObservation | None,
        reason: str,
        actor: str,
    ) -> Execution:
        now = self._clock.now()
        values = _reset(execution)
        values["next_launch_at"] = now
        if seen is not None:
            evidence = Observation(
                execution.id,
                "daliuge_session",
                seen.state.value,
                reason="looked at before a retry",
                payload={"session_id": execution.daliuge_session_id, "raw": seen.raw},
            )
            observations.record(conn, [evidence], ids=self._ids, now=now)
        if execution.workflow_manifest is not None:
            attempt = {
                "attempt": execution.attempt,
                "session_id": execution.daliuge_session_id,
                "error": run_record.bounded(execution.last_error),
                "code": execution.last_error_code,
                "ended_at": rfc3339(execution.completed_at) if execution.completed_at else None,
                "retry_reason": reason,
            }
            kept = dict(execution.run_record)
            kept["attempts"] = [*kept.get("attempts", []), attempt]
            values["workflow_manifest"] = run_record.put(execution.workflow_manifest, kept)
        moved = executions.move(
            conn, execution, now=now, patch=fsm.StatusPatch(status=Status.RETRYING), values=values
        )
        # It has not ended any more; the law of moves keeps the first end, so that it is taken back here.
        conn.execute(sa.update(record).where(record.c.id == execution.id).values(completed_at=None))
        payload: dict[str, Any] = {
            "reason": reason,
            "retry": moved.retry_count,
            "begins_at": begins_at(failure_of(execution)).value if seen is None else "submit",
            "session_ended": seen.state.value if seen else None,
        }
        told = [
            provenance.Event(
                event_type="execution.retry_requested",
                project_module=moved.project_module,
                source_identifier=name,
                execution_id=moved.id,
                actor=actor,
                correlation_id=moved.claim_token,
                payload=payload,
            )
            for name in moved.source_identifiers
        ]
        provenance.record(conn, told, ids=self._ids, now=now)
        return executions.get(conn, execution.id)


def failure_of(execution: Execution) -> Failure:
    """What a retry depends on."""
    return Failure(
        status=execution.status,
        phase=execution.execution_phase,
        submission=execution.submission_state,
        scheduler=execution.scheduler_state,
        daliuge=execution.daliuge_state,
        outcome=TerminalOutcome(execution.terminal_outcome) if execution.terminal_outcome else None,
        has_manifest=execution.manifest_sha256 is not None,
        has_job=execution.scheduler_job_id is not None,
    )


def _reset(execution: Execution) -> dict[str, Any]:
    """The axes of an execution that has not been submitted; how far its documents go."""
    phase = ControlPhase.ADMITTED
    for sha256, reached in (
        (execution.manifest_sha256, ControlPhase.MANIFEST_GENERATED),
        (execution.patched_graph_sha256, ControlPhase.GRAPH_PATCHED),
        (execution.physical_graph_sha256, ControlPhase.TRANSLATED),
    ):
        phase = reached if sha256 is not None else phase
    outputs = OutputState.PENDING if execution.output_verification_required else OutputState.NOT_STARTED
    return {
        "control_phase": phase,
        "submission_state": SubmissionState.NOT_STARTED,
        "submission_deadline_at": None,
        "daliuge_state": DaliugeState.NOT_CREATED,
        "output_state": outputs,
        "terminal_outcome": None,
        "failure_class": None,
        "last_error_code": None,
        "escalations": None,
        "absent_count": 0,
        "wait_count": 0,
        "next_poll_at": None,
        "cancel_requested_at": None,
        "cancel_requested_by": None,
        "cancel_reason": None,
        "cancel_attempts": 0,
        "cancel_next_at": None,
    }


_WORDS: Final = {
    "execution_not_failed": ("it is not failed", "only a failed execution is tried again in place"),
    "external_state_inconsistent": (
        "it ended in contradiction with what is outside",
        "look at its session; when that has ended, the retry is allowed",
    ),
    "submission_may_exist": (
        "its session may run",
        "when its manager says that the session has ended, the retry is allowed",
    ),
    "scheduler_work_exists": (
        "it has a job at the scheduler",
        "let a new execution run: beampipe source release",
    ),
    "daliuge_session_may_exist": (
        "its session may be there",
        "when its manager says that the session has ended, the retry is allowed",
    ),
    "retry_manifest_missing": ("it has no manifest to submit", "let a new execution run"),
}


def _refused(execution: Execution, code: str, more: str | None = None) -> BeampipeError:
    words, hint = _WORDS[code]
    message = f"execution {execution.id} ({execution.status}) cannot be tried again in place: {words}"
    return ConflictError(f"{message}; {more}" if more else message, code=code, hint=hint)
