"""Rules over the parts of a query that say how it is asked for many sources, and what is kept of the answer.

They give places, codes and words; :mod:`beampipe_dagster.config.validation` makes diagnostics of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from beampipe_dagster.config.own_rules import Problem
from beampipe_dagster.config.queries import BATCH_FORMS, MATCH_PLACE, MATCH_WAYS, Query, QueryMatch
from beampipe_dagster.config.section import UNKNOWN

if TYPE_CHECKING:
    from beampipe_dagster.config.project import ProjectConfig
    from beampipe_dagster.config.yaml_loader import Path

_NAME: Final = r'(?:[A-Za-z_][A-Za-z0-9_]*|"[^"{}\x00-\x1f]+")'
# ADQL 2.1, grammar of <column_reference>: up to catalogue, schema and table before the column.
_COLUMN: Final = re.compile(rf"{_NAME}(?:\.{_NAME}){{0,3}}")
_PLACEHOLDER: Final = re.compile(r"\{[^{}]+\}")
_UNSAFE: Final = {
    "\\": "a backslash, which archives read in different ways",
    "%": "a percent sign, a wildcard",
}
_LITERALS: Final = re.compile(r"'(?:[^']|'')*'?|--[^\n]*|/\*(?:[^*]|\*(?!/))*(?:\*/)?|\"(?:[^\"]|\"\")*\"?")


def query_problems(config: ProjectConfig) -> Iterator[Problem]:
    """What is wrong with ``match``, ``keep``, ``batch`` and ``watermark`` of the queries; paths from the document."""
    discovery = config.discovery
    variables = set(config.source_identity.template_vars if config.source_identity else ())
    for part, queries in (("queries", discovery.queries), ("enrichments", discovery.enrichments)):
        for index, query in enumerate(queries):
            root: Path = ("discovery", part, index)
            found = (
                *_match_problems(query, variables),
                *_keep_problems(query),
                *_batch_problems(query),
                *_watermark_problems(query, per_block=part == "enrichments"),
            )
            for problem in found:
                yield Problem((*root, *problem.path), problem.code, problem.message, problem.hint)


def _match_problems(query: Query, variables: set[str]) -> Iterator[Problem]:
    if not query.match:
        return
    places = query.template.count(MATCH_PLACE)
    if "match" in variables:
        yield Problem(
            ("match",),
            "match_is_a_variable",
            "the survey has a template variable named match, and the template cannot mean both",
            "Give the variable another name.",
        )
    elif places != 1:
        yield Problem(
            ("template",),
            "match_without_place",
            f"must say {MATCH_PLACE} once, where the conditions of match go; it says so {places} times",
            f"Write for example  SELECT * FROM ivoa.obscore WHERE {MATCH_PLACE} AND ...",  # noqa: S608  # a hint
        )
    elif MATCH_PLACE not in _LITERALS.sub(" ", query.template):
        yield Problem(
            ("template",),
            "match_in_quotes",
            f"{MATCH_PLACE} stands for whole conditions, and here it is inside quotes or a comment",
            "Take the quotes away; match writes its own.",
        )
    for index, match in enumerate(query.match):
        for problem in _one_match(match):
            yield Problem(("match", index, *problem.path), problem.code, problem.message, problem.hint)


def _one_match(match: QueryMatch) -> Iterator[Problem]:
    yield from _column(("column",), match.column)
    if match.how == UNKNOWN:
        yield Problem(
            ("how",), "unknown_match", "is not a way to match", f"Known here: {', '.join(MATCH_WAYS)}."
        )
    if not match.value.strip():
        yield Problem(("value",), "required", "must not be blank")
    elif not _PLACEHOLDER.search(match.value):
        yield Problem(
            ("value",),
            "match_without_variable",
            "names no template variable, so that it is the same for all sources",
            "Name one, such as {source_identifier}; a condition that is the same for all goes into the template.",
        )
    for char, words in _UNSAFE.items():
        if char in match.value:
            yield Problem(
                ("value",),
                "unsafe_match_value",
                f"holds {words}",
                "Leave it out; how: prefix or contains adds what is needed.",
            )


def _keep_problems(query: Query) -> Iterator[Problem]:
    keep = query.keep
    if keep is None:
        return
    if not keep.where and keep.latest is None and not keep.per:
        yield Problem(("keep",), "required", "must say what is kept: where, or latest")
    if keep.per and keep.latest is None:
        yield Problem(
            ("keep", "per"),
            "per_without_latest",
            "says of what the latest is kept, but latest is not given",
            "Name the column under keep.latest, or take per out.",
        )
    if keep.latest is not None and not keep.latest.strip():
        yield Problem(("keep", "latest"), "required", "must not be blank")
    for index, name in enumerate(keep.per):
        if not name.strip():
            yield Problem(("keep", "per", index), "required", "must not be blank")
    for name, values in sorted(keep.where.items()):
        if not name.strip():
            yield Problem(("keep", "where"), "required", "the name of a column must not be blank")
        if not values:
            yield Problem(
                ("keep", "where", name), "required", "must name at least one value, or no row is kept"
            )


def _batch_problems(query: Query) -> Iterator[Problem]:
    batch = query.batch
    if batch is None:
        return
    if batch.form == UNKNOWN:
        yield Problem(
            ("batch", "form"),
            "unknown_batch_form",
            "is not a form of batches",
            f"Known here: {', '.join(BATCH_FORMS)}.",
        )
    if batch.size is not None and batch.size < 1:
        yield Problem(("batch", "size"), "invalid_limit", f"must be above 0, not {batch.size}")
    inexact = [match.column for match in query.match if match.how != "equals"]
    if inexact and batch.form in {"in", "upload"}:
        yield Problem(
            ("batch", "form"),
            "batch_form_impossible",
            f"{batch.form} needs every match to be how: equals, and {inexact[0]} is not",
            "Use or, or auto: a LIKE against an uploaded table can use no index, and IN has no wildcards.",
        )
    elif batch.form == "in" and len(query.match) > 1:
        yield Problem(
            ("batch", "form"),
            "batch_form_impossible",
            "a list of values is for one column, and match has several",
            "Use or, upload or auto.",
        )


def _watermark_problems(query: Query, *, per_block: bool) -> Iterator[Problem]:
    mark = query.watermark
    if mark is None:
        return
    if per_block:
        yield Problem(
            ("watermark",),
            "watermark_on_enrichment",
            "an enrichment is asked once a scheduling block, and new rows of it belong to no source",
            "Give the watermark to one of discovery.queries.",
        )
    yield from _column(("watermark", "column"), mark.column)
    if mark.every_minutes < 1:
        yield Problem(
            ("watermark", "every_minutes"), "invalid_limit", f"must be above 0, not {mark.every_minutes}"
        )


def _column(path: Path, name: str) -> Iterator[Problem]:
    if not _COLUMN.fullmatch(name):
        yield Problem(
            path,
            "invalid_column",
            f"{name!r} is not the name of a column",
            'Write it as in ADQL: filename, o.filename or "Name with blanks".',
        )
