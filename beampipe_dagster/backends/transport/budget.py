"""How much of a login node all processes on a ledger take together, and whether it is tried at all.

Sites close accounts that knock too often. A target that does not let us in, shows another host key or does not
answer is left alone by every process for a time that doubles, and then tried by one of them.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from beampipe_dagster.clock import Clock, rfc3339
from beampipe_dagster.errors import BackendUnavailableError, BeampipeError
from beampipe_dagster.ids import Ids
from beampipe_dagster.ledger import ssh_budget
from beampipe_dagster.ledger.engine import Ledger
from beampipe_dagster.ledger.ssh_budget import Refused, SshTargetRow
from beampipe_dagster.ledger.tables_slurm import SshState

_FIRST: Final = {
    SshState.NEEDS_LOGIN: timedelta(minutes=5),
    SshState.UNTRUSTED: timedelta(minutes=5),
    SshState.UNREACHABLE: timedelta(seconds=10),
}
_LONGEST: Final = {
    SshState.NEEDS_LOGIN: timedelta(hours=6),
    SshState.UNTRUSTED: timedelta(hours=6),
    SshState.UNREACHABLE: timedelta(minutes=10),
}
_WORDS: Final = {
    SshState.OK: "it is being tried",
    SshState.NEEDS_LOGIN: "it does not let us in",
    SshState.UNTRUSTED: "it showed a host key that is not believed",
    SshState.UNREACHABLE: "it does not answer",
}
_ATTEMPT: Final = timedelta(seconds=60)
_WAIT_SECONDS: Final = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What all processes together take of a target.

    Parameters
    ----------
    max_connections
        Open at a time.
    commands_per_minute, burst
        Commands that begin in a minute, and how many at once after a rest.
    """

    max_connections: int = 4
    commands_per_minute: float = 120.0
    burst: int = 30


class SshBudget:
    """Permits for connections and room for commands.

    Parameters
    ----------
    ttl_seconds
        After how long the permit of a process that died runs out.
    """

    def __init__(
        self,
        *,
        ledger: Ledger,
        clock: Clock,
        ids: Ids,
        limits: Limits | None = None,
        ttl_seconds: float = 60.0,
    ) -> None:
        self._ledger = ledger
        self._clock = clock
        self._ids = ids
        self._limits = limits or Limits()
        self.ttl_seconds = ttl_seconds
        self._ttl = timedelta(seconds=ttl_seconds)
        self._holder = f"{socket.gethostname()}:{os.getpid()}"[:100]

    def connection(self, key: str, label: str, *, seconds: float, force: bool = False) -> str:
        """Wait for a permit to connect; its token.

        Raises
        ------
        BackendUnavailableError
            ``ssh_needs_login``, ``ssh_untrusted``, ``ssh_unreachable`` while the target is left alone;
            ``ssh_budget_timeout`` when all connections stay taken.
        """
        token, began = self._ids.new(), self._clock.monotonic()
        with self._ledger.begin() as conn:
            ssh_budget.ensure(conn, key, label=label, now=self._clock.now())
        while True:
            with self._ledger.begin() as conn:
                verdict = ssh_budget.take_connection(
                    conn,
                    key,
                    token,
                    holder=self._holder,
                    max_connections=self._limits.max_connections,
                    attempt=_ATTEMPT,
                    ttl=self._ttl,
                    now=self._clock.now(),
                    force=force,
                )
            if verdict is None:
                return token
            if verdict.shut:
                raise left_alone(label, verdict)
            if self._clock.monotonic() - began >= seconds:
                raise BackendUnavailableError(
                    f"{label}: all {self._limits.max_connections} connections are taken",
                    code="ssh_budget_timeout",
                    hint="it is tried again later; more are allowed by BEAMPIPE_SSH_MAX_CONNECTIONS",
                    details={"class": "dependency_unavailable"},
                )
            self._clock.sleep(_WAIT_SECONDS)

    def connected(self, key: str) -> None:
        """The target let us in."""
        with self._ledger.begin() as conn:
            ssh_budget.connected(conn, key, now=self._clock.now())

    def failed(self, key: str, token: str, state: SshState, error: BeampipeError) -> SshTargetRow:
        """It did not: give the permit back, and let everybody leave it alone for a while."""
        facts = {"code": error.code, "message": error.message, "class": str(error.details.get("class", ""))}
        with self._ledger.begin() as conn:
            ssh_budget.release(conn, token)
            return ssh_budget.failed(
                conn,
                key,
                state,
                first=_FIRST[state],
                longest=_LONGEST[state],
                error=dict(facts),
                now=self._clock.now(),
            )

    def command(self, key: str, label: str, *, seconds: float) -> None:
        """Wait until a command may begin.

        Raises
        ------
        BackendUnavailableError
            ``ssh_budget_timeout``: not within so many seconds.
        """
        spacing = timedelta(seconds=60.0 / self._limits.commands_per_minute)
        with self._ledger.relaxed() as conn:
            start = ssh_budget.take_command(
                conn, key, spacing=spacing, burst=self._limits.burst, now=self._clock.now()
            )
        wait = (start - self._clock.now()).total_seconds()
        if wait > seconds:
            raise BackendUnavailableError(
                f"{label}: the next command may begin in {wait:.0f} s",
                code="ssh_budget_timeout",
                hint="it is tried again later; the pace is set by BEAMPIPE_SSH_COMMANDS_PER_MINUTE",
                details={"class": "dependency_unavailable"},
            )
        if wait > 0:
            self._clock.sleep(wait)

    def release(self, token: str) -> None:
        """A connection was closed; when the ledger is away the permit runs out by itself."""
        try:
            with self._ledger.relaxed() as conn:
                ssh_budget.release(conn, token)
        except BeampipeError:
            return

    def renew(self, tokens: Sequence[str]) -> None:
        """Keep the permits of open connections; a ledger that is away for a moment is asked again."""
        try:
            with self._ledger.relaxed() as conn:
                ssh_budget.renew(conn, tokens, expires_at=self._clock.now() + self._ttl)
        except BeampipeError:
            return


def left_alone(label: str, refused: Refused) -> BackendUnavailableError:
    """The error for a target that nobody tries at the moment."""
    row = refused.row
    until = rfc3339(row.not_before) if row.not_before else "later"
    last = str((row.last_error or {}).get("message") or "")
    state = SshState.UNREACHABLE if row.state is SshState.OK else row.state
    return BackendUnavailableError(
        f"{label} is left alone until {until}: {_WORDS[row.state]}" + (f" ({last})" if last else ""),
        code=f"ssh_{state.value}",
        hint="put that right, then: beampipe slurm ping PROFILE",
        details={
            "state": row.state.value,
            "until": until,
            "failures": row.failures,
            "class": str((row.last_error or {}).get("class") or "dependency_unavailable"),
        },
    )
