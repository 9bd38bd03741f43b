"""When a session is looked at next: often at the start, less often later, less and less while nobody answers."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy.engine import Connection

from beampipe_dagster.errors import BeampipeError
from beampipe_dagster.ledger import projects

LONGEST_SECONDS: Final = 60.0
"""The longest time between two looks, where the survey does not ask for a longer one."""
SHORTEST_SECONDS: Final = 1.0
"""No survey is looked at more often."""

_AGE_SHARE = 20
_MOST_DOUBLINGS = 10
_JITTER = 0.1


@dataclass(frozen=True, slots=True)
class Cadence:
    """How often a survey's sessions are looked at.

    Attributes
    ----------
    interval
        Shortest time between two looks, in seconds.
    max_rounds
        Answered looks at a running session after which an operator is told; never when None.
    """

    interval: float
    max_rounds: int | None = None

    def wait(self, *, age: float, failures: int = 0, key: str = "") -> float:
        """Seconds until the next look.

        Parameters
        ----------
        age
            Seconds for which the session has been running: a twentieth of it is waited.
        failures
            Looks in a row that nobody answered: each doubles the wait.
        key
            What the wait is about; it decides by how much, up to a tenth, a wait above the shortest one is
            stretched, so that sessions which began together are not looked at together for ever.
        """
        longest = max(self.interval, LONGEST_SECONDS)
        if failures > 0:
            wait = self.interval * 2.0 ** min(failures, _MOST_DOUBLINGS)
        else:
            wait = max(self.interval, age / _AGE_SHARE)
        wait = min(wait, longest)
        if wait <= self.interval:
            return wait
        return wait * (1 + _JITTER * (zlib.crc32(key.encode()) % 1000) / 1000)


class Cadences:
    """The cadence of each revision of a survey; a revision never changes, and is read once.

    Parameters
    ----------
    interval
        Where a survey says nothing.
    """

    def __init__(self, *, interval: float) -> None:
        self._default = interval
        self._known: dict[str, Cadence] = {}

    def of(self, conn: Connection, revision_id: str) -> Cadence:
        """The cadence that a revision asks for; the default for one that cannot be read."""
        if revision_id not in self._known:
            try:
                spec: Any = projects.revision(conn, revision_id).spec
            except BeampipeError:
                return Cadence(self._default)
            self._known[revision_id] = self._read(spec)
        return self._known[revision_id]

    def _read(self, spec: object) -> Cadence:
        automation: object = spec
        for name in ("automation", "execution"):
            automation = automation.get(name) if isinstance(automation, Mapping) else None
        if not isinstance(automation, Mapping):
            return Cadence(self._default)
        interval = automation.get("execution_rest_remote_poll_interval_seconds")
        rounds = automation.get("execution_rest_remote_poll_max_rounds")
        return Cadence(
            max(SHORTEST_SECONDS, float(interval)) if isinstance(interval, int | float) else self._default,
            rounds if isinstance(rounds, int) else None,
        )
