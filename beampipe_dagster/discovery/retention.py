"""Keys of signatures that leave Dagster's partitions, so that its pages stay quick; the ledger keeps everything.

A key is first retired in the ledger, and then taken out of Dagster by whoever can talk to it. What dies in between
is found again: a retired key that Dagster still knows is taken out at the next turn, and one that came back in the
meantime is put in again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from beampipe_dagster.clock import Clock
from beampipe_dagster.config.canonical import JsonValue
from beampipe_dagster.ledger import partitions, projects
from beampipe_dagster.ledger.engine import Ledger
from beampipe_dagster.ledger.partitions import SettledKey

KEYS_AT_A_TIME: Final = 5000
"""Keys that one turn retires: Dagster takes them out one by one, at 5 to 20 ms each."""


@dataclass(frozen=True, slots=True)
class RetentionPlan:
    """Which keys of a survey are to be retired.

    Attributes
    ----------
    live
        Keys before that.
    due
        Superseded keys that have been settled for long enough.
    over
        Keys that go before their time, because there are too many: superseded ones first, and then those whose
        execution was completed.
    settled
        Keys that could be retired, those of ``due`` and ``over`` among them.
    limit
        Keys that there are to be at most.
    """

    project_id: str
    live: int
    due: tuple[SettledKey, ...]
    over: tuple[SettledKey, ...]
    settled: int
    limit: int

    @property
    def retire(self) -> tuple[SettledKey, ...]:
        """All that are to be retired."""
        return (*self.due, *self.over)

    @property
    def left(self) -> int:
        """Keys after that; more than ``limit`` when too many of them are needed still."""
        return self.live - len(self.due) - len(self.over)

    def as_dict(self) -> dict[str, JsonValue]:
        """Counts and keys, for people and for machines."""
        return {
            "project_id": self.project_id,
            "live": self.live,
            "due": len(self.due),
            "over": len(self.over),
            "left": self.left,
            "settled": self.settled,
            "limit": self.limit,
            "keys": [key.partition_key for key in self.retire],
        }


class PartitionRetention:
    """Decides which keys leave Dagster's partitions.

    Parameters
    ----------
    keep
        For how long a superseded key stays after it is settled.
    live_keys
        Keys of a survey that there are to be at most, where that is possible.
    """

    def __init__(self, *, ledger: Ledger, clock: Clock, keep: timedelta, live_keys: int) -> None:
        self._ledger = ledger
        self._clock = clock
        self._keep = keep
        self._live_keys = live_keys

    def plan(self, project_id: str, *, keep: timedelta | None = None) -> RetentionPlan:
        """What :meth:`retire` would do now; changes nothing.

        Parameters
        ----------
        keep
            Instead of the time that the process was made with.

        Raises
        ------
        NotFoundError
            ``project_not_found``.
        """
        before = self._clock.now() - (self._keep if keep is None else keep)
        with self._ledger.read() as conn:
            projects.active(conn, project_id)
            live = partitions.live_count(conn, project_id)
            keys = partitions.settled(conn, project_id)
        due = [key for key in keys if key.superseded and key.settled_at <= before][:KEYS_AT_A_TIME]
        chosen = {key.change_id for key in due}
        rest = [key for key in keys if key.change_id not in chosen]
        more = max(0, min(live - len(due) - self._live_keys, KEYS_AT_A_TIME - len(due)))
        return RetentionPlan(project_id, live, tuple(due), tuple(rest[:more]), len(keys), self._live_keys)

    def retire(self, project_id: str, *, keep: timedelta | None = None) -> RetentionPlan:
        """Retire the keys that have had their time, in the ledger; what that was.

        Raises
        ------
        NotFoundError
            ``project_not_found``.
        """
        plan = self.plan(project_id, keep=keep)
        if plan.retire:
            with self._ledger.begin() as conn:
                partitions.retire(conn, [key.change_id for key in plan.retire], now=self._clock.now())
        return plan

    def removable(self, project_id: str, known: Sequence[str]) -> list[str]:
        """Those of the keys that Dagster knows which are to be taken out of it now."""
        with self._ledger.read() as conn:
            found = partitions.removable(conn, project_id, known, before=self._clock.now() - self._keep)
        return found[:KEYS_AT_A_TIME]

    def returned(self, project_id: str, removed: Sequence[str]) -> list[str]:
        """Those of the keys just taken out that came back meanwhile, and must be put in again."""
        gone = set(self.removable(project_id, removed))
        return [key for key in removed if key not in gone]
