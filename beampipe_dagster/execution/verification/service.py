"""Executions whose products must be proven: the publisher's report ends them, or an operator does.

Whoever comes first decides, in one transaction. The same report may come again as often as it likes.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from beampipe_dagster.clock import Clock
from beampipe_dagster.config.canonical import JsonValue
from beampipe_dagster.errors import ConflictError, InputError, Retry
from beampipe_dagster.execution import run_record
from beampipe_dagster.execution.outcome import finish
from beampipe_dagster.execution.verification.report import Report, read_report
from beampipe_dagster.ids import Ids
from beampipe_dagster.ledger import artifacts, executions, provenance, registration
from beampipe_dagster.ledger.artifacts import Artifact
from beampipe_dagster.ledger.engine import Ledger
from beampipe_dagster.ledger.execution_values import Execution
from beampipe_dagster.ledger.states import (
    ArtifactKind,
    ControlPhase,
    FailureClass,
    OutputState,
    Status,
    TerminalOutcome,
)
from beampipe_dagster.ledger.tables import batch_execution_record as record

MEDIA_TYPE: Final = "application/vnd.wallaby.output-inventory+json"
PRODUCER_PHASE: Final = "publication_acknowledged"
REASON_MAX: Final = 500
"""Characters of an operator's reason."""
WAITING_MAX: Final = 500
"""Waiting executions that are listed at most."""


@dataclass(frozen=True, slots=True)
class Verified:
    """An execution whose outputs are verified.

    Attributes
    ----------
    replayed
        Whether the same report had been taken before; then nothing was written.
    """

    execution: Execution
    artifact: Artifact
    replayed: bool


@dataclass(frozen=True, slots=True)
class Waiting:
    """An execution that has finished and waits for its outputs to be verified, since when."""

    execution: Execution
    since: datetime

    def seconds(self, now: datetime) -> float:
        """For how long it has been waiting."""
        return (now - self.since).total_seconds()


class VerificationService:
    """Ends executions by what is known about their products."""

    def __init__(self, *, ledger: Ledger, clock: Clock, ids: Ids) -> None:
        self._ledger = ledger
        self._clock = clock
        self._ids = ids

    def read(self, execution_id: str, document: JsonValue) -> Report:
        """Read a report about an execution, by all rules; nothing is written.

        Raises
        ------
        InputError
            The report breaks a rule of its own.
        ConflictError
            ``output_verification_not_required``, ``output_schema_mismatch``.
        NotFoundError
            ``execution_not_found``.
        """
        report = read_report(document, now=self._clock.now())
        with self._ledger.read() as conn:
            self._required(conn, execution_id, report)
        return report

    def accept(self, execution_id: str, document: JsonValue, *, actor: str) -> Verified:
        """Complete an execution by its publisher's report.

        Raises
        ------
        InputError, NotFoundError
            As :meth:`read`.
        ConflictError
            As :meth:`read`; ``outputs_already_verified`` by another report; ``outputs_not_awaited`` when its
            session has not finished yet, or it ended otherwise.
        """
        now = self._clock.now()
        report = read_report(document, now=now)
        with self._ledger.begin() as conn:
            execution = executions.get(conn, execution_id, lock=True)
            self._required(conn, execution_id, report)
            known = artifacts.find(conn, execution_id, ArtifactKind.OUTPUT_INVENTORY)
            if known is not None:
                if known.sha256 != report.sha256:
                    raise ConflictError(
                        f"the outputs of execution {execution_id} were verified by another report",
                        code="outputs_already_verified",
                        hint="the first report stays; see: beampipe execution show " + execution_id,
                        details={"artifact_id": known.id, "sha256": known.sha256, "given": report.sha256},
                    )
                return Verified(execution, known, replayed=True)
            _awaited(execution)
            artifact = self._keep(conn, execution, report, now)
            finalized = self._finalized(conn, execution)
            done = self._complete(conn, execution, report, artifact, now, finalized=finalized)
            self._tell(
                conn,
                done,
                "execution.outputs_verified",
                {
                    "artifact_id": artifact.id,
                    "inventory_sha256": report.inventory_sha256,
                    "products": len(report.products),
                    "total_bytes": report.total_bytes,
                    "publisher": report.publication["publisher"],
                    "receipt_id": report.publication["receipt_id"],
                    "source_signatures_finalized": finalized,
                },
                actor=actor,
            )
        return Verified(done, artifact, replayed=False)

    def fail(self, execution_id: str, *, reason: str, actor: str) -> Execution:
        """End an execution as failed, because its products are not what they should be.

        Raises
        ------
        InputError
            ``invalid_reason``.
        ConflictError
            ``output_verification_not_required``, ``outputs_not_awaited``.
        NotFoundError
            ``execution_not_found``.
        """
        text = reason.strip()
        if not text or len(text) > REASON_MAX:
            raise InputError(
                f"the reason must have 1 to {REASON_MAX} characters",
                code="invalid_reason",
                hint="say in one sentence what is wrong with the products",
            )
        with self._ledger.begin() as conn:
            execution = executions.get(conn, execution_id, lock=True)
            self._required(conn, execution_id, None)
            _awaited(execution)
            done = finish(
                conn,
                execution,
                Status.FAILED,
                outcome=TerminalOutcome.FAILED,
                clock=self._clock,
                ids=self._ids,
                values={"output_state": OutputState.FAILED},
                error=f"its outputs are not verified: {text}",
                error_code="outputs_failed",
                failure_class=FailureClass.VALIDATION.value,
            )
            self._tell(conn, done, "execution.outputs_failed", {"reason": text}, actor=actor)
        return done

    def waiting(self, project_module: str | None = None) -> list[Waiting]:
        """Executions that wait for a verification, those that wait longest first."""
        conditions = [
            record.c.control_phase == ControlPhase.OUTPUT_VERIFICATION.value,
            record.c.status == Status.RUNNING.value,
        ]
        if project_module is not None:
            conditions.append(record.c.project_module == project_module)
        with self._ledger.read() as conn:
            found = executions.select(conn, *conditions, limit=WAITING_MAX, light=True)
        return sorted((Waiting(one, waiting_since(one)) for one in found), key=lambda one: one.since)

    def _required(self, conn: Connection, execution_id: str, report: Report | None) -> None:
        row = conn.execute(
            sa.select(record.c.output_verification_required, record.c.output_verification_policy).where(
                record.c.id == execution_id
            )
        ).first()
        if row is None:
            executions.get(conn, execution_id, light=True)
            return
        if not row.output_verification_required:
            raise ConflictError(
                f"execution {execution_id} was admitted without output verification",
                code="output_verification_not_required",
                hint="set output_verification.required in the survey; it holds for executions admitted afterwards",
            )
        wanted = (row.output_verification_policy or {}).get("inventory_schema")
        if report is not None and report.schema != wanted:
            raise ConflictError(
                f"execution {execution_id} wants the schema {wanted}, and the report has {report.schema!r}",
                code="output_schema_mismatch",
                hint="the schema is the one of the survey's revision that the execution was admitted with",
            )

    def _keep(self, conn: Connection, execution: Execution, report: Report, now: datetime) -> Artifact:
        return artifacts.put_published(
            conn,
            execution.id,
            report.document,
            uri=report.destination,
            media_type=MEDIA_TYPE,
            phase=PRODUCER_PHASE,
            facts={
                "inventory_schema": report.schema,
                "inventory_sha256": report.inventory_sha256,
                "publication": report.publication,
                "products": len(report.products),
                "total_bytes": report.total_bytes,
            },
            ids=self._ids,
            now=now,
        )

    def _finalized(self, conn: Connection, execution: Execution) -> bool:
        """Whether all sources still have the signatures that were executed."""
        rows = registration.locked(conn, execution.project_module, execution.source_identifiers)
        current = {row.source_identifier: row.discovery_signature for row in rows}
        return all(
            current.get(source["source_identifier"]) == source["discovery_signature"]
            for source in execution.sources
        )

    def _complete(
        self,
        conn: Connection,
        execution: Execution,
        report: Report,
        artifact: Artifact,
        now: datetime,
        *,
        finalized: bool,
    ) -> Execution:
        kept = run_record.with_verification(
            execution.run_record,
            artifact_id=artifact.id,
            inventory_sha256=report.inventory_sha256,
            report_sha256=report.sha256,
            destination_uri=report.destination,
            at=now,
        )
        return finish(
            conn,
            execution,
            Status.COMPLETED,
            outcome=TerminalOutcome.SUCCEEDED,
            clock=self._clock,
            ids=self._ids,
            values={
                "output_state": OutputState.VERIFIED,
                "workflow_manifest": run_record.put(execution.workflow_manifest, kept),
            },
            more={"source_signatures_finalized": finalized},
        )

    def _tell(
        self, conn: Connection, execution: Execution, event_type: str, payload: dict[str, Any], *, actor: str
    ) -> None:
        event = provenance.Event(
            event_type=event_type,
            project_module=execution.project_module,
            execution_id=execution.id,
            correlation_id=execution.claim_token,
            payload=payload,
            actor=actor,
        )
        provenance.record(conn, [event], ids=self._ids, now=self._clock.now())


def waiting_since(execution: Execution) -> datetime:
    """When the execution began to wait for its verification."""
    at = execution.phase_timestamps.get(ControlPhase.OUTPUT_VERIFICATION.value)
    return datetime.fromisoformat(at) if at else execution.updated_at


def _awaited(execution: Execution) -> None:
    if execution.terminal:
        raise ConflictError(
            f"execution {execution.id} has ended: it is {execution.status.value}",
            code="outputs_not_awaited",
            hint="what has ended stays as it is; a new execution of its sources can be launched",
        )
    if execution.control_phase is not ControlPhase.OUTPUT_VERIFICATION:
        raise ConflictError(
            f"execution {execution.id} does not wait for its outputs yet: its session is "
            f"{execution.daliuge_state.value}",
            code="outputs_not_awaited",
            hint="send the report again when the poll has seen the session's end; that takes a few seconds",
            retry=Retry.LATER,
        )
