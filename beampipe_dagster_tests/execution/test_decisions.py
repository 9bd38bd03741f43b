"""Caps, and turns between surveys."""

from __future__ import annotations

from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from beampipe_dagster.execution.decisions import (
    GLOBAL_CAP,
    PROJECT_CAP,
    TICK_LIMIT,
    Cap,
    Contender,
    budget,
    can_admit,
    levelled,
    room,
    turns,
)

WEIGHTS = st.integers(1, 9)


@given(st.integers(0, 50), st.integers(0, 50))
def test_a_cap_admits_exactly_as_many_as_are_missing(current: int, cap: int) -> None:
    admitted = 0
    while can_admit(current + admitted, cap):
        admitted += 1
    assert admitted == Cap("x", current, cap).room == budget(cap - current)
    assert Cap("x", current, cap).full == (admitted == 0)


def test_the_tightest_limit_is_named_and_of_equal_ones_the_first() -> None:
    project, shared = Cap(PROJECT_CAP, 1, 3), Cap(GLOBAL_CAP, 8, 10)
    assert room([project, shared], tick_limit=5) == (2, PROJECT_CAP)
    assert room([Cap(PROJECT_CAP, 0, None), shared], tick_limit=1) == (1, TICK_LIMIT)
    assert room([Cap(PROJECT_CAP, 9, 3), shared], tick_limit=5) == (0, PROJECT_CAP)


contenders = st.lists(
    st.builds(
        Contender,
        st.sampled_from("abcdef"),
        st.integers(0, 5),
        st.integers(0, 6),
        WEIGHTS.map(float),
        st.floats(0, 50),
    ),
    unique_by=lambda one: one.project_id,
    max_size=6,
)


@given(contenders, st.integers(0, 20))
def test_nobody_gets_more_than_it_wants_and_nothing_is_left_that_one_wants(
    rivals: list[Contender], free: int
) -> None:
    given_out = turns(rivals, free)
    assert all(0 <= given_out[one.project_id] <= one.wanted for one in rivals)
    assert sum(given_out.values()) == min(free, sum(one.wanted for one in rivals))


@settings(deadline=None, max_examples=25)
@given(st.lists(WEIGHTS, min_size=2, max_size=5), st.integers(1, 6), st.integers(0, 2**32))
def test_no_survey_with_waiting_sources_starves_whoever_ticks_and_whenever_executions_end(
    weights: list[int], cap: int, seed: int
) -> None:
    """Ticks in any order, executions that end in any order: each survey is served within a bounded number."""
    chance = Random(seed)
    names = [str(number) for number in range(len(weights))]
    weight = dict(zip(names, map(float, weights), strict=True))
    active = dict.fromkeys(names, 0)
    served = dict.fromkeys(names, 0.0)
    waited = dict.fromkeys(names, 0)
    bound = int(sum(weights) / min(weights)) + len(names) * (cap + 1)
    for _ in range(100):
        # Two ticks of each survey: what one may take after its own tick waits for its next one.
        for name in (*chance.sample(names, len(names)), *chance.sample(names, len(names))):
            free = cap - sum(active.values())
            rivals = levelled([Contender(one, active[one], 9, weight[one], served[one]) for one in names])
            began = turns(rivals, free)[name]
            active[name] += began
            if began:
                served[name] = rivals[names.index(name)].served + began / weight[name]
            for one in names:
                waited[one] = 0 if active[one] else waited[one] + began
            assert max(waited.values()) <= bound
        busy = [one for one in names for _ in range(active[one])]
        assert len(busy) == cap, "room that somebody wants is used"
        for one in chance.sample(busy, chance.randint(1, len(busy))):
            active[one] -= 1


def test_in_the_long_run_a_room_for_one_is_shared_by_weight() -> None:
    served = {"heavy": 0.0, "light": 0.0}
    weight = {"heavy": 3.0, "light": 1.0}
    starts = {"heavy": 0, "light": 0}
    for _ in range(400):
        rivals = levelled([Contender(name, 0, 1, weight[name], served[name]) for name in served])
        (chosen,) = (name for name, number in turns(rivals, 1).items() if number)
        starts[chosen] += 1
        served[chosen] += 1 / weight[chosen]
    assert starts == {"heavy": 300, "light": 100}


@given(contenders)
def test_a_survey_that_was_away_is_behind_by_one_turn_at_most(rivals: list[Contender]) -> None:
    found = levelled(rivals)
    top = max((one.served for one in rivals), default=0.0)
    assert [one.served for one in found] == [max(one.served, top - 1) for one in rivals]
    assert levelled(found) == found, "whoever levels them again sees the same"
