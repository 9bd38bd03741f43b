"""ADQL from a project's templates: what a template may name, and how it is filled in.

Values come from identifiers that people registered, so filling in is one pass: a value is never
looked at for placeholders again. Quotes are doubled, which is right in every ADQL dialect. What no
quoting makes safe everywhere is refused: a backslash (some services hand it to a database that
takes it for an escape), ``%`` (a wildcard that ADQL cannot escape), and control characters. ``_``
is a wildcard too but stands in real names: results must be compared with the identifier again.
"""

from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING

from beampipe_dagster.discovery.transforms import NONE, apply, text
from beampipe_dagster.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from beampipe_dagster.config.canonical import JsonValue
    from beampipe_dagster.config.project import ProjectConfig

_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
_CANONICAL = "canonical"
_REFUSED = {"\\": "a backslash", "%": "a percent sign"}


def template_context(
    config: ProjectConfig, source_identifier: str, query_index: int = 0
) -> dict[str, JsonValue]:
    """What the templates of one query may name.

    With ``source_identity`` in the project file: its template variables, each made of the source
    identifier (or of the literal text in ``from``), and ``source_identifier``. Without it:
    ``source_identifier`` and ``source_name``, which is the identifier after the query's
    ``source_id_transform``, else after that of the nearest query before it that has one.

    Parameters
    ----------
    config
        The project.
    source_identifier
        The source as it is registered.
    query_index
        Which of ``discovery.queries``; enrichments come after the last.

    Raises
    ------
    InputError
        ``unsafe_identifier``, see :func:`check_identifier`.
    ConfigError
        ``transform_cycle`` or ``transform_too_long``.
    """
    check_identifier(source_identifier)
    transforms = config.transforms
    if config.source_identity is None:
        return {
            "source_identifier": source_identifier,
            "source_name": _source_name(config, source_identifier, query_index),
        }
    context: dict[str, JsonValue] = {}
    for name, variable in config.source_identity.template_vars.items():
        base = source_identifier
        if variable.from_ not in {None, _CANONICAL}:
            base = variable.from_ or ""
        value = apply(variable.transform, base, transforms)
        context[name] = base if value is NONE else value
    context.setdefault("source_identifier", source_identifier)
    return context


def render(template: str, context: Mapping[str, JsonValue]) -> str:
    """Fill in a template.

    Parameters
    ----------
    template
        ADQL with ``{name}`` where a value goes; names that the context does not have stay as they
        are.
    context
        Name to value. A value's text goes in, trimmed, its quotes doubled; a value without text
        leaves nothing.

    Raises
    ------
    InputError
        ``unsafe_identifier``: a value that cannot be put into a query safely.
    """

    def fill(match: re.Match[str]) -> str:
        name = match[1]
        if name not in context:
            return match[0]
        value = text(context[name]) or ""
        check_identifier(value, what=f"the value of {{{name}}}")
        return value.replace("'", "''")

    return _PLACEHOLDER.sub(fill, template)


def check_identifier(value: str, *, what: str = "source identifier") -> None:
    """Refuse text that must not get into a query.

    Parameters
    ----------
    value
        The text.
    what
        What the message calls it.

    Raises
    ------
    InputError
        ``unsafe_identifier``: it holds a backslash, ``%``, a control character (NUL too), or half
        of a surrogate pair.
    """
    for position, char in enumerate(value):
        bad = _REFUSED.get(char)
        if bad is None and unicodedata.category(char) in {"Cc", "Cs"}:
            bad = f"the character U+{ord(char):04X}"
        if bad is not None:
            raise InputError(
                f"{what} {value!r} holds {bad} at position {position}",
                code="unsafe_identifier",
                hint="Archives read it in different ways inside a query; use an identifier without.",
                details={"value": ascii(value), "position": position},
            )


def _source_name(config: ProjectConfig, source_identifier: str, query_index: int) -> str:
    queries = config.discovery.queries[: query_index + 1]
    named = [query.source_id_transform for query in queries]
    transform = next((name for name in reversed(named) if name is not None), None)
    value = apply(transform, source_identifier, config.transforms)
    return (None if value is NONE else text(value)) or source_identifier
