"""Deployment profiles: the typed form and its digest, or where the first error is."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from beampipe_dagster.config.profile import load_profile
from beampipe_dagster.errors import ConfigError

if TYPE_CHECKING:
    from beampipe_dagster.config.canonical import JsonValue


def profile(value: JsonValue) -> JsonValue:
    """``{profile}`` -> ``{valid, normalized, spec_sha256}`` or ``{valid, error_path|parse_failure}``."""
    try:
        loaded = load_profile(cast("dict[str, JsonValue]", value)["profile"])
    except ConfigError as error:
        if mismatches := error.details.get("mismatches"):
            first = mismatches[0]
            return {"valid": False, "parse_failure": {first["kind"]: first["subject"]}}
        return {"valid": False, "error_path": error.details["diagnostics"][0]["path"]}
    return {"valid": True, "normalized": loaded.as_json(), "spec_sha256": loaded.spec_sha256}


FUNCTIONS = {"profile": profile}
