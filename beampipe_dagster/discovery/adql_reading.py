"""Templates read as ADQL: their words, their parts, and the join with the greatest value of a column.

What :mod:`beampipe_dagster.discovery.rewrite` decides with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from sqlglot import exp, parser, tokens
from sqlglot.dialects.dialect import Dialect
from sqlglot.tokens import Token, TokenType  # type: ignore[attr-defined]  # their public home

MARK: Final = "beampipe-placeholder-"
"""Begin of the texts that stand for those with placeholders while a template is read."""


class Adql(Dialect):
    """ADQL as far as it matters here: standard SQL with ``TOP``, and no escapes by backslash."""

    class Tokenizer(tokens.Tokenizer):
        """Standard SQL and ``TOP``."""

        KEYWORDS = {**tokens.Tokenizer.KEYWORDS, "TOP": TokenType.TOP}  # noqa: RUF012  # sqlglot's own way

    class Parser(parser.Parser):
        """Nothing of its own."""


def top_level(template: str) -> list[Token]:
    """The words and signs outside of all parentheses."""
    found, depth = [], 0
    for token in Adql().tokenize(template):
        depth += {TokenType.L_PAREN: 1, TokenType.R_PAREN: -1}.get(token.token_type, 0)
        if depth == 0:
            found.append(token)
    return found


def scope_of(node: exp.Expr) -> exp.Select | None:
    """The query that a part belongs to."""
    return node.find_ancestor(exp.Select)


def marked_literals(node: exp.Expr) -> list[exp.Literal]:
    """The texts with placeholders, see :data:`MARK`."""
    return [
        literal
        for literal in node.find_all(exp.Literal)
        if literal.is_string and str(literal.this).startswith(MARK)
    ]


def mark_of(literal: exp.Literal) -> int:
    """Which of the marked texts, in their order in the template, a literal is."""
    return int(str(literal.this).rpartition("-")[2])


def conditions_of(select: exp.Select) -> list[exp.Expr]:
    """What every row must fulfil: the parts of the WHERE that AND joins, without parentheses around them."""
    where = select.args.get("where")
    waiting, out = [where.this] if where is not None else [], []
    while waiting:
        node = waiting.pop(0).unnest()
        if isinstance(node, exp.And):
            waiting[:0] = [node.this, node.expression]
        else:
            out.append(node)
    return out


def same_name(left: exp.Expr, right: exp.Expr) -> bool:
    """Whether two columns have the same name, whatever table they are said to be of."""
    return left.name.lower() == right.name.lower()


@dataclass(frozen=True, slots=True)
class Latest:
    """``JOIN (SELECT MAX(c) AS m FROM T WHERE P) AS x ON o.c = x.m``, where the query is ``FROM T AS o WHERE P``."""

    outer: exp.Column
    marks: frozenset[int]

    @classmethod
    def of(cls, select: exp.Select, join: exp.Join) -> Latest | None:
        """The parts, when a join is that; None when it is another."""
        derived, condition = join.this, join.args.get("on")
        plain = not join.side and join.kind in {"", "INNER"} and not join.args.get("using")
        if not plain or not isinstance(derived, exp.Subquery) or not isinstance(derived.this, exp.Select):
            return None
        inner, alias = derived.this, derived.alias.lower()
        greatest = _greatest(inner)
        condition = condition.unnest() if condition is not None else None
        if greatest is None or not alias or not isinstance(condition, exp.EQ):
            return None
        name, column = greatest
        sides = [condition.this, condition.expression]
        if not all(isinstance(side, exp.Column) for side in sides):
            return None
        if sides[0].table.lower() == alias:
            sides.reverse()
        outer, joined = sides
        matches = (
            joined.table.lower() == alias
            and joined.name.lower() == name
            and same_name(outer, column)
            and _alike(select, inner)
        )
        elsewhere = [one for one in select.find_all(exp.Column) if one.table.lower() == alias]
        if not matches or len(elsewhere) != 1:
            return None
        return cls(outer, frozenset(mark_of(literal) for literal in marked_literals(inner)))


def _greatest(inner: exp.Select) -> tuple[str, exp.Column] | None:
    """Name and column of the only thing that a subquery selects, ``MAX(column) AS name``."""
    parts = ("distinct", "limit", "offset", "fetch", "group", "having", "qualify", "joins", "with_", "with")
    if len(inner.expressions) != 1 or any(inner.args.get(part) for part in parts):
        return None
    (selected,) = inner.expressions
    aggregate = selected.unalias()
    if (
        not isinstance(aggregate, exp.Max)
        or aggregate.expressions
        or not isinstance(aggregate.this, exp.Column)
    ):
        return None
    return selected.alias.lower(), aggregate.this


def _alike(outer: exp.Select, inner: exp.Select) -> bool:
    """Whether two queries read the same table under the same conditions."""
    tables = [one.args.get("from_") or one.args.get("from") for one in (outer, inner)]
    if not all(table is not None and isinstance(table.this, exp.Table) for table in tables):
        return False
    names = [".".join(part.name.lower() for part in table.this.parts) for table in tables if table]
    return names[0] == names[1] and _normal(outer) == _normal(inner)


def _normal(select: exp.Select) -> list[str]:
    """The conditions without the table's names before columns, sorted; they may have no queries of their own."""
    out = []
    for condition in conditions_of(select):
        if condition.find(exp.Select) is not None:
            return [str(id(select))]
        copy = condition.copy()
        for column in copy.find_all(exp.Column):
            column.set("table", None)
            column.set("db", None)
        for literal in marked_literals(copy):  # the same text, wherever it stands
            literal.set("this", str(literal.this).rpartition("-")[0])
        out.append(copy)
    return sorted(one.sql() for one in out)


def join_span(stream: Sequence[Token]) -> tuple[int, int] | None:
    """Begin of the only join and of what follows it, in the outer query."""
    depth, begin = 0, None
    for token in stream:
        depth += {TokenType.L_PAREN: 1, TokenType.R_PAREN: -1}.get(token.token_type, 0)
        if depth:
            continue
        if begin is None and token.token_type in {TokenType.INNER, TokenType.JOIN}:
            begin = token.start
        elif begin is not None and token.token_type is TokenType.WHERE:
            return begin, token.start
    return None
