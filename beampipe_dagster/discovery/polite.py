"""Archives behind their gates: the port as it is, asked politely.

A synchronous query holds one permit from its first request to its answer, its own repetitions among them. A job
(an asynchronous query) may last for hours, so each of its HTTP requests takes a permit of its own until the head of
the response is there. Availability and capabilities are small documents that are rarely asked for, and they are
asked for when nothing else is: they need no permit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

import requests
from sqlalchemy.engine import Connection

from beampipe_dagster.clock import Clock
from beampipe_dagster.config.project import ProjectConfig
from beampipe_dagster.config.settings import ArchiveLimits
from beampipe_dagster.discovery.archive import (
    DEFAULT_MAXREC,
    Answer,
    AnswerClass,
    Archive,
    TapCapabilities,
    Upload,
)
from beampipe_dagster.discovery.archives import ArchiveProvider
from beampipe_dagster.discovery.gate import ArchiveGate, Permit, Use, archive_key
from beampipe_dagster.discovery.tap_session import retry_after
from beampipe_dagster.discovery.traffic import traffic
from beampipe_dagster.errors import ArchiveError, ConfigError, Retry
from beampipe_dagster.ledger import gates
from beampipe_dagster.ledger.circuits import Outcome
from beampipe_dagster.ledger.gates import ArchiveRow, User

PROBE: Final = "SELECT TOP 1 table_name FROM TAP_SCHEMA.tables"
"""What is asked to find out whether an archive answers: every TAP service has this table (TAP 1.1 section 4)."""

_OUTCOMES: Final = {
    AnswerClass.COMPLETE: Outcome.ANSWERED,
    AnswerClass.OVERFLOW: Outcome.ANSWERED,
    AnswerClass.ERROR: Outcome.ANSWERED,
    AnswerClass.MALFORMED: Outcome.UNCLEAR,
    AnswerClass.TIMEOUT: Outcome.AWAY,
    AnswerClass.REFUSED: Outcome.AWAY,
    AnswerClass.UNAVAILABLE: Outcome.AWAY,
}
_OUTCOME_OF: Final = {f"archive_{answer.value}": outcome for answer, outcome in _OUTCOMES.items()}
_QUIET: Final = frozenset({requests.codes.too_many_requests, requests.codes.service_unavailable})


def outcome_of(error: ArchiveError) -> Outcome:
    """What a query's error says about the archive.

    One that does not let us in is there, and may let others in: that says nothing for everybody.
    """
    outcome = _OUTCOME_OF.get(error.code, Outcome.NOTHING)
    refused_for_good = outcome is Outcome.AWAY and error.retry is Retry.NEVER
    return Outcome.NOTHING if refused_for_good else outcome


class _Gated:
    """What both kinds of traffic do with responses."""

    def __init__(self, gate: ArchiveGate, use: Use, clock: Clock) -> None:
        self._gate = gate
        self._use = use
        self._clock = clock

    def saw(self, response: requests.Response) -> None:
        """Let everybody wait when the archive asks for it."""
        if response.status_code not in _QUIET:
            return
        seconds = retry_after(response.headers.get("Retry-After"), self._clock)
        if seconds:
            self._gate.pause(self._use, seconds)


class _OfQuery(_Gated):
    """The requests of a query, which has a permit for all of them."""

    def __init__(self, gate: ArchiveGate, use: Use, clock: Clock) -> None:
        super().__init__(gate, use, clock)
        self._repeated = False

    @contextmanager
    def request(self) -> Iterator[None]:
        """Let it through; a repetition waits when the archive has asked somebody for quiet."""
        if self._repeated:
            self._gate.wait_for_pause(self._use)
        self._repeated = True
        yield


class _OfJob(_Gated):
    """The requests of a job, with a permit each."""

    def __init__(self, gate: ArchiveGate, use: Use, clock: Clock) -> None:
        super().__init__(gate, use, clock)
        self._status = 0

    @contextmanager
    def request(self) -> Iterator[None]:
        """Wait for a permit."""
        with self._gate.permit(self._use) as permit:
            try:
                yield
            except requests.RequestException as error:
                permit.failed(Outcome.AWAY, code="archive_unavailable", message=f"no answer: {error}")
                raise
            status = self._status
            if status >= requests.codes.server_error or status == requests.codes.too_many_requests:
                permit.failed(Outcome.AWAY, code="archive_unavailable", message=f"HTTP {status}")
            else:
                permit.answered()

    def saw(self, response: requests.Response) -> None:
        """Keep the status."""
        self._status = response.status_code
        super().saw(response)


@dataclass(frozen=True)
class PoliteArchive:
    """An archive that is asked through its gate.

    Parameters
    ----------
    archive
        The archive itself.
    """

    archive: Archive
    gate: ArchiveGate
    use: Use
    clock: Clock

    def query(self, adql: str, *, maxrec: int = DEFAULT_MAXREC, upload: Upload | None = None) -> Answer:
        """See :class:`~beampipe_dagster.discovery.archive.Archive`.

        Raises
        ------
        ArchiveError
            Also ``archive_circuit_open`` and ``archive_gate_timeout``: the archive was not asked.
        """
        with self.gate.permit(self.use) as permit:
            return self._asked(permit, adql, maxrec, upload)

    def query_async(self, adql: str, *, maxrec: int = DEFAULT_MAXREC, upload: Upload | None = None) -> Answer:
        """See :class:`~beampipe_dagster.discovery.archive.Archive`; a permit for each request of the job."""
        with traffic(_OfJob(self.gate, self.use, self.clock)):
            return self.archive.query_async(adql, maxrec=maxrec, upload=upload)

    def capabilities(self) -> TapCapabilities:
        """See :class:`~beampipe_dagster.discovery.archive.Archive`."""
        return self.archive.capabilities()

    def availability(self) -> tuple[bool, str]:
        """See :class:`~beampipe_dagster.discovery.archive.Archive`."""
        return self.archive.availability()

    def probe(self) -> None:
        """Find out whether the archive answers, also while its circuit is open; its answer closes the circuit.

        Raises
        ------
        ArchiveError
            It does not; or somebody else is finding out.
        """
        with self.gate.permit(self.use, force_probe=True) as permit:
            self._asked(permit, PROBE, 2, None)

    def _asked(self, permit: Permit, adql: str, maxrec: int, upload: Upload | None) -> Answer:
        began = self.clock.monotonic()
        try:
            with traffic(_OfQuery(self.gate, self.use, self.clock)):
                answer = self.archive.query(adql, maxrec=maxrec, upload=upload)
        except ArchiveError as error:
            outcome = outcome_of(error)
            if outcome is Outcome.ANSWERED:
                permit.answered()
            else:
                permit.failed(outcome, code=error.code, message=error.message)
            raise
        permit.answered(self.clock.monotonic() - began)
        return answer


@dataclass
class PoliteArchives:
    """Archives, each behind its gate.

    Parameters
    ----------
    archives
        Where they come from.
    url_of
        The TAP base URL behind an adapter's name; raises ConfigError where there is none.
    gate
        Who gives permits.
    limits
        How fast an archive is asked, by the adapter's lower-case name.
    default_limits
        How fast all others.
    """

    archives: ArchiveProvider
    url_of: Callable[[ProjectConfig, str], str]
    gate: ArchiveGate
    clock: Clock
    limits: Mapping[str, ArchiveLimits] = field(default_factory=dict)
    default_limits: ArchiveLimits = field(default_factory=ArchiveLimits)

    def get(self, config: ProjectConfig, adapter: str) -> PoliteArchive:
        """See :class:`~beampipe_dagster.discovery.archives.ArchiveProvider`.

        Raises
        ------
        ConfigError
            ``archive_not_configured``, ``invalid_tap_url``, or credentials that are missing.
        """
        archive = self.archives.get(config, adapter)
        return PoliteArchive(archive, self.gate, self.use_of(config, adapter), self.clock)

    def use_of(self, config: ProjectConfig, adapter: str) -> Use:
        """What the survey means by an adapter's name.

        Raises
        ------
        ConfigError
            ``archive_not_configured``, ``invalid_tap_url``.
        """
        url = self.url_of(config, adapter)
        user = User(config.metadata.id, adapter, archive_key(url))
        return Use(user, url, self.limits.get(adapter.lower(), self.default_limits))

    def shut_off(
        self, conn: Connection, config: ProjectConfig, adapters: Sequence[str]
    ) -> dict[str, ArchiveRow]:
        """Those of the survey's archives that no request would reach now, by name; nobody is asked.

        An archive that wants quiet for longer than a request waits is among them.
        """
        now, found = self.clock.now(), {}
        for adapter, row in gates.of_project(conn, config.metadata.id).items():
            if adapter not in adapters:
                continue
            try:
                same = row.key == self.use_of(config, adapter).key
            except ConfigError:
                continue
            quiet = row.pause_until is not None and (
                (row.pause_until - now).total_seconds() > self.gate.timeout_seconds
            )
            if same and (row.circuit.shut_off(now) or quiet):
                found[adapter] = row
        return found
