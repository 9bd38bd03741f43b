"""Canonical text and digest of project files."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from beampipe_dagster.config.project import ProjectConfig
from beampipe_dagster.config.yaml_loader import load_yaml

if TYPE_CHECKING:
    from beampipe_dagster.config.canonical import JsonValue


def config_canonical(value: JsonValue) -> JsonValue:
    """``{yaml}`` -> ``{canonical, sha256}``; a large file's case holds the digest only."""
    text = cast("str", cast("dict[str, JsonValue]", value)["yaml"])
    config = ProjectConfig.from_json(load_yaml(text).value)
    canonical = config.canonical_text()
    out: dict[str, JsonValue] = {"sha256": config.spec_sha256}
    return out if len(canonical) > _LARGE else {"canonical": canonical, **out}


_LARGE = 2000

FUNCTIONS = {"config_canonical": config_canonical}
