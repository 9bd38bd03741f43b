"""What went wrong with SSH, by the type of what asyncssh raised, as errors of the project."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Final

import asyncssh

from beampipe_dagster.backends.transport.redaction import redacted
from beampipe_dagster.errors import (
    BackendError,
    BackendUnavailableError,
    BeampipeError,
    Retry,
    SubmissionUncertainError,
)
from beampipe_dagster.ledger.tables_slurm import SshState

_LENGTH: Final = 300
TIMEOUTS: Final = (TimeoutError, asyncio.TimeoutError, asyncssh.TimeoutError)


@dataclass(frozen=True, slots=True)
class Failure:
    """Why there is no connection, and what that says about the target."""

    state: SshState
    error: BeampipeError


def told(error: BaseException) -> str:
    """An exception's text, short and without secrets."""
    return redacted(str(error) or type(error).__name__)[:_LENGTH]


def connecting(error: Exception, label: str) -> Failure:
    """A failure to connect: nothing was asked of the target."""
    if isinstance(error, asyncssh.HostKeyNotVerifiable):
        message = f"{label} showed a host key that is not believed: {told(error)}"
        hint = (
            "if the site has changed its keys, compare the new one with what it publishes and put it in known_hosts;"
            " otherwise somebody may be in between"
        )
        return Failure(SshState.UNTRUSTED, _away(message, "ssh_untrusted", hint, "authorization"))
    if isinstance(error, asyncssh.PermissionDenied | asyncssh.IllegalUserName):
        message = f"{label} does not let us in: {told(error)}"
        hint = (
            "is the public key there, not expired, and no second factor asked for?"
            " then: beampipe slurm ping PROFILE"
        )
        return Failure(SshState.NEEDS_LOGIN, _away(message, "ssh_needs_login", hint, "authentication"))
    timed_out = isinstance(error, TIMEOUTS)
    if timed_out or isinstance(error, OSError | asyncssh.Error):
        what = "does not answer in time" if timed_out else f"cannot be reached: {told(error)}"
        failure = "timeout" if timed_out else "connectivity"
        hint = "it is tried again later; is the host up, and does a firewall let this machine through?"
        return Failure(SshState.UNREACHABLE, _away(f"{label} {what}", "ssh_unreachable", hint, failure))
    message = f"{label}: SSH failed: {told(error)}"
    away = _away(message, "ssh_unreachable", "it is tried again later", "dependency_unavailable")
    return Failure(SshState.UNREACHABLE, away)


def lost(label: str, why: str, *, effects: bool, failure: str = "connectivity") -> BackendError:
    """A command whose end nobody saw."""
    if not effects:
        return _away(f"{label}: {why}", "ssh_lost", "only a question was asked: it is asked again", failure)
    return SubmissionUncertainError(
        f"{label}: {why}, and the command may have had its effect",
        code="ssh_outcome_unknown",
        hint="it is looked for before anything is done again",
        details={"class": failure},
    )


def too_long(label: str, limit: int, *, effects: bool) -> BackendError:
    """A command that says more than is read."""
    message = f"{label}: the output is longer than {limit:,} bytes"
    if effects:
        return lost(label, message, effects=True, failure="dependency_unavailable")
    return BackendError(
        message,
        code="ssh_output_too_long",
        hint="ask for less at a time",
        retry=Retry.NEVER,
        details={"class": "dependency_unavailable"},
    )


def no_shell(label: str, output: bytes) -> BackendError:
    """A login that gives no shell: nothing ran."""
    return BackendError(
        f"{label}: the account runs no commands: {redacted(output.decode(errors='replace')).strip()[:_LENGTH]!r}",
        code="ssh_no_shell",
        hint="the account needs a Bourne shell, and its key no forced command",
        retry=Retry.LATER,
        details={"class": "authorization"},
    )


def _away(message: str, code: str, hint: str, failure: str) -> BackendUnavailableError:
    return BackendUnavailableError(message, code=code, hint=hint, details={"class": failure})
