"""Transforms, by definition and by name, and the choice of a calibration archive."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from beampipe_dagster.config.project import ProjectConfig, Transform
from beampipe_dagster.config.yaml_loader import load_yaml
from beampipe_dagster.discovery.transforms import NONE, apply, select_calibration_archive

if TYPE_CHECKING:
    from beampipe_dagster.config.canonical import JsonValue
    from beampipe_dagster.discovery.transforms import Transformed


def transform(value: JsonValue) -> JsonValue:
    """``{spec, input}`` -> ``{none, result}``."""
    case = cast("dict[str, JsonValue]", value)
    return _shown(apply(Transform.model_validate(case["spec"]), case["input"], {}))


def transform_named(value: JsonValue) -> JsonValue:
    """``{yaml, name, input}`` -> ``{none, result}``; the name may be a list, an inline chain."""
    case = cast("dict[str, JsonValue]", value)
    config = ProjectConfig.from_json(load_yaml(cast("str", case["yaml"])).value)
    return _shown(apply(cast("str | list[str]", case["name"]), case["input"], config.transforms))


def select_eval(value: JsonValue) -> JsonValue:
    """``{input}`` -> ``{row}``."""
    case = cast("dict[str, JsonValue]", value)
    return {"row": select_calibration_archive(case["input"])}


def _shown(result: Transformed) -> JsonValue:
    if result is NONE:
        return {"none": True, "result": None}
    return {"none": False, "result": result}


FUNCTIONS = {
    "transform": transform,
    "transform_named": transform_named,
    "select_eval": select_eval,
}
