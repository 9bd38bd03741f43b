"""Queries as jobs (IVOA UWS 1.1): created, told to run, followed to their end, collected and deleted.

The order keeps every job ours: the intent is kept before the job is created, its URL before it is
told to run, and it is deleted after its table was read. A job whose URL was never kept was never told
to run, and its archive drops it in time. A process that dies leaves a job that the same query finds
and goes on with; a job that the archive has forgotten is asked for anew, once.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, urljoin, urlsplit

import requests

from beampipe_dagster.config.canonical import sha256_hex
from beampipe_dagster.discovery.archive import AnswerClass
from beampipe_dagster.discovery.tap_session import (
    CONNECT_SECONDS,
    MAX_RETRY_AFTER_SECONDS,
    Attempt,
    FailedError,
    http_failure,
    is_busy,
    not_sent,
    read_body,
    unreadable,
)
from beampipe_dagster.discovery.uws import (
    COMPLETED,
    PENDING,
    RUNNING,
    JobDocument,
    JobDocumentError,
    one_line,
    public_url,
    read_job,
)
from beampipe_dagster.discovery.votable import UnreadableError, error_message, excerpt, read_result
from beampipe_dagster.errors import ArchiveError, Retry
from beampipe_dagster.ledger.tables_archive_jobs import JobState

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    from beampipe_dagster.clock import Clock
    from beampipe_dagster.discovery.job_store import JobRequest, JobStore, KeptJob
    from beampipe_dagster.discovery.votable import ResultTable

    T = TypeVar("T")

FIRST_INTERVAL_SECONDS: Final = 0.5
"""Wait between the first two looks at a job; each further one is half as long again."""
LONGEST_INTERVAL_SECONDS: Final = 15.0
"""Longest wait between two looks."""
LONG_POLL_SECONDS: Final = 30
"""How long a service that can is asked to hold its answer back until the phase changes."""
DELETE_SECONDS: Final = 10.0
"""Longest wait for the deletion of a job, which is a courtesy."""

_GONE: Final = frozenset({404, 410})
_SEE_OTHER: Final = frozenset({302, 303})
_MOVED: Final = frozenset({301, 307, 308})
_NOT_ALLOWED: Final = frozenset({405, 501})
_CONFLICT: Final = frozenset({403, 409})


class _LostError(Exception):
    """The archive does not know the job."""


class _EndedError(Exception):
    """The job ended without a table that can be used."""

    def __init__(self, failure: FailedError) -> None:
        super().__init__(failure.message)
        self.failure = failure


@dataclass(frozen=True, slots=True)
class _Reply:
    response: requests.Response
    body: bytes

    @property
    def status(self) -> int:
        return self.response.status_code


class JobRunner:
    """Runs queries as jobs of one service.

    Parameters
    ----------
    session
        Its HTTP side.
    clock, jobs
        Time, and where jobs are remembered.
    timeout_seconds
        The time that one exchange may take.
    wait_seconds
        How long a job is waited for; one that takes longer is gone on with when it is asked again.
    retries
        How many times in a row a look that failed in passing is made again.
    """

    def __init__(
        self,
        *,
        session: requests.Session,
        clock: Clock,
        jobs: JobStore,
        timeout_seconds: float,
        wait_seconds: float,
        retries: int,
    ) -> None:
        self._session = session
        self._clock = clock
        self._jobs = jobs
        self._timeout_seconds = timeout_seconds
        self._wait_seconds = wait_seconds
        self._retries = retries

    def run(self, request: JobRequest, attempt: Attempt) -> ResultTable:
        """The complete table of a query.

        Parameters
        ----------
        request
            The query.
        attempt
            Learns what happened, for the evidence.

        Raises
        ------
        FailedError
            Anything but a complete table. A job that is still at work stays open.
        """
        kept = self._jobs.find(request.key)
        if kept is not None:
            try:
                return self._follow(kept, request, attempt)
            except _LostError as error:
                self._jobs.end(kept.id, JobState.LOST, str(error))
                attempt.phases = ()
        kept = self._create(request)
        try:
            return self._follow(kept, request, attempt)
        except _LostError as error:
            self._jobs.end(kept.id, JobState.LOST, str(error))
            raise FailedError(
                AnswerClass.UNAVAILABLE,
                f"the archive lost the job {public_url(kept.url)}: {error}",
                hint="It is asked for anew later. If it stays, ask the archive why its jobs vanish.",
            ) from error

    def _create(self, request: JobRequest) -> KeptJob:
        kept = self._jobs.begin(request)
        try:
            url = self._patiently(lambda: self._created(request))
        except FailedError as error:
            self._jobs.end(kept.id, JobState.ABANDONED, error.message)
            raise
        self._jobs.opened(kept.id, url)
        return replace(kept, url=url)

    def _created(self, request: JobRequest) -> str:
        """The URL of a new job."""
        fields = {
            "REQUEST": "doQuery",
            "LANG": "ADQL",
            "QUERY": request.adql,
            "MAXREC": str(request.maxrec),
        }
        files = None
        if request.upload is not None:
            fields["UPLOAD"] = f"{request.upload_name},param:{request.upload_name}"
            kind = "application/x-votable+xml"
            files = {str(request.upload_name): (f"{request.upload_name}.xml", request.upload, kind)}
        endpoint = f"{request.tap_url}/async"
        reply = self._send("POST", endpoint, data=fields, files=files)
        place = reply.response.headers.get("Location", "")
        if place and (reply.status in _SEE_OTHER or reply.status == 201):
            return _usable(urljoin(endpoint, place).rstrip("/"), endpoint)
        if place and reply.status in _MOVED:
            raise FailedError(
                AnswerClass.MALFORMED,
                f"the service moved to {public_url(urljoin(endpoint, place))}: configure that URL instead",
                retry=Retry.NEVER,
            )
        if reply.status == 200:
            return self._described(reply.body, endpoint)
        raise http_failure(reply.response, reply.body, self._clock)

    def _described(self, body: bytes, endpoint: str) -> str:
        """The URL of a job whose document was given instead of a redirect to it; or the error that was."""
        try:
            document = read_job(body)
        except JobDocumentError as error:
            said = error_message(body) or str(error)
            answer = AnswerClass.REFUSED if is_busy(said) else AnswerClass.ERROR
            raise FailedError(answer, f"no job was created: {said}") from error
        if not document.job_id:
            raise FailedError(AnswerClass.MALFORMED, "the new job has neither a place nor an identifier")
        return f"{endpoint}/{quote(document.job_id, safe='')}"

    def _follow(self, kept: KeptJob, request: JobRequest, attempt: Attempt) -> ResultTable:
        attempt.job_url, attempt.phases = public_url(kept.url), kept.phases
        try:
            result = self._collect(kept, self._awaited(kept, attempt), request, attempt)
        except _EndedError as error:
            self._jobs.end(kept.id, JobState.FAILED, error.failure.message)
            self._delete(kept)
            raise error.failure from error.__cause__
        self._jobs.end(kept.id, JobState.COLLECTED)
        self._delete(kept)
        return result

    def _awaited(self, kept: KeptJob, attempt: Attempt) -> JobDocument:
        """The job's document when it has ended."""
        interval, wait = FIRST_INTERVAL_SECONDS, 0
        phase, began = "", self._clock.monotonic()
        while True:
            asked = self._clock.monotonic()
            document = self._patiently(partial(self._look, kept.url, wait, phase))
            self._note(kept, document, attempt)
            if document.phase not in RUNNING:
                return document
            waited = self._clock.monotonic() - began
            if waited > self._wait_seconds:
                raise FailedError(
                    AnswerClass.TIMEOUT,
                    f"the job {public_url(kept.url)} is {document.phase} after {waited:.0f} s",
                    hint="The next look goes on with the same job.",
                )
            if document.phase == PENDING:
                self._patiently(partial(self._start, kept.url))
            changed = document.phase != phase
            # A service that does not hold its answer back is not to be asked again at once.
            if changed:
                interval = FIRST_INTERVAL_SECONDS
            if not wait or self._clock.monotonic() - asked < wait / 2:
                if not (changed and document.waits):
                    self._clock.sleep(interval)
                interval = min(interval * 1.5, LONGEST_INTERVAL_SECONDS)
            phase = document.phase
            rest = self._wait_seconds - waited
            wait = max(1, int(min(LONG_POLL_SECONDS, self._timeout_seconds, rest))) if document.waits else 0

    def _note(self, kept: KeptJob, document: JobDocument, attempt: Attempt) -> None:
        known = attempt.phases[-1][0] if attempt.phases else None
        if document.phase == known:
            return
        attempt.phases = (*attempt.phases, (document.phase, self._clock.now()))
        self._jobs.seen(kept.id, attempt.phases, document.destruction)

    def _look(self, url: str, wait: int, phase: str) -> JobDocument:
        parameters = {"WAIT": str(wait), "PHASE": phase} if wait else {}
        reply = self._send("GET", url, params=parameters, extra_seconds=wait)
        self._check(reply)
        try:
            return read_job(reply.body)
        except JobDocumentError as error:
            raise FailedError(
                AnswerClass.MALFORMED, f"{public_url(url)} is no job: {error}", transient=True
            ) from error

    def _start(self, url: str) -> None:
        """Tell a job to run; one that already does takes no harm (UWS 1.1 section 2.2.3.5)."""
        reply = self._send("POST", f"{url}/phase", data={"PHASE": "RUN"})
        if reply.status not in _SEE_OTHER | _CONFLICT:
            self._check(reply)

    def _check(self, reply: _Reply) -> None:
        if reply.status in _GONE:
            raise _LostError(f"HTTP {reply.status}")
        if reply.status != requests.codes.ok:
            raise http_failure(reply.response, reply.body, self._clock)

    def _collect(
        self, kept: KeptJob, document: JobDocument, request: JobRequest, attempt: Attempt
    ) -> ResultTable:
        if document.phase != COMPLETED:
            raise _EndedError(self._failure(kept, document))
        place = urljoin(f"{kept.url}/", document.result or "results/result")
        try:
            return self._patiently(lambda: self._table(_usable(place, kept.url), request, attempt))
        except FailedError as error:
            # What cannot be fetched now may be fetched later; what was read is what there is.
            if error.transient and error.answer is not AnswerClass.MALFORMED:
                raise
            raise _EndedError(error) from error.__cause__

    def _table(self, place: str, request: JobRequest, attempt: Attempt) -> ResultTable:
        reply = self._send("GET", place)
        attempt.http_status, attempt.received = reply.status, len(reply.body)
        self._check(reply)
        try:
            result = read_result(reply.body, maxrec=request.maxrec)
        except UnreadableError as error:
            attempt.learn(error)
            raise unreadable(error, reply.response, self._clock) from error
        attempt.learn(result)
        return result

    def _failure(self, kept: KeptJob, document: JobDocument) -> FailedError:
        url = public_url(kept.url)
        if document.phase == "ERROR":
            message = document.message or self._told(kept.url)
            answer = AnswerClass.REFUSED if is_busy(message) else AnswerClass.ERROR
            return FailedError(answer, message or f"the job {url} failed and does not say why")
        if document.phase == "ABORTED":
            reason = document.message or "by the archive, or by its time limit"
            return FailedError(AnswerClass.ERROR, f"the job {url} was aborted: {reason}")
        return FailedError(AnswerClass.UNAVAILABLE, f"the job {url} was archived with its result")

    def _told(self, url: str) -> str:
        """What a job's error document says (TAP 1.1 section 2.4); ``""`` when it does not."""
        try:
            reply = self._send("GET", f"{url}/error")
        except (FailedError, ArchiveError):
            return ""
        return one_line(error_message(reply.body) or excerpt(reply.body)) if reply.status == 200 else ""

    def _delete(self, kept: KeptJob) -> None:
        """Delete a job that is done with; whether it works changes nothing for the query."""
        try:
            reply = self._send("DELETE", kept.url, seconds=DELETE_SECONDS)
            if reply.status in _NOT_ALLOWED:
                reply = self._send("POST", kept.url, data={"ACTION": "DELETE"}, seconds=DELETE_SECONDS)
        except (FailedError, ArchiveError):  # also when nobody may ask the archive now
            return
        if reply.status < 400 or reply.status in _GONE:
            self._jobs.deleted(kept.id)

    def _patiently(self, action: Callable[[], T]) -> T:
        """Do it again after failures in passing, as often in a row as a query would be sent again."""
        wait = FIRST_INTERVAL_SECONDS
        for left in range(self._retries, -1, -1):
            try:
                return action()
            except FailedError as error:
                after = error.retry_after or 0.0
                if not left or not error.transient or after > MAX_RETRY_AFTER_SECONDS:
                    raise
                self._clock.sleep(max(wait, after))
                wait = min(wait * 2, LONGEST_INTERVAL_SECONDS)
        raise AssertionError  # pragma: no cover  # the loop returns or raises

    def _send(
        self,
        method: str,
        url: str,
        *,
        extra_seconds: float = 0.0,
        seconds: float | None = None,
        **arguments: Any,  # noqa: ANN401  # requests' own
    ) -> _Reply:
        """Make one exchange; only a GET follows redirects, since another method would become one."""
        limit = (seconds or self._timeout_seconds) + extra_seconds
        exchange = Attempt(started_at=self._clock.now(), started=self._clock.monotonic())
        try:
            response = self._session.request(
                method,
                url,
                stream=True,
                allow_redirects=method == "GET",
                timeout=(min(CONNECT_SECONDS, limit), limit),
                **arguments,
            )
        except requests.RequestException as error:
            raise not_sent(error) from error
        try:
            return _Reply(response, read_body(response, exchange, clock=self._clock, seconds=limit))
        finally:
            response.close()


def query_key(*, archive: str, tap_url: str, adql: str, maxrec: int, upload_sha256: str) -> str:
    """SHA-256 over all that makes two queries the same."""
    return sha256_hex("\n".join((archive, tap_url, str(maxrec), upload_sha256, adql)))


def _usable(url: str, origin: str) -> str:
    """A place on the web that a service sent us to.

    Raises
    ------
    FailedError
        It is none, or it is the list of jobs itself.
    """
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname or url.rstrip("/") == origin:
        raise FailedError(
            AnswerClass.MALFORMED, f"the service points to {public_url(url)!r}, which is no job"
        )
    return url
