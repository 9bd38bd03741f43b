"""From a deployment profile to the clients that speak to its services; one client a target and process."""

from __future__ import annotations

import threading

from beampipe_dagster.backends.base import Backend
from beampipe_dagster.backends.daliuge.access import Access
from beampipe_dagster.backends.daliuge.manager import IslandManager, manager_url
from beampipe_dagster.backends.daliuge.rest import RestBackend
from beampipe_dagster.backends.daliuge.translator import Translator
from beampipe_dagster.clock import Clock
from beampipe_dagster.config.profile import DeploymentProfile, RestRemote
from beampipe_dagster.errors import ConfigError


class BackendProvider:
    """Makes and keeps clients.

    Parameters
    ----------
    clock
        For waits between two looks at a finished session.
    tm_url
        The translator where a profile names none.
    access
        What lets in, and what certificates are checked by.
    """

    def __init__(self, *, clock: Clock, tm_url: str | None = None, access: Access | None = None) -> None:
        self._clock = clock
        self._access = access or Access()
        self._tm_url = tm_url
        self._lock = threading.Lock()
        self._translators: dict[tuple[str, bool], Translator] = {}
        self._backends: dict[tuple[str, bool], Backend] = {}

    def translator(self, profile: DeploymentProfile) -> Translator:
        """The profile's translator.

        Raises
        ------
        ConfigError
            ``translator_not_configured``.
        """
        url = profile.translation.tm_url or self._tm_url
        if not url:
            raise ConfigError(
                f"profile {profile.name!r} names no translator",
                code="translator_not_configured",
                hint="give translation.tm_url in the profile, or set BEAMPIPE_TM_URL",
            )
        verify = profile.deployment.verify_ssl is not False
        with self._lock:
            key = (url, verify)
            if key not in self._translators:
                self._translators[key] = Translator(
                    url=url,
                    verify=self._access.verification(verify=verify),
                    headers=self._access.headers,
                )
            return self._translators[key]

    def backend(self, profile: DeploymentProfile) -> Backend:
        """The profile's backend.

        Raises
        ------
        ConfigError
            ``backend_unsupported``: a kind of deployment that this version cannot submit to.
        """
        target = profile.deployment
        if not isinstance(target, RestRemote):
            raise ConfigError(
                f"profile {profile.name!r} deploys to {target.kind}",
                code="backend_unsupported",
                hint="this version submits to a DALiuGE island manager: use kind rest_remote",
            )
        if not target.deploy_host:
            raise ConfigError(
                f"profile {profile.name!r} names no host to deploy to",
                code="manager_not_configured",
                hint="give deployment.deploy_host in the profile",
            )
        url = manager_url(target.deploy_host, target.deploy_port, https=target.use_https)
        with self._lock:
            key = (url, target.verify_ssl)
            if key not in self._backends:
                self._backends[key] = RestBackend(
                    manager=IslandManager(
                        url=url,
                        verify=self._access.verification(verify=target.verify_ssl),
                        headers=self._access.headers,
                    ),
                    clock=self._clock,
                    verify_ssl=target.verify_ssl,
                )
            return self._backends[key]
