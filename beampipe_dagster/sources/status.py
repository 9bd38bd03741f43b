"""What a source is doing, in one word and one sentence.

The words are the same wherever people read them: on the command line, in the live table of ``beampipe up``, in
the demo's report and in the documentation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from beampipe_dagster.clock import rfc3339
from beampipe_dagster.ledger import executions
from beampipe_dagster.ledger.execution_values import Execution
from beampipe_dagster.ledger.sources import Source, chunks
from beampipe_dagster.ledger.states import (
    ControlPhase,
    DaliugeState,
    Status,
    SubmissionState,
)
from beampipe_dagster.ledger.tables import batch_execution_record, execution_sources


class Word(StrEnum):
    """What a source can be doing."""

    UNCHECKED = "unchecked"
    """No complete answer about it yet."""
    DISCOVERING = "discovering"
    """A batch has it now."""
    DISCOVERY_FAILED = "discovery_failed"
    """The last look had no complete answer; it is looked at again by itself."""
    QUARANTINED = "quarantined"
    """Its looks failed too often by its own fault; it is looked at again when an operator asks."""
    NO_DATASETS = "no_datasets"
    """The archives answered completely and have nothing for it."""
    VANISHING = "vanishing"
    """Datasets of it were missing at the last look; a second look is to confirm that."""
    PENDING = "pending"
    """Its signature is new, and it waits for room."""
    HELD = "held"
    """It is pending and not ready; the code says why."""
    RUNNING = "running"
    """An execution has it."""
    COMPLETED = "completed"
    """The execution of its current signature was completed."""
    FAILED = "failed"
    """The execution of its current signature failed."""
    CANCELLED = "cancelled"
    """The execution of its current signature was cancelled."""
    DISABLED = "disabled"
    """Nobody looks at it."""
    IDLE = "idle"
    """It was looked at, and nothing is to be done."""


WORDS: Final = tuple(word.value for word in Word)
"""All words, in the order in which a source goes through them."""

_FAILED_LOOKS: Final = frozenset({"error", "timeout"})

FAILED_HOLDS: Final = frozenset({"execution_failed", "retry_budget_exhausted"})
"""Codes of the hold of a source whose last execution failed."""

_STAGES: Final = {
    ControlPhase.DISCOVERED: "admitted, waits for its run",
    ControlPhase.ADMISSION_PENDING: "admitted, waits for its run",
    ControlPhase.ADMITTED: "admitted, waits for its run",
    ControlPhase.MANIFEST_GENERATED: "the manifest is built",
    ControlPhase.GRAPH_PATCHED: "the graph is prepared",
    ControlPhase.TRANSLATED: "the graph is translated",
    ControlPhase.SUBMISSION_PENDING: "being submitted",
    ControlPhase.SUBMITTED: "submitted",
    ControlPhase.MONITORING: "the session runs",
    ControlPhase.OUTPUT_VERIFICATION: "its outputs are being verified",
    ControlPhase.TERMINAL: "ended",
}


@dataclass(frozen=True, slots=True)
class SourceState:
    """What a source is doing.

    Attributes
    ----------
    word
        A :class:`Word`, for machines.
    detail
        Why, or how far; None where the word says it all.
    code
        Stable identifier of the reason, where there is one.
    """

    word: str
    detail: str | None = None
    code: str | None = None

    @property
    def label(self) -> str:
        """The word for people: ``no datasets``, or ``held: discovery_flags_failed``."""
        words = self.word.replace("_", " ")
        return f"{words}: {self.code}" if self.word == Word.HELD and self.code else words


def describe(source: Source, execution: Execution | None) -> SourceState:
    """What a source is doing.

    Parameters
    ----------
    source
        The registry's row.
    execution
        Its newest execution, whatever became of it.
    """
    if execution is not None and not execution.terminal:
        return SourceState(Word.RUNNING, stage(execution), execution.last_error_code)
    if source.discovery_claim_token is not None:
        return SourceState(Word.DISCOVERING)
    if not source.enabled:
        return SourceState(Word.DISABLED, "it is neither looked at nor executed")
    return _waiting(source, execution) or _looked_at(source, execution)


def _waiting(source: Source, execution: Execution | None) -> SourceState | None:
    """A source whose signature has news, and which does not run yet or did not run well."""
    if source.hold is not None:
        code, message = str(source.hold.get("code", "")), str(source.hold.get("message", ""))
        if code not in FAILED_HOLDS:
            return SourceState(Word.HELD, message or None, code or None)
        failed = execution is not None and execution.status is Status.FAILED
        reason = execution.last_error if failed and execution is not None else None
        then = str(source.hold.get("hint", "")) if source.hold.get("retry_at") else ""
        words = "; ".join(text for text in (reason or message, then) if text)
        return SourceState(Word.FAILED, words or None, code)
    if source.workflow_run_pending:
        return SourceState(Word.PENDING)
    return None


def _looked_at(source: Source, execution: Execution | None) -> SourceState:
    if source.quarantined_at is not None or source.last_outcome in _FAILED_LOOKS:
        error = source.last_error or {}
        message, code = error.get("message"), error.get("code")
        word = Word.DISCOVERY_FAILED if source.quarantined_at is None else Word.QUARANTINED
        return SourceState(word, str(message) if message else None, str(code) if code else None)
    if source.last_checked_at is None:
        return SourceState(Word.UNCHECKED)
    if source.vanish_first_at is not None:
        return SourceState(Word.VANISHING, vanishing_words(source))
    if source.last_outcome == Word.NO_DATASETS:
        return SourceState(Word.NO_DATASETS)
    return _executed(source, execution)


def vanishing_words(source: Source) -> str | None:
    """What the last complete looks said about missing datasets; ``None`` where none is missing."""
    if source.vanish_first_at is None:
        return None
    looks = "1 look" if source.vanish_count == 1 else f"{source.vanish_count} looks"
    again = f"; asked about again after {rfc3339(source.next_attempt_at)}" if source.next_attempt_at else ""
    return (
        f"datasets that are stored were missing in the archives' answer since {rfc3339(source.vanish_first_at)}"
        f" ({looks}); its data and signature are kept until a second look says the same{again}"
    )


def _executed(source: Source, execution: Execution | None) -> SourceState:
    if source.discovery_signature == source.last_executed_discovery_signature:
        as_asked = execution is not None and execution.status is Status.NOT_SUBMITTED
        return SourceState(
            Word.COMPLETED, "its graph was not submitted, as its launch asked" if as_asked else None
        )
    if execution is not None and execution.status is Status.CANCELLED:
        return SourceState(Word.CANCELLED, execution.last_error)
    if execution is not None and execution.status is Status.FAILED:
        return SourceState(Word.FAILED, execution.last_error, execution.last_error_code)
    return SourceState(Word.IDLE)


def stage(execution: Execution) -> str:
    """How far an execution is, in plain words; why it waits, where it does."""
    if execution.terminal:
        return execution.last_error or execution.status.value.replace("_", " ")
    if execution.submission_state is SubmissionState.UNCERTAIN:
        return "submission uncertain, its session is being looked for"
    if execution.last_error is not None:
        return f"waits: {execution.last_error}"
    if execution.daliuge_state is DaliugeState.UNREACHABLE:
        return "waits: its manager cannot be reached"
    return _STAGES[execution.control_phase]


def latest_executions(
    conn: Connection, project_module: str, identifiers: Sequence[str]
) -> dict[str, Execution]:
    """The newest execution of each of these sources; sources that never had one are absent."""
    columns = execution_sources.c
    newest: dict[str, str] = {}
    for piece in chunks(identifiers):
        # Identifiers of executions are ordered by time.
        rows = conn.execute(
            sa.select(columns.source_identifier, sa.func.max(columns.execution_id).label("id"))
            .where(columns.project_module == project_module, columns.source_identifier.in_(piece))
            .group_by(columns.source_identifier)
        )
        newest |= {row.source_identifier: row.id for row in rows}
    found: dict[str, Execution] = {}
    for piece in chunks(sorted(set(newest.values()))):
        wanted = batch_execution_record.c.id.in_(piece)
        found |= {item.id: item for item in executions.select(conn, wanted, limit=len(piece), light=True)}
    return {name: found[execution_id] for name, execution_id in newest.items()}


def executions_of(
    conn: Connection, project_module: str, source_identifier: str, *, limit: int = 20
) -> list[Execution]:
    """The newest executions of one source, newest first."""
    columns = execution_sources.c
    mine = sa.select(columns.execution_id).where(
        columns.project_module == project_module, columns.source_identifier == source_identifier
    )
    return executions.select(
        conn, batch_execution_record.c.id.in_(mine), limit=limit, newest_first=True, light=True
    )
