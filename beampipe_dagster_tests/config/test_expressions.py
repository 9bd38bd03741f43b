"""``$count`` and ``$sum``."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beampipe_dagster.config.canonical import JsonValue
from beampipe_dagster.config.expressions import evaluate, is_expression

CONTEXT: JsonValue = {
    "sbids": [{"datasets": [1, 2], "beams": 2}, {"datasets": [3], "beams": 3.9}, {"beams": -4}],
    "": [7],
    "nothing": None,
    "mixed": [1, 2.9, -4, "7", None, True, {}],
}


@pytest.mark.parametrize(
    ("expression", "result"),
    [
        ("$count(sbids[].datasets[])", 3),
        ("$count(sbids[].datasets)", 2),
        ("$count(sbids)", 1),
        ("$count(nothing)", 1),
        ("$count(missing)", 0),
        ("$count(nothing[])", 0),
        ("$count()", 1),
        ("$count(sbids[0])", 0),
        ("  $count( sbids[] )  ", 3),
        ("$sum(sbids[].beams)", 5),
        ("$sum(mixed[])", 3),
        ("$sum(sbids)", 0),
    ],
)
def test_an_expression_is_the_integer_at_the_ends_of_its_path(expression: str, result: int) -> None:
    assert evaluate(expression, CONTEXT) == result
    assert is_expression(expression)


def test_brackets_alone_go_through_the_current_array() -> None:
    assert evaluate("$count([].[])", [[1, 2], [3], 4]) == 3


@pytest.mark.parametrize("text", ["", "12", "count(a)", "$count(a", "$avg(a)", "$count", "x $sum(a)"])
def test_other_text_is_a_literal(text: str) -> None:
    assert evaluate(text, CONTEXT) == text
    assert not is_expression(text)


@given(st.text(alphabet="ab.[]$()0 ", max_size=30), st.sampled_from(["$count", "$sum"]))
def test_any_path_gives_a_number(path: str, function: str) -> None:
    result = evaluate(f"{function}({path})", {"a": [{"b": 1}], "b": {"a": 2}})
    assert isinstance(result, int)
    assert result >= 0
