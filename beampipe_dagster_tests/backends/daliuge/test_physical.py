from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beampipe_dagster.backends.daliuge.physical import Drop, map_to_nodes, roots, summary
from beampipe_dagster.errors import GraphError, InputError
from beampipe_dagster_tests.support import graphs
from beampipe_dagster_tests.support.fake_daliuge import unroll

NODE = "127.0.0.1:8000:5555:6666"


def app(oid: str, **more: object) -> Drop:
    return {"oid": oid, "categoryType": "Application", "category": "Bash", "node": "#0", **more}


def data(oid: str, **more: object) -> Drop:
    return {"oid": oid, "categoryType": "Data", "category": "File", "node": "#0", **more}


def test_a_template_is_placed_on_its_node_and_nothing_else_changes() -> None:
    template = [app("a", outputs=[{"b": "io"}]), data("b", producers=[{"a": "io"}]), {}]
    placed = map_to_nodes(template, nodes=[NODE], island="127.0.0.1:8001")
    assert placed == [
        {**template[0], "node": NODE, "island": "127.0.0.1:8001"},
        {**template[1], "node": NODE, "island": "127.0.0.1:8001"},
    ]
    assert template[0]["node"] == "#0"


def test_each_partition_has_its_node() -> None:
    template = [app("a"), app("b", node="#1")]
    placed = map_to_nodes(template, nodes=["n0", "n1"], island="i")
    assert [drop["node"] for drop in placed] == ["n0", "n1"]


@pytest.mark.parametrize("place", ["#1", "#-1", "127.0.0.1", None, 0])
def test_a_drop_without_a_place_is_refused_by_name(place: object) -> None:
    with pytest.raises(GraphError, match="drop b is in partition") as caught:
        map_to_nodes([app("a"), app("b", node=place)], nodes=[NODE], island="i")
    assert caught.value.code == "graph_not_placeable"


def test_a_graph_needs_a_node() -> None:
    with pytest.raises(InputError, match="no node"):
        map_to_nodes([app("a")], nodes=[], island="i")


def test_roots_are_applications_without_inputs_and_data_without_producers() -> None:
    drops = [
        app("ingest", outputs=[{"list": "io"}]),
        data("list", producers=["ingest"], consumers=["work"]),
        data("parset", consumers=[{"work": "io"}]),
        app("work", inputs=["list", "parset"]),
        {},
    ]
    assert roots(drops) == ["ingest", "parset"]


def test_a_link_given_at_one_end_only_is_a_link() -> None:
    drops = [
        app("a", outputs=["b"]),
        data("b", consumers=["c"]),
        app("c"),
        data("s", streamingConsumers=["d"]),
        app("d"),
    ]
    assert roots(drops) == ["a", "s"]


def test_a_list_without_links_is_no_link() -> None:
    assert roots([app("a", inputs=[], streamingInputs=[]), data("b", producers=[])]) == ["a", "b"]


def test_the_older_name_of_an_application_is_known() -> None:
    assert roots([{"oid": "a", "type": "app", "outputs": ["b"]}, data("b")]) == ["a"]


def test_a_cycle_has_no_roots() -> None:
    assert roots([app("a", inputs=["b"], outputs=["b"]), data("b", consumers=["a"])]) == []


@given(st.integers(1, 6))
def test_a_chain_starts_at_its_first_step(length: int) -> None:
    drops = unroll(graphs.bash_chain(*["true"] * length), "p")
    assert roots(drops) == [next(drop["oid"] for drop in drops if drop["name"] == "step1")]


def test_a_summary_counts_what_is_there() -> None:
    found = summary([app("a"), app("b"), data("c", node="#1"), {}])
    assert (found.drops, found.roots, found.partitions) == (3, 3, 2)
    assert found.categories == {"Bash": 2, "File": 1}
    assert found.as_dict()["size_bytes"] == found.size_bytes > 100


def test_a_summarys_size_is_in_bytes_not_letters() -> None:
    assert summary([app("å")]).size_bytes == summary([app("a")]).size_bytes + 1
