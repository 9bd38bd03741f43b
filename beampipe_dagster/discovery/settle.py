"""What one look means for the ledger: rows, signature, pending flag, story and message, or a wait.

A complete answer is believed at once, with one exception. When datasets that are stored are missing from it, an
archive may have lost sight of them for a moment: a node that is away, an index that is being built. Believing it
would throw the rows away, and start the source again twice: now without the datasets, and later with them. So the
first such answer changes nothing but its own mark. It is believed when a second one, asked for at least the
recheck interval later, comes to the same signature. New datasets that come in the same answer wait with it: a
scope that mixes what is there with what may be gone has never existed in the archive, and must not be run. What
is new waits for one interval at most, what is gone is kept until it is known to be gone.

A new revision of the survey may give datasets other names. So where the stored signature was made by an earlier
revision, datasets are missing only when there are fewer of them than are stored.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy.engine import Connection

from beampipe_dagster.clock import Clock, rfc3339
from beampipe_dagster.config.canonical import JsonValue
from beampipe_dagster.config.project import ProjectConfig
from beampipe_dagster.discovery.facts import change_facts
from beampipe_dagster.discovery.gate import NOT_ASKED
from beampipe_dagster.discovery.look import Look
from beampipe_dagster.discovery.postpone import Circuits, postponed_until
from beampipe_dagster.discovery.quarantine import DEFAULT_AFTER, is_own_failure
from beampipe_dagster.errors import BeampipeError
from beampipe_dagster.ids import Ids
from beampipe_dagster.ledger import archive, outbox, provenance, sources
from beampipe_dagster.ledger.projects import ProjectRevision
from beampipe_dagster.ledger.sources import Source
from beampipe_dagster.signature.diff import DatasetRef, diff_payloads, lost_datasets
from beampipe_dagster.signature.payload import Signature, partition_key, sign_stored

METADATA_ASSET: Final = "archive_metadata"
FIRST_BACKOFF_SECONDS: Final = 30.0
LONGEST_BACKOFF_SECONDS: Final = 3600.0
OUTBOX_GRACE_SECONDS: Final = 120.0
"""How long the batch itself has to tell its events before the poll sensor does."""

DIFF_LIMIT: Final = 50
MISSING_SHOWN: Final = 10
"""Datasets that the event of a vanishing lists by name."""

DEFAULT_RECHECK: Final = timedelta(minutes=60)


@dataclass(slots=True)
class BatchReport:
    """What a batch found."""

    token: str
    project_id: str
    total: int = 0
    changed: dict[str, str] = field(default_factory=dict)
    unchanged: list[str] = field(default_factory=list)
    no_datasets: list[str] = field(default_factory=list)
    vanishing: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    postponed: dict[str, str] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)
    datasets: int = 0
    done_before: bool = False

    def add(self, other: BatchReport) -> None:
        """Take over what another report of the same batch found."""
        self.changed.update(other.changed)
        self.unchanged.extend(other.unchanged)
        self.no_datasets.extend(other.no_datasets)
        self.vanishing.extend(other.vanishing)
        self.failed.update(other.failed)
        self.postponed.update(other.postponed)
        self.lost.extend(other.lost)
        self.datasets += other.datasets

    def as_dict(self) -> dict[str, Any]:
        """Counts and names, for the claim's row and the run's page."""
        return {
            "total": self.total,
            "changed": dict(self.changed),
            "unchanged": len(self.unchanged),
            "no_datasets": len(self.no_datasets),
            "vanishing": list(self.vanishing),
            "failed": dict(self.failed),
            "postponed": dict(self.postponed),
            "claim_lost": len(self.lost),
            "datasets": self.datasets,
        }


def recheck_after(source: Source, config: ProjectConfig, interval: timedelta) -> timedelta:
    """How long after datasets were first missing another look may confirm it: never longer than a stale look."""
    rules = config.automation.discovery
    hours = source.stale_after_hours or (rules.stale_after_hours if rules is not None else None)
    return interval if hours is None else min(interval, timedelta(hours=hours))


class Settlement:
    """Writes what looks at sources of one survey revision come to.

    Parameters
    ----------
    revision
        The revision by which the looks were made.
    quarantine_after
        Failed looks in a row, each by the source's own fault, after which a source is set aside.
    recheck
        Time after which a second answer may confirm that datasets are gone.
    circuits
        Who knows which archives are left alone: what they do not answer is not held against a source.
    """

    def __init__(
        self,
        *,
        clock: Clock,
        ids: Ids,
        revision: ProjectRevision,
        quarantine_after: int = DEFAULT_AFTER,
        recheck: timedelta = DEFAULT_RECHECK,
        circuits: Circuits | None = None,
    ) -> None:
        self._clock = clock
        self._ids = ids
        self._revision = revision
        self._config = ProjectConfig.from_json(revision.spec)
        self._quarantine_after = quarantine_after
        self._recheck = recheck
        self._circuits = circuits

    def settle(
        self, conn: Connection, source: Source, look: Look, stored: dict[str, Any], report: BatchReport
    ) -> None:
        """Write one source's outcome, if the claim still owns it.

        Parameters
        ----------
        source
            The registry's row as it was when the claim was begun.
        look
            What the archives said; an answer that is not complete is its ``error``.
        stored
            The source's metadata by SBID.
        report
            Takes what became of the source.

        Raises
        ------
        BeampipeError
            The metadata cannot be signed or told; nothing that was written may be kept.
        """
        if look.error is not None or look.signature is None:
            self.settle_failure(conn, source, look, report)
        elif look.signature.digest == source.discovery_signature:
            self._unchanged(conn, source, look, stored, report)
        else:
            before = self._signed(stored)
            lost = self._lost(conn, source, look, before.payload, look.signature.payload)
            if lost and not self._confirms(source, look, look.signature.digest):
                self._vanishing(conn, source, look, look.signature.digest, lost, report)
            else:
                self._changed(conn, source, look, look.signature, before, report)

    def _lost(
        self,
        conn: Connection,
        source: Source,
        look: Look,
        before: dict[str, JsonValue],
        after: dict[str, JsonValue],
    ) -> list[DatasetRef]:
        """Stored datasets that the answer lacks.

        Another revision of the survey may name all of them anew: then only their number can tell.
        """
        known = source.discovery_signature
        lost = lost_datasets(before, after) if known is not None else []
        if not lost or known is None or look.datasets < len(lost_datasets(before, {})):
            return lost
        made_by = archive.revision_of(conn, source.project_module, source.source_identifier, known)
        return lost if made_by == self._revision.id else []

    def settle_failure(self, conn: Connection, source: Source, look: Look, report: BatchReport) -> None:
        """Write that a look had no complete answer: nothing changes but when the source is asked about again."""
        error = look.error or BeampipeError("the look gave no answer")
        now = self._clock.now()
        until = postponed_until(conn, error, config=self._config, circuits_of=self._circuits, now=now)
        if until is not None:
            self._postpone(conn, source, error, until, report)
            return
        failures = source.failure_count + 1
        wait = min(LONGEST_BACKOFF_SECONDS, FIRST_BACKOFF_SECONDS * 2 ** min(failures - 1, 10))
        own = source.own_failure_count + is_own_failure(error)
        quarantined = own > source.own_failure_count and own >= self._quarantine_after
        values: dict[str, object] = {
            "last_outcome": "timeout" if error.code == "archive_timeout" else "error",
            "last_error": error.as_dict(),
            "failure_count": failures,
            "own_failure_count": own,
            "next_attempt_at": None if quarantined else now + timedelta(seconds=wait),
            "quarantined_at": now if quarantined else None,
        }
        if not sources.settle(conn, source.id, report.token, values, now=now):
            report.lost.append(source.source_identifier)
            return
        report.failed[source.source_identifier] = str(error)
        kind = "discovery.timeout" if error.code == "archive_timeout" else "discovery.error"
        duration = int((now - look.began_at).total_seconds() * 1000)
        payload = {**error.as_dict(), "duration_ms": duration, "claim_token": report.token}
        self._event(conn, source, report, kind, payload)
        if quarantined:
            self._event(conn, source, report, "discovery.quarantined", {**error.as_dict(), "failures": own})

    def _postpone(
        self, conn: Connection, source: Source, error: BeampipeError, until: datetime, report: BatchReport
    ) -> None:
        """The source is asked about later, and its failures are not counted; an answer that failed is kept."""
        values: dict[str, object] = {"next_attempt_at": until}
        if error.code not in NOT_ASKED:
            outcome = "timeout" if error.code == "archive_timeout" else "error"
            values.update(last_outcome=outcome, last_error=error.as_dict())
        if sources.settle(conn, source.id, report.token, values, now=self._clock.now()):
            report.postponed[source.source_identifier] = str(error)
        else:
            report.lost.append(source.source_identifier)

    def _signed(self, stored: dict[str, Any]) -> Signature:
        options = self._config.signature_options
        return sign_stored(
            stored, exclude_fields=options.exclude_fields, include_flags=options.include_discovery_flags
        )

    def _confirms(self, source: Source, look: Look, signature: str) -> bool:
        """Whether the look says again, late enough, what an earlier one said about missing datasets."""
        since = source.vanish_first_at
        if since is None or source.vanish_signature != signature:
            return False
        return look.began_at >= since + recheck_after(source, self._config, self._recheck)

    def _unchanged(
        self, conn: Connection, source: Source, look: Look, stored: dict[str, Any], report: BatchReport
    ) -> None:
        empty = look.datasets == 0
        if not self._believe(conn, source, look, "no_datasets" if empty else "unchanged", {}, report):
            return
        (report.no_datasets if empty else report.unchanged).append(source.source_identifier)
        if look.metadata != stored:
            # What is not signed (flags, links that expire) may be new all the same.
            self._keep_metadata(conn, source, look)
        if not empty:
            prefix = (source.discovery_signature or "")[:16]
            self._event(conn, source, report, "discovery.unchanged", {"signature_prefix": prefix})

    def _believe(
        self,
        conn: Connection,
        source: Source,
        look: Look,
        outcome: str,
        values: dict[str, object],
        report: BatchReport,
    ) -> bool:
        """Write that the look counts; ``False`` when the claim no longer owns the source."""
        values = {
            "last_checked_at": look.began_at,
            "last_outcome": outcome,
            "last_error": None,
            **sources.RELEASED,
            **sources.REAPPEARED,
            **values,
        }
        if sources.settle(conn, source.id, report.token, values, now=self._clock.now()):
            return True
        report.lost.append(source.source_identifier)
        return False

    def _vanishing(
        self,
        conn: Connection,
        source: Source,
        look: Look,
        signature: str,
        lost: list[DatasetRef],
        report: BatchReport,
    ) -> None:
        """Keep rows and signature, remember what the answer came to, and ask again soon.

        The time of the last believed look stays, so that the source remains due.
        """
        same = source.vanish_first_at is not None and source.vanish_signature == signature
        first = source.vanish_first_at if same and source.vanish_first_at else look.began_at
        count = source.vanish_count + 1 if same else 1
        again = first + recheck_after(source, self._config, self._recheck)
        values: dict[str, object] = {
            "last_outcome": "vanishing",
            "last_error": None,
            **sources.RELEASED,
            "next_attempt_at": again,
            "vanish_signature": signature,
            "vanish_first_at": first,
            "vanish_count": count,
        }
        if not sources.settle(conn, source.id, report.token, values, now=self._clock.now()):
            report.lost.append(source.source_identifier)
            return
        report.vanishing.append(source.source_identifier)
        payload: dict[str, Any] = {
            "signature": source.discovery_signature,
            "candidate": signature,
            "missing": len(lost),
            "missing_datasets": [ref.as_dict() for ref in lost[:MISSING_SHOWN]],
            "datasets": look.datasets,
            "first_seen": rfc3339(first),
            "looks": count,
            "believed_after": rfc3339(again),
            "evidence": look.evidence,
        }
        self._event(conn, source, report, "discovery.vanishing", payload)

    def _changed(
        self,
        conn: Connection,
        source: Source,
        look: Look,
        signature: Signature,
        before: Signature,
        report: BatchReport,
    ) -> None:
        now = self._clock.now()
        empty = look.datasets == 0
        values: dict[str, object] = {
            "discovery_signature": signature.digest,
            "hold": None,
            "workflow_run_pending": not empty,
        }
        if not empty:
            values["workflow_run_pending_at"] = now
        if not self._believe(conn, source, look, "no_datasets" if empty else "changed", values, report):
            return
        change = self._change(source, look, signature, before, now)
        self._keep_metadata(conn, source, look)
        archive.record_change(conn, change)
        payload: dict[str, Any] = {
            "signature": change.signature,
            "sbids": change.sbid_count,
            "datasets": look.datasets,
        }
        if source.vanish_first_at is not None and source.vanish_signature == signature.digest:
            payload["missing_since"] = rfc3339(source.vanish_first_at)
            payload["looks"] = source.vanish_count + 1
        self._event(conn, source, report, "discovery.no_datasets" if empty else "discovery.changed", payload)
        if empty:
            report.no_datasets.append(source.source_identifier)
            return
        report.changed[source.source_identifier] = change.partition_key
        report.datasets += look.datasets
        message = outbox.Message(
            kind="materialization",
            project_module=source.project_module,
            asset=METADATA_ASSET,
            partition_key=change.partition_key,
            correlation_id=report.token,
            payload=change_facts(change),
        )
        outbox.put(conn, [message], now=now, available_at=now + timedelta(seconds=OUTBOX_GRACE_SECONDS))

    def _change(
        self, source: Source, look: Look, signature: Signature, before: Signature, now: datetime
    ) -> archive.SignatureChange:
        return archive.SignatureChange(
            id=self._ids.new(),
            project_module=source.project_module,
            source_identifier=source.source_identifier,
            signature=signature.digest,
            previous_signature=source.discovery_signature,
            partition_key=partition_key(source.source_identifier, signature.digest),
            project_config_id=self._revision.id,
            sbid_count=len(look.metadata) if look.datasets else 0,
            dataset_count=look.datasets,
            diff=diff_payloads(before.payload, signature.payload, limit=DIFF_LIMIT).as_dict(),
            evidence=look.evidence,
            metadata_json=look.metadata,
            discovered_at=now,
        )

    def _keep_metadata(self, conn: Connection, source: Source, look: Look) -> None:
        archive.replace_metadata(
            conn,
            source.project_module,
            source.source_identifier,
            look.metadata,
            ids=self._ids,
            now=self._clock.now(),
        )

    def _event(
        self,
        conn: Connection,
        source: Source,
        report: BatchReport,
        event_type: str,
        payload: dict[str, JsonValue],
    ) -> None:
        event = provenance.Event(
            event_type=event_type,
            project_module=source.project_module,
            source_identifier=source.source_identifier,
            correlation_id=report.token,
            payload=payload,
        )
        provenance.record(conn, [event], ids=self._ids, now=self._clock.now())
