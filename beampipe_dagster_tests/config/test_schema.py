"""The JSON Schemas of both documents, and the pages that are made of them."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from beampipe_dagster.config.profile import load_profile
from beampipe_dagster.config.project import TRANSFORM_KINDS, ProjectConfig
from beampipe_dagster.config.schema import DIALECT, profile_schema, project_schema
from beampipe_dagster.config.validation import validate_project
from beampipe_dagster.config.yaml_loader import load_yaml
from beampipe_dagster_tests.golden.runner import default_directory

try:
    jsonschema: Any = importlib.import_module("jsonschema")
except ImportError:
    jsonschema = None

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = default_directory().parent / "config"
SCHEMAS = {"project": project_schema(), "profile": profile_schema()}
HEAD: dict[str, Any] = {
    "apiVersion": "beampipe.dev/v2",
    "kind": "ProjectConfig",
    "metadata": {"id": "t"},
    "adapters": {"required": ["casda"]},
}


def files(pattern: str) -> list[Path]:
    return sorted([*(ROOT / "projects").rglob(pattern), *EXAMPLES.rglob(pattern)])


def problems(kind: str, value: Any) -> list[str]:
    """What does not fit; without the library, the fields that the schema does not know."""
    schema = SCHEMAS[kind]
    if jsonschema is None:
        return [f"$.{field}" for field in value if field not in schema["properties"]]
    validator = jsonschema.Draft202012Validator(schema)
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(value)]


def parts(schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    yield "document", schema
    yield from schema["$defs"].items()


needs_library = pytest.mark.skipif(jsonschema is None, reason="jsonschema is not installed")


@needs_library
@pytest.mark.parametrize("schema", SCHEMAS.values(), ids=SCHEMAS)
def test_a_schema_is_one_of_its_dialect(schema: dict[str, Any]) -> None:
    assert schema["$schema"] == DIALECT
    jsonschema.Draft202012Validator.check_schema(schema)
    json.dumps(schema, allow_nan=False)


@pytest.mark.parametrize("schema", SCHEMAS.values(), ids=SCHEMAS)
def test_every_part_and_every_field_is_described(schema: dict[str, Any]) -> None:
    bare = [name for name, part in parts(schema) if not part.get("description")]
    bare += [
        f"{name}.{field}"
        for name, part in parts(schema)
        for field, about in part["properties"].items()
        if not about.get("description")
    ]
    assert bare == []


@pytest.mark.parametrize("path", files("*.yaml"), ids=lambda path: path.name)
def test_every_example_survey_fits_the_schema(path: Path) -> None:
    value = load_yaml(path.read_bytes(), name=path.name).value
    assert problems("project", value) == []
    assert validate_project(path.read_bytes()).valid


@pytest.mark.parametrize("path", files("*profile*.json"), ids=lambda path: path.name)
def test_every_example_profile_fits_the_schema(path: Path) -> None:
    assert problems("profile", json.loads(path.read_bytes())) == []
    load_profile(path.read_bytes(), name=path.name)


def test_the_examples_of_this_repository_are_among_them() -> None:
    assert len([path for path in files("*.yaml") if path.is_relative_to(ROOT)]) >= 2
    assert any(path.is_relative_to(ROOT) for path in files("*profile*.json"))
    if os.environ.get("BEAMPIPE_GOLDEN_DIR"):
        assert any(not path.is_relative_to(ROOT) for path in files("*.yaml"))


@needs_library
@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"apiVersion": "beampipe.dev/v1"}, "$.apiVersion"),
        ({"kind": "Other"}, "$.kind"),
        ({"grpah": {}}, "$"),
        ({"discovery": None}, "$.discovery"),
        ({"adapters": {"tap": {"retries": -1}}}, "$.adapters.tap.retries"),
        ({"automation": {"discovery": {"batch_size": 0}}}, "$.automation.discovery"),
        ({"definitions": {"transforms": {"a": {"kind": "zap"}}}}, "$.definitions"),
        ({"graph_patches": [{"match": {"kind": "shape"}}]}, "$.graph_patches[0].match.kind"),
        ({"extension": {"hooks": ["boom"]}}, "$.extension"),
    ],
)
def test_what_validation_refuses_by_its_shape_the_schema_refuses_too(
    change: dict[str, Any], where: str
) -> None:
    document = {**HEAD, **change}
    assert not validate_project(json.dumps(document)).valid
    found = problems("project", document)
    assert found
    assert found[0].startswith(where)


def test_what_is_tolerated_is_tolerated_by_the_schema_too() -> None:
    document: dict[str, Any] = {
        **HEAD,
        "graph": None,
        "discovery": {
            "prepare_metadata": {"signature": {"more": 1}, "field_map": {"a": {"transform": ["t"]}}}
        },
        "automation": {"execution": {"execution_rest_remote_poll_interval_seconds": 60}},
    }
    ProjectConfig.from_json(document)
    assert problems("project", document) == []


def test_kinds_are_offered_as_a_choice() -> None:
    kind = SCHEMAS["project"]["$defs"]["Transform"]["properties"]["kind"]
    assert kind["enum"] == [*TRANSFORM_KINDS]


@needs_library
def test_a_deployment_needs_its_kind() -> None:
    assert problems("profile", {"name": "a", "translation": {}, "deployment": {"deploy_host": "h"}})


def test_a_schema_may_be_changed_by_who_asked_for_it() -> None:
    project_schema()["$defs"].clear()
    assert project_schema() == SCHEMAS["project"]


@pytest.fixture(scope="module")
def writer() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "write_config_docs", ROOT / "scripts" / "write_config_docs.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_pages_are_what_the_models_say(writer: ModuleType) -> None:
    stale = [path.name for path, text in writer.pages().items() if path.read_text(encoding="utf-8") != text]
    assert stale == [], "run scripts/write_config_docs.py"


def test_a_reference_page_has_a_row_for_every_field(writer: ModuleType) -> None:
    rows = {
        path.name: sum(line.startswith("| `") for line in text.splitlines())
        for path, text in writer.pages().items()
    }
    counts = {
        f"reference-{kind}.md": sum(len(part["properties"]) for _, part in parts(schema))
        for kind, schema in SCHEMAS.items()
    }
    assert rows == counts
