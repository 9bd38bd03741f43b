from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from beampipe_dagster.config.canonical import JsonValue
from beampipe_dagster.config.project import GraphPatch
from beampipe_dagster.config.validation import load_project
from beampipe_dagster.errors import BeampipeError, GraphError
from beampipe_dagster.execution.graph_lint import Severity
from beampipe_dagster.execution.manifest import OVERRIDES, build_manifest, match_json
from beampipe_dagster.execution.patch_check import check_overrides, check_patches, refuse_errors
from beampipe_dagster.execution.patches import JsonObject, apply_overrides, objects
from beampipe_dagster_tests.support.platforms import Stage

REFERENCE = Path(__file__).resolve().parents[3] / "shared" / "reference" / "config"
WALLABY = REFERENCE / "graphs" / "wallaby-hires_deploy-setonix-beampipe.graph"


def field(name: str, kind: str, value: JsonValue, **more: JsonValue) -> JsonObject:
    return {"name": name, "type": kind, "value": value, "defaultValue": "", **more}


def node(key: str, name: str, *fields: JsonObject, category: str = "File") -> JsonObject:
    return {"id": key, "name": name, "category": category, "fields": [*fields]}


def graph() -> JsonObject:
    return {
        "nodeDataArray": [
            node(
                "a",
                "image",
                field("n", "Integer", 1),
                field("mode", "Select", "fast", options=["fast", "slow"]),
            ),
            node("b", "image", field("n", "Integer", 2), field("ratio", "Float", 0.5)),
            node(
                "c", "beams", field("n", "Integer", 3), field("on", "Boolean", value=True), category="Scatter"
            ),
            node("d", "text", field("path", "String", "x"), field("any", "Object", ""), category="Memory"),
        ]
    }


def patch(match: dict[str, Any], **values: Any) -> GraphPatch:
    return GraphPatch.model_validate({"match": match, "set": values})


def found(*patches: GraphPatch) -> list[tuple[str, str]]:
    return [(one.severity.value, one.code) for one in check_patches(graph(), patches)]


def overrides(*patches: GraphPatch) -> JsonObject:
    return {
        "patches": [
            {
                "match": match_json(one.match),
                "fields": [{"name": name, "value": value} for name, value in sorted(one.set_.items())],
            }
            for one in patches
        ]
    }


def changed(*patches: GraphPatch) -> list[JsonValue]:
    """Ids of the nodes that the patches change."""
    before = graph()
    after = apply_overrides(before, overrides(*patches))
    pairs = zip(objects(before["nodeDataArray"]), objects(after["nodeDataArray"]), strict=True)
    return [old["id"] for old, new in pairs if old != new]


@pytest.mark.parametrize(
    ("match", "ids"),
    [
        ({"kind": "node_name", "equals": "image"}, ["a", "b"]),
        ({"kind": "node_name", "equals": "image", "count": "many"}, ["a", "b"]),
        ({"kind": "node_name", "equals": "beams", "count": "one"}, ["c"]),
        ({"kind": "node_id", "id": "b"}, ["b"]),
        ({"kind": "node_name_index", "name": "image", "index": 0}, ["a"]),
        ({"kind": "node_name_index", "name": "image", "index": 1}, ["b"]),
        ({"kind": "category", "category": "Scatter"}, ["c"]),
        ({"kind": "category", "category": "File", "count": "many"}, ["a", "b"]),
        ({"kind": "field_value", "field": "n", "value": 2}, ["b"]),
        ({"kind": "field_value", "field": "on", "value": True}, ["c"]),
    ],
)
def test_a_patch_reaches_the_nodes_that_its_match_names(match: dict[str, Any], ids: list[str]) -> None:
    assert changed(patch(match, n=9)) == ids


@pytest.mark.parametrize(
    ("match", "candidates"),
    [
        ({"kind": "node_id", "id": "z"}, ["a", "b", "c", "d"]),
        ({"kind": "node_name_index", "name": "image", "index": 2}, ["image[0] (id a)", "image[1] (id b)"]),
        ({"kind": "node_name_index", "name": "imag", "index": 0}, ["image"]),
        ({"kind": "category", "category": "scatter"}, ["Scatter"]),
        ({"kind": "field_value", "field": "n", "value": 7}, ["1", "2", "3"]),
        ({"kind": "field_value", "field": "ratios", "value": 7}, ["ratio"]),
        ({"kind": "field_value", "field": "on", "value": 1}, ["true"]),
    ],
)
def test_a_match_that_reaches_nothing_names_what_could_be_meant(
    match: dict[str, Any], candidates: list[str]
) -> None:
    (finding,) = check_patches(graph(), [patch(match, n=9)])
    assert finding.code == "graph_patch_node_not_found"
    assert list(finding.candidates) == candidates
    with pytest.raises(GraphError) as caught:
        apply_overrides(graph(), overrides(patch(match, n=9)))
    assert caught.value.code == "graph_patch_node_not_found"


@pytest.mark.parametrize(
    "match",
    [
        {"kind": "node_name", "equals": "image", "count": "one"},
        {"kind": "category", "category": "File"},
    ],
)
def test_several_matches_where_one_is_meant_are_refused_with_their_places(match: dict[str, Any]) -> None:
    (finding,) = check_patches(graph(), [patch(match, n=9)])
    assert (finding.severity, finding.code) == (Severity.ERROR, "graph_patch_ambiguous")
    assert finding.candidates == ("image[0] (id a)", "image[1] (id b)")
    with pytest.raises(GraphError) as caught:
        apply_overrides(graph(), overrides(patch(match, n=9)))
    assert caught.value.code == "graph_patch_ambiguous"


def test_a_name_of_several_nodes_is_warned_of_unless_it_is_meant() -> None:
    assert found(patch({"kind": "node_name", "equals": "image"}, n=9)) == [("warning", "duplicate_node_name")]
    assert found(patch({"kind": "node_name", "equals": "image", "count": "many"}, n=9)) == []


def test_a_field_that_is_nowhere_is_an_error_and_one_that_some_have_a_warning() -> None:
    everywhere = {"kind": "node_name", "equals": "image", "count": "many"}
    assert found(patch(everywhere, m=9)) == [("error", "graph_patch_field_not_found")]
    assert found(patch(everywhere, ratio=9)) == [("warning", "graph_patch_field_on_some")]


@pytest.mark.parametrize(
    ("key", "name", "value", "severity"),
    [
        ("a", "n", 5, None),
        ("a", "n", "$count(sbids[].datasets[])", None),
        ("a", "n", "5", "warning"),
        ("a", "n", 5.0, "warning"),
        ("a", "n", 5.5, "error"),
        ("a", "n", "five", "error"),
        ("a", "n", True, "error"),
        ("a", "n", None, "error"),
        ("a", "n", [1], "error"),
        ("b", "ratio", 5, None),
        ("b", "ratio", 5.5, None),
        ("b", "ratio", "5e-1", "warning"),
        ("b", "ratio", "half", "error"),
        ("b", "ratio", False, "error"),
        ("c", "on", False, None),
        ("c", "on", "False", "warning"),
        ("c", "on", 1, "error"),
        ("d", "path", "y", None),
        ("d", "path", 5, "warning"),
        ("d", "path", {"a": 1}, "error"),
        ("d", "any", {"a": 1}, None),
    ],
)
def test_a_value_is_of_its_fields_type(key: str, name: str, value: JsonValue, severity: str | None) -> None:
    expected = [] if severity is None else [(severity, "graph_patch_type_mismatch")]
    assert found(patch({"kind": "node_id", "id": key}, **{name: value})) == expected


def test_a_value_that_is_none_of_the_options_is_warned_of() -> None:
    (finding,) = check_patches(graph(), [patch({"kind": "node_id", "id": "a"}, mode="medium")])
    assert (finding.severity, finding.code) == (Severity.WARNING, "graph_patch_not_an_option")
    assert finding.candidates == ("fast", "slow")


def test_patches_that_contradict_each_other_are_refused_however_they_name_the_node() -> None:
    first = patch({"kind": "node_id", "id": "c"}, n=1)
    second = patch({"kind": "category", "category": "Scatter"}, n=2)
    assert found(first, second) == [("error", "graph_patch_conflict")]
    assert found(first, patch({"kind": "category", "category": "Scatter"}, n=1, on=False)) == []
    assert found(first, patch({"kind": "node_id", "id": "a"}, n=2)) == []
    (finding,) = check_patches(graph(), [first, second])
    for word in ("graph_patches[0]", "graph_patches[1]", "beams[0] (id c)"):
        assert word in finding.message


def test_one_and_true_are_not_the_same_value() -> None:
    both = [patch({"kind": "node_id", "id": "d"}, any=value) for value in (1, True)]
    assert found(*both) == [("error", "graph_patch_conflict")]


def test_all_findings_are_told_at_once_and_errors_first() -> None:
    every = found(
        patch({"kind": "node_name", "equals": "image"}, n="5"),
        patch({"kind": "node_id", "id": "z"}, n=1),
        patch({"kind": "node_id", "id": "c"}, m=1),
    )
    assert [severity for severity, _ in every] == sorted((severity for severity, _ in every))
    assert Counter(code for _, code in every) == {
        "graph_patch_node_not_found": 1,
        "graph_patch_field_not_found": 1,
        "duplicate_node_name": 1,
        "graph_patch_type_mismatch": 1,
    }


def test_an_error_has_its_own_code_and_all_findings() -> None:
    findings = check_patches(
        graph(), [patch({"kind": "node_id", "id": "z"}, n=1), patch({"kind": "node_id", "id": "c"}, m=1)]
    )
    with pytest.raises(GraphError) as caught:
        refuse_errors(findings, name="survey")
    assert caught.value.code == "graph_patch_node_not_found"
    assert "1 more" in caught.value.message
    assert len(caught.value.details["findings"]) == 2
    refuse_errors([one for one in findings if one.severity is not Severity.ERROR], name="survey")


def test_a_survey_without_patches_is_told_that_the_default_one_has_no_node() -> None:
    (finding,) = check_patches(graph(), [])
    assert (finding.severity, finding.code) == (Severity.WARNING, "graph_patch_node_not_found")


def test_computed_overrides_are_checked_like_patches() -> None:
    made = overrides(
        patch({"kind": "node_id", "id": "a"}, n="five"), patch({"kind": "node_id", "id": "z"}, n=1)
    )
    assert sorted(one.code for one in check_overrides(graph(), made)) == [
        "graph_patch_node_not_found",
        "graph_patch_type_mismatch",
    ]
    assert check_overrides(graph(), None) == []


def test_a_manifest_says_the_kind_of_a_match_only_when_it_is_not_a_name() -> None:
    config = load_project(
        json.dumps(
            {
                "apiVersion": "beampipe.dev/v2",
                "kind": "ProjectConfig",
                "metadata": {"id": "s"},
                "adapters": {"required": ["casda"]},
                "graph_patches": [
                    {"match": {"kind": "node_name", "equals": "image"}, "set": {"n": 1}},
                    {"match": {"kind": "node_name", "equals": "image", "count": "one"}, "set": {"n": 1}},
                    {
                        "match": {"kind": "node_name_index", "name": "image", "index": 1},
                        "set": {"n": "$count(sbids[].datasets[])"},
                    },
                ],
            }
        )
    )
    made: Any = build_manifest(config, [{"sbid": "1", "source_identifier": "A"}])
    assert [one["match"] for one in made[OVERRIDES]["patches"]] == [
        {"equals": "image"},
        {"equals": "image", "count": "one"},
        {"kind": "node_name_index", "name": "image", "index": 1},
    ]
    assert made[OVERRIDES]["patches"][2]["fields"] == [{"name": "n", "value": 1}]


def test_a_kind_without_its_own_fields_is_still_matched_by_the_name() -> None:
    made: JsonObject = {
        "patches": [{"match": {"kind": "node_id", "equals": "image"}, "fields": [{"name": "n", "value": 9}]}]
    }
    after = apply_overrides(graph(), made)
    numbers = [
        f["value"] for n in objects(after["nodeDataArray"]) for f in objects(n["fields"]) if f["name"] == "n"
    ]
    assert numbers == [9, 9, 3]


def test_a_project_whose_patches_do_not_fit_its_graph_is_refused_and_nothing_is_stored(stage: Stage) -> None:
    wrong = {"match": {"kind": "node_name", "equals": "imagee"}, "set": {"num_cpus": 1}}
    with pytest.raises(BeampipeError) as caught:
        stage.add_survey(graph_patches=[wrong])
    assert caught.value.code == "graph_patch_node_not_found"
    assert "image" in caught.value.details["candidates"]
    assert len(stage.events("config.activated")) == 1


def test_what_is_only_worth_knowing_comes_back_with_the_added_project(stage: Stage) -> None:
    text = json.loads((stage.home / "survey.yaml").read_text())
    text["graph_patches"][0]["set"] = {"num_cpus": "2"}
    (stage.home / "survey.yaml").write_text(json.dumps(text))
    added = stage.platform.projects.add_project(stage.home / "survey.yaml", actor="anna")
    assert [one.code for one in added.findings] == ["graph_patch_type_mismatch"]


def test_a_node_by_its_index_goes_through_to_the_prepared_graph(stage: Stage) -> None:
    match = {"kind": "node_name_index", "name": "image", "index": 0}
    stage.add_survey(graph_patches=[{"match": match, "set": {"num_cpus": "$count(sbids[].datasets[])"}}])
    report = stage.do("prepared_graph", stage.submit(stage.admitted("A"), until="workflow_manifest"))
    assert [one["node"] for one in report.facts["diff"]["changed_nodes"]] == ["image"]


@pytest.mark.skipif(not WALLABY.is_file(), reason="the WALLABY graphs are not on this machine")
def test_each_of_the_namesakes_in_the_wallaby_graph_can_be_named_alone() -> None:
    survey: JsonObject = json.loads(WALLABY.read_text())
    nodes = list(objects(survey["nodeDataArray"]))
    counts = Counter(str(one["name"]) for one in nodes)
    shared = [name for name, count in counts.items() if count > 1]
    assert len(shared) == 8
    for name in shared:
        places = [one["id"] for one in nodes if one["name"] == name]
        for index, key in enumerate(places):
            only = patch({"kind": "node_name_index", "name": name, "index": index}, dropclass="other")
            after = apply_overrides(survey, overrides(only))
            pairs = zip(nodes, objects(after["nodeDataArray"]), strict=True)
            assert [new["id"] for old, new in pairs if old != new] == [key]
            assert check_patches(survey, [only]) == []


@pytest.mark.skipif(not WALLABY.is_file(), reason="the WALLABY graphs are not on this machine")
@pytest.mark.parametrize(
    ("survey", "name"),
    [
        ("wallaby_hires.v2.yaml", "wallaby-hires_deploy-setonix-beampipe.graph"),
        ("wallaby_hires_nodownloads.v2.yaml", "wallaby-hires_test-pipeline-nodownloads-beampipe.graph"),
    ],
)
def test_the_wallaby_surveys_have_nothing_that_is_wrong(survey: str, name: str) -> None:
    config = load_project((REFERENCE / survey).read_text())
    assert check_patches(json.loads((REFERENCE / "graphs" / name).read_text()), config.graph_patches) == []
