"""Where asynchronous queries are remembered, so that the same query asked again goes on with its job."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Protocol

from beampipe_dagster.clock import rfc3339
from beampipe_dagster.discovery.uws import moment, public_url
from beampipe_dagster.ledger import archive_jobs
from beampipe_dagster.ledger.tables_archive_jobs import JobState

if TYPE_CHECKING:
    from collections.abc import Callable

    from beampipe_dagster.clock import Clock
    from beampipe_dagster.config.canonical import JsonValue
    from beampipe_dagster.ids import Ids
    from beampipe_dagster.ledger.engine import Ledger

Phases = tuple[tuple[str, datetime], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRequest:
    """What a job is asked.

    Parameters
    ----------
    archive, tap_url
        Whom: the adapter's name, and the service's base URL.
    adql, query_sha256, maxrec
        The query.
    upload_name, upload, upload_sha256
        The table that goes with it, as a document; ``None`` and ``""`` without.
    key
        SHA-256 over all that makes it the same query.
    """

    archive: str
    tap_url: str
    adql: str
    query_sha256: str
    maxrec: int
    upload_name: str | None
    upload: bytes | None
    upload_sha256: str
    key: str


@dataclass(frozen=True, slots=True)
class KeptJob:
    """A job as it is remembered; ``url`` is ``""`` until the archive has given one."""

    id: str
    url: str
    phases: Phases = ()
    destruction: datetime | None = None


class JobStore(Protocol):
    """What running a job remembers; every call is durable when it returns."""

    def find(self, key: str) -> KeptJob | None:
        """The job of this query whose result is still wanted and still to be had."""
        ...

    def begin(self, request: JobRequest) -> KeptJob:
        """Keep the intent, before anything is sent."""
        ...

    def opened(self, job_id: str, url: str) -> None:
        """Keep the job's URL, before the job is told to run."""
        ...

    def seen(self, job_id: str, phases: Phases, destruction: datetime | None) -> None:
        """Keep the phases that were seen, and when the archive will drop the job."""
        ...

    def end(self, job_id: str, state: JobState, message: str = "") -> None:
        """Nothing more is wanted from the job."""
        ...

    def deleted(self, job_id: str) -> None:
        """The archive has dropped the job at our wish."""
        ...


class LedgerJobs:
    """Jobs in the ledger, which every process shares; each call is one short transaction.

    A URL is kept without user name, password and query string: what may be secret stays in memory.
    """

    def __init__(self, *, ledger: Ledger, clock: Clock, ids: Ids) -> None:
        self._ledger = ledger
        self._clock = clock
        self._ids = ids

    def find(self, key: str) -> KeptJob | None:
        """See :class:`JobStore`."""
        with self._ledger.read() as conn:
            row = archive_jobs.find_open(conn, key, now=self._clock.now())
        if row is None or row.job_url is None:
            return None
        return KeptJob(row.id, row.job_url, _phases(row.phases or []), row.destruction_at)

    def begin(self, request: JobRequest) -> KeptJob:
        """See :class:`JobStore`."""
        job_id = self._ids.new()
        with self._ledger.begin() as conn:
            archive_jobs.begin(
                conn,
                job_id=job_id,
                archive=request.archive,
                tap_url=request.tap_url,
                query_key=request.key,
                query_sha256=request.query_sha256,
                upload_sha256=request.upload_sha256 or None,
                maxrec=request.maxrec,
                now=self._clock.now(),
            )
        return KeptJob(job_id, "")

    def opened(self, job_id: str, url: str) -> None:
        """See :class:`JobStore`."""
        with self._ledger.begin() as conn:
            archive_jobs.opened(conn, job_id, public_url(url), now=self._clock.now())

    def seen(self, job_id: str, phases: Phases, destruction: datetime | None) -> None:
        """See :class:`JobStore`."""
        shown: list[JsonValue] = [[phase, rfc3339(time)] for phase, time in phases]
        with self._ledger.begin() as conn:
            archive_jobs.seen(conn, job_id, phases=shown, destruction_at=destruction)

    def end(self, job_id: str, state: JobState, message: str = "") -> None:
        """See :class:`JobStore`."""
        with self._ledger.begin() as conn:
            archive_jobs.end(conn, job_id, state, message or None, now=self._clock.now())

    def deleted(self, job_id: str) -> None:
        """See :class:`JobStore`."""
        with self._ledger.begin() as conn:
            archive_jobs.deleted(conn, job_id, now=self._clock.now())


class MemoryJobs:
    """Jobs of one process, for tools without a ledger."""

    def __init__(self, *, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._number = 0
        self._open: dict[str, tuple[str, KeptJob]] = {}

    def find(self, key: str) -> KeptJob | None:
        """See :class:`JobStore`."""
        now = self._clock.now()
        with self._lock:
            return next(
                (
                    job
                    for kept, job in self._open.values()
                    if kept == key and job.url and (job.destruction is None or job.destruction > now)
                ),
                None,
            )

    def begin(self, request: JobRequest) -> KeptJob:
        """See :class:`JobStore`."""
        with self._lock:
            self._number += 1
            job = KeptJob(str(self._number), "")
            self._open[job.id] = (request.key, job)
        return job

    def opened(self, job_id: str, url: str) -> None:
        """See :class:`JobStore`."""
        self._change(job_id, lambda job: replace(job, url=url))

    def seen(self, job_id: str, phases: Phases, destruction: datetime | None) -> None:
        """See :class:`JobStore`."""
        self._change(job_id, lambda job: replace(job, phases=phases, destruction=destruction))

    def end(self, job_id: str, state: JobState, message: str = "") -> None:
        """See :class:`JobStore`."""
        del state, message
        with self._lock:
            self._open.pop(job_id, None)

    def deleted(self, job_id: str) -> None:
        """See :class:`JobStore`; nobody asks."""

    def _change(self, job_id: str, changed: Callable[[KeptJob], KeptJob]) -> None:
        with self._lock:
            if job_id in self._open:
                key, job = self._open[job_id]
                self._open[job_id] = (key, changed(job))


def _phases(kept: list[JsonValue]) -> Phases:
    found = []
    for item in kept:
        if isinstance(item, list) and len(item) == 2:
            time = moment(str(item[1]))
            if time is not None:
                found.append((str(item[0]), time))
    return tuple(found)
