"""The archive port over TAP (IVOA Table Access Protocol 1.1).

pyvo makes the requests of synchronous queries and reads the VOTables; the HTTP side is watched by
:mod:`~beampipe_dagster.discovery.tap_session`, and jobs are run by
:mod:`~beampipe_dagster.discovery.uws_client`.

Only reads are sent, so an attempt that failed in passing is made again: after too many requests
(429), a busy or broken service (5xx, and the texts by which TAPLib says "busy" with HTTP 400), a
failed connection, or a timeout. ``Retry-After`` is respected up to a minute; a service that wants
to be left alone for longer is left alone.
"""

from __future__ import annotations

import threading
from io import BytesIO
from typing import TYPE_CHECKING, Final

import requests
import stamina

from beampipe_dagster.config.canonical import sha256_hex
from beampipe_dagster.discovery.archive import (
    CONSERVATIVE,
    DEFAULT_MAXREC,
    Answer,
    AnswerClass,
    Evidence,
    Mode,
    TapCapabilities,
    Upload,
    archive_error,
)
from beampipe_dagster.discovery.capabilities import read_capabilities
from beampipe_dagster.discovery.job_store import JobRequest, JobStore, MemoryJobs
from beampipe_dagster.discovery.tap_session import (
    FIRST_WAIT_SECONDS,
    LONGEST_WAIT_SECONDS,
    Attempt,
    FailedError,
    TapSession,
    backoff,
    http_failure,
    not_sent,
    read_body,
    root_cause,
    tap_base_url,
    unreadable,
)
from beampipe_dagster.discovery.upload import upload_digest, upload_document
from beampipe_dagster.discovery.uws_client import JobRunner, query_key
from beampipe_dagster.discovery.votable import ResultTable, UnreadableError, excerpt, read_result
from beampipe_dagster.errors import ArchiveError, ConfigError, InputError

if TYPE_CHECKING:
    from beampipe_dagster.clock import Clock

AVAILABILITY_SECONDS: Final = 10.0
"""Longest wait for an availability document, or one of capabilities."""
CAPABILITIES_SECONDS: Final = 3600.0
"""How long what a service says of itself is believed."""
SILENCE_SECONDS: Final = 60.0
"""How long a service that did not say what it can do is not asked again."""
JOB_SECONDS: Final = 600.0
"""How long one asynchronous query waits for its job; the next one goes on with it."""


class TapArchive:
    """An archive behind a TAP service.

    One object may be used by many threads.

    Parameters
    ----------
    adapter
        Name of the archive in the project file, for messages.
    url
        Its base URL, e.g. ``https://casda.csiro.au/casda_vo_tools/tap``; ``.../tap/`` and
        ``.../tap/sync`` mean the same.
    timeout_seconds
        The time that one attempt may take, up to the last byte of its body.
    retries
        How many times a query that failed in passing is sent again.
    clock
        Time.
    session
        Instead of a :class:`TapSession`; it must have its own timeouts.
    jobs
        Where asynchronous queries are remembered; by default in this object only.
    job_seconds
        How long one asynchronous query waits for its job.

    Raises
    ------
    ConfigError
        ``invalid_tap_url``: not an HTTP URL of a service, or one with a password in it.
        ``invalid_tap_timeout`` and ``invalid_tap_retries``: not positive, or negative.
    """

    def __init__(
        self,
        *,
        adapter: str,
        url: str,
        timeout_seconds: float,
        retries: int,
        clock: Clock,
        session: requests.Session | None = None,
        jobs: JobStore | None = None,
        job_seconds: float = JOB_SECONDS,
    ) -> None:
        if timeout_seconds <= 0:
            raise ConfigError(
                f"adapter {adapter}: a timeout of {timeout_seconds} s leaves no time to answer",
                code="invalid_tap_timeout",
                hint="Set adapters.tap.timeout_seconds to a positive number, e.g. 90.",
            )
        if retries < 0:
            raise ConfigError(
                f"adapter {adapter}: {retries} retries",
                code="invalid_tap_retries",
                hint="Set adapters.tap.retries to 0 or more.",
            )
        self.adapter = adapter
        self.url = tap_base_url(url)
        self._timeout_seconds = timeout_seconds
        self._retries = retries
        self._clock = clock
        self._session = session or TapSession(timeout_seconds=timeout_seconds)
        self._runner = JobRunner(
            session=self._session,
            clock=clock,
            jobs=jobs or MemoryJobs(clock=clock),
            timeout_seconds=timeout_seconds,
            wait_seconds=job_seconds,
            retries=retries,
        )
        self._lock = threading.Lock()
        self._said: tuple[float, TapCapabilities] | None = None

    def query(self, adql: str, *, maxrec: int = DEFAULT_MAXREC, upload: Upload | None = None) -> Answer:
        """Ask a query; see :meth:`beampipe_dagster.discovery.archive.Archive.query`.

        Raises
        ------
        ArchiveError
            Anything but a complete answer.
        InputError
            ``invalid_maxrec``: MAXREC below 1. ``invalid_upload``: a table that cannot be sent.
        """
        request = self._request(adql, maxrec, upload)
        number = 0
        attempt = self._begin()
        try:
            for trial in stamina.retry_context(
                on=backoff,
                attempts=self._retries + 1,
                timeout=None,
                wait_initial=FIRST_WAIT_SECONDS,
                wait_max=LONGEST_WAIT_SECONDS,
                wait_jitter=0.5,
            ):
                number += 1
                attempt = self._begin()
                with trial:
                    result = self._ask(request, attempt)
                    return self._answer(result, self._evidence("sync", request, upload, attempt, number))
        except FailedError as failure:
            evidence = self._evidence("sync", request, upload, attempt, number, failure.answer)
            raise _translated(failure, attempt, evidence) from failure.__cause__
        raise AssertionError  # pragma: no cover  # the loop returns or raises

    def query_async(self, adql: str, *, maxrec: int = DEFAULT_MAXREC, upload: Upload | None = None) -> Answer:
        """Ask a query as a job; see :meth:`beampipe_dagster.discovery.archive.Archive.query_async`.

        Raises
        ------
        ArchiveError
            Anything but a complete answer. A job that was not waited for to its end is
            ``archive_timeout``; the same query goes on with it.
        InputError
            As :meth:`query`.
        """
        request = self._request(adql, maxrec, upload)
        attempt = self._begin()
        try:
            result = self._runner.run(request, attempt)
        except FailedError as failure:
            evidence = self._evidence("async", request, upload, attempt, 1, failure.answer)
            raise _translated(failure, attempt, evidence) from failure.__cause__
        return self._answer(result, self._evidence("async", request, upload, attempt, 1))

    def capabilities(self) -> TapCapabilities:
        """What the service says that it can do; asked once an hour. Never raises."""
        with self._lock:
            now = self._clock.monotonic()
            if self._said is None or now >= self._said[0]:
                found = self._stated_capabilities()
                lasts = CAPABILITIES_SECONDS if found is not None else SILENCE_SECONDS
                self._said = (now + lasts, found or CONSERVATIVE)
            return self._said[1]

    def availability(self) -> tuple[bool, str]:
        """Whether the service takes queries now (IVOA VOSI 1.1), and a sentence about it.

        A service without an availability document counts as available when it shows its
        capabilities. Never raises.
        """
        timeout = min(AVAILABILITY_SECONDS, self._timeout_seconds)
        try:
            response = self._session.get(f"{self.url}/availability", timeout=timeout)
            if response.status_code == requests.codes.not_found:
                response = self._session.get(f"{self.url}/capabilities", timeout=timeout)
                if response.ok and b"capabilities" in response.content:
                    return True, f"{self.url} shows its capabilities (it has no availability)"
        except requests.RequestException as error:
            return False, f"{self.url} cannot be reached: {root_cause(error)}"
        if not response.ok:
            return False, f"{self.url} answers its availability with HTTP {response.status_code}"
        return self._stated_availability(response.content)

    def close(self) -> None:
        """Close the kept connections."""
        self._session.close()

    def _stated_availability(self, body: bytes) -> tuple[bool, str]:
        from pyvo.io.vosi import parse_availability  # noqa: PLC0415  # takes 0.9 s to import

        try:
            stated = parse_availability(BytesIO(body).read)
        except Exception:  # noqa: BLE001  # astropy raises what it likes on bad documents
            return False, f"{self.url} answers no availability document but {excerpt(body)[:80]!r}"
        notes = "; ".join(str(note).strip() for note in stated.notes or ())
        if stated.available:
            return True, f"{self.url} is available" + (f": {notes}" if notes else "")
        return False, f"{self.url} says that it is not available" + (f": {notes}" if notes else "")

    def _begin(self) -> Attempt:
        return Attempt(started_at=self._clock.now(), started=self._clock.monotonic())

    def _request(self, adql: str, maxrec: int, upload: Upload | None) -> JobRequest:
        if maxrec < 1:
            raise InputError(
                f"MAXREC {maxrec} asks for nothing",
                code="invalid_maxrec",
                hint="Give 1 or more; to test a query, ask for one row.",
            )
        digest = upload_digest(upload)
        return JobRequest(
            archive=self.adapter,
            tap_url=self.url,
            adql=adql,
            query_sha256=sha256_hex(adql),
            maxrec=maxrec,
            upload_name=None if upload is None else upload.name,
            upload=None if upload is None else upload_document(upload),
            upload_sha256=digest,
            key=query_key(
                archive=self.adapter, tap_url=self.url, adql=adql, maxrec=maxrec, upload_sha256=digest
            ),
        )

    def _answer(self, result: ResultTable, evidence: Evidence) -> Answer:
        return Answer(result.rows, evidence, result.columns)

    def _evidence(
        self,
        mode: Mode,
        request: JobRequest,
        upload: Upload | None,
        attempt: Attempt,
        number: int,
        answer: AnswerClass = AnswerClass.COMPLETE,
    ) -> Evidence:
        return Evidence(
            adapter=self.adapter,
            url=f"{self.url}/{mode}",
            query_sha256=request.query_sha256,
            started_at=attempt.started_at,
            seconds=attempt.elapsed(self._clock),
            rows=attempt.rows,
            http_status=attempt.http_status,
            query_status=attempt.query_status,
            bytes=attempt.received,
            answer=answer,
            attempts=number,
            mode=mode,
            status_head=attempt.status_head,
            status_tail=attempt.status_tail,
            uploaded_rows=None if upload is None else len(upload.rows),
            job_url=attempt.job_url,
            phases=attempt.phases,
        )

    def _ask(self, request: JobRequest, attempt: Attempt) -> ResultTable:
        from pyvo.dal.tap import TAPQuery  # noqa: PLC0415  # takes 0.9 s to import

        uploads = None if request.upload is None else {request.upload_name: BytesIO(request.upload)}
        query = TAPQuery(
            self.url, request.adql, maxrec=request.maxrec, uploads=uploads, session=self._session
        )
        try:
            # pyvo's own execute() would parse from the socket and hide what happened there.
            response = query.submit()
        except requests.RequestException as error:
            raise not_sent(error) from error
        try:
            attempt.http_status = response.status_code
            if response.history:
                attempt.redirected_to = str(response.url)
            body = read_body(response, attempt, clock=self._clock, seconds=self._timeout_seconds)
        finally:
            response.close()
        if response.status_code != requests.codes.ok:
            raise http_failure(response, body, self._clock)
        try:
            result = read_result(body, maxrec=request.maxrec)
        except UnreadableError as error:
            attempt.learn(error)
            raise unreadable(error, response, self._clock) from error
        attempt.learn(result)
        return result

    def _stated_capabilities(self) -> TapCapabilities | None:
        """What the service's document says; ``None`` when there was no answer at all."""
        timeout = min(AVAILABILITY_SECONDS, self._timeout_seconds)
        attempt = self._begin()
        try:
            response = self._session.get(f"{self.url}/capabilities", timeout=timeout, stream=True)
            with response:
                body = read_body(response, attempt, clock=self._clock, seconds=timeout)
        except (requests.RequestException, FailedError):
            return None
        if response.status_code >= 500:
            return None
        return read_capabilities(body) if response.ok else CONSERVATIVE


def _translated(failure: FailedError, attempt: Attempt, evidence: Evidence) -> ArchiveError:
    message = failure.message
    if attempt.redirected_to:
        message += f" (redirected to {attempt.redirected_to}: configure that URL instead)"
    return archive_error(message, evidence, retry=failure.retry, hint=failure.hint)
