"""Scopes: what was asked for, and whether staging and the manifest are about exactly that."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from beampipe_dagster.errors import DataError, InputError
from beampipe_dagster.execution.scope import Dataset, check_manifest, check_staged, parse_sources
from beampipe_dagster_tests.golden.runner import Case, Deviation

if TYPE_CHECKING:
    from beampipe_dagster.config.canonical import JsonValue

JsonObject = dict[str, "JsonValue"]


def scope_parse(value: JsonValue) -> JsonValue:
    """``{sources}`` -> ``{ok: {source: sbids or null}}`` or ``{error_code}``."""
    try:
        selection = parse_sources(cast("JsonObject", value)["sources"])
    except InputError as error:
        return {"error_code": error.code}
    return {
        "ok": {source: None if sbids is None else list(sbids) for source, sbids in sorted(selection.items())}
    }


def scope_staged(value: JsonValue) -> JsonValue:
    """``{records, skipped, expected}`` -> ``{ok}`` or ``{error_code}``."""
    case = cast("dict[str, list[JsonValue]]", value)
    try:
        check_staged(case["records"], [str(sbid) for sbid in case["skipped"]], _expected(case["expected"]))
    except DataError as error:
        return {"error_code": error.code}
    return {"ok": True}


def scope_manifest(value: JsonValue) -> JsonValue:
    """``{manifest, expected}`` -> ``{ok}`` or ``{error_code}``."""
    case = cast("JsonObject", value)
    try:
        check_manifest(case["manifest"], _expected(cast("list[JsonValue]", case["expected"])))
    except DataError as error:
        return {"error_code": error.code}
    return {"ok": True}


def _expected(datasets: list[JsonValue]) -> list[Dataset]:
    return [
        Dataset(str(item["source_identifier"]), str(item["sbid"]), str(item["dataset_id"]))
        for item in cast("list[JsonObject]", datasets)
    ]


def _several_entries(case: Case) -> bool:
    """A manifest with two entries of one source and no scheduling block twice."""
    if case.fn != "scope_manifest":
        return False
    manifest = cast("JsonObject", cast("JsonObject", case.input)["manifest"])
    sources = cast("list[JsonObject]", manifest.get("sources") or [])
    names = [entry.get("source_identifier") for entry in sources]
    blocks = [
        (entry.get("source_identifier"), block.get("sbid"))
        for entry in sources
        for block in cast("list[JsonObject]", entry.get("sbids") or [])
    ]
    return len(set(names)) < len(names) and len(set(blocks)) == len(blocks)


def _is_refused_by_another_word(case: Case) -> bool:
    code = cast("JsonObject", case.expected).get("error_code")
    return isinstance(code, str) and code not in OUR_CODES


def _refused_too(_case: Case, got: JsonValue) -> bool:
    return "error_code" in cast("JsonObject", got)


OUR_CODES = frozenset(
    {
        "archive_payload_invalid",
        "dataset_duplicate",
        "dataset_identity_missing",
        "dataset_parent_mismatch",
        "entry_not_object",
        "manifest_changed_scope",
        "manifest_datasets_missing",
        "manifest_entry_invalid",
        "manifest_sbid_duplicate",
        "manifest_sources_missing",
        "sbid_blank",
        "sbid_duplicate",
        "sbids_empty",
        "sbids_not_array",
        "source_duplicate",
        "source_identifier_blank",
        "sources_empty",
        "sources_not_array",
        "staging_changed_scope",
        "staging_skipped_selected_sbids",
    }
)
FUNCTIONS = {"scope_parse": scope_parse, "scope_staged": scope_staged, "scope_manifest": scope_manifest}
DEVIATIONS = [
    Deviation(
        name="an entry for each block",
        reason="a survey may group by source and block; the scope is the set of datasets, not of entries",
        applies=_several_entries,
        agrees=lambda _case, got: got == {"ok": True},
    ),
    Deviation(
        name="words of our own",
        reason="it is refused as well, by a code that only this product has for it",
        applies=_is_refused_by_another_word,
        agrees=_refused_too,
    ),
]
