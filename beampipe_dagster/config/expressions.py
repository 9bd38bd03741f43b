"""The two expressions that a graph patch may use: ``$count(PATH)`` and ``$sum(PATH)``.

``PATH`` is a row of parts between dots. ``key`` goes down to a key, ``key[]`` goes through the
array at that key, ``[]`` through the current array; there are no indexes. What cannot be followed
(a missing key, a value that is no array) contributes nothing. Text that is not one of the two is a
literal.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from beampipe_dagster.config.canonical import INT_MAX, JsonValue

if TYPE_CHECKING:
    from collections.abc import Iterator

FUNCTIONS = ("$count", "$sum")
"""The names that an expression may start with."""


def is_expression(text: str) -> bool:
    """Whether a text, without the white space around it, is ``$count(...)`` or ``$sum(...)``."""
    return _split(text) is not None


def evaluate(expression: str, context: JsonValue) -> JsonValue:
    """The value of an expression over a JSON value.

    Parameters
    ----------
    expression
        ``$count(PATH)``: how many ends the path has (a ``null`` counts); ``$sum(PATH)``: the sum of
        the non-negative numbers there, each cut to an integer, while anything else counts as 0.
    context
        The value that the path starts at.

    Returns
    -------
    JsonValue
        An integer, or the text itself when it is not an expression.
    """
    parts = _split(expression)
    if parts is None:
        return expression
    function, path = parts
    ends = _ends(context, path.split("."))
    if function == "$count":
        return sum(1 for _ in ends)
    return sum(_amount(value) for value in ends)


def _split(text: str) -> tuple[str, str] | None:
    trimmed = text.strip()
    for name in FUNCTIONS:
        if trimmed.startswith(f"{name}(") and trimmed.endswith(")"):
            return name, trimmed[len(name) + 1 : -1].strip()
    return None


def _ends(value: JsonValue, parts: list[str]) -> Iterator[JsonValue]:
    if not parts:
        yield value
        return
    part, rest = parts[0], parts[1:]
    key = part.removesuffix("[]")
    if key or key == part:  # "" alone looks up the empty key; "[]" alone stays at the current value
        if not isinstance(value, dict) or key not in value:
            return
        value = value[key]
    if key == part:
        yield from _ends(value, rest)
    elif isinstance(value, list):
        for element in value:
            yield from _ends(element, rest)


def _amount(value: JsonValue) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return 0
    return min(int(value), INT_MAX) if value > 0 else 0
