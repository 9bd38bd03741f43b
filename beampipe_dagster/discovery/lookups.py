"""Answers about scheduling blocks, kept for a moment: several sources, and several claims, share a block.

Only complete answers are kept, and only for as long as a tick. A source that somebody asked for after an answer came
is not looked at with that answer.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final, cast

from beampipe_dagster.clock import Clock
from beampipe_dagster.discovery.archive import Archive
from beampipe_dagster.discovery.batch_query import Ask, Reply

TTL_SECONDS: Final = 30.0
"""How long an answer is kept."""
MAX_ENTRIES: Final = 5000
"""Answers that are kept, at most."""
MAX_ROWS: Final = 200
"""Rows of an answer that is kept, at most: a longer one would take memory that nobody counts."""


@dataclass(frozen=True, slots=True)
class _Entry:
    """An answer, when its asking began, and the archive that gave it, which is kept so that it stays itself."""

    archive: Archive
    asked_at: datetime
    until: float
    reply: Reply


class Lookups:
    """Answers of a moment ago, by archive and text of the query; safe to use from several threads.

    Parameters
    ----------
    clock
        Time.
    ttl_seconds
        How long an answer is kept; not longer than a tick.
    max_entries
        Answers that are kept; the oldest give way.
    """

    def __init__(
        self, *, clock: Clock, ttl_seconds: float = TTL_SECONDS, max_entries: int = MAX_ENTRIES
    ) -> None:
        self._clock = clock
        self._ttl = ttl_seconds
        self._max = max_entries
        self._lock = threading.Lock()
        self._entries: OrderedDict[tuple[str, Hashable, str], _Entry] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def since(self, moment: datetime | None) -> Recent:
        """The answers that were asked for after a moment."""
        return Recent(self, moment)

    def get(self, adapter: str, archive: Archive, text: str, *, since: datetime | None) -> Reply | None:
        """The reply that is still good."""
        with self._lock:
            entry = self._entries.get((adapter, _identity(archive), text))
        if entry is None or entry.until <= self._clock.monotonic():
            return None
        if since is not None and entry.asked_at <= since:
            return None
        return replace(entry.reply, asked_at=entry.asked_at)

    def put(
        self, adapter: str, archive: Archive, replies: Mapping[str, Reply], *, asked_at: datetime
    ) -> None:
        """Keep what is complete of these."""
        now = self._clock.monotonic()
        with self._lock:
            for text, reply in replies.items():
                if reply.error is None and len(reply.rows) <= MAX_ROWS:
                    key = (adapter, _identity(archive), text)
                    self._entries[key] = _Entry(archive, asked_at, now + self._ttl, reply)
                    self._entries.move_to_end(key)
            while self._entries and (
                len(self._entries) > self._max or next(iter(self._entries.values())).until <= now
            ):
                self._entries.popitem(last=False)

    def now(self) -> datetime:
        """The time that an asking begins at."""
        return self._clock.now()


def _identity(archive: Archive) -> Hashable:
    """What makes two archives the same: being equal, or the same object where that is not defined."""
    try:
        hash(archive)
    except TypeError:
        return id(archive)
    return cast("Hashable", archive)


@dataclass(frozen=True, slots=True)
class Recent:
    """The kept answers that are new enough for one claim."""

    lookups: Lookups
    moment: datetime | None

    def through(
        self,
        adapter: str,
        archive: Archive,
        asks: Mapping[str, Ask],
        ask: Callable[[Mapping[str, Ask]], dict[str, Reply]],
    ) -> dict[str, Reply]:
        """Replies for all that is asked; only what is not kept is really asked for.

        Parameters
        ----------
        adapter, archive
            Whom it is asked of.
        asks
            What is asked for, by the ADQL for one.
        ask
            Asks for some of it.
        """
        known = {
            text: found
            for text in asks
            if (found := self.lookups.get(adapter, archive, text, since=self.moment)) is not None
        }
        rest = {text: one for text, one in asks.items() if text not in known}
        asked_at = self.lookups.now()
        fresh = ask(rest) if rest else {}
        self.lookups.put(adapter, archive, fresh, asked_at=asked_at)
        told = {
            text: replace(reply, evidence={**reply.evidence, "kept": True}) for text, reply in known.items()
        }
        return {text: told[text] if text in told else fresh[text] for text in asks}
