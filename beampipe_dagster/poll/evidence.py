"""Evidence about a submission without a receipt: who was asked, when, and what follows from the answers.

Pure functions over the observations of an execution. A look counts as *negative* only when it was complete: every
node of the very manager that the intent names said that it does not run the session. What was said about another
session, or by another manager, proves nothing about this one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from beampipe_dagster.backends.base import SessionPresence
from beampipe_dagster.config.canonical import JsonValue, digest

KIND = "daliuge_session"
_NEGATIVE = frozenset({SessionPresence.ABSENT, SessionPresence.UNDEPLOYED})


@dataclass(frozen=True, slots=True)
class Look:
    """One look for a session.

    Attributes
    ----------
    at
        When.
    presence
        What was found.
    """

    at: datetime
    presence: SessionPresence

    @property
    def negative(self) -> bool:
        """Whether it was complete, and the session does not run."""
        return self.presence in _NEGATIVE


def fingerprint(session_id: str | None, manager_url: str | None) -> str:
    """What tells one intent's target from another's: the digest of the session's name and its manager."""
    return digest({"session_id": session_id, "manager_url": manager_url})


def payload(session_id: str | None, manager_url: str | None) -> dict[str, JsonValue]:
    """What is kept with a look, so that :func:`looks` can find it."""
    return {
        "session_id": session_id,
        "manager_url": manager_url,
        "target": fingerprint(session_id, manager_url),
    }


def looks(observations: Iterable[Mapping[str, Any]], target: str) -> list[Look]:
    """The looks for one target among an execution's observations, oldest first."""
    known = {presence.value: presence for presence in SessionPresence}
    found = [
        Look(one["observed_at"], known[one["normalized_state"]])
        for one in observations
        if one["kind"] == KIND
        and one["normalized_state"] in known
        and isinstance(one["payload"], Mapping)
        and one["payload"].get("target") == target
    ]
    return sorted(found, key=lambda look: look.at)


def negatives(given: Iterable[Look]) -> list[Look]:
    """The negative looks since the session was last seen to run; looks that say nothing are left out."""
    run: list[Look] = []
    for look in given:
        if look.negative:
            run.append(look)
        elif look.presence is SessionPresence.DEPLOYED:
            run.clear()
    return run


def disproved(given: Iterable[Look], *, number: int, span: timedelta) -> bool:
    """Whether enough complete negative looks, far enough apart, say that it was not started."""
    run = negatives(given)
    return len(run) >= number and run[-1].at - run[0].at >= span
