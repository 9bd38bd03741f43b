"""Asynchronous jobs as the Universal Worker Service describes them (UWS 1.1).

Jobs live in memory: a restart forgets them, as a service that lost its job database would.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Literal
from xml.sax.saxutils import escape, quoteattr

from beampipe_dagster.clock import Clock, rfc3339
from beampipe_dagster.errors import BeampipeError, ConflictError, InputError, NotFoundError
from beampipe_dagster.ids import Ids
from beampipe_dagster.sandbox.archive.adql import Deadline
from beampipe_dagster.sandbox.archive.faults import NO_FAULT, Fault
from beampipe_dagster.sandbox.archive.parameters import Parameters

Phase = Literal["PENDING", "QUEUED", "EXECUTING", "COMPLETED", "ERROR", "ABORTED"]

ACTIVE: frozenset[str] = frozenset({"PENDING", "QUEUED", "EXECUTING"})
MAX_JOBS = 500
MAX_DURATION_S = 600
MAX_WAIT_S = 60.0

_LIFETIME = timedelta(days=1)
_UWS = (
    'xmlns:uws="http://www.ivoa.net/xml/UWS/v1.0" xmlns:xlink="http://www.w3.org/1999/xlink" '
    'xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"'
)
_XML = '<?xml version="1.0" encoding="UTF-8"?>\n'


@dataclass(slots=True)
class Job:
    """A job, its state and, at its end, its result or its error."""

    job_id: str
    parameters: Parameters
    created: datetime
    destruction: datetime
    deadline: Deadline
    fault: Fault = NO_FAULT
    phase: Phase = "PENDING"
    started: datetime | None = None
    ended: datetime | None = None
    body: bytes | None = None
    mime: str = ""
    error: BeampipeError | None = None
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def move(self, phase: Phase) -> None:
        """Change the phase and wake everybody who waits for that."""
        self.phase = phase
        self.changed.set()
        self.changed = asyncio.Event()


class JobList:
    """The jobs of one archive; belongs to one event loop.

    Parameters
    ----------
    execute
        Runs a job: gives the result's body and MIME type, or raises a :class:`BeampipeError`.
    clock, ids
        Times and identifiers of jobs.
    seconds
        The execution duration that a job has at first.
    """

    def __init__(
        self,
        *,
        execute: Callable[[Job], Awaitable[tuple[bytes, str]]],
        clock: Clock,
        ids: Ids,
        seconds: float,
    ) -> None:
        self._execute = execute
        self._clock = clock
        self._ids = ids
        self._seconds = seconds
        self._jobs: dict[str, Job] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def create(self, parameters: Parameters) -> Job:
        """A new job in phase PENDING; the oldest jobs that have ended make room for it."""
        self._expire()
        for job_id in [j.job_id for j in self._jobs.values() if j.phase not in ACTIVE]:
            if len(self._jobs) < MAX_JOBS:
                break
            del self._jobs[job_id]
        if len(self._jobs) >= MAX_JOBS:
            raise ConflictError(
                f"{MAX_JOBS} jobs have not ended yet.",
                code="too_many_jobs",
                hint="Wait for jobs to end, or delete some.",
            )
        now = self._clock.now()
        job = Job(self._ids.new(), parameters, now, now + _LIFETIME, Deadline(self._seconds))
        self._jobs[job.job_id] = job
        return job

    def get(self, job_id: str) -> Job:
        """The job of that identifier.

        Raises
        ------
        NotFoundError
            ``unknown_job``: there is none, or it was destroyed.
        """
        self._expire()
        job = self._jobs.get(job_id)
        if job is None:
            raise NotFoundError(
                f"There is no job {job_id[:60]!r}.",
                code="unknown_job",
                hint="Jobs end with the sandbox, and a day after their creation.",
            )
        return job

    def all(self) -> list[Job]:
        """All jobs, the newest first."""
        self._expire()
        return list(reversed(self._jobs.values()))

    def run(self, job: Job) -> None:
        """Start a job that has not been started; anything else is left as it is (UWS 1.1, 2.2.3.5)."""
        if job.phase != "PENDING":
            return
        job.move("QUEUED")
        task = asyncio.get_running_loop().create_task(self._work(job))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def abort(self, job: Job) -> None:
        """Stop a job that has not ended."""
        if job.phase in ACTIVE:
            job.deadline.cancelled.set()
            job.ended = self._clock.now()
            job.move("ABORTED")

    def delete(self, job: Job) -> None:
        """Stop a job and forget it."""
        self.abort(job)
        self._jobs.pop(job.job_id, None)

    def close(self) -> None:
        """Stop all jobs, which also answers everybody who waits for one."""
        for job in list(self._jobs.values()):
            self.abort(job)

    async def _work(self, job: Job) -> None:
        if job.phase != "QUEUED":
            return
        job.started = self._clock.now()
        job.deadline.restart()
        job.move("EXECUTING")
        try:
            body, mime = await self._execute(job)
        except BeampipeError as error:
            self._end(job, "ERROR", error)
        except Exception as error:  # noqa: BLE001  # a job must end, whatever happens
            self._end(job, "ERROR", BeampipeError(f"The job failed: {error}"))
        else:
            job.body, job.mime = body, mime
            self._end(job, "COMPLETED", None)

    def _end(self, job: Job, phase: Phase, error: BeampipeError | None) -> None:
        if job.phase != "EXECUTING":
            return
        job.error = error
        job.ended = self._clock.now()
        job.move(phase)

    def _expire(self) -> None:
        now = self._clock.now()
        for job in [j for j in self._jobs.values() if j.destruction <= now]:
            self.delete(job)


async def wait_for_change(job: Job, wait: str | None, phase: str | None) -> None:
    """Hold an answer back until the job's phase changes (``WAIT``, UWS 1.1, section 2.2.1.2)."""
    if wait is None or job.phase not in ACTIVE or (phase and phase.upper() != job.phase):
        return
    try:
        seconds = float(int(wait))
    except ValueError:
        return
    seconds = MAX_WAIT_S if seconds < 0 else min(seconds, MAX_WAIT_S)
    try:
        await asyncio.wait_for(job.changed.wait(), seconds)
    except TimeoutError:
        return


def parse_duration(text: str) -> float:
    """An EXECUTIONDURATION in seconds; 0 asks for the longest.

    Raises
    ------
    InputError
        ``invalid_request``.
    """
    if not re.fullmatch(r"\d{1,9}", text, re.ASCII):
        raise InputError(
            f"EXECUTIONDURATION={text[:40]!r} is not a number of seconds.",
            code="invalid_request",
            hint=f"Send 1 to {MAX_DURATION_S}.",
        )
    return float(min(int(text) or MAX_DURATION_S, MAX_DURATION_S))


def parse_destruction(text: str, latest: datetime) -> datetime:
    """A DESTRUCTION time, no later than ``latest``.

    Raises
    ------
    InputError
        ``invalid_request``.
    """
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise InputError(
            f"DESTRUCTION={text[:40]!r} is not a time.",
            code="invalid_request",
            hint="Send ISO 8601, as in 2026-01-01T00:00:00Z.",
        ) from error
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return min(moment, latest)


def job_document(job: Job, url: str) -> bytes:
    """The job as XML; ``url`` is the job's own."""

    def moment(name: str, value: datetime | None) -> str:
        if value is None:
            return f'<uws:{name} xsi:nil="true"/>'
        return f"<uws:{name}>{rfc3339(value)}</uws:{name}>"

    error = ""
    if job.error is not None:
        error = (
            '<uws:errorSummary type="fatal" hasDetail="true">'
            f"<uws:message>{escape(job.error.message)}</uws:message></uws:errorSummary>"
        )
    return (
        f'{_XML}<uws:job {_UWS} version="1.1"><uws:jobId>{job.job_id}</uws:jobId>'
        f'<uws:ownerId xsi:nil="true"/><uws:phase>{job.phase}</uws:phase>'
        '<uws:quote xsi:nil="true"/>'
        + moment("creationTime", job.created)
        + moment("startTime", job.started)
        + moment("endTime", job.ended)
        + f"<uws:executionDuration>{int(job.deadline.seconds)}</uws:executionDuration>"
        + moment("destruction", job.destruction)
        + _parameters(job)
        + _results(job, url)
        + error
        + "</uws:job>\n"
    ).encode()


def results_document(job: Job, url: str) -> bytes:
    """The list of a job's results."""
    return (_XML + _results(job, url).replace("<uws:results", f"<uws:results {_UWS}", 1)).encode()


def parameters_document(job: Job) -> bytes:
    """The list of a job's parameters."""
    text = _parameters(job).replace("<uws:parameters", f"<uws:parameters {_UWS}", 1)
    return (_XML + text).encode()


def jobs_document(jobs: list[Job], url: str) -> bytes:
    """The list of jobs; ``url`` is the list's own."""
    items = "".join(
        f'<uws:jobref id="{job.job_id}" xlink:href={quoteattr(f"{url}/{job.job_id}")}>'
        f"<uws:phase>{job.phase}</uws:phase>"
        f"<uws:creationTime>{rfc3339(job.created)}</uws:creationTime></uws:jobref>"
        for job in jobs
    )
    return f'{_XML}<uws:jobs {_UWS} version="1.1">{items}</uws:jobs>\n'.encode()


def _parameters(job: Job) -> str:
    items = "".join(
        f"<uws:parameter id={quoteattr(name)}>{escape(value)}</uws:parameter>"
        for name, value in job.parameters.pairs
        if name.upper() != "PHASE"
    )
    return f"<uws:parameters>{items}</uws:parameters>"


def _results(job: Job, url: str) -> str:
    if job.phase != "COMPLETED":
        return "<uws:results/>"
    href = quoteattr(f"{url}/results/result")
    return (
        f'<uws:results><uws:result id="result" mime-type={quoteattr(job.mime)} '
        f'xlink:type="simple" xlink:href={href}/></uws:results>'
    )
