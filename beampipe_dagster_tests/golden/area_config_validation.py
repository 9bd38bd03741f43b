"""Validation reports of project files: paths, codes and order, not the wording."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, cast

import yaml

from beampipe_dagster.config.validation import load_project, validate_project
from beampipe_dagster_tests.golden.runner import Deviation

if TYPE_CHECKING:
    from collections.abc import Iterable

    from beampipe_dagster.config.canonical import JsonValue
    from beampipe_dagster.config.diagnostics import Diagnostic
    from beampipe_dagster_tests.golden.runner import Case

_PARSE_FAILURES = {"invalid_yaml", "invalid_config_value", "invalid_config_structure"}


def config_report(value: JsonValue) -> JsonValue:
    """``{yaml, previous?: {yaml}}`` -> the report, as paths, codes and whether there is a hint."""
    case = cast("dict[str, JsonValue]", value)
    previous = cast("dict[str, str] | None", case.get("previous"))
    active = load_project(previous["yaml"]) if previous else None
    report = validate_project(cast("str", case["yaml"]), active=active)
    return {
        "project_id": report.project_id,
        "valid": report.valid,
        "errors": _short(report.errors),
        "warnings": _short(report.warnings),
        "spec_sha256": report.spec_sha256,
        "parse_failure": any(error.code in _PARSE_FAILURES for error in report.errors),
    }


def _short(diagnostics: Iterable[Diagnostic]) -> list[JsonValue]:
    return [
        {
            "path": diagnostic.path,
            "severity": diagnostic.severity.value,
            "code": diagnostic.code,
            "has_hint": diagnostic.hint is not None,
        }
        for diagnostic in diagnostics
    ]


FUNCTIONS = {"config_report": config_report}


def _changed(case: Case, got: JsonValue, *, only: set[str]) -> bool:
    """Whether the answer differs from what is expected in these fields only."""
    expected, answer = cast("dict[str, JsonValue]", case.expected), cast("dict[str, JsonValue]", got)
    return all(expected[key] == answer[key] for key in expected if key not in only)


def _errors(report: JsonValue) -> list[dict[str, JsonValue]]:
    return cast("list[dict[str, JsonValue]]", cast("dict[str, JsonValue]", report)["errors"])


def _text(case: Case) -> str:
    return cast("dict[str, str]", case.input)["yaml"]


def _defines_chains_or_patterns(case: Case) -> bool:
    return bool(re.search(r"\b(chain|regex_extract)\b", _text(case)))


def _only_more_is_refused(case: Case, got: JsonValue) -> bool:
    new = {"cyclic_transform", "invalid_regex"}
    kept = [error for error in _errors(got) if error["code"] not in new]
    return kept == _errors(case.expected) and _changed(case, got, only={"errors", "valid"})


def _repeats_a_key(case: Case) -> bool:
    def repeated(node: yaml.Node | None) -> bool:
        if isinstance(node, yaml.MappingNode):
            keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            return len(set(keys)) < len(keys) or any(repeated(value) for _, value in node.value)
        return isinstance(node, yaml.SequenceNode) and any(map(repeated, node.value))

    try:
        return repeated(yaml.compose(_text(case), yaml.SafeLoader))
    except yaml.YAMLError:
        return False


def _only_the_place_differs(case: Case, got: JsonValue) -> bool:
    without = [[{**error, "path": ""} for error in _errors(report)] for report in (case.expected, got)]
    return without[0] == without[1] and _changed(case, got, only={"errors"})


def _is_a_structure_error(case: Case) -> bool:
    return [error["code"] for error in _errors(case.expected)] == ["invalid_config_structure"]


def _the_first_is_among_them(case: Case, got: JsonValue) -> bool:
    return _errors(case.expected)[0] in _errors(got) and _changed(case, got, only={"errors"})


def _names_a_module(case: Case) -> bool:
    return "wasm_sha256" in _text(case)


def _only_the_module_is_refused(case: Case, got: JsonValue) -> bool:
    kept = [error for error in _errors(got) if error["code"] != "wasm_unsupported"]
    return kept == _errors(case.expected) and _changed(case, got, only={"errors", "valid"})


def _has_placeholders(case: Case) -> bool:
    return re.search(r"\{[^{}]*\}", _text(case)) is not None


def _only_more_is_warned_of(case: Case, got: JsonValue) -> bool:
    new = {"unquoted_placeholder", "unknown_placeholder", "inline_secret"}
    warnings = cast("list[dict[str, JsonValue]]", cast("dict[str, JsonValue]", got)["warnings"])
    kept = [warning for warning in warnings if warning["code"] not in new]
    same = kept == cast("dict[str, JsonValue]", case.expected)["warnings"]
    return same and _changed(case, got, only={"warnings"})


DEVIATIONS = [
    Deviation(
        name="refused at upload",
        reason="a chain without end and a pattern that is none are errors of the file",
        applies=_defines_chains_or_patterns,
        agrees=_only_more_is_refused,
    ),
    Deviation(
        name="place of the second key",
        reason="a repeated key is reported where it stands, not where its mapping begins",
        applies=_repeats_a_key,
        agrees=_only_the_place_differs,
    ),
    Deviation(
        name="all structure errors",
        reason="every structure error is reported at once, not only the first one",
        applies=_is_a_structure_error,
        agrees=_the_first_is_among_them,
    ),
    Deviation(
        name="no WebAssembly",
        reason="a module that would never be called is refused instead of being left out in silence",
        applies=_names_a_module,
        agrees=_only_the_module_is_refused,
    ),
    Deviation(
        name="placeholders are looked at",
        reason="a placeholder that is not quoted, or that nothing fills in, is warned of",
        applies=_has_placeholders,
        agrees=_only_more_is_warned_of,
    ),
]
