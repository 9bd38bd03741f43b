from __future__ import annotations

import json
from typing import Any

import pytest

from beampipe_dagster.config.schema import project_schema
from beampipe_dagster.config.validation import validate_project
from beampipe_dagster_tests.support.platforms import survey_spec

MATCH = {"column": "filename", "value": "{source_identifier}_SB", "how": "prefix"}
TEMPLATE = "SELECT * FROM ivoa.obscore WHERE {match} AND c = 'W'"


def document(part: str = "queries", **fields: Any) -> dict[str, Any]:
    spec: dict[str, Any] = survey_spec("0" * 64)
    query = {"name": "visibility", "adapter": "casda", "template": TEMPLATE, **fields}
    spec["discovery"][part] = [query]
    return spec


def problems(part: str = "queries", **fields: Any) -> list[tuple[str, str]]:
    report = validate_project(json.dumps(document(part, **fields)))
    assert all(
        one.hint or one.code in {"required", "invalid_limit"} for one in report.errors if "." in one.path
    )
    return [(one.code, one.path.removeprefix(f"discovery.{part}[0].")) for one in report.errors]


@pytest.mark.parametrize(
    "fields",
    [
        {"match": MATCH},
        {"match": [MATCH, {"column": "o.sbid", "value": "{source_name}"}]},
        {"match": {"filename": "{source_identifier}"}, "batch": "in"},
        {"match": {'"My file"': "it's {source_identifier}"}, "batch": {"form": "upload", "size": 5000}},
        {"match": MATCH, "keep": {"latest": "t_max"}, "batch": "or"},
        {
            "match": MATCH,
            "keep": {"where": {"c": "W"}, "latest": "t_max", "per": ["obs_id"]},
            "batch": "none",
        },
        {"match": MATCH, "watermark": {"column": "obs_release_date"}},
        {"match": MATCH, "watermark": {"column": "o.t_max", "lag_hours": 0, "every_minutes": 1}},
    ],
)
def test_these_are_right_and_warn_of_nothing(fields: dict[str, Any]) -> None:
    report = validate_project(json.dumps(document(**fields)))
    assert (report.errors, report.warnings) == ((), ())


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"match": MATCH, "template": "SELECT 1"}, [("match_without_place", "template")]),
        ({"match": MATCH, "template": "{match} {match}"}, [("match_without_place", "template")]),
        ({"match": MATCH, "template": "SELECT '{match}'"}, [("match_in_quotes", "template")]),
        ({"match": MATCH, "template": "SELECT 1 -- {match}"}, [("match_in_quotes", "template")]),
        ({"match": {**MATCH, "column": ""}}, [("invalid_column", "match[0].column")]),
        ({"match": {**MATCH, "column": "a = 1 OR b"}}, [("invalid_column", "match[0].column")]),
        ({"match": {**MATCH, "column": "{source_identifier}"}}, [("invalid_column", "match[0].column")]),
        ({"match": {**MATCH, "how": "like"}}, [("unknown_match", "match[0].how")]),
        ({"match": {**MATCH, "value": " "}}, [("required", "match[0].value")]),
        ({"match": {**MATCH, "value": "x"}}, [("match_without_variable", "match[0].value")]),
        ({"match": {**MATCH, "value": "{source_identifier}%"}}, [("unsafe_match_value", "match[0].value")]),
        ({"match": {**MATCH, "value": "\\{source_identifier}"}}, [("unsafe_match_value", "match[0].value")]),
        ({"match": MATCH, "keep": {}}, [("required", "keep")]),
        ({"match": MATCH, "keep": {"per": ["a"]}}, [("per_without_latest", "keep.per")]),
        (
            {"match": MATCH, "keep": {"latest": " ", "per": [""]}},
            [("required", "keep.latest"), ("required", "keep.per[0]")],
        ),
        ({"match": MATCH, "keep": {"where": {"a": []}}}, [("required", "keep.where.a")]),
        ({"match": MATCH, "batch": "both"}, [("unknown_batch_form", "batch.form")]),
        ({"match": MATCH, "batch": {"form": "or", "size": 0}}, [("invalid_limit", "batch.size")]),
        ({"match": MATCH, "batch": "in"}, [("batch_form_impossible", "batch.form")]),
        ({"match": MATCH, "batch": "upload"}, [("batch_form_impossible", "batch.form")]),
        (
            {"match": {"a": "{source_name}", "b": "{source_name}"}, "batch": "in"},
            [("batch_form_impossible", "batch.form")],
        ),
        ({"match": MATCH, "watermark": {"column": "max(a)"}}, [("invalid_column", "watermark.column")]),
        (
            {"match": MATCH, "watermark": {"column": "a", "every_minutes": 0}},
            [("invalid_limit", "watermark.every_minutes")],
        ),
    ],
)
def test_these_are_wrong_and_say_where(fields: dict[str, Any], expected: list[tuple[str, str]]) -> None:
    assert problems(**fields) == expected


@pytest.mark.parametrize(
    "fields",
    [
        {"match": {"how": "prefix", "value": "{source_name}"}},
        {"match": "filename"},
        {"match": MATCH, "keep": {"first": "t"}},
        {"match": MATCH, "batch": {"size": "many"}},
        {"match": MATCH, "watermark": {"lag_hours": 1}},
        {"match": MATCH, "watermark": {"column": "a", "lag_hours": -1}},
    ],
)
def test_another_structure_is_refused(fields: dict[str, Any]) -> None:
    report = validate_project(json.dumps(document(**fields)))
    assert {one.code for one in report.errors} == {"invalid_config_structure"}


def test_an_enrichment_has_no_watermark() -> None:
    found = problems("enrichments", match={"sbid": "{sbid}"}, watermark={"column": "released_date"})
    assert found == [("watermark_on_enrichment", "watermark")]


def test_a_variable_of_that_name_leaves_no_place_for_a_match() -> None:
    spec = document(match=MATCH)
    spec["source_identity"] = {"template_vars": {"match": {}, "source_name": {}}}
    report = validate_project(json.dumps(spec))
    assert [one.code for one in report.errors] == ["match_is_a_variable"]


def test_an_unknown_variable_in_a_match_is_warned_of() -> None:
    report = validate_project(json.dumps(document(match={"filename": "{sorce_name}"})))
    assert [one.code for one in report.warnings] == ["unknown_placeholder"]


def test_the_short_forms_are_in_the_schema() -> None:
    query = project_schema()["$defs"]["Query"]["properties"]
    assert {"type": "object", "additionalProperties": {"type": "string"}} in query["match"]["anyOf"]
    assert {"type": "string", "enum": ["auto", "or", "in", "upload", "none"]} in query["batch"]["anyOf"]
