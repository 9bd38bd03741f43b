"""A template for one source made into one query for many, where that gives each source the same rows.

What may vary between sources is a comparison of a column with a text that holds placeholders, ``=`` or ``LIKE``,
which every row of the answer must fulfil. Then a query for many is the same query with "this one's comparison, or
that one's", and which rows belong to whom can be seen by comparing again
(:mod:`beampipe_dagster.discovery.attribution`). All other text of the author's stays as it was written: the template
is read to see that this holds, and changed by position.

One further form is known: a join with the greatest value of a column over the same rows, by which authors ask for a
source's latest epoch. The query for many asks for all epochs, and the latest are picked afterwards.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from sqlglot import exp
from sqlglot.errors import SqlglotError
from sqlglot.tokens import Token, TokenType  # type: ignore[attr-defined]  # their public home

from beampipe_dagster.config.canonical import JsonValue
from beampipe_dagster.discovery.adql_reading import (
    MARK,
    Adql,
    Latest,
    conditions_of,
    join_span,
    mark_of,
    marked_literals,
    same_name,
    scope_of,
    top_level,
)
from beampipe_dagster.discovery.templates import render

_PLACEHOLDER: Final = re.compile(r"\{([^{}]*)\}")


class Reason(StrEnum):
    """Why a template is asked source by source."""

    UNREADABLE = "unreadable"
    NO_PLACEHOLDER = "no_placeholder"
    NOT_IN_A_LITERAL = "placeholder_not_in_a_literal"
    NOT_A_CONDITION = "placeholder_not_in_a_top_level_condition"
    SET_OPERATION = "set_operation"
    AGGREGATE = "aggregate"
    LIMITED = "distinct_or_limited"
    JOIN = "join"
    COLUMN_NOT_SELECTED = "column_not_selected"
    BACKSLASH = "backslash"


REASONS: Final[dict[Reason, str]] = {
    Reason.UNREADABLE: "the template is not one SELECT that can be read",
    Reason.NO_PLACEHOLDER: "nothing in it depends on the source",
    Reason.NOT_IN_A_LITERAL: "a placeholder stands outside a text in single quotes",
    Reason.NOT_A_CONDITION: "a placeholder's text is not compared with a column by `=` or LIKE (without ESCAPE) in a "
    "condition that every row must fulfil",
    Reason.SET_OPERATION: "UNION, INTERSECT, EXCEPT or WITH",
    Reason.AGGREGATE: "GROUP BY, HAVING, an aggregate or a window function",
    Reason.LIMITED: "DISTINCT, TOP, LIMIT or OFFSET",
    Reason.JOIN: "a join (other than with the greatest value of a column over the same rows), or an uploaded table",
    Reason.COLUMN_NOT_SELECTED: "a column that tells the sources apart is not selected under a name of its own",
    Reason.BACKSLASH: "a backslash in a compared text, which archives read in different ways",
}
"""A sentence for each reason."""


@dataclass(frozen=True, slots=True)
class NotBatchable:
    """A template that is asked source by source."""

    reason: Reason

    def __str__(self) -> str:
        return REASONS[self.reason]


@dataclass(frozen=True, slots=True)
class Comparison:
    """A condition that tells the sources apart.

    Parameters
    ----------
    column
        The column's name in the answer, as the template spells it; archives may change its case.
    like
        Whether it is compared by ``LIKE``, else by ``=``.
    written
        The column as the template writes it.
    literal
        The text with its quotes and placeholders.
    """

    column: str
    like: bool
    written: str
    literal: str

    def text(self, context: Mapping[str, JsonValue]) -> str:
        """The condition for one source."""
        return f"{self.written} {'LIKE' if self.like else '='} {render(self.literal, context)}"

    def value(self, context: Mapping[str, JsonValue]) -> str:
        """The text that the column is compared with: for ``LIKE``, the pattern."""
        return render(self.literal, context)[1:-1].replace("''", "'")


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """How a template is asked for many sources at once.

    Parameters
    ----------
    template
        The author's.
    comparisons
        Those that tell the sources apart, in their order in the text; a row must fulfil all of a source's.
    spans
        Where they stand in the template, as pairs of begin and end.
    cut
        A part that the query for many does without: the join with the greatest value.
    keep_max
        The column of the answer of whose values a source keeps the greatest only.
    """

    template: str
    comparisons: tuple[Comparison, ...]
    spans: tuple[tuple[int, int], ...]
    cut: tuple[int, int] | None = None
    keep_max: str | None = None

    @property
    def as_list(self) -> bool:
        """Whether the query for many is a list of values, ``IN``; else it is alternatives, ``OR``."""
        return len(self.comparisons) == 1 and not self.comparisons[0].like

    def adql(self, contexts: Sequence[Mapping[str, JsonValue]], *, as_list: bool = True) -> str:
        """One query for several sources.

        Parameters
        ----------
        contexts
            What the placeholders mean for each, at least one.
        as_list
            Whether it is a list of values where that can be; else it is alternatives.

        Raises
        ------
        InputError
            ``unsafe_identifier``, see :func:`~beampipe_dagster.discovery.templates.render`.
        """
        return self.with_condition(self._condition(contexts, as_list=as_list and self.as_list))

    def with_condition(self, condition: str) -> str:
        """The template with one condition in place of those that tell the sources apart."""
        pieces = [(begin, end, "1 = 1") for begin, end in self.spans]
        pieces[0] = (*self.spans[0], condition)
        if self.cut is not None:
            pieces.append((*self.cut, ""))
        return _replaced(self.template, pieces)

    def sweep(self, columns: str, condition: str) -> str:
        """A query for other columns of the rows of all sources at once.

        Parameters
        ----------
        columns
            What is selected instead, as ADQL.
        condition
            What the rows must fulfil, in place of the conditions that tell the sources apart.
        """
        pieces = [(begin, end, "1 = 1") for begin, end in self.spans]
        pieces[0] = (*self.spans[0], condition)
        if self.cut is not None:
            pieces.append((*self.cut, ""))
        stream = top_level(self.template)
        first = next(token for token in stream if token.token_type is TokenType.FROM)
        pieces.append((stream[0].end + 1, first.start, f" {columns} "))
        order = [token for token in stream if token.token_type is TokenType.ORDER_BY]
        if order:
            pieces.append((order[-1].start, len(self.template), ""))
        return _replaced(self.template, pieces)

    def _condition(self, contexts: Sequence[Mapping[str, JsonValue]], *, as_list: bool) -> str:
        first = self.comparisons[0]
        if as_list:
            # Sorted, as an index would give them: then the rows of each come in the order of a single query.
            literals = sorted({render(first.literal, context) for context in contexts})
            return f"{first.written} IN ({', '.join(literals)})"
        alike = {" AND ".join(one.text(context) for one in self.comparisons) for context in contexts}
        if len(self.comparisons) == 1:
            return f"({' OR '.join(sorted(alike))})"
        return f"({' OR '.join(f'({text})' for text in sorted(alike))})"


def _replaced(template: str, pieces: Sequence[tuple[int, int, str]]) -> str:
    """A text with parts of it replaced, each given by its begin and end."""
    out, at = [], 0
    for begin, end, text in sorted(pieces):
        out += [template[at:begin], text]
        at = end
    return "".join([*out, template[at:]])


def plan_batch(template: str, names: AbstractSet[str]) -> BatchPlan | NotBatchable:
    """How a template can be asked for many sources, or why it cannot.

    Parameters
    ----------
    template
        ADQL for one source.
    names
        The placeholders that are filled in; text like ``{other}`` is text.
    """
    try:
        return _planned(template, names)
    except _No as no:
        return NotBatchable(no.reason)
    except (SqlglotError, RecursionError):
        return NotBatchable(Reason.UNREADABLE)


class _No(Exception):  # noqa: N818  # no error: it ends the reading of a template
    def __init__(self, reason: Reason) -> None:
        super().__init__(reason.value)
        self.reason = reason


def _planned(template: str, names: AbstractSet[str]) -> BatchPlan:
    stream = Adql().tokenize(template)
    marked = [
        index
        for index, token in enumerate(stream)
        if token.token_type is TokenType.STRING and _names(_source(template, token)) & names
    ]
    _check_all_found(template, [stream[index] for index in marked], names)
    select = _read(_with_marks(template, [stream[index] for index in marked]))
    _check_scope(select)
    joins = select.args.get("joins") or []
    own = {mark_of(literal): literal for literal in marked_literals(select) if scope_of(literal) is select}
    latest = Latest.of(select, joins[0]) if len(joins) == 1 else None
    if joins and latest is None:
        raise _No(Reason.JOIN)
    if len(own) + (len(latest.marks) if latest else 0) != len(marked):
        raise _No(Reason.NOT_A_CONDITION)
    comparisons, spans = [], []
    for number in sorted(own):
        column = _compared_column(own[number], select)
        begin, end, like = _place(stream, marked[number], column)
        literal = _source(template, stream[marked[number]])
        if "\\" in literal:
            raise _No(Reason.BACKSLASH)
        written = template[begin : stream[marked[number] - 2].end + 1]
        comparisons.append(Comparison(_selected_as(select, column), like, written, literal))
        spans.append((begin, end))
    if not comparisons:
        raise _No(Reason.NOT_A_CONDITION)
    keep = None if latest is None else _selected_as(select, latest.outer)
    cut = None if latest is None else join_span(stream)
    if latest is not None and cut is None:
        raise _No(Reason.JOIN)
    return BatchPlan(template, tuple(comparisons), tuple(spans), cut, keep)


def _names(text: str) -> set[str]:
    return set(_PLACEHOLDER.findall(text))


def _source(template: str, token: Token) -> str:
    return template[token.start : token.end + 1]


def _check_all_found(template: str, literals: Sequence[Token], names: AbstractSet[str]) -> None:
    total = sum(name in names for name in _PLACEHOLDER.findall(template))
    inside = sum(
        name in names for token in literals for name in _PLACEHOLDER.findall(_source(template, token))
    )
    if total == 0:
        raise _No(Reason.NO_PLACEHOLDER)
    if total != inside or any(template[token.start] != "'" for token in literals):
        raise _No(Reason.NOT_IN_A_LITERAL)


def _with_marks(template: str, literals: Sequence[Token]) -> str:
    """The template with each text that holds placeholders replaced by one that can be found again."""
    kinds = list(dict.fromkeys(_source(template, token) for token in literals))
    out, at = [], 0
    for number, token in enumerate(literals):
        kind = kinds.index(_source(template, token))
        out += [template[at : token.start], f"'{MARK}{kind}-{number}'"]
        at = token.end + 1
    return "".join([*out, template[at:]])


def _read(text: str) -> exp.Select:
    statements = Adql().parse(text)
    if len(statements) != 1 or statements[0] is None:
        raise _No(Reason.UNREADABLE)
    query = statements[0]
    if isinstance(query, exp.SetOperation):
        raise _No(Reason.SET_OPERATION)
    if not isinstance(query, exp.Select):
        raise _No(Reason.UNREADABLE)
    return query


def _check_scope(select: exp.Select) -> None:
    if select.ctes or any(True for _ in select.find_all(exp.SetOperation)):
        raise _No(Reason.SET_OPERATION)
    if any(select.args.get(part) for part in ("distinct", "limit", "offset", "fetch")):
        raise _No(Reason.LIMITED)
    if any(select.args.get(part) for part in ("group", "having", "qualify", "windows")):
        raise _No(Reason.AGGREGATE)
    grouping = select.find_all(exp.AggFunc, exp.Window)
    if any(scope_of(node) is select for node in grouping):
        raise _No(Reason.AGGREGATE)
    source = select.args.get("from_") or select.args.get("from")
    if source is None or not isinstance(source.this, exp.Table) or source.this.db.lower() == "tap_upload":
        raise _No(Reason.JOIN)
    if source.this.args.get("joins"):
        raise _No(Reason.JOIN)


def _compared_column(literal: exp.Literal, select: exp.Select) -> exp.Column:
    node = literal.parent
    column = node.this if isinstance(node, exp.EQ | exp.Like) else None
    if not isinstance(column, exp.Column) or all(node is not one for one in conditions_of(select)):
        raise _No(Reason.NOT_A_CONDITION)
    return column


def _place(stream: Sequence[Token], index: int, column: exp.Column) -> tuple[int, int, bool]:
    """Begin and end of ``column = 'text'`` or ``column LIKE 'text'``, and whether it is the latter."""
    at = index - 2
    kind = stream[index - 1].token_type
    if at < 0 or kind not in {TokenType.EQ, TokenType.LIKE}:
        raise _No(Reason.NOT_A_CONDITION)
    while at >= 2 and stream[at - 1].token_type is TokenType.DOT:
        at -= 2
    named = "".join(token.text for token in stream[at : index - 1])
    if named != ".".join(part.name for part in column.parts):  # there is more to it, such as a NOT
        raise _No(Reason.NOT_A_CONDITION)
    return stream[at].start, stream[index].end + 1, kind is TokenType.LIKE


def _selected_as(select: exp.Select, column: exp.Column) -> str:
    """The name of a column in the answer; it must be there once."""
    found: list[str] = []
    names: list[str] = []
    for projection in select.expressions:
        if projection.is_star:
            if select.args.get("joins") and isinstance(projection, exp.Star):
                raise _No(Reason.COLUMN_NOT_SELECTED)
            found.append(column.name)
            continue
        inner = projection.unalias()
        names.append(projection.alias_or_name.lower())
        if isinstance(inner, exp.Column) and same_name(inner.this, column.this):
            found.append(projection.alias_or_name)
    if len(found) != 1 or names.count(found[0].lower()) > 1:
        raise _No(Reason.COLUMN_NOT_SELECTED)
    if any(one.is_star for one in select.expressions) and found[0].lower() in names:
        raise _No(Reason.COLUMN_NOT_SELECTED)
    return found[0]
