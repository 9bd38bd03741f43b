"""One look at the staging jobs of an execution, and what follows from it.

A creation of which the outcome is not known is looked for in the service's list of jobs, by a digest of the
identifiers that it was given. Only when it is not found until a deadline another job may take its place: staging a
file twice costs the archive a copy and does no harm, which cannot be said of an execution that waits for ever.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Final

from beampipe_dagster.clock import Clock, rfc3339
from beampipe_dagster.config.canonical import sha256_hex
from beampipe_dagster.discovery.staging.client import JOB_GONE, LOGIN_REFUSED, UNCERTAIN, StagingClient
from beampipe_dagster.discovery.staging.datalink import NO_ACCESS, StagingLink
from beampipe_dagster.discovery.staging.options import (
    FAILED,
    LISTED_JOBS,
    LOGIN_PAUSE_SECONDS,
    RETRY_SECONDS,
    Progress,
    StagingOptions,
    Tell,
)
from beampipe_dagster.discovery.staging.plan import Group, Item, grouped, urls_of
from beampipe_dagster.discovery.staging.redaction import hidden, place
from beampipe_dagster.discovery.staging.results import ENDED, Job, earliest, sorted_urls
from beampipe_dagster.errors import ArchiveError, BeampipeError, Retry
from beampipe_dagster.ids import Ids
from beampipe_dagster.ledger import staging as store
from beampipe_dagster.ledger.engine import Ledger
from beampipe_dagster.ledger.staging import StagingJob
from beampipe_dagster.ledger.tables_staging import StagingState

_LOST: Final = frozenset({StagingState.FAILED, StagingState.ABANDONED})
_SLACK: Final = timedelta(minutes=5)
"""How much the archive's clock may be behind."""


class Round:
    """Looks at everything of one execution, as often as it is told to."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        clock: Clock,
        ids: Ids,
        client: StagingClient,
        options: StagingOptions,
        execution_id: str,
        items: Sequence[Item],
        confirm: Callable[[], None],
        tell: Tell,
    ) -> None:
        self._ledger = ledger
        self._clock = clock
        self._ids = ids
        self._client = client
        self._options = options
        self._execution_id = execution_id
        self._items = items
        self._confirm = confirm
        self._tell = tell

    def once(self) -> Progress:
        """Look at the jobs that there are, then make those that are missing."""
        jobs = self._jobs()
        notes = [note for job in jobs if job.live and (note := self._look(job))]
        jobs = self._jobs()
        self._give_up(jobs)
        notes += self._make_missing(jobs)
        return Progress(tuple(job for job in self._jobs() if job.live), tuple(dict.fromkeys(notes)))

    def _move(self, job: StagingJob, **values: object) -> StagingJob:
        """Write down what is known about a job now."""
        with self._ledger.begin() as conn:
            return store.move(conn, job, values)

    def _jobs(self) -> list[StagingJob]:
        with self._ledger.read() as conn:
            return store.of(conn, self._execution_id)

    # -- jobs that are there --------------------------------------------------------------------------------

    def _look(self, job: StagingJob) -> str:
        """Bring a job's row up to date; why it is not done, in words."""
        if job.state is StagingState.PLANNED:
            return ""  # made with those that are missing
        if job.state is StagingState.COMPLETED:
            return self._look_at_completed(job)
        try:
            if job.state is StagingState.UNCERTAIN:
                found = self._find(job)
                if found is None:
                    return f"{job.group_key}: it is not known whether its job was created"
                job = found
            return self._follow(job)
        except ArchiveError as error:
            if error.retry is not Retry.LATER:
                raise
            return f"{job.group_key}: {error.message}"

    def _look_at_completed(self, job: StagingJob) -> str:
        if job.expires_at is not None and job.expires_at < self._clock.now() + self._options.min_validity:
            why = f"its URLs are good until {rfc3339(job.expires_at)} only"
            expired = self._move(job, state=StagingState.EXPIRED, error=why)
            self._tell("execution.staging_expired", expired.as_dict())
            return f"{job.group_key}: its files are staged anew"
        return ""

    def _find(self, job: StagingJob) -> StagingJob | None:
        """Look for a job of which the creation is not known; after the deadline it is given up."""
        listed = self._client.jobs(job.service_url)
        recent = [one for one in listed or () if not _before(one.created_at, job.intended_at - _SLACK)]
        for one in recent[:LISTED_JOBS]:
            url = one.url if one.url and one.url.startswith("http") else None
            url = url or f"{job.service_url.partition('?')[0].rstrip('/')}/{one.job_id}"
            try:
                seen = self._client.job(url)
            except ArchiveError as error:
                if error.code == JOB_GONE:
                    continue
                raise
            if request_digest(seen.identifiers) == job.request_sha256:
                adopted = self._move(job, state=StagingState.CREATED, job_url=url, error=None)
                self._tell("execution.staging_job_created", {**adopted.as_dict(), "adopted": True})
                return adopted
        deadline = job.intended_at + timedelta(seconds=self._options.create_deadline_seconds)
        if self._clock.now() >= deadline:
            why = "the service has no such job" if listed is not None else "the service lists no jobs"
            gone = self._move(
                job,
                state=StagingState.ABANDONED,
                error=f"{job.error or 'its creation is not known'}; until the deadline {why}",
                ended_at=self._clock.now(),
            )
            self._tell("execution.staging_job_abandoned", gone.as_dict())
        return None

    def _follow(self, job: StagingJob) -> str:
        """Look at a job that has a URL; let it run, or take what it says."""
        try:
            seen = self._client.job(job.job_url or "")
        except ArchiveError as error:
            if error.code != JOB_GONE:
                raise
            self._fail(job, error.message, phase=None)
            return f"{job.group_key}: the archive does not know its job any more"
        if seen.phase == "PENDING":
            job = self._run(job)
            seen = self._client.job(job.job_url or "")
        if seen.phase == "COMPLETED":
            return self._complete(job, seen)
        if seen.phase in ENDED:
            self._fail(job, seen.error or "the archive gives no reason", phase=seen.phase)
            return f"{job.group_key}: its job ended as {seen.phase}"
        self._seen(job, seen)
        return f"{job.group_key}: its job is {seen.phase}"

    def _run(self, job: StagingJob) -> StagingJob:
        self._confirm()
        self._client.run(job.job_url or "")
        return self._move(job, state=StagingState.RUNNING, run_at=job.run_at or self._clock.now())

    def _seen(self, job: StagingJob, seen: Job) -> None:
        state = StagingState.CREATED if seen.phase == "PENDING" else StagingState.RUNNING
        self._move(job, state=state, phase=seen.phase[:30], looked_at=self._clock.now())
        if job.phase != seen.phase:
            self._tell("execution.staging_phase", {**job.as_dict(), "phase": seen.phase})

    def _complete(self, job: StagingJob, seen: Job) -> str:
        """The job is done when it has given everything that was asked for, for long enough."""
        results = seen.results or self._client.results(job.job_url or "")
        wanted = [item for item in self._items if item.id in set(job.items)]
        now = self._clock.now()
        try:
            until = earliest(urls_of(wanted, sorted_urls(results)).values())
        except ArchiveError as error:
            self._fail(job, error.message, phase=seen.phase)
            return f"{job.group_key}: its job ended without all of its files"
        if until is not None and until < now + self._options.min_validity:
            self._fail(job, f"its URLs are good until {rfc3339(until)} only", phase=seen.phase)
            return f"{job.group_key}: its files expire too soon"
        done = self._move(
            job,
            state=StagingState.COMPLETED,
            phase=seen.phase,
            error=None,
            looked_at=now,
            ended_at=now,
            expires_at=until,
        )
        until_text = rfc3339(until) if until else None
        self._tell("execution.staging_job_completed", {**done.as_dict(), "expires_at": until_text})
        return ""

    def _fail(self, job: StagingJob, why: str, *, phase: str | None) -> None:
        failed = self._move(
            job,
            state=StagingState.FAILED,
            phase=phase or job.phase,
            error=hidden(why)[:500],
            ended_at=self._clock.now(),
        )
        self._tell("execution.staging_job_failed", failed.as_dict())

    def _give_up(self, jobs: Sequence[StagingJob]) -> None:
        """End when a file has failed too often, with the reason for each scheduling block."""
        failures = _failures(jobs)
        dead = {
            item.sbid: job.error or "no reason was given"
            for job in jobs
            if job.state in _LOST
            for item in self._items
            if item.id in job.items and failures[item.id] >= self._options.max_failures
        }
        if dead:
            reasons = "; ".join(f"SBID {sbid}: {why}" for sbid, why in sorted(dead.items())[:5])
            raise ArchiveError(
                f"the archive could not stage {len(dead)} scheduling block(s) after "
                f"{self._options.max_failures} jobs each: {reasons}",
                code=FAILED,
                retry=Retry.NEVER,
                hint="the jobs' URLs are in the execution's timeline; ask the archive's staff about them",
                details={"sbids": dead},
            )

    # -- jobs that are missing ------------------------------------------------------------------------------

    def _make_missing(self, jobs: Sequence[StagingJob]) -> list[str]:
        planned = {job.group_key: job for job in jobs if job.state is StagingState.PLANNED}
        held = {name for job in jobs if job.live and job.group_key not in planned for name in job.items}
        missing = [item for item in self._items if item.id not in held]
        groups = grouped(missing, by_sbid=self._options.by_sbid)
        stale = [job for key, job in planned.items() if key not in {group.key for group in groups}]
        for job in stale:
            self._move(job, state=StagingState.EXPIRED, error="other jobs are made for its files")
        notes = [note for group in groups if (note := self._not_yet(group, jobs))]
        due = [group for group in groups if not self._not_yet(group, jobs)]
        if not due:
            return notes
        links = self._links([item for group in due for item in group.items])
        notes += [self._make(group, links, jobs, planned.get(group.key)) for group in due]
        return notes

    def _not_yet(self, group: Group, jobs: Sequence[StagingJob]) -> str:
        """Why a group's next job has to wait: the one before failed a moment ago."""
        names = {item.id for item in group.items}
        ended = [
            job.ended_at
            for job in jobs
            if job.state is StagingState.FAILED and job.ended_at is not None and names.intersection(job.items)
        ]
        if not ended:
            return ""
        due = max(ended) + timedelta(seconds=RETRY_SECONDS * len(ended))
        return f"{group.key}: its next job is made at {rfc3339(due)}" if self._clock.now() < due else ""

    def _links(self, items: Iterable[Item]) -> dict[str, StagingLink]:
        """The tokens of all files: everything that may not be had is known before anything is created."""
        self._log_in()
        found: dict[str, StagingLink] = {}
        refused: dict[str, str] = {}
        for item in items:
            try:
                found[item.id] = self._client.link(item.access_url, name=item.name)
            except ArchiveError as error:
                if error.code != NO_ACCESS:
                    self._remember(error)
                    raise
                refused.setdefault(item.sbid, error.message)
        if refused:
            reasons = "; ".join(f"SBID {sbid}: {why}" for sbid, why in sorted(refused.items())[:5])
            raise ArchiveError(
                f"not all of it may be staged: {reasons}",
                code=NO_ACCESS,
                retry=Retry.NEVER,
                hint="nothing was asked for; get access to the data from the archive, or leave the blocks out",
                details={"sbids": refused},
            )
        return found

    def _log_in(self) -> None:
        name, now = self._client.login_url[:300], self._clock.now()
        with self._ledger.read() as conn:
            refused = store.refused_until(conn, name, now=now)
        if refused is not None:
            raise ArchiveError(
                f"{refused[1]}; it is tried again at {rfc3339(refused[0])}",
                code=LOGIN_REFUSED,
                hint="correct CASDA_USERNAME and CASDA_PASSWORD until then",
            )
        try:
            self._client.login()
        except ArchiveError as error:
            self._remember(error)
            raise
        with self._ledger.begin() as conn:
            store.forget_refusal(conn, name)

    def _remember(self, error: BeampipeError) -> None:
        """No process tries a wrong password again for a while."""
        if error.code != LOGIN_REFUSED:
            return
        now = self._clock.now()
        with self._ledger.begin() as conn:
            store.refuse_login(
                conn,
                self._client.login_url[:300],
                error.message,
                now=now,
                not_before=now + timedelta(seconds=LOGIN_PAUSE_SECONDS),
            )

    def _make(
        self,
        group: Group,
        links: Mapping[str, StagingLink],
        jobs: Sequence[StagingJob],
        planned: StagingJob | None,
    ) -> str:
        """Write the intent, create the job, write its URL, let it run."""
        tokens = [links[item.id].token for item in group.items]
        services = {links[item.id].service_url for item in group.items}
        if len(services) > 1:
            raise ArchiveError(
                f"the files of {group.key} belong to different staging services: "
                + ", ".join(sorted(place(url) for url in services)),
                code="staging_services_differ",
                retry=Retry.NEVER,
                hint="set CASDA_STAGE_BY_SBID to true",
            )
        job = self._intend(group, services.pop(), request_digest(tokens), jobs, planned)
        self._confirm()
        try:
            job_url = self._client.create(job.service_url, tokens)
        except ArchiveError as error:
            return self._not_created(job, error)
        job = self._move(job, state=StagingState.CREATED, job_url=job_url, error=None)
        self._tell("execution.staging_job_created", job.as_dict())
        try:
            self._run(job)
        except ArchiveError as error:
            return f"{group.key}: {error.message}"  # whether it runs is seen by the next look
        return f"{group.key}: its job was created"

    def _intend(
        self,
        group: Group,
        service_url: str,
        digest: str,
        jobs: Sequence[StagingJob],
        planned: StagingJob | None,
    ) -> StagingJob:
        now = self._clock.now()
        if planned is not None:
            return self._move(
                planned,
                state=StagingState.INTENDED,
                service_url=service_url,
                request_sha256=digest,
                intended_at=now,
                sbids=group.sbids,
                items=[item.id for item in group.items],
                error=None,
            )
        job = StagingJob(
            id=self._ids.new(),
            execution_id=self._execution_id,
            group_key=group.key[:140],
            kind=group.kind.value,
            sbids=group.sbids,
            items=[item.id for item in group.items],
            attempt=1 + max((one.attempt for one in jobs if one.group_key == group.key), default=0),
            state=StagingState.INTENDED,
            service_url=service_url,
            request_sha256=digest,
            job_url=None,
            phase=None,
            error=None,
            intended_at=now,
            run_at=None,
            looked_at=None,
            ended_at=None,
            expires_at=None,
        )
        with self._ledger.begin() as conn:
            store.add(conn, job)
        return job

    def _not_created(self, job: StagingJob, error: ArchiveError) -> str:
        if error.code == UNCERTAIN:
            uncertain = self._move(job, state=StagingState.UNCERTAIN, error=error.message)
            self._tell("execution.staging_uncertain", uncertain.as_dict())
            return f"{job.group_key}: {error.message}"
        if error.retry is Retry.LATER:
            self._move(job, state=StagingState.PLANNED, error=error.message)
            return f"{job.group_key}: {error.message}"
        self._fail(job, error.message, phase=None)
        raise ArchiveError(
            f"SBID {', '.join(job.sbids[:5])}: {error.message}",
            code=error.code,
            retry=error.retry,
            hint=error.hint,
            details={"sbids": job.sbids},
        ) from error


def request_digest(identifiers: Iterable[str]) -> str:
    """What a job is known again by: a digest of the identifiers that it was given, in any order."""
    return sha256_hex("\n".join(sorted(identifiers)))


def _failures(jobs: Iterable[StagingJob]) -> Counter[str]:
    return Counter(name for job in jobs if job.state in _LOST for name in job.items)


def _before(moment: datetime | None, limit: datetime) -> bool:
    return moment is not None and moment < limit
