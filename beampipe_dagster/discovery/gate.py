"""One gate an archive, for all processes on a ledger: how many ask it, how often, and whether it is asked at all.

A request needs a permit from the ledger. An archive that asks for quiet (``Retry-After``, RFC 9110 section 10.2.3)
gets it from everybody. One that fails several times in a row is left alone, until a single probe finds it back: its
circuit is open, and requests fail at once instead of waiting for a timeout each.

A permit costs two short transactions: one takes it, one gives it back with what the request said about the
archive. Neither waits for the disk, since after a power cut nobody holds a permit; only what changes a circuit, or
counts towards opening it, does. Threads of one process queue among themselves first; who waits looks at the ledger
by reading only, ever less often.
"""

from __future__ import annotations

import os
import random
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final
from urllib.parse import urlsplit

from sqlalchemy.engine import Connection

from beampipe_dagster.clock import Clock, rfc3339
from beampipe_dagster.config.canonical import JsonValue
from beampipe_dagster.config.settings import ArchiveLimits
from beampipe_dagster.discovery.tap_session import tap_base_url
from beampipe_dagster.errors import ArchiveError, BeampipeError
from beampipe_dagster.ids import Ids
from beampipe_dagster.ledger import circuits, gates, provenance
from beampipe_dagster.ledger.circuits import CircuitState, Outcome, Rules
from beampipe_dagster.ledger.engine import Ledger
from beampipe_dagster.ledger.gates import ArchiveRow, Granted, Settled, ShutOff, User, Wait

CIRCUIT_OPEN: Final = "archive_circuit_open"
GATE_TIMEOUT: Final = "archive_gate_timeout"
NOT_ASKED: Final = frozenset({CIRCUIT_OPEN, GATE_TIMEOUT})
"""Codes of errors by which the archive was not asked: they say nothing about what was to be asked."""

FIRST_WAIT_SECONDS: Final = 0.02
LONGEST_WAIT_SECONDS: Final = 1.0
LONGEST_SLEEP_SECONDS: Final = 5.0
"""An operator may end a pause early: nobody sleeps through all of it."""
LONGEST_PAUSE_SECONDS: Final = 6 * 3600.0
"""Longest ``Retry-After`` that is obeyed; more is taken for a mistake."""
MESSAGE_LENGTH: Final = 500

_PORTS: Final = {"http": 80, "https": 443}


def archive_key(url: str) -> str:
    """The name of a TAP service in the ledger: host, port where it is unusual, and path of its base URL.

    Raises
    ------
    ConfigError
        ``invalid_tap_url``.
    """
    parts = urlsplit(tap_base_url(url))
    port = f":{parts.port}" if parts.port not in {None, _PORTS[parts.scheme]} else ""
    return f"{(parts.hostname or '').lower()}{port}{parts.path}"[:255]


@dataclass(frozen=True, slots=True)
class Use:
    """An archive as a survey uses it."""

    user: User
    url: str
    limits: ArchiveLimits

    @property
    def key(self) -> str:
        """Its name in the ledger."""
        return self.user.archive_key


@dataclass(slots=True)
class Permit:
    """Leave to send one request, and what the request then says about the archive.

    Attributes
    ----------
    probe
        Whether it decides about an open circuit.
    """

    token: str
    probe: bool = False
    outcome: Outcome = Outcome.NOTHING
    seconds: float | None = None
    error: dict[str, JsonValue] | None = None

    def answered(self, seconds: float | None = None) -> None:
        """The archive answered."""
        self.outcome, self.seconds = Outcome.ANSWERED, seconds

    def failed(self, outcome: Outcome, *, code: str, message: str) -> None:
        """It did not."""
        self.outcome = outcome
        self.error = {"code": code, "message": message[:MESSAGE_LENGTH]}


class ArchiveGate:
    """Gives permits.

    Parameters
    ----------
    rules
        When circuits open.
    timeout_seconds
        How long a request waits for its turn.
    ttl_seconds
        After how long a permit runs out when its process has died; one that lives renews it.
    jitter
        From 0 to 1, to spread out those who wait.
    actor
        On whose behalf requests are made, for the story of circuits.
    """

    def __init__(
        self,
        *,
        ledger: Ledger,
        clock: Clock,
        ids: Ids,
        rules: Rules | None = None,
        timeout_seconds: float = 300.0,
        ttl_seconds: float = 60.0,
        jitter: Callable[[], float] = random.random,
        actor: str = "system",
    ) -> None:
        self._ledger = ledger
        self._clock = clock
        self._ids = ids
        self._rules = rules or Rules()
        self.timeout_seconds = timeout_seconds
        self._ttl = timedelta(seconds=ttl_seconds)
        self._jitter = jitter
        self._actor = actor
        self._holder = f"{socket.gethostname()}:{os.getpid()}"[:100]
        self._lock = threading.Lock()
        self._known: set[Use] = set()
        self._turns: dict[str, threading.BoundedSemaphore] = {}
        self._held: set[str] = set()
        self._keeper: threading.Thread | None = None

    @contextmanager
    def permit(self, use: Use, *, force_probe: bool = False) -> Iterator[Permit]:
        """Wait for a permit; what it was told is in the ledger when the block ends.

        Parameters
        ----------
        force_probe
            Find out at once whether an archive with an open circuit is back.

        Raises
        ------
        ArchiveError
            ``archive_circuit_open`` at once, ``archive_gate_timeout`` after waiting.
        """
        self.make_known(use)
        began = self._clock.monotonic()
        turn = self._turn(use)
        if not turn.acquire(timeout=self.timeout_seconds):
            raise self._too_late(use, Wait("this process has as many on their way"), began)
        try:
            permit, not_before = self._taken(use, began, force_probe=force_probe)
            try:
                self._clock.sleep(max(0.0, (not_before - self._clock.now()).total_seconds()))
                yield permit
            finally:
                self._give_back(use, permit)
        finally:
            turn.release()

    def make_known(self, use: Use) -> None:
        """Keep in the ledger that the survey uses the archive; once a process."""
        if use in self._known:
            return
        with self._ledger.begin() as conn:
            gates.ensure(
                conn,
                use.user,
                url=use.url,
                max_concurrency=use.limits.max_concurrency,
                min_interval_ms=use.limits.min_interval_ms,
                now=self._clock.now(),
            )
        self._known.add(use)

    def pause(self, use: Use, seconds: float) -> None:
        """Let everybody wait for as long as the archive asked."""
        until = self._clock.now() + timedelta(seconds=min(seconds, LONGEST_PAUSE_SECONDS))
        try:
            with self._ledger.begin() as conn:
                gates.pause(conn, use.key, until=until)
        except BeampipeError:
            return  # the request that found it out waits anyhow, and the next one is told again

    def wait_for_pause(self, use: Use) -> None:
        """Before a request is repeated, wait if the archive has asked somebody for quiet meanwhile.

        Raises
        ------
        ArchiveError
            ``archive_gate_timeout``: it asked for more than a few seconds.
        """
        with self._ledger.read() as conn:
            until = gates.get(conn, use.key).pause_until
        left = 0.0 if until is None else (until - self._clock.now()).total_seconds()
        if left > LONGEST_SLEEP_SECONDS:
            raise self._too_late(use, Wait("the archive asked for a pause", until), self._clock.monotonic())
        if left > 0:
            self._clock.sleep(left)

    def _turn(self, use: Use) -> threading.BoundedSemaphore:
        with self._lock:
            return self._turns.setdefault(use.key, threading.BoundedSemaphore(use.limits.max_concurrency))

    def _taken(self, use: Use, began: float, *, force_probe: bool) -> tuple[Permit, datetime]:
        token = self._ids.new()
        wait, tried = FIRST_WAIT_SECONDS, False
        while True:
            verdict = (self._look(use) if tried else None) or self._try(use, token, force_probe=force_probe)
            tried = True
            if isinstance(verdict, ShutOff):
                raise circuit_open(use.user.adapter, verdict.row, now=self._clock.now())
            if isinstance(verdict, Granted):
                self._keep(token)
                return Permit(token, verdict.probe), verdict.not_before
            seconds = wait * (0.5 + self._jitter())
            if verdict.until is not None:
                seconds += max(0.0, (verdict.until - self._clock.now()).total_seconds())
            if self._clock.monotonic() - began + seconds > self.timeout_seconds:
                raise self._too_late(use, verdict, began)
            self._clock.sleep(min(seconds, LONGEST_SLEEP_SECONDS))
            wait = min(wait * 2, LONGEST_WAIT_SECONDS)

    def _try(self, use: Use, token: str, *, force_probe: bool) -> Granted | Wait | ShutOff:
        with self._ledger.relaxed() as conn:
            return gates.take(
                conn,
                use.key,
                token,
                holder=self._holder,
                max_concurrency=use.limits.max_concurrency,
                min_interval=timedelta(milliseconds=use.limits.min_interval_ms),
                ttl=self._ttl,
                now=self._clock.now(),
                force_probe=force_probe,
            )

    def _look(self, use: Use) -> Wait | None:
        with self._ledger.read() as conn:
            return gates.obstacle(
                conn, use.key, max_concurrency=use.limits.max_concurrency, now=self._clock.now()
            )

    def _give_back(self, use: Use, permit: Permit) -> None:
        with self._lock:
            self._held.discard(permit.token)
        lasting = permit.probe or permit.outcome not in {Outcome.ANSWERED, Outcome.NOTHING}
        try:
            with self._ledger.begin() if lasting else self._ledger.relaxed() as conn:
                now = self._clock.now()
                settled = gates.settle(
                    conn,
                    use.key,
                    permit.token,
                    permit.outcome,
                    rules=self._rules,
                    now=now,
                    seconds=permit.seconds,
                    error=permit.error,
                )
                if settled is not None and (settled.opened or settled.closed):
                    tell(conn, settled, actor=self._actor, ids=self._ids, now=now)
        except BeampipeError:
            return  # the ledger is away: the answer must not be lost, and the permit runs out

    def _keep(self, token: str) -> None:
        with self._lock:
            self._held.add(token)
            if self._keeper is None:
                self._keeper = threading.Thread(target=self._renew, name="archive-permits", daemon=True)
                self._keeper.start()

    def _renew(self) -> None:
        """Keep what this process holds; ends when it holds nothing."""
        pause = threading.Event()
        while True:
            pause.wait(self._ttl.total_seconds() / 3)
            with self._lock:
                tokens = sorted(self._held)
                if not tokens:
                    self._keeper = None
                    return
            try:
                with self._ledger.relaxed() as conn:
                    gates.renew(conn, tokens, expires_at=self._clock.now() + self._ttl)
            except BeampipeError:
                continue  # the ledger is away for a moment: the next renewal may find it again

    def _too_late(self, use: Use, wait: Wait, began: float) -> ArchiveError:
        waited = self._clock.monotonic() - began
        until = f" until {rfc3339(wait.until)}" if wait.until else ""
        return ArchiveError(
            f"{use.user.adapter} ({use.url}): no turn to ask it after {waited:.0f} s: {wait.why}{until}",
            code=GATE_TIMEOUT,
            hint="It is tried again later. See who asks: beampipe archive show " + use.user.adapter,
            details={
                "adapter": use.user.adapter,
                "archive": use.key,
                "until": rfc3339(wait.until) if wait.until else None,
            },
        )


def circuit_open(adapter: str, row: ArchiveRow, *, now: datetime) -> ArchiveError:
    """The error for a request that an open circuit does not let through."""
    circuit = row.circuit
    until = circuit.probe_expires_at if circuit.state is CircuitState.HALF_OPEN else circuit.open_until
    return ArchiveError(
        f"{adapter} ({row.url}): it is not asked: {circuits.in_words(circuit, now=now)}",
        code=CIRCUIT_OPEN,
        hint=f"It is asked again by itself, or at once after: beampipe archive close {adapter}",
        details={
            "adapter": adapter,
            "archive": row.key,
            "since": rfc3339(circuit.opened_at) if circuit.opened_at else None,
            "until": rfc3339(until) if until else None,
            "reason": circuit.open_reason,
        },
    )


def tell(
    conn: Connection, change: Settled, *, actor: str, ids: Ids, now: datetime, how: str = "requests"
) -> None:
    """Put the change of a circuit into the story of each survey that uses the archive."""
    row = change.row
    kind = "archive.circuit_opened" if change.opened else "archive.circuit_closed"
    payload: dict[str, JsonValue] = {"archive": row.key, "how": how}
    if change.opened:
        until = row.circuit.open_until
        payload |= {
            "failures": row.circuit.failures,
            "until": rfc3339(until) if until else None,
            "reason": row.circuit.open_reason,
        }
    told = {
        user.project_module: provenance.Event(
            event_type=kind,
            project_module=user.project_module,
            actor=actor,
            payload={"adapter": user.adapter, **payload},
        )
        for user in gates.users(conn)
        if user.archive_key == row.key
    }
    provenance.record(conn, list(told.values()), ids=ids, now=now)


def open_circuit(
    conn: Connection, key: str, *, actor: str, reason: str, until: datetime | None, ids: Ids, now: datetime
) -> None:
    """Stop asking an archive, by an operator's will.

    Raises
    ------
    NotFoundError
        ``archive_not_known``.
    """
    gates.open_by_hand(conn, key, now=now, until=until, reason=reason)
    tell(conn, Settled(gates.get(conn, key), opened=True), actor=actor, ids=ids, now=now, how="by hand")


def close_circuit(conn: Connection, key: str, *, actor: str, ids: Ids, now: datetime) -> bool:
    """Ask an archive again, by an operator's will; whether that changed anything.

    Raises
    ------
    NotFoundError
        ``archive_not_known``.
    """
    before = gates.close_by_hand(conn, key)
    was_open = before.circuit.state is not CircuitState.CLOSED
    if was_open:
        change = Settled(replace(before), closed=True)
        tell(conn, change, actor=actor, ids=ids, now=now, how="by hand")
    return was_open or (before.pause_until is not None and before.pause_until > now)
