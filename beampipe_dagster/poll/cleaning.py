"""Sessions that terminal executions left behind: removed where the settings say so, a few a tick.

Only sessions that this ledger made are touched: their names follow from its executions, one an attempt. A session of
an attempt that is over may run although nobody believed it: it is cancelled before it is deleted.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from datetime import timedelta
from typing import Final

from beampipe_dagster.backends.base import Backend
from beampipe_dagster.clock import Clock
from beampipe_dagster.errors import BeampipeError
from beampipe_dagster.execution.submission import session_pattern
from beampipe_dagster.ids import Ids
from beampipe_dagster.ledger import polling, provenance
from beampipe_dagster.ledger.engine import Ledger
from beampipe_dagster.ledger.polling import LeftBehind

AT_A_TIME: Final = 20
"""Executions whose sessions are removed in one tick."""
KEPT_FOR: Final = timedelta(days=7)
"""Older ones are left alone: when the setting is switched on, history is not gone through."""
AGAIN: Final = timedelta(minutes=10)
ATTEMPTS: Final = 20
"""So many of an execution's last attempts are looked at."""


class Cleaning:
    """Removes sessions of terminal executions."""

    def __init__(
        self, *, ledger: Ledger, clock: Clock, ids: Ids, backend_of: Callable[[dict[str, object]], Backend]
    ) -> None:
        self._ledger = ledger
        self._clock = clock
        self._ids = ids
        self._backend_of = backend_of

    def run(self, *, avoid: Collection[str], deadline: float) -> list[str]:
        """Remove what is due.

        Parameters
        ----------
        avoid
            URLs of managers that are not asked now.
        deadline
            When to stop, as the clock's ``monotonic``.

        Returns
        -------
        list of str
            The executions whose sessions are gone now.
        """
        now = self._clock.now()
        with self._ledger.read() as conn:
            found = polling.left_behind(conn, now=now, since=now - KEPT_FOR, limit=AT_A_TIME)
        away = set(avoid)
        done = []
        for one in found:
            if self._clock.monotonic() >= deadline:
                break
            if self._clean(one, away):
                done.append(one.id)
        return done

    def _clean(self, one: LeftBehind, away: set[str]) -> bool:
        try:
            backend = self._backend_of(one.deployment_profile_snapshot)
        except BeampipeError as error:
            return self._later(one, error)
        if backend.url in away:
            return False
        try:
            for session in sessions_of(one):
                backend.remove(session)
        except BeampipeError as error:
            away.add(backend.url)
            return self._later(one, error)
        with self._ledger.begin() as conn:
            polling.removed(conn, one, again_at=None)
        return True

    def _later(self, one: LeftBehind, error: BeampipeError) -> bool:
        now = self._clock.now()
        with self._ledger.begin() as conn:
            polling.removed(conn, one, again_at=now + AGAIN)
            event = provenance.Event(
                event_type="execution.session_left_behind",
                project_module=one.project_module,
                execution_id=one.id,
                payload=error.as_dict(),
            )
            provenance.record(conn, [event], ids=self._ids, now=now)
        return False


def sessions_of(one: LeftBehind) -> list[str]:
    """The names of the sessions that an execution's attempts had, the last one first."""
    created = one.created_at.strftime("%Y-%m-%dT%H-%M-%S")
    first = max(1, one.attempt - ATTEMPTS + 1)
    names = [session_pattern(one.id, created, str(attempt)) for attempt in range(one.attempt, first - 1, -1)]
    return list(dict.fromkeys([one.session_id, *names]))
