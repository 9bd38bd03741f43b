"""Dagster resources over the platform's services."""

from __future__ import annotations

import threading

import dagster as dg

from beampipe_dagster.assembly import Platform, assemble
from beampipe_dagster.config.settings import Settings

_LOCK = threading.Lock()
_PLATFORMS: dict[str, Platform] = {}
_FIXED: dict[str, Platform] = {}


class PlatformResource(dg.ConfigurableResource["PlatformResource"]):
    """The platform: ledger, archives, and the backends that executions are submitted to.

    Everything comes from environment variables (``BEAMPIPE_*``), so that no secret is ever part of run
    configuration. A process makes the platform once.
    """

    def get(self) -> Platform:
        """The process's platform."""
        settings = Settings.from_env()
        with _LOCK:
            if settings.database_url not in _PLATFORMS:
                _PLATFORMS[settings.database_url] = assemble(settings)
            return _PLATFORMS[settings.database_url]


class FixedPlatform(PlatformResource):
    """A platform that was made elsewhere; for tests and for embedding.

    Parameters
    ----------
    token
        Which one: Dagster makes a copy of a resource for each run, and only fields go with it.
    """

    token: str

    @classmethod
    def of(cls, platform: Platform) -> FixedPlatform:
        """A resource around ``platform``."""
        token = f"fixed-{id(platform)}"
        _FIXED[token] = platform
        return cls(token=token)

    def get(self) -> Platform:
        """The platform it was made with."""
        return _FIXED[self.token]
