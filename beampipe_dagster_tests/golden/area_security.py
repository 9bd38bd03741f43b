"""What is redacted, and which lines of known_hosts are about a host."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from beampipe_dagster.backends.transport.known_hosts import host_matches
from beampipe_dagster.backends.transport.redaction import redacted_value, secret_paths

if TYPE_CHECKING:
    from beampipe_dagster.config.canonical import JsonValue


def redact(value: JsonValue) -> JsonValue:
    """``{value}`` -> ``{redacted, secret_paths}``."""
    document = cast("dict[str, JsonValue]", value)["value"]
    return {"redacted": redacted_value(document), "secret_paths": list(secret_paths(document))}


def host_pattern(value: JsonValue) -> JsonValue:
    """``{patterns, host, port}`` -> whether a line with these names is about the host."""
    case = cast("dict[str, Any]", value)
    return host_matches(case["patterns"], case["host"], case["port"])


FUNCTIONS = {"redact": redact, "host_pattern": host_pattern}
