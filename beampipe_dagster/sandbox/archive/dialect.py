"""ADQL to SQLite: reading, checking names, writing, and the types of the answer's columns.

The ADQL that is read is 2.0 with what 2.1 adds and many archives accept (``UNION``, ``WITH``, ``OFFSET``,
``ILIKE``). One query is one statement, and every table in it is one that the archive publishes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlglot import exp, parse, parser, tokens
from sqlglot.dialects.dialect import Dialect
from sqlglot.dialects.sqlite import SQLite
from sqlglot.errors import ErrorLevel, ParseError, SqlglotError
from sqlglot.tokens import TokenType  # type: ignore[attr-defined]  # its public home

from beampipe_dagster.errors import InputError
from beampipe_dagster.sandbox.archive.columns import Column, Datatype, Table

MAX_QUERY_CHARACTERS = 1_000_000

_ANSI = re.compile(r"\x1b\[[0-9;]*m")


class Adql(Dialect):
    """ADQL: a backslash in a literal is a backslash, and ``TOP`` limits the rows."""

    TYPED_DIVISION = True

    class Tokenizer(tokens.Tokenizer):
        """Standard SQL and ``TOP``."""

        KEYWORDS = {**tokens.Tokenizer.KEYWORDS, "TOP": TokenType.TOP}  # noqa: RUF012  # sqlglot's own way

    class Parser(parser.Parser):
        """``LOG`` is the natural logarithm in ADQL."""

        LOG_DEFAULTS_TO_LN = True


class StrictSqlite(SQLite):
    """SQLite with backticks: an unknown name in double quotes would silently become a text."""

    class Tokenizer(SQLite.Tokenizer):
        """The first quote is the one that is written."""

        IDENTIFIERS = ["`"]  # noqa: RUF012  # sqlglot's own way


@dataclass(frozen=True, slots=True)
class Translation:
    """A query that may be run: SQLite's text, and what is known of its columns (None: ask the values)."""

    sql: str
    columns: tuple[Column | None, ...] | None


def translate(adql: str, tables: Sequence[Table]) -> Translation:
    """Read a query and write it for SQLite.

    Parameters
    ----------
    adql
        The query.
    tables
        The tables that it may name.

    Raises
    ------
    InputError
        ``invalid_adql`` with the position, when it is known, in ``details``.
    """
    catalogue = {(t.schema.lower(), t.name.lower()): t for t in tables}
    try:
        query = _parse(adql)
        _check_tables(query, catalogue)
        columns = _columns(query, catalogue, {})
        sql = query.sql(dialect=StrictSqlite, unsupported_level=ErrorLevel.IGNORE)
    except RecursionError as error:
        raise invalid_adql("it is nested too deeply") from error
    return Translation(sql, tuple(columns) if columns else None)


def invalid_adql(message: str, line: int | None = None, column: int | None = None) -> InputError:
    """The error for a query that cannot be answered, with its place."""
    place = f" (line {line}, column {column})" if line is not None else ""
    details = {} if line is None else {"line": line, "column": column}
    return InputError(
        f"The query cannot be used: {message}{place}",
        code="invalid_adql",
        hint="One ADQL SELECT over the tables of this archive; /tap/tables lists them.",
        details=details,
    )


def position_of(adql: str, name: str) -> tuple[int | None, int | None]:
    """Line and column (from 1) at which a name first stands in a query; None, None when it does not."""
    found = re.search(rf"(?<!\w){re.escape(name)}(?!\w)", adql, re.IGNORECASE)
    if found is None:
        return None, None
    before = adql[: found.start()]
    return before.count("\n") + 1, found.start() - (before.rfind("\n") + 1) + 1


def _parse(adql: str) -> exp.Query:
    if len(adql) > MAX_QUERY_CHARACTERS:
        raise invalid_adql(f"it is longer than {MAX_QUERY_CHARACTERS} characters")
    if "\x00" in adql:
        raise invalid_adql("it contains a NUL character")
    try:
        statements = [each for each in parse(adql, read=Adql) if each is not None]
    except ParseError as error:
        first: dict[str, Any] = error.errors[0] if error.errors else {}
        what = str(first.get("description") or str(error).split(". Line")[0])
        what = re.sub(r"<Token .*?text: (.*?), line.*?>", r"'\1'", what)
        what = re.sub(r"<class '[\w.]*\.(\w+)'>", r"\1", what).replace("\n", " ")
        what = _ANSI.sub("", what).rstrip(". ").replace("'SENTINEL'", "the end")
        near = str(first.get("highlight") or "")
        if near:
            what += f", near {near}"
        line, end = first.get("line"), first.get("col")
        # sqlglot counts to the end of the token, a reader to its beginning.
        raise invalid_adql(what, line, end and max(1, end - len(near) + 1)) from error
    except SqlglotError as error:
        raise invalid_adql(f"it cannot be read: {str(error)[:200]}") from error
    if not statements:
        raise invalid_adql("it is empty")
    if len(statements) > 1:
        raise invalid_adql(f"it holds {len(statements)} statements, one is allowed")
    query = statements[0]
    if not isinstance(query, exp.Query):
        raise invalid_adql(f"only SELECT is allowed, not {query.key.upper()}", 1, 1)
    if next(query.find_all(exp.DDL, exp.DML, exp.Command, exp.Into), query) is not query:
        raise invalid_adql("only SELECT is allowed")
    return query


def _check_tables(query: exp.Query, catalogue: Mapping[tuple[str, str], Table]) -> None:
    ctes = {cte.alias.lower() for cte in query.find_all(exp.CTE)}
    for node in query.find_all(exp.Table):
        if not isinstance(node.this, exp.Identifier):
            raise invalid_adql("functions cannot stand where a table is expected")
        if not node.db and node.name.lower() in ctes:
            continue
        if node.catalog or _lookup(node, catalogue) is None:
            name = ".".join(part.name for part in node.parts)
            known = ", ".join(sorted(table.adql_name for table in catalogue.values()))
            meta = node.this.meta
            raise invalid_adql(
                f"there is no table '{name}'; this archive has {known}",
                meta.get("line"),
                meta["col"] - len(node.name) + 1 if "col" in meta else None,
            )


def _lookup(node: exp.Table, catalogue: Mapping[tuple[str, str], Table]) -> Table | None:
    name = node.name.lower()
    if node.db:
        return catalogue.get((node.db.lower(), name))
    return next((table for (_, known), table in catalogue.items() if known == name), None)


_Columns = list[Column | None]


def _columns(
    query: exp.Expr,
    catalogue: Mapping[tuple[str, str], Table],
    ctes: Mapping[str, _Columns | None],
) -> _Columns | None:
    """The declared columns of a query's answer: None where only the values can tell."""
    if isinstance(query, exp.SetOperation):
        return _columns(query.left, catalogue, _with(query, catalogue, ctes))
    if isinstance(query, exp.Subquery):
        return _columns(query.this, catalogue, ctes)
    if not isinstance(query, exp.Select):
        return None
    known = _with(query, catalogue, ctes)
    sources: dict[str, _Columns | None] = {}
    for node in _sources(query):
        if isinstance(node, exp.Table):
            table = None if node.db else known.get(node.name.lower())
            if table is None:
                declared = _lookup(node, catalogue)
                table = list(declared.columns) if declared else None
            sources[node.alias_or_name.lower()] = table
        else:
            sources[node.alias_or_name.lower()] = _columns(node, catalogue, known)
    out: _Columns = []
    for projection in query.expressions:
        resolved = _projection(projection, sources)
        if resolved is None:
            return None
        out += resolved
    return out


def _with(
    query: exp.Query,
    catalogue: Mapping[tuple[str, str], Table],
    ctes: Mapping[str, _Columns | None],
) -> dict[str, _Columns | None]:
    out = dict(ctes)
    for cte in query.ctes:
        out[cte.alias.lower()] = _columns(cte.this, catalogue, out)
    return out


def _sources(select: exp.Select) -> list[exp.Expr]:
    first = select.args.get("from_") or select.args.get("from")
    joins = select.args.get("joins") or []
    return [each.this for each in ([first] if first else []) + joins]


def _projection(projection: exp.Expr, sources: Mapping[str, _Columns | None]) -> _Columns | None:
    if projection.is_star and not isinstance(projection, exp.Count):
        owner = projection.table.lower() if isinstance(projection, exp.Column) else ""
        out: _Columns = []
        for name, columns in sources.items():
            if owner in {"", name}:
                if columns is None:
                    return None
                out += columns
        return out
    column = _typed(projection, sources)
    # The name by which an outer query knows it.
    return [column and replace(column, name=projection.alias_or_name)]


def _typed(node: exp.Expr, sources: Mapping[str, _Columns | None]) -> Column | None:
    inner = node.unalias()
    if isinstance(inner, exp.Count):
        return Column("", "long", ucd="meta.number")
    if isinstance(inner, exp.Max | exp.Min):
        return _typed(inner.this, sources)
    if isinstance(inner, exp.Avg):
        return Column("", "double")
    if isinstance(inner, exp.Literal):
        datatype: Datatype = "char" if inner.is_string else "long" if inner.is_int else "double"
        return Column("", datatype)
    if isinstance(inner, exp.Column):
        owner = inner.table.lower()
        for name, columns in sources.items():
            if owner in {"", name} and columns is not None:
                for column in columns:
                    if column is not None and column.name.lower() == inner.name.lower():
                        return column
    return None
