from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beampipe_dagster.execution.graph_lint import Severity, estimate_drops, lint
from beampipe_dagster.execution.patches import apply_overrides
from beampipe_dagster_tests.golden.runner import default_directory

if TYPE_CHECKING:
    from beampipe_dagster.config.canonical import JsonValue
    from beampipe_dagster.execution.graph_lint import Finding
    from beampipe_dagster.execution.patches import JsonObject

DEMO = Path(__file__).resolve().parents[2] / "projects" / "wallaby_demo" / "wallaby_demo.graph"


def demo() -> JsonObject:
    return cast("JsonObject", json.loads(DEMO.read_text(encoding="utf-8")))


def app(identifier: str, **more: JsonValue) -> JsonObject:
    return {"id": identifier, "name": identifier, "category": "PyFuncApp", "fields": [], **more}


def ingest() -> JsonObject:
    return app("beampipe-ingest", fields=[{"id": "f", "name": "manifest_path", "value": ""}])


def scatter(identifier: str, copies: JsonValue, **more: JsonValue) -> JsonObject:
    node = app(identifier, category="Scatter", isGroup=True, inputApplicationType="DALiuGEApp")
    return {**node, "fields": [{"name": "num_of_copies", "value": copies}], **more}


def graph_of(*nodes: JsonObject, links: list[tuple[str, str]] | None = None) -> JsonObject:
    return {
        "nodeDataArray": [ingest(), *nodes],
        "linkDataArray": [{"from": source, "to": target} for source, target in links or []],
    }


def codes(findings: list[Finding]) -> list[str]:
    return [finding.code for finding in findings if finding.severity is not Severity.INFO]


def test_the_demo_graph_has_nothing_to_complain_about() -> None:
    findings = lint(demo(), patched_names=["Scatter/GenericScatterApp/Beam"])
    assert [(f.code, f.severity) for f in findings] == [("estimated_drops", Severity.INFO)]


def test_links_in_a_circle_are_an_error_that_shows_the_circle() -> None:
    links = [("beampipe-ingest", "a"), ("a", "b"), ("b", "c"), ("c", "a")]
    (finding,) = lint(graph_of(app("a"), app("b"), app("c"), links=links))
    assert finding.code == "graph_cycle"
    assert "a -> b -> c -> a" in finding.message


def test_a_node_that_feeds_itself_is_a_circle() -> None:
    assert codes(lint(graph_of(app("a"), links=[("a", "a")]))) == ["graph_cycle"]


def test_two_ways_to_the_same_node_are_no_circle() -> None:
    links = [("a", "b"), ("a", "c"), ("b", "d"), ("c", "d")]
    assert codes(lint(graph_of(*map(app, "abcd"), links=links))) == []


def test_a_loop_that_is_closed_on_purpose_is_no_circle() -> None:
    graph = graph_of(app("a"), app("b"), links=[("a", "b")])
    cast("list[JsonValue]", graph["linkDataArray"]).append({"from": "b", "to": "a", "closesLoop": True})
    assert codes(lint(graph)) == []


def test_a_construct_may_take_at_its_input_and_give_at_its_output() -> None:
    group = scatter("s", 2, outputApplicationType="DALiuGEApp", outputAppFields=[{"id": "out"}])
    graph = graph_of(group, app("a", parentId="s"), links=[("s", "a")])
    cast("list[JsonValue]", graph["linkDataArray"]).append({"from": "a", "to": "s", "toPort": "out"})
    assert codes(lint(graph)) == []


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=30))
def test_links_that_only_go_forward_are_never_a_circle_and_one_way_back_always_is(
    pairs: list[tuple[int, int]],
) -> None:
    forward = [(str(a), str(b)) for a, b in pairs if a < b]
    nodes = [app(str(n)) for n in range(10)]
    assert "graph_cycle" not in codes(lint(graph_of(*nodes, links=forward)))
    if forward:
        source, target = forward[0]
        back = [*forward, (target, source)]
        assert "graph_cycle" in codes(lint(graph_of(*nodes, links=back)))


def test_a_parent_that_is_not_there_is_an_error() -> None:
    (finding,) = lint(graph_of(app("a", parentId="nobody")))
    assert (finding.code, finding.node) == ("dangling_parent", "a")


def test_nodes_that_lie_in_each_other_are_an_error() -> None:
    graph = graph_of(scatter("s", 1, parentId="t"), scatter("t", 1, parentId="s"))
    assert codes(lint(graph)) == ["parent_cycle", "parent_cycle"]


@pytest.mark.parametrize("link", [("a", "nobody"), ("nobody", "a")])
def test_a_link_to_nowhere_is_an_error_at_its_other_end(link: tuple[str, str]) -> None:
    (finding,) = lint(graph_of(app("a"), links=[link]))
    assert (finding.code, finding.node) == ("dangling_link", "a")
    assert "nobody" in finding.message


@pytest.mark.parametrize("copies", [0, -1, "", "x", "1.5", 2.0, True, None, [1]])
def test_copies_that_are_no_count_are_an_error(copies: JsonValue) -> None:
    assert codes(lint(graph_of(scatter("s", copies)))) == ["invalid_num_of_copies"]


@pytest.mark.parametrize("copies", [1, 300, "3", " 3 "])
def test_copies_may_be_a_number_or_its_text(copies: JsonValue) -> None:
    assert codes(lint(graph_of(scatter("s", copies)))) == []


def test_a_scatter_without_copies_is_an_error() -> None:
    assert codes(lint(graph_of(scatter("s", 1, fields=[])))) == ["invalid_num_of_copies"]


def test_two_nodes_with_one_id_are_an_error() -> None:
    assert codes(lint(graph_of(app("a"), app("a")))) == ["duplicate_node_id"]


def test_a_graph_in_which_nothing_can_start_is_an_error() -> None:
    empty: JsonObject = {"nodeDataArray": [{"id": "c", "category": "Comment"}]}
    assert codes(lint(empty)) == ["no_roots", "no_manifest_node"]


def test_a_graph_without_a_manifest_node_is_only_warned_about() -> None:
    graph: JsonObject = {"nodeDataArray": [app("a")], "linkDataArray": []}
    (warning, estimate) = lint(graph)
    assert (warning.code, warning.severity) == ("no_manifest_node", Severity.WARNING)
    assert estimate.code == "estimated_drops"


def test_an_active_configuration_that_the_manifest_displaces_is_warned_about() -> None:
    mine = {**graph_of(), "activeGraphConfigId": "mine"}
    assert codes(lint(mine)) == ["active_configuration_replaced"]
    prepared = {**graph_of(), "activeGraphConfigId": "the manifest's"}
    assert codes(lint(prepared, source=graph_of())) == []
    assert codes(lint(prepared, source=mine)) == ["active_configuration_replaced"]


def test_names_that_several_nodes_share_are_warned_about_where_they_matter() -> None:
    nodes = [app("1", name="same"), app("2", name="same"), app("3", name="beampipe-ingest")]
    assert [f.node for f in lint(graph_of(*nodes)) if f.code == "duplicate_node_name"] == ["beampipe-ingest"]
    found = lint(graph_of(*nodes), patched_names=["same"])
    assert [f.node for f in found if f.code == "duplicate_node_name"] == ["beampipe-ingest", "same"]


def test_errors_come_first() -> None:
    graph: JsonObject = {"nodeDataArray": [app("a", parentId="x")], "linkDataArray": []}
    severities = [finding.severity for finding in lint(graph)]
    assert severities == [Severity.ERROR, Severity.WARNING]


def test_copies_of_nested_scatters_multiply() -> None:
    graph = graph_of(
        scatter("s", 3),
        scatter("t", "5", parentId="s"),
        app("in-s", parentId="s"),
        app("in-t", parentId="t"),
        {"id": "note", "category": "Comment", "parentId": "t"},
    )
    # ingest, the application of s, 3 of t's application and in-s each, 15 of in-t
    assert estimate_drops(graph) == 1 + 1 + 3 + 3 + 15


@pytest.mark.parametrize("beams", [1, 3, 36])
def test_the_demo_graph_has_four_drops_a_beam_and_nine_more(beams: int) -> None:
    fields: JsonValue = [{"name": "num_of_copies", "value": beams}]
    patch: JsonValue = {"match": {"equals": "Scatter/GenericScatterApp/Beam"}, "fields": fields}
    assert estimate_drops(apply_overrides(demo(), {"patches": [patch]})) == 4 * beams + 9


@pytest.mark.parametrize(
    ("name", "scatter_name", "beam", "rest"),
    [
        (
            "wallaby-hires_test-pipeline-nodownloads-beampipe.graph",
            "Scatter/GenericScatterApp",
            13,
            19,
        ),
        (
            "wallaby-hires_deploy-setonix-beampipe.graph",
            "Scatter/GenericScatterApp/Beam",
            18,
            29,
        ),
    ],
)
def test_known_survey_graphs_unroll_to_as_many_drops_as_daliuge_makes(
    name: str, scatter_name: str, beam: int, rest: int
) -> None:
    path = default_directory().parent / "config" / "graphs" / name
    if not path.is_file():
        pytest.skip(f"no graph {path}")
    graph = cast("JsonObject", json.loads(path.read_text(encoding="utf-8")))
    fields: JsonValue = [{"name": "num_of_copies", "value": 300}]
    patch: JsonValue = {"match": {"equals": scatter_name}, "fields": fields}
    assert estimate_drops(apply_overrides(graph, {"patches": [patch]})) == beam * 300 + rest
    assert [f for f in lint(graph) if f.severity is Severity.ERROR] == []
