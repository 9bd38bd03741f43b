"""How much of a shared room a survey may take now: caps, and turns between surveys. Pure functions over counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from beampipe_dagster.config.canonical import JsonValue

PROJECT_CAP: Final = "project_in_flight_cap"
GLOBAL_CAP: Final = "in_flight_cap"
PROFILE_CAP: Final = "profile_in_flight_cap"
TICK_LIMIT: Final = "rate_limited"
FAIR_SHARE: Final = "fair_share"


def can_admit(current: int, cap: int) -> bool:
    """Whether a cap that ``current`` executions use up allows another one."""
    return current < cap


def budget(desired: int) -> int:
    """How many are admitted where ``desired`` may be: never less than none."""
    return max(0, desired)


@dataclass(frozen=True, slots=True)
class Cap:
    """How much of a room is in use; a ``limit`` of ``None`` is none."""

    code: str
    current: int
    limit: int | None

    @property
    def room(self) -> int | None:
        """How many more fit; ``None`` for any number."""
        return None if self.limit is None else budget(self.limit - self.current)

    @property
    def full(self) -> bool:
        """Whether nothing more fits."""
        return self.limit is not None and not can_admit(self.current, self.limit)

    def words(self) -> str:
        """The cap in words: ``in_flight_cap: 2 of 2 are active``."""
        return f"{self.code}: {self.current} of {self.limit} are active"


def as_json(caps: Sequence[Cap]) -> dict[str, JsonValue]:
    """The caps as the ledger keeps them: ``{code: [in use, limit]}``."""
    return {cap.code: [cap.current, cap.limit] for cap in caps}


def room(caps: Sequence[Cap], *, tick_limit: int) -> tuple[int, str]:
    """How many executions fit now, and the code of what limits them; of equal limits the first one."""
    limits = [(tick_limit, TICK_LIMIT), *((cap.room, cap.code) for cap in caps if cap.room is not None)]
    number, reason = min(limits, key=lambda limit: limit[0])
    return budget(number), reason


@dataclass(frozen=True, slots=True)
class Contender:
    """A survey that wants a part of a room.

    Attributes
    ----------
    active
        Its executions that are in the room now.
    wanted
        How many more it could begin now, its own caps considered.
    weight
        Its share beside those of the others.
    served
        How much it was given so far, in executions over weights.
    """

    project_id: str
    active: int
    wanted: int
    weight: float
    served: float


def turns(contenders: Sequence[Contender], free: int) -> dict[str, int]:
    """How many of ``free`` places each survey gets: weighted round-robin, and nothing is left that one wants.

    A place goes to the survey with the fewest executions in the room for its weight; of equals, to the one that
    was given the least so far. A survey that waits with none in the room therefore gets a place after a bounded
    number of others, however many those want.
    """
    given = dict.fromkeys((one.project_id for one in contenders), 0)
    for _ in range(budget(free)):
        wanting = [one for one in contenders if given[one.project_id] < one.wanted]
        if not wanting:
            break
        chosen = min(wanting, key=lambda one: _place(one, given[one.project_id]))
        given[chosen.project_id] += 1
    return given


def _place(one: Contender, given: int) -> tuple[float, float, str]:
    return (one.active + given) / one.weight, one.served + given / one.weight, one.project_id


def levelled(contenders: Sequence[Contender]) -> list[Contender]:
    """The same surveys, none of which is behind by more than one turn.

    One that wanted nothing for long has no claim on what it did not take then. Every tick levels the same numbers
    in the same way, so that no two of them wait for each other.
    """
    least = max((one.served for one in contenders), default=0.0) - 1.0
    return [replace(one, served=max(one.served, least)) for one in contenders]
