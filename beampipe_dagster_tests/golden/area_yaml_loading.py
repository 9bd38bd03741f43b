"""YAML text to JSON values."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from beampipe_dagster.config.yaml_loader import load_yaml
from beampipe_dagster.errors import ConfigError

if TYPE_CHECKING:
    from beampipe_dagster.config.canonical import JsonValue


def yaml_value(value: JsonValue) -> JsonValue:
    """``{yaml}`` -> ``{ok}``, ``{yaml_error}``, or ``{json_error}`` for what JSON cannot hold."""
    text = cast("str", cast("dict[str, JsonValue]", value)["yaml"])
    try:
        return {"ok": load_yaml(text).value}
    except ConfigError as error:
        return {"yaml_error" if error.code == "invalid_yaml" else "json_error": True}


FUNCTIONS = {"yaml_value": yaml_value}
