"""HTTP as TAP services speak it: sessions that end, bodies read whole, and what a failure means.

pyvo has no timeouts, loses HTTP statuses and headers, and reports most transport failures as format
errors. So every exchange is watched here: a connect timeout, a read timeout and an end, a body read
as a whole before anybody parses it, and a class for what came instead of an answer.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter
from urllib3.exceptions import HTTPError, ReadTimeoutError

from beampipe_dagster.discovery.archive import AnswerClass
from beampipe_dagster.discovery.votable import ResultTable, UnreadableError, error_message, excerpt
from beampipe_dagster.errors import ConfigError, Retry

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


class FailedError(Exception):
    """One attempt that did not give a complete answer; translated by the adapter.

    Parameters
    ----------
    answer, message
        What came instead.
    transient
        Whether the same request may be made again at once.
    retry_after
        Seconds that the service asks for before that.
    retry, hint
        Instead of those that the class of the answer usually has.
    """

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
class Attempt:
    """What is known about the attempt that is being made; becomes its evidence."""

    started_at: datetime
    started: float
    http_status: int | None = None
    query_status: str | None = None
    received: int | None = None
    rows: int = 0
    redirected_to: str | None = None
    status_head: str | None = None
    status_tail: str | None = None
    job_url: str | None = None
    phases: tuple[tuple[str, datetime], ...] = ()

    def learn(self, outcome: ResultTable | UnreadableError) -> None:
        """Take over what a document says, whether it is complete or not."""
        self.query_status = outcome.query_status
        self.rows = outcome.rows if isinstance(outcome, UnreadableError) else len(outcome.rows)
        self.status_head, self.status_tail = outcome.statuses

    def elapsed(self, clock: Clock) -> float:
        """Seconds since it began."""
        return clock.monotonic() - self.started


def read_body(response: requests.Response, attempt: Attempt, *, clock: Clock, seconds: float) -> bytes:
    """The whole body of an answer, decoded of its content encoding.

    Parameters
    ----------
    response
        A streamed answer.
    attempt
        Learns how many bytes came.
    clock, seconds
        Time, and how much of it the attempt has from its beginning.

    Raises
    ------
    FailedError
        The body broke off, did not come in time, or is longer than :data:`MAX_BYTES`.
    """
    chunks: list[bytes] = []
    attempt.received = 0
    try:
        # read1 gives what is there; a read of a whole chunk could wait for ever on a trickle.
        while chunk := response.raw.read1(_CHUNK, decode_content=True):
            chunks.append(chunk)
            attempt.received += len(chunk)
            if attempt.elapsed(clock) > seconds:
                raise FailedError(
                    AnswerClass.TIMEOUT,
                    f"the answer was not whole after {seconds:g} s ({attempt.received} bytes came)",
                    transient=True,
                )
            if attempt.received > MAX_BYTES:
                raise FailedError(AnswerClass.OVERFLOW, f"the answer is longer than {MAX_BYTES} bytes")
    except (HTTPError, OSError) as error:
        raise _broken(error, attempt.received) from error
    return b"".join(chunks)


def http_failure(response: requests.Response, body: bytes, clock: Clock) -> FailedError:
    """What an HTTP status other than success means."""
    code = response.status_code
    said = error_message(body)
    message = f"HTTP {code}" + (f": {said}" if said else "")
    wait = retry_after(response.headers.get("Retry-After"), clock)
    if code == requests.codes.too_many_requests or (code in {400, 503} and is_busy(excerpt(body))):
        return FailedError(AnswerClass.REFUSED, message, transient=True, retry_after=wait)
    if code in {401, 403}:
        return FailedError(
            AnswerClass.REFUSED,
            message,
            retry=Retry.NEVER,
            hint="The archive wants credentials, or does not let this machine in.",
        )
    if code >= 500:
        return FailedError(AnswerClass.UNAVAILABLE, message, transient=True, retry_after=wait)
    if code >= 400:
        return FailedError(AnswerClass.ERROR, message, retry=Retry.NEVER)
    return FailedError(AnswerClass.MALFORMED, message)


def unreadable(error: UnreadableError, response: requests.Response, clock: Clock) -> FailedError:
    """What a document that is no complete answer means; a busy service says so in one, too."""
    if error.answer is AnswerClass.ERROR and error.rows == 0 and is_busy(error.message):
        wait = retry_after(response.headers.get("Retry-After"), clock)
        return FailedError(AnswerClass.REFUSED, error.message, transient=True, retry_after=wait)
    return FailedError(error.answer, error.message)


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
    if not isinstance(error, FailedError) or not error.transient:
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


def not_sent(error: requests.RequestException) -> FailedError:
    """A request that got no answer at all."""
    reason = root_cause(error)
    if isinstance(error, requests.Timeout) and not isinstance(error, requests.ConnectTimeout):
        return FailedError(AnswerClass.TIMEOUT, f"no answer in time: {reason}", transient=True)
    # A certificate does not get better in seconds.
    transient = isinstance(error, requests.ConnectionError) and not isinstance(
        error, requests.exceptions.SSLError
    )
    return FailedError(AnswerClass.UNAVAILABLE, f"no answer: {reason}", transient=transient)


def _broken(error: Exception, received: int) -> FailedError:
    """An answer whose body stopped coming."""
    if isinstance(error, ReadTimeoutError | TimeoutError):
        return FailedError(AnswerClass.TIMEOUT, f"the answer stopped after {received} bytes", transient=True)
    return FailedError(
        AnswerClass.MALFORMED,
        f"the answer broke off after {received} bytes: {root_cause(error)}",
        transient=True,
    )


def is_busy(message: str) -> bool:
    """Whether a service's message says that it is busy, as TAPLib's do."""
    lowered = message.lower()
    return any(text in lowered for text in _BUSY)


def root_cause(error: BaseException) -> str:
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
