"""The project's models: canonical form, digest, structure."""

from __future__ import annotations

import random
from typing import Any

import pytest
from pydantic import ValidationError

from beampipe_dagster.config.canonical import JsonValue
from beampipe_dagster.config.project import ProjectConfig, SignatureOptions
from beampipe_dagster.config.yaml_loader import load_yaml
from beampipe_dagster.errors import ConfigError

SMALLEST: dict[str, JsonValue] = {
    "apiVersion": "beampipe.dev/v2",
    "kind": "ProjectConfig",
    "metadata": {"id": "t"},
    "adapters": {"required": ["casda"]},
}


def project(**sections: Any) -> ProjectConfig:
    return ProjectConfig.from_json({**SMALLEST, **sections})


def test_the_digest_of_the_smallest_project_never_changes() -> None:
    config = project()
    assert config.canonical_text() == (
        '{"apiVersion":"beampipe.dev/v2","kind":"ProjectConfig","metadata":{"id":"t"},'
        '"adapters":{"required":["casda"],'
        '"tap":{"timeout_seconds":30,"retries":1,"fail_open":false}},'
        '"discovery":{"queries":[],"enrichments":[]},"graph_patches":[],'
        '"output_verification":{"required":false,'
        '"inventory_schema":"wallaby-hires-output-inventory/v1"},"automation":{}}'
    )
    assert config.spec_sha256 == "0d5a1c6452118c5680bfb6067fb9b3ce1920d50a3226cbe9853cae72ca41fc4e"


def full() -> dict[str, Any]:
    return {
        **SMALLEST,
        "graph": {"path": "g.graph", "sha256": "a" * 64},
        "discovery": {
            "queries": [{"name": "q", "adapter": "casda", "template": "SELECT 1"}],
            "prepare_metadata": {
                "field_map": {"b": {"from": "x", "transform": ["t"]}, "a": {"from": "y"}},
                "signature": {"exclude_fields": ["z"], "more": 1},
            },
        },
        "manifest": {"source_template": {"z": None, "a": {"y": 1, "x": 1e-6}}},
        "graph_patches": [{"match": {"kind": "node_name", "equals": "n"}, "set": {"k": None}}],
        "automation": {"execution": {"execution_rest_remote_poll_interval_seconds": 60}},
        "definitions": {"transforms": {"t": {"kind": "replace", "from": "a", "to": "b"}}},
        "source_identity": {"template_vars": {"v": {"from": "canonical"}}},
    }


def test_what_as_json_gives_is_the_same_project_again() -> None:
    config = ProjectConfig.from_json(full())
    again = ProjectConfig.from_json(config.as_json())
    assert again == config
    assert again.spec_sha256 == config.spec_sha256


def test_key_order_and_spelled_out_defaults_do_not_change_the_digest() -> None:
    wanted = ProjectConfig.from_json(full()).spec_sha256

    def shuffled(value: Any) -> Any:
        if isinstance(value, dict):
            items = list(value.items())
            generator.shuffle(items)
            return {key: shuffled(inner) for key, inner in items}
        return [shuffled(inner) for inner in value] if isinstance(value, list) else value

    for seed in range(20):
        generator = random.Random(seed)
        assert ProjectConfig.from_json(shuffled(full())).spec_sha256 == wanted
    assert ProjectConfig.from_json({**full(), "output_verification": {"required": False}}).spec_sha256 == (
        wanted
    )


def test_every_section_that_is_changed_changes_the_digest() -> None:
    digests = {ProjectConfig.from_json(full()).spec_sha256}
    for section in ("graph", "discovery", "manifest", "graph_patches", "automation", "definitions"):
        changed = full()
        del changed[section]
        digests.add(ProjectConfig.from_json(changed).spec_sha256)
    assert len(digests) == 7


def test_nulls_inside_templates_are_data_and_stay() -> None:
    text = ProjectConfig.from_json(full()).canonical_text()
    assert '"source_template":{"a":{"x":1e-6,"y":1},"z":null}' in text
    assert '"set":{"k":null}' in text


def test_a_whole_number_in_a_float_field_is_a_float() -> None:
    text = ProjectConfig.from_json(full()).canonical_text()
    assert '"execution_rest_remote_poll_interval_seconds":60.0' in text


def test_an_unknown_kind_is_kept_as_unknown_for_validation() -> None:
    config = project(
        definitions={"transforms": {"t": {"kind": "zap"}}},
        graph_patches=[{"match": {"kind": "node_id"}}],
        extension={"hooks": ["boom"]},
    )
    assert config.transforms["t"].kind == "unknown"
    assert config.graph_patches[0].match.kind == "unknown"
    assert config.extension is not None
    assert config.extension.hooks == ("unknown",)


def test_names_of_transforms_are_one_or_a_chain() -> None:
    prepare = {"field_map": {"a": {"from": "x", "transform": "t"}, "b": {"transform": ["t", "u"]}, "c": {}}}
    config = project(discovery={"prepare_metadata": prepare})
    assert config.discovery.prepare_metadata is not None
    mappings = config.discovery.prepare_metadata.field_map
    assert [mappings[name].transform_names for name in "abc"] == [("t",), ("t", "u"), ()]


def test_without_a_signature_section_its_defaults_hold() -> None:
    assert project().signature_options == SignatureOptions()


@pytest.mark.parametrize(
    ("sections", "path"),
    [
        ({"adapters": {"tap": {"retries": -1}}}, "adapters.tap.retries"),
        ({"adapters": {"tap": {"timeout_seconds": 30.0}}}, "adapters.tap.timeout_seconds"),
        ({"adapters": {"tap": {"timeout_seconds": True}}}, "adapters.tap.timeout_seconds"),
        ({"adapters": {"tap": None}}, "adapters.tap"),
        ({"adapters": {"required": "casda"}}, "adapters.required"),
        ({"adapters": {"required": ["casda", 1]}}, "adapters.required[1]"),
        ({"discovery": None}, "discovery"),
        ({"discovery": {"queries": [{"name": "a", "adapter": "b"}]}}, "discovery.queries[0]"),
        ({"graph": {"from_": "x"}}, "graph.from_"),
        (
            {"definitions": {"transforms": {"t": {"kind": "trim", "from_": "x"}}}},
            "definitions.transforms.t.from_",
        ),
        ({"definitions": {"transforms": {"t": {}}}}, "definitions.transforms.t"),
        ({"manifest": {"source_template": []}}, "manifest.source_template"),
        (
            {"discovery": {"prepare_metadata": {"field_map": {"a": {"transform": 3}}}}},
            "discovery.prepare_metadata.field_map.a.transform",
        ),
        ({"metadata": {"id": 7}}, "metadata.id"),
    ],
)
def test_a_wrong_type_or_an_unknown_field_is_refused_with_its_path(
    sections: dict[str, Any], path: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        project(**sections)
    assert caught.value.code == "invalid_config_structure"
    assert caught.value.details["paths"] == [path]


def test_a_project_cannot_be_changed() -> None:
    config = project()
    with pytest.raises(ValidationError):
        config.kind = "Other"  # type: ignore[misc]  # that it is refused is what is tested


def test_comments_and_quotes_of_the_file_do_not_change_the_digest() -> None:
    plain = (
        "apiVersion: beampipe.dev/v2\nkind: ProjectConfig\nmetadata: {id: t}\nadapters: {required: [casda]}\n"
    )
    other = "# a survey\nadapters:\n- 'casda'\n".replace("- ", "  required:\n  - ")
    other += 'metadata: {"id": "t"}\nkind: ProjectConfig\napiVersion: beampipe.dev/v2\ngraph: ~\n'
    digests = {ProjectConfig.from_json(load_yaml(text).value).spec_sha256 for text in (plain, other)}
    assert len(digests) == 1
