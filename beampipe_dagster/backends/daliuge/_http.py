"""One HTTP service of DALiuGE: explicit timeouts, errors of this project, answers by content."""

from __future__ import annotations

import re
import ssl
from collections.abc import Mapping

import httpx

from beampipe_dagster.config.canonical import JsonValue, parse_json
from beampipe_dagster.errors import BackendUnavailableError, BeampipeError, ConfigError

_EXCERPT = 300
_SHOWN = 120
_TAGS = re.compile(r"<(?:style|script)\b.*?</(?:style|script)>|<[^>]*>", re.DOTALL | re.IGNORECASE)
# Raised before one byte of the request was sent.
_NOT_SENT = (
    httpx.ConnectError,
    httpx.ConnectTimeout,
    httpx.PoolTimeout,
    httpx.ProxyError,
    httpx.UnsupportedProtocol,
)


class Service:
    """A service at a base URL.

    Parameters
    ----------
    name
        What messages call it.
    url
        Base URL, ``http`` or ``https``, without a path of its own being required.
    connect_seconds
        Limit for the connection.
    verify
        Whether certificates are checked, or the context to check them with.
    client
        A client to use instead of an own one; it is not closed here.
    headers
        Header fields of every request, for example what lets in; never shown.

    Raises
    ------
    ConfigError
        ``invalid_url``: not an absolute HTTP URL.
    """

    def __init__(
        self,
        *,
        name: str,
        url: str,
        connect_seconds: float,
        verify: bool | ssl.SSLContext,
        client: httpx.Client | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.url = _checked(url, name)
        self._connect_seconds = connect_seconds
        self._owned = client is None
        self._headers = dict(headers or {})
        if self.url.startswith("http:"):
            verify = False  # nothing to check, and loading the certificates takes a while
        # Both services end connections without notice: a kept one may be dead when it is used.
        self._client = client or httpx.Client(verify=verify, headers={"Connection": "close"})

    def close(self) -> None:
        """Close an own client."""
        if self._owned:
            self._client.close()

    def send(
        self,
        method: str,
        path: str,
        *,
        seconds: float,
        json: object = None,
        form: Mapping[str, str | int] | None = None,
    ) -> httpx.Response:
        """Send one request, once.

        Parameters
        ----------
        method, path
            What to ask for.
        seconds
            Limit for each wait for the service to read or write.
        json, form
            The body, at most one of them.

        Raises
        ------
        BackendUnavailableError
            ``backend_unreachable``: not sent at all; ``backend_no_answer``: sent, and it may have
            been done. ``details["sent"]`` tells which.
        """
        timeout = httpx.Timeout(seconds, connect=self._connect_seconds)
        headers = {**self._headers, "Connection": "close"}
        try:
            return self._client.request(
                method, self.url + path, timeout=timeout, headers=headers, json=json, data=form
            )
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError) as error:
            sent = not isinstance(error, (*_NOT_SENT, httpx.InvalidURL))
            reason = str(error) or type(error).__name__
            state = "did not answer" if sent else "cannot be reached"
            raise BackendUnavailableError(
                f"the {self.name} at {self.url} {state} ({method} {path}): {reason}",
                code="backend_no_answer" if sent else "backend_unreachable",
                hint=f"See that the {self.name} runs at {self.url} and is not overloaded.",
                details={"url": self.url, "path": path, "sent": sent},
            ) from error

    def nonsense(self, response: httpx.Response) -> BackendUnavailableError:
        """The error for an answer that this service would not give; it shows how the answer begins."""
        request = response.request
        said = plain_text(response.text)
        shown = f": {said[:_SHOWN]}{'...' if len(said) > _SHOWN else ''}" if said else ""
        refused = response.status_code in {401, 403, 407}
        return BackendUnavailableError(
            f"{request.method} {request.url.path} at {self.url} answered {response.status_code} "
            f"with something that is no answer of a DALiuGE {self.name}{shown}",
            code="backend_not_authorised" if refused else "backend_nonsense",
            hint=(
                f"See that BEAMPIPE_DALIUGE_AUTH_HEADER lets in at {self.url}."
                if refused
                else f"See that {self.url} is a {self.name} and that no proxy answers for it."
            ),
            details={
                "url": self.url,
                "path": request.url.path,
                "status": response.status_code,
                "answer": said[:_EXCERPT],
                "sent": True,
            },
        )


def plain_text(answer: str) -> str:
    """The words of an answer, without the tags of a page, on one line."""
    return " ".join(_TAGS.sub(" ", answer[:20_000]).split())


def json_of(response: httpx.Response) -> tuple[bool, JsonValue]:
    """Whether an answer is JSON, whatever it says its type is, and the value."""
    try:
        return True, parse_json(response.content)
    except BeampipeError:
        return False, None


def _checked(url: str, name: str) -> str:
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        parsed = httpx.URL("")
    if parsed.scheme not in {"http", "https"} or not parsed.host:
        raise ConfigError(
            f"the URL of the {name} is not an absolute HTTP URL: {url!r}",
            code="invalid_url",
            hint="Write it as http://host:port.",
        )
    return url.rstrip("/")
