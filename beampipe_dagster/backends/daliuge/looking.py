"""Looking at sessions on an island manager: many in a few requests, never longer than allowed.

*Finished* is not success: a session without drops finishes at once, and a failing one may say finished before it
says failed; so a finished session is looked at again and its drops are counted. The states of many sessions come
from one listing a node; only what the listing cannot tell (drops, and what went wrong) is asked session by session.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from threading import Event
from typing import Final

from beampipe_dagster.backends.base import FailedDrop, SessionObservation
from beampipe_dagster.backends.daliuge.manager import NODE_UNREACHABLE, SESSION_ABSENT, IslandManager
from beampipe_dagster.backends.daliuge.states import (
    ABSENT,
    DaliugeState,
    DropCounts,
    DropState,
    absent_nodes,
    count_drops,
    error_oids,
    fault_of,
    is_absent,
    loss_of,
    overall_state,
)
from beampipe_dagster.clock import Clock
from beampipe_dagster.config.canonical import JsonValue
from beampipe_dagster.discovery.staging.redaction import hidden
from beampipe_dagster.errors import BackendError

SESSION_ID: Final = re.compile(r"[A-Za-z0-9.-]{1,200}")
LISTED_FROM: Final = 3
"""From so many sessions on they are listed: a listing takes a request, and one more a node."""

_MAX_FAILED = 10
_MAX_LOGS_READ = 30
_NOT_KNOWN = "the manager does not know this session"
_NOT_ASKED = "not asked: the manager or one of its nodes is away"
_AWAY = frozenset({NODE_UNREACHABLE, "backend_unreachable", "backend_no_answer", "backend_not_authorised"})


@dataclass(slots=True)
class _Round:
    """One observation of many sessions: when it has to end, and whether the manager turned out to be away."""

    clock: Clock
    deadline: float | None
    away: Event = field(default_factory=Event)

    def over(self) -> bool:
        return self.deadline is not None and self.clock.monotonic() >= self.deadline


class SessionLooks:
    """Observes sessions of one island manager.

    Parameters
    ----------
    manager
        The island manager's client.
    clock
        Time.
    concurrency
        How many requests are under way at the same time.
    settle_seconds
        How long after a session said *finished* it is looked at again.
    """

    def __init__(
        self, *, manager: IslandManager, clock: Clock, concurrency: int, settle_seconds: float
    ) -> None:
        self._manager = manager
        self._clock = clock
        self._concurrency = max(1, concurrency)
        self._settle_seconds = settle_seconds

    def observe(
        self,
        sessions: Mapping[str, frozenset[str] | None],
        *,
        counted: Collection[str] | None = None,
        seconds: float | None = None,
    ) -> dict[str, SessionObservation]:
        """Look at many sessions: once, and once more at those that say *finished*.

        As soon as the manager or a node turns out to be away, the rest are unreachable unasked:
        every call would take the manager the same 10 s to find that out.
        """
        deadline = None if seconds is None else self._clock.monotonic() + seconds
        turn = _Round(self._clock, deadline)
        seen: dict[str, SessionObservation] = {}
        with ThreadPoolExecutor(max_workers=self._concurrency) as pool:

            def each(
                look: Callable[[str], SessionObservation | None], names: Iterable[str]
            ) -> dict[str, SessionObservation]:
                wanted = list(names)
                looks = pool.map(lambda name: None if turn.over() else look(name), wanted)
                return {name: one for name, one in zip(wanted, looks, strict=True) if one is not None}

            raws: dict[str, JsonValue] = {}
            for name, found in self._states(list(sessions), turn, pool).items():
                if isinstance(found, SessionObservation):
                    seen[name] = found
                else:
                    raws[name] = found.raw
            states = {name: overall_state(raw) for name, raw in raws.items()}
            finished = [name for name, state in states.items() if state is DaliugeState.FINISHED]
            others = [name for name in raws if states[name] is not DaliugeState.FINISHED]
            seen |= each(
                lambda name: self._first(name, raws[name], counts=counted is None or name in counted), others
            )
            if finished and not turn.over():
                self._clock.sleep(self._settle_seconds)
                seen |= each(lambda name: self._confirm(name, sessions, turn), finished)
        return seen

    def seen(
        self,
        session_id: str,
        state: DaliugeState,
        *,
        raw: JsonValue = None,
        drops: DropCounts | None = None,
        failed: tuple[FailedDrop, ...] = (),
        reason: str | None = None,
    ) -> SessionObservation:
        """An observation made now."""
        return SessionObservation(
            session_id=session_id,
            state=state,
            raw=raw,
            drops=drops,
            failed_drops=failed,
            observed_at=self._clock.now(),
            reason=reason,
        )

    # ---------------------------------------------------------------- states

    def _states(
        self, names: Sequence[str], turn: _Round, pool: ThreadPoolExecutor
    ) -> dict[str, _Said | SessionObservation]:
        """What the manager says about each session, or the observation where it says nothing."""
        found: dict[str, _Said | SessionObservation] = {}
        possible = []
        for name in names:
            if SESSION_ID.fullmatch(name):
                possible.append(name)
            else:
                reason = "no session can have this id"
                found[name] = self.seen(name, DaliugeState.NOT_CREATED, reason=reason)
        if len(possible) >= LISTED_FROM:
            listed = self._listed(possible, turn, pool)
            if listed is not None:
                return found | listed
        if not possible:
            return found
        # One probe alone: when it finds the manager away, nobody else need wait for that.
        first, *rest = possible
        found[first] = self._status(first, turn)
        looks = pool.map(lambda name: None if turn.over() else self._status(name, turn), rest)
        found.update({name: one for name, one in zip(rest, looks, strict=True) if one is not None})
        return found

    def _listed(
        self, names: Sequence[str], turn: _Round, pool: ThreadPoolExecutor
    ) -> dict[str, _Said | SessionObservation] | None:
        """The states from one listing a node; None when the manager has no such call."""
        try:
            nodes = self._manager.nodes()
            if not nodes:
                return None
            tables = dict(zip(nodes, pool.map(self._manager.node_sessions, nodes), strict=True))
        except BackendError as error:
            if error.code not in _AWAY:
                return None
            turn.away.set()
            away = DaliugeState.UNREACHABLE
            return {name: self.seen(name, away, reason=error.message) for name in names}
        answers: dict[str, _Said | SessionObservation] = {}
        for name in names:
            raw: dict[str, JsonValue] = {node: table.get(name, ABSENT) for node, table in tables.items()}
            answers[name] = self._known(name, raw)
        return answers

    def _status(self, name: str, turn: _Round) -> _Said | SessionObservation:
        if turn.away.is_set():
            return self.seen(name, DaliugeState.UNREACHABLE, reason=_NOT_ASKED)
        try:
            raw = self._manager.status(name)
        except BackendError as error:
            return self._problem(name, error, turn)
        return self._known(name, raw)

    def _known(self, name: str, raw: JsonValue) -> _Said | SessionObservation:
        if is_absent(raw):
            return self.seen(name, DaliugeState.NOT_CREATED, raw=raw, reason=_NOT_KNOWN)
        return _Said(raw)

    def _problem(self, name: str, error: BackendError, turn: _Round) -> SessionObservation:
        if error.code == SESSION_ABSENT:
            return self.seen(name, DaliugeState.NOT_CREATED, reason=_NOT_KNOWN)
        if error.code in _AWAY:
            turn.away.set()
        return self.seen(name, DaliugeState.UNREACHABLE, reason=error.message)

    # ---------------------------------------------------------------- one session

    def _first(self, name: str, raw: JsonValue, *, counts: bool) -> SessionObservation:
        """A session that does not say finished: its state as the manager says it, and its drops."""
        state, reason = overall_state(raw), loss_of(raw)
        if state is DaliugeState.FAILED:
            return self._failed(name, raw, reason)
        if state is DaliugeState.UNKNOWN:
            reason = reason or f"the manager's answer means nothing: {str(raw)[:200]}"
        drops = None
        if counts and state in {DaliugeState.RUNNING, DaliugeState.CANCELLED}:
            with suppress(BackendError):
                drops = count_drops(self._graph(name, raw))
        return self.seen(name, state, raw=raw, drops=drops, reason=reason)

    def _confirm(
        self, name: str, sessions: Mapping[str, frozenset[str] | None], turn: _Round
    ) -> SessionObservation:
        """Second look at a session that said finished: is it, and are its drops there."""
        said = self._status(name, turn)
        if isinstance(said, SessionObservation):
            return said
        raw = said.raw
        state = overall_state(raw)
        if state is DaliugeState.FAILED:
            return self._failed(name, raw, "it said finished first")
        if state is not DaliugeState.FINISHED:
            return self.seen(name, state, raw=raw, reason="it said finished first")
        try:
            graph = self._graph(name, raw)
        except BackendError as error:
            return self._problem(name, error, turn)
        expected = sessions[name]
        drops, loss = count_drops(graph), loss_of(raw)
        fault = fault_of(graph, expected)
        if loss and (fault or expected is None):
            fault = f"{loss}; {fault or 'nobody can say which drops it had there'}"
        if fault is not None:
            return self._failed(name, raw, fault, graph=graph)
        reason = None
        if drops.pending:
            state = DaliugeState.RUNNING
            reason = f"it says finished, but {drops.pending} of {drops.total} drops have not ended"
        return self.seen(name, state, raw=raw, drops=drops, reason=reason)

    def _graph(self, name: str, raw: JsonValue) -> JsonValue:
        """The state of each drop, on the nodes that know the session."""
        if not absent_nodes(raw) or not isinstance(raw, dict):
            return self._manager.graph_status(name)
        # Asked for all nodes at once, the manager fails over the one that lost the session.
        merged: dict[str, JsonValue] = {}
        for node in sorted(set(raw) - set(absent_nodes(raw))):
            part = self._manager.node_graph_status(node, name)
            merged.update(part if isinstance(part, dict) else {})
        return merged

    def _failed(
        self, name: str, raw: JsonValue, reason: str | None, *, graph: JsonValue = None
    ) -> SessionObservation:
        """The observation of a failed session, with what its drops have to say."""
        if graph is None:
            with suppress(BackendError):
                graph = self._graph(name, raw)
        drops = count_drops(graph) if graph is not None else None
        failed = self._failed_drops(name, error_oids(graph))
        if reason is None and drops is not None and drops.error:
            reason = f"{drops.error} of {drops.total} drops are in error"
        return self.seen(name, DaliugeState.FAILED, raw=raw, drops=drops, failed=failed, reason=reason)

    def _failed_drops(self, name: str, oids: Sequence[str]) -> tuple[FailedDrop, ...]:
        if not oids:
            return ()
        names: dict[str, str] = {}
        with suppress(BackendError):
            names = self._manager.drop_names(name)
        found = []
        for oid in oids[:_MAX_LOGS_READ]:
            log = ""
            with suppress(BackendError):
                # A command may say which files it was given, and the URL of a staged file lets in.
                log = hidden(self._manager.drop_log(name, oid))
            label = names.get(oid, oid)
            found.append(FailedDrop(oid=oid, name=label, state=DropState.ERROR.value, log=log))
        # A drop that only inherited the error has logged nothing.
        found.sort(key=lambda drop: not drop.log)
        return tuple(found[:_MAX_FAILED])


@dataclass(frozen=True, slots=True)
class _Said:
    """A manager's own words about a session."""

    raw: JsonValue
