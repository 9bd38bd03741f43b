"""The port to what executes a physical graph, and the values that go through it.

A backend never decides about an execution: it does what it is told, once, and says what it sees. A
submission is never repeated by a backend; whether it may be is said by the class of its error.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Protocol

from beampipe_dagster.backends.daliuge.physical import Drop
from beampipe_dagster.backends.daliuge.states import DaliugeState, DropCounts
from beampipe_dagster.config.canonical import JsonValue

__all__ = [
    "Backend",
    "DaliugeState",
    "Drop",
    "DropCounts",
    "FailedDrop",
    "SessionObservation",
    "SessionPresence",
    "SubmissionReceipt",
]


@dataclass(frozen=True, slots=True)
class SubmissionReceipt:
    """What is known once a session runs.

    Attributes
    ----------
    session_id, manager_url
        Where it runs.
    drops, roots
        How many drops it has, and how many it started with.
    deployed_at
        When the manager said so, in UTC.
    """

    session_id: str
    manager_url: str
    drops: int
    roots: int
    deployed_at: datetime


class SessionPresence(StrEnum):
    """What looking for a session found."""

    ABSENT = "absent"
    """No node knows it."""
    UNDEPLOYED = "undeployed"
    """It is there and has not been deployed."""
    DEPLOYED = "deployed"
    """It has been deployed, whatever became of it."""
    UNREACHABLE = "unreachable"
    """Nobody can say: the manager or a node is away, or its answer means nothing."""


@dataclass(frozen=True, slots=True)
class FailedDrop:
    """A drop in error.

    Attributes
    ----------
    oid, name
        Its identifier, and the name from the logical graph (the identifier when not known).
    state
        ``error``.
    log
        What it logged, plain text of at most 2 kB; empty for a drop that an error was handed to.
    """

    oid: str
    name: str
    state: str
    log: str


@dataclass(frozen=True, slots=True)
class SessionObservation:
    """What one look at a session saw.

    Attributes
    ----------
    session_id
        The session.
    state
        What it comes to; ``finished`` only when every expected drop was seen completed.
    raw
        The manager's own answer; None when there was none.
    drops
        Counts over the graph; None when they could not be read or there is no graph yet.
    failed_drops
        Up to ten drops in error, those with a log of their own first.
    observed_at
        When it was seen, in UTC.
    reason
        Why, where the state alone does not say it.
    """

    session_id: str
    state: DaliugeState
    raw: JsonValue
    drops: DropCounts | None
    failed_drops: tuple[FailedDrop, ...]
    observed_at: datetime
    reason: str | None


class Backend(Protocol):
    """What the execution service and the poll service ask of a backend."""

    @property
    def url(self) -> str:
        """Base URL of the manager; what tells one target from another."""
        ...

    @property
    def island(self) -> str:
        """The manager as drops name it: ``host:port``."""
        ...

    @property
    def verify_ssl(self) -> bool:
        """Whether the manager's certificate is checked."""
        ...

    def submit(
        self, session_id: str, drops: Sequence[Drop], *, before_deploy: Callable[[], None]
    ) -> SubmissionReceipt:
        """Start a placed graph under a new session id.

        Parameters
        ----------
        session_id
            1 to 200 of ``A-Z a-z 0-9 . -``; never used before.
        drops
            The placed graph.
        before_deploy
            Called when all is ready and nothing runs; what it raises stops the submission.

        Raises
        ------
        InputError
            The session id cannot be used.
        GraphError
            The graph is refused; nothing runs.
        BackendUnavailableError
            Nothing runs; the same graph may be submitted later under a new session id.
        SubmissionUncertainError
            It may run: look before anything is submitted again.
        """
        ...

    def observe(
        self,
        sessions: Mapping[str, frozenset[str] | None],
        *,
        counted: Collection[str] | None = None,
        seconds: float | None = None,
    ) -> dict[str, SessionObservation]:
        """Look at many sessions; a service that is away is an observation, not an error.

        Parameters
        ----------
        sessions
            Session id to the identifiers of the drops that it must have, None where not known. A value
            is asked for only when a session says that it has finished.
        counted
            Sessions whose drops are to be counted while they run, which takes a request each; all when
            None. Those that have ended are counted anyhow.
        seconds
            When to stop asking. A session that there was no time for is not in the answer.
        """
        ...

    def presence(self, session_id: str) -> SessionPresence:
        """Whether a session is there, for a submission whose outcome is not known."""
        ...

    def discard(self, session_id: str) -> None:
        """Delete a session that never ran; one that is not there is fine.

        Raises
        ------
        ConflictError
            It has been deployed.
        BackendUnavailableError
            It could not be seen or deleted.
        """
        ...

    def cancel(self, session_id: str) -> SessionObservation:
        """Cancel a session and look at it; only ``cancelled`` says that it is."""
        ...

    def remove(self, session_id: str) -> None:
        """Delete a session that has ended, cancelling what still runs; one that is not there is fine.

        Raises
        ------
        BackendUnavailableError
            It could not be seen or deleted.
        """
        ...

    def nodes(self) -> list[str]:
        """The nodes that a graph can be placed on."""
        ...
