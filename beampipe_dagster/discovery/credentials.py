"""Credentials of archives: from the environment or from files, and to one host only.

They live in a client's session and nowhere else: no message, log, evidence or ``repr`` has them.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from requests.auth import AuthBase, HTTPBasicAuth
from requests.sessions import SessionRedirectMixin

from beampipe_dagster.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import requests

MAX_FILE_BYTES: Final = 16 * 1024
"""Longest file with a password or a token."""
_REDIRECTS: Any = SessionRedirectMixin()  # it has no types


class BearerAuth(AuthBase):
    """A bearer token (RFC 6750) for each request."""

    def __init__(self, token: str) -> None:
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """Add the header."""
        request.headers["Authorization"] = f"Bearer {self._token}"
        return request

    def __repr__(self) -> str:
        return "BearerAuth(…)"


class OwnHostAuth(AuthBase):
    """Credentials that go to one service only, wherever its answers point to.

    A job's or a result's address may be on another host, which has no business with them; requests
    takes credentials off redirects, and knows nothing of addresses in documents.

    Parameters
    ----------
    auth
        The credentials.
    url
        The service's base URL.
    """

    def __init__(self, auth: AuthBase, url: str) -> None:
        self._auth = auth
        self._url = url

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """Add the credentials to a request to the service's own host."""
        # The same rule as for redirects: host and port, or the same host from http to https.
        if _REDIRECTS.should_strip_auth(self._url, request.url or ""):
            return request
        return self._auth(request)

    def __repr__(self) -> str:
        return f"OwnHostAuth({self._url!r})"


def archive_auth(adapter: str, environ: Mapping[str, str]) -> AuthBase | None:
    """The credentials that the environment has for an archive, if any.

    ``BEAMPIPE_<NAME>_TAP_TOKEN``, or ``BEAMPIPE_<NAME>_TAP_USERNAME`` with ``…_TAP_PASSWORD``; a
    token or password can be in a file instead, named by the same variable with ``_FILE``, which only
    its owner may read.

    Parameters
    ----------
    adapter
        Name of the archive in the project file.
    environ
        The variables.

    Raises
    ------
    ConfigError
        ``archive_credentials_missing``: a user without a password, or a file that is not there.
        ``archive_credentials_ambiguous``: more than one way at once.
        ``archive_credentials_exposed``: a file that others than its owner may read.
        ``archive_credentials_invalid``: a control character, or a file that is too long.
    """
    prefix = f"BEAMPIPE_{adapter.upper().replace('-', '_')}_TAP"
    token = _secret(environ, f"{prefix}_TOKEN")
    password = _secret(environ, f"{prefix}_PASSWORD")
    user = _checked(environ.get(f"{prefix}_USERNAME", "").strip(), f"{prefix}_USERNAME")
    if token and (user or password):
        raise _ambiguous(f"{prefix}_TOKEN and {prefix}_USERNAME or _PASSWORD")
    if token:
        return BearerAuth(token)
    if bool(user) != bool(password):
        given, missing = ("USERNAME", "PASSWORD") if user else ("PASSWORD", "USERNAME")
        raise ConfigError(
            f"{prefix}_{given} is set and {prefix}_{missing} is not",
            code="archive_credentials_missing",
            hint=f"set {prefix}_{missing} too, or neither",
        )
    return HTTPBasicAuth(user.encode(), password.encode()) if user else None


def _secret(environ: Mapping[str, str], name: str) -> str:
    """A secret from a variable or from the file that ``<name>_FILE`` names; ``""`` for none."""
    plain, file = environ.get(name, "").strip(), environ.get(f"{name}_FILE", "").strip()
    if plain and file:
        raise _ambiguous(f"{name} and {name}_FILE")
    return _checked(_from_file(Path(file), f"{name}_FILE") if file else plain, name)


def _from_file(path: Path, name: str) -> str:
    try:
        # Opened first and looked at then: what is checked is what is read.
        with path.open("rb") as opened:
            mode = os.fstat(opened.fileno()).st_mode
            if not stat.S_ISREG(mode) or mode & (stat.S_IRWXG | stat.S_IRWXO):
                raise ConfigError(
                    f"{name}: {path} is no file that only its owner may read",
                    code="archive_credentials_exposed",
                    hint=f"chmod 600 {path}",
                )
            content = opened.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(
            f"{name}: {path} cannot be read: {error.strerror or error}",
            code="archive_credentials_missing",
            hint=f"make the file, or unset {name}",
        ) from error
    text = content.decode(errors="replace").strip()
    if not text or len(content) > MAX_FILE_BYTES:
        raise ConfigError(
            f"{name}: {path} is empty or longer than {MAX_FILE_BYTES} bytes",
            code="archive_credentials_invalid",
            hint="put one line of text into the file",
        )
    return text


def _checked(value: str, name: str) -> str:
    if any(ord(char) < 32 or ord(char) == 127 for char in value):
        raise ConfigError(
            f"the value of {name} holds a control character",
            code="archive_credentials_invalid",
            hint=f"set {name} to one line of text",
        )
    return value


def _ambiguous(names: str) -> ConfigError:
    return ConfigError(
        f"{names} are set at the same time",
        code="archive_credentials_ambiguous",
        hint="set one of them",
    )
