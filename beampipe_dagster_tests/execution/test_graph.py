from __future__ import annotations

import hashlib
import json
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pytest

from beampipe_dagster.config.canonical import canonical_json, digest
from beampipe_dagster.errors import GraphError
from beampipe_dagster.execution import graph as graphs
from beampipe_dagster.execution.graph import (
    InjectionReport,
    PreparedGraph,
    diff_graphs,
    find_ingest,
    graph_config_id,
    inject_manifest,
    parse_graph,
    prepare_graph,
    verify_injection,
)

if TYPE_CHECKING:
    from beampipe_dagster.config.canonical import JsonValue
    from beampipe_dagster.execution.patches import JsonObject

NOW = datetime(2026, 5, 4, 3, 2, 1, 500_000, tzinfo=UTC)
DEMO = Path(__file__).resolve().parents[2] / "projects" / "wallaby_demo"


def ingest(identifier: str = "n1", **more: JsonValue) -> JsonObject:
    field: JsonObject = {"id": "f1", "name": "manifest_path", "type": "String", "value": ""}
    return {"id": identifier, "name": "beampipe-ingest", "fields": [field], **more}


def scatter(copies: int = 1) -> JsonObject:
    field: JsonObject = {"id": "f2", "name": "num_of_copies", "type": "Integer", "value": copies}
    return {"id": "n2", "name": "scatter", "fields": [field]}


def graph_of(*nodes: JsonObject, **more: JsonValue) -> JsonObject:
    return {"nodeDataArray": [*nodes], "linkDataArray": [], **more}


def manifest(copies: int = 3) -> JsonObject:
    fields: JsonValue = [{"name": "num_of_copies", "value": copies}]
    return {
        "inputs": {},
        "sources": [{"source_identifier": "Überquelle", "sbids": []}],
        "graph_overrides": {"patches": [{"match": {"equals": "scatter"}, "fields": fields}]},
    }


def prepared(graph: JsonObject, *, execution_id: str = "e1", at: datetime = NOW) -> PreparedGraph:
    return prepare_graph(graph, manifest(), execution_id=execution_id, modified_at=at)


# -- reading


def test_a_graph_is_read_when_its_pin_fits_in_any_case() -> None:
    raw = json.dumps(graph_of(ingest())).encode()
    pin = hashlib.sha256(raw).hexdigest().upper()
    assert parse_graph(raw, sha256=f" {pin}\n", name="g")["nodeDataArray"] == [ingest()]
    assert parse_graph(raw, sha256=None, name="g") == json.loads(raw)


def test_another_file_than_the_pinned_one_is_refused_before_it_is_parsed() -> None:
    with pytest.raises(GraphError) as caught:
        parse_graph(b"not json", sha256="0" * 64, name="http://x/g.graph")
    assert caught.value.code == "graph_pin_mismatch"
    assert "http://x/g.graph" in caught.value.message
    assert caught.value.details["actual"] == hashlib.sha256(b"not json").hexdigest()


def test_a_graph_over_the_limit_is_refused_and_one_at_the_limit_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    raw = b'{"nodeDataArray":[]}'
    monkeypatch.setattr(graphs, "MAX_GRAPH_BYTES", len(raw))
    assert parse_graph(raw, sha256=None, name="g") == {"nodeDataArray": []}
    with pytest.raises(GraphError) as caught:
        parse_graph(raw + b" ", sha256="0" * 64, name="g")
    assert caught.value.code == "graph_too_large"


def test_the_limit_is_16_mebibytes() -> None:
    assert graphs.MAX_GRAPH_BYTES == 16_777_216


@pytest.mark.parametrize("raw", [b"", b"[]", b'{"nodes":[]}', b'{"nodeDataArray":{}}', b"\xff", b"{"])
def test_what_is_not_a_logical_graph_is_refused_with_its_name(raw: bytes) -> None:
    with pytest.raises(GraphError, match="where/it/is") as caught:
        parse_graph(raw, sha256=None, name="where/it/is")
    assert caught.value.code == "invalid_graph"


# -- the manifest


def test_the_manifest_becomes_the_active_configuration_without_its_overrides() -> None:
    graph = graph_of(ingest(), graphConfigurations={"old": {"id": "old"}}, activeGraphConfigId="old")
    injected = inject_manifest(graph, manifest(), config_id="c", modified_at=NOW)
    assert injected["activeGraphConfigId"] == "c"
    configurations = cast("dict[str, JsonObject]", injected["graphConfigurations"])
    assert configurations["old"] == {"id": "old"}
    text = '{"inputs":{},"sources":[{"sbids":[],"source_identifier":"Überquelle"}]}'
    assert configurations["c"]["nodes"] == {"n1": {"fields": {"f1": {"value": text, "comment": ""}}}}
    model = cast("JsonObject", configurations["c"]["modelData"])
    assert model["lastModifiedDatetime"] == int(NOW.timestamp())
    assert model["numLGNodes"] == 1
    assert injected["nodeDataArray"] == graph["nodeDataArray"]


def test_the_given_graph_is_not_changed() -> None:
    graph = graph_of(ingest(), scatter(), graphConfigurations={})
    before = canonical_json(graph)
    prepared(graph)
    assert canonical_json(graph) == before


@pytest.mark.parametrize(
    "node",
    [
        {"id": "a", "name": "beampipe-ingest-2", "fields": [{"id": "f", "name": "manifest_path"}]},
        {"id": "a", "name": "beampipe-ingest", "fields": [{"name": "manifest_path"}]},
        {"name": "beampipe-ingest", "fields": [{"id": "f", "name": "manifest_path"}]},
        {"id": "a", "name": "beampipe-ingest", "fields": [{"id": "f", "name": "other"}]},
        {"id": "a", "name": "beampipe-ingest"},
    ],
)
def test_without_a_whole_ingest_node_the_graph_stays_as_it_is(node: JsonObject) -> None:
    graph = graph_of(node)
    assert find_ingest(graph) is None
    assert inject_manifest(graph, manifest(), config_id="c", modified_at=NOW) is graph


def test_the_first_whole_ingest_node_gets_the_manifest() -> None:
    graph = graph_of({"name": "beampipe-ingest"}, ingest("one"), ingest("two"))
    assert find_ingest(graph) == InjectionReport("one", "f1")


def test_configurations_that_are_no_object_are_refused() -> None:
    with pytest.raises(GraphError) as caught:
        inject_manifest(graph_of(ingest(), graphConfigurations=[]), {}, config_id="c", modified_at=NOW)
    assert caught.value.code == "invalid_graph"


def test_each_execution_has_its_own_configuration_id_and_always_the_same() -> None:
    assert graph_config_id("e1") == graph_config_id("e1") != graph_config_id("e2")
    assert uuid.UUID(graph_config_id("e1")).version == 5


# -- preparing


def test_preparing_again_gives_the_same_hash_and_another_execution_another() -> None:
    graph = graph_of(ingest(), scatter())
    first = prepared(graph)
    assert prepared(graph).sha256 == first.sha256 == digest(first.graph)
    assert prepared(graph, execution_id="e2").sha256 != first.sha256
    assert prepared(graph, at=NOW + timedelta(seconds=1)).sha256 != first.sha256
    assert first.source_sha256 == digest(graph)


def test_a_prepared_graph_has_manifest_and_overrides_and_tells_what_changed() -> None:
    result = prepared(graph_of(ingest(), scatter()))
    assert result.injection == InjectionReport("n1", "f1")
    assert result.node_count == 2
    assert result.graph["activeGraphConfigId"] == graph_config_id("e1")
    assert result.graph["nodeDataArray"] == [
        ingest(),
        {
            "id": "n2",
            "name": "scatter",
            "fields": [
                {
                    "id": "f2",
                    "name": "num_of_copies",
                    "type": "Integer",
                    "value": 3,
                    "defaultValue": "3",
                }
            ],
        },
    ]
    assert result.diff == {
        "before_node_count": 2,
        "after_node_count": 2,
        "changed_node_count": 1,
        "changed_nodes": [{"node": "scatter", "change": "modified", "fields": ["num_of_copies"]}],
        "graph_configuration_changed": True,
    }


# -- after the translation


def drop(value: JsonValue, name: str = "beampipe-ingest") -> JsonObject:
    return {"oid": "d1", "name": name, "applicationArgs": {"manifest_path": {"value": value}}}


def test_a_drop_with_exactly_the_manifest_is_accepted() -> None:
    verify_injection([drop("x", "other"), {}, drop('{"a":1}')], '{"a":1}')


@pytest.mark.parametrize(
    ("drops", "reason"),
    [
        ([], "no drop named"),
        ([drop('{"a":1}', "other")], "no drop named"),
        ([drop("")], "0 characters"),
        ([drop(None)], "None"),
        ([{"oid": "d1", "name": "beampipe-ingest"}], "None"),
        ([drop('{"a":2}')], "7 characters"),
    ],
)
def test_a_manifest_that_did_not_arrive_is_refused(drops: list[JsonObject], reason: str) -> None:
    with pytest.raises(GraphError, match=reason) as caught:
        verify_injection(drops, '{"a":1}')
    assert caught.value.code == "manifest_not_injected"


# -- differences


def test_added_removed_and_modified_nodes_are_listed_in_order() -> None:
    before = graph_of({"id": "r", "name": "gone"}, {"id": "b", "name": "B", "fields": []})
    after = graph_of({"id": "z", "name": "Z"}, {"id": "b", "name": "B", "fields": [{"name": "x"}]})
    assert diff_graphs(before, after)["changed_nodes"] == [
        {"node": "B", "change": "modified", "fields": ["x"]},
        {"node": "z", "change": "added"},
        {"node": "r", "change": "removed"},
    ]


@pytest.mark.parametrize(("old", "new"), [(1, 1.0), (1, True), (0, False)])
def test_values_that_only_python_calls_equal_differ(old: JsonValue, new: JsonValue) -> None:
    def graph(value: JsonValue) -> JsonObject:
        return graph_of({"id": "a", "fields": [{"name": "f", "value": value}]})

    assert diff_graphs(graph(old), graph(new))["changed_nodes"] == [
        {"node": "a", "change": "modified", "fields": ["f"]}
    ]


def test_equal_graphs_have_no_difference() -> None:
    raw = (DEMO / "wallaby_demo.graph").read_bytes()
    one = parse_graph(raw, sha256=None, name="one")
    two = parse_graph(raw, sha256=None, name="two")
    diff = diff_graphs(one, two)
    assert (diff["changed_nodes"], diff["graph_configuration_changed"]) == ([], False)
