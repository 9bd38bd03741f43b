"""How the states of sources and executions look on a terminal, and the live table of ``beampipe up``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from rich.table import Table
from rich.text import Text
from sqlalchemy.engine import Connection

from beampipe_dagster.ledger import executions, sources
from beampipe_dagster.ledger.execution_values import Execution
from beampipe_dagster.ledger.sources import Source
from beampipe_dagster.ledger.states import ACTIVE, DaliugeState
from beampipe_dagster.ledger.tables import batch_execution_record
from beampipe_dagster.sandbox.terminal import age_text, clean, short_key, shortened
from beampipe_dagster.signature.payload import partition_key
from beampipe_dagster.sources.status import SourceState, Word, describe, latest_executions

if TYPE_CHECKING:
    from beampipe_dagster.assembly import Platform

ROWS: Final = 40
"""Sources that the live table shows; those that need looking at come first."""

BAR_LENGTH: Final = 5

STYLES: Final[Mapping[str, str]] = {
    Word.UNCHECKED: "dim",
    Word.DISCOVERING: "cyan",
    Word.DISCOVERY_FAILED: "yellow",
    Word.QUARANTINED: "red",
    Word.NO_DATASETS: "dim",
    Word.VANISHING: "yellow",
    Word.PENDING: "cyan",
    Word.HELD: "yellow",
    Word.RUNNING: "bold cyan",
    Word.COMPLETED: "green",
    Word.FAILED: "bold red",
    Word.CANCELLED: "dim",
    Word.DISABLED: "dim",
    Word.IDLE: "dim",
    # Words that only executions and sessions have.
    "awaiting_scheduler": "cyan",
    "retrying": "cyan",
    "not_submitted": "yellow",
    "finished": "green",
    "deploying": "cyan",
    "building": "cyan",
    "pristine": "cyan",
    "unreachable": "yellow",
    "unknown": "yellow",
    "uncertain": "yellow",
}
"""The colour of every state word; words without one are plain."""

_ORDER: Final = (
    Word.RUNNING,
    Word.DISCOVERING,
    Word.PENDING,
    Word.FAILED,
    Word.HELD,
    Word.QUARANTINED,
    Word.DISCOVERY_FAILED,
    Word.UNCHECKED,
    Word.COMPLETED,
)
_NO_SESSION: Final = frozenset({DaliugeState.NOT_CREATED, DaliugeState.UNKNOWN})


def word_text(word: str | None, label: str | None = None) -> Text:
    """A state's word in its colour."""
    if not word:
        return Text("")
    return Text(label or word.replace("_", " "), style=STYLES.get(word, ""))


def drops_text(counts: Mapping[str, Any] | None, *, length: int = BAR_LENGTH) -> Text:
    """A bar and ``completed/total``: full blocks are completed drops, medium ones failed, light ones to do."""
    total = int((counts or {}).get("total") or 0)
    if counts is None or total <= 0:
        return Text("")
    done, failed = int(counts.get("completed") or 0), int(counts.get("error") or 0)
    full = min(length, length * done // total)
    broken = min(length - full, -(-length * failed // total))
    return Text.assemble(
        ("█" * full, "green"),
        ("▒" * broken, "red"),
        ("░" * (length - full - broken), "dim"),
        f" {done}/{total}",
    )


def executions_table(platform: Platform, project_ids: Sequence[str], *, limit: int = ROWS) -> Table:
    """Every source with what it is doing, those in motion and in trouble first.

    Parameters
    ----------
    platform
        Whose ledger is read, at its clock's time.
    project_ids
        The surveys to be shown.
    limit
        Rows at most; the caption counts the others.

    Raises
    ------
    LedgerError
        The ledger cannot be read.
    """
    now = platform.clock.now()
    rows: list[_Row] = []
    registered = 0
    with platform.ledger.read() as conn:
        for project_id in project_ids:
            registered += sources.counts(conn, project_id)["registered"]
            rows += _rows(conn, project_id)
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", pad_edge=False, expand=True)
    for name in ("source", "state", "partition", "session", "drops", "age"):
        table.add_column(name, no_wrap=True)
    table.add_column("reason", ratio=1, overflow="fold")
    rows.sort(key=lambda row: row.rank)
    for row in rows[:limit]:
        table.add_row(*row.cells(now))
    words = Counter(row.state.word for row in rows)
    told = ", ".join(f"{words[word]} {word.replace('_', ' ')}" for word in Word if words[word])
    more = registered - min(limit, len(rows))
    table.caption = Text(f"{told or 'no sources yet'}{f'; {more} more not shown' if more > 0 else ''}")
    table.caption_justify = "left"
    return table


@dataclass(frozen=True, slots=True)
class _Row:
    source: Source
    execution: Execution | None
    state: SourceState

    @property
    def rank(self) -> tuple[int, str]:
        place = {word: index for index, word in enumerate(_ORDER)}
        return place.get(Word(self.state.word), len(place)), self.source.source_identifier

    def cells(self, now: datetime) -> list[Text]:
        run = self.execution
        name = self.source.source_identifier
        current = run if run is not None and self._is_current(run) else None
        key = current.partition_key if current else self._pending_key()
        session = ""
        if current is not None and current.daliuge_state not in _NO_SESSION:
            session = current.daliuge_state.value
        return [
            Text(clean(name)),
            word_text(self.state.word),
            Text(short_key(key, name), style="dim"),
            word_text(session),
            drops_text(current.drop_counts if current else None),
            Text(age_text((now - self._since(current)).total_seconds())),
            Text(shortened(self.state.detail or "")),
        ]

    def _is_current(self, run: Execution) -> bool:
        signatures = {item["source_identifier"]: item["discovery_signature"] for item in run.sources}
        mine = signatures.get(self.source.source_identifier)
        return not run.terminal or mine == self.source.discovery_signature

    def _pending_key(self) -> str:
        signature = self.source.discovery_signature
        if not self.source.workflow_run_pending or not signature:
            return ""
        return partition_key(self.source.source_identifier, signature)

    def _since(self, run: Execution | None) -> datetime:
        if run is not None:
            return run.completed_at or run.created_at
        source = self.source
        if source.workflow_run_pending and source.workflow_run_pending_at:
            return source.workflow_run_pending_at
        return source.last_checked_at or source.last_attempted_at or source.created_at


def _rows(conn: Connection, project_id: str) -> list[_Row]:
    active = executions.select(
        conn,
        batch_execution_record.c.project_module == project_id,
        batch_execution_record.c.status.in_([status.value for status in ACTIVE]),
        light=True,
    )
    busy = [name for run in active for name in run.source_identifiers]
    shown = {row.source_identifier: row for row in sources.listing(conn, project_id)}
    missing = [name for name in busy if name not in shown]
    shown |= {row.source_identifier: row for row in sources.by_identifiers(conn, project_id, missing)}
    newest = latest_executions(conn, project_id, list(shown))
    return [_Row(row, newest.get(name), describe(row, newest.get(name))) for name, row in shown.items()]
