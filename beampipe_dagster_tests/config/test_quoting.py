"""Quoting: whatever a source is called, the query keeps its meaning. The judge is a parser of SQL."""

from __future__ import annotations

from pathlib import Path

import pytest
import sqlglot
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from sqlglot import exp

from beampipe_dagster.config.advice import unquoted_names
from beampipe_dagster.config.validation import load_project
from beampipe_dagster.discovery.templates import render, template_context
from beampipe_dagster.errors import InputError
from beampipe_dagster_tests.golden.runner import default_directory

ROOT = Path(__file__).resolve().parents[2]
SURVEYS = [
    *sorted((ROOT / "projects").rglob("*.yaml")),
    *sorted((default_directory().parent / "config").glob("wallaby*.yaml")),
]
HARMLESS = "HIPASSJ1318-21"
HOSTILE = [
    "'",
    "''",
    "'''",
    "' OR 1=1 --",
    "' OR ''='",
    "x'; DROP TABLE ivoa.obscore; --",
    "' UNION SELECT * FROM t --",
    "--",
    "/*",
    "*/",
    "/* ' */",
    ";",
    "{sbid}",
    "{source_name}",
    "'{source_identifier}'",
    '"',
    '"; --',
    "$$",
    "$1",
    "' AND filename LIKE '",
    "O'Brien",
    "`",
    "q'[",
    "E'",
    "N'",
    "U&'",
    "\uff07",
    "\u02bc",
    "\u2019",
    "'--\u2028x",
    "\u202e'",
]
identifiers = st.one_of(
    st.sampled_from(HOSTILE),
    st.lists(st.sampled_from([*HOSTILE, " ", "a", "_", "-", "=", "(", ")", ","]), max_size=6).map("".join),
    st.text(st.characters(exclude_categories=["Cc", "Cs"], exclude_characters="\\%"), max_size=30),
)


def queries(survey: Path, identifier: str) -> list[str]:
    """All queries of a survey about one source, as they go out."""
    config = load_project(survey.read_bytes(), name=survey.name)
    discovery = config.discovery
    templates = [query.template for query in (*discovery.queries, *discovery.enrichments)]
    return [
        render(template, {**template_context(config, identifier, index), "sbid": "72962"})
        for index, template in enumerate(templates)
    ]


def shape(query: str) -> str:
    """The statement's tree with every text taken out of it; there must be exactly one statement."""
    (statement,) = sqlglot.parse(query)
    assert statement is not None
    for literal in [*statement.find_all(exp.Literal)]:
        if literal.is_string:
            literal.replace(exp.Literal.string("text"))
    return repr(statement)


def texts(query: str) -> list[str]:
    return [literal.this for literal in sqlglot.parse_one(query).find_all(exp.Literal) if literal.is_string]


@pytest.mark.parametrize("survey", SURVEYS, ids=lambda path: path.name)
@settings(deadline=None, max_examples=60)
@given(identifier=identifiers)
@example(identifier="' OR 1=1 --")
@example(identifier="x'; DROP TABLE t; --")
def test_no_identifier_changes_what_a_query_asks(survey: Path, identifier: str) -> None:
    assume(identifier.strip())
    for hostile, harmless in zip(queries(survey, identifier), queries(survey, HARMLESS), strict=True):
        assert shape(hostile) == shape(harmless)


def test_the_judge_sees_a_query_that_was_changed() -> None:
    template = "SELECT a FROM t WHERE b = '{x}'"
    with pytest.raises((AssertionError, ValueError, sqlglot.errors.ParseError)):
        assert shape(template.replace("{x}", "' OR 1=1 --")) == shape(template.replace("{x}", "a"))


@pytest.mark.parametrize("identifier", HOSTILE)
def test_a_hostile_identifier_arrives_as_the_text_that_it_is(identifier: str) -> None:
    query = render("SELECT a FROM t WHERE b = '{x}' AND c = '{x}{x}'", {"x": identifier, "sbid": "1"})
    assert sorted(texts(query)) == sorted([identifier, identifier * 2])


@pytest.mark.parametrize("bad", ["\\", "\\'", "%", "a\nb", "\x00", "a\rb", "\x7f"])
def test_what_archives_read_in_different_ways_never_reaches_a_query(bad: str) -> None:
    with pytest.raises(InputError) as caught:
        queries(SURVEYS[0], f"a{bad}b")
    assert caught.value.code == "unsafe_identifier"


@pytest.mark.parametrize("survey", SURVEYS, ids=lambda path: path.name)
def test_the_example_surveys_have_no_unquoted_variable_but_the_sbid(survey: Path) -> None:
    discovery = load_project(survey.read_bytes()).discovery
    names = {
        name
        for query in (*discovery.queries, *discovery.enrichments)
        for name in unquoted_names(query.template)
    }
    assert names <= {"sbid"}


@pytest.mark.parametrize(
    ("template", "names"),
    [
        ("'{a}'", []),
        ("{a}", ["a"]),
        ("'{a}' {b} '{c}'", ["b"]),
        ("'it''s {a}'", []),
        ("'it''s' {a}", ["a"]),
        ('"{a}"', ["a"]),
        ("""'"' {a} '"'""", ["a"]),
        ("-- it's\n{a}", ["a"]),
        ("-- {a}\n'{b}'", []),
        ("/* it's */ {a}", ["a"]),
        ("/* {a} */", []),
        ("'-- ' {a}", ["a"]),
        ("'{a}", []),
        ("a - - {b}", ["b"]),
        ("{ a }", [" a "]),
    ],
)
def test_the_names_outside_of_quotes_are_found(template: str, names: list[str]) -> None:
    assert [*unquoted_names(template)] == names


@settings(deadline=None)
@given(st.lists(st.sampled_from(["'", "''", '"', "{a}", "--", "\n", " ", "b", ","]), max_size=12))
def test_a_name_counts_as_quoted_where_the_parser_finds_it_in_a_text(pieces: list[str]) -> None:
    template = "".join(pieces)
    try:
        tokens = sqlglot.tokenize(template.replace("{a}", " zzz "))
    except sqlglot.errors.TokenError:
        return  # an open quote: no statement at all
    outside = [token for token in tokens if token.token_type.name != "STRING"]
    assert len([*unquoted_names(template)]) == sum(token.text.count("zzz") for token in outside)
