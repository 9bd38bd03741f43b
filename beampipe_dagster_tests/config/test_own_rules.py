from __future__ import annotations

import json
from typing import Any

import pytest

from beampipe_dagster.config.project import GraphPatchMatch, ProjectConfig
from beampipe_dagster.config.validation import load_project, project_advice, validate_project

BASE: dict[str, Any] = {
    "apiVersion": "beampipe.dev/v2",
    "kind": "ProjectConfig",
    "metadata": {"id": "s"},
    "adapters": {"required": ["casda"]},
}


def codes(**sections: Any) -> list[tuple[str, str]]:
    report = validate_project(json.dumps({**BASE, **sections}))
    return [(one.path, one.code) for one in report.errors]


def match(**given: Any) -> list[tuple[str, str]]:
    found = codes(graph_patches=[{"match": given, "set": {"a": 1}}])
    return [(path.removeprefix("graph_patches[0].match."), code) for path, code in found]


def adapter(**given: Any) -> list[tuple[str, str]]:
    found = codes(adapters={"required": ["eso"], "definitions": {"eso": given}})
    return [(path.removeprefix("adapters.definitions.eso."), code) for path, code in found]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"kind": "node_name", "equals": "n"}, []),
        ({"kind": "node_name", "equals": "n", "count": "one"}, []),
        ({"kind": "node_id", "id": "x", "count": "many"}, []),
        ({"kind": "node_name_index", "name": "n", "index": 0}, []),
        ({"kind": "category", "category": "File"}, []),
        ({"kind": "field_value", "field": "f", "value": False}, []),
        ({"kind": "field_value", "field": "f", "value": ""}, []),
        ({"kind": "node_id", "id": " "}, [("id", "required")]),
        ({"kind": "node_name_index", "name": "n"}, [("index", "required")]),
        ({"kind": "field_value", "field": "f"}, [("value", "required")]),
        ({"kind": "node_id", "id": "x", "equals": "n"}, [("equals", "unexpected_match_field")]),
        ({"kind": "node_name", "equals": "n", "index": 1}, [("index", "unexpected_match_field")]),
        ({"kind": "node_id", "id": "x", "count": "few"}, [("count", "unknown_graph_patch_match_count")]),
        ({"kind": "zap", "equals": "n"}, [("kind", "unknown_graph_patch_match_kind")]),
    ],
)
def test_a_match_has_what_its_kind_needs_and_nothing_else(
    given: dict[str, Any], expected: list[tuple[str, str]]
) -> None:
    assert match(**given) == expected


def test_an_index_is_not_negative() -> None:
    assert match(kind="node_name_index", name="n", index=-1) == [("index", "invalid_config_structure")]


def test_a_new_kind_without_its_fields_keeps_its_digest_and_is_told_how_it_is_given() -> None:
    given = {"kind": "node_id", "equals": "n"}
    document = {**BASE, "graph_patches": [{"match": given, "set": {"a": 1}}]}
    report = validate_project(json.dumps(document))
    (error,) = report.errors
    assert error.code == "unknown_graph_patch_match_kind"
    assert error.hint is not None
    assert "given by id" in error.hint
    unknown = {**BASE, "graph_patches": [{"match": {"kind": "zap", "equals": "n"}, "set": {"a": 1}}]}
    assert report.spec_sha256 == validate_project(json.dumps(unknown)).spec_sha256


def test_new_fields_that_are_absent_are_not_in_the_canonical_form() -> None:
    patch = {"match": {"kind": "node_name", "equals": "n"}, "set": {"a": 1}}
    text = load_project(json.dumps({**BASE, "graph_patches": [patch]})).canonical_text()
    assert '"match":{"kind":"node_name","equals":"n"}' in text
    assert '"tap":{"timeout_seconds":30,"retries":1,"fail_open":false}}' in text


@pytest.mark.parametrize(
    "given",
    [
        {"kind": "node_id", "id": "x"},
        {"kind": "node_name_index", "name": "n", "index": 0, "count": "one"},
        {"kind": "field_value", "field": "f", "value": {"b": 1, "a": 2}},
    ],
)
def test_a_match_reads_its_own_json_again(given: dict[str, Any]) -> None:
    made = GraphPatchMatch.model_validate(given)
    assert made.as_json() == given
    assert GraphPatchMatch.model_validate(made.as_json()) == made


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"tap_url": "https://tap.example/tap"}, []),
        ({"tap_url": "http://tap.example/tap", "maxrec": 10, "timeout_seconds": 5}, []),
        ({"tap_url": "https://tap.example/tap", "auth_env": {"token": "ESO_TOKEN"}}, []),
        ({"tap_url": "https://tap.example/tap", "auth_env": {"user": "U", "password": "P"}}, []),
        ({"tap_url": "http://127.0.0.1:80/tap", "auth_env": {"token": "T"}}, []),
        ({"tap_url": "ftp://tap.example"}, [("tap_url", "invalid_tap_url")]),
        ({"tap_url": ""}, [("tap_url", "invalid_tap_url")]),
        ({"tap_url": "https://anna:secret@tap.example/tap"}, [("tap_url", "invalid_tap_url")]),
        ({"tap_url": "https://tap.example/tap?q=1"}, [("tap_url", "invalid_tap_url")]),
        ({"tap_url": "https://tap.example:x/tap"}, [("tap_url", "invalid_tap_url")]),
        ({"tap_url": "https://tap.example/tap", "maxrec": 0}, [("maxrec", "invalid_limit")]),
        (
            {"tap_url": "https://tap.example/tap", "auth_env": {"user": "U"}},
            [("auth_env", "invalid_auth_env")],
        ),
        ({"tap_url": "https://tap.example/tap", "auth_env": {}}, [("auth_env", "invalid_auth_env")]),
        (
            {"tap_url": "https://tap.example/tap", "auth_env": {"token": "s3cr3t-value!"}},
            [("auth_env.token", "invalid_variable_name")],
        ),
        (
            {"tap_url": "http://tap.example/tap", "auth_env": {"token": "T"}},
            [("tap_url", "insecure_credentials")],
        ),
    ],
)
def test_an_archive_of_the_surveys_own_is_checked(
    given: dict[str, Any], expected: list[tuple[str, str]]
) -> None:
    assert adapter(**given) == expected


def test_no_message_shows_what_may_be_a_secret() -> None:
    for given in (
        {"tap_url": "https://anna:hunter2@tap.example/tap"},
        {"tap_url": "https://tap.example/tap", "auth_env": {"token": "hunter2 is no name"}},
    ):
        report = validate_project(
            json.dumps({**BASE, "adapters": {"required": ["eso"], "definitions": {"eso": given}}})
        )
        assert report.errors
        assert "hunter2" not in json.dumps(report.as_dict())


def test_a_query_whose_archive_nothing_asks_for_is_worth_knowing() -> None:
    def advice(name: str, **more: Any) -> list[tuple[str, str]]:
        query = {"name": "q", "adapter": name, "template": "SELECT 1"}
        adapters = {"required": ["casda"], **more}
        prepare = {"field_map": {"sbid": {"from": "obs_id"}}}
        discovery = {"queries": [query], "prepare_metadata": prepare}
        text = json.dumps({**BASE, "adapters": adapters, "discovery": discovery})
        return [(one.path, one.code) for one in project_advice(text)]

    path = "discovery.queries[0].adapter"
    assert advice("casda") == []
    assert advice("cazda") == [(path, "adapter_not_required")]
    assert advice("my archive") == [(path, "adapter_not_configurable")]
    defined = {"my archive": {"tap_url": "https://tap.example/tap"}}
    assert advice("my archive", required=["casda", "my archive"], definitions=defined) == []


def test_a_file_with_errors_has_no_advice() -> None:
    assert project_advice("kind: x") == ()


def test_definitions_survive_the_ledger() -> None:
    definitions = {"eso": {"tap_url": "https://e/tap", "auth_env": {"token": "T"}, "maxrec": 5}}
    document = {**BASE, "adapters": {"required": ["eso"], "definitions": definitions}}
    config = load_project(json.dumps(document))
    again = ProjectConfig.from_json(config.as_json())
    assert again == config
    assert again.spec_sha256 == config.spec_sha256
