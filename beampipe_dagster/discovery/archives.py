"""From the name of an adapter in a survey's YAML to the archive that it means; one client an archive and process."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from requests.auth import AuthBase, HTTPBasicAuth

from beampipe_dagster.clock import Clock
from beampipe_dagster.config.project import AuthEnv, ProjectConfig
from beampipe_dagster.discovery.archive import DEFAULT_MAXREC, Answer, Archive, TapCapabilities, Upload
from beampipe_dagster.discovery.credentials import BearerAuth, OwnHostAuth, archive_auth
from beampipe_dagster.discovery.job_store import JobStore
from beampipe_dagster.discovery.tap import TapArchive
from beampipe_dagster.discovery.traffic import PoliteSession
from beampipe_dagster.errors import ConfigError


class ArchiveProvider(Protocol):
    """What discovery asks for an archive."""

    def get(self, config: ProjectConfig, adapter: str) -> Archive:
        """The archive behind an adapter's name.

        Raises
        ------
        ConfigError
            ``archive_not_configured``.
        """
        ...


@dataclass(frozen=True, slots=True)
class LimitedArchive:
    """An archive with a row limit of its own: no query asks for more rows than it gives out.

    As many rows as the limit count as an overflow, as everywhere.
    """

    archive: Archive
    maxrec: int

    def query(self, adql: str, *, maxrec: int = DEFAULT_MAXREC, upload: Upload | None = None) -> Answer:
        """See :class:`~beampipe_dagster.discovery.archive.Archive`."""
        return self.archive.query(adql, maxrec=min(maxrec, self.maxrec), upload=upload)

    def query_async(self, adql: str, *, maxrec: int = DEFAULT_MAXREC, upload: Upload | None = None) -> Answer:
        """See :class:`~beampipe_dagster.discovery.archive.Archive`."""
        return self.archive.query_async(adql, maxrec=min(maxrec, self.maxrec), upload=upload)

    def capabilities(self) -> TapCapabilities:
        """What the archive says, with this limit as its hard one where that is lower."""
        found = self.archive.capabilities()
        hard = self.maxrec if found.hard_maxrec is None else min(found.hard_maxrec, self.maxrec)
        return replace(found, hard_maxrec=hard)

    def availability(self) -> tuple[bool, str]:
        """See :class:`~beampipe_dagster.discovery.archive.Archive`."""
        return self.archive.availability()


class TapArchives:
    """TAP services: by the project's own definition or URL, or else by the process's settings.

    Parameters
    ----------
    urls
        TAP base URL by adapter name (``BEAMPIPE_<NAME>_TAP_URL``).
    clock
        Time.
    environ
        Where a definition's credentials are looked up by name; by default the process's environment.
        They stay in the client's session: neither messages nor the ledger have them.
    jobs
        Where asynchronous queries are remembered; by default in this process only.
    """

    def __init__(
        self,
        *,
        urls: Mapping[str, str],
        clock: Clock,
        environ: Mapping[str, str] | None = None,
        jobs: JobStore | None = None,
    ) -> None:
        self._jobs = jobs
        self._urls = dict(urls)
        self._clock = clock
        self._environ = os.environ if environ is None else environ
        self._lock = threading.Lock()
        self._clients: dict[tuple[object, ...], Archive] = {}

    def get(self, config: ProjectConfig, adapter: str) -> Archive:
        """See :class:`ArchiveProvider`.

        Raises
        ------
        ConfigError
            ``archive_not_configured``, ``archive_credentials_missing``.
        """
        url = self.url_of(config, adapter)
        defined = config.adapters.definitions.get(adapter)
        limits = config.adapters.tap
        timeout = float((defined.timeout_seconds if defined else None) or limits.timeout_seconds)
        auth = self._auth(adapter, defined.auth_env if defined else None)
        maxrec = defined.maxrec if defined else None
        key = (adapter, url, timeout, limits.retries, maxrec, defined.auth_env if defined else None)
        with self._lock:
            if key not in self._clients:
                self._clients[key] = self._client(adapter, url, timeout, limits.retries, auth, maxrec)
            return self._clients[key]

    def url_of(self, config: ProjectConfig, adapter: str) -> str:
        """The TAP base URL behind an adapter's name, as it was given.

        Raises
        ------
        ConfigError
            ``archive_not_configured``.
        """
        defined = config.adapters.definitions.get(adapter)
        own = defined.tap_url if defined else getattr(config.adapters, f"{adapter}_tap_url", None)
        url = own or self._urls.get(adapter.lower())
        if not url:
            raise ConfigError(
                f"no TAP service is configured for the adapter {adapter!r}",
                code="archive_not_configured",
                hint=f"set BEAMPIPE_{adapter.upper()}_TAP_URL, or adapters.definitions.{adapter} in the project",
            )
        return url

    def _client(
        self,
        adapter: str,
        url: str,
        timeout: float,
        retries: int,
        auth: AuthBase | None,
        maxrec: int | None,
    ) -> Archive:
        session = PoliteSession(timeout_seconds=timeout)
        if auth is not None:
            session.auth = OwnHostAuth(auth, url)
        archive = TapArchive(
            adapter=adapter,
            url=url,
            timeout_seconds=timeout,
            retries=retries,
            clock=self._clock,
            session=session,
            jobs=self._jobs,
        )
        return archive if maxrec is None else LimitedArchive(archive, maxrec)

    def _auth(self, adapter: str, names: AuthEnv | None) -> AuthBase | None:
        if names is None:
            return archive_auth(adapter, self._environ)
        if names.token is not None:
            return BearerAuth(self._secret(adapter, names.token))
        user, password = (self._secret(adapter, name or "") for name in (names.user, names.password))
        return HTTPBasicAuth(user.encode(), password.encode())

    def _secret(self, adapter: str, name: str) -> str:
        value = self._environ.get(name, "").strip()
        if not value:
            raise ConfigError(
                f"the adapter {adapter!r} takes its credentials from {name}, which is not set",
                code="archive_credentials_missing",
                hint=f"set {name} in the environment of the processes that discover, and start them again",
            )
        if any(ord(char) < 32 or ord(char) == 127 for char in value):
            raise ConfigError(
                f"the credentials of the adapter {adapter!r} in {name} hold a control character",
                code="archive_credentials_missing",
                hint=f"set {name} to one line of text",
            )
        return value
