"""The law of an archive's circuit breaker: when it is no longer asked, and how it is asked again.

Closed, an archive is asked. After some failures in a row that say that it is away, its circuit opens: nobody asks
it for a while. Then exactly one request goes through (half open); its answer closes the circuit, its failure opens
it again for longer. A probe that never tells its outcome, since its process died, runs out, and another one goes
through. What was sent before the circuit opened and comes back later changes nothing: only the probe tells.

Opened by hand, a circuit stays so until it is closed by hand, or lets a probe through after the time that was given.
An operator may send a probe before its time; if that fails, everything stays as it was wanted.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

from beampipe_dagster.clock import rfc3339

_MOST_DOUBLINGS: Final = 16


class CircuitState(StrEnum):
    """Whether an archive is asked."""

    CLOSED = "closed"
    """It is."""

    OPEN = "open"
    """It is not, for a time."""

    HALF_OPEN = "half_open"
    """One request is on its way to find out."""


class Outcome(StrEnum):
    """What a request says about the archive, whatever it says about the query."""

    ANSWERED = "answered"
    """It is there: rows, an overflow, or an error about the query."""

    AWAY = "away"
    """It is not: no connection, a broken service, no answer in time, too many requests."""

    UNCLEAR = "unclear"
    """Something came that is no answer; that neither opens nor closes anything but a probe."""

    NOTHING = "nothing"
    """Nothing can be told: it was not sent, or it was our own mistake."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """When a circuit opens, and for how long.

    Attributes
    ----------
    failures_to_open
        Failures in a row that open it.
    open_seconds
        For how long at first; each failed probe doubles it.
    longest_open_seconds
        And not for longer than this.
    """

    failures_to_open: int = 3
    open_seconds: float = 30.0
    longest_open_seconds: float = 900.0

    def open_for(self, openings: int) -> timedelta:
        """For how long a circuit stays open when it opens for the n-th time without an answer in between."""
        doublings = min(max(openings - 1, 0), _MOST_DOUBLINGS)
        return timedelta(seconds=min(self.longest_open_seconds, self.open_seconds * 2.0**doublings))


@dataclass(frozen=True, slots=True, kw_only=True)
class Circuit:
    """One archive's circuit.

    Attributes
    ----------
    failures
        In a row, while closed.
    openings
        How often it opened without an answer in between.
    by_hand
        Whether somebody opened it on purpose.
    opened_at, open_until
        Since when, and from when on a probe may go through; no end means until it is closed by hand.
    open_reason
        The failure that opened it, or what the operator said.
    probe_token, probe_expires_at
        Who finds out, and until when others wait for that.
    """

    state: CircuitState = CircuitState.CLOSED
    failures: int = 0
    openings: int = 0
    by_hand: bool = False
    opened_at: datetime | None = None
    open_until: datetime | None = None
    open_reason: str | None = None
    probe_token: str | None = None
    probe_expires_at: datetime | None = None

    def shut_off(self, now: datetime) -> bool:
        """Whether no request may go through now."""
        if self.state is CircuitState.HALF_OPEN:
            return self.probe_expires_at is not None and self.probe_expires_at > now
        return self.state is CircuitState.OPEN and (self.open_until is None or self.open_until > now)


CLOSED: Final = Circuit()


def passed(circuit: Circuit, token: str, *, now: datetime, expires_at: datetime) -> Circuit | None:
    """The circuit after a request went through; ``None`` when it may not.

    Through a circuit that is not closed goes a probe, and only one.
    """
    if circuit.shut_off(now):
        return None
    if circuit.state is CircuitState.CLOSED:
        return circuit
    return probing(circuit, token, expires_at=expires_at)


def probing(circuit: Circuit, token: str, *, expires_at: datetime) -> Circuit:
    """A circuit through which this probe goes."""
    return replace(circuit, state=CircuitState.HALF_OPEN, probe_token=token, probe_expires_at=expires_at)


def after(
    circuit: Circuit, outcome: Outcome, token: str, *, now: datetime, rules: Rules, reason: str = ""
) -> Circuit:
    """The circuit after a request has told its outcome.

    Parameters
    ----------
    token
        Of the request.
    reason
        What went wrong, if it did.
    """
    if circuit.state is CircuitState.CLOSED:
        return _closed_after(circuit, outcome, now, rules, reason)
    if circuit.state is CircuitState.OPEN or token != circuit.probe_token:
        return circuit
    if outcome is Outcome.ANSWERED:
        return CLOSED
    held = circuit.by_hand and (circuit.open_until is None or circuit.open_until > now)
    if outcome is Outcome.NOTHING or held:
        return replace(circuit, state=CircuitState.OPEN, probe_token=None, probe_expires_at=None)
    return _opened(circuit, now, rules, reason)


def _closed_after(circuit: Circuit, outcome: Outcome, now: datetime, rules: Rules, reason: str) -> Circuit:
    if outcome is Outcome.ANSWERED:
        return replace(circuit, failures=0)
    if outcome is not Outcome.AWAY:
        return circuit
    failed = replace(circuit, failures=circuit.failures + 1)
    return _opened(failed, now, rules, reason) if failed.failures >= rules.failures_to_open else failed


def opened_by_hand(circuit: Circuit, *, now: datetime, until: datetime | None, reason: str) -> Circuit:
    """The circuit after an operator opened it."""
    return Circuit(
        state=CircuitState.OPEN,
        failures=circuit.failures,
        by_hand=True,
        opened_at=now,
        open_until=until,
        open_reason=reason,
    )


def in_words(circuit: Circuit, *, now: datetime) -> str:
    """Why an archive is not asked, since when, and until when."""
    since = f" since {rfc3339(circuit.opened_at)}" if circuit.opened_at else ""
    if circuit.state is CircuitState.HALF_OPEN and circuit.shut_off(now):
        until = "; a probe is on its way"
    elif circuit.open_until is None:
        until = " until it is closed by hand"
    else:
        until = f" until {rfc3339(circuit.open_until)}"
    by = "opened by hand" if circuit.by_hand else f"after {circuit.failures} failures in a row"
    reason = f": {circuit.open_reason}" if circuit.open_reason else ""
    return f"circuit open{since}{until}, {by}{reason}"


def _opened(circuit: Circuit, now: datetime, rules: Rules, reason: str) -> Circuit:
    again = circuit.state is not CircuitState.CLOSED
    openings = circuit.openings + 1
    return Circuit(
        state=CircuitState.OPEN,
        failures=circuit.failures,
        openings=openings,
        opened_at=circuit.opened_at if again and circuit.opened_at is not None else now,
        open_until=now + rules.open_for(openings),
        open_reason=reason or circuit.open_reason,
    )
