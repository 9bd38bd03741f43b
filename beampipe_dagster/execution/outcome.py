"""The end of an execution: one place that closes the row, frees its sources and tells the story."""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy.engine import Connection

from beampipe_dagster.clock import Clock, rfc3339
from beampipe_dagster.ids import Ids
from beampipe_dagster.ledger import executions, fsm, outbox, provenance, sources
from beampipe_dagster.ledger.execution_values import Execution
from beampipe_dagster.ledger.states import Status, TerminalOutcome

OUTCOME_ASSET: Final = "execution_outcome"
OUTCOME_CHECK: Final = "execution_succeeded"


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
) -> Execution:
    """Move an execution to a terminal status, with all that follows from it, in the caller's transaction.

    A completed execution marks its signatures as executed. A failed one holds its sources for the operator: it
    is not tried again for the same signature, and a new signature makes the source pending by itself.
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
    _settle_sources(conn, done, clock=clock)
    provenance.record(
        conn,
        [
            provenance.Event(
                event_type=f"execution.{status.value}",
                project_module=done.project_module,
                source_identifier=name,
                execution_id=done.id,
                correlation_id=done.claim_token,
                payload={"outcome": outcome.value, "error": error, "code": error_code},
            )
            for name in done.source_identifiers
        ],
        ids=ids,
        now=now,
    )
    outbox.put(conn, outcome_messages(done), now=now, available_at=now)
    return done


def _settle_sources(conn: Connection, execution: Execution, *, clock: Clock) -> None:
    rows = sources.by_identifiers(conn, execution.project_module, execution.source_identifiers)
    executed = {source["source_identifier"]: source["discovery_signature"] for source in execution.sources}
    for source in sorted(rows, key=lambda row: row.source_identifier):  # everybody locks by name
        signature = executed[source.source_identifier]
        current = source.discovery_signature == signature
        if execution.status is Status.COMPLETED:
            values: dict[str, object] = {"last_executed_discovery_signature": signature}
            if current:
                values["hold"] = None
        elif execution.status is Status.FAILED and current:
            values = {
                "hold": {
                    "code": "execution_failed",
                    "message": f"execution {execution.id} failed: {execution.last_error}",
                    "hint": "it runs again when the archives give it a new signature",
                    "execution_id": execution.id,
                    "signature": signature,
                }
            }
        else:
            continue
        sources.update(conn, [source.id], values, now=clock.now())


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
                "passed": execution.status is Status.COMPLETED,
                "partition_key": execution.partition_key,
                "execution_id": execution.id,
                "error": execution.last_error,
            },
            **common,
        ),
    ]
