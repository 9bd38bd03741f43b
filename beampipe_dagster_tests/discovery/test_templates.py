from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beampipe_dagster.config.canonical import JsonValue
from beampipe_dagster.config.project import ProjectConfig
from beampipe_dagster.discovery.templates import check_identifier, render, template_context
from beampipe_dagster.errors import InputError, Retry

safe_text = st.text(st.characters(exclude_categories=["Cc", "Cs"], exclude_characters="\\%"), max_size=20)


def project(**sections: JsonValue) -> ProjectConfig:
    return ProjectConfig.from_json(
        {
            "apiVersion": "beampipe.dev/v2",
            "kind": "ProjectConfig",
            "metadata": {"id": "survey"},
            "definitions": {
                "transforms": {
                    "short": {"kind": "strip_prefix", "prefix": "HIPASS"},
                    "lower": {"kind": "lowercase"},
                    "nothing": {"kind": "regex_extract", "pattern": "(never)"},
                }
            },
            **sections,
        }
    )


def query(name: str, transform: str | None = None) -> JsonValue:
    base: dict[str, JsonValue] = {"name": name, "adapter": "casda", "template": "SELECT 1"}
    return base if transform is None else {**base, "source_id_transform": transform}


def test_template_variables_are_made_of_the_identifier_or_of_literal_text() -> None:
    config = project(
        source_identity={
            "template_vars": {
                "source_name": {"transform": "short"},
                "same": {"from": "canonical"},
                "fixed": {"from": "WALLABY", "transform": "lower"},
                "kept": {"transform": "nothing"},
            }
        }
    )
    assert template_context(config, "HIPASSJ1318-21") == {
        "source_identifier": "HIPASSJ1318-21",
        "source_name": "J1318-21",
        "same": "HIPASSJ1318-21",
        "fixed": "wallaby",
        "kept": "HIPASSJ1318-21",
    }


def test_a_project_may_define_source_identifier_itself() -> None:
    config = project(source_identity={"template_vars": {"source_identifier": {"transform": "lower"}}})
    assert template_context(config, "AB") == {"source_identifier": "ab"}


@pytest.mark.parametrize(("index", "name"), [(0, "J1"), (1, "J1"), (2, "hipassj1"), (3, "hipassj1")])
def test_a_source_name_holds_until_a_later_query_has_its_own(index: int, name: str) -> None:
    config = project(
        discovery={"queries": [query("a", "short"), query("b"), query("c", "lower"), query("d")]}
    )
    assert template_context(config, "HIPASSJ1", index)["source_name"] == name


def test_without_any_transform_the_name_is_the_identifier() -> None:
    for config in (project(), project(discovery={"queries": [query("a", "nothing")]})):
        assert template_context(config, "S1") == {"source_identifier": "S1", "source_name": "S1"}


def test_a_value_is_never_filled_in_again() -> None:
    assert render("{a}{b}", {"a": "{b}", "b": "{a}"}) == "{b}{a}"


def test_quotes_are_doubled_and_unknown_names_stay() -> None:
    assert render("x = '{a}' {{a}} {other} { a }", {"a": " O'Brien "}) == (
        "x = 'O''Brien' {O''Brien} {other} { a }"
    )


@pytest.mark.parametrize(("value", "written"), [(5, "5"), (True, "true"), (None, ""), ([1], ""), (" ", "")])
def test_a_value_goes_in_as_its_text(value: JsonValue, written: str) -> None:
    assert render("[{x}]", {"x": value}) == f"[{written}]"


@given(value=safe_text, other=safe_text)
def test_a_value_in_quotes_is_one_literal_that_reads_back(value: str, other: str) -> None:
    literal = render("'{a}'", {"a": value, "b": other})
    assert re.fullmatch(r"'(?:[^']|'')*'", literal)
    assert literal[1:-1].replace("''", "'").split() == value.split()


@given(template=safe_text, value=safe_text)
def test_a_template_without_its_name_is_left_as_it_is(template: str, value: str) -> None:
    assert render(template.replace("{", "("), {"a": value}) == template.replace("{", "(")


@pytest.mark.parametrize("bad", ["a\\", "a%", "a\x00b", "a\nb", "a\x7f", "a\x9bb", "a\ud800"])
def test_what_no_quoting_makes_safe_is_refused(bad: str) -> None:
    for attempt in (
        lambda: check_identifier(bad),
        lambda: template_context(project(), bad),
        lambda: render("'{x}'", {"x": f"{bad}z"}),
    ):
        with pytest.raises(InputError) as caught:
            attempt()
        assert caught.value.code == "unsafe_identifier"
        assert caught.value.retry is Retry.NEVER
        str(caught.value).encode()


def test_only_values_that_are_used_are_checked() -> None:
    assert render("{a}", {"a": "x", "unused": "%"}) == "x"


def test_ordinary_identifiers_pass() -> None:
    for good in ("HIPASSJ1318-21", "NGC 253", "4C+12.34", "WALLABY_J1", "M'87", "é"):
        check_identifier(good)
