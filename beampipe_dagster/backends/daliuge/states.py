"""What DALiuGE's numbers mean: session states, drop states, and counts over a graph's status.

The numbers are those of the engine's ``SessionStates``, ``DROPStates`` and ``AppDROPStates``. An
island manager answers with one state a node; older managers and node managers with one bare state.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from beampipe_dagster.config.canonical import JsonValue
from beampipe_dagster.ledger.states import DaliugeState

__all__ = [
    "ABSENT",
    "AppState",
    "DaliugeState",
    "DropCounts",
    "DropState",
    "SessionState",
    "absent_nodes",
    "count_drops",
    "error_oids",
    "is_absent",
    "missing_oids",
    "session_state",
]


class SessionState(StrEnum):
    """State of a session, in the order of the engine's numbers."""

    PRISTINE = "pristine"
    BUILDING = "building"
    DEPLOYING = "deploying"
    RUNNING = "running"
    FINISHED = "finished"
    CANCELLED = "cancelled"
    FAILED = "failed"
    UNKNOWN = "unknown"
    """Nothing that the engine's documentation knows."""


class DropState(StrEnum):
    """State of a drop, in the order of the engine's numbers."""

    INITIALIZED = "initialized"
    WRITING = "writing"
    COMPLETED = "completed"
    ERROR = "error"
    EXPIRED = "expired"
    DELETED = "deleted"
    CANCELLED = "cancelled"
    SKIPPED = "skipped"


class AppState(StrEnum):
    """State of an application's execution, in the order of the engine's numbers."""

    NOT_RUN = "not_run"
    RUNNING = "running"
    FINISHED = "finished"
    ERROR = "error"
    CANCELLED = "cancelled"
    SKIPPED = "skipped"


_SESSIONS = (
    SessionState.PRISTINE,
    SessionState.BUILDING,
    SessionState.DEPLOYING,
    SessionState.RUNNING,
    SessionState.FINISHED,
    SessionState.CANCELLED,
    SessionState.FAILED,
)
_SESSION_WORDS = {
    **{state.value: state for state in _SESSIONS},
    "completed": SessionState.FINISHED,
    "canceled": SessionState.CANCELLED,
    "fail": SessionState.FAILED,
    "error": SessionState.FAILED,
}
_DROPS = tuple(DropState)
_APPS = tuple(AppState)
_ACTIVE = (
    SessionState.RUNNING,
    SessionState.DEPLOYING,
    SessionState.BUILDING,
    SessionState.PRISTINE,
)
# An InMemory drop expires and is deleted once its consumers have had it: a normal end.
_DONE = frozenset({DropState.COMPLETED, DropState.EXPIRED, DropState.DELETED})
ABSENT: JsonValue = {"Status": "Success"}
"""What a node says about a session that it does not know."""
_SHOWN = 3


def session_state(raw: JsonValue) -> SessionState:
    """The state that a manager's status answer says.

    Parameters
    ----------
    raw
        A number, a name, ``{"status": <state>}``, or an object with one state a node.

    Returns
    -------
    SessionState
        Of several nodes: unknown if any is; failed if any is, since nothing mends a failed node;
        the end that all share; otherwise the most advanced of those still active. A mix of
        finished and cancelled nodes is unknown.
    """
    if isinstance(raw, dict):
        if set(raw) == {"status"}:
            return session_state(raw["status"])
        return _merged([session_state(value) for value in raw.values()])
    if isinstance(raw, str):
        return _SESSION_WORDS.get(raw.strip().lower(), SessionState.UNKNOWN)
    if isinstance(raw, int) and not isinstance(raw, bool) and 0 <= raw < len(_SESSIONS):
        return _SESSIONS[raw]
    return SessionState.UNKNOWN


def _merged(states: list[SessionState]) -> SessionState:
    seen = set(states)
    if not seen or SessionState.UNKNOWN in seen:
        return SessionState.UNKNOWN
    if SessionState.FAILED in seen:
        return SessionState.FAILED
    if len(seen) == 1:
        return states[0]
    return next((state for state in _ACTIVE if state in seen), SessionState.UNKNOWN)


def is_absent(raw: JsonValue) -> bool:
    """Whether a status answer means that no node knows the session.

    A node that does not know a session answers its status with 200 and ``{"Status": "Success"}``.
    """
    if raw == ABSENT:
        return True
    return isinstance(raw, dict) and bool(raw) and all(v == ABSENT for v in raw.values())


def absent_nodes(raw: JsonValue) -> list[str]:
    """The nodes of a status answer that do not know the session, sorted."""
    if not isinstance(raw, dict):
        return []
    return sorted(node for node, value in raw.items() if value == ABSENT)


def known_states(raw: JsonValue) -> list[SessionState]:
    """The state on each node that knows the session."""
    if not isinstance(raw, dict) or set(raw) == {"status"}:
        return [session_state(raw)]
    lost = absent_nodes(raw)
    return [session_state(value) for node, value in raw.items() if node not in lost]


def overall_state(raw: JsonValue) -> DaliugeState:
    """The ledger's state over the nodes that know the session; unknown when none does."""
    if isinstance(raw, dict) and absent_nodes(raw):
        return DaliugeState(_merged(known_states(raw)).value)
    return DaliugeState(session_state(raw).value)


def loss_of(raw: JsonValue) -> str | None:
    """What to say of nodes that lost the session, being restarted; None when none did."""
    lost = absent_nodes(raw)
    return f"it is lost on node {', '.join(lost)}" if lost else None


@dataclass(frozen=True, slots=True)
class DropCounts:
    """How many drops of a session are where.

    Attributes
    ----------
    total
        All drops of the answer; the others add up to it.
    completed
        Completed, expired or deleted.
    error
        In error, or whose application ended in error; also those downstream of an error.
    running
        Being written, or whose application runs.
    waiting
        Not begun, or in a state that cannot be read.
    cancelled, skipped
        As the engine says.
    """

    total: int = 0
    completed: int = 0
    error: int = 0
    running: int = 0
    waiting: int = 0
    cancelled: int = 0
    skipped: int = 0

    @property
    def pending(self) -> int:
        """Drops that have not come to an end."""
        return self.running + self.waiting

    def as_dict(self) -> dict[str, JsonValue]:
        """The counts as JSON."""
        return {
            "total": self.total,
            "completed": self.completed,
            "error": self.error,
            "running": self.running,
            "waiting": self.waiting,
            "cancelled": self.cancelled,
            "skipped": self.skipped,
        }


def count_drops(graph_status: JsonValue) -> DropCounts:
    """Count a graph's status.

    Parameters
    ----------
    graph_status
        An object with one entry a drop: ``{"status": n}``, for applications also ``execStatus``; or
        the bare state. Anything else counts as no drop at all.
    """
    if not isinstance(graph_status, dict):
        return DropCounts()
    kinds = [_kind(entry) for entry in graph_status.values()]
    return DropCounts(
        total=len(kinds),
        completed=kinds.count("completed"),
        error=kinds.count("error"),
        running=kinds.count("running"),
        waiting=kinds.count("waiting"),
        cancelled=kinds.count("cancelled"),
        skipped=kinds.count("skipped"),
    )


def error_oids(graph_status: JsonValue) -> list[str]:
    """Identifiers of the drops in error, applications first.

    An error is handed down the graph, so that most of these are consequences; what went wrong is
    among the applications.
    """
    if not isinstance(graph_status, dict):
        return []
    wrong = [oid for oid, entry in graph_status.items() if _kind(entry) == "error"]
    return sorted(wrong, key=lambda oid: not _is_app(graph_status[oid]))


def missing_oids(graph_status: JsonValue, expected: Iterable[str]) -> list[str]:
    """The expected drops that a graph's status does not name, sorted."""
    known: Mapping[str, JsonValue] = graph_status if isinstance(graph_status, dict) else {}
    return sorted(oid for oid in expected if oid not in known)


def fault_of(graph_status: JsonValue, expected: frozenset[str] | None) -> str | None:
    """Why a session that says finished did not do its work.

    Parameters
    ----------
    graph_status
        The state of each drop.
    expected
        The drops that the session must have; None when not known.

    Returns
    -------
    str or None
        None when nothing speaks against it; drops that have not ended yet do not.
    """
    drops = count_drops(graph_status)
    if drops.total == 0:
        return "it finished without a single drop"
    missing = missing_oids(graph_status, expected or ())
    if missing:
        shown = ", ".join(missing[:_SHOWN]) + (", ..." if len(missing) > _SHOWN else "")
        return f"it finished without {len(missing)} of its drops: {shown}"
    if drops.error:
        return f"it finished, but {drops.error} of {drops.total} drops are in error"
    if drops.cancelled:
        return f"it finished, but {drops.cancelled} of {drops.total} drops were cancelled"
    return None


def _is_app(entry: JsonValue) -> bool:
    return isinstance(entry, dict) and "execStatus" in entry


def _kind(entry: JsonValue) -> str:
    drop: JsonValue = entry
    run: JsonValue = None
    if isinstance(entry, dict):
        # Without the drop's own state an entry says nothing: neither an end nor an error.
        drop = entry.get("status")
        run = entry.get("execStatus") if drop is not None else None
    if isinstance(drop, str) and ("ERROR" in drop.upper() or "FAILED" in drop.upper()):
        return "error"
    state, app = _pick(_DROPS, drop), _pick(_APPS, run)
    if state is DropState.ERROR or app is AppState.ERROR:
        return "error"
    if state is DropState.CANCELLED or state is DropState.SKIPPED:
        return state.value
    if state in _DONE:
        return "completed"
    return "running" if state is DropState.WRITING or app is AppState.RUNNING else "waiting"


def _pick(states: tuple[StrEnum, ...], value: JsonValue) -> StrEnum | None:
    if isinstance(value, str):
        word = value.strip().lower()
        return next((state for state in states if state.value == word), None)
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(states):
        return states[value]
    return None
