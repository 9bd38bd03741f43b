"""The archive port over TAP (IVOA Table Access Protocol 1.1, synchronous queries).

pyvo builds the requests and reads the VOTables. The HTTP side is watched here, since pyvo has no
timeouts, loses HTTP statuses and headers, and reports most transport failures as format errors:
every attempt has a connect timeout, a read timeout and an end, a body is read as a whole before it
is parsed, and what came back is classified before anybody sees a row.

Only reads are sent, so an attempt that failed in passing is made again: after too many requests
(429), a busy or broken service (5xx, and the texts by which TAPLib says "busy" with HTTP 400), a
failed connection, or a timeout. ``Retry-After`` is respected up to a minute; a service that wants
to be left alone for longer is left alone.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from importlib.metadata import PackageNotFoundError, version
from io import BytesIO
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import requests
import stamina
from requests.adapters import HTTPAdapter
from urllib3.exceptions import HTTPError, ReadTimeoutError

from beampipe_dagster.config.canonical import sha256_hex
from beampipe_dagster.discovery.archive import (
    DEFAULT_MAXREC,
    Answer,
    AnswerClass,
    Evidence,
    archive_error,
)
from beampipe_dagster.discovery.votable import (
    ResultTable,
    UnreadableError,
    error_message,
    excerpt,
    read_result,
)
from beampipe_dagster.errors import ConfigError, InputError, Retry

if TYPE_CHECKING:
    from beampipe_dagster.clock import Clock

CONNECT_SECONDS: Final = 10.0
"""Longest wait for a connection."""
AVAILABILITY_SECONDS: Final = 10.0
"""Longest wait for an availability document."""
POOL_SIZE: Final = 16
"""Connections that are kept to one archive; more threads than that open more, for once."""
MAX_BYTES: Final = 256 * 1024 * 1024
"""Largest body that is read. 20,000 rows of CASDA's obscore are about 15 MB."""
MAX_RETRY_AFTER_SECONDS: Final = 60.0
"""Longest ``Retry-After`` that is waited for within a query."""
FIRST_WAIT_SECONDS: Final = 0.5
"""Wait before the first repetition; each further one is twice as long."""
LONGEST_WAIT_SECONDS: Final = 8.0
"""Wait before a repetition that is not exceeded, jitter (half a second) aside."""

# What CDS' TAPLib (VizieR, CASDA) says when it has no database connection free.
_BUSY = (
    "tap service too busy",
    "no connection available",
    "unable to check the adql query",
    "temporarily unavailable",
)
_CHUNK = 64 * 1024
_ENDPOINT = re.compile(r"/(?:sync|async)$", re.IGNORECASE)
_DELAY_SECONDS = re.compile(r"[0-9]{1,9}")


class _FailedError(Exception):
    """One attempt that did not give a complete answer."""

    def __init__(
        self,
        answer: AnswerClass,
        message: str,
        *,
        transient: bool = False,
        retry_after: float | None = None,
        retry: Retry | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message)
        self.answer = answer
        self.message = message
        self.transient = transient
        self.retry_after = retry_after
        self.retry = retry
        self.hint = hint


@dataclass(slots=True)
class _Attempt:
    """What is known about the attempt that is being made."""

    started_at: Any
    started: float
    http_status: int | None = None
    query_status: str | None = None
    received: int | None = None
    rows: int = 0
    redirected_to: str | None = None


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

    def query(self, adql: str, *, maxrec: int = DEFAULT_MAXREC) -> Answer:
        """Ask a query; see :meth:`beampipe_dagster.discovery.archive.Archive.query`.

        Raises
        ------
        ArchiveError
            Anything but a complete answer.
        InputError
            ``invalid_maxrec``: MAXREC below 1.
        """
        if maxrec < 1:
            raise InputError(
                f"MAXREC {maxrec} asks for nothing",
                code="invalid_maxrec",
                hint="Give 1 or more; to test a query, ask for one row.",
            )
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
                    result = self._ask(adql, maxrec, attempt)
                    evidence = self._evidence(adql, attempt, number, AnswerClass.COMPLETE)
                    return Answer(result.rows, evidence)
        except _FailedError as failure:
            message = failure.message
            if attempt.redirected_to:
                message += f" (redirected to {attempt.redirected_to}: configure that URL instead)"
            raise archive_error(
                message,
                self._evidence(adql, attempt, number, failure.answer),
                retry=failure.retry,
                hint=failure.hint,
            ) from failure.__cause__
        raise AssertionError  # pragma: no cover  # the loop returns or raises

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
            return False, f"{self.url} cannot be reached: {_root_cause(error)}"
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

    def _begin(self) -> _Attempt:
        return _Attempt(started_at=self._clock.now(), started=self._clock.monotonic())

    def _evidence(self, adql: str, attempt: _Attempt, number: int, answer: AnswerClass) -> Evidence:
        return Evidence(
            adapter=self.adapter,
            url=f"{self.url}/sync",
            query_sha256=sha256_hex(adql),
            started_at=attempt.started_at,
            seconds=self._clock.monotonic() - attempt.started,
            rows=attempt.rows,
            http_status=attempt.http_status,
            query_status=attempt.query_status,
            bytes=attempt.received,
            answer=answer,
            attempts=number,
        )

    def _ask(self, adql: str, maxrec: int, attempt: _Attempt) -> ResultTable:
        from pyvo.dal.tap import TAPQuery  # noqa: PLC0415  # takes 0.9 s to import

        query = TAPQuery(self.url, adql, maxrec=maxrec, session=self._session)
        try:
            # pyvo's own execute() would parse from the socket and hide what happened there.
            response = query.submit()
        except requests.RequestException as error:
            raise _not_sent(error) from error
        try:
            attempt.http_status = response.status_code
            if response.history:
                attempt.redirected_to = str(response.url)
            body = self._read(response, attempt)
        finally:
            response.close()
        if response.status_code != requests.codes.ok:
            raise self._http_failure(response, body)
        try:
            result = read_result(body, maxrec=maxrec)
        except UnreadableError as error:
            attempt.query_status, attempt.rows = error.query_status, error.rows
            raise self._unreadable(error, response) from error
        attempt.query_status, attempt.rows = result.query_status, len(result.rows)
        return result

    def _read(self, response: requests.Response, attempt: _Attempt) -> bytes:
        chunks: list[bytes] = []
        attempt.received = 0
        try:
            # read1 gives what is there; a read of a whole chunk could wait for ever on a trickle.
            while chunk := response.raw.read1(_CHUNK, decode_content=True):
                chunks.append(chunk)
                attempt.received += len(chunk)
                if self._clock.monotonic() - attempt.started > self._timeout_seconds:
                    raise _FailedError(
                        AnswerClass.TIMEOUT,
                        f"the answer was not whole after {self._timeout_seconds:g} s "
                        f"({attempt.received} bytes came)",
                        transient=True,
                    )
                if attempt.received > MAX_BYTES:
                    raise _FailedError(AnswerClass.OVERFLOW, f"the answer is longer than {MAX_BYTES} bytes")
        except (HTTPError, OSError) as error:
            raise _broken(error, attempt.received) from error
        return b"".join(chunks)

    def _http_failure(self, response: requests.Response, body: bytes) -> _FailedError:
        code = response.status_code
        said = error_message(body)
        message = f"HTTP {code}" + (f": {said}" if said else "")
        wait = retry_after(response.headers.get("Retry-After"), self._clock)
        if code == requests.codes.too_many_requests or (code in {400, 503} and _is_busy(excerpt(body))):
            return _FailedError(AnswerClass.REFUSED, message, transient=True, retry_after=wait)
        if code in {401, 403}:
            return _FailedError(
                AnswerClass.REFUSED,
                message,
                retry=Retry.NEVER,
                hint="The archive wants credentials, or does not let this machine in.",
            )
        if code >= 500:
            return _FailedError(AnswerClass.UNAVAILABLE, message, transient=True, retry_after=wait)
        if code >= 400:
            return _FailedError(AnswerClass.ERROR, message, retry=Retry.NEVER)
        return _FailedError(AnswerClass.MALFORMED, message)

    def _unreadable(self, error: UnreadableError, response: requests.Response) -> _FailedError:
        if error.answer is AnswerClass.ERROR and error.rows == 0 and _is_busy(error.message):
            wait = retry_after(response.headers.get("Retry-After"), self._clock)
            return _FailedError(AnswerClass.REFUSED, error.message, transient=True, retry_after=wait)
        return _FailedError(error.answer, error.message)


class TapSession(requests.Session):
    """A session that never waits for ever.

    Parameters
    ----------
    timeout_seconds
        Longest silence of a service; a connection has :data:`CONNECT_SECONDS` at most.
    pool_size
        Connections that are kept.
    """

    def __init__(self, *, timeout_seconds: float, pool_size: int = POOL_SIZE) -> None:
        super().__init__()
        self._timeout = (min(CONNECT_SECONDS, timeout_seconds), timeout_seconds)
        adapter = HTTPAdapter(pool_connections=2, pool_maxsize=pool_size)
        self.mount("http://", adapter)
        self.mount("https://", adapter)
        self.headers["User-Agent"] = f"beampipe-dagster/{_own_version()} (IVOA-science)"

    def request(self, *args: Any, **kwargs: Any) -> requests.Response:  # noqa: ANN401  # as above
        """:meth:`requests.Session.request` with the session's timeouts, unless others are given."""
        kwargs.setdefault("timeout", self._timeout)
        return super().request(*args, **kwargs)


def tap_base_url(url: str) -> str:
    """A TAP service's base URL: without a trailing slash, and without ``/sync`` or ``/async``.

    Raises
    ------
    ConfigError
        ``invalid_tap_url``.
    """
    base = _ENDPOINT.sub("", url.strip().rstrip("/")).rstrip("/")
    try:
        parts = urlsplit(base)
        usable = (
            parts.scheme in {"http", "https"}
            and bool(parts.hostname)
            and (parts.port is None or parts.port > 0)
            and not (parts.query or parts.fragment)
            and not re.search(r"[\s\x00-\x1f\x7f]", base)
        )
        secret = parts.username is not None or parts.password is not None
    except ValueError:
        usable, secret = False, False
    if secret:
        raise ConfigError(
            f"the TAP URL of host {parts.hostname} holds a user name or password",
            code="invalid_tap_url",
            hint="URLs are logged and kept in the ledger: give one without credentials.",
        )
    if not usable:
        raise ConfigError(
            f"{url!r} is not the URL of a TAP service",
            code="invalid_tap_url",
            hint="Give an http(s) URL such as https://casda.csiro.au/casda_vo_tools/tap.",
        )
    return base


def backoff(error: Exception) -> bool | float:
    """Whether an attempt is repeated: not at all, after the usual wait, or after given seconds."""
    if not isinstance(error, _FailedError) or not error.transient:
        return False
    if error.retry_after is None:
        return True
    if error.retry_after > MAX_RETRY_AFTER_SECONDS:
        return False
    return max(error.retry_after, FIRST_WAIT_SECONDS)


def retry_after(header: str | None, clock: Clock) -> float | None:
    """Seconds that a ``Retry-After`` header asks for (RFC 9110 section 10.2.3), if it does."""
    if header is None:
        return None
    if _DELAY_SECONDS.fullmatch(header.strip()):
        return float(header)
    try:
        moment = parsedate_to_datetime(header)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, (moment - clock.now()).total_seconds())


def _not_sent(error: requests.RequestException) -> _FailedError:
    """A request that got no answer at all."""
    reason = _root_cause(error)
    if isinstance(error, requests.Timeout) and not isinstance(error, requests.ConnectTimeout):
        return _FailedError(AnswerClass.TIMEOUT, f"no answer in time: {reason}", transient=True)
    # A certificate does not get better in seconds.
    transient = isinstance(error, requests.ConnectionError) and not isinstance(
        error, requests.exceptions.SSLError
    )
    return _FailedError(AnswerClass.UNAVAILABLE, f"no answer: {reason}", transient=transient)


def _broken(error: Exception, received: int) -> _FailedError:
    """An answer whose body stopped coming."""
    if isinstance(error, ReadTimeoutError | TimeoutError):
        return _FailedError(AnswerClass.TIMEOUT, f"the answer stopped after {received} bytes", transient=True)
    return _FailedError(
        AnswerClass.MALFORMED,
        f"the answer broke off after {received} bytes: {_root_cause(error)}",
        transient=True,
    )


def _is_busy(message: str) -> bool:
    lowered = message.lower()
    return any(text in lowered for text in _BUSY)


def _root_cause(error: BaseException) -> str:
    """The innermost reason, without the layers of requests and urllib3 and without addresses."""
    seen: set[int] = set()
    while id(error) not in seen:
        seen.add(id(error))
        inner = getattr(error, "reason", None) or error.__cause__ or error.__context__
        if not isinstance(inner, BaseException):
            inner = next((arg for arg in error.args if isinstance(arg, BaseException)), None)
        if inner is None:
            break
        error = inner
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return f"{type(error).__name__}: {text}"


def _own_version() -> str:
    try:
        return version("beampipe-dagster")
    except PackageNotFoundError:  # run from a source tree
        return "0"
