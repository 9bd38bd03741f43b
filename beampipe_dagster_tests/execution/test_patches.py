from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beampipe_dagster.errors import GraphError
from beampipe_dagster.execution.patches import JsonObject, apply_overrides, nearest, objects

if TYPE_CHECKING:
    from beampipe_dagster.config.canonical import JsonValue


def node(name: str, *fields: JsonObject, **more: JsonValue) -> JsonObject:
    return {"id": f"id-{name}", "name": name, "fields": [*fields], **more}


def integer(name: str, value: JsonValue) -> JsonObject:
    return {"name": name, "type": "Integer", "value": value, "defaultValue": "old"}


def overrides(*patches: tuple[str | None, JsonObject]) -> JsonObject:
    return {
        "patches": [
            {
                "match": {} if name is None else {"equals": name},
                "fields": [{"name": key, "value": value} for key, value in values.items()],
            }
            for name, values in patches
        ]
    }


def values(graph: JsonObject) -> list[tuple[JsonValue, JsonValue, JsonValue]]:
    return [
        (entry.get("name"), entry.get("field"), entry.get("value"))
        for found in objects(graph.get("nodeDataArray"))
        for entry in [
            {"name": found.get("name"), "field": field.get("name"), "value": field.get("value")}
            for field in objects(found.get("fields"))
        ]
    ]


def test_every_node_of_the_name_is_patched_and_no_other() -> None:
    graph: JsonObject = {
        "nodeDataArray": [node("s", integer("n", 1)), node("s", integer("n", 2)), node("t", integer("n", 3))]
    }
    patched = apply_overrides(graph, overrides(("s", {"n": 7})))
    assert values(patched) == [("s", "n", 7), ("s", "n", 7), ("t", "n", 3)]


@pytest.mark.parametrize(
    ("value", "text"),
    [(3, "3"), (1.0, "1.0"), (True, "true"), (None, "null"), ([1, {"y": 2}], '[1,{"y":2}]')],
)
def test_an_integer_field_also_gets_its_default_as_text(value: JsonValue, text: str) -> None:
    graph: JsonObject = {"nodeDataArray": [node("s", integer("n", 1))]}
    (patched,) = objects(apply_overrides(graph, overrides(("s", {"n": value})))["nodeDataArray"])
    assert patched["fields"] == [{"name": "n", "type": "Integer", "value": value, "defaultValue": text}]


def test_a_field_of_another_type_keeps_its_default() -> None:
    field: JsonObject = {"name": "n", "type": "String", "value": "a", "defaultValue": "d"}
    graph: JsonObject = {"nodeDataArray": [node("s", field)]}
    (patched,) = objects(apply_overrides(graph, overrides(("s", {"n": "b"})))["nodeDataArray"])
    assert patched["fields"] == [{**field, "value": "b"}]


def test_a_later_patch_wins() -> None:
    graph: JsonObject = {"nodeDataArray": [node("s", integer("n", 1))]}
    patched = apply_overrides(graph, overrides(("s", {"n": 2}), ("s", {"n": 3})))
    assert values(patched) == [("s", "n", 3)]


def test_a_match_without_equals_reaches_all_nodes() -> None:
    graph: JsonObject = {"nodeDataArray": [node("s", integer("n", 1)), node("t", integer("n", 1))]}
    patched = apply_overrides(graph, overrides((None, {"n": 9})))
    assert values(patched) == [("s", "n", 9), ("t", "n", 9)]


@pytest.mark.parametrize("nothing", [None, {}, {"patches": []}, {"version": 1}, "patches"])
def test_without_patches_the_graph_is_the_same_one(nothing: JsonValue) -> None:
    graph: JsonObject = {"no nodes": True}
    assert apply_overrides(graph, nothing) is graph


def test_a_missing_node_is_refused_with_the_nearest_names() -> None:
    graph: JsonObject = {
        "nodeDataArray": [node("Scatter/GenericScatterApp", integer("n", 1)), node("mosaic")]
    }
    with pytest.raises(GraphError) as caught:
        apply_overrides(graph, overrides(("Scatter/GenericScatterApp/Beam", {"n": 1})))
    assert caught.value.code == "graph_patch_node_not_found"
    assert caught.value.details["candidates"] == ["Scatter/GenericScatterApp"]
    assert "'Scatter/GenericScatterApp'" in caught.value.hint


def test_a_field_on_none_of_the_nodes_is_refused_with_the_nearest_names() -> None:
    graph: JsonObject = {"nodeDataArray": [node("s", integer("num_of_copies", 1), integer("x", 1))]}
    with pytest.raises(GraphError) as caught:
        apply_overrides(graph, overrides(("s", {"num_copies": 1})))
    assert caught.value.code == "graph_patch_field_not_found"
    assert caught.value.details == {
        "node": "s",
        "field": "num_copies",
        "candidates": ["num_of_copies"],
    }


def test_a_field_on_one_of_two_nodes_of_the_name_is_enough() -> None:
    graph: JsonObject = {"nodeDataArray": [node("s"), node("s", integer("n", 1))]}
    assert values(apply_overrides(graph, overrides(("s", {"n": 2})))) == [("s", "n", 2)]


def test_patches_for_something_that_has_no_nodes_are_refused() -> None:
    with pytest.raises(GraphError) as caught:
        apply_overrides({}, overrides(("s", {"n": 2})))
    assert caught.value.code == "invalid_graph"


def test_the_nearest_name_may_be_a_longer_one_and_the_case_does_not_matter() -> None:
    names = ["beampipe-ingest", "Scatter/GenericScatterApp/Beam", "mosaic"]
    assert nearest("scatter", names) == ["Scatter/GenericScatterApp/Beam"]
    assert nearest("MOSAIK", names) == ["mosaic"]
    assert nearest("zzz", names, limit=2) == ["Scatter/GenericScatterApp/Beam", "beampipe-ingest"]


NAMES = st.sampled_from(["a", "b", "c"])
VALUES = st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=3)
FIELDS = st.lists(
    st.fixed_dictionaries({"name": NAMES, "type": st.sampled_from(["Integer", "String"]), "value": VALUES}),
    max_size=3,
)
GRAPHS = st.fixed_dictionaries(
    {"nodeDataArray": st.lists(st.fixed_dictionaries({"name": NAMES, "fields": FIELDS}), max_size=4)}
)
PATCHES = st.lists(
    st.tuples(NAMES, st.dictionaries(NAMES, VALUES, min_size=1, max_size=2)), min_size=1, max_size=3
)


@given(GRAPHS, PATCHES)
def test_the_given_graph_is_never_changed_and_patching_twice_is_patching_once(
    graph: JsonObject, patches: list[tuple[str | None, JsonObject]]
) -> None:
    before = copy.deepcopy(graph)
    wanted = overrides(*patches)
    try:
        once = apply_overrides(graph, wanted)
    except GraphError:
        assert graph == before
        return
    assert graph == before
    assert apply_overrides(once, wanted) == once
    assert len(values(once)) == len(values(before))
