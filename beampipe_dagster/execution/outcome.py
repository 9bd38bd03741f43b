"""The end of an execution: one place that closes the row, frees its sources and tells the story."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from sqlalchemy.engine import Connection

from beampipe_dagster.clock import Clock, rfc3339
from beampipe_dagster.config.canonical import JsonValue
from beampipe_dagster.execution.retry_policy import Retry, RetryPolicy, after_failure
from beampipe_dagster.ids import Ids
from beampipe_dagster.ledger import executions, fsm, outbox, provenance, registration, sources
from beampipe_dagster.ledger.execution_values import Execution
from beampipe_dagster.ledger.pending import FORGIVEN
from beampipe_dagster.ledger.states import Status, TerminalOutcome

OUTCOME_ASSET: Final = "execution_outcome"
OUTCOME_CHECK: Final = "execution_succeeded"
CANCELLED_HOLD: Final = "cancelled_by_operator"
"""Code of the hold of a source whose execution an operator cancelled."""
SUCCEEDED: Final = frozenset({Status.COMPLETED, Status.NOT_SUBMITTED})
"""Statuses after which a signature counts as executed: everything that was asked for was done."""


def finish(
    conn: Connection,
    execution: Execution,
    status: Status,
    *,
    outcome: TerminalOutcome,
    clock: Clock,
    ids: Ids,
    values: dict[str, Any] | None = None,
    error: str | None = None,
    error_code: str | None = None,
    failure_class: str | None = None,
    more: Mapping[str, JsonValue] | None = None,
) -> Execution:
    """Move an execution to a terminal status, with all that follows from it, in the caller's transaction.

    A completed execution marks its signatures as executed, and so does one that was not to be submitted. A failed
    one makes its sources pending again after a while, as far as its budget of retries goes; then it holds them for
    the operator. A new signature makes a source pending by itself.

    Parameters
    ----------
    more
        What the event of the ending says beside its outcome.
    """
    now = clock.now()
    done = executions.move(
        conn,
        execution,
        now=now,
        patch=fsm.StatusPatch(status=status, error=error),
        values={
            **(values or {}),
            "terminal_outcome": outcome.value,
            "failure_class": failure_class,
            "last_error_code": error_code,
        },
    )
    retry = _settle_sources(conn, done, clock=clock)
    told: dict[str, JsonValue] = {
        "outcome": outcome.value,
        "error": error,
        "code": error_code,
        **(more or {}),
    }
    if retry is not None and retry.budget:
        told["retry_at"] = rfc3339(retry.at) if retry.at else None
        told["retry"] = f"{min(retry.number, retry.budget)} of {retry.budget}"
    if done.cancel_requested_at is not None:
        told |= {"cancel_requested_by": done.cancel_requested_by, "cancel_reason": done.cancel_reason}
    provenance.record(
        conn,
        [
            provenance.Event(
                event_type=f"execution.{status.value}",
                project_module=done.project_module,
                source_identifier=name,
                execution_id=done.id,
                correlation_id=done.claim_token,
                payload=told,
            )
            for name in done.source_identifiers
        ],
        ids=ids,
        now=now,
    )
    outbox.put(conn, outcome_messages(done), now=now, available_at=now)
    return done


def _settle_sources(conn: Connection, execution: Execution, *, clock: Clock) -> Retry | None:
    """Write on the sources what became of their signatures; what follows from a failure."""
    executed = {source["source_identifier"]: source["discovery_signature"] for source in execution.sources}
    rows = registration.locked(conn, execution.project_module, execution.source_identifiers)
    current = [row for row in rows if row.discovery_signature == executed[row.source_identifier]]
    now = clock.now()
    if execution.status in SUCCEEDED:
        for row in rows:
            done: dict[str, object] = {
                "last_executed_discovery_signature": executed[row.source_identifier],
                **({"hold": None, **FORGIVEN} if row in current else {}),
            }
            sources.update(conn, [row.id], done, now=now)
        return None
    if execution.cancel_requested_at is not None and execution.status in {Status.CANCELLED, Status.FAILED}:
        stopped: dict[str, object] = {
            "hold": _cancelled(execution),
            "workflow_run_pending": False,
            "workflow_run_pending_at": None,
            **FORGIVEN,
        }
        sources.update(conn, [row.id for row in current], stopped, now=now)
        return None
    if execution.status is not Status.FAILED:
        return None
    retry = after_failure(
        RetryPolicy.of(execution.retry_policy),
        used=execution.retry_number,
        failure_class=execution.failure_class,
        code=execution.last_error_code,
        now=now,
    )
    for row in current:
        signature = executed[row.source_identifier]
        values: dict[str, object] = {
            "hold": _hold(execution, signature, retry),
            "failed_signature": signature,
            "failed_execution_id": execution.id,
            "failed_config_id": execution.project_config_id,
            "retry_at": retry.at,
        }
        if retry.at is not None:
            values |= {"workflow_run_pending": True, "workflow_run_pending_at": now}
        sources.update(conn, [row.id], values, now=now)
    return retry


def _cancelled(execution: Execution) -> dict[str, JsonValue]:
    return {
        "code": CANCELLED_HOLD,
        "message": f"execution {execution.id} was cancelled by {execution.cancel_requested_by}: "
        f"{execution.cancel_reason}",
        "hint": "it runs again when the archives give it a new signature, or when you release it",
        "execution_id": execution.id,
    }


def _hold(execution: Execution, signature: str, retry: Retry) -> dict[str, JsonValue]:
    message = f"execution {execution.id} failed: {execution.last_error}"
    hold: dict[str, JsonValue] = {
        "code": "retry_budget_exhausted" if retry.used_up else "execution_failed",
        "message": message,
        "hint": "it runs again when the archives give it a new signature, when the survey has a new revision, or "
        "when you release it",
        "execution_id": execution.id,
        "signature": signature,
    }
    if retry.at is not None:
        hold["retry_at"] = rfc3339(retry.at)
        hold["hint"] = f"it is tried again at {rfc3339(retry.at)}, retry {retry.number} of {retry.budget}"
    elif retry.used_up:
        number = "retry is" if retry.budget == 1 else "retries are"
        hold["message"] = f"{message}; its {retry.budget} {number} used up"
    return hold


def outcome_messages(execution: Execution) -> list[outbox.Message]:
    """What Dagster is told about a terminal execution: an outcome of its partition, and a check."""
    seconds = (
        (execution.completed_at - execution.created_at).total_seconds() if execution.completed_at else None
    )
    facts: dict[str, Any] = {
        "execution_id": execution.id,
        "status": execution.status.value,
        "outcome": execution.terminal_outcome,
        "error": execution.last_error,
        "error_code": execution.last_error_code,
        "session_id": execution.daliuge_session_id,
        "manager_url": execution.daliuge_manager_url,
        "drops": execution.drop_counts,
        "sources": execution.source_identifiers,
        "signature": execution.discovery_signature,
        "datasets": execution.dataset_count,
        "seconds": seconds,
        "completed_at": rfc3339(execution.completed_at) if execution.completed_at else None,
        "phases": execution.phase_timestamps,
        "run_record": execution.run_record,
        "retry_of": execution.retry_of,
        "retry_number": execution.retry_number,
    }
    common = {
        "project_module": execution.project_module,
        "asset": OUTCOME_ASSET,
        "correlation_id": execution.id,
    }
    return [
        outbox.Message(
            kind="materialization", partition_key=execution.partition_key, payload=facts, **common
        ),
        outbox.Message(
            kind="check",
            payload={
                "check": OUTCOME_CHECK,
                "passed": execution.status in SUCCEEDED,
                "partition_key": execution.partition_key,
                "execution_id": execution.id,
                "error": execution.last_error,
            },
            **common,
        ),
    ]
