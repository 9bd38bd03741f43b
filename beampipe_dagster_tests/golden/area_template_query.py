"""Template variables of a source, and templates filled in."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from beampipe_dagster.config.project import ProjectConfig
from beampipe_dagster.config.yaml_loader import load_yaml
from beampipe_dagster.discovery.templates import render, template_context
from beampipe_dagster.discovery.transforms import text
from beampipe_dagster.errors import InputError
from beampipe_dagster_tests.golden.runner import Case, Deviation

if TYPE_CHECKING:
    from beampipe_dagster.config.canonical import JsonValue


def context_of(value: JsonValue) -> JsonValue:
    """``{yaml, source}`` -> name to value."""
    case = cast("dict[str, str]", value)
    config = ProjectConfig.from_json(load_yaml(case["yaml"]).value)
    try:
        return template_context(config, case["source"])
    except InputError as error:
        return {"error_code": error.code}


def rendered(value: JsonValue) -> JsonValue:
    """``{template, context}`` -> text, or ``{error_code}`` for a value that is refused."""
    case = cast("dict[str, JsonValue]", value)
    try:
        return render(cast("str", case["template"]), cast("dict[str, JsonValue]", case["context"]))
    except InputError as error:
        return {"error_code": error.code}


def _context(case: Case) -> dict[str, str]:
    """Name to what goes in, as text with doubled quotes."""
    context = cast("dict[str, JsonValue]", cast("dict[str, JsonValue]", case.input)["context"])
    return {name: (text(value) or "").replace("'", "''") for name, value in context.items()}


def _in_turn(case: Case) -> str:
    """All of one name after the other, so that what went in is looked at again."""
    template = cast("dict[str, str]", case.input)["template"]
    for name, value in sorted(_context(case).items()):
        template = template.replace(f"{{{name}}}", value)
    return template


def _at_once(case: Case) -> str:
    """From left to right, each character of the template looked at once."""
    template, context = cast("dict[str, str]", case.input)["template"], _context(case)
    written, position = "", 0
    while position < len(template):
        name = next((n for n in context if template.startswith(f"{{{n}}}", position)), None)
        written += template[position] if name is None else context[name]
        position += 1 if name is None else len(name) + 2
    return written


def _is_filled_in_again(case: Case) -> bool:
    return case.fn == "render" and case.expected == _in_turn(case) != _at_once(case)


def _holds_what_is_refused(case: Case) -> bool:
    if case.fn == "template_context":
        return any(_is_refused(char) for char in cast("dict[str, str]", case.input)["source"])
    return any(_is_refused(char) for value in _context(case).values() for char in value)


def _is_refused(char: str) -> bool:
    return char in "\\%" or ord(char) < 0x20 or 0x7F <= ord(char) < 0xA0


FUNCTIONS = {"template_context": context_of, "render": rendered}
DEVIATIONS = [
    Deviation(
        name="one pass",
        reason="a value that holds a placeholder is not filled in again: values are data",
        applies=_is_filled_in_again,
        agrees=lambda case, got: got == _at_once(case),
    ),
    Deviation(
        name="no way to quote it",
        reason="a backslash, a percent sign and control characters mean different things to different archives",
        applies=_holds_what_is_refused,
        agrees=lambda _case, got: got == {"error_code": "unsafe_identifier"},
    ),
]
