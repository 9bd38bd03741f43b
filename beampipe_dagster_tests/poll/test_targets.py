from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from beampipe_dagster.backends.base import Backend, SessionPresence
from beampipe_dagster.clock import SystemClock
from beampipe_dagster.errors import BackendUnavailableError
from beampipe_dagster.ledger.execution_values import Execution
from beampipe_dagster.poll.targets import AT_ONCE, Answers, Questions, Targets


@dataclass
class SlowBackend:
    """A backend that answers when it is let go."""

    url: str
    free: threading.Event = field(default_factory=threading.Event)
    asked: int = 0
    looked_for: int = 0

    def observe(self, *_: Any, **__: Any) -> dict[str, Any]:
        self.asked += 1
        assert self.free.wait(30)
        return {}

    def presence(self, _: str) -> SessionPresence:
        self.looked_for += 1
        raise BackendUnavailableError("away")


def questions(backend: SlowBackend) -> Questions:
    return Questions(backend=cast("Backend", backend))


def urls(answers: list[Answers]) -> list[str]:
    return sorted(one.asked.backend.url for one in answers)


def ask(targets: Targets, *backends: SlowBackend, seconds: float) -> list[Answers]:
    deadline = time.monotonic() + seconds
    return list(targets.ask([questions(one) for one in backends], deadline=deadline))


def test_a_slow_target_delays_nobody_and_its_answers_come_later() -> None:
    slow, quick = SlowBackend("http://slow"), SlowBackend("http://quick")
    quick.free.set()
    targets = Targets(clock=SystemClock())
    begin = time.monotonic()
    assert urls(ask(targets, slow, quick, seconds=0.3)) == ["http://quick"]
    assert time.monotonic() - begin < 5
    assert targets.busy == {"http://slow"}
    assert urls(ask(targets, slow, quick, seconds=0.3)) == ["http://quick"]
    assert slow.asked == 1, "whoever has not answered is not asked again"
    slow.free.set()
    assert urls(ask(targets, quick, seconds=5)) == ["http://quick", "http://slow"]
    assert targets.busy == frozenset()
    assert urls(ask(targets, slow, seconds=5)) == ["http://slow"]


def test_no_more_than_so_many_are_asked_at_the_same_time() -> None:
    backends = [SlowBackend(f"http://{number}") for number in range(AT_ONCE + 5)]
    targets = Targets(clock=SystemClock())
    assert ask(targets, *backends, seconds=0.2) == []
    assert sum(one.asked for one in backends) == AT_ONCE
    for one in backends:
        one.free.set()
    assert len(ask(targets, *backends, seconds=5)) == AT_ONCE
    assert len(ask(targets, *backends[AT_ONCE:], seconds=5)) == 5


def test_a_defect_of_one_target_is_told_and_the_others_answer() -> None:
    class Broken(SlowBackend):
        def observe(self, *_: Any, **__: Any) -> dict[str, Any]:
            raise ZeroDivisionError

    good, bad = SlowBackend("http://good"), Broken("http://bad")
    good.free.set()
    answers = ask(Targets(clock=SystemClock()), bad, good, seconds=5)
    assert {one.asked.backend.url: type(one.defect) for one in answers} == {
        "http://bad": ZeroDivisionError,
        "http://good": type(None),
    }


@pytest.mark.parametrize("number", [1, 5])
def test_a_target_that_is_away_is_looked_at_once_for_all_its_submissions(number: int) -> None:
    @dataclass
    class Lost:
        id: str
        daliuge_session_id: str

    backend = SlowBackend("http://away")
    backend.free.set()
    uncertain = [cast("Execution", Lost(f"e{one}", f"s{one}")) for one in range(number)]
    asked = Questions(backend=cast("Backend", backend), uncertain=uncertain)
    (answers,) = Targets(clock=SystemClock()).ask([asked], deadline=time.monotonic() + 5)
    assert backend.looked_for == 1
    assert dict(answers.presences) == {f"e{one}": SessionPresence.UNREACHABLE for one in range(number)}
