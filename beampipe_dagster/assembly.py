"""The platform put together: every service of one process, made from its settings.

Used by Dagster's side and by the command line, so that both do the same things in the same way.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

from beampipe_dagster.backends.base import Backend
from beampipe_dagster.backends.daliuge.access import Access
from beampipe_dagster.backends.provider import BackendProvider
from beampipe_dagster.clock import Clock, SystemClock
from beampipe_dagster.config.profile import DeploymentProfile
from beampipe_dagster.config.settings import Settings
from beampipe_dagster.discovery.archives import ArchiveProvider, TapArchives
from beampipe_dagster.discovery.gate import ArchiveGate
from beampipe_dagster.discovery.job_store import LedgerJobs
from beampipe_dagster.discovery.polite import PoliteArchives
from beampipe_dagster.discovery.retention import PartitionRetention
from beampipe_dagster.discovery.service import DiscoveryService
from beampipe_dagster.discovery.staging.client import StagingClient
from beampipe_dagster.discovery.staging.credentials import Credentials
from beampipe_dagster.discovery.staging.options import StagingOptions
from beampipe_dagster.discovery.staging.service import StagingService
from beampipe_dagster.discovery.watermark import WatermarkService
from beampipe_dagster.execution.admission import AdmissionService
from beampipe_dagster.execution.cancel import Cancelling
from beampipe_dagster.execution.graph_fetch import GraphFetcher
from beampipe_dagster.execution.holds import Holds
from beampipe_dagster.execution.launch import Launcher
from beampipe_dagster.execution.prepare import Preparation
from beampipe_dagster.execution.projects import ProjectService
from beampipe_dagster.execution.retry import RetryInPlace
from beampipe_dagster.execution.retry_policy import RetryPolicy
from beampipe_dagster.execution.staging import StagingStep
from beampipe_dagster.execution.steps import ExecutionSteps
from beampipe_dagster.execution.submission import Submission
from beampipe_dagster.execution.verification.service import VerificationService
from beampipe_dagster.ids import Ids, UuidIds
from beampipe_dagster.ledger.circuits import Rules
from beampipe_dagster.ledger.engine import Ledger
from beampipe_dagster.ledger.migrate import migrate
from beampipe_dagster.poll.service import PollService
from beampipe_dagster.sources.registry import SourceRegistry

if TYPE_CHECKING:
    from beampipe_dagster.backends.transport.ssh import SshPool

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
        access = Access.of(header=self.settings.daliuge_auth_header, ca_file=self.settings.daliuge_ca_file)
        return BackendProvider(clock=self.clock, tm_url=self.settings.tm_url, access=access)

    @cached_property
    def ssh(self) -> SshPool:
        """Connections to clusters' login nodes."""
        return ssh_pool(self.settings, ledger=self.ledger, clock=self.clock, ids=self.ids)

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
            vanish_recheck=timedelta(minutes=self.settings.discovery_vanish_recheck_minutes),
            queue_max_depth=self.settings.queue_max_depth,
            circuits=self.archives if isinstance(self.archives, PoliteArchives) else None,
        )

    @cached_property
    def watermarks(self) -> WatermarkService:
        """New rows, found for all sources of a survey at once."""
        return WatermarkService(ledger=self.ledger, clock=self.clock, ids=self.ids, archives=self.archives)

    @cached_property
    def retention(self) -> PartitionRetention:
        """Keys that leave Dagster's partitions."""
        return PartitionRetention(
            ledger=self.ledger,
            clock=self.clock,
            keep=timedelta(days=self.settings.partition_retention_days),
            live_keys=self.settings.partition_live_keys,
        )

    @cached_property
    def admission(self) -> AdmissionService:
        """What may run."""
        return AdmissionService(
            ledger=self.ledger,
            clock=self.clock,
            ids=self.ids,
            max_in_flight=self.settings.execution_max_in_flight,
            retry=RetryPolicy(
                self.settings.execution_retry_max_attempts,
                self.settings.execution_retry_first_delay_minutes,
                self.settings.execution_retry_factor,
            ),
            tick_seconds=self.settings.tick_interval_seconds,
        )

    @cached_property
    def preparation(self) -> Preparation:
        """What would run, without running it."""
        return Preparation(
            ledger=self.ledger, clock=self.clock, max_in_flight=self.settings.execution_max_in_flight
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
        return Submission(
            steps=self.steps,
            deadline_seconds=float(self.settings.submission_timeout_seconds),
            fill=self.staging.fill,
        )

    @cached_property
    def cancelling(self) -> Cancelling:
        """Cancellations."""
        return Cancelling(ledger=self.ledger, clock=self.clock, ids=self.ids, backend_of=self.backend_of)

    @cached_property
    def retry_in_place(self) -> RetryInPlace:
        """Failed executions that go on."""
        return RetryInPlace(ledger=self.ledger, clock=self.clock, ids=self.ids, backend_of=self.backend_of)

    @cached_property
    def holds(self) -> Holds:
        """What must not begin."""
        return Holds(ledger=self.ledger, clock=self.clock, ids=self.ids)

    def backend_of(self, snapshot: Mapping[str, Any]) -> Backend:
        """The backend of a profile as an execution keeps it."""
        return self.backends.backend(DeploymentProfile.from_snapshot(dict(snapshot)))

    @cached_property
    def staging(self) -> StagingStep:
        """Files that an archive brings online first."""
        settings = self.settings
        return StagingStep(
            steps=self.steps,
            service=StagingService(
                ledger=self.ledger,
                clock=self.clock,
                ids=self.ids,
                client=lambda: StagingClient(
                    credentials=Credentials.from_env, login_url=settings.casda_login_url, clock=self.clock
                ),
                options=StagingOptions(
                    by_sbid=settings.stage_by_sbid,
                    poll_seconds=settings.staging_poll_seconds,
                    patience_seconds=settings.staging_patience_seconds,
                    create_deadline_seconds=settings.staging_create_deadline_seconds,
                    min_validity_seconds=settings.staging_min_validity_seconds,
                ),
            ),
        )

    @cached_property
    def verification(self) -> VerificationService:
        """The products of executions."""
        return VerificationService(ledger=self.ledger, clock=self.clock, ids=self.ids)

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
            stuck_seconds=self.settings.poll_stuck_seconds,
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
    clock, ids = clock or SystemClock(), ids or UuidIds()
    ledger = Ledger(settings.database_url)
    migrate(ledger)
    return Platform(
        settings=settings,
        ledger=ledger,
        clock=clock,
        ids=ids,
        archives=archives or polite_archives(settings, ledger=ledger, clock=clock, ids=ids),
    )


def ssh_pool(
    settings: Settings,
    *,
    ledger: Ledger,
    clock: Clock | None = None,
    ids: Ids | None = None,
    environ: Mapping[str, str] | None = None,
) -> SshPool:
    """The connections of this process to clusters' login nodes.

    Parameters
    ----------
    environ
        Where credentials are looked up; by default the process's environment.
    """
    # asyncssh takes half a second to import, and few processes have a cluster to talk to.
    from beampipe_dagster.backends.transport.budget import Limits, SshBudget  # noqa: PLC0415  # see above
    from beampipe_dagster.backends.transport.credentials import CredentialStore  # noqa: PLC0415  # see above
    from beampipe_dagster.backends.transport.ssh import SshPool  # noqa: PLC0415  # see above
    from beampipe_dagster.backends.transport.target import Options  # noqa: PLC0415  # see above

    clock, ids = clock or SystemClock(), ids or UuidIds()
    limits = Limits(
        max_connections=settings.ssh_max_connections,
        commands_per_minute=float(settings.ssh_commands_per_minute),
    )
    return SshPool(
        credentials=CredentialStore(environ=environ),
        budget=SshBudget(
            ledger=ledger, clock=clock, ids=ids, limits=limits, ttl_seconds=settings.lease_seconds
        ),
        clock=clock,
        ids=ids,
        options=Options(idle_seconds=settings.ssh_idle_seconds),
    )


def polite_archives(
    settings: Settings,
    *,
    ledger: Ledger,
    clock: Clock,
    ids: Ids,
    environ: Mapping[str, str] | None = None,
    actor: str = "system",
) -> PoliteArchives:
    """The archives that surveys name, each behind its gate in the ledger.

    Parameters
    ----------
    environ
        Where credentials are looked up; by default the process's environment.
    actor
        On whose behalf they are asked.
    """
    services = TapArchives(
        urls=settings.archive_urls,
        clock=clock,
        environ=environ,
        jobs=LedgerJobs(ledger=ledger, clock=clock, ids=ids),
    )
    gate = ArchiveGate(
        ledger=ledger,
        clock=clock,
        ids=ids,
        rules=Rules(
            failures_to_open=settings.archive_failures_to_open,
            open_seconds=settings.archive_open_seconds,
            longest_open_seconds=settings.archive_longest_open_seconds,
        ),
        timeout_seconds=settings.archive_gate_timeout_seconds,
        ttl_seconds=settings.lease_seconds,
        actor=actor,
    )
    return PoliteArchives(
        archives=services,
        url_of=services.url_of,
        gate=gate,
        clock=clock,
        limits=settings.limits_by_archive,
        default_limits=settings.archive_limits,
    )
