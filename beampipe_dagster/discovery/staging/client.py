"""The client of CASDA's data staging: login, DataLink, and jobs of its SODA service.

The steps are those of CASDA's public interface: HTTP basic authentication at the login URL, a DataLink document
for each file (with the token that carries the user's rights), ``POST accessURL?ID=token&ID=token``, ``phase=RUN``,
and then the job's document until it has ended (UWS 1.1, SODA 1.0 section 2.2). Reads are repeated after a passing
failure; the creation of a job never is. Nothing that leaves here shows a URL's query.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import Final
from urllib.parse import urljoin, urlsplit

import requests
from urllib3.exceptions import HTTPError, NewConnectionError

from beampipe_dagster.clock import Clock
from beampipe_dagster.discovery.staging.credentials import Credentials
from beampipe_dagster.discovery.staging.datalink import NO_ACCESS, StagingLink, read_datalink
from beampipe_dagster.discovery.staging.redaction import hidden, place
from beampipe_dagster.discovery.staging.results import (
    Job,
    JobRef,
    JobResult,
    read_job,
    read_jobs,
    read_results,
)
from beampipe_dagster.errors import ArchiveError, ConfigError, Retry

READ_ATTEMPTS: Final = 3
MAX_BYTES: Final = 20_000_000
LOGIN_REFUSED: Final = "staging_login_refused"
JOB_GONE: Final = "staging_job_gone"
UNCERTAIN: Final = "staging_create_uncertain"

_FIRST_WAIT_SECONDS: Final = 1.0
_LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})
_NOT_LOGGED_IN: Final = frozenset({401, 403})


class StagingClient:
    """Talks to the archive as one user; belongs to one thread.

    Parameters
    ----------
    credentials
        Gives them when they are needed; they are sent to the login URL's own server and nowhere else.
    login_url
        Where HTTP basic authentication is checked (``CASDA_LOGIN_URL``).
    timeout_seconds
        Longest wait for a connection and between two pieces of an answer.

    Raises
    ------
    ConfigError
        ``staging_login_insecure``: the password would go over the network in clear text.
    """

    def __init__(
        self,
        *,
        credentials: Callable[[], Credentials],
        login_url: str,
        clock: Clock,
        timeout_seconds: float = 60.0,
        session: requests.Session | None = None,
    ) -> None:
        parts = urlsplit(login_url)
        if parts.scheme != "https" and parts.hostname not in _LOOPBACK:
            raise ConfigError(
                f"CASDA_LOGIN_URL {place(login_url)} would send the password in clear text",
                code="staging_login_insecure",
                hint="give an https:// URL",
            )
        self._credentials = credentials
        self._login_url = login_url
        self._timeout = timeout_seconds
        self._clock = clock
        self._session = session or requests.Session()
        self._logged_in = False

    @property
    def login_url(self) -> str:
        """Where it logs in."""
        return self._login_url

    def login(self) -> None:
        """Log in, once for this client; the cookies are kept in memory.

        Raises
        ------
        ArchiveError
            ``staging_login_refused``, or the service is away.
        ConfigError
            There are no credentials.
        """
        if self._logged_in:
            return
        who = self._credentials()
        response = self._read("login", self._login_url, auth=(who.username, who.password))
        if response.status_code in _NOT_LOGGED_IN:
            raise ArchiveError(
                f"{place(self._login_url)} refuses the user {who.username!r}: {_said(response)}",
                code=LOGIN_REFUSED,
                hint="correct CASDA_USERNAME and CASDA_PASSWORD; it is not tried again at once, because archives "
                "lock accounts after some wrong passwords",
            )
        _must_be_ok(response, "login", self._login_url)
        self._logged_in = True

    def link(self, access_url: str, *, name: str) -> StagingLink:
        """Where and as what a file can be staged.

        A session that the archive has forgotten is renewed once.

        Raises
        ------
        ArchiveError
            As :func:`~beampipe_dagster.discovery.staging.datalink.read_datalink`, or what :meth:`login` raises.
        """
        self.login()
        response = self._read("datalink", access_url, auth=self._auth_for(access_url))
        if response.status_code == HTTPStatus.UNAUTHORIZED:
            self._logged_in = False
            self.login()
            response = self._read("datalink", access_url, auth=self._auth_for(access_url))
        if response.status_code in _NOT_LOGGED_IN:
            raise ArchiveError(
                f"the archive does not let this user have {name}: {_said(response)}",
                code=NO_ACCESS,
                retry=Retry.NEVER,
                hint="ask the archive for access to the project's data, or leave the scheduling block out",
            )
        _must_be_ok(response, "datalink", access_url)
        return read_datalink(response.content, name=name)

    def create(self, service_url: str, tokens: Sequence[str]) -> str:
        """Create a job, which does not run yet; its URL.

        Raises
        ------
        ArchiveError
            ``staging_create_uncertain`` (``AFTER_RECONCILE``): there may be a job now; ``staging_no_access``;
            ``staging_create_refused``; ``staging_unavailable``: nothing was created.
        """
        try:
            response = self._session.post(
                service_url,
                params=[("ID", token) for token in tokens],
                auth=_nobody,
                timeout=self._timeout,
                allow_redirects=False,
            )
        except requests.RequestException as error:
            if _never_sent(error):
                raise _away("create", service_url, error) from error
            raise _uncertain(service_url, _cause(error)) from error
        status = response.status_code
        if status in {301, 302, 303, 307, 308} and response.headers.get("Location"):
            return _job_url(urljoin(service_url, response.headers["Location"]), service_url)
        if response.ok:
            return self._named_in(response, service_url)
        said = _said(response)
        if "do not have access" in said.lower():
            raise ArchiveError(
                f"CASDA create failed: {said}",
                code=NO_ACCESS,
                retry=Retry.NEVER,
                hint="ask the archive for access to the project's data, or leave the scheduling block out",
            )
        if status == HTTPStatus.TOO_MANY_REQUESTS:
            raise _http_error(response, "create", service_url)
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            raise _uncertain(service_url, f"HTTP {status} {response.reason}: {said}")
        raise ArchiveError(
            f"CASDA create failed: HTTP {status} {response.reason}: {said}",
            code="staging_create_refused",
            retry=Retry.NEVER,
            hint="nothing was created; see the archive's own message",
        )

    def run(self, job_url: str) -> None:
        """Let a job run; saying it again changes nothing (UWS 1.1 section 2.2.3.5).

        Raises
        ------
        ArchiveError
            The service is away or refuses; whether the job runs is for its document to say.
        """
        try:
            response = self._session.post(
                f"{job_url}/phase",
                data={"phase": "RUN"},
                auth=_nobody,
                timeout=self._timeout,
                allow_redirects=False,
            )
        except requests.RequestException as error:
            raise _away("run", job_url, error) from error
        if response.status_code >= HTTPStatus.BAD_REQUEST:
            raise _http_error(response, "run", job_url)

    def job(self, job_url: str) -> Job:
        """A job's document.

        Raises
        ------
        ArchiveError
            ``staging_job_gone``: the archive does not know the job (any more); or the service is away.
        """
        return read_job(self._document("poll", job_url), name=place(job_url))

    def results(self, job_url: str) -> tuple[JobResult, ...]:
        """A job's results; their URLs are as fresh as the archive makes them.

        Raises
        ------
        ArchiveError
            As :meth:`job`.
        """
        return read_results(self._document("results", f"{job_url}/results"), name=place(job_url))

    def jobs(self, service_url: str) -> tuple[JobRef, ...] | None:
        """The service's jobs, the newest first where it says when they were made; ``None`` without such a list.

        Raises
        ------
        ArchiveError
            The service is away.
        """
        response = self._read("list", service_url)
        if response.status_code >= HTTPStatus.INTERNAL_SERVER_ERROR:
            raise _http_error(response, "list", service_url)
        if not response.ok:
            return None
        try:
            found = read_jobs(response.content, name=place(service_url))
        except ArchiveError:
            return None
        dated = [one for one in found if one.created_at is not None]
        dated.sort(key=lambda one: one.created_at.timestamp() if one.created_at else 0.0, reverse=True)
        return (*dated, *(one for one in found if one.created_at is None))

    def close(self) -> None:
        """Close the kept connections."""
        self._session.close()

    def _auth_for(self, url: str) -> tuple[str, str] | None:
        """The password goes to the server that checks it, never to another one that a row names."""
        if _origin(url) != _origin(self._login_url):
            return None
        who = self._credentials()
        return who.username, who.password

    def _named_in(self, response: requests.Response, service_url: str) -> str:
        try:
            job_id = read_job(response.content, name=place(service_url)).job_id
        except ArchiveError as error:
            raise _uncertain(service_url, error.message) from error
        if not job_id:
            raise _uncertain(service_url, "the answer names no job")
        return f"{service_url.partition('?')[0].rstrip('/')}/{job_id}"

    def _document(self, operation: str, url: str) -> bytes:
        response = self._read(operation, url)
        if response.status_code == HTTPStatus.UNAUTHORIZED:  # CASDA's jobs are open to who knows their place
            self._logged_in = False
            self.login()
            response = self._read(operation, url, auth=self._auth_for(url))
        if response.status_code in {HTTPStatus.NOT_FOUND, HTTPStatus.GONE}:
            raise ArchiveError(
                f"the archive knows no job {place(url)} any more",
                code=JOB_GONE,
                hint="archives destroy jobs after some days; the files are staged again",
            )
        _must_be_ok(response, operation, url)
        return response.content

    def _read(self, operation: str, url: str, *, auth: tuple[str, str] | None = None) -> requests.Response:
        """GET, again after a passing failure."""
        for attempt in range(1, READ_ATTEMPTS + 1):
            last = attempt == READ_ATTEMPTS
            try:
                with self._session.get(
                    url, auth=auth or _nobody, timeout=self._timeout, stream=True
                ) as response:
                    body = response.raw.read(MAX_BYTES + 1, decode_content=True)
                    response._content = body  # noqa: SLF001  # requests has no bounded way to read
            except (requests.RequestException, HTTPError, OSError) as error:
                if last:
                    raise _away(operation, url, error) from error
            else:
                if len(body) > MAX_BYTES:
                    raise ArchiveError(
                        f"CASDA {operation} failed: {place(url)} answers more than {MAX_BYTES} bytes",
                        code="staging_answer_unreadable",
                    )
                if response.status_code < HTTPStatus.INTERNAL_SERVER_ERROR or last:
                    return response
            self._clock.sleep(_FIRST_WAIT_SECONDS * attempt)
        raise AssertionError  # pragma: no cover  # the loop returns or raises


def _nobody(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """No authentication: without this, a .netrc of the machine would decide who we are."""
    return request


def _must_be_ok(response: requests.Response, operation: str, url: str) -> None:
    if not response.ok:
        raise _http_error(response, operation, url)


def _http_error(response: requests.Response, operation: str, url: str) -> ArchiveError:
    passing = (
        response.status_code >= HTTPStatus.INTERNAL_SERVER_ERROR
        or response.status_code == HTTPStatus.TOO_MANY_REQUESTS
        or response.status_code in _NOT_LOGGED_IN
    )
    return ArchiveError(
        f"{failure_text(operation, response.status_code)} at {place(url)}: {_said(response)}",
        code="staging_unavailable" if passing else "staging_refused",
        retry=Retry.LATER if passing else Retry.NEVER,
        hint="it is tried again later" if passing else "see the archive's own message",
    )


def failure_text(operation: str, status: int) -> str:
    """What is said about an answer that is no success: ``CASDA poll failed: HTTP 502 Bad Gateway``."""
    try:
        reason = f" {HTTPStatus(status).phrase}"
    except ValueError:
        reason = ""
    return f"CASDA {operation} failed: HTTP {status}{reason}"


def _said(response: requests.Response) -> str:
    """The beginning of an answer's text, without markup and without queries of URLs."""
    text = response.content[:2000].decode("utf-8", errors="replace")
    plain = " ".join("".join(part.rpartition(">")[2] for part in text.split("<")).split())
    return hidden(plain)[:200] or "(nothing more)"


def _away(operation: str, url: str, error: Exception) -> ArchiveError:
    return ArchiveError(
        f"CASDA {operation} failed: {place(url)} cannot be reached: {_cause(error)}",
        code="staging_unavailable",
        hint="it is tried again later",
    )


def _uncertain(service_url: str, why: str) -> ArchiveError:
    return ArchiveError(
        f"whether {place(service_url)} has created a staging job is not known: {why}",
        code=UNCERTAIN,
        retry=Retry.AFTER_RECONCILE,
        hint="it is looked for in the service's list of jobs",
    )


def _cause(error: Exception) -> str:
    """The innermost reason; what clients say outside of it repeats the whole URL."""
    inner: BaseException = error
    while (deeper := inner.__cause__ or inner.__context__) is not None:
        inner = deeper
    return f"{type(inner).__name__}: {hidden(str(inner))[:200]}"


def _never_sent(error: Exception) -> bool:
    """Whether there was not even a connection."""
    if isinstance(error, requests.exceptions.ConnectTimeout):
        return True
    reason = getattr(error.args[0] if error.args else None, "reason", None)
    return isinstance(reason, NewConnectionError)


def _job_url(url: str, service_url: str) -> str:
    if not url.startswith(("http://", "https://")):
        raise _uncertain(service_url, "the answer leads to no job")
    return url.partition("?")[0].partition("#")[0].rstrip("/")


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port
