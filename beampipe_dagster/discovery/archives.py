"""From the name of an adapter in a survey's YAML to the archive that it means; one client an archive and process."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Protocol

from beampipe_dagster.clock import Clock
from beampipe_dagster.config.project import ProjectConfig
from beampipe_dagster.discovery.archive import Archive
from beampipe_dagster.discovery.tap import TapArchive
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


class TapArchives:
    """TAP services, by the project's own URL or else by the process's settings.

    Parameters
    ----------
    urls
        TAP base URL by adapter name (``BEAMPIPE_<NAME>_TAP_URL``).
    """

    def __init__(self, *, urls: Mapping[str, str], clock: Clock) -> None:
        self._urls = dict(urls)
        self._clock = clock
        self._lock = threading.Lock()
        self._clients: dict[tuple[str, str, float, int], TapArchive] = {}

    def get(self, config: ProjectConfig, adapter: str) -> Archive:
        """See :class:`ArchiveProvider`."""
        own = getattr(config.adapters, f"{adapter}_tap_url", None)
        url = own or self._urls.get(adapter.lower())
        if not url:
            raise ConfigError(
                f"no TAP service is configured for the adapter {adapter!r}",
                code="archive_not_configured",
                hint=f"set BEAMPIPE_{adapter.upper()}_TAP_URL, or adapters.{adapter}_tap_url in the project",
            )
        limits = config.adapters.tap
        key = (adapter, url, float(limits.timeout_seconds), limits.retries)
        with self._lock:
            if key not in self._clients:
                self._clients[key] = TapArchive(
                    adapter=adapter,
                    url=url,
                    timeout_seconds=float(limits.timeout_seconds),
                    retries=limits.retries,
                    clock=self._clock,
                )
            return self._clients[key]
