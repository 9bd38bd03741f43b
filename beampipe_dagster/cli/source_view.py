"""The page of one source."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from rich.console import Console
from rich.table import Table
from rich.text import Text
from sqlalchemy.engine import Connection

from beampipe_dagster.cli.render import DIGITS, cell, facts, number, section, short_ids, table, when
from beampipe_dagster.ledger import archive, sources
from beampipe_dagster.ledger.archive import SignatureChange
from beampipe_dagster.ledger.execution_values import Execution
from beampipe_dagster.ledger.sources import Source
from beampipe_dagster.sandbox.terminal import age_text, short_key, shortened
from beampipe_dagster.sandbox.watch import drops_text, word_text
from beampipe_dagster.sources.readiness import Blocker, blocker, failed_flags
from beampipe_dagster.sources.status import SourceState, describe, executions_of, vanishing_words

_FIELDS: Final = tuple(name for name in Source.__slots__ if name != "project_module")
_SHOWN: Final = 4
"""Datasets of a scheduling block, or changes of a signature, that are listed by name."""


@dataclass(frozen=True, slots=True)
class SourcePage:
    """All that the ledger knows about a source."""

    source: Source
    state: SourceState
    metadata: dict[str, dict[str, Any]]
    changes: list[SignatureChange]
    executions: list[Execution]
    blocker: Blocker | None

    def as_dict(self) -> dict[str, Any]:
        """The page as JSON."""
        return {
            "source": {
                "project_id": self.source.project_module,
                **{name: getattr(self.source, name) for name in _FIELDS},
            },
            "state": self.state,
            "readiness": {
                "ready": self.blocker is None,
                "blocker": self.blocker.as_dict() if self.blocker else None,
            },
            "metadata": self.metadata,
            "signatures": [
                {
                    "signature": change.signature,
                    "previous_signature": change.previous_signature,
                    "partition_key": change.partition_key,
                    "discovered_at": change.discovered_at,
                    "sbid_count": change.sbid_count,
                    "dataset_count": change.dataset_count,
                    "diff": change.diff,
                    "evidence": change.evidence,
                }
                for change in self.changes
            ],
            "executions": [
                {
                    "id": run.id,
                    "partition_key": run.partition_key,
                    "status": run.status,
                    "daliuge_session_id": run.daliuge_session_id,
                    "drops": run.drop_counts,
                    "created_at": run.created_at,
                    "completed_at": run.completed_at,
                    "last_error": run.last_error,
                    "last_error_code": run.last_error_code,
                }
                for run in self.executions
            ],
        }


def load(conn: Connection, project_id: str, name: str) -> SourcePage:
    """Read a source's page.

    Raises
    ------
    NotFoundError
        ``source_not_registered``.
    """
    source = sources.get(conn, project_id, name)
    metadata: dict[str, Any] = archive.metadata_of(conn, project_id, [name]).get(name, {})
    runs = executions_of(conn, project_id, name)
    return SourcePage(
        source=source,
        state=describe(source, runs[0] if runs else None),
        metadata=metadata,
        changes=archive.changes_of(conn, project_id, name),
        executions=runs,
        blocker=blocker(source, metadata),
    )


def show_source(out: Console, page: SourcePage, *, now: datetime) -> None:
    """Print a source's page."""
    source, state = page.source, page.state
    head = Text.assemble((source.source_identifier, "bold"), "  ", word_text(state.word, state.label))
    out.print(head)
    out.print(facts(_facts(page, now)))
    section(out, "Metadata", _metadata(page) if page.metadata else "The archives have given nothing yet.")
    section(out, "Signatures", _changes(page, now) if page.changes else "None yet.")
    section(out, "Executions", _executions(page, now) if page.executions else "None yet.")


def _facts(page: SourcePage, now: datetime) -> list[tuple[str, object]]:
    source = page.source
    position = None
    if source.ra_deg is not None and source.dec_deg is not None:
        position = f"{source.ra_deg:.5f} {source.dec_deg:+.5f} (degrees, ICRS)"
    checked = "never"
    if source.last_checked_at is not None:
        ago = age_text((now - source.last_checked_at).total_seconds())
        checked = f"{when(source.last_checked_at)} UTC, {ago} ago"
    waiting = None
    if source.workflow_run_pending and source.workflow_run_pending_at:
        waiting = age_text((now - source.workflow_run_pending_at).total_seconds())
    error = source.last_error
    again = f", again after {when(source.next_attempt_at)} UTC" if source.next_attempt_at else ""
    pairs: list[tuple[str, object]] = [
        ("project", source.project_module),
        ("position", position),
        ("enabled", "yes" if source.enabled else "no"),
        ("why", page.state.detail),
        ("checked", checked),
        ("last look", (source.last_outcome or "").replace("_", " ") or None),
        ("error", f"{error.get('message')}{again}" if error else None),
        ("missing", vanishing_words(source)),
        ("pending for", waiting),
        ("signature", source.discovery_signature),
        ("executed", _executed(source)),
    ]
    blocked = page.blocker
    if blocked is None:
        hint = (source.hold or {}).get("hint")
        return [*pairs, ("ready", Text("yes", style="green")), ("hint", hint or None)]
    return [
        *pairs,
        ("ready", cell(f"no: {blocked.message} [{blocked.code}]", "yellow")),
        ("hint", blocked.hint),
    ]


def _executed(source: Source) -> str | None:
    done = source.last_executed_discovery_signature
    if done is None:
        return None
    return "this signature" if done == source.discovery_signature else f"{done} (another signature)"


def _metadata(page: SourcePage) -> Table:
    right = {"justify": "right"}
    rows = table("SBID", ("datasets", right), "flags", "files")
    for sbid, document in page.metadata.items():
        datasets = document.get("datasets") or []
        flags = document.get("discovery_flags") or {}
        failed = failed_flags({sbid: document})
        words = f"{len(flags) - len(failed)}/{len(flags)} pass" if flags else "none"
        style = "yellow" if failed else ""
        names = [str(item.get("dataset_id") or item.get("visibility_filename") or "?") for item in datasets]
        more = [f"and {len(names) - _SHOWN} more"] if len(names) > _SHOWN else []
        rows.add_row(
            cell(sbid),
            str(len(datasets)),
            cell(words + (f", not {', '.join(failed)}" if failed else ""), style),
            cell("\n".join([*names[:_SHOWN], *more])),
        )
    return rows


def _changes(page: SourcePage, now: datetime) -> Table:
    right = {"justify": "right"}
    rows = table(
        ("when (UTC)", {"no_wrap": True}), "signature", ("SBIDs", right), ("datasets", right), "what changed"
    )
    for change in page.changes:
        current = change.signature == page.source.discovery_signature
        rows.add_row(
            when(change.discovered_at, now=now),
            cell(change.signature[:DIGITS], "bold" if current else "dim"),
            str(change.sbid_count),
            str(change.dataset_count),
            cell(what_changed(change.diff)),
        )
    return rows


def what_changed(diff: dict[str, Any]) -> str:
    """A diff of payloads in words: ``2 datasets added in SB73105; flags changed``."""
    parts = []
    for kind in ("added", "removed", "changed"):
        mine = diff.get(kind) or []
        count = int((diff.get("counts") or {}).get(kind) or 0)
        if count <= 0:
            continue
        blocks = list(dict.fromkeys(str(item.get("sbid")) for item in mine))
        where = ", ".join(f"SB{block}" for block in blocks[:_SHOWN]) + ("…" if len(blocks) > _SHOWN else "")
        fields = dict.fromkeys(name for item in mine for name in item.get("fields") or {})
        what = f" ({shortened(', '.join(fields), 80)})" if fields else ""
        parts.append(f"{number(count, 'dataset')} {kind}{f' in {where}' if where else ''}{what}")
    return "; ".join([*parts, *(["flags changed"] if diff.get("flags_count") else [])]) or "no dataset"


def _executions(page: SourcePage, now: datetime) -> Table:
    short = short_ids(run.id for run in page.executions)
    fixed = {"no_wrap": True}
    rows = table(
        ("execution", fixed),
        ("status", fixed),
        ("partition", fixed),
        ("began (UTC)", fixed),
        ("took", fixed),
        ("drops", fixed),
        "reason",
    )
    for run in page.executions:
        rows.add_row(
            cell(short[run.id]),
            word_text(run.status),
            cell(short_key(run.partition_key, page.source.source_identifier), "dim"),
            when(run.created_at, now=now),
            age_text(((run.completed_at or now) - run.created_at).total_seconds()),
            drops_text(run.drop_counts),
            cell(shortened(run.last_error) if run.last_error else " "),
        )
    return rows
