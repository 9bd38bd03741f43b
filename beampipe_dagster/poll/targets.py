"""Asking many managers at the same time, so that one that is away delays nobody else.

A manager whose node is down takes 10 s to say so. Each target is therefore asked in a thread of its own, and a tick
does not wait for the slowest: its answers are taken by a later tick, and until then it is not asked again.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from beampipe_dagster.backends.base import Backend, SessionObservation, SessionPresence
from beampipe_dagster.clock import Clock
from beampipe_dagster.errors import BeampipeError
from beampipe_dagster.ledger.execution_values import Execution
from beampipe_dagster.ledger.polling import InFlight

AT_ONCE: Final = 32
"""Targets that are asked at the same time; the others wait for the next tick."""
ASK_SECONDS: Final = 20.0
"""After so long a target is asked nothing more in its turn."""

_BLINK = 0.05


@dataclass(frozen=True, slots=True)
class Questions:
    """What one target is asked.

    Attributes
    ----------
    due
        Submitted executions to look at, and by their sessions the drops that each must have.
    counted
        Sessions whose drops are counted while they run.
    uncertain
        Submissions whose session is looked for.
    """

    backend: Backend
    due: Sequence[InFlight] = ()
    expected: Mapping[str, frozenset[str] | None] = field(default_factory=dict)
    counted: frozenset[str] = frozenset()
    uncertain: Sequence[Execution] = ()


@dataclass(frozen=True, slots=True)
class Answers:
    """What it said; a session that there was no time for is in neither."""

    asked: Questions
    seen: Mapping[str, SessionObservation]
    presences: Mapping[str, SessionPresence]
    defect: BaseException | None = None


class Targets:
    """Asks, and remembers who has not answered yet.

    Parameters
    ----------
    clock
        Time.
    """

    def __init__(self, *, clock: Clock) -> None:
        self._clock = clock
        self._answers: queue.SimpleQueue[Answers] = queue.SimpleQueue()
        self._busy: set[str] = set()

    @property
    def busy(self) -> frozenset[str]:
        """Targets that are being asked, or whose answers nobody has taken yet."""
        return frozenset(self._busy)

    def ask(self, questions: Sequence[Questions], *, deadline: float) -> Iterator[Answers]:
        """Ask all at the same time; answers come as they arrive, also late ones of earlier turns.

        Parameters
        ----------
        questions
            At most one for each target; those to targets that are still busy are left out.
        deadline
            When to stop waiting, as the clock's ``monotonic``.
        """
        for one in questions:
            url = one.backend.url
            if url in self._busy or len(self._busy) >= AT_ONCE:
                continue
            self._busy.add(url)
            threading.Thread(target=self._turn, args=(one,), name=f"poll {url}", daemon=True).start()
        while self._busy:
            try:
                answers = self._answers.get(timeout=_BLINK)
            except queue.Empty:
                if self._clock.monotonic() >= deadline:
                    return
                continue
            self._busy.discard(answers.asked.backend.url)
            yield answers

    def _turn(self, asked: Questions) -> None:
        presences: dict[str, SessionPresence] = {}
        try:
            end = self._clock.monotonic() + ASK_SECONDS
            self._look_for(asked, presences, end)
            seen = asked.backend.observe(asked.expected, counted=asked.counted, seconds=ASK_SECONDS)
        except BaseException as error:  # noqa: BLE001  # raised again where the tick can be seen to fail
            self._answers.put(Answers(asked, {}, presences, error))
        else:
            self._answers.put(Answers(asked, seen, presences))

    def _look_for(self, asked: Questions, presences: dict[str, SessionPresence], end: float) -> None:
        away = False
        for execution in asked.uncertain:
            if self._clock.monotonic() >= end:
                return
            session = execution.daliuge_session_id or ""
            try:
                # Once it is away every question would take as long to fail.
                found = SessionPresence.UNREACHABLE if away else asked.backend.presence(session)
            except BeampipeError:
                found = SessionPresence.UNREACHABLE
            presences[execution.id] = found
            away = found is SessionPresence.UNREACHABLE
