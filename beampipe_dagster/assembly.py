"""The platform put together: every service of one process, made from its settings.

Used by Dagster's side and by the command line, so that both do the same things in the same way.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Final

from beampipe_dagster.backends.provider import BackendProvider
from beampipe_dagster.clock import Clock, SystemClock
from beampipe_dagster.config.settings import Settings
from beampipe_dagster.discovery.archives import ArchiveProvider, TapArchives
from beampipe_dagster.discovery.service import DiscoveryService
from beampipe_dagster.execution.admission import AdmissionService
from beampipe_dagster.execution.graph_fetch import GraphFetcher
from beampipe_dagster.execution.launch import Launcher
from beampipe_dagster.execution.projects import ProjectService
from beampipe_dagster.execution.steps import ExecutionSteps
from beampipe_dagster.execution.submission import Submission
from beampipe_dagster.ids import Ids, UuidIds
from beampipe_dagster.ledger.engine import Ledger
from beampipe_dagster.ledger.migrate import migrate
from beampipe_dagster.poll.service import PollService
from beampipe_dagster.sources.registry import SourceRegistry

RELAUNCH_LEASES: Final = 2
"""Lease times after which a launch that did not begin counts as lost."""


@dataclass(frozen=True)
class Platform:
    """The services over one ledger; each is made when it is first asked for."""

    settings: Settings
    ledger: Ledger
    clock: Clock
    ids: Ids
    archives: ArchiveProvider

    @cached_property
    def backends(self) -> BackendProvider:
        """Clients of translators and managers."""
        return BackendProvider(clock=self.clock, tm_url=self.settings.tm_url)

    @cached_property
    def projects(self) -> ProjectService:
        """Surveys and profiles."""
        return ProjectService(
            ledger=self.ledger,
            clock=self.clock,
            ids=self.ids,
            home=self.settings.home,
            fetcher=GraphFetcher(allow_private=self.settings.allow_private_graph_urls),
        )

    @cached_property
    def registry(self) -> SourceRegistry:
        """Sources."""
        return SourceRegistry(ledger=self.ledger, clock=self.clock, ids=self.ids)

    @cached_property
    def discovery(self) -> DiscoveryService:
        """Claims and batches."""
        return DiscoveryService(
            ledger=self.ledger,
            clock=self.clock,
            ids=self.ids,
            archives=self.archives,
            source_concurrency=self.settings.source_concurrency,
            max_in_flight=self.settings.discovery_max_in_flight,
            max_batches_per_tick=self.settings.discovery_max_batches_per_tick,
            batching=self.settings.discovery_batching,
            lease_seconds=self.settings.lease_seconds,
            quarantine_after=self.settings.discovery_quarantine_after,
        )

    @cached_property
    def admission(self) -> AdmissionService:
        """What may run."""
        return AdmissionService(
            ledger=self.ledger,
            clock=self.clock,
            ids=self.ids,
            max_in_flight=self.settings.execution_max_in_flight,
        )

    @cached_property
    def launcher(self) -> Launcher:
        """What needs a run."""
        return Launcher(
            ledger=self.ledger,
            clock=self.clock,
            admission=self.admission,
            relaunch_seconds=self.settings.lease_seconds * RELAUNCH_LEASES,
        )

    @cached_property
    def steps(self) -> ExecutionSteps:
        """Manifest and graphs."""
        return ExecutionSteps(
            ledger=self.ledger,
            clock=self.clock,
            ids=self.ids,
            backends=self.backends,
            lease_seconds=self.settings.lease_seconds,
        )

    @cached_property
    def submission(self) -> Submission:
        """The deploy."""
        return Submission(steps=self.steps, deadline_seconds=float(self.settings.submission_timeout_seconds))

    @cached_property
    def poll(self) -> PollService:
        """Everything in flight."""
        return PollService(
            ledger=self.ledger,
            clock=self.clock,
            ids=self.ids,
            backends=self.backends,
            interval_seconds=self.settings.poll_interval_seconds,
            delete_sessions=self.settings.delete_sessions,
        )


def assemble(
    settings: Settings | None = None,
    *,
    clock: Clock | None = None,
    ids: Ids | None = None,
    archives: ArchiveProvider | None = None,
) -> Platform:
    """A platform on the ledger that the settings name, migrated where it has to be.

    Raises
    ------
    ConfigError
        A setting cannot be used.
    LedgerError
        The ledger cannot be reached or migrated.
    """
    settings = settings or Settings.from_env()
    clock = clock or SystemClock()
    ledger = Ledger(settings.database_url)
    migrate(ledger)
    return Platform(
        settings=settings,
        ledger=ledger,
        clock=clock,
        ids=ids or UuidIds(),
        archives=archives or TapArchives(urls=settings.archive_urls, clock=clock),
    )
