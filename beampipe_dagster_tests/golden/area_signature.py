"""Signed payloads, their digests, and the validation of records."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from beampipe_dagster.config.canonical import canonical_json
from beampipe_dagster.errors import DataError
from beampipe_dagster.signature.payload import (
    sign,
    sign_stored,
    signature_of_payload,
    validate_records,
)

if TYPE_CHECKING:
    from beampipe_dagster.config.canonical import JsonValue


def signature(value: JsonValue) -> JsonValue:
    """``{records, flags?, signature?}`` -> ``{canonical, payload, signature}``."""
    case = cast("dict[str, JsonValue]", value)
    exclude, include = _options(case)
    signed = sign(
        cast("list[JsonValue]", case["records"]),
        case.get("flags"),
        exclude_fields=exclude,
        include_flags=include,
    )
    return {
        "canonical": canonical_json(signed.payload),
        "payload": signed.payload,
        "signature": signed.digest,
    }


def signature_map(value: JsonValue) -> JsonValue:
    """``{payload}`` -> digest."""
    case = cast("dict[str, dict[str, JsonValue]]", value)
    return signature_of_payload(case["payload"])


def validated(value: JsonValue) -> JsonValue:
    """``{records}`` -> ``{ok}`` or ``{error_code, index}``."""
    case = cast("dict[str, list[JsonValue]]", value)
    try:
        validate_records(case["records"])
    except DataError as error:
        return {"error_code": error.code, "index": error.details["index"]}
    return {"ok": True}


def skip_tap(value: JsonValue) -> JsonValue:
    """``{records: [{sbid, metadata_json}], stored, signature?}`` -> ``{recomputed, skip}``."""
    case = cast("dict[str, JsonValue]", value)
    exclude, include = _options(case)
    rows = cast("list[dict[str, JsonValue]]", case["records"])
    again = sign_stored(
        {str(row["sbid"]): row["metadata_json"] for row in rows},
        exclude_fields=exclude,
        include_flags=include,
    )
    return {"recomputed": again.digest, "skip": again.digest == case["stored"]}


def _options(case: dict[str, JsonValue]) -> tuple[list[str], bool]:
    options = cast("dict[str, JsonValue] | None", case.get("signature"))
    if options is None:
        return [], False
    exclude = cast("list[str]", options.get("exclude_fields") or [])
    return exclude, bool(options.get("include_discovery_flags", True))


FUNCTIONS = {
    "signature": signature,
    "signature_map": signature_map,
    "validate_records": validated,
    "skip_tap": skip_tap,
}
