"""Discovery: claim stale sources, look at them, and commit what is new.

A tick claims sources in one transaction and gives the claims to be run; a claim that was given before and not
begun is given again under the same token, so that nothing is lost when the asker dies. A batch looks at its
sources side by side and commits in chunks; one bad source never spoils the others. What a look means is
:mod:`beampipe_dagster.discovery.settle`'s to say.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy.engine import Connection
from sqlalchemy.exc import DataError

from beampipe_dagster.clock import Clock
from beampipe_dagster.config.project import DiscoveryAutomation, ProjectConfig
from beampipe_dagster.discovery.archives import ArchiveProvider
from beampipe_dagster.discovery.batch_look import BatchLook
from beampipe_dagster.discovery.look import Look, SourceLook
from beampipe_dagster.discovery.lookups import Lookups
from beampipe_dagster.discovery.postpone import Circuits, away_in_words
from beampipe_dagster.discovery.quarantine import DEFAULT_AFTER
from beampipe_dagster.discovery.settle import DEFAULT_RECHECK, OUTBOX_GRACE_SECONDS, BatchReport, Settlement
from beampipe_dagster.errors import BeampipeError, ConflictError
from beampipe_dagster.errors import DataError as InvalidMetadataError
from beampipe_dagster.ids import Ids
from beampipe_dagster.ledger import archive, outbox, projects, sources, waiting
from beampipe_dagster.ledger.engine import Ledger, queue
from beampipe_dagster.ledger.projects import ProjectRevision
from beampipe_dagster.ledger.sources import DiscoveryClaim, Source

__all__ = ["BatchReport", "DiscoveryService", "DiscoveryTick"]

REGISTRY_ASSET: Final = "source_registry"
COMMIT_CHUNK: Final = 25
LOOKS_AT_A_TIME: Final = 250
"""Sources whose rows a batch holds in memory, however large its claim is."""

LARGEST_BATCH: Final = 5000
"""Sources of one claim, whatever the survey says: a batch that dies loses the time of all of its looks."""

DEFAULT_QUEUE_DEPTH: Final = 200


@dataclass(frozen=True, slots=True)
class DiscoveryTick:
    """What a tick decided; ``claims`` are to be run, those of earlier ticks among them."""

    project_id: str
    claims: list[DiscoveryClaim] = field(default_factory=list)
    skip_reason: str | None = None
    expired: list[str] = field(default_factory=list)
    message: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Room:
    """What is on its way already, and how much of it there may be."""

    depth: int
    max_depth: int
    in_flight: int
    max_in_flight: int
    mine: int
    max_mine: int | None

    def full(self, more: int) -> str | None:
        """Which cap is reached when so many claims were added; each of them waits for a process, too."""
        if self.depth + more >= self.max_depth:
            return "queue_full"
        if self.in_flight + more >= self.max_in_flight:
            return "in_flight_cap"
        if self.max_mine is not None and self.mine + more >= self.max_mine:
            return "project_in_flight_cap"
        return None


class DiscoveryService:
    """Use cases of discovery.

    Parameters
    ----------
    archives
        Whom to ask.
    source_concurrency
        Requests of a batch at a time.
    max_in_flight, max_batches_per_tick
        Batches on their way over all surveys, and those that one tick may claim.
    lease_seconds
        How long a batch that says nothing keeps its claim.
    batching
        Whether the sources of a batch are asked for together.
    quarantine_after
        Failed looks in a row, each by the source's own fault, after which a source is set aside.
    vanish_recheck
        Time after which a second answer may confirm that datasets are gone.
    queue_max_depth
        Work that may wait for a process before a tick claims nothing, unless the survey says otherwise.
    circuits
        Who knows which archives are left alone: a tick claims nothing that these would keep from being looked at.
    """

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
        vanish_recheck: timedelta = DEFAULT_RECHECK,
        queue_max_depth: int = DEFAULT_QUEUE_DEPTH,
        circuits: Circuits | None = None,
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
        self._lookups = Lookups(clock=clock)
        self._vanish_recheck = vanish_recheck
        self._queue_max_depth = queue_max_depth
        self._circuits = circuits

    def tick(self, project_id: str) -> DiscoveryTick:
        """Claim what is due, within the caps, and give every claim that nobody has begun.

        A tick that claims nothing says why: ``disabled``, ``tap_unreachable`` (the circuit of the first query's
        archive, or of a required one, is open), ``queue_full`` (too much waits for a process already),
        ``in_flight_cap``, ``project_in_flight_cap`` or ``nothing_due``.

        Raises
        ------
        NotFoundError
            ``project_not_found``.
        """
        now = self._clock.now()
        with self._ledger.begin() as conn:
            queue(conn, "discovery_tick")
            revision = projects.active(conn, project_id)
            config = ProjectConfig.from_json(revision.spec)
            rules = config.automation.discovery
            expired = sources.expire_claims(conn, now=now)
            if rules is None or not rules.enabled:
                return DiscoveryTick(project_id, skip_reason="disabled", expired=expired)
            away = away_in_words(conn, config, self._circuits, now=now)
            if away is not None:
                return DiscoveryTick(project_id, skip_reason="tap_unreachable", expired=expired, message=away)
            everywhere = sources.open_claims(conn)
            mine = [claim for claim in everywhere if claim.project_module == project_id]
            unbegun = [claim for claim in mine if claim.state == "claimed"]
            room = _Room(
                depth=waiting.depth(conn, now=now),
                max_depth=rules.queue_max_depth or self._queue_max_depth,
                in_flight=len(everywhere),
                max_in_flight=self._max_in_flight,
                mine=len(mine),
                max_mine=rules.concurrent_discovery_batch_limit,
            )
            new, reason = self._claim(conn, project_id, rules, room, now)
        claims = [*unbegun, *new]
        return DiscoveryTick(project_id, claims, None if claims else reason or "nothing_due", expired)

    def _claim(
        self, conn: Connection, project_id: str, rules: DiscoveryAutomation, room: _Room, now: datetime
    ) -> tuple[list[DiscoveryClaim], str | None]:
        batches = rules.tick_discovery_batch_limit or self._max_batches
        size = min(rules.batch_size, LARGEST_BATCH)
        remaining = max(rules.tick_discovery_source_limit, rules.batch_size)
        claims: list[DiscoveryClaim] = []
        while remaining > 0 and len(claims) < batches:
            reason = room.full(len(claims))
            if reason is not None:
                return claims, reason
            claim = sources.claim_due(
                conn,
                project_id,
                token=self._ids.new(),
                limit=min(size, remaining),
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
        settlement = Settlement(
            clock=self._clock,
            ids=self._ids,
            revision=revision,
            quarantine_after=self._quarantine_after,
            recheck=self._vanish_recheck,
            circuits=self._circuits,
        )
        with self._kept_alive(token) as over:
            self._look_at_all(revision, settlement, mine, report, progress, over)
        self._finish(token, report)
        return report

    def _look_at_all(
        self,
        revision: ProjectRevision,
        settlement: Settlement,
        mine: Sequence[Source],
        report: BatchReport,
        progress: Callable[[int, int, str], None] | None,
        over: threading.Event,
    ) -> None:
        """Look and commit, chunk by chunk, until all is done or the claim is another's."""
        by_name = {source.source_identifier: source for source in mine}
        left = dict.fromkeys(by_name)
        chunk: list[Look] = []
        for done, look in enumerate(self._looks(revision, mine), start=1):
            chunk.append(look)
            if progress is not None:
                progress(done, len(by_name), look.source_identifier)
            if len(chunk) < COMMIT_CHUNK and done < len(by_name):
                continue
            self._commit(revision, settlement, by_name, chunk, report)
            for committed in chunk:
                left.pop(committed.source_identifier, None)
            chunk = []
            if over.is_set() or (report.lost and not self._is_mine(report.token)):
                break
        report.lost.extend(left)

    def _is_mine(self, token: str) -> bool:
        with self._ledger.read() as conn:
            return sources.claim(conn, token).state == "running"

    def _looks(self, revision: ProjectRevision, mine: Sequence[Source]) -> Iterator[Look]:
        """A look at each source, as they come.

        Whether datasets are really gone is asked about each source alone: an answer that sources share may leave
        one of them out.
        """
        config = ProjectConfig.from_json(revision.spec)
        names = [source.source_identifier for source in mine]
        alone = {source.source_identifier for source in mine if source.vanish_signature is not None}
        together = [name for name in names if name not in alone] if self._batching else []
        if len(together) > 1:
            requested = [one.discovery_requested_at for one in mine if one.discovery_requested_at is not None]
            yield from self._looks_together(
                config, revision.project_id, together, max(requested, default=None)
            )
            names = [name for name in names if name in alone]
        one = SourceLook(config=config, archives=self._archives, clock=self._clock)
        with ThreadPoolExecutor(max_workers=self._concurrency) as pool:
            try:
                for piece in sources.chunks(names, LOOKS_AT_A_TIME):
                    for future in as_completed([pool.submit(one.look, name) for name in piece]):
                        yield future.result()
            finally:
                pool.shutdown(wait=False, cancel_futures=True)  # nobody waits for more when the claim is lost

    def _looks_together(
        self, config: ProjectConfig, project_id: str, names: Sequence[str], requested_at: datetime | None
    ) -> Iterator[Look]:
        batch = BatchLook(
            config=config,
            archives=self._archives,
            clock=self._clock,
            concurrency=self._concurrency,
            lookups=self._lookups,
        )
        for piece in sources.chunks(names, LOOKS_AT_A_TIME):
            with self._ledger.read() as conn:
                known = archive.datasets_by_source(conn, project_id, piece)
            yield from batch.looks(piece, known=known, fresh_since=requested_at)

    def _commit(
        self,
        revision: ProjectRevision,
        settlement: Settlement,
        by_name: dict[str, Source],
        looks: Sequence[Look],
        report: BatchReport,
    ) -> None:
        with self._ledger.begin() as conn:
            names = [look.source_identifier for look in looks]
            stored = archive.metadata_of(conn, revision.project_id, names)
            for look in sorted(looks, key=lambda item: item.source_identifier):  # everybody locks by name
                source = by_name[look.source_identifier]
                known = stored.get(look.source_identifier, {})
                try:
                    with conn.begin_nested():
                        outcome = BatchReport(report.token, report.project_id)
                        settlement.settle(conn, source, look, known, outcome)
                except (BeampipeError, DataError) as error:
                    outcome = BatchReport(report.token, report.project_id)
                    settlement.settle_failure(conn, source, _not_storable(look, error), outcome)
                report.add(outcome)

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
    def _kept_alive(self, token: str) -> Iterator[threading.Event]:
        """Extend the claim while the batch works; a batch that dies loses it after one lease.

        The event is set when the claim has been lost all the same (the machine slept, the ledger was away).
        """
        stop, over = threading.Event(), threading.Event()

        def keep() -> None:
            while not stop.wait(self._lease.total_seconds() / 3):
                try:
                    with self._ledger.begin() as conn:
                        kept = sources.extend_claim(conn, token, expires_at=self._clock.now() + self._lease)
                except BeampipeError:
                    continue  # the ledger is away for a moment: the next renewal may find it again
                if not kept:
                    over.set()
                    return

        keeper = threading.Thread(target=keep, name=f"claim-{token[:8]}", daemon=True)
        keeper.start()
        try:
            yield over
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
