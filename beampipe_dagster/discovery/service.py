"""Discovery: claim stale sources, look at them, and commit what is new.

A tick claims sources in one transaction and gives the claims to be run; a claim that was given before and not
begun is given again under the same token, so that nothing is lost when the asker dies. A batch looks at its
sources side by side and commits in chunks; one bad source never spoils the others.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final

from sqlalchemy.engine import Connection
from sqlalchemy.exc import DataError

from beampipe_dagster.clock import Clock
from beampipe_dagster.config.project import DiscoveryAutomation, ProjectConfig
from beampipe_dagster.discovery.archives import ArchiveProvider
from beampipe_dagster.discovery.batch_look import BatchLook
from beampipe_dagster.discovery.facts import change_facts
from beampipe_dagster.discovery.look import Look, SourceLook
from beampipe_dagster.discovery.quarantine import DEFAULT_AFTER, is_own_failure
from beampipe_dagster.errors import BeampipeError, ConflictError
from beampipe_dagster.errors import DataError as InvalidMetadataError
from beampipe_dagster.ids import Ids
from beampipe_dagster.ledger import archive, outbox, projects, provenance, sources
from beampipe_dagster.ledger.engine import Ledger, queue
from beampipe_dagster.ledger.projects import ProjectRevision
from beampipe_dagster.ledger.sources import DiscoveryClaim, Source
from beampipe_dagster.signature.diff import diff_payloads
from beampipe_dagster.signature.payload import partition_key, sign_stored

METADATA_ASSET: Final = "archive_metadata"
REGISTRY_ASSET: Final = "source_registry"
COMMIT_CHUNK: Final = 25
FIRST_BACKOFF_SECONDS: Final = 30.0
LONGEST_BACKOFF_SECONDS: Final = 3600.0
OUTBOX_GRACE_SECONDS: Final = 120.0
"""How long the batch itself has to tell its events before the poll sensor does."""

DIFF_LIMIT: Final = 50


@dataclass(frozen=True, slots=True)
class DiscoveryTick:
    """What a tick decided; ``claims`` are to be run, those of earlier ticks among them."""

    project_id: str
    claims: list[DiscoveryClaim] = field(default_factory=list)
    skip_reason: str | None = None
    expired: list[str] = field(default_factory=list)


@dataclass(slots=True)
class BatchReport:
    """What a batch found."""

    token: str
    project_id: str
    total: int = 0
    changed: dict[str, str] = field(default_factory=dict)
    unchanged: list[str] = field(default_factory=list)
    no_datasets: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)
    datasets: int = 0
    done_before: bool = False

    def add(self, other: BatchReport) -> None:
        """Take over what another report of the same batch found."""
        self.changed.update(other.changed)
        self.unchanged.extend(other.unchanged)
        self.no_datasets.extend(other.no_datasets)
        self.failed.update(other.failed)
        self.lost.extend(other.lost)
        self.datasets += other.datasets

    def as_dict(self) -> dict[str, Any]:
        """Counts and names, for the claim's row and the run's page."""
        return {
            "total": self.total,
            "changed": dict(self.changed),
            "unchanged": len(self.unchanged),
            "no_datasets": len(self.no_datasets),
            "failed": dict(self.failed),
            "claim_lost": len(self.lost),
            "datasets": self.datasets,
        }


class DiscoveryService:
    """Use cases of discovery."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        clock: Clock,
        ids: Ids,
        archives: ArchiveProvider,
        source_concurrency: int = 5,
        max_in_flight: int = 4,
        max_batches_per_tick: int = 4,
        lease_seconds: float = 60.0,
        batching: bool = True,
        quarantine_after: int = DEFAULT_AFTER,
    ) -> None:
        self._ledger = ledger
        self._clock = clock
        self._ids = ids
        self._archives = archives
        self._concurrency = source_concurrency
        self._max_in_flight = max_in_flight
        self._max_batches = max_batches_per_tick
        self._lease = timedelta(seconds=lease_seconds)
        self._batching = batching
        self._quarantine_after = quarantine_after

    def tick(self, project_id: str) -> DiscoveryTick:
        """Claim what is due, within the caps, and give every claim that nobody has begun."""
        now = self._clock.now()
        with self._ledger.begin() as conn:
            queue(conn, "discovery_tick")
            revision = projects.active(conn, project_id)
            rules = ProjectConfig.from_json(revision.spec).automation.discovery
            expired = sources.expire_claims(conn, now=now)
            if rules is None or not rules.enabled:
                return DiscoveryTick(project_id, skip_reason="disabled", expired=expired)
            everywhere = sources.open_claims(conn)
            mine = [claim for claim in everywhere if claim.project_module == project_id]
            waiting = [claim for claim in mine if claim.state == "claimed"]
            new, reason = self._claim(conn, project_id, rules, len(everywhere), len(mine))
        claims = [*waiting, *new]
        return DiscoveryTick(project_id, claims, None if claims else reason or "nothing_due", expired)

    def _claim(
        self,
        conn: Connection,
        project_id: str,
        rules: DiscoveryAutomation,
        in_flight: int,
        mine: int,
    ) -> tuple[list[DiscoveryClaim], str | None]:
        now = self._clock.now()
        batches = rules.tick_discovery_batch_limit or self._max_batches
        remaining = max(rules.tick_discovery_source_limit, rules.batch_size)
        claims: list[DiscoveryClaim] = []
        while remaining > 0 and len(claims) < batches:
            if in_flight + len(claims) >= self._max_in_flight:
                return claims, "in_flight_cap"
            own_cap = rules.concurrent_discovery_batch_limit
            if own_cap is not None and mine + len(claims) >= own_cap:
                return claims, "project_in_flight_cap"
            claim = sources.claim_due(
                conn,
                project_id,
                token=self._ids.new(),
                limit=min(rules.batch_size, remaining),
                stale_after_hours=rules.stale_after_hours,
                ttl=timedelta(minutes=rules.claim_ttl_minutes),
                now=now,
            )
            if claim is None:
                return claims, None
            claims.append(claim)
            remaining -= claim.source_count
        return claims, "max_batches_per_tick" if len(claims) >= batches else None

    def run_batch(
        self, token: str, *, progress: Callable[[int, int, str], None] | None = None
    ) -> BatchReport:
        """Look at the claim's sources and commit what was found.

        Parameters
        ----------
        token
            The claim.
        progress
            Told (done, total, source) after each source.

        Raises
        ------
        NotFoundError
            ``claim_not_found``.
        ConflictError
            ``claim_not_open``: the claim is running elsewhere or has expired.
        """
        with self._ledger.begin() as conn:
            claim = sources.claim(conn, token)
            report = BatchReport(token, claim.project_module)
            if claim.state == "done":
                report.done_before = True
                return report
            now = self._clock.now()
            if not sources.start_claim(conn, token, now=now, expires_at=now + self._lease):
                raise ConflictError(
                    f"discovery claim {token} is {claim.state} already",
                    code="claim_not_open",
                    hint="another process has it, or it ran out; its sources are claimed again when due",
                )
            revision = projects.active(conn, claim.project_module)
            mine = sources.claimed_sources(conn, token)
        report.total = len(mine)
        with self._kept_alive(token):
            self._look_at_all(revision, mine, report, progress)
        self._finish(token, report)
        return report

    def _look_at_all(
        self,
        revision: ProjectRevision,
        mine: Sequence[Source],
        report: BatchReport,
        progress: Callable[[int, int, str], None] | None,
    ) -> None:
        by_name = {source.source_identifier: source for source in mine}
        waiting: list[Look] = []
        for done, look in enumerate(self._looks(revision, list(by_name)), start=1):
            waiting.append(look)
            if progress is not None:
                progress(done, len(by_name), look.source_identifier)
            if len(waiting) >= COMMIT_CHUNK:
                self._commit(revision, by_name, waiting, report)
                waiting = []
        self._commit(revision, by_name, waiting, report)

    def _looks(self, revision: ProjectRevision, names: Sequence[str]) -> Iterator[Look]:
        """A look at each source, as they come."""
        config = ProjectConfig.from_json(revision.spec)
        if self._batching and len(names) > 1:
            together = BatchLook(
                config=config, archives=self._archives, clock=self._clock, concurrency=self._concurrency
            )
            with self._ledger.read() as conn:
                known = archive.datasets_by_source(conn, revision.project_id, names)
            yield from together.looks(names, known=known)
            return
        one = SourceLook(config=config, archives=self._archives, clock=self._clock)
        with ThreadPoolExecutor(max_workers=self._concurrency) as pool:
            for future in as_completed([pool.submit(one.look, name) for name in names]):
                yield future.result()

    def _commit(
        self,
        revision: ProjectRevision,
        by_name: dict[str, Source],
        looks: Sequence[Look],
        report: BatchReport,
    ) -> None:
        if not looks:
            return
        with self._ledger.begin() as conn:
            stored = archive.metadata_of(
                conn, revision.project_id, [look.source_identifier for look in looks]
            )
            for look in sorted(looks, key=lambda item: item.source_identifier):  # everybody locks by name
                source = by_name[look.source_identifier]
                known = stored.get(look.source_identifier, {})
                try:
                    with conn.begin_nested():
                        outcome = BatchReport(report.token, report.project_id)
                        self._settle(conn, revision, source, look, known, outcome)
                except (BeampipeError, DataError) as error:
                    outcome = BatchReport(report.token, report.project_id)
                    self._settle_failure(conn, source, _not_storable(look, error), outcome)
                report.add(outcome)

    def _settle(
        self,
        conn: Connection,
        revision: ProjectRevision,
        source: Source,
        look: Look,
        stored: dict[str, Any],
        report: BatchReport,
    ) -> None:
        """Write one source's outcome, if the claim still owns it."""
        name = source.source_identifier
        if look.error is not None or look.signature is None:
            self._settle_failure(conn, source, look, report)
            return
        signature = look.signature.digest
        empty = look.datasets == 0
        changed = signature != source.discovery_signature
        values: dict[str, object] = {
            "last_checked_at": look.began_at,
            "last_outcome": "no_datasets" if empty else "changed" if changed else "unchanged",
            "last_error": None,
            **sources.RELEASED,
        }
        if changed:
            values.update(discovery_signature=signature, hold=None, workflow_run_pending=not empty)
            if not empty:
                values["workflow_run_pending_at"] = self._clock.now()
        if not sources.settle(conn, source.id, report.token, values, now=self._clock.now()):
            report.lost.append(name)
            return
        if empty:
            report.no_datasets.append(name)
        elif not changed:
            report.unchanged.append(name)
        if changed:
            self._record_change(conn, revision, source, look, stored, report)
            return
        if look.metadata != stored:
            # What is not signed (flags, links that expire) may be new all the same.
            self._keep_metadata(conn, source, look)
        if not empty:
            self._event(conn, source, report, "discovery.unchanged", {"signature_prefix": signature[:16]})

    def _record_change(
        self,
        conn: Connection,
        revision: ProjectRevision,
        source: Source,
        look: Look,
        stored: dict[str, Any],
        report: BatchReport,
    ) -> None:
        now = self._clock.now()
        if look.signature is None:
            return
        options = ProjectConfig.from_json(revision.spec).signature_options
        before = sign_stored(
            stored,
            exclude_fields=options.exclude_fields,
            include_flags=options.include_discovery_flags,
        ).payload
        diff = diff_payloads(before, look.signature.payload, limit=DIFF_LIMIT).as_dict()
        key = partition_key(source.source_identifier, look.signature.digest)
        sbids = [sbid for sbid in look.metadata if look.datasets]
        change = archive.SignatureChange(
            id=self._ids.new(),
            project_module=source.project_module,
            source_identifier=source.source_identifier,
            signature=look.signature.digest,
            previous_signature=source.discovery_signature,
            partition_key=key,
            project_config_id=revision.id,
            sbid_count=len(sbids),
            dataset_count=look.datasets,
            diff=diff,
            evidence=look.evidence,
            metadata_json=look.metadata,
            discovered_at=now,
        )
        self._keep_metadata(conn, source, look)
        archive.record_change(conn, change)
        payload = {"signature": change.signature, "sbids": len(sbids), "datasets": look.datasets}
        self._event(
            conn, source, report, "discovery.changed" if look.datasets else "discovery.no_datasets", payload
        )
        if not look.datasets:
            return
        report.changed[source.source_identifier] = key
        report.datasets += look.datasets
        message = outbox.Message(
            kind="materialization",
            project_module=source.project_module,
            asset=METADATA_ASSET,
            partition_key=key,
            correlation_id=report.token,
            payload=change_facts(change),
        )
        outbox.put(conn, [message], now=now, available_at=now + timedelta(seconds=OUTBOX_GRACE_SECONDS))

    def _keep_metadata(self, conn: Connection, source: Source, look: Look) -> None:
        archive.replace_metadata(
            conn,
            source.project_module,
            source.source_identifier,
            look.metadata,
            ids=self._ids,
            now=self._clock.now(),
        )

    def _settle_failure(self, conn: Connection, source: Source, look: Look, report: BatchReport) -> None:
        error = look.error or BeampipeError("the look gave no answer")
        now = self._clock.now()
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

    def _event(
        self,
        conn: Connection,
        source: Source,
        report: BatchReport,
        event_type: str,
        payload: dict[str, Any],
    ) -> None:
        event = provenance.Event(
            event_type=event_type,
            project_module=source.project_module,
            source_identifier=source.source_identifier,
            correlation_id=report.token,
            payload=payload,
        )
        provenance.record(conn, [event], ids=self._ids, now=self._clock.now())

    def _finish(self, token: str, report: BatchReport) -> None:
        now = self._clock.now()
        with self._ledger.begin() as conn:
            sources.finish_claim(conn, token, stats=report.as_dict(), now=now)
            message = outbox.Message(
                kind="observation",
                project_module=report.project_id,
                asset=REGISTRY_ASSET,
                correlation_id=token,
                payload={**sources.counts(conn, report.project_id), "batch": report.as_dict()},
            )
            outbox.put(conn, [message], now=now, available_at=now + timedelta(seconds=OUTBOX_GRACE_SECONDS))

    @contextmanager
    def _kept_alive(self, token: str) -> Iterator[None]:
        """Extend the claim while the batch works; a batch that dies loses it after one lease."""
        stop = threading.Event()

        def keep() -> None:
            while not stop.wait(self._lease.total_seconds() / 3):
                try:
                    with self._ledger.begin() as conn:
                        sources.extend_claim(conn, token, expires_at=self._clock.now() + self._lease)
                except BeampipeError:
                    continue  # the ledger is away for a moment: the next renewal may find it again

        keeper = threading.Thread(target=keep, name=f"claim-{token[:8]}", daemon=True)
        keeper.start()
        try:
            yield
        finally:
            stop.set()
            keeper.join(timeout=5)


def _not_storable(look: Look, error: BeampipeError | DataError) -> Look:
    """The look as a failure: its answers were complete, but the ledger cannot hold them."""
    if not isinstance(error, BeampipeError):
        error = InvalidMetadataError(
            f"the ledger cannot hold the metadata of {look.source_identifier!r}: {str(error.orig).strip()}",
            code="metadata_not_storable",
            hint="look at the field_map: an SBID has at most 100 characters, texts have no NUL",
        )
    return Look(look.source_identifier, look.began_at, evidence=look.evidence, error=error)
