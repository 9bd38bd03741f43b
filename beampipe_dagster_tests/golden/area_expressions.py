"""``$count`` and ``$sum``; text that is not an expression answers ``null`` in the cases."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from beampipe_dagster.config.expressions import evaluate, is_expression

if TYPE_CHECKING:
    from beampipe_dagster.config.canonical import JsonValue


def expr(value: JsonValue) -> JsonValue:
    """``{expr, context}`` -> ``{result}``."""
    case = cast("dict[str, JsonValue]", value)
    text = cast("str", case["expr"])
    return {"result": evaluate(text, case["context"]) if is_expression(text) else None}


FUNCTIONS = {"expr": expr}
