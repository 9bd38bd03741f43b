"""The pool: commands on login nodes, over one connection a target and process, within the ledger's budget.

A command either ran and its exit status is known, or did not run, or nobody knows; each is said in its own way.
Only what certainly did not run is tried again here, once, over a new connection.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from beampipe_dagster.backends.transport import connection, failures
from beampipe_dagster.backends.transport.budget import SshBudget
from beampipe_dagster.backends.transport.connection import Link, NotStartedError
from beampipe_dagster.backends.transport.credentials import CredentialStore
from beampipe_dagster.backends.transport.failures import Failure
from beampipe_dagster.backends.transport.loop import LoopThread
from beampipe_dagster.backends.transport.target import Command, CommandResult, Kind, Options, SshTarget
from beampipe_dagster.clock import Clock
from beampipe_dagster.errors import BackendUnavailableError
from beampipe_dagster.ids import Ids
from beampipe_dagster.ledger.tables_slurm import SshState

T = TypeVar("T")
_SLACK: Final = 5.0


@dataclass(slots=True)
class _Held:
    """What this process holds of a target."""

    turns: threading.BoundedSemaphore
    lock: threading.Lock = field(default_factory=threading.Lock)
    link: Link | None = None
    token: str | None = None
    used_at: float = 0.0
    users: int = 0


class SshPool:
    """Runs commands.

    Parameters
    ----------
    credentials
        Asked at each new connection.
    budget
        Shared by all processes on the ledger.
    """

    def __init__(
        self,
        *,
        credentials: CredentialStore,
        budget: SshBudget,
        clock: Clock,
        ids: Ids,
        options: Options | None = None,
    ) -> None:
        self.credentials = credentials
        self._budget = budget
        self._clock = clock
        self._ids = ids
        self.options = options or Options()
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._held: dict[str, _Held] = {}
        self._keeper: threading.Thread | None = None

    def run(self, target: SshTarget, command: Command) -> CommandResult:
        """Run a command; whatever its exit status, that is an answer.

        Raises
        ------
        ConfigError
            The credential cannot be used; no host was asked.
        BackendUnavailableError
            It did not run, or it only reads and its end was not seen.
        SubmissionUncertainError
            ``ssh_outcome_unknown``: a command with effects whose end was not seen.
        BackendError
            ``ssh_output_too_long``, ``ssh_no_shell``.
        """
        token = f"bp-{self._ids.new()}"

        def work(link: Link) -> Coroutine[Any, Any, CommandResult]:
            return connection.run(link, command, token, label=target.label)

        return self.use(target, work, seconds=command.seconds, effects=command.effects)

    def use(
        self,
        target: SshTarget,
        work: Callable[[Link], Coroutine[Any, Any, T]],
        *,
        seconds: float,
        effects: bool,
    ) -> T:
        """Do something with the target's connection, as one command of the budget.

        Parameters
        ----------
        work
            A coroutine for the process's loop; :class:`NotStartedError` lets it be tried once more.
        seconds
            After which it is given up.
        effects
            Whether it may have had an effect when it is.
        """
        held = self._of(target)
        if not held.turns.acquire(timeout=seconds):
            raise BackendUnavailableError(
                f"{target.label}: this process has {self.options.max_channels} commands on their way",
                code="ssh_budget_timeout",
                hint="it is tried again later",
                details={"class": "dependency_unavailable"},
            )
        try:
            return self._twice(target, held, work, seconds=seconds, effects=effects)
        finally:
            held.turns.release()

    def ping(self, target: SshTarget, *, seconds: float = 30.0) -> CommandResult:
        """Connect anew, also to a target that is left alone, and run a command that does nothing.

        Raises
        ------
        ConfigError, BackendError
            As :meth:`run`.
        """
        held = self._of(target)
        with held.lock:
            self._drop(held)
            self._connect(target, held, seconds=seconds, force=True)
        return self.run(target, Command(text="hostname", kind=Kind.READS, seconds=seconds))

    def close(self) -> None:
        """Close all connections of this process and give their permits back."""
        with self._lock:
            mine = list(self._held.values())
        for held in mine:
            with held.lock:
                self._drop(held)

    def _of(self, target: SshTarget) -> _Held:
        if self._pid != os.getpid():
            # Forked: the connections, their permits and whoever held the lock stay with the parent.
            self._pid, self._lock, self._held, self._keeper = os.getpid(), threading.Lock(), {}, None
        with self._lock:
            if target.key not in self._held:
                turns = threading.BoundedSemaphore(self.options.max_channels)
                self._held[target.key] = _Held(turns=turns)
            return self._held[target.key]

    def _twice(
        self,
        target: SshTarget,
        held: _Held,
        work: Callable[[Link], Coroutine[Any, Any, T]],
        *,
        seconds: float,
        effects: bool,
    ) -> T:
        reason = ""
        for _ in range(2):
            link = self._live(target, held, seconds=seconds)
            try:
                self._budget.command(target.key, target.label, seconds=seconds)
                return LoopThread.of_process().call(work(link), seconds=seconds + _SLACK)
            except NotStartedError as error:
                reason = str(error)
                if link.closed:
                    continue
                break  # the connection lives: the server gives no channel, and a second try would not help
            except TimeoutError as error:
                why = f"no end after {seconds:.0f} s"
                raise failures.lost(target.label, why, effects=effects, failure="timeout") from error
            finally:
                self._used(held)
        raise BackendUnavailableError(
            f"{target.label}: the command was not started: {reason}",
            code="ssh_not_started",
            hint="nothing ran: it is tried again later",
            details={"class": "connectivity"},
        )

    def _used(self, held: _Held) -> None:
        with self._lock:
            held.users -= 1
            held.used_at = self._clock.monotonic()

    def _live(self, target: SshTarget, held: _Held, *, seconds: float) -> Link:
        """The connection, made where there is none; counted as in use."""
        with held.lock:
            if held.link is None or held.link.closed:
                self._drop(held)
                self._connect(target, held, seconds=seconds)
            assert held.link is not None  # noqa: S101  # made the line before
            with self._lock:
                held.users += 1
            return held.link

    def _connect(self, target: SshTarget, held: _Held, *, seconds: float, force: bool = False) -> None:
        credential = self.credentials.load(target.slot)
        token = self._budget.connection(target.key, target.label, seconds=seconds, force=force)
        failure: Failure | None = None
        for host in target.hosts:
            making = connection.connect(host, target.port, target.user, credential, self.options)
            try:
                # Twice for the host, twice for a jump host.
                link = LoopThread.of_process().call(making, seconds=self.options.connect_seconds * 4 + _SLACK)
            except Exception as error:  # noqa: BLE001  # every failure is classed, and gives the permit back
                label = f"{target.user}@{host}"
                found = failures.connecting(error, label)
                # What keeps us out everywhere says more than a node that is down.
                if failure is None or failure.state is SshState.UNREACHABLE:
                    failure = found
                if found.state is SshState.NEEDS_LOGIN:
                    break  # the nodes share accounts: knocking at each of them is a storm
                continue
            held.link, held.token, held.used_at = link, token, self._clock.monotonic()
            self._budget.connected(target.key)
            self._keep()
            return
        assert failure is not None  # noqa: S101  # a target has a host
        self._budget.failed(target.key, token, failure.state, failure.error)
        raise failure.error

    def _drop(self, held: _Held) -> None:
        """Forget the connection; call it with the target's lock."""
        link, token = held.link, held.token
        held.link = held.token = None
        if link is not None and not link.closed:
            LoopThread.of_process().loop.call_soon_threadsafe(link.abort)
        if token is not None:
            self._budget.release(token)

    def _keep(self) -> None:
        with self._lock:
            if self._keeper is None or not self._keeper.is_alive():
                self._keeper = threading.Thread(target=self._tend, name="ssh-permits", daemon=True)
                self._keeper.start()

    def _tend(self) -> None:
        """Renew the permits of open connections, close idle ones; ends when there is none."""
        pause = threading.Event()
        while True:
            pause.wait(min(self._budget.ttl_seconds / 3, self.options.idle_seconds))
            with self._lock:
                mine = list(self._held.values())
            for held in mine:
                if held.lock.acquire(blocking=False):
                    try:
                        if self._stale(held):
                            self._drop(held)
                    finally:
                        held.lock.release()
            with self._lock:
                tokens = sorted(held.token for held in mine if held.token)
                if not tokens:
                    self._keeper = None
                    return
            self._budget.renew(tokens)

    def _stale(self, held: _Held) -> bool:
        if held.link is None or held.link.closed:
            return True
        idle = self._clock.monotonic() - held.used_at
        return held.users <= 0 and idle >= self.options.idle_seconds
