"""Warnings about valid project files."""

from __future__ import annotations

import json
from typing import Any

import pytest

from beampipe_dagster.config.diagnostics import Severity
from beampipe_dagster.config.validation import load_project, project_advice, validate_project

DIGITS = {
    "digits": {"kind": "extract_digits"},
    "trim": {"kind": "trim"},
    "tail": {"kind": "split_last", "separators": ["-"]},
    "digits_last": {"kind": "chain", "steps": ["tail", "digits", "trim"]},
    "digits_first": {"kind": "chain", "steps": ["digits", "tail"]},
}


def survey(
    template: str,
    *,
    part: str = "enrichments",
    sbid: Any = None,
    variables: dict[str, Any] | None = None,
) -> str:
    query = {"name": "q", "adapter": "casda", "template": template}
    primary = {"name": "p", "adapter": "casda", "template": "SELECT 1"}
    discovery: dict[str, Any] = {"queries": [primary], "enrichments": []}
    discovery[part].append(query)
    if sbid is not None:
        discovery["prepare_metadata"] = {"field_map": {"sbid": {"from": "obs_id", "transform": sbid}}}
    document: dict[str, Any] = {
        "apiVersion": "beampipe.dev/v2",
        "kind": "ProjectConfig",
        "metadata": {"id": "t"},
        "adapters": {"required": ["casda"]},
        "definitions": {"transforms": DIGITS},
        "discovery": discovery,
    }
    if variables is not None:
        document["source_identity"] = {"template_vars": variables}
    return json.dumps(document)


def warned(text: str) -> list[str]:
    report = validate_project(text)
    assert report.errors == ()
    assert {item.severity for item in report.warnings} <= {Severity.WARNING}
    return [item.code for item in report.warnings]


@pytest.mark.parametrize("part", ["queries", "enrichments"])
def test_a_variable_outside_of_quotes_is_warned_of_at_its_template(part: str) -> None:
    report = validate_project(survey("SELECT a FROM t WHERE b = {source_identifier}", part=part))
    (warning,) = report.warnings
    index = 1 if part == "queries" else 0
    assert (warning.code, warning.path) == ("unquoted_placeholder", f"discovery.{part}[{index}].template")
    assert warning.line is not None
    assert "'{source_identifier}'" in str(warning.hint)
    assert report.valid


@pytest.mark.parametrize(
    ("transform", "expected"),
    [
        ("digits", []),
        (["digits"], []),
        (["tail", "digits", "trim"], []),
        ("digits_last", []),
        ("digits_first", ["unquoted_placeholder"]),
        ("tail", ["unquoted_placeholder"]),
        (["digits", "tail"], ["unquoted_placeholder"]),
        (None, ["unquoted_placeholder"]),
    ],
)
def test_an_sbid_may_stand_without_quotes_when_it_can_only_be_digits(
    transform: Any, expected: list[str]
) -> None:
    assert warned(survey("SELECT a FROM t WHERE sbid = {sbid}", sbid=transform)) == expected


@pytest.mark.parametrize(
    ("variable", "expected"),
    [
        ({"from": "42"}, []),
        ({"from": "-7"}, []),
        ({"from": "4 OR 1=1"}, ["unquoted_placeholder"]),
        ({"transform": "digits"}, ["unquoted_placeholder"]),
        ({"from": "canonical"}, ["unquoted_placeholder"]),
        ({}, ["unquoted_placeholder"]),
    ],
)
def test_a_variable_may_stand_without_quotes_when_it_is_a_literal_integer(
    variable: dict[str, Any], expected: list[str]
) -> None:
    assert warned(survey("SELECT a FROM t WHERE b = {v}", variables={"v": variable})) == expected


def test_a_name_that_nothing_fills_in_is_warned_of_with_the_nearest_one() -> None:
    report = validate_project(survey("SELECT a FROM t WHERE b = '{source_nmae}'"))
    (warning,) = report.warnings
    assert (warning.code, warning.hint) == ("unknown_placeholder", "Did you mean source_name?")


@pytest.mark.parametrize("part", ["queries", "enrichments"])
def test_the_sbid_is_known_to_enrichments_only(part: str) -> None:
    expected = ["unknown_placeholder"] if part == "queries" else []
    assert warned(survey("SELECT a FROM t WHERE b = '{sbid}'", part=part)) == expected


def test_with_variables_of_its_own_a_survey_has_no_source_name() -> None:
    text = survey("SELECT a FROM t WHERE b = '{source_name}{v}{source_identifier}'", variables={"v": {}})
    assert warned(text) == ["unknown_placeholder"]


def test_a_secret_in_a_survey_is_warned_of_without_being_shown() -> None:
    text = survey("SELECT a FROM t").replace("SELECT 1", "SELECT 1 -- password=hunter2")
    report = validate_project(text)
    (warning,) = report.warnings
    assert (warning.code, warning.path) == ("inline_secret", "discovery.queries[0].template")
    assert "hunter2" not in str(report.as_dict())


def test_names_of_environment_variables_are_no_secrets() -> None:
    text = json.loads(survey("SELECT a FROM t"))
    text["adapters"]["definitions"] = {
        "mine": {"tap_url": "https://x/tap", "auth_env": {"user": "MY_USER", "password": "MY_PASSWORD"}}
    }
    report = validate_project(json.dumps(text))
    assert "inline_secret" not in {item.code for item in (*report.errors, *report.warnings)}


def test_changes_against_the_active_revision_come_first() -> None:
    active = load_project(survey("SELECT 1", sbid="digits"))
    report = validate_project(survey("SELECT {nope}", sbid="tail"), active=active)
    assert [item.code for item in report.warnings] == ["field_map_changed", "unknown_placeholder"]


@pytest.mark.parametrize(
    ("extension", "errors"),
    [
        ({"wasm_sha256": "a" * 64, "hooks": ["manifest"]}, ["wasm_unsupported"]),
        ({"wasm_sha256": ""}, ["wasm_unsupported"]),
        ({"wasm_sha256": "a" * 64, "hooks": ["boom"]}, ["wasm_unsupported", "unknown_extension_hook"]),
        ({"hooks": ["manifest"]}, []),
        ({}, []),
    ],
)
def test_a_webassembly_module_is_refused(extension: dict[str, Any], errors: list[str]) -> None:
    text = json.loads(survey("SELECT 1"))
    report = validate_project(json.dumps({**text, "extension": extension}))
    assert [item.code for item in report.errors] == errors
    assert all("entry point" in str(e.hint) for e in report.errors if e.code == "wasm_unsupported")


def advice(**discovery: Any) -> dict[str, str]:
    """Paths of what is worth knowing by code, for a survey with these parts of `discovery`."""
    manifest = discovery.pop("manifest", None)
    queries = [{"name": name, "adapter": "casda", "template": "SELECT 1"} for name in ("p", "q")]
    document: dict[str, Any] = json.loads(survey("SELECT 1"))
    document["discovery"] = {"queries": queries, **discovery}
    if manifest is not None:
        document["manifest"] = manifest
    return {item.code: item.path for item in project_advice(json.dumps(document))}


MAPPED = {"sbid": {"from": "obs_id", "transform": "digits"}}


def test_a_survey_that_maps_no_sbid_is_warned_about() -> None:
    assert advice() == {"sbid_not_mapped": "discovery"}
    place = "discovery.prepare_metadata.field_map"
    assert advice(prepare_metadata={"field_map": {"a": {"from": "b"}}}) == {"sbid_not_mapped": place}
    assert advice(prepare_metadata={"field_map": MAPPED}) == {}
    assert advice(queries=[]) == {}


@pytest.mark.parametrize(
    ("origin", "code"),
    [
        ("enrichments.p", "flag_on_primary_query"),
        ("enrichments.p.filename", "flag_on_primary_query"),
        ("enrichments.q", None),
        ("enrichments.q.name", None),
        ("enrichments.e.7", None),
        ("enrichments.qq", "flag_without_origin"),
        ("q", "flag_without_origin"),
        ("source_identifier", "flag_without_origin"),
    ],
)
def test_a_flag_that_nothing_can_set_is_warned_about(origin: str, code: str | None) -> None:
    found = advice(
        enrichments=[{"name": "e", "adapter": "casda", "template": "SELECT 1"}],
        prepare_metadata={"field_map": MAPPED, "discovery_flags": {"f": {"from": origin}}},
    )
    place = "discovery.prepare_metadata.discovery_flags.f.from"
    assert found == ({} if code is None else {code: place})


def test_a_template_that_loses_what_datasets_are_is_warned_about() -> None:
    whole = {"source_identifier": "{source_identifier}", "sbid": "{sbid}", "dataset_id": "{dataset_id}"}
    prepare = {"field_map": MAPPED}
    for lost in whole:
        template = {key: value for key, value in whole.items() if key != lost}
        manifest = {"expand_from": "metadata", "dataset_template": template}
        found = advice(prepare_metadata=prepare, manifest=manifest)
        assert found == {"dataset_template_without_identity": "manifest.dataset_template"}
        assert advice(prepare_metadata=prepare, manifest={"dataset_template": template}) == {}
    manifest = {"expand_from": "metadata", "dataset_template": whole}
    assert advice(prepare_metadata=prepare, manifest=manifest) == {}
