"""Manifests from records, and their digests."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from beampipe_dagster.config.canonical import canonical_json
from beampipe_dagster.config.expressions import is_expression
from beampipe_dagster.config.project import ProjectConfig
from beampipe_dagster.config.yaml_loader import load_yaml
from beampipe_dagster.errors import DataError
from beampipe_dagster.execution.manifest import OVERRIDES, build_manifest, manifest_sha256
from beampipe_dagster_tests.golden.runner import Deviation

if TYPE_CHECKING:
    from beampipe_dagster.config.canonical import JsonValue
    from beampipe_dagster_tests.golden.runner import Case

JsonObject = dict[str, "JsonValue"]


def manifest(value: JsonValue) -> JsonValue:
    """``{yaml, records, exclude_sbids?, staging?}`` -> manifest, its digest, and without patches."""
    case = cast("JsonObject", value)
    config = _config(case)
    records = cast("list[JsonObject]", case["records"])
    excluded = cast("list[str]", case.get("exclude_sbids") or [])
    staging = cast("JsonObject | None", case.get("staging"))
    try:
        plain = build_manifest(
            config.model_copy(update={"graph_patches": ()}),
            records,
            exclude_sbids=excluded,
            staging=staging,
        )
        built = build_manifest(config, records, exclude_sbids=excluded, staging=staging)
    except DataError as error:
        return {"error_code": error.code}
    return {
        "manifest": built,
        "manifest_before_patches": plain,
        "manifest_sha256": manifest_sha256(built),
    }


def _config(case: JsonObject) -> ProjectConfig:
    return ProjectConfig.from_json(load_yaml(cast("str", case["yaml"])).value)


def _adds_up_over_several(case: Case) -> bool:
    """Several entries, and a patch whose value is computed from them."""
    patches = _config(cast("JsonObject", case.input)).graph_patches
    computed = any(
        isinstance(value, str) and is_expression(value) for patch in patches for value in patch.set_.values()
    )
    built = cast("JsonObject", cast("JsonObject", case.expected).get("manifest") or {})
    return computed and len(cast("list[JsonValue]", built.get("sources") or [])) > 1


def _only_computed_values_differ(case: Case, got: JsonValue) -> bool:
    """Everything but the overrides' values is the same, and no computed value is smaller."""
    expected, answer = cast("JsonObject", case.expected), cast("JsonObject", got)
    old = cast("JsonObject", expected["manifest"])
    new = cast("JsonObject", answer["manifest"])
    same = {k: v for k, v in old.items() if k != OVERRIDES} == {
        k: v for k, v in new.items() if k != OVERRIDES
    }
    plain = canonical_json(expected["manifest_before_patches"]) == canonical_json(
        answer["manifest_before_patches"]
    )
    pairs = zip(_values(old), _values(new), strict=True)
    return (
        same
        and plain
        and answer["manifest_sha256"] == manifest_sha256(new)
        and all(
            (name == other and (a == b or (isinstance(a, int) and isinstance(b, int) and b > a)))
            for (name, a), (other, b) in pairs
        )
    )


def _values(manifest: JsonObject) -> list[tuple[JsonValue, JsonValue]]:
    patches = cast("list[JsonObject]", cast("JsonObject", manifest[OVERRIDES])["patches"])
    return [
        (entry["name"], entry["value"])
        for patch in patches
        for entry in cast("list[JsonObject]", patch["fields"])
    ]


FUNCTIONS = {"manifest": manifest}
DEVIATIONS = [
    Deviation(
        name="expressions_add_up",
        reason="one graph serves every entry of the manifest, so a count of the first alone would"
        " leave datasets unprocessed",
        applies=_adds_up_over_several,
        agrees=_only_computed_values_differ,
    )
]
