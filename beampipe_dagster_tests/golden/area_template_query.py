"""Template variables of a source, and templates filled in."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from beampipe_dagster.config.project import ProjectConfig
from beampipe_dagster.config.yaml_loader import load_yaml
from beampipe_dagster.discovery.templates import render, template_context
from beampipe_dagster_tests.golden.runner import Case, Deviation

if TYPE_CHECKING:
    from beampipe_dagster.config.canonical import JsonValue


def context_of(value: JsonValue) -> JsonValue:
    """``{yaml, source}`` -> name to value."""
    case = cast("dict[str, str]", value)
    config = ProjectConfig.from_json(load_yaml(case["yaml"]).value)
    return template_context(config, case["source"])


def rendered(value: JsonValue) -> JsonValue:
    """``{template, context}`` -> text."""
    case = cast("dict[str, JsonValue]", value)
    return render(cast("str", case["template"]), cast("dict[str, JsonValue]", case["context"]))


def _value_names_a_placeholder(case: Case) -> bool:
    if case.fn != "render":
        return False
    context = cast("dict[str, dict[str, JsonValue]]", case.input)["context"]
    texts = [text for text in context.values() if isinstance(text, str)]
    return any(f"{{{name}}}" in text for name in context for text in texts)


def _is_one_pass(case: Case, got: JsonValue) -> bool:
    """Of a template that is one placeholder, one pass leaves the value exactly as it is."""
    given = cast("dict[str, JsonValue]", case.input)
    context = cast("dict[str, JsonValue]", given["context"])
    return got == context.get(str(given["template"])[1:-1])


FUNCTIONS = {"template_context": context_of, "render": rendered}
DEVIATIONS = [
    Deviation(
        name="one pass",
        reason="a value that holds a placeholder is not filled in again: values are data",
        applies=_value_names_a_placeholder,
        agrees=_is_one_pass,
    )
]
