from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beampipe_dagster.backends.daliuge.states import (
    AppState,
    DaliugeState,
    DropCounts,
    DropState,
    SessionState,
    absent_nodes,
    count_drops,
    error_oids,
    fault_of,
    is_absent,
    known_states,
    loss_of,
    missing_oids,
    overall_state,
    session_state,
)
from beampipe_dagster.config.canonical import JsonValue

ABSENT: JsonValue = {"Status": "Success"}
NAMES = ["pristine", "building", "deploying", "running", "finished", "cancelled", "failed"]

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.parametrize(("number", "name"), list(enumerate(NAMES)))
def test_a_number_is_the_engines_state(number: int, name: str) -> None:
    assert session_state(number) == name
    assert session_state({"status": number}) == name
    assert session_state({"n1": number, "n2": number}) == name
    assert session_state(f" {name.upper()} ") == name


@pytest.mark.parametrize(
    ("word", "name"),
    [("COMPLETED", "finished"), ("Canceled", "cancelled"), ("fail", "failed"), ("ERROR", "failed")],
)
def test_other_words_for_an_end_are_understood(word: str, name: str) -> None:
    assert session_state(word) == name


@pytest.mark.parametrize("raw", [7, -1, 4.0, True, False, None, "4", "", [], [4], {}])
def test_what_the_engine_does_not_say_is_unknown(raw: JsonValue) -> None:
    assert session_state(raw) is SessionState.UNKNOWN


@pytest.mark.parametrize(
    ("nodes", "name"),
    [
        ([3, 6], "failed"),
        ([4, 6], "failed"),
        ([5, 6], "failed"),
        ([9, 6], "unknown"),
        ([4, 5], "unknown"),
        ([2, 4], "deploying"),
        ([3, 4], "running"),
        ([0, 1], "building"),
        ([1, 2], "deploying"),
        ([0, 5], "pristine"),
    ],
)
def test_nodes_are_merged_by_the_worst_news_first(nodes: list[int], name: str) -> None:
    raw: JsonValue = {f"n{number}": state for number, state in enumerate(nodes)}
    assert session_state(raw) == name


@given(json_values)
def test_any_answer_has_a_state_that_the_ledger_knows(raw: JsonValue) -> None:
    assert DaliugeState(session_state(raw).value) in DaliugeState
    assert count_drops(raw).total >= 0


@given(st.lists(st.integers(0, 6), min_size=1, max_size=5))
def test_a_failed_node_is_never_outvoted(states: list[int]) -> None:
    raw: JsonValue = {f"n{number}": state for number, state in enumerate(states)}
    assert (session_state(raw) is SessionState.FAILED) == (6 in states)


@given(st.lists(st.integers(0, 6), min_size=1, max_size=5))
def test_finished_needs_every_node(states: list[int]) -> None:
    raw: JsonValue = {f"n{number}": state for number, state in enumerate(states)}
    assert (session_state(raw) is SessionState.FINISHED) == (set(states) == {4})


def test_the_success_of_an_unknown_session_is_absence() -> None:
    assert is_absent({"127.0.0.1:8000:5555:6666": ABSENT})
    assert is_absent({"n1": ABSENT, "n2": ABSENT})
    assert is_absent(ABSENT)
    assert session_state({"n1": ABSENT}) is SessionState.UNKNOWN


@pytest.mark.parametrize("raw", [{}, None, 4, {"n1": 3}, {"n1": ABSENT, "n2": 3}, "Success", []])
def test_anything_else_is_not_absence(raw: JsonValue) -> None:
    assert not is_absent(raw)


def test_the_nodes_that_lost_a_session_are_named() -> None:
    assert absent_nodes({"n2": ABSENT, "n3": 3, "n1": ABSENT}) == ["n1", "n2"]
    assert absent_nodes(4) == []


def test_every_drop_is_counted_once() -> None:
    graph: JsonValue = {
        "done": {"status": 2, "execStatus": 2},
        "expired": {"status": 4},
        "deleted": {"status": 5},
        "wrong": {"status": 3, "execStatus": 3},
        "writing": {"status": 1},
        "at-work": {"status": 0, "execStatus": 1},
        "to-come": {"status": 0, "execStatus": 0},
        "stopped": {"status": 6},
        "left-out": {"status": 7, "execStatus": 5},
    }
    counts = count_drops(graph)
    assert counts == DropCounts(total=9, completed=3, error=1, running=2, waiting=1, cancelled=1, skipped=1)
    assert counts.pending == 3
    assert counts.as_dict()["completed"] == 3


@given(st.dictionaries(st.text(), json_values, max_size=6))
def test_the_counts_add_up(graph: dict[str, JsonValue]) -> None:
    counts = count_drops(graph).as_dict()
    total = counts.pop("total")
    assert total == sum(value for value in counts.values() if isinstance(value, int)) == len(graph)


def test_an_error_of_the_application_is_an_error_of_its_drop() -> None:
    assert error_oids({"a": {"status": 0, "execStatus": 3}}) == ["a"]


def test_a_drop_without_a_readable_state_is_neither_done_nor_wrong() -> None:
    graph: JsonValue = {"a": {}, "b": {"execStatus": 2}, "c": None, "d": True, "e": 99}
    assert count_drops(graph) == DropCounts(total=5, waiting=5)


def test_words_for_a_drops_state_are_understood() -> None:
    graph: JsonValue = {"a": "COMPLETED", "b": "xErrorx", "c": {"status": "failed"}, "d": 2}
    assert count_drops(graph) == DropCounts(total=4, completed=2, error=2)


def test_applications_in_error_come_first() -> None:
    graph: JsonValue = {
        "file": {"status": 3},
        "fine": {"status": 2},
        "app": {"status": 3, "execStatus": 3},
    }
    assert error_oids(graph) == ["app", "file"]
    assert error_oids([1, 2]) == []


def test_expected_drops_that_are_not_there_are_named() -> None:
    assert missing_oids({"a": 2}, ["c", "a", "b"]) == ["b", "c"]
    assert missing_oids(None, ["a"]) == ["a"]
    assert missing_oids({"a": 2}, []) == []


def test_the_order_of_the_states_is_the_engines() -> None:
    assert list(DropState)[2:4] == [DropState.COMPLETED, DropState.ERROR]
    assert list(AppState)[2:4] == [AppState.FINISHED, AppState.ERROR]


def test_a_node_that_lost_the_session_does_not_decide_its_state() -> None:
    raw: JsonValue = {"n1": 3, "n2": ABSENT}
    assert known_states(raw) == [SessionState.RUNNING]
    assert overall_state(raw) is DaliugeState.RUNNING
    assert loss_of(raw) == "it is lost on node n2"
    assert overall_state({"n1": ABSENT}) is DaliugeState.UNKNOWN
    assert loss_of({"n1": 3}) is None
    assert overall_state({"status": 4}) is DaliugeState.FINISHED
    assert known_states({}) == []


def test_a_graph_whose_expected_drops_completed_has_no_fault() -> None:
    assert fault_of({"a": 2, "b": 5, "c": 7, "d": 0}, frozenset("ab")) is None
    assert fault_of({"a": 2}, None) is None
    assert fault_of({}, frozenset()) == "it finished without a single drop"
