"""The one step that costs an allocation: intent, deploy, receipt.

Before anything leaves this process the ledger knows the session's name, its manager and a deadline; after the
deploy it knows the receipt. Whatever happens in between is uncertain, and is resolved by looking for the
session (:mod:`beampipe_dagster.poll`), never by submitting again.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy.engine import Connection

from beampipe_dagster.backends.base import Backend, SubmissionReceipt
from beampipe_dagster.clock import Clock
from beampipe_dagster.discovery.staging.redaction import conceal
from beampipe_dagster.errors import BackendUnavailableError, BeampipeError, ConflictError, Retry
from beampipe_dagster.execution import run_record
from beampipe_dagster.execution.holder import CANCEL_REQUESTED, Holder
from beampipe_dagster.execution.options import LaunchOptions
from beampipe_dagster.execution.outcome import finish
from beampipe_dagster.execution.steps import ExecutionSteps, StepReport, needed, profile_of
from beampipe_dagster.ids import Ids
from beampipe_dagster.ledger import artifacts, executions, fsm, observations, provenance
from beampipe_dagster.ledger.execution_values import Execution
from beampipe_dagster.ledger.observations import Observation
from beampipe_dagster.ledger.states import (
    ArtifactKind,
    ControlPhase,
    DaliugeState,
    ExecutionPhase,
    Status,
    SubmissionState,
    TerminalOutcome,
)


def session_id(execution: Execution, attempt: int) -> str:
    """The name of an attempt's DALiuGE session: ``BeampipeExecution-<id>-<created>-a<attempt>``.

    DALiuGE takes only letters, digits, dots and dashes for granted in a session's name.
    """
    return session_pattern(execution.id, execution.created_at.strftime("%Y-%m-%dT%H-%M-%S"), str(attempt))


def session_pattern(execution_id: str, created: str, attempt: str) -> str:
    """How a session's name is made of its parts, which may be placeholders."""
    return f"BeampipeExecution-{execution_id}-{created}-a{attempt}"


class Submission:
    """Submits a translated execution, at most once.

    Parameters
    ----------
    steps
        Gives the lease, the ledger and the backends.
    deadline_seconds
        How long a submission may stay without a receipt before an operator is told.
    fill
        Gives a physical graph with the URLs of staged files in it, on its way out; it raises when they are
        not good any more. Nothing of what it gives is kept.
    """

    def __init__(
        self,
        *,
        steps: ExecutionSteps,
        deadline_seconds: float,
        fill: Callable[[Execution, Any], Any] = lambda _, drops: drops,
    ) -> None:
        self._fill = fill
        self._steps = steps
        self._ledger = steps.ledger
        self._deadline = timedelta(seconds=deadline_seconds)

    def backend_run(self, execution_id: str, *, holder: str) -> StepReport:
        """Deploy the execution's physical graph in a session of its own.

        Raises
        ------
        ConflictError
            ``submission_unresolved``: an earlier attempt may exist and is being looked for;
            ``step_not_ready``: there is no physical graph yet.
        SubmissionUncertainError
            It may have happened; the poll resolves it.
        BackendUnavailableError
            Nothing was started; it is tried again later.
        """
        with self._steps.working(execution_id, holder) as (execution, held):
            if execution.submission_state is SubmissionState.SUBMITTED:
                return StepReport(execution, facts=facts_of(execution), done_before=True)
            if execution.submission_state in {SubmissionState.IN_FLIGHT, SubmissionState.UNCERTAIN}:
                raise ConflictError(
                    f"session {execution.daliuge_session_id} may exist already",
                    code="submission_unresolved",
                    hint="the poll looks for it and goes on by itself; it is never submitted twice",
                    retry=Retry.AFTER_RECONCILE,
                )
            if not LaunchOptions.of(execution.options).do_submit:
                return self._not_submitted(execution)
            backend = self._steps.backends.backend(profile_of(execution))
            with self._ledger.read() as conn:
                artifact = needed(conn, execution_id, ArtifactKind.PHYSICAL_GRAPH)
                stored = artifacts.load(conn, artifact.id)
            drops: Any = self._fill(execution, stored)
            intended = self._intend(execution, backend, len(drops))
            receipt = self._deploy(intended, backend, drops, held)
            with self._ledger.begin() as conn:
                execution = record_receipt(  # noqa: PLW2901  # the same execution, moved
                    conn,
                    executions.get(conn, execution_id, lock=True),
                    receipt,
                    verify_ssl=backend.verify_ssl,
                    clock=self._steps.clock,
                    ids=self._steps.ids,
                )
                executions.release_lease(conn, execution_id, holder)
                execution = executions.get(conn, execution_id)  # noqa: PLW2901  # the same execution, let go
            return StepReport(execution, artifact, facts_of(execution))

    def _not_submitted(self, execution: Execution) -> StepReport:
        """Its launch asked for the physical graph and no more: it ends here, as its sources' success."""
        with self._ledger.begin() as conn:
            artifact = needed(conn, execution.id, ArtifactKind.PHYSICAL_GRAPH)
            done = finish(
                conn,
                execution,
                Status.NOT_SUBMITTED,
                outcome=TerminalOutcome.SUCCEEDED,
                clock=self._steps.clock,
                ids=self._steps.ids,
            )
        return StepReport(done, artifact, facts_of(done))

    def _intend(self, execution: Execution, backend: Backend, drops: int) -> Execution:
        now = self._steps.clock.now()
        attempt = execution.attempt + 1
        name = session_id(execution, attempt)
        with self._ledger.begin() as conn:
            moved = executions.move(
                conn,
                execution,
                now=now,
                patch=fsm.StatusPatch(execution_phase=ExecutionPhase.SUBMIT),
                values={
                    "submission_state": SubmissionState.IN_FLIGHT,
                    "submission_deadline_at": now + self._deadline,
                    "daliuge_session_id": name,
                    "daliuge_manager_url": backend.url,
                    "attempt": attempt,
                    "absent_count": 0,
                    "control_phase": ControlPhase.SUBMISSION_PENDING,
                },
            )
            seen = Observation(
                execution.id,
                "daliuge_session",
                "intent_persisted",
                payload={"session_id": name, "manager_url": backend.url, "drops": drops},
            )
            observations.record(conn, [seen], ids=self._steps.ids, now=now)
            payload = {"session_id": name, "manager_url": backend.url, "attempt": attempt}
            self._steps.tell(conn, moved, "execution.execute_started", payload)
        return moved

    def _deploy(
        self, execution: Execution, backend: Backend, drops: list[Any], held: Holder
    ) -> SubmissionReceipt:
        name = execution.daliuge_session_id or ""
        before_deploy: Callable[[], None] = held.confirm
        try:
            return backend.submit(name, drops, before_deploy=before_deploy)
        except ConflictError as error:
            if error.code == CANCEL_REQUESTED:
                self._cancelled_in_time(execution, backend)
            raise  # the lease went to another process, which looks for the session: nothing is ours to write
        except BeampipeError as error:
            conceal(error)  # a manager may repeat the graph, which has the URLs of staged files by now
            if error.retry is not Retry.AFTER_RECONCILE:
                self._nothing_started(execution, error)
                raise
            self._uncertain(execution, error)
            raise
        except Exception as error:
            failure = BeampipeError(f"{type(error).__name__}: {error}", retry=Retry.AFTER_RECONCILE)
            conceal(failure)
            self._uncertain(execution, failure)
            raise

    def _nothing_started(self, execution: Execution, error: BeampipeError) -> None:
        """The session was not deployed: the attempt is over, and a later one may have a name of its own."""
        transient = isinstance(error, BackendUnavailableError) or error.retry is Retry.LATER
        state = SubmissionState.NOT_STARTED if transient else SubmissionState.FAILED
        with self._ledger.begin() as conn:
            current = executions.get(conn, execution.id, lock=True)
            if current.daliuge_session_id != execution.daliuge_session_id:
                return
            executions.move(
                conn,
                current,
                now=self._steps.clock.now(),
                values={"submission_state": state, "control_phase": ControlPhase.TRANSLATED},
            )

    def _cancelled_in_time(self, execution: Execution, backend: Backend) -> None:
        """Nothing was deployed, and nothing will be: what was sent is removed, and the execution ends.

        Where the session cannot be removed, the poll finds out about it as about any submission without a receipt.
        """
        try:
            backend.discard(execution.daliuge_session_id or "")
        except BeampipeError as error:
            self._uncertain(execution, error)
            return
        with self._ledger.begin() as conn:
            current = executions.get(conn, execution.id, lock=True)
            same = current.daliuge_session_id == execution.daliuge_session_id
            if current.terminal or not same or current.submission_state is not SubmissionState.IN_FLIGHT:
                return
            finish(
                conn,
                current,
                Status.CANCELLED,
                outcome=TerminalOutcome.CANCELLED,
                clock=self._steps.clock,
                ids=self._steps.ids,
                values={"submission_state": SubmissionState.NOT_STARTED},
            )

    def _uncertain(self, execution: Execution, error: BeampipeError) -> None:
        now = self._steps.clock.now()
        with self._ledger.begin() as conn:
            current = executions.get(conn, execution.id, lock=True)
            if current.submission_state is not SubmissionState.IN_FLIGHT:
                return
            moved = executions.move(
                conn,
                current,
                now=now,
                patch=fsm.StatusPatch(status=Status.AWAITING_SCHEDULER, error=str(error)),
                values={
                    "submission_state": SubmissionState.UNCERTAIN,
                    "last_error_code": error.code,
                    "next_poll_at": now,
                    "lease_token": None,
                    "lease_expires_at": None,
                },
            )
            self._steps.tell(
                conn,
                moved,
                "execution.submission_uncertain",
                {**error.as_dict(), "session_id": execution.daliuge_session_id},
            )


def record_receipt(
    conn: Connection,
    execution: Execution,
    receipt: SubmissionReceipt,
    *,
    verify_ssl: bool,
    clock: Clock,
    ids: Ids,
    adopted: bool = False,
) -> Execution:
    """The session is there: write the receipt, in the caller's transaction; a second one changes nothing.

    Parameters
    ----------
    adopted
        The receipt comes from looking, because the submitting process did not live to write it.

    Raises
    ------
    ConflictError
        ``receipt_conflict``: another receipt is kept already.
    """
    if execution.submission_state is SubmissionState.SUBMITTED:
        return _same_receipt(execution, receipt)
    if execution.terminal:
        return _late_receipt(conn, execution, receipt, clock=clock, ids=ids)
    now: datetime = clock.now()
    record = run_record.with_deploy(
        execution.run_record,
        session_id=receipt.session_id,
        manager_url=receipt.manager_url,
        verify_ssl=verify_ssl,
        at=receipt.deployed_at,
    )
    moved = executions.move(
        conn,
        execution,
        now=now,
        patch=fsm.StatusPatch(status=Status.RUNNING, clear_error=True),
        values={
            "submission_state": SubmissionState.SUBMITTED,
            "daliuge_state": DaliugeState.RUNNING,
            "scheduler_name": "daliuge",
            "control_phase": ControlPhase.SUBMITTED,
            "workflow_manifest": run_record.put(execution.workflow_manifest, record),
            "last_error_code": None,
            "wait_count": 0,
            "absent_count": 0,
            "next_launch_at": None,
            "next_poll_at": now,
        },
    )
    payload: dict[str, Any] = {
        "session_id": receipt.session_id,
        "manager_url": receipt.manager_url,
        "drops": receipt.drops,
        "adopted": adopted,
    }
    provenance.record(
        conn,
        [
            provenance.Event(
                event_type="execution.submission_recorded",
                project_module=moved.project_module,
                source_identifier=name,
                execution_id=moved.id,
                correlation_id=moved.claim_token,
                payload=payload,
            )
            for name in moved.source_identifiers
        ],
        ids=ids,
        now=now,
    )
    return moved


def _same_receipt(execution: Execution, receipt: SubmissionReceipt) -> Execution:
    kept = (execution.daliuge_session_id, execution.daliuge_manager_url)
    if kept != (receipt.session_id, receipt.manager_url):
        raise ConflictError(
            f"execution {execution.id} has the receipt of session {kept[0]} at {kept[1]}, in conflict with that of "
            f"{receipt.session_id} at {receipt.manager_url}",
            code="receipt_conflict",
            hint="look at both sessions; what is kept is not changed",
        )
    return execution


def _late_receipt(
    conn: Connection, execution: Execution, receipt: SubmissionReceipt, *, clock: Clock, ids: Ids
) -> Execution:
    """The execution ended without it: the receipt is evidence, kept once, and changes no status."""
    payload: dict[str, Any] = {
        "session_id": receipt.session_id,
        "manager_url": receipt.manager_url,
        "drops": receipt.drops,
        "late": True,
    }
    if any(one["payload"] == payload for one in observations.of(conn, execution.id)):
        return execution
    abandoned = execution.submission_abandoned_at is not None
    seen = Observation(
        execution.id,
        "daliuge_session",
        "receipt_after_end",
        reason="a receipt came after the execution had ended",
        payload=payload,
    )
    observations.record(conn, [seen], ids=ids, now=clock.now())
    event = provenance.Event(
        event_type="execution.submission_detected_after_abandonment"
        if abandoned
        else "execution.submission_recorded",
        project_module=execution.project_module,
        source_identifier=execution.source_identifiers[0],
        execution_id=execution.id,
        correlation_id=execution.claim_token,
        payload=payload,
    )
    provenance.record(conn, [event], ids=ids, now=clock.now())
    return execution


def facts_of(execution: Execution) -> dict[str, Any]:
    """What is known about a submitted session."""
    return {
        "session_id": execution.daliuge_session_id,
        "manager_url": execution.daliuge_manager_url,
        "attempt": execution.attempt,
        "status": execution.status.value,
        "daliuge_state": execution.daliuge_state.value,
        "drops": execution.drop_counts,
    }
